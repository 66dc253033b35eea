"""The folder of one run: whose it is, where it stands, what lies in it.

config.json       the resolved settings, written first, and how the run was extended
manifest.json     what the run started from, with what and where it was trained, and what came of it
log.jsonl         losses and scores by step
state/            training states to resume from
run.lock          held by the process that trains here
best.safetensors  the weights with the highest validation score, and metrics.json with all their scores
report.html       the page about the run, with its pictures in figures/
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from segmv3.checkpoint import differences, saved_steps
from segmv3.data.settings import Data, Layout
from segmv3.errors import ConfigError, DataError, OutputError, shortened
from segmv3.files import alone, append_line, is_temporary, make_folder, remove_leftovers, write_bytes
from segmv3.records import from_json, read_json, read_regular, typed
from segmv3.settings import to_dict
from segmv3.training.freezing import Freeze

# these settings change no result: places of files (their contents are compared), number of workers, recomputing
FREE = (
    *("data.root", "data.cache", "data.extra_images", "data.extra_labels", "distill.teacher", "distill.features"),
    *("data.workers", "recompute", "extended"),
)
_STEPS = "schedule.steps"
LATER = {
    **{"schedule.patience": 0, "optim.layer_decay": 1.0, "optim.reference_batch": 0, "freeze": to_dict(Freeze())},
    **{"loss.cross_entropy": 1.0, "loss.dice": 0.0, "loss.focal": 0.0, "loss.focal_gamma": 2.0, "loss.lovasz": 0.0},
    **{"distill.features_weight": 1.0, "model.backbone.deep": False, "model.backbone.widths": []},
}
"""Settings that earlier versions did not have, and what their runs did."""


class RunLog:
    """`log.jsonl`: one JSON object a line, in the order of the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[dict[str, Any]]:
        """Raises: ConfigError for a line that no run wrote; a last one that is cut is left out."""
        if not self.path.is_file():
            return []
        entries = []
        for number, line in enumerate(read_regular(self.path).splitlines(), 1):
            if not line.endswith(b"}"):
                continue
            try:
                entry = typed(from_json(line), dict)
                typed(entry.get("step"), int, "step")
                typed(entry.get("event"), str, "event")
                entries.append(entry)
            except ValueError as error:
                raise ConfigError(f"{self.path}: line {number} {error}; start again with another --run") from None
        return entries

    def rewind(self, step: int, evaluated: set[int]) -> None:
        """Forget what happened after `step` and scores not among `evaluated`: a resumed run will do it again."""
        kept = [
            entry
            for entry in self.entries()
            if entry["step"] <= step and (entry["event"] != "eval" or entry["step"] in evaluated)
        ]
        write_bytes(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def add(self, **entry: Any) -> None:
        append_line(self.path, json.dumps(entry))


@dataclass(frozen=True)
class Trained:
    """What came of a run."""

    score: float
    """Of the best weights, percent: mIoU, or top-1 of a classifier."""
    step: int
    """At which they were found."""
    weights: Path
    """The file of the best weights."""
    report: Path
    """The page about the run."""
    metrics: dict[str, Any]
    """All scores of the best weights with their conditions, as in metrics.json."""
    stopped: int | None = None
    """Step at which training ended early, by schedule.patience; None where it did all its steps."""


class Run:
    """Paths and records of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock_file = folder / "run.lock"
        self.settings_file = folder / "config.json"
        self.log = RunLog(folder / "log.jsonl")
        self.states = folder / "state"
        self.best = folder / "best.safetensors"
        self.metrics_file = folder / "metrics.json"
        self.report = folder / "report.html"
        self.manifest_file = folder / "manifest.json"

    def check(self, settings: dict[str, Any], *, extend: bool = False) -> int | None:
        """Refuse a folder that holds something else, or a run with other settings.

        Args:
            settings: what the run is asked for now.
            extend: allow more steps than the run was started with.

        Returns:
            The steps that the run had before, where it is extended now.

        Raises:
            OutputError, ConfigError: nothing is written.
        """
        if self.settings_file.is_file():
            steps = self._extended_from(settings)
            if extend and steps:
                settings = settings | {"schedule": settings["schedule"] | {"steps": steps}}
            refuse_others(self.settings_file, settings, FREE, "--run")
            if self.best.is_file() and not self.finished() and not saved_steps(self.states):
                raise ConfigError(f"{self.folder} holds weights but no training state to go on from; use another --run")
            return steps
        if self.folder.exists() and (not self.folder.is_dir() or any(map(_is_foreign, self.folder.iterdir()))):
            raise OutputError(f"{self.folder} is not empty and holds no run; choose another --run")
        return None

    def _extended_from(self, settings: dict[str, Any]) -> int | None:
        """The steps of the run in the folder where fewer than now."""
        schedule = _read_json(self.settings_file).get("schedule")
        steps = schedule.get("steps") if isinstance(schedule, dict) else None
        return steps if isinstance(steps, int) and steps < settings["schedule"]["steps"] else None

    @contextmanager
    def claimed(self, settings: dict[str, Any], *, extend: bool = False) -> Iterator[None]:
        """Hold the folder: two processes that train in it would spoil each other's files.

        What `check` saw before may have changed: it looks again.

        Raises:
            OutputError: another process holds it.
            ConfigError: another process has started a run with other settings meanwhile.
        """
        make_folder(self.folder)
        with alone(self.lock_file, self._refuse_company):
            self.check(settings, extend=extend)
            for folder in (self.folder, self.states):
                remove_leftovers(folder)
            if not self.settings_file.is_file():
                write_bytes(self.settings_file, json.dumps(settings, indent=2).encode())
            yield

    def extend(self, settings: dict[str, Any], before: int, step: int) -> None:
        """Write down that a run of `before` steps, which stands at `step`, gets those of `settings`.

        The report goes first: a run without one is not finished, whenever this is ended.
        """
        self.report.unlink(missing_ok=True)
        entry = {"from": before, "to": settings["schedule"]["steps"], "at_step": step}
        settings = settings | {"extended": [*self.extensions(), entry]}
        write_bytes(self.settings_file, json.dumps(settings, indent=2).encode())

    def batch_size(self) -> int:
        """Images per step that the run was started with; 0 where it has not begun.

        Raises:
            ConfigError: its settings are not a run's.
        """
        if not self.settings_file.is_file():
            return 0
        try:
            return typed(typed(_read_json(self.settings_file).get("data"), dict)["batch_size"], int)
        except (ValueError, KeyError):
            raise ConfigError(f"{self.settings_file} names no batch; start again with another --run") from None

    def extensions(self) -> list[dict[str, int]]:
        """`{"from": 12, "to": 24, "at_step": 12}` of each time that the run got more steps."""
        try:
            return typed(_read_json(self.settings_file).get("extended", []), list[dict[str, int]])
        except ValueError as error:
            raise ConfigError(f"{self.settings_file}: extended{error}; start again with another --run") from None

    def _refuse_company(self) -> None:
        raise OutputError(f"another process trains in {self.folder}; wait for it, stop it, or use another --run")

    def finished(self) -> bool:
        """Whether the run came to its end: the report is what it writes last."""
        return self.report.is_file() and self.metrics_file.is_file()

    def trained(self, key: str) -> Trained:
        """The result, by the score `key`."""
        metrics = self.metrics(key)
        return Trained(metrics[key], metrics["step"], self.best, self.report, metrics, self.stopped())

    def stopped(self) -> int | None:
        """The step at which the run ended early; None where it did not."""
        last = self.log.entries()[-1:]
        return last[0]["step"] if last and last[0]["event"] == "stop" else None

    def metrics(self, key: str) -> dict[str, Any]:
        """The scores of the best weights, `key` and what belongs to it among them."""
        found = _read_json(self.metrics_file)
        try:
            for name, kind in ((key, float), ("step", int), ("split", str)):
                typed(found.get(name), kind, name)
        except ValueError as error:
            raise ConfigError(f"{self.metrics_file}: {error}; start again with another --run") from None
        return found


def data_of(run: Run, settings: dict[str, Any], root: Path | None = None) -> Data:
    """The data set that a run was trained on, by its settings.

    Args:
        run: whose settings they are.
        settings: the content of config.json.
        root: where the data set lies; by default where the run found it, seen from here or from beside `runs/`.

    Raises:
        DataError: its layout is a class of the user's own.
    """
    layout: Any = settings["data"]["dataset"]
    if not isinstance(layout, str):
        raise DataError(f"{run.folder} was trained on a data set of one's own; name its config instead")
    named = Path(settings["data"]["root"])
    beside = run.folder.resolve().parent.parent / named
    found = beside if beside.is_dir() and not named.is_dir() else named
    return Data(dataset=cast(Layout, layout), root=root or found)


def _is_foreign(path: Path) -> bool:
    """Whether a file shows that a folder without settings is not the folder of a run."""
    return path.name != "run.lock" and not is_temporary(path)


def refuse_others(file: Path, settings: dict[str, Any], free: Collection[str], flag: str) -> None:
    """Compare with the settings that a folder was started with.

    Args: file: where they are. free: names (dotted) that may differ. flag: the one that names the folder.
    Raises: ConfigError.
    """
    was = _read_json(file, flag)
    if "contents" not in was or "contents" not in settings:  # of an earlier version; before the files were looked at
        was, settings = ({k: v for k, v in each.items() if k != "contents"} for each in (was, settings))
    changed = {k: v for k, v in differences(was, settings).items() if k not in free and v != (None, LATER.get(k))}
    for name in changed.keys() & {"train_set", "val_set"}:
        raise ConfigError(f"the images of {name[:-4]} are not those {file.parent} was started with")
    if other := _other_data({k[9:]: v for k, v in changed.items() if k.startswith("contents.")}):
        raise ConfigError(f"{file.parent} was started with {other}. Use another {flag}, or the data it began with.")
    if changed:
        text = ", ".join(f"{name} {_shown(a)} -> {_shown(b)}" for name, (a, b) in changed.items())
        more = (
            list(changed) == [_STEPS]
            and isinstance(changed[_STEPS][0], int)
            and changed[_STEPS][0] < changed[_STEPS][1]
        )
        remedy = f"Add --extend to train on, or use another {flag}." if more else f"Use another {flag}."
        raise ConfigError(f"{file.parent} was started with other settings: {text}. {remedy}")


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


def _read_json(path: Path, flag: str = "--run") -> dict[str, Any]:
    try:
        return typed(read_json(path), dict)
    except ValueError as error:
        raise ConfigError(f"{path} {error}; start again with another {flag}") from None


def _shown(value: Any) -> str:
    return shortened(json.dumps(value) if value is None or isinstance(value, list | dict | str) else value, 120)
