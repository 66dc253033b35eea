"""What an evaluation found: the scores, all that they depend on, and the JSON file that keeps both.

Scores are percent. A score that was not measured is None and has no key in the file. One that was measured and is not
defined, such as the IoU of a class without a pixel, is NaN, and null in the file.
"""

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from segmv3.errors import DataError
from segmv3.metrics import Triplet
from segmv3.records import from_json, read_regular, typed
from segmv3.results.calibration import CalibrationScores
from segmv3.results.counts import IntArray, IouCounts, confusion_of, rows_of, sparse_counts

Size = tuple[int, int]
"""Height and width, pixels."""

_MOST_PIXELS = 2**53  # up to here sums of pixels are exact in float64
_PERCENT = ("iou", "accuracy", "f_score")
"""How the names of scores end."""
_ROWS = ("classes", "categories", "cities")
_SCORES = (*_ROWS, "calibration", "bins")
"""Keys of values that hold scores."""


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class."""

    name: str
    iou: float | None = None
    accuracy: float | None = None
    share: float | None = None
    """Share of the labelled pixels."""
    boundary_iou: float | None = None
    boundary_f_score: float | None = None
    iiou: float | None = None
    """Instance-weighted IoU of Cityscapes."""


@dataclass(frozen=True)
class CategoryScore:
    """The scores of one category of Cityscapes."""

    name: str
    iou: float | None = None
    iiou: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores over some images."""

    images: int = 0
    miou: float = math.nan
    """Mean over the classes that occur in the truth or in a prediction."""
    miou_classes: int = 0
    """How many classes `miou` is the mean of."""
    mean_accuracy: float = math.nan
    pixel_accuracy: float = math.nan
    frequency_weighted_iou: float = math.nan
    classes: tuple[ClassScore, ...] = ()
    absent: tuple[str, ...] = ()
    """Names of the classes that do not occur."""
    confusion_matrix: tuple[tuple[int, ...], ...] | None = None
    """Pixels by true class (rows) and predicted class (columns)."""
    category_miou: float | None = None
    categories: tuple[CategoryScore, ...] | None = None
    """Scores of Cityscapes' categories; None for other data."""
    mean_boundary_iou: float | None = None
    mean_boundary_f_score: float | None = None
    mean_iiou: float | None = None
    """NaN for Cityscapes without its files of instances."""
    category_mean_iiou: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON types, without those that were not measured."""
        return _plain(self)


@dataclass(frozen=True, kw_only=True)
class City(Scores):
    """The scores of one city of Cityscapes; a class that does not occur there is left out of its means."""

    name: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name} | super().to_dict()


@dataclass(frozen=True)
class ImageConfusion:
    """What a net took for what in one image."""

    name: str
    counts: tuple[Triplet, ...]


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exported file is."""

    output: str
    """Labels, logits or low-logits."""
    size: Size | None = None
    """Height and width that it takes; None for any."""
    source_sha256: str
    """Digest of the weights that the file was made of."""


@dataclass(frozen=True, kw_only=True)
class Result(Scores):
    """The scores of weights on a split, and all that they depend on.

    Attributes:
        size: of the ground truth of all images; None where they differ.
        per_image: the pixel counts of each image, in the order of the data set.
        cities: the scores of each city; None for other data than Cityscapes.
        sliding_window: height and width of the windows; None for whole images.
        input_size: what the net was shown images at; None for their own size, and where a scale gives several.
        official: what the Cityscapes script said, as `segmv3.official.agreement` returns it.
        miou_interval: 95 % interval of `miou`; None for so few images that it would be too narrow to be one.
        origin: where weights of another project come from.
        runtime: what ran an exported file; None for weights.
        fps: images labelled in a second, one at a time.
        memory_gb: the most memory that a GPU gave to torch.
        recipe: the row of `segmv3 benchmark table` that weights of our own belong to.
        source: names the result in messages; no part of the file.
    """

    dataset: str
    split: str
    images_in_split: int | None = None
    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    size: Size | None = None
    cities: tuple[City, ...] | None = None
    sliding_window: Size | None = None
    stride: Size | None = None
    input_size: Size | None = None
    input_scale: float | None = None
    official: dict[str, Any] | None = None
    miou_interval: tuple[float, float] | None = None
    calibration: CalibrationScores | None = None
    config: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    origin: dict[str, Any] | None = None
    precision: str | None = None
    runtime: str | None = None
    export: Export | None = None
    device: str | None = None
    device_name: str | None = None
    fps: float | None = None
    memory_gb: float | None = None
    processes: int | None = None
    segmv3: str | None = None
    recipe: str | None = None
    per_image: tuple[ImageConfusion, ...] = ()
    source: str = dataclasses.field(default="the evaluation", compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the images."""
        return tuple(image.name for image in self.per_image)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by train id."""
        return tuple(row.name for row in self.classes)

    @cached_property
    def counts(self) -> IouCounts:
        """What IoU needs of each image."""
        return sparse_counts([rows_of(image.counts) for image in self.per_image], len(self.classes))

    def to_dict(self) -> dict[str, Any]:
        hidden = {"source"}
        null = {"size", "miou_interval", "origin"}
        null |= {"input_size", "input_scale"} if self.input_size or self.input_scale else set()
        null |= {"memory_gb"} if self.fps else set()
        if not self.per_image:  # the scores alone, as an evaluation during training has them
            hidden, null = {"source", "per_image"}, set()
        content = {key: value for key, value in _plain(self, null).items() if key not in hidden}
        return {key: content[key] for key in (*_FIRST, *content) if key in content}

    def to_json(self) -> str:
        """The content of a result file: indented JSON, with each image on one line."""
        content = self.to_dict()
        per_image = ",\n".join(f"    {json.dumps(image)}" for image in content.pop("per_image", ()))
        rest = json.dumps(content, indent=2)
        return f'{rest[:-2]},\n  "per_image": [\n{per_image}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "the evaluation") -> Self:
        """Read and check the content of a result file.

        Args:
            text: what `to_json` returned, or another program wrote.
            source: names the result in messages.

        Raises:
            DataError: it is damaged, is no such file, or has no (or other) per-image counts.
        """
        try:
            content = from_json(text)
        except ValueError as error:
            raise DataError(f"{source} {error}; {_NAME_ONE}") from None
        needed = ("dataset", "split", "classes", "confusion_matrix")
        if not isinstance(content, dict) or any(key not in content for key in needed):
            raise DataError(f"{source} is no result file; {_NAME_ONE}")
        if "per_image" not in content:
            raise DataError(f"{source} has no per-image counts; {_WRITE_AGAIN}")
        try:
            images = typed(content["per_image"], list[_Image], "per_image")
            known = {key: value for key, value in content.items() if key not in ("per_image", "source")}
            result = _with_undefined(typed(_without_nulls(known), cls), known)
            rows = [_whole(image.counts, -1, 3) for image in images]
            total = _whole(known["confusion_matrix"], len(result.classes), len(result.classes))
        except ValueError as error:
            raise DataError(f"{source} is damaged ({error}); {_WRITE_AGAIN}") from None
        _refuse_contradiction([image.name for image in images], rows, total, source)
        per_image = tuple(
            ImageConfusion(image.name, tuple(map(tuple, counts.tolist())))
            for image, counts in zip(images, rows, strict=True)
        )
        return replace(result, per_image=per_image, source=source)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a result file.

        Args:
            path: a file that `segmv3 evaluate --output` wrote.

        Raises:
            DataError: as `from_json`, and for a file that is missing.
        """
        try:
            text = read_regular(path)
        except ValueError as error:
            raise DataError(f"{path} {error}; {_NAME_ONE}") from None
        return cls.from_json(text, str(path))


_FIRST = ("dataset", "split", "images", "images_in_split", "scales", "flip")
"""Keys at the beginning of the file; the others are in the order of the fields."""

_NAME_ONE = "name a file of segmv3 evaluate --output"
_WRITE_AGAIN = "write it again with segmv3 evaluate --output"


def _plain(value: Any, null: Collection[str] = ()) -> Any:
    """A dataclass or number as JSON types. `null`: the fields that may be None; the others are then left out."""
    if dataclasses.is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        keeps_null = not isinstance(value, Scores | ClassScore | CategoryScore)
        return {name: _nested(each) for name, each in pairs if each is not None or keeps_null or name in null}
    return None if isinstance(value, float) and math.isnan(value) else value


def _nested(value: Any) -> Any:
    if isinstance(value, tuple):
        return [each.to_dict() if isinstance(each, City) else _nested(each) for each in value]
    return _plain(value)


@dataclass(frozen=True)
class _Image:
    name: str
    counts: list[Any]
    """Rows of (truth id, predicted id, pixels); a file of 500 images has too many to look at one by one."""


def _without_nulls(content: Any) -> Any:
    """Without the keys of scores that are not defined."""
    if isinstance(content, list):
        return [_without_nulls(each) for each in content]
    if not isinstance(content, dict):
        return content
    found = {key: value for key, value in content.items() if value is not None}
    return {key: _without_nulls(value) if key in _SCORES else value for key, value in found.items()}


Row = TypeVar("Row", bound="Scores | ClassScore | CategoryScore")


def _with_undefined(scores: Row, content: Mapping[str, Any]) -> Row:
    """The scores with NaN for what the file says was measured and is not defined."""
    found: dict[str, Any] = {
        key: math.nan for key, value in content.items() if value is None and key.endswith(_PERCENT)
    }
    for key in _ROWS:
        if rows := getattr(scores, key, None):
            found[key] = tuple(_with_undefined(*each) for each in zip(rows, content[key], strict=True))
    return replace(scores, **found)


def _whole(values: list[Any], *shape: int) -> IntArray:
    """Raises: ValueError for anything but whole numbers of at least 0 in this shape."""
    with contextlib.suppress(ValueError):
        numbers = np.array(values) if values else np.empty(0, np.int64)
        if numbers.dtype == np.int64 and (numbers >= 0).all():
            return numbers.reshape(*shape)
    raise ValueError("its pixel counts are not whole numbers in rows of one length")


def _refuse_contradiction(names: Sequence[str], images: Sequence[IntArray], total: IntArray, source: str) -> None:
    """Raises: DataError unless each image is there once and all together make the confusion matrix."""
    for name, times in sorted(Counter(names).items()):
        if times > 1:
            raise DataError(f"{source} has image {name} twice; {_WRITE_AGAIN}")
    rows = np.concatenate([np.empty((0, 3), np.int64), *images])
    classes = len(total)
    fits = (rows < [classes, classes, _MOST_PIXELS]).all() and rows[:, 2].sum(dtype=float) < _MOST_PIXELS
    if not fits or not np.array_equal(confusion_of(rows, classes), total):
        raise DataError(
            f"{source} contradicts itself: its per-image counts are not those of its confusion matrix; {_WRITE_AGAIN}"
        )
    if not total.any():
        raise DataError(f"{source} has no labelled pixel: there is nothing to compare")
