"""What is told of a run while it goes on: in its log, on the terminal, in its manifest and to trackers."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segmv3.data.loader import waiting_advice
from segmv3.errors import NumericsError
from segmv3.training.manifest import Manifest
from segmv3.training.processes import Setup, everywhere
from segmv3.training.state import State
from segmv3.training.trackers import Panel, Tracker, Trackers

HINT = "Try --precision fp32 or a lower --optim.lr"


class Stepped(NamedTuple):
    """What one step did."""

    loss: Tensor
    lr: float
    moved: bool
    """False where fp16's loss scaler skipped the step, for its gradients overflowed."""


class Journal:
    """The steps since the last line, and the lines.

    Args:
        state: where the run begins or goes on.
        setup: what is trained.
        trackers: what else is told.
        config_file: for the manifest.
    """

    def __init__(
        self, state: State, setup: Setup, trackers: Sequence[Tracker] = (), config_file: Path | None = None
    ) -> None:
        self._state, self._setup, self._begun_at, self._advised = state, setup, state.step, False
        self._first = setup.fabric.is_global_zero
        self._trackers = Trackers(trackers if self._first else ())
        self._manifest = Manifest(state, setup, config_file) if self._first else None
        self.restart()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Around the training: the manifest and the trackers are told how it ends."""
        if not self._manifest:
            yield
            return
        self._trackers.tell("begin", self._setup.run.folder, self._manifest.content, self._state.step)
        try:
            with self._manifest.kept():
                yield
        finally:
            self._trackers.tell("end", self._manifest.content)

    def restart(self) -> None:
        """Count and time steps from here on."""
        self._first_step, self._began, self._waited, self._skipped = self._state.step, time.monotonic(), 0.0, 0
        self._losses: list[Tensor] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        since = time.monotonic()
        yield
        self._waited += time.monotonic() - since

    def add(self, done: Stepped) -> None:
        """Count a step."""
        self._losses.append(done.loss.detach())  # not .item(): that would make the device wait
        self._skipped += not done.moved

    def losses(self) -> list[float]:
        """The losses so far, over all processes; only here, before logs and saves, does the host wait for them.

        Raises:
            NumericsError: one is not finite.
        """
        if not self._losses:
            return []
        fabric = self._setup.fabric
        losses: list[float] = (everywhere(fabric, torch.stack(self._losses)) / fabric.world_size).tolist()
        for step, loss in enumerate(losses, self._first_step + 1):
            if not math.isfinite(loss):
                raise NumericsError(f"the loss became {loss} at step {step:,}; {self._state.kept}. {HINT}")
        return losses

    def write_steps(self, lr: float) -> None:
        """Log the mean loss since the last line, and begin the next one."""
        losses, config, console = self.losses(), self._setup.config, self._setup.console
        seconds = max(1e-9, time.monotonic() - self._began)
        wait = self._waited / seconds
        entry = {
            "event": "train",
            "step": self._state.step,
            "loss": sum(losses) / len(losses),
            "lr": lr,
            "images_per_second": round(len(losses) * config.data.batch_size / seconds, 2),
            "wait": round(wait, 4),
        }
        if self._state.scaler:
            entry["skipped"] = self._skipped
        self.write(entry)
        console.train_line(entry, (config.schedule.steps - self._state.step) * seconds / len(losses))
        # once, and not for the first line, which waits for the workers to start
        if not self._advised and self._first_step > self._begun_at and (advice := waiting_advice(wait, config.data)):
            self._advised = True
            console.say(advice)
        self.restart()

    def write(self, entry: dict[str, Any]) -> None:
        """Add an entry about training to the log, and tell it."""
        if self._first:
            self._setup.run.log.add(**entry)
        self._trackers.tell("step", entry)

    def write_scores(self, entry: dict[str, Any], scores: dict[str, Any], panel: Panel) -> None:
        """Add an entry about an evaluation to the log and the manifest, and tell it with all scores."""
        if self._manifest:
            self._setup.run.log.add(**entry)
            self._manifest.write("running")
        self._trackers.tell("evaluation", entry, scores, panel)
