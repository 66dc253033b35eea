"""mAP: the loop over images, and COCO's own script (pycocotools) over what was found."""

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmv3.decode import label_map
from segmv3.detection.coco import BoxSet
from segmv3.errors import DataError, ResourceError
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.metrics import ConfusionMatrix
from segmv3.models.detector import ObjectDetector
from segmv3.pipeline import CORES, work_ahead

MOST = 100
"""Boxes of an image that count, as in COCO."""

_SCALE = np.array([1e3, 1e3, 1e3, 1e3, 1e9])  # boxes in thousandths of a pixel, scores in billionths
_SCORES = ("map", "map50", "map75", "map_small", "map_medium", "map_large")  # of COCOeval.stats, in its order


def import_coco() -> Any:
    """pycocotools, by its modules. Raises: ResourceError where it is not installed."""
    try:
        from pycocotools import coco, cocoeval
    except ImportError:
        raise ResourceError('mAP needs the package pycocotools: pip install "segmv3[detect]"') from None
    return coco, cocoeval


def detect(
    net: ObjectDetector, image: UInt8Array, size: tuple[int, int], device: torch.device, **options: Any
) -> dict[str, Tensor]:
    """The boxes of one image, which the net sees stretched to a size.

    Args:
        net: in eval mode.
        image: uint8 H x W x 3, RGB.
        size: height and width.
        device: of the net.
        options: as for `ObjectDetector.detect`.

    Returns:
        As `ObjectDetector.detect`, in pixels of the image, on the CPU; `areas` are labels, uint8 H x W, there.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    with torch.inference_mode():
        if (height, width) != size:  # of floats, as torchvision does
            pixels = torch.nn.functional.interpolate(pixels.float(), size, mode="bilinear", align_corners=False)
        found = net.detect(pixels, **options)[0]
        areas = {"areas": label_map(found.pop("areas")[None], (height, width))[0]} if net.areas else {}
        found = {name: value.float() for name, value in found.items()} | areas
        found = {name: value.cpu() for name, value in found.items()}
    found["boxes"] = found["boxes"] * torch.tensor([width / size[1], height / size[0]] * 2)
    return found


def found_in(
    net: ObjectDetector, image: UInt8Array, size: tuple[int, int], device: torch.device, score: float = 0.4
) -> tuple[NDArray[np.float32], UInt8Array | None]:
    """What a net finds in one image, in numbers. It takes what `detect` takes.

    Args:
        score: boxes below it are left out.

    Returns:
        float32 n x 6: left, top, right, bottom in pixels of the image, class, score; and the labels, uint8 H x W, of a
        net with areas.
    """
    found = detect(net, image, size, device, least_score=score)
    rows = torch.cat([found["boxes"], found["labels"][:, None], found["scores"][:, None]], 1).numpy()
    return rows, found["areas"].numpy() if "areas" in found else None


def count_boxes(
    net: ObjectDetector,
    boxes: BoxSet,
    size: tuple[int, int],
    *,
    device: torch.device,
    indices: Sequence[int] | None = None,
    confusion: ConfusionMatrix | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run a net over a split.

    Args:
        net: in eval mode.
        boxes: the split.
        size: height and width at which the net sees images.
        device: of the net.
        indices: the images to look at, all by default.
        confusion: counts the areas' pixels too, of a split with labels.
        progress: called with (images done, images in all).

    Returns:
        int64 images x 100 x 6: box and score in fixed point, and class + 1, 0 where there is no box. Those of disjoint
        shares of a split add up.
    """
    indices = range(len(boxes)) if indices is None else indices
    rows = torch.zeros(len(boxes), MOST, 6, dtype=torch.int64)
    with work_ahead(boxes.read, indices, threads=min(8, CORES)) as samples:
        for done, (index, (image, truth)) in enumerate(zip(indices, samples, strict=True), 1):
            found = detect(net, image, size, device, most=MOST)
            values = torch.cat([found["boxes"], found["scores"][:, None]], 1).double() * torch.from_numpy(_SCALE)
            rows[index, : len(values)] = torch.cat([values, found["labels"][:, None].double() + 1], 1).round().long()
            if confusion and truth is not None:
                confusion.update(found["areas"], truth)
            if progress:
                progress(done, len(indices))
    return rows


def area_scores(confusion: ConfusionMatrix, classes: Classes) -> dict[str, Any]:
    """mIoU over the classes that occur, and the IoU of each class, as JSON types; percent, None for what is not there.

    Raises: DataError where no pixel is labelled.
    """
    if math.isnan(confusion.miou):
        raise DataError("no pixel of the split is labelled: there is nothing to score")
    each = [None if math.isnan(value) else value for value in confusion.iou.tolist()]
    return {"miou": confusion.miou, "areas": dict(zip(classes.names, each, strict=True))}


def average_precisions(rows: Tensor, boxes: BoxSet, indices: Sequence[int] | None = None) -> dict[str, Any]:
    """COCO's scores with what they were measured on, as JSON types; percent, None for what cannot be told.

    Args:
        rows: from `count_boxes`, summed over everything that was scored.
        boxes: the split.
        indices: the images that were looked at, all by default.
    """
    coco, cocoeval = import_coco()
    chosen = list(range(len(boxes)) if indices is None else indices)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        truth = coco.COCO()
        truth.dataset = _content(boxes, chosen)
        truth.createIndex()
        images, places = np.nonzero(rows[:, :, 5].numpy())
        found = rows[images, places].numpy()
        values = found[:, :5] / _SCALE
        values[:, 2:4] -= values[:, :2]
        results = np.column_stack([images + 1, values, found[:, 5]])
        scored = cocoeval.COCOeval(truth, truth.loadRes(results) if len(results) else coco.COCO(), "bbox")
        if not len(results):
            scored.cocoDt.dataset = {**truth.dataset, "annotations": []}
            scored.cocoDt.createIndex()
        scored.params.imgIds = [index + 1 for index in chosen]
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    precision = scored.eval["precision"]  # thresholds x recalls x classes x areas x limits
    return {
        "dataset": boxes.title,
        "split": boxes.split,
        "images": len(chosen),
        "images_in_split": len(boxes),
        **{name: _percent(value) for name, value in zip(_SCORES, scored.stats, strict=False)},
        "classes": [
            {
                "name": name,
                "boxes": int(count),
                "map": _percent(_mean(precision[:, :, place, 0, -1])),
                "map50": _percent(_mean(precision[0, :, place, 0, -1])),
            }
            for place, (name, count) in enumerate(zip(boxes.classes.names, boxes.counts(chosen), strict=True))
        ],
    }


def _content(boxes: BoxSet, chosen: Sequence[int]) -> dict[str, Any]:
    """The split in COCO's form, ids counted from 1."""
    annotations: list[dict[str, Any]] = []
    for index in chosen:
        for left, top, right, bottom, label, crowd in boxes.boxes[index].tolist():
            width, height = right - left, bottom - top
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": index + 1, "category_id": int(label) + 1},
                    **{"bbox": [left, top, width, height], "area": width * height, "iscrowd": int(crowd)},
                }
            )
    return {
        "info": {},
        "images": [{"id": index + 1} for index in chosen],
        "categories": [{"id": i, "name": name} for i, name in enumerate(boxes.classes.names, 1)],
        "annotations": annotations,
    }


def _mean(values: Any) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _percent(value: float) -> float | None:
    return 100 * float(value) if value > -1 else None
