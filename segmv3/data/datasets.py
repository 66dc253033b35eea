"""Where the images and labels of a data set lie, and reading one pair of them.

A data set is a list of (image, label) paths, paired by name in both directions, and the table that turns its
stored ids into train ids. Files are only ever read.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from segmv3.config import Data
from segmv3.data.listing import grouped, images_below, only, told, visible_files, warn_of
from segmv3.errors import DataError
from segmv3.images import SUFFIXES, UInt8Array, read_ids, read_image
from segmv3.labels import (
    IGNORE,
    Classes,
    LabelTable,
    cityscapes_classes,
    cityscapes_label_ids,
    cityscapes_label_train_ids,
    read_classes,
)


@dataclass(frozen=True)
class Pair:
    """One image with its label file."""

    name: str
    """The stem they share, or where stems repeat the way below their folders; unique in its split."""
    image: Path
    label: Path
    table: LabelTable


@dataclass(frozen=True)
class Dataset:
    """One split of a data set."""

    title: str
    split: str
    classes: Classes
    pairs: tuple[Pair, ...]
    extra: "Extra | None" = field(default=None, kw_only=True)
    """More pairs that training draws samples from."""

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Decode one pair.

        Returns: image uint8 H x W x 3 RGB, labels uint8 H x W of train ids with 255 = ignore.
        Raises: DataError naming the file for damage, different sizes or illegal ids.
        """
        pair = self.pairs[index]
        image = read_image(pair.image)
        labels = pair.table.to_train_ids(read_ids(pair.label), pair.label)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{pair.image} is {image.shape[1]}x{image.shape[0]} but its label {pair.label} is "
                f"{labels.shape[1]}x{labels.shape[0]}; they must have the same size"
            )
        return image, labels

    def fingerprint(self) -> str:
        """SHA-256 over the names in order: two data sets with the same one give the same batches."""
        names = "\n".join(pair.name for pair in self.pairs)
        return _digest(names + (self.extra.fingerprint() if self.extra else ""))


@dataclass(frozen=True)
class Extra(Dataset):
    """Images with coarse or predicted labels."""

    skipped: int
    """Images without a label, left out."""

    def fingerprint(self) -> str:
        """SHA-256 over the names and the sizes of the label files: labels predicted anew by another net are others."""
        facts = [f"{pair.name} {_bytes(pair.label)}" for pair in self.pairs]
        return _digest("\n".join(facts))


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()  # names need not be UTF-8


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: the check says so
        return 0


@dataclass(frozen=True)
class Split:
    """What lies on the disk for one split, whether it fits together or not."""

    title: str
    name: str
    root: Path
    classes: Classes
    image_root: Path
    label_root: Path
    images: dict[str, list[Path]]
    """By the name that an image shares with its label; more than one path where names repeat."""
    labels: dict[str, list[tuple[Path, LabelTable]]]
    left_out: tuple[str, ...]
    """What lies there and is not taken: a line each."""


def open_dataset(data: Data, split: str) -> Dataset:
    """Find the pairs of a split, without decoding any.

    Raises: DataError when the root is missing or nested wrongly, the split is empty, or a file has no partner.
    Warns: Segmv3Warning for files that could be images and are left out.
    """
    found = find_split(data, split)
    warn_of(found.left_out)
    return paired(found)


def find_split(data: Data, split: str) -> Split:
    """List the files of a split.

    Raises: DataError when the root is missing, its classes are not known, or its layout is one that is not read.
    """
    root = data.root
    if not split or Path(split).name != split:
        raise DataError(f"{split!r} is no split; it is the name of a folder, such as train or val")
    if not root.is_dir():
        near = first_existing_parent(root)
        raise DataError(f"data root {root} does not exist ({near} does); set --data.root, see data/README.md")
    _refuse_idd(root / "gtFine" / split)
    return _find_cityscapes(root, split) if data.dataset == "cityscapes" else _find_folder(data, split)


def paired(found: Split) -> Dataset:
    """The data set of a split that fits together.

    Raises: DataError for the first thing that does not.
    """
    cityscapes = found.classes == cityscapes_classes() and found.image_root.parent.name == "leftImg8bit"
    if not found.images:
        raise DataError(nothing_in(found.image_root, found.root, found.name))
    if not found.labels:
        files = "*_labelIds.png or *_labelTrainIds.png" if cityscapes else "images"
        raise DataError(nothing_in(found.label_root, found.root, found.name, files))
    images, labels = only(found.images), {name: labels[0] for name, labels in found.labels.items()}
    only({name: [path for path, _ in each] for name, each in found.labels.items()})
    _check_partners(set(images), set(labels), found.name)
    wrong_city = next(iter(strays(images.values())), None) if cityscapes else None
    if wrong_city:
        raise DataError(f"{wrong_city} lies in the folder of another city; move it to {wrong_city.name.split('_')[0]}/")
    pairs = tuple(Pair(name, images[name], *labels[name]) for name in sorted(images))
    return Dataset(found.title, found.name, found.classes, pairs)


def first_existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def strays(images: Iterable[Path]) -> list[Path]:
    """Those that do not lie in the folder of the city that begins their name."""
    return [path for path in images if path.parent.name != path.name.split("_")[0]]


def _refuse_idd(labels: Path) -> None:
    """Raises: DataError for the India Driving Dataset, which looks like Cityscapes from afar."""
    try:
        files = images_below(labels).paths
    except DataError:  # told by whoever needs that folder
        return
    other = next((path for path in files if re.search(r"_gtFine_labellevel\d[iI]ds\.png$", path)), None)
    if other:
        raise DataError(
            f"{other} is a label of IDD, whose layout is not known; known are Cityscapes' own "
            "(*_gtFine_labelIds.png) and images/SPLIT with labels/SPLIT and a classes.json, see data/README.md"
        )


def _find_cityscapes(root: Path, split: str) -> Split:
    image_root, label_root = root / "leftImg8bit" / split, root / "gtFine" / split
    listed, stored = images_below(image_root), images_below(label_root)
    unnamed = [path for path in listed.paths if not Path(path).stem.endswith("_leftImg8bit")]
    left_out = dict(listed.left_out) | ({"without _leftImg8bit in the name": tuple(unnamed)} if unnamed else {})
    tables = {
        "_gtFine_labelTrainIds": cityscapes_label_train_ids(),
        "_gtFine_labelIds": cityscapes_label_ids(),
    }
    labels: dict[str, list[tuple[Path, LabelTable]]] = {}
    for suffix, table in tables.items():  # labelIds come last and win where both exist
        found = grouped(map(Path, stored.paths), suffix)
        labels |= {name: [(path, table) for path in paths] for name, paths in found.items()}
    # the same layout, not the same streets
    title = "mini-city" if (root / "mini-city.json").is_file() else "Cityscapes"
    return Split(
        *(title, split, root, cityscapes_classes(), image_root, label_root),
        grouped(map(Path, listed.paths), "_leftImg8bit"),
        labels,
        (*told(image_root, left_out), *told(label_root, stored.left_out)),
    )


def folders_of(data: Data, split: str) -> list[tuple[Path, Path]]:
    """Where images and labels of a split may lie; the first folder of images that exists is read."""
    root = data.root
    if data.dataset == "cityscapes":
        return [(root / "leftImg8bit" / split, root / "gtFine" / split)]
    masks = root / "labels" / "sem_seg" / "masks" / split
    return [
        (root / split / "images", root / split / "labels"),  # CamVid's
        (root / "images" / split, root / "labels" / split),  # the other usual one
        (root / "images" / "10k" / split, masks),  # BDD100K as its archives unpack
        (root / "images" / "100k" / split, masks),
    ]


def _find_folder(data: Data, split: str) -> Split:
    root = data.root
    nested = sorted(p.parent for p in (*root.glob("*/classes.json"), *root.glob("*/classes.txt")))
    if nested and not any((root / name).exists() for name in ("classes.json", "classes.txt")):
        raise DataError(f"no classes.json or classes.txt in {root}; did you mean --data.root {nested[0]}?")
    classes, table = read_classes(root)
    places = folders_of(data, split)
    image_root, label_root = next((place for place in places if place[0].is_dir()), places[0])
    listed, stored = images_below(image_root), images_below(label_root)
    images, labels = [Path(path) for path in listed.paths], [Path(path) for path in stored.paths]
    # frames of different drives may share a file name; names stay what they were wherever they do not
    by_way = any(len({path.stem for path in files}) < len(files) for files in (images, labels))
    found = grouped(labels, below=label_root if by_way else None)
    return Split(
        "CamVid" if data.dataset == "camvid" else root.resolve().name,
        *(split, root, classes, image_root, label_root),
        grouped(images, below=image_root if by_way else None),
        {name: [(path, table) for path in paths] for name, paths in found.items()},
        (
            *told(image_root, listed.left_out),
            *told(label_root, stored.left_out),
            *_unread(places, image_root, label_root),
        ),
    )


def _unread(places: Sequence[tuple[Path, Path]], image_root: Path, label_root: Path) -> Iterator[str]:
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


def open_extra(data: Data, dataset: Dataset) -> Extra | None:
    """The pairs of `data.extra_images` and `data.extra_labels`, without decoding any; None where these are not set.

    An image `a.jpg` has the label `a_labels.png`, as `segmv3 predict` writes it (train ids of the data set), or one
    named and stored as the data set does: `a.png`, or for Cityscapes `a_gtCoarse_labelIds.png` and the like. They are
    found by name wherever they lie; where two images share a name, by the way below their folders.

    Raises: DataError when a folder is missing or no image has a label.
    """
    if not (data.extra_images and data.extra_labels):
        return None
    image_root, label_root = data.extra_images.absolute(), data.extra_labels.absolute()
    for folder, flag in ((image_root, "--data.extra-images"), (label_root, "--data.extra-labels")):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder ({first_existing_parent(folder)} is one); set {flag}")
    if image_root.resolve() == label_root.resolve():
        raise DataError(f"{image_root} cannot hold images and labels alike; set --data.extra-labels to another folder")
    images, labels = visible_files(image_root), visible_files(label_root)
    if image_root.is_relative_to(label_root):  # one inside the other: a file is either an image or a label
        labels = sorted({*labels} - {*images})
    else:
        images = sorted({*images} - {*labels})
    nested = len({path.stem for path in images}) < len(images)
    found: dict[str, tuple[Path, LabelTable]] = {}
    for suffix, table in _extra_tables(data, dataset).items():  # predictions come last and win
        stored = only(grouped(labels, suffix, label_root if nested else None))
        found |= {name: (path, table) for name, path in stored.items()}
    pairs = []
    for path in images:
        file = path.relative_to(image_root).as_posix() if nested else path.name
        name = file.removesuffix(path.suffix)
        keys = (file, name, name.removesuffix("_leftImg8bit"))  # `a.jpg_labels.png` lies beside that of `a.png`
        key = next((key for key in keys if key in found), None)
        if key:
            pairs.append(Pair(name, path, *found[key]))
    if not pairs:
        raise DataError(
            f"none of the {len(images):,} images in {image_root} has a label among the {len(labels):,} files of "
            f"{label_root}; a.jpg needs a_labels.png, as segmv3 predict --save labels writes it"
        )
    return Extra(dataset.title, "extra", dataset.classes, tuple(pairs), skipped=len(images) - len(pairs))


def _extra_tables(data: Data, dataset: Dataset) -> dict[str, LabelTable]:
    """What may follow the name of an image in the name of its label, and how such a label is stored."""
    predicted = LabelTable("train ids", (*((i, i) for i in range(len(dataset.classes))), (IGNORE, IGNORE)))
    if data.dataset != "cityscapes":
        return {"": dataset.pairs[0].table, "_labels": predicted}
    tables = {"_labelTrainIds": cityscapes_label_train_ids(), "_labelIds": cityscapes_label_ids()}
    stored = {f"_{kind}{suffix}": table for kind in ("gtCoarse", "gtFine") for suffix, table in tables.items()}
    return stored | {"_labels": predicted}


def _check_partners(images: set[str], labels: set[str], split: str) -> None:
    unlabelled, unseen = sorted(images - labels), sorted(labels - images)
    if not unlabelled and not unseen:
        return
    parts = []
    if unlabelled:
        parts.append(_count(len(unlabelled), "image has no label", "images have no label"))
    if unseen:
        parts.append(_count(len(unseen), "label has no image", "labels have no image"))
    first = [*unlabelled, *unseen][:5]
    raise DataError(f"{' and '.join(parts)} in '{split}' (first: {', '.join(first)}). Nothing was done.")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def nothing_in(looked: Path, root: Path, split: str, files: str = "images") -> str:
    """An empty place, and the likeliest reason: a root too high or too deep, a packed zip, another split name."""
    text = f"found 0 {files} under {looked}"
    inside = looked.relative_to(root)
    folders = islice((p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.is_dir()), 1000)
    for other in (root.parent, root.parent.parent, *sorted(folders)):
        try:
            count = len(images_below(other / inside).paths)
        except DataError:  # no place to advise
            continue
        if count:
            doubled = other == root / inside.parts[0]  # leftImg8bit/leftImg8bit, as some unpackers leave it
            remedy = "Move it up one folder." if doubled else f"Use --data.root {other}."
            return f"{text}; did you mean {other / inside} ({count:,} images)? {remedy}"
    archives = sorted(p.name for p in root.glob("*.zip"))
    if archives:
        return f"{text}; {root} holds {', '.join(archives[:3])} still packed: unzip it there"
    parent = next(p for p in (*looked.parents,) if p.is_dir())
    there = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))[:6]
    return f"{text}; {parent} has {', '.join(there) or 'nothing'} (split '{split}'); see data/README.md for the layout"
