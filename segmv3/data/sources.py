"""What is known of each kind of data set: where its files lie, what they are called, what its label ids mean.

A `Source` answers all of that. Opening, checking, training, scoring and submission ask it, and none of them asks which
one it is. `Data.dataset` names one of segmv3's, or holds an object of your own:

    @dataclass(frozen=True)
    class MyStreets(Source):
        def classes(self, root): return named_classes("road", "car")
        def pairs(self, root, split):
            for image in sorted((root / split).glob("*.jpg")):
                yield image, image.with_suffix(".png")
"""

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import extract_tb
from typing import ClassVar, cast

from segmv3.data.listing import Split, city_of, grouped, images_below, importing, told
from segmv3.data.settings import Data, Layout
from segmv3.errors import DataError, Segmv3Error
from segmv3.images import SUFFIXES
from segmv3.labels import (
    IGNORE,
    Classes,
    LabelTable,
    cityscapes_classes,
    cityscapes_label_ids,
    cityscapes_label_train_ids,
    read_classes,
)

Folders = tuple[Path, Path]
"""Where the images of a split lie, and where their labels."""


class Source:
    """A kind of data set. One's own needs `classes` and `pairs`, and is best a frozen dataclass: its fields are
    recorded with a run."""

    image_suffix: ClassVar[str] = ""
    """What the name of an image has behind the part that it shares with its label."""
    label_files: ClassVar[str] = "images"
    """What label files are called in a message."""
    submits: ClassVar[bool] = False
    """Whether the Cityscapes test server and cityscapesScripts know its names and label ids."""

    @abstractmethod
    def classes(self, root: Path) -> Classes:
        """The classes, in the order of their train ids."""

    @abstractmethod
    def pairs(self, root: Path, split: str) -> Iterable[tuple[Path, Path | None]]:
        """The image and the label of each example of a split.

        Args:
            root: the folder of the data set.
            split: such as `train`.

        Returns:
            Pairs of paths. The label is None where there is none.
        """

    def splits(self, root: Path) -> tuple[str, ...]:
        """The splits to look at when none is named."""
        return ("train", "val")

    def title(self, root: Path) -> str:
        """The name of the data set."""
        return type(self).__name__

    def table(self, root: Path) -> LabelTable:
        """What the ids in label files mean: by default they are train ids, and 255 is ignored."""
        return train_ids(self.classes(root), f"the classes of {type(self).__name__}")

    def whole(self, root: Path, split: str) -> int | None:
        """How many images of a split the test server asks for.

        Args:
            root: the folder of the data set.
            split: such as `test`.

        Returns:
            The number; None for a split or data set that the server does not take.
        """
        return None

    def extra_tables(self, root: Path) -> dict[str, LabelTable]:
        """How labels of extra images are named and stored, by what follows the name of the image."""
        return {"": self.table(root)}

    def find(self, root: Path, split: str) -> Split:
        """List the files of a split, whether they fit together or not.

        Args:
            root: the folder of the data set.
            split: such as `train`.

        Returns:
            The images and the labels of the split, by name.

        Raises:
            DataError: the classes are not known, or the layout cannot be read.
        """
        try:
            classes, table, title = self.classes(root), self.table(root), self.title(root)
            pairs = [(Path(image), label and Path(label)) for image, label in self.pairs(root, split)]
        except Segmv3Error:
            raise
        except Exception as error:  # it is the user's own code
            last = extract_tb(error.__traceback__)[-1]
            place = f"({last.filename}, line {last.lineno})"
            name = type(self).__name__
            raise DataError(f"the data source {name} fails with {type(error).__name__}: {error} {place}") from None
        by_way = len({image.stem for image, _ in pairs}) < len(pairs)
        images: dict[str, list[Path]] = {}
        labels: dict[str, list[tuple[Path, LabelTable]]] = {}
        for image, label in pairs:
            below = by_way and image.is_relative_to(root)
            name = image.relative_to(root).with_suffix("").as_posix() if below else image.stem
            images.setdefault(name, []).append(image)
            if label:
                labels.setdefault(name, []).append((label, table))
        return Split(title, split, root, classes, root, root, images, labels)


class FolderSource(Source):
    """A source that pairs the files of two folders by their names."""

    marks: ClassVar[tuple[str, ...]]
    """Files and folders of which its root holds one."""
    pairs_by_way: ClassVar[bool] = True
    """Whether names that repeat are told apart by the folders they lie in."""

    @abstractmethod
    def folders(self, root: Path, split: str) -> Sequence[Folders]:
        """Where a split may lie; the first folder of images that exists is read."""

    def label_tables(self, root: Path) -> Mapping[str, LabelTable]:
        """How labels are stored, by the end of their names; the last one wins where a label is there twice."""
        return {"": self.table(root)}

    def splits(self, root: Path) -> tuple[str, ...]:
        """train and val, and test where there is one."""
        return ("train", "val", *(["test"] if any(images.is_dir() for images, _ in self.folders(root, "test")) else []))

    def pairs(self, root: Path, split: str) -> Iterable[tuple[Path, Path | None]]:
        found = self.find(root, split)
        return [(images[0], found.labels.get(name, [(None,)])[0][0]) for name, images in sorted(found.images.items())]

    def find(self, root: Path, split: str) -> Split:
        _refuse_idd(root, split)
        classes, tables, places = self.classes(root), self.label_tables(root), self.folders(root, split)
        image_root, label_root = next((place for place in places if place[0].is_dir()), places[0])
        listed, stored = images_below(image_root), images_below(label_root)
        paths = [[Path(path) for path in found.paths] for found in (listed, stored)]
        # frames of different drives may share a file name; names stay what they were wherever they do not
        by_way = self.pairs_by_way and any(len({path.stem for path in files}) < len(files) for files in paths)
        labels: dict[str, list[tuple[Path, LabelTable]]] = {}
        for suffix, table in tables.items():
            found = grouped(paths[1], suffix, label_root if by_way else None)
            labels |= {name: [(path, table) for path in each] for name, each in found.items()}
        unnamed = tuple(str(path) for path in paths[0] if not path.stem.endswith(self.image_suffix))
        left_out = dict(listed.left_out) | ({f"without {self.image_suffix} in the name": unnamed} if unnamed else {})
        return Split(
            *(self.title(root), split, root, classes, image_root, label_root),
            grouped(paths[0], self.image_suffix, image_root if by_way else None),
            labels,
            (
                *told(image_root, left_out),
                *told(label_root, stored.left_out),
                *_unread(places, image_root, label_root),
            ),
            label_files=self.label_files,
        )


@dataclass(frozen=True)
class Cityscapes(FolderSource):
    """`leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` and `gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`."""

    marks = ("leftImg8bit", "gtFine")
    image_suffix = "_leftImg8bit"
    label_files = "*_labelIds.png or *_labelTrainIds.png"
    pairs_by_way = False
    submits = True

    def title(self, root: Path) -> str:
        return "mini-city" if (root / "mini-city.json").is_file() else "Cityscapes"

    def whole(self, root: Path, split: str) -> int | None:
        return 1525 if split == "test" and self.title(root) == "Cityscapes" else None

    def classes(self, root: Path) -> Classes:
        return cityscapes_classes()

    def table(self, root: Path) -> LabelTable:
        return cityscapes_label_ids()

    def folders(self, root: Path, split: str) -> Sequence[Folders]:
        return [(root / "leftImg8bit" / split, root / "gtFine" / split)]

    def label_tables(self, root: Path) -> Mapping[str, LabelTable]:
        """Label ids win where train ids lie beside them."""
        return {"_gtFine_labelTrainIds": cityscapes_label_train_ids(), "_gtFine_labelIds": cityscapes_label_ids()}

    def extra_tables(self, root: Path) -> dict[str, LabelTable]:
        fine = self.label_tables(root)
        return {name.replace("gtFine", kind): fine[name] for kind in ("gtCoarse", "gtFine") for name in fine}

    def find(self, root: Path, split: str) -> Split:
        """List the files of a split; an image belongs into the folder of the city that begins its name."""
        found = super().find(root, split)
        images = (paths[0] for _, paths in sorted(found.images.items()))
        return replace(found, misplaced=tuple(i for i in images if i.parent.name != city_of(i.name)))


@dataclass(frozen=True)
class Folder(FolderSource):
    """Images and labels of the same names in two folders, with a `classes.json` or `classes.txt`."""

    marks = ("classes.json", "classes.txt")

    def title(self, root: Path) -> str:
        return root.resolve().name

    def classes(self, root: Path) -> Classes:
        place = self._classes_at(root)
        nested = sorted(path.parent for mark in self.marks for path in root.glob(f"*/{mark}"))
        if place == root and not any((root / mark).exists() for mark in self.marks):
            flat = not any(images.is_dir() for split in ("train", "val") for images, _ in self.folders(root, split))
            if nested or (flat and images_below(root).paths):
                hint = f"did you mean --data.root {nested[0]}?" if nested else importing(root)
                raise DataError(f"no classes.json or classes.txt in {root}; {hint}")
        return read_classes(place)[0]

    def table(self, root: Path) -> LabelTable:
        return read_classes(self._classes_at(root))[1]

    def _classes_at(self, root: Path) -> Path:
        """The root, or the labels of a split as predict writes them. Raises: DataError where splits disagree."""
        if any(os.path.lexists(root / mark) for mark in self.marks):
            return root
        labels = [labels for split in ("train", "val", "test") for _, labels in self.folders(root, split)]
        written = [place for place in labels if (place / "classes.json").is_file()]
        for other in written[1:]:
            if read_classes(other) != read_classes(written[0]):
                raise DataError(f"{written[0]} and {other} are labels of different classes; label one of them again")
        return written[0] if written else root

    def find(self, root: Path, split: str) -> Split:
        """List the files of a split; `a_labels.png` of predict belongs to the image `a`."""
        found = super().find(root, split)
        labels: dict[str, list[tuple[Path, LabelTable]]] = {}
        for name, files in found.labels.items():
            short = name.removesuffix("_labels")
            labels.setdefault(short if name not in found.images and short in found.images else name, []).extend(files)
        return replace(found, labels=labels)

    def folders(self, root: Path, split: str) -> Sequence[Folders]:
        """CamVid's, the other usual one, and BDD100K's as its archives unpack."""
        masks = root / "labels" / "sem_seg" / "masks" / split
        return [
            (root / split / "images", root / split / "labels"),
            (root / "images" / split, root / "labels" / split),
            (root / "images" / "10k" / split, masks),
            (root / "images" / "100k" / split, masks),
        ]


@dataclass(frozen=True)
class CamVid(Folder):
    """CamVid as `Folder` reads it."""

    def title(self, root: Path) -> str:
        return "CamVid"


SOURCES: dict[Layout, FolderSource] = {"cityscapes": Cityscapes(), "folder": Folder(), "camvid": CamVid()}
"""Ours, by the names that flags take. What a folder looks like is the first that fits."""


def source_of(data: Data) -> Source:
    """The source of a data set."""
    return SOURCES[data.dataset] if isinstance(data.dataset, str) else cast(Source, data.dataset)


def name_of(data: Data) -> str:
    """What a source is called in messages and results: its name among ours, or its class."""
    return data.dataset if isinstance(data.dataset, str) else type(data.dataset).__name__


def data_in(root: Path, layout: Layout | None = None) -> Data:
    """The data set in a folder.

    Args:
        root: the folder.
        layout: what it is; by default what it looks like.

    Raises:
        DataError: nothing known lies there.
    """
    return Data(dataset=layout or layout_of(root), root=root)


def layout_of(root: Path) -> Layout:
    """Guess the layout of a folder from what lies there.

    Raises:
        DataError: nothing known lies there.
    """
    if not root.exists():
        raise DataError(f"{root} does not exist; give a config file or the folder of a data set")
    if not root.is_dir():
        raise DataError(f"{root} is neither a config file (.py) nor the folder of a data set")
    for name, source in SOURCES.items():
        if any((root / mark).exists() for mark in source.marks):
            return name
    marks = [mark for source in SOURCES.values() for mark in source.marks]
    places = [f"{place}/{mark}" for place in ("*", "..") for mark in marks]
    near = next((path.parent for place in places for path in sorted(root.glob(place))), None)
    other = importing(root) if images_below(root).paths else "see data/README.md, or add --dataset"
    hint = f"did you mean {near.resolve()}?" if near else other
    raise DataError(f"{root} holds neither leftImg8bit and gtFine nor classes.json or classes.txt; {hint}")


def train_ids(classes: Classes, kind: str = "train ids") -> LabelTable:
    """The table of label files that hold train ids.

    Args:
        classes: those of the data set.
        kind: what such files are called in messages.
    """
    return LabelTable(kind, (*((i, i) for i in range(len(classes))), (IGNORE, IGNORE)))


def _refuse_idd(root: Path, split: str) -> None:
    """Raises: DataError for the India Driving Dataset, which looks like Cityscapes from afar."""
    try:
        files = images_below(root / "gtFine" / split).paths
    except DataError:  # told by whoever needs that folder
        return
    other = next((path for path in files if re.search(r"_gtFine_labellevel\d[iI]ds\.png$", path)), None)
    if other:
        raise DataError(f"{other} is a label of IDD; segmv3 data import {root} NEW makes a data set of IDD's archives")


def _unread(places: Sequence[Folders], image_root: Path, label_root: Path) -> Iterator[str]:
    """Images of the split where nobody looks for them: in another layout, or beside the folders that are read."""
    if not image_root.is_dir():
        return
    others, beside = {images for images, _ in places}, image_root.parent
    inside = [path for path in beside.iterdir() if not path.name.startswith(".")]
    if image_root.name == "images":  # in SPLIT/, where nothing else is looked for; images/ has a folder for each split
        others |= {path for path in inside if path.is_dir()}
    for other in sorted(others - {image_root, label_root}):
        if count := len(images_below(other).paths):
            yield f"{other}: left out {count:,} images; those of {image_root} are read"
    loose = [path.name for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
    if loose:
        yield f"{beside}: left out {len(loose):,} images (first: {min(loose)}); those of {image_root} are read"
