"""Where the images and labels of a data set lie, and reading one pair of them.

A data set is a list of (image, label) paths, paired by stem in both directions, and the table that turns its
stored ids into train ids. Files are only ever read.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from segmv3.config import Data
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
    """The stem they share; unique in its split."""
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
        return hashlib.sha256((names + (self.extra.fingerprint() if self.extra else "")).encode()).hexdigest()


@dataclass(frozen=True)
class Extra(Dataset):
    """Images with coarse or predicted labels."""

    skipped: int
    """Images without a label, left out."""

    def fingerprint(self) -> str:
        """SHA-256 over the names and the sizes of the label files: labels predicted anew by another net are others."""
        facts = [f"{pair.name} {_bytes(pair.label)}" for pair in self.pairs]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: the check says so
        return 0


def open_dataset(data: Data, split: str) -> Dataset:
    """Find the pairs of a split, without decoding any.

    Raises: DataError when the root is missing or nested wrongly, the split is empty, or a file has no partner.
    """
    root = data.root
    if not split or Path(split).name != split:
        raise DataError(f"{split!r} is no split; it is the name of a folder, such as train or val")
    if not root.is_dir():
        near = first_existing_parent(root)
        raise DataError(f"data root {root} does not exist ({near} does); set --data.root, see data/README.md")
    return _open_cityscapes(root, split) if data.dataset == "cityscapes" else _open_folder(data, split)


def first_existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _open_cityscapes(root: Path, split: str) -> Dataset:
    image_root = root / "leftImg8bit" / split
    images = by_stem(visible_files(image_root), "_leftImg8bit")
    if not images:
        raise DataError(nothing_in(image_root, root, split))
    label_root = root / "gtFine" / split
    files = visible_files(label_root)
    tables = {
        "_gtFine_labelTrainIds": cityscapes_label_train_ids(),
        "_gtFine_labelIds": cityscapes_label_ids(),
    }
    labels: dict[str, tuple[Path, LabelTable]] = {}
    for suffix, table in tables.items():  # labelIds come last and win where both exist
        labels |= {stem: (path, table) for stem, path in by_stem(files, suffix).items()}
    if not labels:
        raise DataError(nothing_in(label_root, root, split, "*_labelIds.png or *_labelTrainIds.png"))
    _check_partners(set(images), set(labels), split)
    wrong_city = next((p for p in images.values() if p.parent.name != p.name.split("_")[0]), None)
    if wrong_city:
        raise DataError(f"{wrong_city} lies in the folder of another city; move it to {wrong_city.name.split('_')[0]}/")
    pairs = tuple(Pair(stem, images[stem], *labels[stem]) for stem in sorted(images))
    title = (
        "mini-city" if (root / "mini-city.json").is_file() else "Cityscapes"
    )  # the same layout, not the same streets
    return Dataset(title, split, cityscapes_classes(), pairs)


def _open_folder(data: Data, split: str) -> Dataset:
    root = data.root
    nested = sorted(p.parent for p in (*root.glob("*/classes.json"), *root.glob("*/classes.txt")))
    if nested and not any((root / name).is_file() for name in ("classes.json", "classes.txt")):
        raise DataError(f"no classes.json or classes.txt in {root}; did you mean --data.root {nested[0]}?")
    classes, table = read_classes(root)
    # <split>/images is CamVid's layout, images/<split> the other usual one
    layouts = [
        (root / split / "images", root / split / "labels"),
        (root / "images" / split, root / "labels" / split),
    ]
    image_root, label_root = next((pair for pair in layouts if pair[0].is_dir()), layouts[0])
    images = by_stem(visible_files(image_root))
    if not images:
        raise DataError(nothing_in(image_root, root, split))
    labels = by_stem(visible_files(label_root))
    if not labels:
        raise DataError(nothing_in(label_root, root, split))
    _check_partners(set(images), set(labels), split)
    pairs = tuple(Pair(stem, images[stem], labels[stem], table) for stem in sorted(images))
    return Dataset("CamVid" if data.dataset == "camvid" else root.resolve().name, split, classes, pairs)


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
        found |= {name: (path, table) for name, path in _by_name(labels, label_root, suffix, nested).items()}
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


def _by_name(files: list[Path], root: Path, suffix: str, nested: bool) -> dict[str, Path]:
    if not nested:
        return by_stem(files, suffix)
    ways = {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    return {way.removesuffix(suffix): path for way, path in ways.items() if way.endswith(suffix)}


def visible_files(folder: Path) -> list[Path]:
    """Image files below a folder; names with a leading dot (.DS_Store, ._x.png, .cache/) are not data."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def by_stem(files: Iterable[Path], suffix: str = "") -> dict[str, Path]:
    """Files whose stem ends in `suffix`, by the stem before it.

    Raises: DataError when two files share a stem: pairing would be a guess.
    """
    found: dict[str, Path] = {}
    for path in files:
        if path.stem.endswith(suffix):
            stem = path.stem.removesuffix(suffix)
            if stem in found:
                raise DataError(f"{found[stem]} and {path} share the name {stem}; keep one of them")
            found[stem] = path
    return found


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
        count = len(visible_files(other / inside))
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
