"""Pictures for classification: one folder a class, as ImageNet is usually unpacked.

    ROOT/train/n01440764/n01440764_10026.JPEG
    ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG

Class ids are the places of the sorted folder names, torchvision's convention; sorted WordNet ids are ImageNet's
usual order. Files are only ever read.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmv3.config import ImageFolder
from segmv3.errors import DataError
from segmv3.images import SUFFIXES, UInt8Array, read_image

_CHECKED = 1000  # files of a split that are decoded before a run; all of ImageNet would take hours


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


def open_pictures(data: ImageFolder, split: str) -> Pictures:
    """List the pictures of a split, without decoding any.

    Raises: DataError when the folder is missing or nested wrongly, holds no class, or a class holds no picture.
    """
    root = data.root
    if not split or Path(split).name != split:
        raise DataError(f"{split!r} is no split; it is the name of a folder, such as train or val")
    if not root.is_dir():
        raise DataError(f"data root {root} does not exist; set --data.root to the folder that holds train/ and val/")
    folder = root / split
    classes = _folders(folder) if folder.is_dir() else []
    if not classes:
        raise DataError(_no_class_in(folder, root, split))
    files: list[bytes] = []
    targets: list[int] = []
    empty: list[str] = []
    for target, name in enumerate(classes):
        found = sorted(_pictures_below(folder / name, name))
        files += found
        targets += [target] * len(found)
        if not found:
            empty.append(name)
    if empty:
        what = "folder holds" if len(empty) == 1 else "folders hold"
        raise DataError(
            f"{len(empty)} class {what} no image under {folder} (first: {', '.join(empty[:5])}); "
            "fill or remove them in train and val alike"
        )
    return Pictures(
        root.resolve().name, split, folder, tuple(classes), np.array(files, np.bytes_), np.array(targets, np.int64)
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


def check_pictures(pictures: Pictures, progress: Callable[[int, int], None] | None = None) -> None:
    """Decode up to 1,000 evenly spaced files of a split.

    That finds a wrong format, missing rights or a copy that broke off. A damaged file among the others ends the
    run where it is met, with the state saved.

    Raises: DataError naming the first file that cannot be decoded.
    """
    count = min(len(pictures), _CHECKED)
    chosen = np.linspace(0, len(pictures) - 1, count).round().astype(int)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda index: pictures.read(index)[0].shape, chosen)  # the pixels themselves are not kept
        try:
            for done, _ in enumerate(sizes, 1):
                if progress:
                    progress(done, count)
        finally:
            pool.shutdown(cancel_futures=True)


def _folders(place: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))


def _pictures_below(folder: Path, name: str) -> Iterator[bytes]:
    """Names of image files in and below a class folder, beginning with the class."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        inside = name + place[len(str(folder)) :]
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES:  # noqa: PTH122 (a million)
                yield os.fsencode(f"{inside}/{file}")


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
    if folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return f"{text}: its images lie loose in it; sort them into one folder a class"
    there = ", ".join(sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:6])
    return f"{text}; {root} has {there or 'nothing'}; it must hold {split}/CLASS/*.jpg"
