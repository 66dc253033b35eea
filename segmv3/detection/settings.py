"""The settings of a detection experiment. Importing this module imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segmv3.data.settings import Layout
from segmv3.models.nets import Detector
from segmv3.settings import Rule
from segmv3.training.experiment import Experiment, under
from segmv3.training.losses import Loss

if TYPE_CHECKING:
    from segmv3.training.task import Task


@dataclass(frozen=True, kw_only=True)
class BoxData:
    """Images with boxes in COCO's format, and how a training sample is made of them."""

    root: Path
    """The folder of the data set."""
    annotations: str = "boxes_{split}.json"
    """COCO's JSON of a split, below the root: of COCO itself annotations/instances_{split}2017.json."""
    images: str = "."
    """The folder that the file names in it start from, below the root: of COCO itself {split}2017."""
    areas: Layout | None = None
    """Layout of the labels below the same root, for a net with `model.areas`; see data/README.md."""
    faulty: Literal["refuse", "skip"] = "refuse"
    """What to do with boxes that cannot be used: outside of their image, without area, of an unknown category."""
    batch_size: int = 24
    """Images per step over all processes together; 0 finds the largest that fits into memory, by trial steps."""
    crop_size: tuple[int, int] = (320, 320)
    """Height and width at which the net sees whole images, in training and afterwards; they are stretched to it."""
    zoom_out: float = 0.5
    """Probability that an image is put into a larger empty one first, so that objects get smaller (SSD)."""
    zoom_in: float = 1.0
    """Probability of a crop that some box overlaps by a drawn share (SSD)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.5
    """Probability of each photometric change (brightness, contrast, saturation, hue)."""
    workers: int = 2
    """Processes that prepare samples; the batches are the same for any number of them."""


@dataclass(frozen=True, kw_only=True)
class Detection(Experiment):
    """One detection experiment."""

    command = "segmv3 detect train"

    model: Detector
    data: BoxData
    loss: Loss = field(default_factory=Loss)
    """What the areas learn from, beside SSD's loss of the boxes."""

    def rules(self) -> list[Rule]:
        return [
            *super().rules(),
            *((0 <= getattr(self.data, name) <= 1, f"data.{name.replace('_', '-')}", "is a probability, 0 to 1")
              for name in ("zoom_in", "zoom_out")),
            (min(self.data.crop_size) >= 32, "data.crop-size", "must be at least 32 x 32"),
            (self.model.areas is None or self.data.areas is not None, "data.areas",
             "is missing: where are the labels for model.areas?"),
            (self.data.areas is None or self.model.areas is not None, "model.areas",
             "is missing: no head of the net learns the labels of data.areas"),
            (self.model.areas is not None or self.loss == Loss(), "loss",
             "is for model.areas, which this net does not have: SSD's loss of the boxes has no settings"),
            (not self.loss.auxiliary, "loss.auxiliary", "must be 0: detectors have no auxiliary heads"),
            *under("loss", self.loss.rules()),
            (self.compile == "off", "compile", "must be off: matching boxes takes as many steps as there are boxes"),
        ]  # fmt: skip

    def task(self) -> "Task":
        from segmv3.detection.task import AreasTask, DetectionTask

        return AreasTask(self) if self.model.areas else DetectionTask(self)
