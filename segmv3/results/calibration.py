"""Whether a net is right as often as it is sure."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from segmv3.results.counts import FloatArray, IntArray


@dataclass(frozen=True)
class Bin:
    """The pixels whose winning class has a probability between two bounds; everything in percent."""

    low: float
    high: float
    pixels: int
    confidence: float = math.nan
    """Mean probability of the winning class; NaN without pixels."""
    accuracy: float = math.nan


@dataclass(frozen=True)
class CalibrationScores:
    """Whether a net is right as often as it is sure, in percent; NaN without pixels."""

    ece: float = math.nan
    """Expected calibration error."""
    confidence: float = math.nan
    """Mean probability of the winning class."""
    accuracy: float = math.nan
    pixels: int = 0
    bins: tuple[Bin, ...] = ()


class Calibration:
    """Whether a net is right as often as it is sure: pixel counts by the probability of the winning class.

    Bins are equal parts of 0..1, each with its upper end (Guo et al., 2017, "On Calibration of Modern Neural
    Networks", equations 2 to 4). Labelled pixels only; all of them count alike, so large classes rule.

    Attributes:
        bins: their number.
        pixels: int64 per bin.
        correct: int64 per bin.
        confidence_sum: float64 per bin.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ValueError(f"{bins} bins")
        self.bins = bins
        self.pixels: IntArray = np.zeros(bins, np.int64)
        self.correct: IntArray = np.zeros(bins, np.int64)
        self.confidence_sum: FloatArray = np.zeros(bins, np.float64)

    def add(self, confidence: ArrayLike, correct: ArrayLike) -> None:
        """Count labelled pixels by the probability of their winning class and whether it is right.

        Args:
            confidence: float in 0..1, any shape.
            correct: bool, the same shape.

        Raises:
            ValueError: the shapes differ, or a confidence is no probability.
        """
        sure, right = np.asarray(confidence, np.float64), np.asarray(correct, bool)
        if sure.shape != right.shape:
            raise ValueError(f"confidence is {sure.shape}, correct is {right.shape}")
        sure, right = sure.ravel(), right.ravel()
        if not ((sure >= 0) & (sure <= 1 + 1e-3)).all():  # a softmax in half precision may end above 1
            raise ValueError("a confidence is not between 0 and 1; logits need a softmax first")
        place = np.clip(np.ceil(sure * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self.pixels += np.bincount(place, minlength=self.bins)
        self.correct += np.bincount(place[right], minlength=self.bins)
        self.confidence_sum += np.bincount(place, weights=sure, minlength=self.bins)

    def merge(self, other: "Calibration") -> None:
        """Add the counts of another one with as many bins."""
        if other.bins != self.bins:
            raise ValueError(f"{other.bins} bins cannot be added to {self.bins}")
        self.pixels += other.pixels
        self.correct += other.correct
        self.confidence_sum += other.confidence_sum

    @property
    def ece(self) -> float:
        """Expected calibration error, percent: mean over pixels of |accuracy - confidence| of their bin."""
        gaps = np.abs(self.correct - self.confidence_sum).sum()
        return float(100 * gaps / self.pixels.sum()) if self.pixels.any() else float("nan")

    def scores(self) -> CalibrationScores:
        """What the counts come to."""
        total, correct, sure = int(self.pixels.sum()), int(self.correct.sum()), float(self.confidence_sum.sum())
        counts = zip(self.pixels.tolist(), self.correct.tolist(), self.confidence_sum.tolist(), strict=True)
        bins = tuple(
            Bin(100 * i / self.bins, 100 * (i + 1) / self.bins, pixels, _share(sure_of, pixels), _share(right, pixels))
            for i, (pixels, right, sure_of) in enumerate(counts)
        )
        return CalibrationScores(self.ece, _share(sure, total), _share(correct, total), total, bins)


def _share(part: float, whole: int) -> float:
    return 100 * part / whole if whole else math.nan
