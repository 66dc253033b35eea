"""`segmv3.train`: what the command does, as a function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmv3.config import Config, Device, load_config
from segmv3.training import loop
from segmv3.training.run import Run


@dataclass(frozen=True)
class Trained:
    """What came of a run."""

    metric: str
    """The score by which the best weights were chosen, such as "miou"."""
    score: float
    """Score of the best weights, percent."""
    step: int
    """Step at which they were found."""
    weights: Path
    """The file of the best weights."""
    report: Path
    """The page about the run."""
    folder: Path
    """Folder of the run."""
    metrics: dict[str, Any]
    """All scores of the best weights with their conditions, as in metrics.json."""


def train(
    config: Config | Path | str,
    run: Path | str,
    *,
    device: Device = "auto",
    threads: int | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    extend: bool = False,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train a net, or go on with a run where it stopped.

    Args:
        config: the experiment, or the file that holds it.
        run: folder of the run; a new one, or that of a run with the same settings.
        device: where to train; "auto" takes a GPU when there is one.
        threads: of the CPU; torch's own choice by default.
        quiet: no lines and no progress bar.
        tensorboard: also write event files for TensorBoard.
        extend: allow more steps than the run was started with.
        on_evaluation: called with the step and the score of each evaluation, once the state is saved. What it raises
            ends the training there.

    Returns:
        The best score, and where the files are.

    Raises:
        Segmv3Error: of `segmv3.errors`, one line each: for data, settings or weights that cannot be used nothing is
            trained; for a loss that is not finite, or memory that runs out, the last good state is kept.
        Interrupted: a signal arrived; the work is saved.
    """
    experiment, place = config if isinstance(config, Config) else load_config(config), Run(Path(run))
    metrics = loop.train(
        experiment,
        place.folder,
        device=device,
        threads=threads,
        quiet=quiet,
        tensorboard=tensorboard,
        extend=extend,
        on_evaluation=on_evaluation,
    )
    return Trained("miou", metrics["miou"], metrics["step"], place.best, place.report, place.folder, metrics)
