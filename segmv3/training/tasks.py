"""What the loop does not know: segmenting streets and classifying pictures, behind one interface."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.checkpoint import load, load_classifier
from segmv3.imagenet.scoring import accuracies, count_hits
from segmv3.config import Classification, Config
from segmv3.data.check import Problem, class_fault, class_pixels, contents, problems_in, refuse
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.facts import read_pairs
from segmv3.imagenet.pictures import Pictures, check_pictures, check_same_classes, open_pictures
from segmv3.data.packed import open_training
from segmv3.data.sampling import draws_of
from segmv3.errors import ConfigError, DataError, ModelError, Segmv3Warning
from segmv3.evaluation.counting import confusion_matrix
from segmv3.evaluation.labelling import single_scale
from segmv3.evaluation.scores import scores
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, Classes
from segmv3.media.draw import overlay
from segmv3.metrics import ConfusionMatrix
from segmv3.models.classifier import ImageClassifier
from segmv3.models.count import parameters
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_classifier, create_model, net_name
from segmv3.runtime import Predictor
from segmv3.runtime.backends import TorchBackend
from segmv3.training.auxiliary import WithAuxiliaryHeads
from segmv3.training.losses import balanced_weights, channel_distillation, class_cross_entropy, cross_entropy
from segmv3.training.run import Run
from segmv3.training.summary import evenly_spaced, write_classification_summary, write_summary
from segmv3.training.teacher import open_teacher

Net = Segmenter | ImageClassifier
Outputs = Callable[[Tensor], Tensor | list[Tensor]]
"""What the net gives for N x 3 x H x W images in a training step: float32, a list with auxiliary heads."""
Progress = Callable[[int, int], None]
OpenProgress = Callable[[str], AbstractContextManager[Progress]]

_PANEL_WIDTH = 1536  # of image, truth and prediction side by side


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


@dataclass(frozen=True)
class Term:
    """A part of the loss: its weight times the mean that all processes' sums and counts make."""

    total: Tensor
    count: Tensor
    weight: float = 1.0


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

    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        """Look at the files before the run; `progress_of(title)` opens a progress bar, `say` tells what to know."""

    def contents(self) -> dict[str, Any]:
        """What the data sets hold, as JSON types, after `check`: a run goes on with the same alone."""

    def prepare(self, *, first: bool, everywhere: Callable[[Tensor], Tensor]) -> None:
        """Get what `loss` needs of the training set, after `check`.

        Args: first: whether this process is the one that looks. everywhere: gives the sum over all processes, on the
            device.
        """

    @property
    def sources(self) -> dict[str, str]:
        """What else a run depends on, by name: digests of files."""

    def build(self, batch_size: int) -> Net:
        """A fresh net. Raises: ModelError for a batch (what BN sees at once) that cannot be trained on."""

    def trained(self, net: Net) -> nn.Module:
        """The net with whatever else only training has."""

    def loss(self, outputs: Outputs, images: Tensor, targets: Tensor) -> list[Term]:
        """The loss of a batch; `outputs` calls `entry` of what `trained` gave."""

    def counts(self, targets: Tensor) -> Tensor | None:
        """The counts of the terms of a batch by its targets alone, float64; None where only the net can tell."""

    def count(self, net: Net, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        """Integers that scores are made of; those of disjoint shares of the validation set add up."""

    def scores(self, counts: Tensor) -> dict[str, Any]:
        """All scores with their conditions, as JSON types."""

    def samples(self, net: Net, device: torch.device) -> UInt8Array | None:
        """A picture uint8 H x W x 3 of what the net makes of some of the validation set."""

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
        self.train_set, self.val_set = open_training(config.data), open_dataset(config.data, "val")
        self.class_weights: Tensor | None = None
        self.seen: dict[str, dict[str, Any]] = {}
        """By split, the contents that `check` saw."""
        self.teacher = open_teacher(config, self.classes)
        listed = config.loss.class_weights
        if not isinstance(listed, str) and len(listed) != len(self.classes):
            raise ConfigError(f"loss.class-weights: {len(listed)} numbers for {len(self.classes)} classes")

    @property
    def classes(self) -> Classes:
        return self.train_set.classes

    @property
    def sources(self) -> dict[str, str]:
        return {"teacher": self.teacher.sha256} if self.teacher else {}

    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        problems: list[Problem] = []
        extra = self.train_set.extra
        if extra and extra.skipped:
            whole = len(extra) + extra.skipped
            text = f"data: {extra.skipped:,} of the {whole:,} extra images have no label and are left out"
            warnings.warn(Segmv3Warning(text), stacklevel=2)
        datasets = [self.train_set, *([extra] if extra else []), self.val_set]
        for dataset in datasets:
            with progress_of(f"check {dataset.split}") as progress:
                problems += problems_in(dataset, progress)
        refuse(problems, *(dataset.split for dataset in datasets))
        for dataset in (self.train_set, self.val_set):
            found = read_pairs(dataset)  # it is remembered
            self.seen[dataset.split] = contents(dataset, found)
            fault = class_fault(dataset, found)
            if fault and fault[0] == "error":
                raise DataError(f"{self.config.data.root}: {fault[1]}")
            if fault:
                say(f"data: '{dataset.split}': {fault[1]}")
        draws_of(self.train_set, self.config.data)  # says what cannot be drawn before there is a run

    def contents(self) -> dict[str, Any]:
        return {"classes": list(self.classes.names), **self.seen}

    def prepare(self, *, first: bool, everywhere: Callable[[Tensor], Tensor]) -> None:
        wanted = self.config.loss.class_weights
        if wanted == "none":
            return
        weights = torch.zeros(len(self.classes))
        if first:  # the files were read by `check`: what it counted is remembered
            weights = balanced_weights(class_pixels(self.train_set)) if wanted == "balanced" else torch.tensor(wanted)
        self.class_weights = everywhere(weights.float())

    def build(self, batch_size: int) -> Segmenter:
        net = create_model(self.config.model, len(self.classes))
        net.check_trainable(batch_size, self.config.data.crop_size)
        return net

    def trained(self, net: Net) -> nn.Module:
        assert isinstance(net, Segmenter)
        return WithAuxiliaryHeads(net) if self.config.loss.auxiliary else net

    def loss(self, outputs: Outputs, images: Tensor, targets: Tensor) -> list[Term]:
        settings, distill = self.config.loss, self.config.distill
        found = outputs(images)
        low, *auxiliary = found if isinstance(found, list) else [found]
        terms = [Term(*self._cross_entropy(low, targets))]
        terms += [Term(*self._cross_entropy(logits, targets), settings.auxiliary) for logits in auxiliary]
        if self.teacher:
            theirs = self.teacher.logits(images)
            terms.append(Term(*channel_distillation(low, theirs, distill.temperature), distill.weight))
        return terms

    def _cross_entropy(self, low: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.config.loss
        return cross_entropy(
            low,
            targets,
            weights=self.class_weights,
            smoothing=settings.label_smoothing,
            ohem=settings.ohem,
            min_kept=round(settings.min_kept * targets.numel()),
        )

    def counts(self, targets: Tensor) -> Tensor | None:
        if self.config.loss.ohem is not None:
            return None
        if self.class_weights is None:
            pixels = (targets != IGNORE).sum().double()
        else:
            weights = F.pad(self.class_weights.double(), (0, IGNORE + 1 - len(self.classes)))
            pixels = weights[targets.int()].sum()
        counts = [pixels] * (3 if self.config.loss.auxiliary else 1)
        if self.teacher:
            counts.append(torch.full_like(pixels, len(targets) * len(self.classes)))
        return torch.stack(counts)

    def count(self, net: Net, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        assert isinstance(net, Segmenter)
        confusion = confusion_matrix(single_scale(net), self.val_set, device=device, indices=indices, progress=progress)
        return torch.from_numpy(confusion.matrix)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        confusion = ConfusionMatrix(len(self.classes))
        confusion.matrix = counts.numpy()
        result = scores(confusion, self.val_set, images=len(self.val_set), multi_scale_flip=False).to_dict()
        if result["miou"] is None:
            raise DataError(f"no pixel of '{self.val_set.split}' is labelled: there is nothing to score")
        return result

    def samples(self, net: Net, device: torch.device) -> UInt8Array | None:
        assert isinstance(net, Segmenter)
        rows, height = [], 0
        for index in evenly_spaced(len(self.val_set)):
            image, truth = self.val_set.read(index)
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
            with torch.inference_mode():
                labels = single_scale(net)(pixels)[0].cpu().numpy()
            row = np.hstack([image, overlay(image, truth, self.classes), overlay(image, labels, self.classes)])
            height = height or round(_PANEL_WIDTH * row.shape[0] / row.shape[1])
            rows.append(cv2.resize(row, (_PANEL_WIDTH, height), interpolation=cv2.INTER_AREA))
        return np.vstack(rows)

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        model, card = load(run.best)
        predict = Predictor(TorchBackend(model, device=device), card)
        write_summary(run.folder, predict, parameters(model), self.val_set, log, run.metrics(self.metric.key), progress)


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
        self.seen: dict[str, dict[str, str]] = {}
        """By split, the contents that `check` saw."""

    @property
    def classes(self) -> Sequence[str]:
        return self.train_set.classes

    @property
    def sources(self) -> dict[str, str]:
        return {}

    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        for pictures in (self.train_set, self.val_set):
            with progress_of(f"check {pictures.split}") as progress:
                self.seen[pictures.split] = {"images": check_pictures(pictures, progress)}

    def contents(self) -> dict[str, Any]:
        return {"classes": list(self.classes), **self.seen}

    def prepare(self, *, first: bool, everywhere: Callable[[Tensor], Tensor]) -> None:
        pass

    def build(self, batch_size: int) -> ImageClassifier:
        stride = self.config.model.backbone.output_stride
        height, width = (-(-side // stride) for side in self.config.data.crop_size)
        if batch_size * height * width < 2:
            raise ModelError(
                f"a batch of {batch_size} with crops this small leaves one value per channel at output stride "
                f"{stride}; batch normalisation needs two: use a larger crop or batch"
            )
        return create_classifier(self.config.model, len(self.classes))

    def trained(self, net: Net) -> nn.Module:
        return net

    def loss(self, outputs: Outputs, images: Tensor, targets: Tensor) -> list[Term]:
        logits = outputs(images)
        assert isinstance(logits, Tensor)
        return [Term(*class_cross_entropy(logits, targets, self.config.label_smoothing))]

    def counts(self, targets: Tensor) -> Tensor | None:
        return targets.new_full((1,), len(targets), dtype=torch.float64)

    def count(self, net: Net, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        assert isinstance(net, ImageClassifier)
        return count_hits(net, self.val_set, self.config.data, device=device, indices=indices, progress=progress)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        return accuracies(counts, self.val_set, self.config.data)

    def samples(self, net: Net, device: torch.device) -> UInt8Array | None:
        return None

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        model, card = load_classifier(run.best)
        write_classification_summary(run.folder, model, card, log, run.metrics(self.metric.key))
