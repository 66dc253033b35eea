"""A data set decoded once: the pixels of a split in one file, from which training reads its crops directly.

    CACHE/train.pixels    per image: RGB uint8 H x W x 3, then train ids uint8 H x W, one image after the other
    CACHE/train.json      the index: sizes, offsets and checksums of the images, classes, what they were made of

The index is written last, once the pixels were flushed and read back: without it nothing in the folder is used.
Until then they are called `train.pixels.part`, with a journal beside them from which packing goes on. The checksum of
an image is looked at again when a run first reads it.
"""

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segmv3.config import Data
from segmv3.data.datasets import Dataset, Pair, open_dataset, open_extra
from segmv3.data.loader import read_ahead
from segmv3.errors import DataError, OutputError, ResourceError
from segmv3.files import alone, make_folder, no_link, remove_leftovers, write_bytes, write_error
from segmv3.images import UInt8Array
from segmv3.labels import LabelTable
from segmv3.records import from_json, read_json, read_regular, typed
from segmv3.screen import print_line

Progress = Callable[[int, int], None]

_FORMAT = 1


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
            if not self.intact(index):
                path = _pixel_file(self.folder, self.split)
                raise DataError(f"{path} is damaged at {self.images[index].name}; remove {self.folder} and pack again")
            self._seen[index] = 1
        return self._views(index)

    def intact(self, index: int) -> bool:
        """Whether the pixels of a pair are those that were packed."""
        return _digest(*self._views(index)) == self.images[index].digest

    def _views(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        each = self.images[index]
        middle = each.offset + 3 * each.height * each.width
        image = self._pixels[each.offset : middle].reshape(each.height, each.width, 3)
        return image, self._pixels[middle : each.end].reshape(each.height, each.width)

    def fingerprint(self) -> str:
        """As of the files, whose batches are the same; a half-size cache gives others."""
        digest = super().fingerprint()
        return hashlib.sha256(f"half {digest}".encode()).hexdigest() if self.half else digest

    @cached_property
    def _pixels(self) -> UInt8Array:
        return np.memmap(_pixel_file(self.folder, self.split), np.uint8, "r").view(np.ndarray)

    @cached_property
    def _seen(self) -> mmap.mmap:
        """A byte for each image that was found intact, shared with the processes that are forked afterwards."""
        return mmap.mmap(-1, len(self.images))

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker maps its own
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_seen")}


# --- reading ---


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
    path = _index_file(folder, dataset.split)
    if not path.exists():
        begun = _journal_file(folder, dataset.split).is_file()
        state = "is not finished" if begun else f"holds no packed '{dataset.split}'"
        raise DataError(f"the cache {folder} {state}; run segmv3 data pack for it")
    index = _read_index(path)
    pixels = _pixel_file(folder, dataset.split)
    found = pixels.stat().st_size if pixels.is_file() else 0
    if found != index.images[-1].end:
        raise DataError(f"{pixels} has {found:,} bytes of {index.images[-1].end:,}; remove {folder} and pack again")
    packed = PackedDataset(
        dataset.title, dataset.split, dataset.classes, dataset.pairs, folder, index.half, index.images
    )
    if difference := _difference(dataset, packed, index.classes.names):
        raise DataError(
            f"the cache {folder} is of another version of '{dataset.split}': {difference}; "
            "pack again into another folder"
        )
    return packed


def verify(packed: PackedDataset, progress: Progress | None = None) -> None:
    """Read every pixel and compare its checksum.

    Raises: DataError naming the first damaged image.
    """

    packed._seen[:] = bytes(len(packed.images))
    for index, _ in enumerate(read_ahead(packed.read, range(len(packed.images)))):
        if progress:
            progress(index + 1, len(packed.images))


def version(images: tuple[Packed, ...], classes: tuple[str, ...], half: bool) -> str:
    """SHA-256 of classes, names and pixels: two caches with the same one give the same batches."""
    facts = [classes, half, [(each.name, each.height, each.width, each.digest) for each in images]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


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
        if number != _FORMAT:
            raise DataError(f"{path} has format {number}, not {_FORMAT}; pack again into another folder")
        if content.pop("checksum", None) != _checksum(content):
            raise DataError(f"{path} was altered; remove {path.parent} and pack again")
        index = typed(content, _Index)
        _refuse_gaps(index.images)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove {path.parent} and pack again") from None
    return index


def _refuse_gaps(images: Sequence[Packed]) -> None:
    """Raises: ValueError unless images have pixels and lie one after the other, the first one at 0."""
    end = 0
    for each in images:
        if min(each.height, each.width) < 1 or each.offset != end:
            raise ValueError(f"{each.name} does not lie where it should")
        end = each.end
    if not images:
        raise ValueError("it holds no image")


def _difference(dataset: Dataset, packed: PackedDataset, classes: tuple[str, ...]) -> str:
    """What the data set has that the cache has not, or the other way round; empty when they agree."""
    if classes != dataset.classes.names:
        return f"its {len(classes)} classes are not the {len(dataset.classes)} of the data set"
    here, there = [pair.name for pair in dataset.pairs], [each.name for each in packed.images]
    if here != there:
        first = min(set(here) ^ set(there), default="their order")
        return f"it has {len(there):,} images, the data set {len(here):,} (first difference: {first})"
    changed = [i for i, pair in enumerate(dataset.pairs) if _source(pair) != packed.images[i].source]

    def same(index: int) -> bool:  # a copy of the files has other dates, and the same pixels
        return _digest(*_sample(dataset, index, packed.half)) == packed.images[index].digest

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, equal in zip(changed, pool.map(same, changed), strict=True):
            if not equal:
                pool.shutdown(cancel_futures=True)
                return f"{dataset.pairs[index].name} has changed"
    return ""


# --- packing ---


def pack(
    dataset: Dataset,
    folder: Path,
    *,
    half: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print_line,
) -> PackedDataset:
    """Write the cache of a split, or go on with one where it stopped; a finished one is read and compared.

    Args: half: images at half the height and width, averaged over the area; labels by nearest neighbour, as in every
        other resize of training: each class keeps its share of the pixels, where a majority would thin out poles
        and signs. overwrite: replace the cache of another version. progress: called with (images done, all). say: told
        when another process packs into the folder; this one waits for it and compares.
    Raises: DataError for a file that cannot be read or a cache of another version, OutputError or ResourceError
        when it cannot be written; what was written is gone on with the next time, and nothing of it is used.
    """
    finished = _index_file(folder, dataset.split)
    if finished.is_file() and not overwrite:
        return _compared(dataset, folder, half, progress)
    make_folder(folder)
    with alone(folder / ".lock", lambda: say(f"data: waiting for another process that packs into {folder}")):
        remove_leftovers(folder)
        try:
            if overwrite:
                for path in (_index_file, _pixel_file, _part_file, _journal_file):
                    path(folder, dataset.split).unlink(missing_ok=True)
            elif finished.is_file():  # by the process that was waited for
                return _compared(dataset, folder, half, progress)
            return _written(dataset, folder, half, progress)
        except OSError as error:  # a folder or a link where a file should be
            raise write_error(error, Path(error.filename or folder), 0) from None


def _compared(dataset: Dataset, folder: Path, half: bool, progress: Progress | None) -> PackedDataset:
    packed = open_packed(dataset, folder)
    if packed.half != half:
        raise OutputError(f"{folder} holds '{dataset.split}' at {_size(packed.half)} size; choose another folder")
    verify(packed, progress)
    return packed


def _written(dataset: Dataset, folder: Path, half: bool, progress: Progress | None) -> PackedDataset:
    images = _write_pixels(dataset, folder, half, progress)
    os.replace(_part_file(folder, dataset.split), _pixel_file(folder, dataset.split))  # noqa: PTH105 (crash tests)
    packed = PackedDataset(dataset.title, dataset.split, dataset.classes, dataset.pairs, folder, half, images)
    verify(packed)
    index = {
        "format": _FORMAT,
        "dataset": dataset.title,
        "split": dataset.split,
        "half": half,
        "version": version(images, dataset.classes.names, half),
        "classes": {"names": dataset.classes.names, "colors": dataset.classes.colors},
        "bytes": images[-1].end,
        "images": [asdict(each) for each in images],
    }
    content = json.dumps(index | {"checksum": _checksum(index)}, indent=1)
    write_bytes(_index_file(folder, dataset.split), content.encode())
    _journal_file(folder, dataset.split).unlink()
    return packed


def _write_pixels(dataset: Dataset, folder: Path, half: bool, progress: Progress | None) -> tuple[Packed, ...]:
    """All images of the split in the file `.part`, flushed to the disk."""
    part, pixels = _part_file(folder, dataset.split), _pixel_file(folder, dataset.split)
    if pixels.is_file():  # it stopped between the last rename and the index
        pixels.replace(part)
    if part.is_symlink():  # to write through it would spoil another file
        part.unlink()
    journal = _journal_file(folder, dataset.split)
    head = json.dumps({"format": _FORMAT, "half": half, "classes": dataset.classes.names})
    images = _written_before(dataset, part, journal, head)
    written = images[-1].end if images else 0
    todo = range(len(images), len(dataset))
    needed = sum(4 * height * width for height, width in (_size_of(dataset.pairs[i], half) for i in todo))
    free = shutil.disk_usage(folder).free + (part.stat().st_size if part.exists() else 0) - written
    if needed > free:
        raise ResourceError(f"the disk is full: {pixels} needs {needed / 1e6:,.1f} MB, {folder} has {free / 1e6:,.1f}")
    write_bytes(journal, "".join(line + "\n" for line in (head, *map(_line, images))).encode())
    try:
        with (
            open(part, "r+b" if part.exists() else "w+b", opener=no_link) as file,
            open(journal, "a", opener=no_link) as notes,
        ):
            file.truncate(written)
            file.seek(written)
            for each, image, labels in read_ahead(
                lambda index: _decoded(dataset, index, half), todo, threads=max(2, os.cpu_count() or 2)
            ):
                file.write(image.data)
                file.write(labels.data)
                file.flush()
                images.append(replace(each, offset=written))
                written = images[-1].end
                notes.write(_line(images[-1]) + "\n")
                notes.flush()
                if progress:
                    progress(len(images), len(dataset))
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(error, pixels, needed) from None
    return tuple(images)


def _written_before(dataset: Dataset, part: Path, journal: Path, head: str) -> list[Packed]:
    """The first images that an earlier run wrote, as far as they are whole and still those of the data set."""
    good: list[Packed] = []
    try:
        first, *lines = read_regular(journal).decode().splitlines()
        if first != head:
            return []
        written = part.stat().st_size
        with part.open("rb") as file:
            for line, pair in zip(lines, dataset.pairs, strict=False):
                each = typed(from_json(line), Packed)
                if min(each.height, each.width) < 1 or each.bytes > written - file.tell():
                    break
                if (each.name, each.source, each.offset) != (pair.name, _source(pair), file.tell()):
                    break
                if hashlib.blake2b(file.read(each.bytes), digest_size=16).hexdigest() != each.digest:
                    break
                good.append(each)
    except (OSError, ValueError):  # nothing written, or a journal that ends in half a line
        pass
    return good


def _line(each: Packed) -> str:
    return json.dumps(asdict(each))


def _decoded(dataset: Dataset, index: int, half: bool) -> tuple[Packed, UInt8Array, UInt8Array]:
    pair = dataset.pairs[index]
    source = _source(pair)  # before reading: a file that changes meanwhile is compared later
    image, labels = _sample(dataset, index, half)
    height, width = labels.shape
    return Packed(pair.name, height, width, 0, _digest(image, labels), source), image, labels


def _sample(dataset: Dataset, index: int, half: bool) -> tuple[UInt8Array, UInt8Array]:
    image, labels = dataset.read(index)
    if half:
        size = _halved(labels.shape)[::-1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _halved(size: tuple[int, ...]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _size_of(pair: Pair, half: bool) -> tuple[int, int]:
    """By the header alone; 0 x 0 for a file that packing will refuse."""
    try:
        with Image.open(pair.image) as image:
            return _halved(image.size) if half else image.size
    except (OSError, ValueError, SyntaxError):
        return 0, 0


def _source(pair: Pair) -> tuple[int, ...]:
    try:
        stats = [path.stat() for path in (pair.image, pair.label)]
    except OSError:
        return ()
    return (*(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns)), _table_number(pair.table))


@cache
def _table_number(table: LabelTable) -> int:
    return int(hashlib.sha256(repr(table.train_ids).encode()).hexdigest()[:12], 16)


def _digest(image: UInt8Array, labels: UInt8Array) -> str:
    digest = hashlib.blake2b(image.data, digest_size=16)
    digest.update(labels.data)
    return digest.hexdigest()


def _checksum(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


def _size(half: bool) -> str:
    return "half" if half else "full"


def _index_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.json"


def _pixel_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.pixels"


def _part_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.pixels.part"


def _journal_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.journal"
