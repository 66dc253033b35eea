"""The loop over a validation set: what each image adds to the scores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segmv3 import official
from segmv3.config import Data, Precision
from segmv3.data.datasets import Dataset, Pair, find_split, opened
from segmv3.data.listing import city_of
from segmv3.errors import DataError, EvaluationError
from segmv3.evaluation.labelling import ConfidentFunction, LabelsFunction
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, cityscapes_classes
from segmv3.metrics import BoundaryCounts, ConfusionMatrix, Triplet
from segmv3.pipeline import work_ahead
from segmv3.results.calibration import Calibration

Instances = NDArray[np.uint16]

Keep = Callable[[str, UInt8Array, UInt8Array, UInt8Array], object]


def open_labelled(data: Data, split: str) -> Dataset:
    """Open a split for scoring; the error for a test split says that its labels are kept back.

    Args:
        data: which data set.
        split: part of it.

    Raises:
        DataError: as `open_dataset`, and for a test split with images but without labels.
    """
    found = find_split(data, split)
    if split == "test" and found.images and not found.labels:
        raise DataError(_TEST_SPLIT.format(data.root, "has no labels"))
    dataset = opened(found)
    if split == "test" and not (dataset.read(0)[1] != IGNORE).any():  # as in gtFine_trainvaltest.zip
        raise DataError(_TEST_SPLIT.format(data.root, "has only void labels"))
    return dataset


_TEST_SPLIT = "'test' of {} is the test split and {}: they are kept back, there is nothing to score; use --split val"


def is_cityscapes(dataset: Dataset) -> bool:
    """Whether a data set has Cityscapes' layout and classes: the folder of an image is its city."""
    return dataset.classes == cityscapes_classes() and all(
        p.image.parent.name == city_of(p.name) for p in dataset.pairs
    )


def has_instances(dataset: Dataset) -> bool:
    """Whether every label has an `*_instanceIds.png` of Cityscapes beside it."""
    return is_cityscapes(dataset) and all(official.instance_file(pair.label) for pair in dataset.pairs)


@dataclass(frozen=True)
class ImageCounts:
    """What one image adds to the scores."""

    index: int
    """Index in the data set."""
    name: str
    size: tuple[int, int]
    """Height and width of its ground truth."""
    confusion: tuple[Triplet, ...]
    """Sparse confusion matrix of its labelled pixels."""
    boundary: BoundaryCounts | None = None
    instances: NDArray[np.float64] | None = None
    """As `segmv3.official.instance_counts` returns them."""
    calibration: Calibration | None = None


def count_images(
    labels_of: LabelsFunction | ConfidentFunction,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    indices: Sequence[int] | None = None,
    boundary: bool = False,
    instances: bool = False,
    keep: Keep | None = None,
) -> Iterator[ImageCounts]:
    """Run a net over a split and count its pixels, at the size of the ground truth.

    Args:
        labels_of: the net, as `segmv3.evaluation.labelling` makes it; a confident one is also judged for calibration.
        dataset: an open split.
        device: where the images go.
        precision: of torch's autocast.
        indices: the images, all by default.
        boundary: count for `BoundaryCounts` too.
        instances: count for the instance-weighted IoU too; every label needs its `*_instanceIds.png`.
        keep: called with the name, the image, the ground truth and the prediction of each image.

    Yields:
        The counts of one image after the other, in the order of `indices`.

    Raises:
        DataError: names a file that cannot be read, or a label that the prediction does not fit.
    """

    def read(index: int) -> tuple[int, UInt8Array, UInt8Array, Instances | None]:
        image, truth = dataset.read(index)
        return index, image, truth, _instances_of(dataset.pairs[index], truth) if instances else None

    classes = len(dataset.classes)
    indices = range(len(dataset)) if indices is None else indices
    with work_ahead(read, indices, threads=2) as samples:
        for index, image, truth, objects in samples:
            pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
            with torch.inference_mode(), autocast:
                found = labels_of(pixels.contiguous(memory_format=torch.channels_last))
            labels, *confidence = (found,) if isinstance(found, torch.Tensor) else found
            pair, prediction = dataset.pairs[index], labels[0].cpu().numpy()
            confusion, outline, calibration = ConfusionMatrix(classes), None, None
            _count(confusion, prediction, truth, pair)
            if boundary:
                outline = BoundaryCounts(classes)
                outline.update(prediction, truth)
            if confidence:
                known, calibration = truth != IGNORE, Calibration()
                calibration.add(confidence[0][0].cpu().numpy()[known], (prediction == truth)[known])
            if keep:
                keep(pair.name, image, truth, prediction)
            weighted = None if objects is None else official.instance_counts(prediction, objects)
            size = (truth.shape[0], truth.shape[1])
            yield ImageCounts(index, pair.name, size, confusion.sparse(), outline, weighted, calibration)


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


def confusion_matrix(
    labels_of: LabelsFunction,
    dataset: Dataset,
    *,
    device: torch.device,
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConfusionMatrix:
    """The confusion matrix of a net over a split.

    Args:
        labels_of: the net, as `segmv3.evaluation.labelling` makes it.
        dataset: an open split.
        device: where the images go.
        indices: the images to score, all by default.
        progress: called with (images done, images in all).
    """
    indices = range(len(dataset)) if indices is None else indices
    confusion = ConfusionMatrix(len(dataset.classes))
    for done, image in enumerate(count_images(labels_of, dataset, device=device, indices=indices), 1):
        confusion.add(image.confusion)
        if progress:
            progress(done, len(indices))
    return confusion


def merge(shares: Sequence[Sequence[ImageCounts]], dataset: Dataset, count: int) -> list[ImageCounts]:
    """Put the counts of all processes into the order of the data set.

    Args:
        shares: what each process counted.
        dataset: what was scored.
        count: how many images of it.

    Raises:
        EvaluationError: unless each of the first `count` images was counted exactly once, under its name.
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
