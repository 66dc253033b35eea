"""The settings of a classification experiment. Importing this module imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segmv3.data.view import View
from segmv3.models.nets import Classifier
from segmv3.settings import Rule, refuse
from segmv3.training.experiment import Experiment

if TYPE_CHECKING:
    from segmv3.training.task import Task


@dataclass(frozen=True, kw_only=True)
class ImageFolder(View):
    """Pictures for classification, one folder a class, and how a training sample is cut from them."""

    root: Path
    """The folder that holds `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, as ImageNet is usually unpacked."""
    batch_size: int = 256
    """Images per step over all processes together; 0 finds the largest that fits into memory, by trial steps."""
    scale_range: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a training crop covers."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of photometric jitter (brightness, contrast, saturation by up to 40 %)."""
    workers: int = 2
    """Processes that prepare samples; the batches are the same for any number of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(
            (
                0 < self.scale_range[0] <= self.scale_range[1] <= 1,
                "data.scale-range",
                "must be two rising shares of the area, above 0 and at most 1",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Classification(Experiment):
    """One image classification experiment: how a backbone gets its ImageNet weights."""

    command = "segmv3 classify train"

    model: Classifier
    data: ImageFolder
    label_smoothing: float = 0.0

    def rules(self) -> list[Rule]:
        smooth = (0 <= self.label_smoothing < 1, "label-smoothing", "must be at least 0 and below 1")
        return [*super().rules(), smooth]

    def task(self) -> "Task":
        from segmv3.imagenet.task import ClassificationTask

        return ClassificationTask(self)
