"""How far a score can be trusted: bootstrap intervals, and the comparison of two results on the same images.

Both are computed from the per-image pixel counts of a result. Images are the unit of resampling (Efron and
Tibshirani, "An Introduction to the Bootstrap", chapters 6 and 13): pixels of one image are not independent. Images of
one drive are not quite independent either. An interval therefore says how much the score depends on which images of
these cities were labelled; it cannot speak for other cities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from segmv3.errors import DataError
from segmv3.metrics import percent
from segmv3.results.counts import FloatArray, IouCounts, mean_of
from segmv3.results.result import Result

Interval = tuple[float, float]

_BLOCK = 100  # resamples summed at a time; bounds the memory, changes no number
FEWEST_IMAGES = 6
"""Below it no difference is called one: even if all of 5 images agree, chance alone does that in 6 % of cases."""


def bootstrap_miou(counts: IouCounts, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of mIoU, percent: as many images are drawn with replacement, their counts summed, and so on.

    A class that is absent (from truth and prediction) in a resample is left out of that resample's mean, as it
    is left out of the score itself.

    Args:
        counts: of each image.
        resamples: how often the images are drawn.
        seed: the same seed gives the same interval.

    Returns:
        The 2.5 and 97.5 percentiles; NaN when nothing was counted.
    """
    low, high = _percentiles(mean_of(_resampled([counts], resamples, seed)[0]))
    return float(low), float(high)


def bootstrap_iou(counts: IouCounts, *, resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """95 % interval of each class's IoU, percent, over the resamples that the class occurs in.

    Args:
        counts: as for `bootstrap_miou`.
        resamples: how often the images are drawn.
        seed: the same seed gives the same intervals.

    Returns:
        The 2.5 and 97.5 percentiles of each class; NaN for an absent class.
    """
    low, high = _percentiles(_resampled([counts], resamples, seed)[0])
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _resampled(results: Sequence[IouCounts], resamples: int, seed: int) -> list[FloatArray]:
    """IoU of each result on the same resamples: resamples x classes each."""
    number = len(results[0])
    if number < 1 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {number} images")
    generator = np.random.default_rng(seed)
    # float64 sums of whole numbers are exact up to 9e15 pixels, and BLAS adds them fast
    parts = [(result.hits.astype(np.float64), result.union.astype(np.float64)) for result in results]
    blocks: list[list[FloatArray]] = [[] for _ in results]
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        weights = generator.multinomial(number, np.full(number, 1 / number), size).astype(np.float64)
        for block, (hits, union) in zip(blocks, parts, strict=True):
            block.append(percent(weights @ hits, weights @ union))
    return [np.concatenate(block) for block in blocks]


def _percentiles(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """2.5 and 97.5 percentiles along the first axis, NaN left out."""
    finite = ~np.isnan(values)
    filled = np.where(finite | ~finite.any(0), np.nan_to_num(values), np.nan)  # a column of nothing: no warning
    bounds = np.nanpercentile(filled, [2.5, 97.5], axis=0)
    low, high = np.where(finite.any(0), bounds, np.nan)
    return low, high


@dataclass(frozen=True)
class Difference:
    """A score of two results on the same images, percent; NaN where there is none."""

    name: str
    a: float
    b: float
    low: float
    """Lower end of the 95 % interval of b - a."""
    high: float
    images: int
    """Number of images with the class in their truth; for the mean, of all images."""

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval excludes 0, on enough images to say so."""
        return self.images >= FEWEST_IMAGES and (self.low > 0 or self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; None where there is no number."""
        numbers = {"a": self.a, "b": self.b, "difference": self.difference, "low": self.low, "high": self.high}
        finite = {key: None if isnan(value) else value for key, value in numbers.items()}
        return {"name": self.name, "images": self.images, **finite, "beyond_chance": self.beyond_chance}


@dataclass(frozen=True)
class Comparison:
    """Two results side by side."""

    classes: tuple[Difference, ...]
    miou: Difference
    settings: dict[str, tuple[Any, Any]]
    """What the two were measured with, where it differs: (of a, of b)."""
    resamples: int
    seed: int


def compare(a: Result, b: Result, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Difference b - a of each class's IoU and of mIoU, with the 95 % interval of the paired difference.

    Both results are resampled with the same images, so that what makes an image hard for both cancels out. In
    each resample, a class that is absent from one result (from truth and prediction) is left out of that
    result's mean.

    Args:
        a: one result.
        b: another one, on the same images.
        resamples: how often the images are drawn.
        seed: the same seed gives the same intervals.

    Raises:
        DataError: the two are not of the same images, classes and ground truth.
    """
    _check_same_images(a, b)
    order = [b.names.index(name) for name in a.names] if a.names != b.names else slice(None)
    of_b = IouCounts(b.counts.hits[order], b.counts.truth[order], b.counts.predicted[order])
    drawn_a, drawn_b = _resampled([a.counts, of_b], resamples, seed)
    low, high = _percentiles(drawn_b - drawn_a)
    present = (a.counts.truth > 0).sum(0)
    columns = (values.tolist() for values in (a.counts.iou, b.counts.iou, low, high, present))
    classes = tuple(Difference(*row) for row in zip(a.class_names, *columns, strict=True))
    mean_low, mean_high = _percentiles(mean_of(drawn_b) - mean_of(drawn_a))
    mean = Difference("mIoU", a.counts.miou, b.counts.miou, float(mean_low), float(mean_high), len(a.names))
    settings = {key: (getattr(a, key), getattr(b, key)) for key in _SETTINGS}
    return Comparison(classes, mean, {key: two for key, two in settings.items() if two[0] != two[1]}, resamples, seed)


_SETTINGS = (
    *("weights", "weights_sha256", "scales", "flip", "input_size", "input_scale", "precision", "device", "config"),
    *("runtime", "device_name", "segmv3", "recipe"),
)
"""What a score depends on beside the images."""


def _check_same_images(a: Result, b: Result) -> None:
    both = f"{a.source} and {b.source}"
    for key, what in (("dataset", "data set"), ("split", "split"), ("size", "size")):
        was, now = getattr(a, key), getattr(b, key)
        if was != now:
            raise DataError(f"{both} cannot be compared: {what} {shown(key, was)} and {shown(key, now)}")
    if len(a.classes) != len(b.classes):
        raise DataError(f"{both} cannot be compared: {len(a.classes)} and {len(b.classes)} classes")
    for was, now in zip(a.class_names, b.class_names, strict=True):
        if was != now:
            raise DataError(f"{both} cannot be compared: class {was!r} and {now!r} have the same id")
    alone = sorted(set(a.names) ^ set(b.names))
    if alone:
        counts = f"{len(a.names):,} and {len(b.names):,} images, {len(alone):,} of them in one file only"
        raise DataError(f"{both} cannot be compared: {counts} (first: {', '.join(alone[:3])})")
    places = {name: place for place, name in enumerate(b.names)}
    for place, name in enumerate(a.names):
        if not np.array_equal(a.counts.truth[place], b.counts.truth[places[name]]):
            raise DataError(f"{both} cannot be compared: the ground truth of {name} differs; evaluate both again")


_NOT_RECORDED = {"size": "mixed", "input_size": "that of the images", "input_scale": "none", "runtime": "torch"}


def shown(key: str, value: Any) -> str:
    """A fact of a result as a person writes it: 1024x2048, no, 0.5, 0.75, 1.

    Args:
        key: name of the field.
        value: its value.
    """
    if value is None:
        return _NOT_RECORDED.get(key, "unknown")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ("x" if key.endswith("size") else ", ").join(f"{each:g}" for each in value)
    return str(value)[:12] if key == "weights_sha256" else str(value)
