"""Decoding a data set once, into the cache that `segmv3.data.packed` reads.

The index is written last, once the pixels were flushed and read back: without it nothing in the folder is used.
Until then they are called `train.pixels.part`, with a journal beside them from which packing goes on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from PIL import Image

from segmv3.data.datasets import Dataset, Pair
from segmv3.data.packed import (
    FORMAT,
    Packed,
    PackedDataset,
    checksum_of,
    digest_of,
    file_of,
    halved,
    open_packed,
    packed_of,
    sample_of,
    state_of,
    verify,
    version,
)
from segmv3.errors import OutputError, ResourceError
from segmv3.files import alone, make_folder, no_link, remove_leftovers, write_bytes, write_error
from segmv3.images import UInt8Array
from segmv3.pipeline import CORES, Progress, work_ahead
from segmv3.records import from_json, read_regular, typed
from segmv3.screen import print_line


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

    Args:
        dataset: the split.
        folder: of the cache.
        half: store half the height and width. Images are averaged over the area. Labels take the nearest neighbour, as
            in training: a majority would thin out poles and signs.
        overwrite: replace the cache of another version.
        progress: called with (images done, images in all).
        say: told when another process packs into the folder; this one waits for it and compares.

    Raises:
        DataError: a file cannot be read, or the cache is of another version.
        OutputError: the cache cannot be written; the next call goes on where this one stopped.
        ResourceError: the disk is full; the next call goes on.
    """
    finished = file_of(folder, dataset.split, "json")
    if finished.is_file() and not overwrite:
        return _compared(dataset, folder, half, progress)
    make_folder(folder)
    with alone(folder / ".lock", f"data: waiting for another process that packs into {folder}", say):
        remove_leftovers(folder)
        try:
            if overwrite:
                for ending in ("json", "pixels", "pixels.part", "journal"):
                    file_of(folder, dataset.split, ending).unlink(missing_ok=True)
            elif finished.is_file():  # by the process that was waited for
                return _compared(dataset, folder, half, progress)
            return _written(dataset, folder, half, progress)
        except OSError as error:  # a folder or a link where a file should be
            raise write_error(error, Path(error.filename or folder), 0) from None


def _compared(dataset: Dataset, folder: Path, half: bool, progress: Progress | None) -> PackedDataset:
    packed = open_packed(dataset, folder)
    if packed.half != half:
        size = "half" if packed.half else "full"
        raise OutputError(f"{folder} holds '{dataset.split}' at {size} size; choose another folder")
    verify(packed, progress)
    return packed


def _written(dataset: Dataset, folder: Path, half: bool, progress: Progress | None) -> PackedDataset:
    images = _write_pixels(dataset, folder, half, progress)
    part, pixels = (file_of(folder, dataset.split, ending) for ending in ("pixels.part", "pixels"))
    os.replace(part, pixels)  # noqa: PTH105 (crash tests)
    packed = packed_of(dataset, folder, half, images)
    verify(packed)
    index = {
        "format": FORMAT,
        "dataset": dataset.title,
        "split": dataset.split,
        "half": half,
        "version": version(images, dataset.classes.names, half),
        "classes": {"names": dataset.classes.names, "colors": dataset.classes.colors},
        "bytes": images[-1].end,
        "images": [asdict(each) for each in images],
    }
    content = json.dumps(index | {"checksum": checksum_of(index)}, indent=1)
    write_bytes(file_of(folder, dataset.split, "json"), content.encode())
    file_of(folder, dataset.split, "journal").unlink()
    return packed


def _write_pixels(dataset: Dataset, folder: Path, half: bool, progress: Progress | None) -> tuple[Packed, ...]:
    """All images of the split in the file `.part`, flushed to the disk."""
    part, pixels = file_of(folder, dataset.split, "pixels.part"), file_of(folder, dataset.split, "pixels")
    if pixels.is_file():  # it stopped between the last rename and the index
        pixels.replace(part)
    if part.is_symlink():  # to write through it would spoil another file
        part.unlink()
    journal = file_of(folder, dataset.split, "journal")
    head = json.dumps({"format": FORMAT, "half": half, "classes": dataset.classes.names})
    images = _written_before(dataset, part, journal, head)
    written = images[-1].end if images else 0
    todo = range(len(images), len(dataset))
    needed = sum(4 * height * width for height, width in (_size_of(dataset.pairs[i], half) for i in todo))
    free = shutil.disk_usage(folder).free + (part.stat().st_size if part.exists() else 0) - written
    if needed > free:
        raise ResourceError(f"the disk is full: {pixels} needs {needed / 1e6:,.1f} MB, {folder} has {free / 1e6:,.1f}")
    write_bytes(
        journal, "".join(line + "\n" for line in (head, *(json.dumps(asdict(each)) for each in images))).encode()
    )
    decode = partial(_decoded, dataset, half=half)
    try:
        with (
            open(part, "r+b" if part.exists() else "w+b", opener=no_link) as file,
            open(journal, "a", opener=no_link) as notes,
            work_ahead(decode, todo, threads=max(2, CORES)) as samples,
        ):
            file.truncate(written)
            file.seek(written)
            for each, image, labels in samples:
                file.write(image.data)
                file.write(labels.data)
                file.flush()
                images.append(replace(each, offset=written))
                written = images[-1].end
                notes.write(json.dumps(asdict(images[-1])) + "\n")
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
                if (each.name, each.source, each.offset) != (pair.name, state_of(pair), file.tell()):
                    break
                if hashlib.blake2b(file.read(each.bytes), digest_size=16).hexdigest() != each.digest:
                    break
                good.append(each)
    except (OSError, ValueError):  # nothing written, or a journal that ends in half a line
        pass
    return good


def _decoded(dataset: Dataset, index: int, half: bool) -> tuple[Packed, UInt8Array, UInt8Array]:
    pair = dataset.pairs[index]
    source = state_of(pair)  # before reading: a file that changes meanwhile is compared later
    image, labels = sample_of(dataset, index, half)
    height, width = labels.shape
    return Packed(pair.name, height, width, 0, digest_of(image, labels), source), image, labels


def _size_of(pair: Pair, half: bool) -> tuple[int, int]:
    """Size from the header alone; 0 x 0 for a file that packing will refuse."""
    try:
        with Image.open(pair.image) as image:
            return halved(image.size) if half else image.size
    except (OSError, ValueError, SyntaxError):
        return 0, 0
