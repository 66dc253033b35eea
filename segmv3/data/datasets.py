"""Where the images and labels of a data set lie, and reading one pair of them.

A data set is a list of (image, label) paths, paired by stem in both directions, and the table that turns its
stored ids into train ids. Files are only ever read.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from segmv3.config import Data
from segmv3.errors import DataError
from segmv3.images import SUFFIXES, UInt8Array, read_ids, read_image
from segmv3.labels import (
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
        return hashlib.sha256("\n".join(pair.name for pair in self.pairs).encode()).hexdigest()


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
