"""Runs a training in a process of its own that dies at a named point, as a power cut would end it."""

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

from segmv3 import checkpoint
from segmv3.config import Classification, Config

Patch = Callable[[], None]

context = multiprocessing.get_context("forkserver")  # imports torch once for all the runs
context.set_forkserver_preload(["segmv3.training.loop"])


def run(config: Config | Classification, folder: Path, point: str = "", occurrence: int = 1) -> int:
    """Train to the end, or to the `occurrence`-th time that `point` is reached; returns the exit code."""
    process = context.Process(target=_train, args=(config, folder, point, occurrence))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def digest(folder: Path) -> str:
    """SHA-256 over every weight, BN statistic, optimiser and average value of the newest training state."""
    state = checkpoint.load_state(folder / "state")
    assert state is not None
    found = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif hasattr(value, "numpy"):
            found.update(value.detach().contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())

    add([state["step"], state["model"], state["optimizer"], state.get("average")])
    return found.hexdigest()


def _train(config: Config | Classification, folder: Path, point: str, occurrence: int) -> None:
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if point:
        _POINTS[point](occurrence)
    from segmv3.training.loop import train

    train(config, folder, device="cpu", threads=1)


def _countdown(occurrence: int) -> Callable[[], None]:
    left = [occurrence]

    def reached() -> None:
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

    return reached


def _before_rename_of(suffix: str) -> Callable[[int], None]:
    def patch(occurrence: int) -> None:
        reached, replace = _countdown(occurrence), os.replace

        def dying(source: Path, target: Path) -> None:
            if target.parent.name == "state" and target.suffix == suffix:
                reached()
            replace(source, target)

        os.replace = dying  # type: ignore[assignment]

    return patch


def _before_prune(occurrence: int) -> None:
    reached, unlink = _countdown(occurrence), Path.unlink

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "state" and path.name.startswith("step_"):
            reached()
        unlink(path, missing_ok)

    Path.unlink = dying  # type: ignore[method-assign]


def _between_saves(occurrence: int) -> None:
    from segmv3.training import loop

    reached, lr_at = _countdown(occurrence), loop.lr_at

    def dying(*arguments: object) -> float:
        reached()
        return lr_at(*arguments)  # type: ignore[arg-type]

    loop.lr_at = dying  # type: ignore[assignment]


_POINTS: dict[str, Callable[[int], None]] = {
    "state written but not renamed": _before_rename_of(".pt"),
    "state renamed, manifest missing": _before_rename_of(".json"),
    "manifest written, old state not pruned": _before_prune,
    "between saves": _between_saves,
}
