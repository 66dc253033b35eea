"""Images with boxes in COCO's format, read and checked."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.data.check import digest_some
from segmv3.data.datasets import Dataset
from segmv3.data.listing import count_of, warn_of
from segmv3.detection.areas import with_areas
from segmv3.detection.settings import BoxData
from segmv3.errors import DataError, printable
from segmv3.images import UInt8Array, read_image
from segmv3.labels import Classes, cityscapes_classes, class_name, named_classes
from segmv3.records import read_json, typed

_OVER = 1.0  # pixels by which a box may reach over the edge of its image: tools round

_FAULTS = {
    "outside": ("box reaches outside of its image", "boxes reach outside of their image"),
    "flat": ("box has no area", "boxes have no area"),
    "category": ("annotation is of an unknown category", "annotations are of an unknown category"),
    "image": ("annotation is of an unknown image", "annotations are of an unknown image"),
    "no box": ("annotation has no box", "annotations have no box"),
    "twice": ("annotation has the id of another", "annotations have the id of another"),
}
"""What can be wrong with annotations, of one and of several."""

Faults = dict[str, list[str]]
"""The annotations that cannot be used, by what is wrong with them."""


@dataclass(frozen=True)
class _Image:
    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class _Category:
    id: int
    name: str


@dataclass(frozen=True, eq=False)
class BoxSet:
    """One split of a data set with boxes."""

    title: str
    split: str
    file: Path
    classes: Classes
    names: tuple[str, ...]
    """The images' files below `folder`."""
    folder: Path
    sizes: NDArray[np.int64]
    """Height and width of each image, N x 2."""
    boxes: tuple[NDArray[np.float32], ...]
    """Of each image n x 6: left, top, right, bottom in pixels, class from 0, and 1 for a crowd, else 0."""
    areas: Dataset | None = None
    """The same images with their labels; with it the classes are those of both."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[UInt8Array, UInt8Array | None]:
        """An image, uint8 H x W x 3 RGB, and its labels, uint8 H x W, where there are areas.

        Raises:
            DataError: a file is damaged, or of another size than the annotations say.
        """
        path = self.folder / self.names[index]
        image, labels = self.areas.read(index) if self.areas else (read_image(path), None)
        height, width = self.sizes[index]
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path} is {image.shape[1]} x {image.shape[0]}, but {self.file} says {width} x {height} "
                "(width x height); mend one of them"
            )
        return image, labels

    @property
    def most_boxes(self) -> int:
        """Of any image, without crowds; at least 1."""
        return max([1, *(int((each[:, 5] == 0).sum()) for each in self.boxes)])

    def counts(self, indices: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Boxes of each class, without crowds, in all images or in some."""
        some = self.boxes if indices is None else [self.boxes[index] for index in indices]
        of = [each[each[:, 5] == 0, 4].astype(int) for each in some]
        return np.bincount(np.concatenate(of), minlength=len(self.classes))

    def fingerprint(self) -> str:
        """SHA-256 over names and boxes: two data sets with the same one give the same batches."""
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for each in self.boxes:
            digest.update(each.tobytes() + b"\n")
        return digest.hexdigest()


def open_boxes(data: BoxData, split: str) -> BoxSet:
    """Read and check the annotations of a split; no image is decoded.

    Raises:
        DataError: the file is missing or no COCO file, ids occur twice, images are missing, or boxes cannot be used and
            `data.faulty` is "refuse".

    Warns:
        Segmv3Warning: what was left out of the data.
    """
    file = data.root / data.annotations.replace("{split}", split)
    folder = data.root / data.images.replace("{split}", split)
    if not data.root.is_dir():
        raise DataError(f"data root {data.root} does not exist; set --data.root to the folder of the data set")
    try:
        content = typed(read_json(file), dict[str, Any])
        for key in ("images", "annotations", "categories"):
            if key not in content:
                raise ValueError(f"is no COCO file of boxes: it has no {key}")
        images = typed(content["images"], list[_Image], "images")
        categories = sorted(typed(content["categories"], list[_Category], "categories"), key=lambda each: each.id)
        _refuse_twice([each.id for each in images], "images have the id")
        _refuse_twice([each.id for each in categories], "categories have the id")
        _refuse_twice([each.name for each in categories], "categories have the name")
        _refuse_twice([each.file_name for each in images], "images have the file")
        classes = _classes([class_name(each.name) for each in categories])
        boxes, faults = _boxes(typed(content["annotations"], list, "annotations"), images, categories)
    except ValueError as error:
        raise DataError(f"{file} {printable(error)}") from None
    _refuse_missing(images, folder, file)
    text = _told(faults)
    if text and data.faulty == "refuse":
        raise DataError(f"{file}: {text}; mend the file, or leave them out with --data.faulty skip")
    warn_of([f"{file}: left out: {text}"] if text else [])
    sizes = np.array([(each.height, each.width) for each in images], np.int64)
    names = tuple(each.file_name for each in images)
    found = BoxSet(data.root.resolve().name, split, file, classes, names, folder, sizes, boxes)
    return with_areas(found, data) if data.areas else found


def _told(faults: Faults) -> str:
    """`3 boxes have no area (first: annotation 7 of a.png)`, for each kind of fault."""
    return "; ".join(
        f"{count_of(len(found), *_FAULTS[what])} (first: {printable(found[0])[:120]})"
        for what, found in faults.items()
        if found
    )


def _boxes(
    annotations: list[Any], images: list[_Image], categories: list[_Category]
) -> tuple[tuple[NDArray[np.float32], ...], Faults]:
    """The boxes of each image that can be used, and what is wrong with the others."""
    places = {each.id: place for place, each in enumerate(images)}
    labels = {each.id: place for place, each in enumerate(categories)}
    found: list[list[tuple[float, ...]]] = [[] for _ in images]
    faults: Faults = {what: [] for what in _FAULTS}
    seen = set[Any]()
    for number, each in enumerate(annotations):
        each = typed(each, dict, f"annotations[{number}]")
        own = each.get("id", f"number {number + 1}")
        if not isinstance(own, int | str) or not isinstance(each.get("image_id"), int | str):
            raise ValueError(f"annotations[{number}] has no id or no image_id")
        name = f"annotation {own}"
        if each["image_id"] not in places:
            faults["image"].append(f"{name} of image {each['image_id']}")
            continue
        place = places[each["image_id"]]
        about, where = images[place], f"{name} of {images[place].file_name}"
        try:
            left, top, width, height = typed(each.get("bbox"), tuple[float, float, float, float], "bbox")
        except ValueError:
            faults["no box"].append(where)
            continue
        right, bottom = left + width, top + height
        label = labels.get(each["category_id"]) if isinstance(each.get("category_id"), int) else None
        if own in seen:
            faults["twice"].append(where)
        elif label is None:
            faults["category"].append(f"{where}: category {each.get('category_id')}")
        elif width <= 0 or height <= 0:
            faults["flat"].append(where)
        elif min(left, top) < -_OVER or right > about.width + _OVER or bottom > about.height + _OVER:
            faults["outside"].append(
                f"{where}: {left:g} {top:g} {width:g} {height:g} in {about.width} x {about.height}"
            )
        else:
            box = max(left, 0.0), max(top, 0.0), min(right, about.width), min(bottom, about.height)
            found[place].append((*box, label, bool(each.get("iscrowd"))))
        seen.add(own)
    return tuple(np.array(each, np.float32).reshape(-1, 6) for each in found), faults


def _refuse_twice(values: list[Any], what: str) -> None:
    seen = set[Any]()
    for each in values:
        if each in seen:
            raise ValueError(f"is damaged: two {what} {str(each)[:80]}")
        seen.add(each)


def _classes(names: list[str]) -> Classes:
    """Evenly spaced colours, and Cityscapes' own for the names that it has."""
    classes, known = named_classes(*names), cityscapes_classes()
    own = dict(zip(known.names, known.colors, strict=True))
    return replace(
        classes, colors=tuple(own.get(n, color) for n, color in zip(names, classes.colors, strict=True))
    )  # fmt: skip


def _refuse_missing(images: list[_Image], folder: Path, file: Path) -> None:
    """Raises: DataError naming the first image that is not there, or whose name leads out of the folder."""
    if not images:
        raise DataError(f"{file} lists no image")
    for each in images:
        path = PurePosixPath(each.file_name)
        if not each.file_name or path.is_absolute() or ".." in path.parts or "\0" in each.file_name:
            raise DataError(f"{file}: the file name {ascii(each.file_name)[:80]} leads out of {folder}")
        if min(each.width, each.height) < 1:
            raise DataError(f"{file}: {printable(each.file_name)[:120]} has no size")
    there = defaultdict[str, set[str]](set)
    for parent in {os.path.dirname(each.file_name) for each in images}:  # noqa: PTH120 (of a hundred thousand)
        if (folder / parent).is_dir():
            there[parent] = set(os.listdir(folder / parent))  # noqa: PTH208
    lost = [e.file_name for e in images if os.path.basename(e.file_name) not in there[os.path.dirname(e.file_name)]]  # noqa: PTH119, PTH120
    if lost:
        raise DataError(
            f"{len(lost):,} of {len(images):,} images of {file} are missing under {folder} "
            f"(first: {printable(lost[0])[:120]}); set --data.images to the folder they lie in"
        )


def check_images(boxes: BoxSet, progress: Callable[[int, int], None]) -> str:
    """Decode up to 1,000 evenly spaced images of a split.

    Returns:
        A digest of their pixels and of all boxes, by which a run knows its data again.

    Raises:
        DataError: names the first image that is damaged or of another size than its annotations say.
    """

    def digest(index: int) -> bytes:
        return hashlib.blake2b(boxes.read(index)[0].tobytes(), digest_size=16).digest()

    return digest_some(len(boxes), digest, progress, begin=boxes.fingerprint())


def check_same_classes(train: BoxSet, val: BoxSet) -> None:
    """Raises: DataError where train and val have other categories, or one has nothing to learn or to score."""
    if train.classes.names != val.classes.names:
        raise DataError(f"{train.file} and {val.file} have other categories; give both the same list")
    for each in (train, val):
        if not each.counts().sum():
            raise DataError(f"{each.file} has no box")


def describe(boxes: BoxSet) -> Iterator[str]:
    """What a split holds, a line each."""
    sides = np.concatenate([np.sqrt((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])) for b in boxes.boxes])
    crowds = sum(int(each[:, 5].sum()) for each in boxes.boxes)
    empty = sum(1 for each in boxes.boxes if not len(each))
    small, large = (int(each.sum()) for each in (sides < 32, sides >= 96))
    yield (
        f"{boxes.split}: {len(boxes):,} images, {empty:,} without a box; {len(sides):,} boxes, of them {crowds:,} "
        f"crowds, {small:,} below 32 x 32 pixels, {large:,} of 96 x 96 or more"
    )
    named = zip(boxes.classes.names, boxes.counts(), strict=True)
    yield f"{boxes.split}: " + ", ".join(f"{name} {count:,}" for name, count in named)
