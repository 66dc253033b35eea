"""Classification as a task of the training loop: every picture gets a class, scored by top-1 on centre crops."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmv3.data.class_folders import check_pictures, check_same_classes, open_pictures
from segmv3.data.datasets import Dataset
from segmv3.errors import ModelError
from segmv3.imagenet.scoring import accuracies, count_hits
from segmv3.imagenet.settings import Classification
from segmv3.imagenet.transforms import PictureSamples
from segmv3.models.classifier import ImageClassifier
from segmv3.models.zoo import create_classifier
from segmv3.report import write_classification_report
from segmv3.training.losses import Seen, Term
from segmv3.training.manifest import read_manifest
from segmv3.training.run import Run
from segmv3.training.summary import facts_of
from segmv3.training.task import Metric, OpenProgress, Progress, Task


class ClassificationTask(Task):
    """Every picture gets a class; scored by top-1."""

    metric = Metric(
        "top1",
        "top-1",
        logged=("top1", "top5"),
        recorded=("dataset", "split", "images", "resize", "crop_size", "interpolation", "top1", "top5"),
    )
    entry = "forward"
    counted_at = (224, 224)

    def __init__(self, config: Classification) -> None:
        super().__init__()
        self.config = config
        backbone = config.model.backbone
        kind = "minimalistic, " if backbone.minimal else ""
        self.net_name = f"MobileNetV3-{backbone.size.title()} classifier ({kind}width {backbone.width:g})"
        self.train_set, self.val_set = (open_pictures(config.data.root, split) for split in ("train", "val"))
        check_same_classes(self.train_set, self.val_set)

    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        for pictures in (self.train_set, self.val_set):
            with progress_of(f"check {pictures.split}") as progress:
                self.seen[pictures.split] = {"images": check_pictures(pictures, progress)}

    def prepare(self, device: torch.device, class_pixels: Callable[[Dataset], Tensor]) -> None:
        self.terms = [class_cross_entropy(self.config.label_smoothing)]

    def build(self, batch_size: int) -> ImageClassifier:
        stride = self.config.model.backbone.output_stride
        height, width = (-(-side // stride) for side in self.config.data.crop_size)
        pooled = self.config.model.backbone.normalises_pooled
        if batch_size * (1 if pooled else height * width) < 2:
            raise ModelError(
                f"a batch of {batch_size} with crops this small leaves one value per channel at output stride "
                f"{stride}; batch normalisation needs two: use a larger crop or batch"
            )
        return create_classifier(self.config.model, len(self.classes))

    def samples(self, seed: int) -> PictureSamples:
        return PictureSamples(self.train_set, self.config.data, seed)

    def count(self, net: ImageClassifier, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        return count_hits(net, self.val_set, self.config.data, device=device, indices=indices, progress=progress)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        return accuracies(counts, self.val_set, self.config.data)

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        metrics = run.metrics(self.metric.key)
        title, facts = f"{metrics['net']} on {metrics['dataset']}", facts_of(read_manifest(run))
        write_classification_report(run.folder, title=title, facts=facts, log=log, scores=metrics)


def class_cross_entropy(smoothing: float) -> Term:
    """Cross-entropy of whole pictures.

    Args:
        smoothing: share of the target spread evenly over all classes.
    """

    def sums(seen: Seen) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(seen.logits.float(), seen.targets, label_smoothing=smoothing, reduction="sum")
        return total, _pictures(seen.targets)

    return Term("cross_entropy", sums, _pictures)


def _pictures(targets: Tensor) -> Tensor:
    return targets.new_full((), len(targets))  # filled on the device: nobody waits for a copy
