"""Scores from integer counts over a whole data set, as the Cityscapes benchmark defines them.

Counts are merged by sum, so any split over images or processes gives the same scores. Everything is in percent.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from segmv3.images import UInt8Array
from segmv3.labels import IGNORE

Triplet = tuple[int, int, int]
"""(true id, predicted id, pixels): one entry of a confusion matrix."""


class ConfusionMatrix:
    """Pixel counts by true class (rows) and predicted class (columns).

    Attributes:
        matrix: int64 classes x classes.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes must be between 1 and {IGNORE}, found {num_classes}")
        self.num_classes = num_classes
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: ArrayLike, target: ArrayLike) -> None:
        """Count one image or batch.

        Args:
            prediction: integer train ids 0..classes-1 of any shape, an array or a CPU tensor.
            target: train ids of the same shape. Pixels of 255 are not counted, whatever was predicted there.

        Raises:
            ValueError: the shapes differ, or an id is outside the classes. Such pixels are never dropped.
        """
        guess, truth = np.asarray(prediction), np.asarray(target)
        if guess.shape != truth.shape:
            raise ValueError(f"prediction is {guess.shape}, target is {truth.shape}")
        guess, truth = _bytes(guess, "prediction"), _bytes(truth, "target")
        pairs = _count_pairs(guess, truth).reshape(256, 256)
        pairs[IGNORE] = 0
        for name, found in (("target", pairs.sum(1)), ("prediction", pairs.sum(0))):
            wrong = np.flatnonzero(found[self.num_classes :]) + self.num_classes
            if wrong.size:
                raise ValueError(
                    f"{name} has ids {wrong[:8].tolist()}; expected 0-{self.num_classes - 1}"
                    + (f" or {IGNORE}" if name == "target" else "")
                )
        self.matrix += pairs[: self.num_classes, : self.num_classes]

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another matrix over the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes cannot be added to {self.num_classes}")
        self.matrix += other.matrix

    def add(self, counts: Iterable[Triplet]) -> None:
        """Add what `sparse` returned."""
        for truth, predicted, pixels in counts:
            self.matrix[truth, predicted] += pixels

    def sparse(self) -> tuple[Triplet, ...]:
        """The entries that are not 0, by truth and then prediction."""
        places = np.argwhere(self.matrix)
        return tuple((int(t), int(p), int(self.matrix[t, p])) for t, p in places)

    def grouped(self, groups: Sequence[int]) -> "ConfusionMatrix":
        """The matrix over groups of classes: confusions inside a group become hits.

        Args:
            groups: the group 0..G-1 of each class.
        """
        result = ConfusionMatrix(max(groups) + 1)
        np.add.at(result.matrix, np.ix_(groups, groups), self.matrix)
        return result

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union by class, percent; NaN for a class in neither truth nor prediction."""
        hits = np.diagonal(self.matrix)
        return percent(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each class's true pixels that were found (recall), percent; NaN for a class without any."""
        return percent(np.diagonal(self.matrix), self.matrix.sum(1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, percent; NaN when nothing was counted."""
        return mean(self.iou)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by each class's share of the labelled pixels, percent (Long et al., arXiv 1411.4038)."""
        labelled = self.matrix.sum(1)
        return float(percent((labelled * np.nan_to_num(self.iou)).sum() / 100, labelled.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes that occur in the truth, percent."""
        return mean(self.accuracy)

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right, percent."""
        return float(percent(np.trace(self.matrix), self.matrix.sum()))


BAND_RATIO = 0.02
"""Width of the band of boundary IoU, as a share of the image diagonal."""

TOLERANCE_RATIO = 0.0075
"""How far a contour may be off for the boundary F-score, as a share of the image diagonal."""


class BoundaryCounts:
    """What boundary IoU and boundary F-score are made of, summed over images.

    *Boundary IoU* (Cheng et al. 2021, arXiv 2103.16562): IoU of the parts of truth and prediction that lie within d
    pixels of their own boundary. d is 2 % of the image diagonal, rounded, at least 1. As in the authors' code the
    part is the mask minus its erosion by d steps of a 3x3 square, and the image's edge is a boundary. Intersections
    and unions are summed over the data set before they are divided.

    *Boundary F-score* (Csurka et al., BMVC 2013): precision is the share of predicted contour pixels with a true one
    of the same class within 0.75 % of the image diagonal (Euclidean), recall the same the other way round, F their
    harmonic mean. A contour pixel has another class above, below, left or right of it; the image's edge and void
    make no contour. The authors average F over images; here the pixels are summed over the data set first.

    Both: pixels that are void in the truth are void in the prediction too, and count for nothing.

    Attributes:
        counts: int64 classes x 7; columns as in `_COLUMNS`.
    """

    _COLUMNS = ("band hits", "band truth", "band prediction", "truth", "truth found", "prediction", "prediction right")

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: NDArray[np.int64] = np.zeros((num_classes, len(self._COLUMNS)), np.int64)

    def update(self, prediction: UInt8Array, target: UInt8Array) -> None:
        """Count one image. Ids are not checked here, `ConfusionMatrix` does.

        Args:
            prediction: uint8 H x W of train ids.
            target: uint8 H x W of train ids, 255 = ignore.
        """
        diagonal = math.hypot(*target.shape)
        guess = np.where(target == IGNORE, np.uint8(IGNORE), prediction)
        in_truth, in_guess = (_band(labels, max(1, round(BAND_RATIO * diagonal))) for labels in (target, guess))
        both = in_truth & in_guess & (target == guess)
        for column, pixels in enumerate((target[both], target[in_truth], guess[in_guess])):
            self.counts[:, column] += np.bincount(pixels, minlength=256)[: self.num_classes]
        self._match_contours(guess, target, TOLERANCE_RATIO * diagonal)

    def _match_contours(self, guess: UInt8Array, truth: UInt8Array, tolerance: float) -> None:
        contours = [np.where(_contour(labels), labels, np.uint8(IGNORE)) for labels in (truth, guess)]
        for label in range(self.num_classes):
            true, guessed = (contour == label for contour in contours)
            for column, here, there in ((3, true, guessed), (5, guessed, true)):
                number = np.count_nonzero(here)
                self.counts[label, column] += number
                if number and there.any():
                    self.counts[label, column + 1] += _near(here, there, tolerance)

    def merge(self, other: "BoundaryCounts") -> None:
        """Add the counts of other images."""
        self.counts += other.counts

    @property
    def iou(self) -> NDArray[np.float64]:
        """Boundary IoU by class, percent; NaN for a class in neither truth nor prediction."""
        hits, truth, prediction = self.counts[:, :3].T
        return percent(hits, truth + prediction - hits)

    @property
    def f_score(self) -> NDArray[np.float64]:
        """Boundary F-score by class, percent; NaN for a class that has no contour in truth and prediction."""
        truth, found, prediction, right = self.counts[:, 3:].T
        recall, precision = np.nan_to_num(percent(found, truth)), np.nan_to_num(percent(right, prediction))
        score = np.nan_to_num(percent(2 * precision * recall, precision + recall) / 100)
        return np.where(truth + prediction > 0, score, np.nan)


def mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def percent(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Share in percent of each number.

    Args:
        part: numbers of any shape.
        whole: numbers of a shape that broadcasts with that of `part`.

    Returns:
        float64; NaN where the whole is 0.
    """
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(100 * part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


# --- counting pixels ---


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By numba, kept on disk for the next process; a machine without a writable cache folder compiles each time.

    Compiled functions are single-threaded and share nothing: any number of threads may call them.
    """
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:
        return numba.njit(function, nogil=True)


@_compiled
def _count_pairs(prediction: UInt8Array, truth: UInt8Array) -> NDArray[np.int64]:
    """Flat uint8 arrays of one length to counts int64 65536, at 256 * truth + prediction."""
    counts = np.zeros(65536, np.int64)
    for i in range(truth.size):
        counts[(np.int64(truth[i]) << 8) | prediction[i]] += 1
    return counts


def _bytes(values: NDArray[Any], name: str) -> UInt8Array:
    """Flat contiguous uint8; ids that do not fit are refused, never wrapped around."""
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must hold integer ids, found {values.dtype}")
        if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
            wrong = sorted(set(np.unique(values).tolist()) - set(range(256)))
            raise ValueError(f"{name} has ids {wrong[:8]}; ids are 0-255")
    return np.ascontiguousarray(values, np.uint8).reshape(-1)


def _band(labels: UInt8Array, distance: int) -> NDArray[np.bool_]:
    """Labelled pixels with another label, or the image's edge, at most `distance` steps of a 3x3 square away.

    That is each class's mask minus its erosion, for all classes at once: a pixel survives the erosion of its own
    mask exactly when the largest and the smallest label of the window around it are the same.
    """
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    edge = {"borderType": cv2.BORDER_CONSTANT, "borderValue": IGNORE}
    return (cv2.dilate(labels, window, **edge) != cv2.erode(labels, window)) & (labels != IGNORE)


def _contour(labels: UInt8Array) -> NDArray[np.bool_]:
    """Labelled pixels with a pixel of another class (not void) above, below, left or right."""
    contour = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        a, b = labels[one], labels[other]
        differ = (a != b) & (a != IGNORE) & (b != IGNORE)
        contour[one] |= differ
        contour[other] |= differ
    return contour


def _near(points: NDArray[np.bool_], others: NDArray[np.bool_], tolerance: float) -> int:
    """How many of the points have one of the others within `tolerance` pixels."""
    rows, columns = np.flatnonzero(points.any(1)), np.flatnonzero(points.any(0))
    reach = math.ceil(tolerance)  # no other point farther out can matter
    window = np.s_[max(0, rows[0] - reach) : rows[-1] + reach + 1, max(0, columns[0] - reach) : columns[-1] + reach + 1]
    if not others[window].any():
        return 0
    distance = cv2.distanceTransform((~others[window]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return int(np.count_nonzero(distance[points[window]] <= tolerance))
