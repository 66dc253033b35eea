"""The interface between the training loop and what it trains: segmentation, classification or detection."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from segmv3.data.datasets import Dataset
from segmv3.data.loader import Samples
from segmv3.images import UInt8Array
from segmv3.models.classifier import ImageClassifier
from segmv3.models.segmenter import Segmenter
from segmv3.training.losses import Term
from segmv3.training.run import Run

if TYPE_CHECKING:
    from segmv3.models.detector import ObjectDetector

Net: TypeAlias = "Segmenter | ImageClassifier | ObjectDetector"
Progress = Callable[[int, int], None]
OpenProgress = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Metric:
    """The score that decides which weights are kept, and the scores that are logged."""

    key: str
    """The weights with the highest one are kept."""
    name: str
    """The same for people."""
    logged: tuple[str, ...]
    """Scores that go into the log."""
    recorded: tuple[str, ...]
    """Scores, and their conditions, that go into the weight file."""


class Task(ABC):
    """What is trained on what, and how it is scored.

    Attributes:
        metric: which score counts.
        entry: method of the net that gives the logits.
        counted_at: height and width of the image that multiply-adds are counted for.
        net_name: of the net, for people.
        train_set: what batches are made of.
        val_set: what is scored.
        terms: the loss is their sum; known after `prepare`.
        seen: by split, the contents that `check` saw, as JSON types.
    """

    metric: ClassVar[Metric]
    entry: ClassVar[str]
    counted_at: ClassVar[tuple[int, int]]
    net_name: str
    train_set: Any
    val_set: Any

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self.seen: dict[str, dict[str, Any]] = {}

    @property
    def classes(self) -> Any:
        """What the weight file says of the logits: `Classes`, or names alone."""
        return self.train_set.classes

    @property
    def sources(self) -> dict[str, str]:
        """What else a run depends on, by name: digests of files."""
        return {}

    @abstractmethod
    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        """Look at the files before the run; `progress_of(title)` opens a progress bar, `say` prints a line."""

    def contents(self) -> dict[str, Any]:
        """What the data sets hold, as JSON types, after `check`: a run goes on with the same alone."""
        return {"classes": list(getattr(self.classes, "names", self.classes)), **self.seen}

    @abstractmethod
    def prepare(self, device: torch.device, class_pixels: Callable[[Dataset], Tensor]) -> None:
        """Build the terms of the loss, after `check`.

        Args:
            device: where the logits will be.
            class_pixels: gives the labelled pixels of each class in a data set, int64 C.
        """

    @abstractmethod
    def build(self, batch_size: int) -> Net:
        """A fresh net.

        Raises:
            ModelError: for a batch (what BN sees at once) that cannot be trained on.
        """

    def wrap(self, net: Any) -> nn.Module:
        """The net with whatever else only training has."""
        return net

    @abstractmethod
    def samples(self, seed: int) -> Samples:
        """What training batches are made of."""

    @abstractmethod
    def count(self, net: Any, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        """Integers that scores are made of; those of disjoint shares of the validation set add up."""

    @abstractmethod
    def scores(self, counts: Tensor) -> dict[str, Any]:
        """All scores with their conditions, as JSON types."""

    def panel(self, net: Any, device: torch.device) -> UInt8Array | None:
        """A picture uint8 H x W x 3 of what the net makes of some of the validation set."""
        return None

    @abstractmethod
    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        """Write the page of a finished run."""
