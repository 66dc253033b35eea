"""The scores, from what was counted."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segmv3 import official
from segmv3.data.datasets import Dataset
from segmv3.evaluation.counting import ImageCounts, _city, is_cityscapes
from segmv3.inference import MULTI_SCALES
from segmv3.labels import cityscapes_classes
from segmv3.metrics import BoundaryCounts, ConfusionMatrix, mean


def scores(confusion: ConfusionMatrix, dataset: Dataset, *, images: int, multi_scale_flip: bool) -> dict[str, Any]:
    """All scores with what they were measured on, as JSON types; percent, None for a class that is absent."""
    labelled = confusion.matrix.sum(1)
    share = 100 * labelled / max(1, labelled.sum())
    rows = zip(dataset.classes.names, confusion.iou, confusion.accuracy, share, strict=True)
    result = {
        "dataset": dataset.title,
        "split": dataset.split,
        "images": images,
        "images_in_split": len(dataset),
        "scales": list(MULTI_SCALES) if multi_scale_flip else [1.0],
        "flip": multi_scale_flip,
        "miou": _number(confusion.miou),
        "miou_classes": int(np.count_nonzero(~np.isnan(confusion.iou))),
        "mean_accuracy": _number(confusion.mean_accuracy),
        "pixel_accuracy": _number(confusion.pixel_accuracy),
        "frequency_weighted_iou": _number(confusion.frequency_weighted_iou),
        "classes": [
            {"name": name, "iou": _number(iou), "accuracy": _number(accuracy), "share": float(part)}
            for name, iou, accuracy, part in rows
        ],
        "absent": [name for name, iou in zip(dataset.classes.names, confusion.iou, strict=True) if math.isnan(iou)],
        "confusion_matrix": confusion.matrix.tolist(),
    }
    if dataset.classes == cityscapes_classes():
        facts = official.tables()
        iou = confusion.grouped(facts.category_of).iou
        result["category_miou"] = _number(mean(iou))
        result["categories"] = [
            {"name": name, "iou": _number(value)} for name, value in zip(facts.categories, iou, strict=True)
        ]
    return result


def scores_of_images(images: Sequence[ImageCounts], dataset: Dataset, *, multi_scale_flip: bool) -> dict[str, Any]:
    """`scores`, and whatever else was counted: boundaries, instances, cities and each image's confusions.

    The order of the images, which is that of the data set, is the only order in which numbers are summed: any
    sharing of the work gives the same result, to the last digit.
    """
    result = _scores_of(images, dataset, multi_scale_flip)
    sizes = {image.size for image in images}
    result["size"] = list(sizes.pop()) if len(sizes) == 1 else None
    if is_cityscapes(dataset):
        result["cities"] = _cities(images, dataset)
    result["per_image"] = [{"name": image.name, "counts": [list(t) for t in image.confusion]} for image in images]
    return result


def _scores_of(images: Sequence[ImageCounts], dataset: Dataset, multi_scale_flip: bool) -> dict[str, Any]:
    confusion = _confusion(images, dataset)
    result = scores(confusion, dataset, images=len(images), multi_scale_flip=multi_scale_flip)
    if all(image.boundary for image in images):
        _add_boundary(result, images)
    if "categories" in result:
        _add_instance_iou(result, images, confusion)
    return result


def _confusion(images: Sequence[ImageCounts], dataset: Dataset) -> ConfusionMatrix:
    confusion = ConfusionMatrix(len(dataset.classes))
    for image in images:
        confusion.add(image.confusion)
    return confusion


def _add_boundary(result: dict[str, Any], images: Sequence[ImageCounts]) -> None:
    total = BoundaryCounts(len(result["classes"]))
    for image in images:
        assert image.boundary
        total.merge(image.boundary)
    for key, values in (("boundary_iou", total.iou), ("boundary_f_score", total.f_score)):
        result[f"mean_{key}"] = _number(mean(values))
        for row, value in zip(result["classes"], values, strict=True):
            row[key] = _number(value)


def _add_instance_iou(result: dict[str, Any], images: Sequence[ImageCounts], confusion: ConfusionMatrix) -> None:
    """Instance-weighted IoU of classes and categories; None where instances were not counted."""
    result["mean_iiou"] = result["category_mean_iiou"] = None
    each = [image.instances for image in images if image.instances is not None]
    if len(each) < len(images):
        return
    stacked = np.stack(each).reshape(len(each), -1)
    total = np.array([math.fsum(column) for column in stacked.T]).reshape(each[0].shape)
    parts = zip(("mean_iiou", "category_mean_iiou"), ("classes", "categories"), strict=True)
    for (key, kind), values in zip(parts, official.instance_iou(total, confusion.matrix), strict=True):
        result[key] = _number(mean(values))
        for row, value in zip(result[kind], values, strict=True):
            row["iiou"] = _number(value)


_CONDITIONS = ("dataset", "split", "images_in_split", "scales", "flip", "confusion_matrix")  # no scores of a city


def _cities(images: Sequence[ImageCounts], dataset: Dataset) -> list[dict[str, Any]]:
    """All scores of each city alone; a class that does not occur in one is left out of that city's means."""
    result = []
    for name in sorted({_city(image.name) for image in images}):
        own = _scores_of([image for image in images if _city(image.name) == name], dataset, False)
        result.append({"name": name} | {key: value for key, value in own.items() if key not in _CONDITIONS})
    return result


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
