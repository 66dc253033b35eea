"""Scores from one integer confusion matrix over a whole data set, as the Cityscapes benchmark defines them.

Counts are merged by sum, so any split over images or processes gives the same scores. Everything is in percent.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segmv3.labels import IGNORE


class ConfusionMatrix:
    """Pixel counts by true class (rows) and predicted class (columns).

    Attributes: matrix: int64 classes x classes.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes must be between 1 and {IGNORE}, found {num_classes}")
        self.num_classes = num_classes
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: ArrayLike, target: ArrayLike) -> None:
        """Count one image or batch.

        Args: prediction: integer train ids 0..classes-1, any shape (array or CPU tensor). target: the same
            shape, train ids with 255 = ignore; ignored pixels are not counted.
        Raises: ValueError when shapes differ or an id is outside the classes: such pixels are never dropped.
        """
        guess, truth = np.asarray(prediction), np.asarray(target)
        if guess.shape != truth.shape:
            raise ValueError(f"prediction is {guess.shape}, target is {truth.shape}")
        for name, values in (("prediction", guess), ("target", truth)):
            if not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name} must hold integer ids, found {values.dtype}")
        labelled = truth != IGNORE
        guess, truth = guess[labelled], truth[labelled]
        for name, values in (("prediction", guess), ("target", truth)):
            if values.size and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                wrong = sorted(set(np.unique(values).tolist()) - set(range(self.num_classes)))
                raise ValueError(f"{name} has ids {wrong[:8]}; expected 0-{self.num_classes - 1} or {IGNORE}")
        pairs = truth.astype(np.int64) * self.num_classes + guess
        self.matrix += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.matrix.shape)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another matrix over the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes cannot be added to {self.num_classes}")
        self.matrix += other.matrix

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union by class, percent; NaN for a class in neither truth nor prediction."""
        hits = np.diagonal(self.matrix)
        return _percent(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each class's true pixels that were found (recall), percent; NaN for a class without any."""
        return _percent(np.diagonal(self.matrix), self.matrix.sum(1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, percent; NaN when nothing was counted."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes that occur in the truth, percent."""
        return _mean(self.accuracy)

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right, percent."""
        return float(_percent(np.trace(self.matrix), self.matrix.sum()))


def _percent(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(100 * part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
