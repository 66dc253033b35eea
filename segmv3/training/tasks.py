"""What the loop does not know: segmenting streets and classifying pictures, behind one interface."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segmv3.checkpoint import load, load_classifier
from segmv3.classification import accuracies, count_hits
from segmv3.config import Classification, Config
from segmv3.data.check import Problem, problems_in, refuse
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.imagefolder import Pictures, check_pictures, check_same_classes, open_pictures
from segmv3.errors import DataError, ModelError
from segmv3.evaluation import evaluate, scores, single_scale
from segmv3.labels import Classes
from segmv3.metrics import ConfusionMatrix
from segmv3.models.classifier import ImageClassifier
from segmv3.models.count import parameters
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_classifier, create_model, net_name
from segmv3.runtime import Predictor
from segmv3.runtime.backends import TorchBackend
from segmv3.training.losses import class_cross_entropy, cross_entropy
from segmv3.training.run import Run
from segmv3.training.summary import write_classification_summary, write_summary

Net = Segmenter | ImageClassifier
Progress = Callable[[int, int], None]
OpenProgress = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Metric:
    """Which of the scores counts, and where the others go."""

    key: str
    """The weights with the highest one are kept."""
    name: str
    """The same for people."""
    logged: tuple[str, ...]
    """Scores that go into the log."""
    recorded: tuple[str, ...]
    """Scores, and their conditions, that go into the weight file."""


_MIOU = Metric(
    "miou",
    "mIoU",
    logged=("miou", "mean_accuracy", "pixel_accuracy"),
    recorded=("dataset", "split", "images", "scales", "flip", "miou"),
)
_TOP1 = Metric(
    "top1",
    "top-1",
    logged=("top1", "top5"),
    recorded=("dataset", "split", "images", "resize", "crop_size", "interpolation", "top1", "top5"),
)


class Task(Protocol):
    """What is trained on what, and how it is scored."""

    metric: Metric
    net_name: str
    entry: str
    """Method of the net that `loss` calls."""

    @property
    def train_set(self) -> Dataset | Pictures: ...

    @property
    def val_set(self) -> Dataset | Pictures: ...

    @property
    def classes(self) -> Classes | Sequence[str]:
        """What the weight file says of the logits."""

    def check(self, progress_of: OpenProgress) -> None:
        """Look at the files before the run; `progress_of(title)` opens a progress bar."""

    def build(self, batch_size: int) -> Net:
        """A fresh net. Raises: ModelError for a batch (of one process) that cannot be trained on."""

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of the loss, what it is a sum over) of a batch."""

    def count(self, net: Net, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        """Integers that scores are made of; those of disjoint shares of the validation set add up."""

    def scores(self, counts: Tensor) -> dict[str, Any]:
        """All scores with their conditions, as JSON types."""

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        """Write the page of a finished run."""


def task_of(config: Config | Classification) -> Task:
    """The task of an experiment, its data sets opened.

    Raises: DataError when a data set cannot be used.
    """
    return SegmentationTask(config) if isinstance(config, Config) else ClassificationTask(config)


class SegmentationTask:
    """Every pixel gets a class; scored by mIoU at the size of the ground truth."""

    metric = _MIOU
    entry = "low_logits"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.net_name = net_name(config.model)
        self.train_set, self.val_set = open_dataset(config.data, "train"), open_dataset(config.data, "val")

    @property
    def classes(self) -> Classes:
        return self.train_set.classes

    def check(self, progress_of: OpenProgress) -> None:
        problems: list[Problem] = []
        for dataset in (self.train_set, self.val_set):
            with progress_of(f"check {dataset.split}") as progress:
                problems += problems_in(dataset, progress)
        refuse(problems, self.train_set.split, self.val_set.split)

    def build(self, batch_size: int) -> Segmenter:
        net = create_model(self.config.model, len(self.classes))
        net.check_trainable(batch_size, self.config.data.crop_size)
        return net

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(model.low_logits(images), targets)  # type: ignore[operator]

    def count(self, net: Net, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        assert isinstance(net, Segmenter)
        confusion = evaluate(single_scale(net), self.val_set, device=device, indices=indices, progress=progress)
        return torch.from_numpy(confusion.matrix)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        confusion = ConfusionMatrix(len(self.classes))
        confusion.matrix = counts.numpy()
        result = scores(confusion, self.val_set, images=len(self.val_set), multi_scale_flip=False)
        if result["miou"] is None:
            raise DataError(f"no pixel of '{self.val_set.split}' is labelled: there is nothing to score")
        return result

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        model, card = load(run.best)
        predict = Predictor(TorchBackend(model, device=device), card)
        write_summary(run.folder, predict, parameters(model), self.val_set, log, run.metrics(), progress)


class ClassificationTask:
    """Every picture gets a class; scored by top-1 on centre crops."""

    metric = _TOP1
    entry = "forward"

    def __init__(self, config: Classification) -> None:
        self.config = config
        backbone = config.model.backbone
        kind = "minimalistic, " if backbone.minimal else ""
        self.net_name = f"MobileNetV3-{backbone.size.title()} classifier ({kind}width {backbone.width:g})"
        self.train_set, self.val_set = open_pictures(config.data, "train"), open_pictures(config.data, "val")
        check_same_classes(self.train_set, self.val_set)

    @property
    def classes(self) -> Sequence[str]:
        return self.train_set.classes

    def check(self, progress_of: OpenProgress) -> None:
        for pictures in (self.train_set, self.val_set):
            with progress_of(f"check {pictures.split}") as progress:
                check_pictures(pictures, progress)

    def build(self, batch_size: int) -> ImageClassifier:
        stride = self.config.model.backbone.output_stride
        height, width = (-(-side // stride) for side in self.config.data.crop_size)
        if batch_size * height * width < 2:
            raise ModelError(
                f"a batch of {batch_size} with crops this small leaves one value per channel at output stride "
                f"{stride}; batch normalisation needs two: use a larger crop or batch"
            )
        return create_classifier(self.config.model, len(self.classes))

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return class_cross_entropy(model(images), targets, self.config.label_smoothing)

    def count(self, net: Net, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        assert isinstance(net, ImageClassifier)
        return count_hits(net, self.val_set, self.config.data, device=device, indices=indices, progress=progress)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        return accuracies(counts, self.val_set, self.config.data)

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        model, card = load_classifier(run.best)
        write_classification_summary(run.folder, model, card, log, run.metrics())
