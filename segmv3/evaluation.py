"""The loop over a validation set, used by training and by `segmv3 evaluate`, on one process or several."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmv3 import official
from segmv3.config import Data, Precision
from segmv3.data.datasets import Dataset, Pair, folders_of, open_dataset
from segmv3.data.listing import images_below
from segmv3.data.loader import read_ahead
from segmv3.decode import label_map, label_map_and_confidence
from segmv3.errors import DataError, EvaluationError, Interrupted, ResourceError, Segmv3Error
from segmv3.images import UInt8Array
from segmv3.inference import MULTI_SCALES, Size, multi_scale_flip, resize_image, resized_bands, sliding_window
from segmv3.labels import IGNORE, cityscapes_classes
from segmv3.metrics import BoundaryCounts, ConfusionMatrix, Triplet, mean

LabelsFunction = Callable[[Tensor], Tensor]
"""Image uint8 1 x 3 x H x W (RGB) to labels uint8 1 x H x W."""

InputSize = Callable[[Size], Size]
"""From the (height, width) of an image to those that a net is shown it at."""

Instances = NDArray[np.uint16]

Result = TypeVar("Result")


class Net(Protocol):
    """What is scored: weights in PyTorch, or an exported file."""

    def low_logits(self, image: Tensor) -> Tensor:
        """Image uint8 1 x 3 x H x W (RGB) to float logits 1 x classes x h x w of any size h x w."""
        ...


def single_scale(net: Net, input_size: InputSize | None = None) -> LabelsFunction:
    """The net on the image, or on a copy of another size.

    Args:
        net: what gives the logits.
        input_size: the size that the net is shown an image at. A copy is made as by `segmv3.inference.resize_image`;
            its logits are enlarged to the copy, then to the image, both bilinear (align_corners=False).
    """
    return lambda image: _single_scale(net, image, input_size, lambda *each: (label_map(*each),))[0]


def confident(net: Net, input_size: InputSize | None = None) -> Callable[[Tensor], Sequence[Tensor]]:
    """As `single_scale`, and the probability of the class of each pixel, float32 1 x H x W."""
    return lambda image: _single_scale(net, image, input_size, label_map_and_confidence)


def _single_scale(
    net: Net, image: Tensor, input_size: InputSize | None, decode: Callable[[Tensor, Size], Sequence[Tensor]]
) -> Sequence[Tensor]:
    """Never all classes at the size of a large image: what is smaller than it may be held, or else a band of rows."""
    size = (image.shape[2], image.shape[3])
    shown = input_size(size) if input_size else size
    logits = net.low_logits(resize_image(image, shown))
    if shown == size:
        return decode(logits, size)
    if math.prod(shown) < math.prod(size):
        return decode(F.interpolate(logits.float(), shown, mode="bilinear", align_corners=False), size)
    bands = (decode(band, (band.shape[2], band.shape[3])) for _, band in resized_bands(logits, shown, size))
    return [torch.cat(parts, 1) for parts in zip(*bands, strict=True)]


def multi_scale(net: Net, input_size: InputSize | None = None) -> LabelsFunction:
    """Multi-scale and flip, as in the mmsegmentation table."""

    def labels_of(image: Tensor) -> Tensor:
        shown = input_size((image.shape[2], image.shape[3])) if input_size else None
        return multi_scale_flip(net.low_logits, image, input_size=shown).argmax(1).to(torch.uint8)

    return labels_of


def sliding(net: Net, window: Size, stride: Size) -> LabelsFunction:
    """Overlapping windows, their logits averaged."""

    def labels_of(image: Tensor) -> Tensor:
        strips = sliding_window(net.low_logits, image, window=window, stride=stride)
        return torch.cat([strip.argmax(1).to(torch.uint8) for strip in strips], 1)

    return labels_of


# --- the data ---


def open_labelled(data: Data, split: str) -> Dataset:
    """`open_dataset` for scoring: says so when it is the test split, whose labels are kept back.

    Raises: DataError as `open_dataset` does, and for a test split with images but without labels.
    """
    try:
        dataset = open_dataset(data, split)
    except DataError:
        if split == "test" and _images_without_labels(data):
            raise DataError(_TEST_SPLIT.format(data.root, "has no labels")) from None
        raise
    if split == "test" and not (dataset.read(0)[1] != IGNORE).any():  # as in gtFine_trainvaltest.zip
        raise DataError(_TEST_SPLIT.format(data.root, "has only void labels"))
    return dataset


_TEST_SPLIT = "'test' of {} is the test split and {}: they are kept back, there is nothing to score; use --split val"


def _images_without_labels(data: Data) -> bool:
    return any(
        images_below(images).paths and not images_below(labels).paths for images, labels in folders_of(data, "test")
    )


def is_cityscapes(dataset: Dataset) -> bool:
    """Its layout and classes: the folder of an image is its city, and the categories are known."""
    return dataset.classes == cityscapes_classes() and all(p.image.parent.name == _city(p.name) for p in dataset.pairs)


def _city(name: str) -> str:
    return name.partition("_")[0]


def has_instances(dataset: Dataset) -> bool:
    """Whether every label has an `*_instanceIds.png` of Cityscapes beside it."""
    return is_cityscapes(dataset) and all(official.instance_file(pair.label) for pair in dataset.pairs)


# --- the loop ---


@dataclass(frozen=True)
class ImageCounts:
    """What one image adds to the scores."""

    index: int
    """Its place in the data set."""
    name: str
    size: tuple[int, int]
    """Height and width of its ground truth."""
    confusion: tuple[Triplet, ...]
    """Sparse confusion matrix of its labelled pixels."""
    boundary: BoundaryCounts | None = None
    instances: NDArray[np.float64] | None = None
    """As `segmv3.official.instance_counts` returns them."""


def count_images(
    labels_of: LabelsFunction,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    indices: Sequence[int] | None = None,
    boundary: bool = False,
    instances: bool = False,
    keep: Callable[[Pair, UInt8Array], object] | None = None,
) -> Iterator[ImageCounts]:
    """Run a net over a split, one image at a time, at the size of its ground truth.

    Args: indices: the images to score, all by default. boundary: count for `BoundaryCounts` too. instances: count
        for the instance-weighted IoU too; every label needs its `*_instanceIds.png`. keep: called with each pair
        and its predicted train ids (uint8 H x W).
    Raises: DataError naming the file for data that cannot be scored, and for a prediction that does not fit it.
    """

    def read(index: int) -> tuple[int, UInt8Array, UInt8Array, Instances | None]:
        image, truth = dataset.read(index)
        return index, image, truth, _instances_of(dataset.pairs[index], truth) if instances else None

    for index, image, truth, objects in read_ahead(read, range(len(dataset)) if indices is None else indices):
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), autocast:
            labels = labels_of(pixels.contiguous(memory_format=torch.channels_last))
        pair, prediction = dataset.pairs[index], labels[0].cpu().numpy()
        confusion = ConfusionMatrix(len(dataset.classes))
        _count(confusion, prediction, truth, pair)
        outline = BoundaryCounts(len(dataset.classes)) if boundary else None
        if outline:
            outline.update(prediction, truth)
        if keep:
            keep(pair, prediction)
        weighted = None if objects is None else official.instance_counts(prediction, objects)
        size = (truth.shape[0], truth.shape[1])
        yield ImageCounts(index, pair.name, size, confusion.sparse(), outline, weighted)


def _count(confusion: ConfusionMatrix, prediction: UInt8Array, truth: UInt8Array, pair: Pair) -> None:
    """Raises: DataError naming the label file for a prediction of another size, or with ids outside the classes."""
    if prediction.shape != truth.shape:
        sizes = (f"{'x'.join(map(str, reversed(array.shape)))}" for array in (prediction, truth))
        raise DataError("the prediction for {2} is {0} but its label is {1}".format(*sizes, pair.label))
    try:
        confusion.update(prediction, truth)
    except ValueError as error:
        raise DataError(f"{pair.label} cannot be scored: {error}") from None


def _instances_of(pair: Pair, truth: UInt8Array) -> Instances:
    path = official.instance_file(pair.label)
    assert path  # whoever asks for instances has looked
    objects = official.read_instances(path)
    if objects.shape != truth.shape:
        raise DataError(
            f"{path} is {objects.shape[1]}x{objects.shape[0]} but {pair.label} is {truth.shape[1]}x{truth.shape[0]}; "
            "they must have the same size"
        )
    return objects


def evaluate(
    labels_of: LabelsFunction,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConfusionMatrix:
    """The confusion matrix of a net over a split.

    Args: indices: the images to score, all by default. progress: called with (images done, images in all).
    """
    indices = range(len(dataset)) if indices is None else indices
    confusion = ConfusionMatrix(len(dataset.classes))
    counted = count_images(labels_of, dataset, device=device, precision=precision, indices=indices)
    for done, image in enumerate(counted, 1):
        confusion.add(image.confusion)
        if progress:
            progress(done, len(indices))
    return confusion


# --- several processes ---


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun started; one alone otherwise."""

    rank: int = 0
    count: int = 1

    def broadcast(self, value: Result) -> Result:
        """The first process's value."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, on the first process; an empty list on the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(value, values)
        return values or []

    def agree(self, action: Callable[[], Result]) -> Result:
        """Do something on every process.

        Raises: on the first process, the first error that any of them met; SystemExit with the same code on the
            others, so that it is printed once and nobody waits for one that has left.
        """
        outcome: Result | None = None
        error: Segmv3Error | None = None
        try:
            outcome = action()
        except Interrupted:  # the launcher stops all processes alike
            raise
        except Segmv3Error as met:
            error = met
        errors: list[Segmv3Error | None] = [error]
        if self.count > 1:
            errors = [None] * self.count
            torch.distributed.all_gather_object(errors, error)
        first = next((met for met in errors if met), None)
        if first and self.rank == 0:
            raise first
        if first:
            raise SystemExit(first.exit_code)
        return outcome  # type: ignore[return-value]


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, over gloo; with CUDA each takes the GPU of its local rank.

    Raises: ResourceError when there are fewer GPUs than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes()
        return
    if device.type == "cuda":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if here > torch.cuda.device_count():
            raise ResourceError(f"{here} processes were started here for {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("gloo")
    try:
        yield Processes(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()


def merge(shares: Sequence[Sequence[ImageCounts]], dataset: Dataset, count: int) -> list[ImageCounts]:
    """The counts of all processes in the order of the data set.

    Raises: EvaluationError unless each of the first `count` images was counted exactly once, under its name.
    """
    images = sorted((image for share in shares for image in share), key=lambda image: image.index)
    found = [image.index for image in images]
    if found != list(range(count)):
        twice = sorted({index for index in found if found.count(index) > 1})
        missing = sorted(set(range(count)) - set(found))
        raise EvaluationError(
            f"{count:,} images were to be counted once each, but {len(missing):,} are missing and {len(twice):,} were "
            f"counted again (first: {dataset.pairs[(missing or twice or found)[0] % len(dataset)].name}); not reported"
        )
    for image in images:
        if image.name != dataset.pairs[image.index].name:
            raise EvaluationError(
                f"image {image.index} is {dataset.pairs[image.index].name} on one process and {image.name} on "
                "another: they read different data; not reported"
            )
    return images


# --- the scores ---


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
