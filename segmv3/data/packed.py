"""The cache that `segmv3.data.pack` writes, as training reads it: crops come from one file of decoded pixels.

    CACHE/train.pixels    per image: RGB uint8 H x W x 3, then train ids uint8 H x W, one image after the other
    CACHE/train.json      the index: sizes, offsets and checksums of the images, classes, what they were made of

The checksum of an image is compared when a run first reads it.
"""

import hashlib
import json
import mmap
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segmv3.config import Data
from segmv3.data.datasets import Dataset, Pair, open_dataset, open_extra
from segmv3.errors import DataError
from segmv3.files import text_sha256
from segmv3.images import UInt8Array
from segmv3.labels import LabelTable
from segmv3.pipeline import Progress, on_all_cores
from segmv3.records import read_json, typed

FORMAT = 1


@dataclass(frozen=True)
class Packed:
    """One image with its labels in the file of a split."""

    name: str
    height: int
    width: int
    offset: int
    """Bytes before it."""
    digest: str
    """BLAKE2b of its pixels and labels."""
    source: tuple[int, ...]
    """Size and modification time of both files, and a number for the label table: as long as they stay, so do the
    pixels."""

    @property
    def bytes(self) -> int:
        return 4 * self.height * self.width

    @property
    def end(self) -> int:
        return self.offset + self.bytes


@dataclass(frozen=True)
class PackedDataset(Dataset):
    """A split whose pixels lie in a cache. Its files are still those that are checked and named in messages."""

    folder: Path
    half: bool
    images: tuple[Packed, ...]

    def __post_init__(self) -> None:
        _ = self._seen  # before a worker is forked

    def read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """The pixels of one pair where they lie: read-only views, compared with their checksum the first time.

        Returns: image uint8 H x W x 3 RGB, labels uint8 H x W of train ids with 255 = ignore.
        Raises: DataError when they were changed since they were packed.
        """
        if not self._seen[index]:
            if digest_of(*self._views(index)) != self.images[index].digest:
                path = file_of(self.folder, self.split, "pixels")
                raise DataError(f"{path} is damaged at {self.images[index].name}; remove {self.folder} and pack again")
            self._seen[index] = 1
        return self._views(index)

    def _views(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        each = self.images[index]
        middle = each.offset + 3 * each.height * each.width
        image = self._pixels[each.offset : middle].reshape(each.height, each.width, 3)
        return image, self._pixels[middle : each.end].reshape(each.height, each.width)

    def fingerprint(self) -> str:
        """The files' fingerprint, because the batches are the same; a half-size cache has one of its own."""
        digest = super().fingerprint()
        return text_sha256(f"half {digest}") if self.half else digest

    @cached_property
    def _pixels(self) -> UInt8Array:
        return np.memmap(file_of(self.folder, self.split, "pixels"), np.uint8, "r").view(np.ndarray)

    @cached_property
    def _seen(self) -> mmap.mmap:
        """A byte for each image that was found intact, shared with the processes that are forked afterwards."""
        return mmap.mmap(-1, len(self.images))

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker maps its own
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_seen")}


def open_training(data: Data) -> Dataset:
    """The training images, from `data.cache` where it is set, and the extra ones.

    Raises: DataError for what `open_dataset`, `open_packed` or `open_extra` refuses.
    """
    dataset = open_dataset(data, "train")
    opened = open_packed(dataset, data.cache) if data.cache else dataset
    return replace(opened, extra=open_extra(data, dataset))


def open_packed(dataset: Dataset, folder: Path) -> PackedDataset:
    """The cache of a split. Files with another size or date than when it was packed are decoded and compared.

    Raises: DataError when there is none, it is damaged, or it was made of other images, labels or classes.
    """
    path = file_of(folder, dataset.split, "json")
    if not path.exists():
        begun = file_of(folder, dataset.split, "journal").is_file()
        state = "is not finished" if begun else f"holds no packed '{dataset.split}'"
        raise DataError(f"the cache {folder} {state}; run segmv3 data pack for it")
    index = _read_index(path)
    pixels = file_of(folder, dataset.split, "pixels")
    found = pixels.stat().st_size if pixels.is_file() else 0
    if found != index.images[-1].end:
        raise DataError(f"{pixels} has {found:,} bytes of {index.images[-1].end:,}; remove {folder} and pack again")
    packed = packed_of(dataset, folder, index.half, index.images)
    if difference := _difference(dataset, packed, index.classes.names):
        raise DataError(
            f"the cache {folder} is of another version of '{dataset.split}': {difference}; "
            "pack again into another folder"
        )
    return packed


def packed_of(dataset: Dataset, folder: Path, half: bool, images: tuple[Packed, ...]) -> PackedDataset:
    return PackedDataset(dataset.title, dataset.split, dataset.classes, dataset.pairs, folder, half, images)


def verify(packed: PackedDataset, progress: Progress | None = None) -> None:
    """Read every pixel and compare its checksum.

    Raises: DataError naming the first damaged image.
    """
    packed._seen[:] = bytes(len(packed.images))
    with on_all_cores(packed.read, range(len(packed.images))) as images:
        for done, _ in enumerate(images, 1):
            if progress:
                progress(done, len(packed.images))


def version(images: tuple[Packed, ...], classes: tuple[str, ...], half: bool) -> str:
    """SHA-256 of classes, names and pixels: two caches with the same one give the same batches."""
    return checksum_of([classes, half, [(each.name, each.height, each.width, each.digest) for each in images]])


@dataclass(frozen=True)
class _Names:
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Index:
    """What is used of the index file."""

    half: bool
    classes: _Names
    images: tuple[Packed, ...]


def _read_index(path: Path) -> _Index:
    try:
        content = typed(read_json(path), dict)
        number = typed(content.get("format"), int, "format")
        if number != FORMAT:
            raise DataError(f"{path} has format {number}, not {FORMAT}; pack again into another folder")
        if content.pop("checksum", None) != checksum_of(content):
            raise DataError(f"{path} was altered; remove {path.parent} and pack again")
        index = typed(content, _Index)
        end = 0
        for each in index.images:  # they have pixels and lie one after the other
            if min(each.height, each.width) < 1 or each.offset != end:
                raise ValueError(f"{each.name} does not lie where it should")
            end = each.end
        if not index.images:
            raise ValueError("it holds no image")
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove {path.parent} and pack again") from None
    return index


def _difference(dataset: Dataset, packed: PackedDataset, classes: tuple[str, ...]) -> str:
    """What the data set has that the cache has not, or the other way round; empty when they agree."""
    if classes != dataset.classes.names:
        return f"its {len(classes)} classes are not the {len(dataset.classes)} of the data set"
    here, there = [pair.name for pair in dataset.pairs], [each.name for each in packed.images]
    if here != there:
        first = min(set(here) ^ set(there), default="their order")
        return f"it has {len(there):,} images, the data set {len(here):,} (first difference: {first})"
    changed = [i for i, pair in enumerate(dataset.pairs) if state_of(pair) != packed.images[i].source]

    def same(index: int) -> bool:  # a copy of the files has other dates, and the same pixels
        return digest_of(*sample_of(dataset, index, packed.half)) == packed.images[index].digest

    with on_all_cores(same, changed) as compared:
        other = next((index for index, equal in zip(changed, compared, strict=True) if not equal), None)
    return "" if other is None else f"{dataset.pairs[other].name} has changed"


def sample_of(dataset: Dataset, index: int, half: bool) -> tuple[UInt8Array, UInt8Array]:
    image, labels = dataset.read(index)
    if half:
        size = halved(labels.shape)[::-1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def halved(size: tuple[int, ...]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def state_of(pair: Pair) -> tuple[int, ...]:
    try:
        stats = [path.stat() for path in (pair.image, pair.label)]
    except OSError:
        return ()
    return (*(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns)), _table_number(pair.table))


@cache
def _table_number(table: LabelTable) -> int:
    return int(text_sha256(repr(table.train_ids))[:12], 16)


def digest_of(image: UInt8Array, labels: UInt8Array) -> str:
    digest = hashlib.blake2b(image.data, digest_size=16)
    digest.update(labels.data)
    return digest.hexdigest()


def checksum_of(facts: object) -> str:
    return text_sha256(json.dumps(facts))


def file_of(folder: Path, split: str, ending: str) -> Path:
    """A file of a split: its index (`json`), its pixels (`pixels`, `pixels.part`) or its `journal`."""
    return folder / f"{split}.{ending}"
