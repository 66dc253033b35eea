"""Fine-tuning: a plan made of the data, the start and the time, and the training that follows it."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from segmv3.config import Device, Layout
from segmv3.settings import refuse


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a fine-tuning."""

    data: Path
    """Folder of a data set; without a val, a part of its train is held out."""
    start: str | None = None
    """Weight file, or a name of `segmv3 weights list`, to start from; by default the best published net for streets,
    and new weights where it cannot be had."""
    minutes: float = 10.0
    """Time for all of it; the steps that fit are measured at the start."""
    dataset: Layout | None = None
    """Layout on disk; by default what the folder looks like. See data/README.md."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""

    def __post_init__(self) -> None:
        refuse((0 < self.minutes < math.inf, "--minutes", f"is {self.minutes:g}; it must be above 0"))

    @property
    def command(self) -> str:
        """As it is typed, without what changes no plan: a run goes on for the same command alone."""
        words = ["segmv3", "finetune", str(self.data), "--minutes", f"{self.minutes:g}"]
        words += ["--from", self.start] if self.start else []
        return shlex.join(words + (["--dataset", self.dataset] if self.dataset else []))
