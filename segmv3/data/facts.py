"""What a full decode of a file showed, remembered in the user's cache folder."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import ExifTags, Image

from segmv3.data.datasets import Dataset, Unlabelled
from segmv3.errors import DataError, Segmv3Error
from segmv3.files import cache_folder, text_sha256, write_bytes
from segmv3.images import read_ids, read_image
from segmv3.labels import IGNORE
from segmv3.pipeline import Progress, on_all_cores
from segmv3.records import read_regular

Kind = Literal["image", "label"]

_FORMAT = 1  # of the remembered facts; another number forgets them


@dataclass(frozen=True)
class Facts:
    """What a full decode of one file showed."""

    size: tuple[int, int]
    """(height, width) as read: after the EXIF rotation."""
    mode: str
    """Pillow's name of the stored pixels: RGB, L, P (palette), I;16, ..."""
    format: str
    """PNG, JPEG, WEBP, BMP or TIFF."""
    orientation: int
    """EXIF orientation, 1 = upright."""
    digest: str
    """BLAKE2b of size and pixels as read: equal for equal pictures in whatever file format."""
    mean: tuple[float, ...] = ()
    """Mean of R, G and B of an image, 0..255."""
    std: tuple[float, ...] = ()
    ids: tuple[tuple[int, int], ...] = ()
    """(stored id, pixels) of every id that occurs in a label."""


Found = Facts | DataError
"""A file's facts, or why it has none."""

File = tuple[Path, Kind]


def read_pairs(dataset: Dataset, progress: Progress | None = None) -> list[tuple[Found, Found]]:
    """The facts of every (image, label) of a split, in its order.

    Args:
        dataset: the split.
        progress: as of `read_files`.
    """
    if isinstance(dataset, Unlabelled):
        images = read_files([(pair.image, "image") for pair in dataset.pairs], progress)
        return [(image, _nothing(image)) for image in images]
    files: list[File] = []
    for pair in dataset.pairs:
        files += [(pair.image, "image"), (pair.label, "label")]
    found = read_files(files, progress)
    return list(zip(found[::2], found[1::2], strict=True))


def _nothing(image: Found) -> Found:
    """The facts of a label that is not there: every pixel is ignored."""
    if isinstance(image, DataError):
        return image
    return replace(image, mean=(), std=(), ids=((IGNORE, image.size[0] * image.size[1]),))


def read_files(files: Sequence[File], progress: Progress | None = None) -> list[Found]:
    """The facts of every file, from memory where it has not changed (path, size, modification time).

    Only facts are remembered. What could not be read is tried again the next time: the reason may have been the
    memory or the disk.

    Args:
        files: paths, and what each of them is.
        progress: called with (done, to read) after each file that had to be read.
    """
    memory = _Memory()
    found: dict[File, Found] = {file: known for file in files if (known := memory.recall(*file))}
    todo = [file for file in dict.fromkeys(files) if file not in found]
    try:
        with on_all_cores(_read, todo) as results:
            for number, (file, facts) in enumerate(zip(todo, results, strict=True), 1):
                found[file] = facts
                if isinstance(facts, Facts):
                    memory.remember(*file, facts)
                if progress:
                    progress(number, len(todo))
    finally:
        memory.save()
    return [found[file] for file in files]


def _read(file: File) -> Found:
    path, kind = file
    try:
        path.stat()
        return _facts(path, kind)
    except OSError as error:
        return DataError(f"{path} cannot be read ({error.strerror}); is it a link to nowhere?")
    except DataError as error:
        return error


def _facts(path: Path, kind: Kind) -> Facts:
    more: dict[str, Any]
    if kind == "image":
        pixels = read_image(path)
        mean, std = (tuple(each.ravel().tolist()) for each in cv2.meanStdDev(pixels))
        more = {"mean": mean, "std": std}
    else:
        pixels = read_ids(path)
        counts = np.bincount(pixels.ravel(), minlength=256)
        more = {"ids": tuple((int(i), int(counts[i])) for i in np.flatnonzero(counts))}
    with Image.open(path) as image:  # its header only
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        orientation = turned if type(turned) is int else 1
        mode, format_ = image.mode, image.format or ""
    digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
    return Facts(pixels.shape[:2], mode, format_, orientation, digest, **more)


# --- memory ---


class _Memory:
    """Facts by folder, name, size and modification time: one JSON file for each folder of the data set.

    Losing it costs a second reading, never correctness: a cache that cannot be written or read is no error.
    """

    def __init__(self) -> None:
        self._folder = cache(_load)
        self._states: dict[Path, list[int]] = {}  # before reading: a file that changes meanwhile is read again
        self._changed: set[Path] = set()

    def recall(self, path: Path, kind: Kind) -> Facts | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        self._states[path] = [stat.st_size, stat.st_mtime_ns]
        entry = self._folder(path.parent).get(f"{kind} {path.name}")
        return _of_json(entry["facts"]) if entry and entry["state"] == self._states[path] else None

    def remember(self, path: Path, kind: Kind, facts: Facts) -> None:
        if path in self._states:
            self._folder(path.parent)[f"{kind} {path.name}"] = {"state": self._states[path], "facts": asdict(facts)}
            self._changed.add(path.parent)

    def save(self) -> None:
        for folder in self._changed:
            record = _record(folder)
            text = json.dumps({"format": _FORMAT, "files": self._folder(folder)})
            with suppress(OSError, Segmv3Error):
                record.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(record, f"{text}\n{text_sha256(text)}".encode(), durable=False)


def _record(folder: Path) -> Path:
    return cache_folder() / "checked" / f"{text_sha256(str(folder.absolute()))[:24]}.json"


def _load(folder: Path) -> dict[str, Any]:
    """What was saved: a line of JSON, and its checksum. What bears it was written here, and needs no other check."""
    with suppress(ValueError):
        text, _, found = read_regular(_record(folder)).decode().partition("\n")
        if found == text_sha256(text) and (saved := json.loads(text))["format"] == _FORMAT:
            files: dict[str, Any] = saved["files"]
            return files
    return {}


def _of_json(facts: dict[str, Any]) -> Facts:
    """JSON has lists in the place of tuples."""
    tuples = {key: tuple(facts[key]) for key in ("size", "mean", "std")}
    return Facts(**facts | tuples | {"ids": tuple(map(tuple, facts["ids"]))})
