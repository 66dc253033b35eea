"""The file that `segmv3 evaluate --output` writes, read and checked."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segmv3.errors import DataError
from segmv3.records import read_json, typed

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_PIXELS = 2**53  # up to here sums of pixels are exact in float64


# --- counts ---


@dataclass(frozen=True)
class IouCounts:
    """All that IoU needs of each image, in pixels: int64 images x classes."""

    hits: IntArray
    truth: IntArray
    predicted: IntArray

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def union(self) -> IntArray:
        return self.truth + self.predicted - self.hits


def iou_counts(confusions: IntArray) -> IouCounts:
    """Of confusion matrices: int64 images x classes (truth) x classes (prediction)."""
    return IouCounts(np.diagonal(confusions, axis1=1, axis2=2).copy(), confusions.sum(2), confusions.sum(1))


def _sparse_counts(images: Sequence[IntArray], classes: int) -> IouCounts:
    """Of rows (truth id, predicted id, pixels) per image; never images x classes x classes."""
    hits, truth, predicted = (np.zeros((len(images), classes), np.int64) for _ in range(3))
    for place, rows in enumerate(images):
        right = rows[:, 0] == rows[:, 1]
        np.add.at(hits[place], rows[right, 0], rows[right, 2])
        np.add.at(truth[place], rows[:, 0], rows[:, 2])
        np.add.at(predicted[place], rows[:, 1], rows[:, 2])
    return IouCounts(hits, truth, predicted)


def _iou(hits: ArrayLike, union: ArrayLike) -> FloatArray:
    """Percent; NaN where there is no pixel."""
    hits, union = np.asarray(hits, np.float64), np.asarray(union, np.float64)
    return np.divide(100 * hits, union, out=np.full(union.shape, np.nan), where=union > 0)


def _mean(iou: FloatArray) -> FloatArray:
    """Mean over the classes (last axis) that occur; NaN where none does."""
    occurs = ~np.isnan(iou)
    count = occurs.sum(-1)
    total = np.where(occurs, iou, 0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


# --- result files ---


@dataclass(frozen=True)
class Result:
    """A file of `segmv3 evaluate --output`, read and checked."""

    source: str
    facts: dict[str, Any]
    """The whole file but `per_image`."""
    names: tuple[str, ...]
    """Of the images."""
    classes: tuple[str, ...]
    images: tuple[IntArray, ...]
    """Of each image: int64 rows of (truth id, predicted id, pixels)."""
    counts: IouCounts

    @property
    def iou(self) -> FloatArray:
        """Of each class over all images, percent; NaN when absent."""
        return _iou(self.counts.hits.sum(0), self.counts.union.sum(0))

    @property
    def miou(self) -> float:
        return float(_mean(self.iou))


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises: DataError when it is missing, damaged, not such a file, or has no (or other) per-image counts.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} {error}; name a file of segmv3 evaluate --output") from None
    return as_result(content, str(path))


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _Image(_Named):
    counts: list[Any]
    """Rows of (truth id, predicted id, pixels); a file of 500 images has too many to look at one by one."""


@dataclass(frozen=True)
class _Content:
    """What is used of a result file; where something was not recorded it is None."""

    dataset: str
    split: str
    classes: list[_Named]
    confusion_matrix: list[Any]
    per_image: list[_Image]
    size: tuple[int, int] | None = None
    images: int | None = None
    images_in_split: int | None = None
    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    sliding_window: tuple[int, int] | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    config: str | None = None
    recipe: str | None = None
    precision: str | None = None
    device: str | None = None
    device_name: str | None = None
    fps: float | None = None
    memory_gb: float | None = None


def _whole(values: list[Any], *shape: int) -> IntArray:
    """Raises: ValueError for anything but whole numbers of at least 0 in this shape."""
    with contextlib.suppress(ValueError):
        numbers = np.array(values) if values else np.empty(0, np.int64)
        if numbers.dtype == np.int64 and (numbers >= 0).all():
            return numbers.reshape(*shape)
    raise ValueError("its pixel counts are not whole numbers in rows of one length")


def as_result(content: Any, source: str) -> Result:
    """The content of a result file, as `read_result`; `source` names it in errors."""
    needed = ("dataset", "split", "classes", "confusion_matrix")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise DataError(f"{source} is no result file; name a file of segmv3 evaluate --output")
    if "per_image" not in content:
        raise DataError(f"{source} has no per-image counts; write it again with segmv3 evaluate --output")
    try:
        known = typed(content, _Content)
        classes = tuple(each.name for each in known.classes)
        names = tuple(image.name for image in known.per_image)
        images = tuple(_whole(image.counts, -1, 3) for image in known.per_image)
        total = _whole(known.confusion_matrix, len(classes), len(classes))
    except ValueError as error:
        raise DataError(f"{source} is damaged ({error}); write it again with segmv3 evaluate --output") from None
    doubled = next((name for name, before in zip(sorted(names)[1:], sorted(names), strict=False) if name == before), "")
    if doubled:
        raise DataError(f"{source} has image {doubled} twice; write it again with segmv3 evaluate --output")
    rows = np.concatenate([np.empty((0, 3), np.int64), *images])
    fits = (rows < [len(classes), len(classes), _MOST_PIXELS]).all() and rows[:, 2].sum(dtype=float) < _MOST_PIXELS
    if not fits or not np.array_equal(_confusion(rows, len(classes)), total):
        raise DataError(
            f"{source} contradicts itself: its per-image counts are not those of its confusion matrix; "
            "write it again with segmv3 evaluate --output"
        )
    if not total.any():
        raise DataError(f"{source} has no labelled pixel: there is nothing to compare")
    facts = {key: value for key, value in content.items() if key != "per_image"}
    return Result(source, facts, names, classes, images, _sparse_counts(images, len(classes)))


def _confusion(rows: IntArray, classes: int) -> IntArray:
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (rows[:, 0], rows[:, 1]), rows[:, 2])
    return matrix
