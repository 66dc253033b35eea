"""Pictures for classification: one folder a class, as ImageNet is usually unpacked.

    ROOT/train/n01440764/n01440764_10026.JPEG
    ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG

Class ids are the places of the sorted folder names, torchvision's convention; sorted WordNet ids are ImageNet's
usual order. Files are only ever read.
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmv3.data.check import digest_some
from segmv3.data.listing import images_below, is_image, told, warn_of
from segmv3.errors import DataError
from segmv3.images import UInt8Array, read_image
from segmv3.labels import class_name
from segmv3.pipeline import Progress


@dataclass(frozen=True, eq=False)
class Pictures:
    """One split of a folder of pictures. The names are one array: a million `Path`s would take half a gigabyte."""

    title: str
    split: str
    folder: Path
    classes: tuple[str, ...]
    files: NDArray[np.bytes_]
    """Names below `folder`, as the file system spells them."""
    targets: NDArray[np.int64]
    """The class of each file."""

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.files[index])

    def read(self, index: int) -> tuple[UInt8Array, int]:
        """Decode one picture.

        Returns: image uint8 H x W x 3 RGB, its class.
        Raises: DataError naming the file for damage.
        """
        return read_image(self.path(index)), int(self.targets[index])

    def fingerprint(self) -> str:
        """SHA-256 over the names in order: two data sets with the same one give the same batches."""
        return hashlib.sha256(b"\n".join(self.files)).hexdigest()


def open_pictures(root: Path, split: str) -> Pictures:
    """List the pictures of a split, without decoding any.

    Raises: DataError when the folder is missing or nested wrongly, holds no class, or a class holds no picture.
    """
    if not split or Path(split).name != split:
        raise DataError(f"{split!r} is no split; it is the name of a folder, such as train or val")
    if not root.is_dir():
        raise DataError(f"data root {root} does not exist; set --data.root to the folder that holds train/ and val/")
    folder = root / split
    folders = _folders(folder) if folder.is_dir() else []
    if not folders:
        raise DataError(_no_class_in(folder, root, split))
    classes = _class_names(folders, folder)
    files: list[bytes] = []
    targets: list[int] = []
    empty: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list, _loose(folder))
    for target, name in enumerate(folders):
        found = images_below(f"{folder}/{name}")
        files += sorted(os.fsencode(path[len(str(folder)) + 1 :]) for path in found.paths)
        targets += [target] * len(found.paths)
        if not found.paths:
            empty.append(name)
        for what, paths in found.left_out.items():
            left_out[what] += paths
    warn_of(told(folder, left_out))
    if empty:
        what = "folder holds" if len(empty) == 1 else "folders hold"
        raise DataError(
            f"{len(empty)} class {what} no image under {folder} (first: {', '.join(empty[:5])}); "
            "fill or remove them in train and val alike"
        )
    return Pictures(
        root.resolve().name, split, folder, classes, np.array(files, np.bytes_), np.array(targets, np.int64)
    )


def check_same_classes(train: Pictures, val: Pictures) -> None:
    """Raises: DataError naming the class folders that only one of the splits has."""
    parts = []
    for here, there in ((train, val), (val, train)):
        only = sorted(set(here.classes) - set(there.classes))
        if only:
            parts.append(f"{len(only)} only in {here.split} (first: {', '.join(only[:5])})")
    if parts:
        raise DataError(f"{train.folder.parent}: train and val must have the same class folders; {'; '.join(parts)}")


def check_pictures(pictures: Pictures, progress: Progress = lambda done, total: None) -> str:
    """Decode some files of a split, as `digest_some` does.

    Returns: a digest of their pixels, by which a run knows its data again.
    Raises: DataError naming the first file that cannot be decoded.
    """

    def digest(index: int) -> bytes:  # the pixels themselves are not kept
        pixels = pictures.read(index)[0]
        return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()

    return digest_some(len(pictures), digest, progress)


def _folders(place: Path) -> list[str]:
    """Names of class folders in the order of their normal form, in which they are kept."""
    entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
    lost = next((entry for entry in entries if entry.is_symlink() and not os.path.exists(entry)), None)  # noqa: PTH110
    if lost and not is_image(lost.name):
        raise DataError(f"{lost.path} is a link to nowhere; mend or remove it")
    names = (entry.name for entry in entries if entry.is_dir())
    return sorted(names, key=lambda name: (unicodedata.normalize("NFC", name), name))


def _class_names(folders: list[str], folder: Path) -> tuple[str, ...]:
    """Raises: DataError for a name that could not be read again, two that are one, and for a single class."""
    names = []
    for name in folders:
        try:
            names.append(class_name(name))
        except ValueError as error:
            raise DataError(f"{folder}: {error}; rename the folder") from None
    if twice := next((name for name, other in pairwise(sorted(names)) if name == other), None):
        raise DataError(f"{folder} has two folders of the name {twice}, spelt in other code points; join them")
    if len(names) == 1:
        raise DataError(f"{folder} has one class ({names[0]}): a net of one class is always right; add another")
    return tuple(names)


def _loose(folder: Path) -> dict[str, list[str]]:
    """Pictures beside the class folders."""
    loose = [entry.path for entry in os.scandir(folder) if is_image(entry.name) and not entry.is_dir()]
    return {"outside the class folders": loose} if loose else {}


def _no_class_in(folder: Path, root: Path, split: str) -> str:
    """No class folders, and the likeliest reason: a root too high or too deep, packed or loose files."""
    text = f"found no class folders under {folder}"
    near = (root.parent, root.parent.parent, *(root / name for name in _folders(root)))
    for other in near:
        if (other / split).is_dir() and (inside := _folders(other / split)):
            return f"{text}; did you mean {other / split} ({len(inside):,} folders)? Use --data.root {other}."
    archives = sorted(path.name for place in (root, folder) if place.is_dir() for path in place.glob("*.tar"))
    if archives:
        return f"{text}; {', '.join(archives[:3])} is still packed: unpack it there, one folder a class"
    if folder.is_dir() and _loose(folder):
        return f"{text}: its images lie loose in it; sort them into one folder a class"
    there = ", ".join(sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:6])
    return f"{text}; {root} has {there or 'nothing'}; it must hold {split}/CLASS/*.jpg"
