"""Detection as a task of the training loop: every object gets a box and a class, scored by COCO's mAP."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from segmv3.data.check import class_remark, contents, problems_in, refuse
from segmv3.data.datasets import Dataset
from segmv3.data.facts import read_pairs
from segmv3.detection.coco import check_images, check_same_classes, describe, open_boxes
from segmv3.detection.drawing import draw_found
from segmv3.detection.samples import BoxesAndLabels, BoxSamples
from segmv3.detection.scoring import MOST, area_scores, average_precisions, count_boxes, found_in, import_coco
from segmv3.detection.settings import Detection
from segmv3.errors import ModelError
from segmv3.images import UInt8Array
from segmv3.metrics import ConfusionMatrix
from segmv3.models.detector import ObjectDetector
from segmv3.models.zoo import net_name
from segmv3.report.page import write_detection_report
from segmv3.settings import refuse as refuse_settings
from segmv3.training.experiment import under
from segmv3.training.losses import Seen, Term
from segmv3.training.manifest import read_manifest
from segmv3.training.run import Run
from segmv3.training.summary import evenly_spaced, facts_of
from segmv3.training.task import Metric, OpenProgress, Progress, Task
from segmv3.weights.opening import open_detector


class DetectionTask(Task):
    """Every object gets a box and a class; scored by mAP."""

    metric = Metric(
        "map",
        "mAP",
        logged=("map", "map50"),
        recorded=("dataset", "split", "images", "map", "map50", "map75"),
    )
    entry = "forward"
    counted_at = (320, 320)
    _loss = "cross-entropy, with three hard negatives for each box, and smooth L1 of the offsets"

    def __init__(self, config: Detection) -> None:
        super().__init__()
        import_coco()
        self.config = config
        self.net_name = net_name(config.model)
        self.train_set, self.val_set = (open_boxes(config.data, split) for split in ("train", "val"))
        check_same_classes(self.train_set, self.val_set)

    def check(self, progress_of: OpenProgress, say: Callable[[str], None]) -> None:
        for boxes in (self.train_set, self.val_set):
            self.seen[boxes.split] = {}
            if boxes.areas:  # first: it names all faults of labels at once
                with progress_of(f"check labels of {boxes.split}") as progress:
                    refuse(problems_in(boxes.areas, progress), boxes.split)
                found = read_pairs(boxes.areas)
                self.seen[boxes.split] = contents(boxes.areas, found)
                if remark := class_remark(boxes.areas, self.config.data.root, found):
                    say(f"data: labels of '{boxes.split}': {remark}")
            with progress_of(f"check {boxes.split}") as progress:
                pixels = check_images(boxes, progress)
            self.seen[boxes.split] |= {"boxes" if boxes.areas else "images": pixels}
            for line in describe(boxes):
                say(f"data: {line}")

    def prepare(self, device: torch.device, class_pixels: Callable[[Dataset], Tensor]) -> None:
        self.terms = [Term("ssd", self._sums)]

    def _sums(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return self.net.loss(seen.logits, seen.auxiliary[0].float(), seen.targets)

    def build(self, batch_size: int) -> ObjectDetector:
        if batch_size < 2:
            raise ModelError("the last map has one value per channel: batch normalisation needs a batch of at least 2")
        self.net = ObjectDetector(self.config.model, len(self.classes))
        return self.net

    def samples(self, seed: int) -> BoxSamples:
        return BoxSamples(self.train_set, self.config.data, seed)

    def count(self, net: ObjectDetector, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        size = self.config.data.crop_size
        return count_boxes(net, self.val_set, size, device=device, indices=indices, progress=progress)

    def scores(self, counts: Tensor) -> dict[str, Any]:
        return average_precisions(counts, self.val_set) | {"size": list(self.config.data.crop_size)}

    def panel(self, net: ObjectDetector, device: torch.device) -> UInt8Array:
        rows = [np.hstack(pair) for pair in self._shown(net, device)]
        width = min(row.shape[1] for row in rows)
        return np.vstack([row[:, :width] for row in rows])

    def _shown(self, net: ObjectDetector, device: torch.device) -> list[tuple[UInt8Array, UInt8Array]]:
        """Some images of val with their boxes, and with those that the net finds."""
        pairs = []
        for index in evenly_spaced(len(self.val_set)):
            image, labels = self.val_set.read(index)
            truth = self.val_set.boxes[index] * np.array([1, 1, 1, 1, 1, 0], np.float32)  # no score to show
            rows, areas = found_in(net, image, self.config.data.crop_size, device)
            shown = draw_found(image, truth, labels, self.classes), draw_found(image, rows, areas, self.classes)
            pairs.append(shown)
        return pairs

    def report(self, run: Run, log: list[dict[str, Any]], device: torch.device, progress: Progress) -> None:
        metrics, (net, _) = run.metrics(self.metric.key), open_detector(run.best)
        facts = facts_of(read_manifest(run))
        of_areas = f"; of the areas {facts['loss']}" if self.config.model.areas else ""
        write_detection_report(
            run.folder,
            title=f"{metrics['net']} on {metrics['dataset']}",
            facts=facts | {"loss": self._loss + of_areas},
            log=log,
            metric=(self.metric.key, self.metric.name),
            scores=metrics,
            pictures=self._shown(net.to(device), device),
        )


class AreasTask(DetectionTask):
    """Every pixel gets a class, too, in the same pass; scored by the mean of mAP and mIoU."""

    metric = Metric(
        "mean",
        "mean of mAP and mIoU",
        logged=("mean", "map", "map50", "miou"),
        recorded=("dataset", "split", "images", "mean", "map", "map50", "map75", "miou"),
    )

    def __init__(self, config: Detection) -> None:
        super().__init__(config)
        refuse_settings(*under("loss", config.loss.rules(len(self.classes))))

    def prepare(self, device: torch.device, class_pixels: Callable[[Dataset], Tensor]) -> None:
        super().prepare(device, class_pixels)
        pixels = partial(class_pixels, self.train_set.areas)
        self.terms += [_of_areas(term) for term in self.config.loss.build(len(self.classes), device, pixels)]

    def _sums(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return super()._sums(seen._replace(targets=cast(BoxesAndLabels, seen.targets).boxes))

    def count(self, net: ObjectDetector, device: torch.device, indices: Sequence[int], progress: Progress) -> Tensor:
        size, pixels = self.config.data.crop_size, ConfusionMatrix(len(self.classes))
        rows = count_boxes(net, self.val_set, size, device=device, indices=indices, confusion=pixels, progress=progress)
        return torch.cat([rows.flatten(), torch.from_numpy(pixels.matrix).flatten()])

    def scores(self, counts: Tensor) -> dict[str, Any]:
        classes = len(self.classes)
        pixels = ConfusionMatrix(classes)
        pixels.matrix = counts[-(classes**2) :].reshape(classes, classes).numpy()
        boxes = super().scores(counts[: -(classes**2)].reshape(len(self.val_set), MOST, 6))
        areas = area_scores(pixels, self.classes)
        return boxes | areas | {"mean": ((boxes["map"] or 0.0) + areas["miou"]) / 2}


def _of_areas(term: Term) -> Term:
    """A term of a loss of labels, which looks at the areas."""
    count = term.denominator

    def sums(seen: Seen) -> tuple[Tensor, Tensor]:
        return term.sums(Seen(seen.images, cast(BoxesAndLabels, seen.targets).labels, seen.auxiliary[1]))

    of_labels = (lambda targets: count(cast(BoxesAndLabels, targets).labels)) if count else None
    return replace(term, sums=sums, denominator=of_labels)
