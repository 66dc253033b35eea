"""The scores, from what was counted."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segmv3 import official
from segmv3.data.datasets import Dataset
from segmv3.data.listing import city_of
from segmv3.evaluation.counting import ImageCounts, is_cityscapes
from segmv3.inference import MULTI_SCALES
from segmv3.labels import cityscapes_classes
from segmv3.metrics import BoundaryCounts, ConfusionMatrix, mean
from segmv3.results.calibration import Calibration
from segmv3.results.result import CategoryScore, City, ClassScore, ImageConfusion, Result


def scores(confusion: ConfusionMatrix, dataset: Dataset, *, images: int, multi_scale_flip: bool) -> Result:
    """The scores that a confusion matrix alone gives.

    Args:
        confusion: over all images.
        dataset: what was scored.
        images: how many of it.
        multi_scale_flip: whether several scales and mirror images were averaged.
    """
    return Result(**_conditions(dataset, multi_scale_flip), **_values(confusion, dataset, images))


def scores_of_images(images: Sequence[ImageCounts], dataset: Dataset, *, multi_scale_flip: bool) -> Result:
    """`scores`, and whatever else was counted: boundaries, instances, cities and each image's confusions.

    The order of the images, which is that of the data set, is the only order in which numbers are summed: any
    sharing of the work gives the same result, to the last digit.

    Args:
        images: as `segmv3.evaluation.counting.merge` returns them.
        dataset: what was scored.
        multi_scale_flip: whether several scales and mirror images were averaged.
    """
    sizes = {image.size for image in images}
    judged = [image.calibration for image in images if image.calibration]
    calibration = Calibration()
    for each in judged:
        calibration.merge(each)
    return Result(
        **_conditions(dataset, multi_scale_flip),
        **_values_of_images(images, dataset),
        size=sizes.pop() if len(sizes) == 1 else None,
        cities=_cities(images, dataset) if is_cityscapes(dataset) else None,
        calibration=calibration.scores() if judged else None,
        per_image=tuple(ImageConfusion(image.name, image.confusion) for image in images),
    )


def _conditions(dataset: Dataset, multi_scale_flip: bool) -> dict[str, Any]:
    return {
        "dataset": dataset.title,
        "split": dataset.split,
        "images_in_split": len(dataset),
        "scales": MULTI_SCALES if multi_scale_flip else (1.0,),
        "flip": multi_scale_flip,
    }


def _cities(images: Sequence[ImageCounts], dataset: Dataset) -> tuple[City, ...]:
    by_city: dict[str, list[ImageCounts]] = {}
    for image in images:
        by_city.setdefault(city_of(image.name), []).append(image)
    return tuple(
        City(name=name, **_values_of_images(own, dataset) | {"confusion_matrix": None})
        for name, own in sorted(by_city.items())
    )


def _values_of_images(images: Sequence[ImageCounts], dataset: Dataset) -> dict[str, Any]:
    """The fields of `Scores`, from all that was counted."""
    confusion = ConfusionMatrix(len(dataset.classes))
    for image in images:
        confusion.add(image.confusion)
    rows: dict[str, Sequence[float]] = {}
    means: dict[str, float] = {}
    outlines = [image.boundary for image in images if image.boundary]
    if len(outlines) == len(images):
        outline = BoundaryCounts(len(dataset.classes))
        for each in outlines:
            outline.merge(each)
        rows = {"boundary_iou": outline.iou.tolist(), "boundary_f_score": outline.f_score.tolist()}
        means = {"mean_boundary_iou": mean(outline.iou), "mean_boundary_f_score": mean(outline.f_score)}
    if dataset.classes != cityscapes_classes():
        return _values(confusion, dataset, len(images), rows) | means
    means |= {"mean_iiou": math.nan, "category_mean_iiou": math.nan}
    of_categories: dict[str, Sequence[float]] = {}
    instances = [image.instances for image in images if image.instances is not None]
    if len(instances) == len(images):
        stacked = np.stack(instances).reshape(len(instances), -1)
        total = np.array([math.fsum(column) for column in stacked.T]).reshape(instances[0].shape)
        weighted = official.instance_iou(total, confusion.matrix)
        means |= {"mean_iiou": mean(weighted[0]), "category_mean_iiou": mean(weighted[1])}
        rows["iiou"], of_categories["iiou"] = (each.tolist() for each in weighted)
    return _values(confusion, dataset, len(images), rows, of_categories) | means


def _values(
    confusion: ConfusionMatrix,
    dataset: Dataset,
    images: int,
    rows: dict[str, Sequence[float]] | None = None,
    of_categories: dict[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The fields of `Scores` that a confusion matrix gives; `rows` and `of_categories` are further scores, by name."""
    names, iou = dataset.classes.names, confusion.iou
    labelled = confusion.matrix.sum(1)
    share = 100 * labelled / max(1, labelled.sum())
    columns = {"name": names, "iou": iou.tolist(), "accuracy": confusion.accuracy.tolist(), "share": share.tolist()}
    values: dict[str, Any] = {
        "images": images,
        "miou": confusion.miou,
        "miou_classes": int(np.count_nonzero(~np.isnan(iou))),
        "mean_accuracy": confusion.mean_accuracy,
        "pixel_accuracy": confusion.pixel_accuracy,
        "frequency_weighted_iou": confusion.frequency_weighted_iou,
        "classes": tuple(ClassScore(**row) for row in _rows(columns | (rows or {}))),
        "absent": tuple(name for name, value in zip(names, iou, strict=True) if math.isnan(value)),
        "confusion_matrix": tuple(map(tuple, confusion.matrix.tolist())),
    }
    if dataset.classes == cityscapes_classes():
        facts = official.tables()
        grouped = confusion.grouped(facts.category_of).iou
        columns = {"name": facts.categories, "iou": grouped.tolist()}
        values["category_miou"] = mean(grouped)
        values["categories"] = tuple(CategoryScore(**row) for row in _rows(columns | (of_categories or {})))
    return values


def _rows(columns: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
