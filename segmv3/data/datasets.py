"""Where the images and labels of a data set lie, and reading one pair of them.

A data set is a list of (image, label) paths, paired by name in both directions, and the table that turns its
stored ids into train ids. Files are only ever read.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segmv3.config import Data
from segmv3.data.listing import Pair as Pair
from segmv3.data.listing import Split, first_existing_parent, grouped, only, sizes_differ, visible_files, warn_of
from segmv3.data.sources import source_of, train_ids
from segmv3.errors import DataError
from segmv3.files import text_sha256
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import IGNORE, Classes, LabelTable


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

        Args:
            index: its place in `pairs`.

        Returns:
            The image, uint8 H x W x 3 RGB, and the labels, uint8 H x W of train ids with 255 = ignore.

        Raises:
            DataError: a file is damaged, the sizes differ, or an id is illegal.
        """
        pair = self.pairs[index]
        image = read_image(pair.image)
        labels = pair.table.to_train_ids(read_ids(pair.label), pair.label)
        if image.shape[:2] != labels.shape:
            raise DataError(sizes_differ(pair, image.shape, labels.shape))
        return image, labels

    def fingerprint(self) -> str:
        """SHA-256 over the names in order: two data sets with the same one give the same batches."""
        names = "\n".join(pair.name for pair in self.pairs)
        return text_sha256(names + (self.extra.fingerprint() if self.extra else ""))


@dataclass(frozen=True)
class Extra(Dataset):
    """Images with coarse or predicted labels."""

    skipped: int
    """Images without a label, left out."""

    def fingerprint(self) -> str:
        """SHA-256 over the names and the sizes of the label files: labels predicted anew by another net are others."""
        facts = [f"{pair.name} {pair.label.stat().st_size if pair.label.exists() else 0}" for pair in self.pairs]
        return text_sha256("\n".join(facts))


class Unlabelled(Extra):
    """Images without labels: all of their pixels are ignored. Their pairs name the image in the place of the label."""

    def read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        image = read_image(self.pairs[index].image)
        return image, np.full(image.shape[:2], IGNORE, np.uint8)


def open_dataset(data: Data, split: str) -> Dataset:
    """Find the pairs of a split, without decoding any.

    Args:
        data: the data set.
        split: such as `train`.

    Raises:
        DataError: the root is missing or nested wrongly, the split is empty, or a file has no partner.

    Warns:
        Segmv3Warning: for files that could be images and are left out.
    """
    return opened(find_split(data, split))


def opened(found: Split) -> Dataset:
    """`open_dataset` of a split that was listed."""
    warn_of(found.left_out)
    if found.fault:
        raise found.fault
    return Dataset(found.title, found.name, found.classes, found.pairs)


def find_split(data: Data, split: str) -> Split:
    """List the files of a split.

    Raises:
        DataError: the root is missing, its classes are not known, or its layout is one that is not read.
    """
    if not split or Path(split).name != split:
        raise DataError(f"{split!r} is no split; it is the name of a folder, such as train or val")
    if not data.root.is_dir():
        near = first_existing_parent(data.root)
        raise DataError(f"data root {data.root} does not exist ({near} does); set --data.root, see data/README.md")
    return source_of(data).find(data.root, split)


def open_extra(data: Data, dataset: Dataset) -> Extra | None:
    """The pairs of `data.extra_images` and `data.extra_labels`, without decoding any; None without extra images.

    An image `a.jpg` has the label `a_labels.png`, as `segmv3 predict` writes it (train ids of the data set), or one
    named and stored as the data set does: `a.png`, or for Cityscapes `a_gtCoarse_labelIds.png` and the like. They are
    found by name wherever they lie; where two images share a name, by the way below their folders.

    Args:
        data: the data set.
        dataset: its training images.

    Raises:
        DataError: a folder is missing, or no image has a label.
    """
    if not data.extra_images:
        return None
    image_root = _folder(data.extra_images, "--data.extra-images")
    if not data.extra_labels:
        return _open_unlabelled(image_root, dataset)
    label_root = _folder(data.extra_labels, "--data.extra-labels")
    if image_root.resolve() == label_root.resolve():
        raise DataError(f"{image_root} cannot hold images and labels alike; set --data.extra-labels to another folder")
    images, labels = visible_files(image_root), visible_files(label_root)
    if image_root.is_relative_to(label_root):  # one inside the other: a file is either an image or a label
        labels = sorted({*labels} - {*images})
    else:
        images = sorted({*images} - {*labels})
    nested = len({path.stem for path in images}) < len(images)
    found: dict[str, tuple[Path, LabelTable]] = {}
    source = source_of(data)
    tables = source.extra_tables(data.root) | {"_labels": train_ids(dataset.classes)}  # predictions come last and win
    for suffix, table in tables.items():
        stored = only(grouped(labels, suffix, label_root if nested else None))
        found |= {name: (path, table) for name, path in stored.items()}
    pairs = []
    for path in images:
        file = path.relative_to(image_root).as_posix() if nested else path.name
        name = file.removesuffix(path.suffix)
        keys = (file, name, name.removesuffix(source.image_suffix))  # `a.jpg_labels.png` lies beside that of `a.png`
        key = next((key for key in keys if key in found), None)
        if key:
            pairs.append(Pair(name, path, *found[key]))
    if not pairs:
        raise DataError(
            f"none of the {len(images):,} images in {image_root} has a label among the {len(labels):,} files of "
            f"{label_root}; a.jpg needs a_labels.png, as segmv3 predict --save labels writes it"
        )
    return Extra(dataset.title, "extra", dataset.classes, tuple(pairs), skipped=len(images) - len(pairs))


def _folder(path: Path, flag: str) -> Path:
    folder = path.absolute()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder ({first_existing_parent(folder)} is one); set {flag}")
    return folder


def _open_unlabelled(root: Path, dataset: Dataset) -> Unlabelled:
    table = train_ids(dataset.classes)
    files = [(path.relative_to(root).as_posix(), path) for path in visible_files(root)]
    if not files:
        raise DataError(f"{root} holds no images; set --data.extra-images")
    pairs = tuple(Pair(name, path, path, table) for name, path in files)
    return Unlabelled(dataset.title, "extra", dataset.classes, pairs, skipped=0)
