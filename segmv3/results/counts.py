"""Pixel counts of each image, and the IoU that they make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmv3.metrics import Triplet, percent

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


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
        """Pixels of the class in truth or prediction."""
        return self.truth + self.predicted - self.hits

    @property
    def iou(self) -> FloatArray:
        """IoU of each class over all images, percent; NaN for a class that does not occur."""
        return percent(self.hits.sum(0), self.union.sum(0))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur, percent."""
        return float(mean_of(self.iou))


def rows_of(counts: Sequence[Triplet]) -> IntArray:
    """Triplets of an image as int64 n x 3."""
    return np.array(counts, np.int64).reshape(-1, 3)


def sparse_counts(images: Sequence[IntArray], classes: int) -> IouCounts:
    """Take what IoU needs out of `rows_of` each image; no array of images x classes x classes is made."""
    hits, truth, predicted = (np.zeros((len(images), classes), np.int64) for _ in range(3))
    for place, rows in enumerate(images):
        right = rows[:, 0] == rows[:, 1]
        np.add.at(hits[place], rows[right, 0], rows[right, 2])
        np.add.at(truth[place], rows[:, 0], rows[:, 2])
        np.add.at(predicted[place], rows[:, 1], rows[:, 2])
    return IouCounts(hits, truth, predicted)


def confusion_of(rows: IntArray, classes: int) -> IntArray:
    """The confusion matrix that rows (truth id, predicted id, pixels) add up to."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (rows[:, 0], rows[:, 1]), rows[:, 2])
    return matrix


def mean_of(iou: FloatArray) -> FloatArray:
    """Mean over the classes (last axis) that occur; NaN where none does."""
    occurs = ~np.isnan(iou)
    count = occurs.sum(-1)
    total = np.where(occurs, iou, 0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
