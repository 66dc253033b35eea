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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from segmv3.checkpoint import saved_steps
from segmv3.data.settings import Data, Layout
from segmv3.errors import ConfigError, DataError
from segmv3.files import append_line, remove_leftovers, write_bytes, write_json
from segmv3.records import from_json, read_regular, typed
from segmv3.training.claim import Claim, read_object

# these settings change no result: places of files (their contents are compared), number of workers, recomputing
FREE = (
    *("data.root", "data.cache", "data.extra_images", "data.extra_labels", "distill.teacher", "distill.features"),
    *("data.workers", "recompute", "extended"),
)


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
        self.settings_file = folder / "config.json"
        self.claim = Claim(self.settings_file, "run", "trains", FREE)
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
        steps = self._extended_from(settings)
        if extend and steps:
            settings = settings | {"schedule": settings["schedule"] | {"steps": steps}}
        self.claim.check(settings)
        if self.best.is_file() and not self.finished() and not saved_steps(self.states):
            raise ConfigError(f"{self.folder} holds weights but no training state to go on from; use another --run")
        return steps

    def _extended_from(self, settings: dict[str, Any]) -> int | None:
        """The steps of the run in the folder where fewer than now."""
        if not self.settings_file.is_file():
            return None
        schedule = read_object(self.settings_file).get("schedule")
        steps = schedule.get("steps") if isinstance(schedule, dict) else None
        return steps if isinstance(steps, int) and steps < settings["schedule"]["steps"] else None

    @contextmanager
    def claimed(self, settings: dict[str, Any], *, extend: bool = False) -> Iterator[None]:
        """Hold the folder.

        What `check` saw before may have changed: it looks again.

        Raises:
            OutputError: another process holds it.
            ConfigError: another process has started a run with other settings meanwhile.
        """
        with self.claim.held():
            self.check(settings, extend=extend)
            for folder in (self.folder, self.states):
                remove_leftovers(folder)
            self.claim.write(settings)
            yield

    def extend(self, settings: dict[str, Any], before: int, step: int) -> None:
        """Write down that a run of `before` steps, which stands at `step`, gets those of `settings`.

        The report goes first: a run without one is not finished, whenever this is ended.
        """
        self.report.unlink(missing_ok=True)
        entry = {"from": before, "to": settings["schedule"]["steps"], "at_step": step}
        settings = settings | {"extended": [*self.extensions(), entry]}
        write_json(self.settings_file, settings, indent=2)

    def batch_size(self) -> int:
        """Images per step that the run was started with; 0 where it has not begun.

        Raises:
            ConfigError: its settings are not a run's.
        """
        if not self.settings_file.is_file():
            return 0
        try:
            return typed(typed(read_object(self.settings_file).get("data"), dict)["batch_size"], int)
        except (ValueError, KeyError):
            raise ConfigError(f"{self.settings_file} names no batch; start again with another --run") from None

    def extensions(self) -> list[dict[str, int]]:
        """`{"from": 12, "to": 24, "at_step": 12}` of each time that the run got more steps."""
        try:
            return typed(read_object(self.settings_file).get("extended", []), list[dict[str, int]])
        except ValueError as error:
            raise ConfigError(f"{self.settings_file}: extended{error}; start again with another --run") from None

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
        found = read_object(self.metrics_file)
        try:
            for name, kind in ((key, float), ("step", int), ("split", str)):
                typed(found.get(name), kind, name)
        except ValueError as error:
            raise ConfigError(f"{self.metrics_file}: {error}; start again with another --run") from None
        return found


class Score(NamedTuple):
    """The score that counts in a run."""

    key: str
    """In log and metrics."""
    name: str
    """For people."""
    does: str
    """What a net does that has it."""


def score_of(settings: dict[str, Any]) -> Score:
    """The score that counts in a run with these settings, the content of config.json."""
    if settings.get("kind") == "Config":
        return Score("miou", "mIoU", "segments")
    if settings.get("kind") != "Detection":
        return Score("top1", "top-1", "classifies")
    if settings["model"].get("areas"):
        return Score("mean", "mean of mAP and mIoU", "draws boxes and labels areas")
    return Score("map", "mAP", "draws boxes")


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
