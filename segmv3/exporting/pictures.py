"""Images to prove an export with, and to calibrate one for int8."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from segmv3.config import Data
from segmv3.convert.int8 import ENOUGH_IMAGES
from segmv3.data.class_folders import open_pictures
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.view import View, center_crop
from segmv3.errors import DataError
from segmv3.evaluation.counting import open_labelled
from segmv3.images import UInt8Array, read_image
from segmv3.labels import Classes
from segmv3.mini_city import render_scene
from segmv3.prediction.listing import ImageSource
from segmv3.prediction.sources import find_source
from segmv3.runtime.backends import Size
from segmv3.runtime.parity import Truth

_USUAL_IMAGES = 16
_DRAWN_SIZE: Size = (512, 1024)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pictures:
    """Images to prove an export with, and to calibrate one for int8."""

    origin: str
    """Where they are from, for the receipt."""
    read: tuple[Callable[[], tuple[UInt8Array, Truth]], ...]
    """Each reads one image, uint8 H x W x 3 RGB, and its truth."""
    calibration: tuple[Callable[[], UInt8Array], ...] = ()
    """Each reads one image whose values int8 is scaled by."""
    calibration_origin: str = ""
    classes: Classes | None = None
    """Classes of the truths."""
    drawn: bool = False
    names: tuple[str, ...] = ()
    """Class folders of the truths, for a classifier."""

    def seen_as(self, view: View) -> "Pictures":
        """The same, cropped as a classifier sees them."""

        def crop(read: Callable[[], tuple[UInt8Array, Truth]]) -> tuple[UInt8Array, Truth]:
            image, truth = read()
            return center_crop(image, view), truth

        def bare(read: Callable[[], UInt8Array]) -> UInt8Array:
            return center_crop(read(), view)

        read = tuple(partial(crop, each) for each in self.read)
        return replace(self, read=read, calibration=tuple(partial(bare, e) for e in self.calibration))


def drawn() -> Pictures:
    """Two scenes of mini-city: they prove that two nets compute the same, and nothing about a street."""

    def scene(index: int) -> tuple[UInt8Array, None]:
        return render_scene("val", index, size=_DRAWN_SIZE, seed=0)[0], None

    return Pictures("2 drawn scenes of mini-city", (partial(scene, 0), partial(scene, 1)), drawn=True)


def photographs(source: str, limit: int | None = None) -> Pictures:
    """Images without labels; int8 is calibrated on the same.

    Args:
        source: a file, folder, glob pattern or list, as `segmv3 predict` takes it.
        limit: how many to compare at most, spread evenly; 16 by default.

    Raises:
        DataError: there are none.
    """
    found = find_source(source)
    if not isinstance(found, ImageSource):
        raise DataError(f"{source} is a video; name images or a folder of them")
    chosen = _spread(found.paths, limit or _USUAL_IMAGES)
    return Pictures(
        f"{len(chosen)} of {len(found.paths)} images of {source}",
        tuple(partial(_photograph, path) for path in chosen),
        tuple(partial(read_image, path) for path in _spread(found.paths, ENOUGH_IMAGES)),
        source,
    )


def labelled(data: Data, split: str, limit: int | None = None, *, whole: bool = False) -> Pictures:
    """Images with labels; int8 is calibrated on the train split.

    Args:
        limit: how many to compare at most, spread evenly; 16 by default.
        whole: compare all by default.

    Raises:
        DataError: the data cannot be used.
    """
    dataset = open_labelled(data, split)
    chosen = _spread(range(len(dataset)), limit or (len(dataset) if whole else _USUAL_IMAGES))
    seen, origin = _calibration_split(data, dataset)
    return Pictures(
        f"{len(chosen)} of {len(dataset)} images of {dataset.title} {split} ({data.root})",
        tuple(partial(dataset.read, index) for index in chosen),
        tuple(partial(read_image, pair.image) for pair in _spread(seen.pairs, ENOUGH_IMAGES)),
        origin,
        dataset.classes,
    )


def in_folders(root: Path, split: str, limit: int | None = None, *, whole: bool = False) -> Pictures:
    """Pictures in one folder a class, for a classifier; as `labelled`.

    Args:
        root: the folder that holds `val/CLASS/*.jpg`.

    Raises:
        DataError: the folder holds none.
    """
    found = open_pictures(root, split)
    chosen = _spread(range(len(found)), limit or (len(found) if whole else _USUAL_IMAGES))
    try:
        seen, flatters = open_pictures(root, "train"), ""
    except DataError:
        seen, flatters = found, ", as there is no train split: the scores are flattered"
    return Pictures(
        f"{len(chosen)} of {len(found)} pictures of {found.title} {split} ({root})",
        tuple(partial(found.read, index) for index in chosen),
        tuple(partial(read_image, seen.path(index)) for index in _spread(range(len(seen)), ENOUGH_IMAGES)),
        f"{found.title} {seen.split}{flatters}",
        names=found.classes,
    )


def _photograph(path: Path) -> tuple[UInt8Array, None]:
    return read_image(path), None


def _calibration_split(data: Data, dataset: Dataset) -> tuple[Dataset, str]:
    """Scales taken from the images that are scored would flatter the score."""
    try:
        train = dataset if dataset.split == "train" else open_dataset(data, "train")
    except DataError:
        return dataset, f"{dataset.title} {dataset.split}, as there is no train split: the scores are flattered"
    return train, f"{train.title} train"


def _spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """So many of them, evenly spread: neighbours in a folder are often frames of one street."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[index * len(items) // count] for index in range(count))
