"""The folder of work that can be stopped and goes on: a run, a sweep, a fit, an adaptation."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from segmv3.checkpoint import differences
from segmv3.errors import ConfigError, OutputError, shortened
from segmv3.files import alone, is_temporary, make_folder, write_bytes
from segmv3.records import read_json, typed
from segmv3.settings import to_dict
from segmv3.training.freezing import Freeze

_STEPS = "schedule.steps"
LATER = {
    **{"schedule.patience": 0, "optim.layer_decay": 1.0, "optim.reference_batch": 0, "freeze": to_dict(Freeze())},
    **{"loss.cross_entropy": 1.0, "loss.dice": 0.0, "loss.focal": 0.0, "loss.focal_gamma": 2.0, "loss.lovasz": 0.0},
    **{"distill.features_weight": 1.0, "model.backbone.deep": False, "model.backbone.widths": []},
}
"""Settings that earlier versions did not have, and what their runs did."""


@dataclass(frozen=True)
class Claim:
    """What a folder is for: one piece of work, of one process at a time.

    Attributes:
        file: JSON of the settings that the work was started with.
        what: the work: "run"; run.lock is then held by the process that is at it.
        doing: what that process does: "trains".
        free: settings (dotted names) that may differ when it goes on.
        flag: the one that names the folder.
    """

    file: Path
    what: str
    doing: str
    free: Collection[str]
    flag: str = "--run"

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse a folder that holds something else, or work with other settings.

        Raises:
            OutputError, ConfigError: nothing is written.
        """
        folder = self.file.parent
        if self.file.is_file():
            self._refuse_others(settings)
        elif folder.exists() and (not folder.is_dir() or any(map(self._is_foreign, folder.iterdir()))):
            raise OutputError(f"{folder} is not empty and holds no {self.what}; choose another {self.flag}")

    def _is_foreign(self, path: Path) -> bool:
        return path.name != f"{self.what}.lock" and not is_temporary(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: two processes that work in it would spoil each other's files.

        Raises:
            OutputError: another process holds it.
        """
        folder = make_folder(self.file.parent)
        remedy = f"wait for it, stop it, or use another {self.flag}"
        with alone(folder / f"{self.what}.lock", f"another process {self.doing} in {folder}; {remedy}"):
            yield

    @contextmanager
    def started(self, settings: dict[str, Any]) -> Iterator[None]:
        """Hold the folder and write down the settings; what `check` saw before may have changed, so it looks again.

        Raises:
            OutputError, ConfigError: as `held` and `check`.
        """
        with self.held():
            self.check(settings)
            self.write(settings)
            yield

    def write(self, settings: dict[str, Any]) -> None:
        """Write down what the work is started with, where it is new."""
        if not self.file.is_file():
            write_bytes(self.file, json.dumps(settings, indent=2, default=str).encode())

    def _refuse_others(self, settings: dict[str, Any]) -> None:
        was, folder = read_object(self.file, self.flag), self.file.parent
        if "contents" not in was or "contents" not in settings:  # an earlier version; no file was looked at yet
            was, settings = ({k: v for k, v in each.items() if k != "contents"} for each in (was, settings))
        changed = {
            name: values
            for name, values in differences(was, settings).items()
            if name not in self.free and values != (None, LATER.get(name))
        }
        for name in changed.keys() & {"train_set", "val_set"}:
            raise ConfigError(f"the images of {name[:-4]} are not those {folder} was started with")
        if other := _other_data({k[9:]: v for k, v in changed.items() if k.startswith("contents.")}):
            raise ConfigError(f"{folder} was started with {other}. Use another {self.flag}, or the data it began with.")
        if changed:
            text = ", ".join(f"{name} {_shown(a)} -> {_shown(b)}" for name, (a, b) in changed.items())
            before, now = changed[_STEPS] if list(changed) == [_STEPS] else (0, 0)
            more = isinstance(before, int) and before < now
            remedy = f"Add --extend to train on, or use another {self.flag}." if more else f"Use another {self.flag}."
            raise ConfigError(f"{folder} was started with other settings: {text}. {remedy}")


def _other_data(changed: dict[str, tuple[Any, Any]]) -> str:
    """What differs between the contents of two data sets, as (was, now) by name; empty where nothing does."""
    ids = {name.rpartition(".")[2]: values for name, values in changed.items() if ".ids." in name}
    shown = [f"id {number} {_shown(a)} -> {_shown(b)}" for number, (a, b) in ids.items()]
    if "classes" in changed:
        names = (a if isinstance(a, list) else [] for a in changed["classes"])
        shown += [f"class {i} {_shown(a)} -> {_shown(b)}" for i, (a, b) in enumerate(zip_longest(*names)) if a != b]
    if shown:
        return f"other classes/ids: {', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''}"
    parts = [" of ".join(reversed(name.split("."))) for name in changed]
    return f"other pixels in files of the same names: {', '.join(parts)}" if parts else ""


def read_object(path: Path, flag: str = "--run") -> dict[str, Any]:
    """A file of JSON that a folder of work holds. Raises: ConfigError."""
    try:
        return typed(read_json(path), dict)
    except ValueError as error:
        raise ConfigError(f"{path} {error}; start again with another {flag}") from None


def _shown(value: Any) -> str:
    return shortened(json.dumps(value) if value is None or isinstance(value, list | dict | str) else value, 120)
