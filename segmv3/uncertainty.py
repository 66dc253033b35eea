"""How far a score can be trusted: bootstrap intervals, paired comparison, the worst images, calibration.

All of it is computed from the per-image pixel counts in the file that `segmv3 evaluate --output` writes; only
calibration needs probabilities. Images are the unit of resampling (Efron and Tibshirani, "An Introduction to the
Bootstrap", chapters 6 and 13): pixels of one image are not independent. Images of one drive are not quite
independent either, so that an interval says how much the score depends on which images of these cities were
labelled; it cannot speak for other cities.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segmv3.errors import DataError
from segmv3.labels import IGNORE
from segmv3.records import read_json, typed

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Interval = tuple[float, float]

_BLOCK = 100  # resamples summed at a time; bounds the memory, changes no number
_MOST_PIXELS = 2**53  # up to here sums of pixels are exact in float64
FEWEST_IMAGES = 6
"""Below it no difference is called one: even if all of 5 images agree, chance alone does that in 6 % of cases."""


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


# --- bootstrap ---


def bootstrap_miou(counts: IouCounts | IntArray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of mIoU, percent: as many images are drawn with replacement, their counts summed, and so on.

    A class that is absent (from truth and prediction) in a resample is left out of that resample's mean, as it
    is left out of the score itself.

    Args: counts: of each image, or confusion matrices int64 images x classes x classes.
    Returns: the 2.5 and 97.5 percentiles; NaN when nothing was counted.
    """
    low, high = _percentiles(_mean(_resampled([_counts(counts)], resamples, seed)[0]))
    return float(low), float(high)


def bootstrap_iou(counts: IouCounts | IntArray, *, resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """95 % interval of each class's IoU, percent, over the resamples it occurs in; NaN for an absent class."""
    low, high = _percentiles(_resampled([_counts(counts)], resamples, seed)[0])
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _counts(counts: IouCounts | IntArray) -> IouCounts:
    return counts if isinstance(counts, IouCounts) else iou_counts(counts)


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
            block.append(_iou(weights @ hits, weights @ union))
    return [np.concatenate(block) for block in blocks]


def _percentiles(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """2.5 and 97.5 percentiles along the first axis, NaN left out."""
    finite = ~np.isnan(values)
    filled = np.where(finite | ~finite.any(0), np.nan_to_num(values), np.nan)  # a column of nothing: no warning
    bounds = np.nanpercentile(filled, [2.5, 97.5], axis=0)
    low, high = np.where(finite.any(0), bounds, np.nan)
    return low, high


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


# --- comparison ---


@dataclass(frozen=True)
class Difference:
    """A score of two results on the same images, percent; NaN where there is none."""

    name: str
    a: float
    b: float
    low: float
    """Of the 95 % interval of b - a."""
    high: float
    images: int
    """That have the class in their truth, or all for the mean."""

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval excludes 0, on enough images to say so."""
        return self.images >= FEWEST_IMAGES and (self.low > 0 or self.high < 0)


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

    Raises: DataError when the two are not of the same images, classes and ground truth.
    """
    _check_same_images(a, b)
    order = [b.names.index(name) for name in a.names] if a.names != b.names else slice(None)
    of_b = IouCounts(b.counts.hits[order], b.counts.truth[order], b.counts.predicted[order])
    drawn_a, drawn_b = _resampled([a.counts, of_b], resamples, seed)
    low, high = _percentiles(drawn_b - drawn_a)
    present = (a.counts.truth > 0).sum(0)
    classes = tuple(
        Difference(*row)
        for row in zip(
            a.classes, a.iou.tolist(), b.iou.tolist(), low.tolist(), high.tolist(), present.tolist(), strict=True
        )
    )
    mean_low, mean_high = _percentiles(_mean(drawn_b) - _mean(drawn_a))
    mean = Difference("mIoU", a.miou, b.miou, float(mean_low), float(mean_high), len(a.names))
    return Comparison(classes, mean, differing_settings(a.facts, b.facts), resamples, seed)


def _check_same_images(a: Result, b: Result) -> None:
    both = f"{a.source} and {b.source}"
    for key, what in (("dataset", "data set"), ("split", "split"), ("size", "size")):
        was, now = a.facts.get(key), b.facts.get(key)
        if was != now:
            raise DataError(f"{both} cannot be compared: {what} {shown(key, was)} and {shown(key, now)}")
    if a.classes != b.classes:
        if len(a.classes) != len(b.classes):
            raise DataError(f"{both} cannot be compared: {len(a.classes)} and {len(b.classes)} classes")
        was, now = next(pair for pair in zip(a.classes, b.classes, strict=True) if pair[0] != pair[1])
        raise DataError(f"{both} cannot be compared: class {was!r} and {now!r} have the same id")
    alone = sorted(set(a.names) ^ set(b.names))
    if alone:
        counts = f"{len(a.names):,} and {len(b.names):,} images, {len(alone):,} of them in one file only"
        raise DataError(f"{both} cannot be compared: {counts} (first: {', '.join(alone[:3])})")
    places = {name: place for place, name in enumerate(b.names)}
    for place, name in enumerate(a.names):
        if not np.array_equal(a.counts.truth[place], b.counts.truth[places[name]]):
            raise DataError(f"{both} cannot be compared: the ground truth of {name} differs; evaluate both again")


_SETTINGS = ("weights", "weights_sha256", "scales", "flip", "input_size", "input_scale", "precision", "device")
_SCORES = {"classes", "absent", "confusion_matrix", "per_image", "dataset", "split", "size"}


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two results were measured with, where it differs; any text or switch in the file is a setting."""
    others = [
        key
        for key in [*a, *b]
        if key not in _SCORES and all(isinstance(each.get(key), str | bool | None) for each in (a, b))
    ]
    keys = dict.fromkeys([*_SETTINGS, *others])
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def shown(key: str, value: Any) -> str:
    """A fact of a result as a person writes it: 1024x2048, no, 0.5, 0.75, 1."""
    if value is None:
        return {"size": "mixed", "input_size": "that of the images", "input_scale": "none", "runtime": "torch"}.get(
            key, "unknown"
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ("x" if key.endswith("size") else ", ").join(f"{each:g}" for each in value)
    return str(value)[:12] if key == "weights_sha256" else str(value)


# --- ranking ---


@dataclass(frozen=True)
class RankedImage:
    """An image with its own scores, percent."""

    name: str
    miou: float
    """Mean over the classes in its truth: one stray pixel of another class must not count as a class at 0 %."""
    iou: FloatArray
    """Of each class; NaN where the truth does not have it."""


def ranking(result: Result) -> list[RankedImage]:
    """All images with a labelled pixel, lowest mIoU first (by name where equal)."""
    counts = result.counts
    iou = np.where(counts.truth > 0, _iou(counts.hits, counts.union), np.nan)
    images = [RankedImage(*row) for row in zip(result.names, _mean(iou).tolist(), iou, strict=True)]
    return sorted((image for image in images if not np.isnan(image.miou)), key=lambda image: (image.miou, image.name))


def worst_by_class(result: Result, *, count: int = 10, share: float = 0.001) -> dict[str, list[tuple[str, float]]]:
    """For each class the images (name, IoU in percent) it is found worst in, worst first.

    Only images in which the class covers `share` of the labelled pixels: specks of it would fill every list.
    """
    counts = result.counts
    iou = _iou(counts.hits, counts.union)
    covers = (counts.truth > 0) & (counts.truth >= share * counts.truth.sum(1, keepdims=True))
    worst = {}
    for place, name in enumerate(result.classes):
        rows = np.flatnonzero(covers[:, place])
        rows = rows[np.argsort(iou[rows, place], kind="stable")][:count]
        worst[name] = [(result.names[row], float(iou[row, place])) for row in rows]
    return worst


@dataclass(frozen=True)
class Suspect:
    """A confusion in one image that may be the label's fault."""

    name: str
    truth: str
    predicted: str
    pixels: int
    share: float
    """Of the image's pixels of the class `truth`, percent."""
    elsewhere: float
    """The same share over all other images, percent."""


def label_suspects(
    result: Result, *, share: float = 50, elsewhere: float = 10, coverage: float = 1, count: int = 20
) -> list[Suspect]:
    """Confusions that look like wrong labels, largest (in pixels) first.

    A suspect is an image in which at least `share` percent of the pixels of a class are predicted as one other
    class, which are at least `coverage` percent of its labelled pixels, while over all other images the net makes
    that confusion in at most `elsewhere` percent of the pixels of the class. A net that knows a class everywhere
    else and denies it here is either fooled or right; someone has to look. A class in one image only has no
    elsewhere and is never suspected.
    """
    total = _confusion(np.concatenate(result.images), len(result.classes))
    found = []
    for name, rows, labelled in zip(result.names, result.images, result.counts.truth, strict=True):
        rest = total - _confusion(rows, len(result.classes))
        for truth, predicted, pixels in rows.tolist():
            others = int(rest[truth].sum())
            if truth == predicted or not others or 100 * pixels < coverage * labelled.sum():
                continue
            here, there = 100 * pixels / int(labelled[truth]), 100 * int(rest[truth, predicted]) / others
            if here >= share and there <= elsewhere:
                classes = (result.classes[truth], result.classes[predicted])
                found.append(Suspect(name, *classes, pixels, here, there))
    return sorted(found, key=lambda suspect: (-suspect.pixels, suspect.name))[:count]


# --- calibration ---


class Calibration:
    """Whether a net is right as often as it is sure: pixel counts by the probability of the winning class.

    Bins are equal parts of 0..1, each with its upper end (Guo et al., 2017, "On Calibration of Modern Neural
    Networks", equations 2 to 4). Labelled pixels only; all of them count alike, so large classes rule.

    Attributes: pixels, correct: int64 per bin. confidence_sum: float64 per bin.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ValueError(f"{bins} bins")
        self.bins = bins
        self.pixels: IntArray = np.zeros(bins, np.int64)
        self.correct: IntArray = np.zeros(bins, np.int64)
        self.confidence_sum: FloatArray = np.zeros(bins, np.float64)

    def update(self, probabilities: ArrayLike, truth: ArrayLike) -> None:
        """Count one image.

        Args: probabilities: float classes x H x W. truth: integer H x W train ids, 255 = ignore.
        Raises: ValueError when the sizes differ, an id is outside the classes, or as `add`.
        """
        probabilities, truth = np.asarray(probabilities), np.asarray(truth)
        if probabilities.ndim != 3 or probabilities.shape[1:] != truth.shape:
            raise ValueError(f"probabilities are {probabilities.shape}, truth is {truth.shape}")
        labelled = truth != IGNORE
        classes = len(probabilities)
        if wrong := sorted(set(np.unique(truth[labelled]).tolist()) - set(range(classes))):
            raise ValueError(f"truth has ids {wrong[:8]}; expected 0-{classes - 1} or {IGNORE}")
        right = probabilities.argmax(0) == truth
        self.add(probabilities.max(0)[labelled], right[labelled])

    def add(self, confidence: ArrayLike, correct: ArrayLike) -> None:
        """Count labelled pixels by the probability of their winning class and whether it is right.

        Args: confidence: float in 0..1, any shape. correct: bool, the same shape.
        Raises: ValueError when the shapes differ or a confidence is no probability.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON types: ECE, mean confidence and accuracy in percent (None without pixels), and the bins."""
        total = int(self.pixels.sum())
        return {
            "ece": self.ece if total else None,
            "confidence": 100 * float(self.confidence_sum.sum()) / total if total else None,
            "accuracy": 100 * int(self.correct.sum()) / total if total else None,
            "pixels": total,
            "bins": list(self._rows()),
        }

    def _rows(self) -> Iterator[dict[str, Any]]:
        for place, (pixels, correct, sure) in enumerate(
            zip(self.pixels.tolist(), self.correct.tolist(), self.confidence_sum.tolist(), strict=True)
        ):
            yield {
                "low": 100 * place / self.bins,
                "high": 100 * (place + 1) / self.bins,
                "pixels": pixels,
                "confidence": 100 * sure / pixels if pixels else None,
                "accuracy": 100 * correct / pixels if pixels else None,
            }
