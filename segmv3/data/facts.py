"""What a full decode of a file showed, remembered in the user's cache folder."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from segmv3.files import cache_folder, write_bytes
from segmv3.images import read_ids, read_image
from segmv3.labels import IGNORE

Kind = Literal["image", "label"]
Progress = Callable[[int, int], None]

_KINDS: tuple[Kind, Kind] = ("image", "label")
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

Files = tuple[Path | None, Path | None]
"""An image and its label; one of them is None where the other has no partner."""


def read_pairs(dataset: Dataset, progress: Progress | None = None) -> list[tuple[Found, Found]]:
    """The facts of every (image, label) of a split, in its order."""
    labelled = not isinstance(dataset, Unlabelled)
    files = [(pair.image, pair.label if labelled else None) for pair in dataset.pairs]
    return [(image, label or _nothing(image)) for image, label in read_files(files, progress) if image]


def _nothing(image: Found) -> Found:
    """The facts of a label that is not there: every pixel is ignored."""
    if isinstance(image, DataError):
        return image
    return replace(image, mean=(), std=(), ids=((IGNORE, image.size[0] * image.size[1]),))


def read_files(files: Sequence[Files], progress: Progress | None = None) -> list[tuple[Found | None, Found | None]]:
    """The facts of every file, from memory where it has not changed (path, size, modification time).

    Only facts are remembered. What could not be read is tried again the next time: the reason may have been the
    memory or the disk.

    Args:
        files: (image, label) each.
        progress: called with (done, to read) after each of those that had to be read.

    Returns:
        For each (image, label) what was found, None in the place of None.
    """
    memory = _Memory()
    found: list[tuple[Found | None, Found | None]] = [
        (memory.recall(image, "image"), memory.recall(label, "label")) for image, label in files
    ]

    def read(index: int) -> tuple[Found | None, Found | None]:
        (image, label), (known_image, known_label) = files[index], found[index]
        return known_image or _read(image, "image"), known_label or _read(label, "label")

    todo = [i for i, known in enumerate(found) if any(p and not f for p, f in zip(files[i], known, strict=True))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(read, todo)
        try:
            for number, (index, pair) in enumerate(zip(todo, results, strict=True), 1):
                found[index] = pair
                for path, kind, facts in zip(files[index], _KINDS, pair, strict=True):
                    if path and isinstance(facts, Facts):
                        memory.remember(path, kind, facts)
                if progress:
                    progress(number, len(todo))
        finally:
            pool.shutdown(cancel_futures=True)
            memory.save()
    return found


def _read(path: Path | None, kind: Kind) -> Found | None:
    if path is None:
        return None
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
        more = {k: tuple(v.ravel().tolist()) for k, v in zip(("mean", "std"), cv2.meanStdDev(pixels), strict=True)}
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

    def recall(self, path: Path | None, kind: Kind) -> Facts | None:
        if path is None:
            return None
        try:
            stat = path.stat()
        except OSError:
            return None
        self._states[path] = [stat.st_size, stat.st_mtime_ns]
        return _remembered(self._folder(path.parent).get(f"{kind} {path.name}"), self._states[path], kind)

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
                write_bytes(record, f"{text}\n{checksum(text)}".encode(), durable=False)


def _record(folder: Path) -> Path:
    place = hashlib.sha256(str(folder.absolute()).encode(errors="surrogateescape")).hexdigest()[:24]
    return cache_folder() / "checked" / f"{place}.json"


def checksum(text: str) -> str:
    """SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def _load(folder: Path) -> dict[str, Any]:
    """What was saved: a line of JSON, and its checksum, which earlier versions did not write."""
    record = _record(folder)
    try:
        text, _, found = record.read_text().partition("\n") if record.is_file() else ("", "", "")
        stored = json.loads(text)
        whole = not found or found == checksum(text)
        return stored["files"] if whole and stored["format"] == _FORMAT and isinstance(stored["files"], dict) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _remembered(entry: Any, state: list[int], kind: Kind) -> Facts | None:
    """The facts of an entry of the memory; None where a file changed, or where they cannot be facts."""
    try:
        if entry["state"] != state:
            return None
        stored = entry["facts"]
        tuples = {key: tuple(stored[key]) for key in ("size", "mean", "std")}  # JSON has lists
        facts = Facts(**{**stored, **tuples, "ids": tuple(map(tuple, stored["ids"]))})
        height, width = facts.size
        whole = (height, width, facts.orientation, *(number for pair in facts.ids for number in pair))
        colors = (*facts.mean, *facts.std)
        sound = (
            all(type(number) is int for number in whole)
            and min(height, width) > 0
            and isinstance(facts.mode, str)
            and isinstance(facts.format, str)
            and re.fullmatch("[0-9a-f]{32}", facts.digest)
            and len(colors) == (6 if kind == "image" else 0)
            and all(math.isfinite(number) for number in colors)
        )
        ids = dict(facts.ids)
        if kind == "label":  # earlier versions read JPEGs
            sound = sound and sum(ids.values()) == height * width and facts.format != "JPEG"
        sound = sound and len(ids) == len(facts.ids) * (kind == "label")
        return facts if sound and all(0 <= each <= 255 and pixels > 0 for each, pixels in ids.items()) else None
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return None
