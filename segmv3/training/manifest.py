"""`manifest.json`: what a run started from, with which settings, on which data and machine, and what came of it.

docs/files.md lists its keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from segmv3.checkpoint import source_commit
from segmv3.errors import Interrupted
from segmv3.files import sha256, write_json
from segmv3.models.count import gmacs, parameters
from segmv3.records import read_json, typed
from segmv3.runtime.machine import machine
from segmv3.settings import to_dict
from segmv3.training.processes import Setup, device_name
from segmv3.training.run import Run
from segmv3.training.state import State

_FORMAT = 1


@dataclass
class _Session:
    started: str
    ended: str | None
    from_step: int
    to_step: int


@dataclass
class _Shape:
    """What is relied on of a manifest that was read."""

    status: str
    step: int
    seconds: float
    images_seen: int
    sessions: list[_Session]
    net: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, Any]


def read_manifest(run: Run) -> dict[str, Any]:
    """The manifest of a run; empty for a run of an earlier version, and for a file that cannot be used."""
    with suppress(ValueError):
        found = read_json(run.manifest_file)
        typed(found, _Shape)
        if found.get("format") == _FORMAT and found["sessions"]:
            return found
    return {}


class Manifest:
    """The manifest of a run that begins or goes on.

    Args:
        state: where the run stands, after `restore`.
        setup: what is trained.
        config_file: where the settings come from, if from a file.
    """

    def __init__(self, state: State, setup: Setup, config_file: Path | None) -> None:
        self._state, self._setup = state, setup
        before = read_manifest(setup.run)
        self.content: dict[str, Any] = {"format": _FORMAT, "status": "running", "metric": setup.task.metric.name}
        self._sessions = [each for each in before.get("sessions", []) if each["from_step"] < state.step]
        self._sessions.append({"started": _now(), "ended": None, "from_step": state.step, "to_step": state.step})
        self._facts = _facts(state, setup, config_file)
        self.write("running")

    def write(self, status: str) -> None:
        """Write down where the run stands. `status`: "running", "interrupted", "stopped" or "finished"."""
        state, setup = self._state, self._setup
        self._sessions[-1] |= {"ended": None if status == "running" else _now(), "to_step": state.step}
        whole = self._sessions[0]["from_step"] == 0
        self.content |= {
            "status": status,
            "started": self._sessions[0]["started"] if whole else None,
            "ended": self._sessions[-1]["ended"],
            "seconds": round(state.seconds, 1),
            "step": state.step,
            "images_seen": state.step * setup.config.data.batch_size,
            "sessions": self._sessions,
            "extended": setup.run.extensions(),
            "best": _best(setup),
            **self._facts,
        }
        write_json(setup.run.manifest_file, self.content, indent=2)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around the training: how it ends is written down."""
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # the error itself is what counts
                self.write("interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "stopped")
            raise
        self.write("finished")


def _facts(state: State, setup: Setup, config_file: Path | None) -> dict[str, Any]:
    """All that does not change while a run is trained."""
    task, found = setup.task, machine()
    origin, named = state.origin, setup.config.model.pretrained
    versions = {"segmv3": found["segmv3"], "commit": found["commit"], "python": found["python"], **found["packages"]}
    here = ("cpu", "flags", "cores", "threads", "memory_gib", "gpu", "system")
    return {
        "start": {"weights": _without_place(named), **origin} if named else None,
        "net": _net(state, setup),
        "classes": task.contents()["classes"],
        "data": {"name": Path(setup.config.data.root).resolve().name} | _splits(setup),
        "settings": _without_place(to_dict(setup.config)),
        "machine": {"device": device_name(setup.fabric.device), "processes": setup.fabric.world_size}
        | {key: found[key] for key in here},
        "versions": versions,
        "config_file": config_file.name if config_file else None,
        "config_commit": _commit_of(config_file),
    }


def _net(state: State, setup: Setup) -> dict[str, Any]:
    task, count = setup.task, None
    with suppress(Exception):  # a part of the user's own may not work without storage
        with torch.device("meta"):
            net = task.build(setup.config.data.batch_size)
        count = round(gmacs(net, task.counted_at), 4)
    size = list(task.counted_at)
    return {"name": task.net_name, "parameters": parameters(state.net), "gmacs": count, "gmacs_size": size}


def _splits(setup: Setup) -> dict[str, Any]:
    """Of each split, the number of its images and their digests."""
    task, splits = setup.task, dict[str, Any]()
    for split, dataset in (("train", task.train_set), ("val", task.val_set)):
        extra = getattr(dataset, "extra", None)
        splits[split] = {"images": len(dataset), "extra_images": len(extra) if extra else 0}
        splits[split] |= {"names_sha256": dataset.fingerprint(), "contents": task.seen.get(split, {})}
    return splits


def _best(setup: Setup) -> dict[str, Any] | None:
    run, key = setup.run, setup.task.metric.key
    if not (run.best.is_file() and run.metrics_file.is_file()):
        return None
    metrics = run.metrics(key)
    return {"score": metrics[key], "step": metrics["step"], "split": metrics["split"], "images": metrics["images"]} | {
        "file": run.best.name,
        "sha256": sha256(run.best),
    }


def _commit_of(config_file: Path | None) -> str | None:
    """The git commit of a config's folder; None for a config that came with segmv3, and without git."""
    package = Path(__file__).parents[1]
    if config_file is None or package in config_file.resolve().parents:
        return None
    return source_commit(config_file.resolve().parent) or None


def _without_place(value: Any) -> Any:
    """Names in place of whole paths: the file may be published, and nobody else has this machine's folders."""
    if isinstance(value, dict):
        return {name: _without_place(each) for name, each in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
