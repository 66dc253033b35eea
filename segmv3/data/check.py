"""Every file of a data set is read to its last pixel, once; what was seen is remembered.

Training runs `check` before its first step; the data doctor (`segmv3.doctor`) builds its tables from the same
facts. Both share one memory in the user's cache folder, so that either makes the other start at once.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from segmv3.data.datasets import Dataset, Pair
from segmv3.errors import DataError
from segmv3.files import cache_folder
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import LabelTable

Kind = Literal["image", "label"]
Progress = Callable[[int, int], None]

_KINDS: tuple[Kind, Kind] = ("image", "label")
_FORMAT = 1  # of the remembered facts; another number forgets them
_NAMED = 5  # files that one line can name


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
    """Of an image: each of R, G, B, 0..255."""
    std: tuple[float, ...] = ()
    ids: tuple[tuple[int, int], ...] = ()
    """Of a label: (stored id, pixels) of every id that occurs."""


Found = Facts | DataError
"""A file's facts, or why it has none."""


Files = tuple[Path | None, Path | None]
"""An image and its label; one of them is None where the other has no partner."""


@dataclass(frozen=True)
class Problem:
    """One file that training would stumble over."""

    kind: str
    """damaged, no label map, illegal ids, or sizes differ."""
    path: Path
    text: str
    """The file, what is wrong with it and what to do, without the area in front."""


def check(dataset: Dataset, progress: Progress | None = None) -> None:
    """Read every pair of a split completely; files that are remembered are not read again.

    Args: progress: called with (pairs done, pairs to read) after each pair.
    Raises: DataError with the number and the names of all files that are damaged, hold illegal ids or have
        another size than their partner, and with what is wrong with the first.
    """
    refuse(problems_in(dataset, progress), dataset.split)


def problems_in(dataset: Dataset, progress: Progress | None = None) -> list[Problem]:
    """Every problem of a split, in the order of its pairs; `check` without the raising."""
    found = read_pairs(dataset, progress)
    return [problem for pair, facts in zip(dataset.pairs, found, strict=True) for problem in problems_of(pair, *facts)]


def refuse(problems: Sequence[Problem], *splits: str) -> None:
    """Raises: DataError, one line for all problems, when there are any."""
    if problems:
        raise DataError(_together(problems, splits))


def _together(problems: Sequence[Problem], splits: Sequence[str]) -> str:
    first = problems[0].text
    if len(problems) == 1:
        return first
    names = ", ".join(problem.path.name for problem in problems[:_NAMED])
    more = f" and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
    return (
        f"{len(problems):,} files in {' and '.join(map(repr, splits))} cannot be used: {names}{more}. "
        f"The first: {first.removesuffix('.')}. `segmv3 data check` shows them all."
    )


def problems_of(pair: Pair, image: Found, label: Found) -> list[Problem]:
    """What keeps a pair from being trained on or scored."""
    problems = [
        damage(path, found)
        for path, found in ((pair.image, image), (pair.label, label))
        if isinstance(found, DataError)
    ]
    if isinstance(label, Facts):
        try:
            pair.table.to_train_ids(np.array([stored for stored, _ in label.ids], np.uint8), pair.label)
        except DataError as error:
            problems.append(Problem("illegal ids", pair.label, message(error)))
    if isinstance(image, Facts) and isinstance(label, Facts) and image.size != label.size:
        turned = image.orientation > 4 and image.size == label.size[::-1]
        reason = "; EXIF data turn the image, and the label was made for the unturned one" if turned else ""
        problems.append(
            Problem(
                "sizes differ",
                pair.image,
                f"{pair.image} is {image.size[1]}x{image.size[0]} but its label {pair.label} is "
                f"{label.size[1]}x{label.size[0]}; they must have the same size{reason}",
            )
        )
    return problems


def damage(path: Path, error: DataError) -> Problem:
    """The problem of a file that has no facts: damage, or a picture where a label map should be."""
    try:
        read_image(path)
        kind = "no label map"
    except DataError:
        kind = "damaged"
    return Problem(kind, path, message(error))


def message(error: DataError) -> str:
    """The text of an error without its area."""
    return str(error.args[0])


def train_counts(label: Facts, table: LabelTable) -> NDArray[np.int64]:
    """Pixels of a label by train id, int64 256; illegal ids count nowhere."""
    counts = np.zeros(256, np.int64)
    train_ids = dict(table.train_ids)
    for stored, pixels in label.ids:
        if stored in train_ids:
            counts[train_ids[stored]] += pixels
    return counts


def class_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Labelled pixels of each class in each image of a split, int64 N x C; a label that cannot be read has none.

    After `check` no file is read for it.
    """
    found = read_files([(None, pair.label) for pair in dataset.pairs])
    counts = np.zeros((len(dataset), 256), np.int64)
    for row, pair, (_, label) in zip(counts, dataset.pairs, found, strict=True):
        if isinstance(label, Facts):
            row += train_counts(label, pair.table)
    return counts[:, : len(dataset.classes)]


def class_pixels(dataset: Dataset) -> NDArray[np.int64]:
    """Labelled pixels of each class in a split, int64 C; labels that cannot be read count nowhere."""
    return class_counts(dataset).sum(0)


# --- reading ---


def read_pairs(dataset: Dataset, progress: Progress | None = None) -> list[tuple[Found, Found]]:
    """The facts of every (image, label) of a split, in its order."""
    files = [(pair.image, pair.label) for pair in dataset.pairs]
    return [(image, label) for image, label in read_files(files, progress) if image and label]


def read_files(files: Sequence[Files], progress: Progress | None = None) -> list[tuple[Found | None, Found | None]]:
    """The facts of every file, from memory where it has not changed (path, size, modification time).

    Only facts are remembered. What could not be read is tried again the next time: the reason may have been the
    memory or the disk.

    Args: progress: called with (done, to read) after each of those that had to be read.
    Returns: for each (image, label) what was found, None in the place of None.
    """
    memory = _Memory()
    found: list[tuple[Found | None, Found | None]] = [
        (memory.recall(image, "image"), memory.recall(label, "label")) for image, label in files
    ]

    def read(index: int) -> tuple[Found | None, Found | None]:
        (image, label), (known_image, known_label) = files[index], found[index]
        return (
            known_image or _read(image, _image_facts),
            known_label or _read(label, _label_facts),
        )

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


def _read(path: Path | None, facts_of: Callable[[Path], Facts]) -> Found | None:
    if path is None:
        return None
    try:
        path.stat()
    except OSError as error:
        return DataError(f"{path} cannot be read ({error.strerror}); is it a link to nowhere?")
    try:
        return facts_of(path)
    except DataError as error:
        return error


def _image_facts(path: Path) -> Facts:
    pixels = read_image(path)
    mean, std = cv2.meanStdDev(pixels)
    return _facts(path, pixels, mean=tuple(mean.ravel().tolist()), std=tuple(std.ravel().tolist()))


def _label_facts(path: Path) -> Facts:
    pixels = read_ids(path)
    counts = np.bincount(pixels.ravel(), minlength=256)
    return _facts(path, pixels, ids=tuple((int(i), int(counts[i])) for i in np.flatnonzero(counts)))


def _facts(path: Path, pixels: UInt8Array, **more: Any) -> Facts:
    with Image.open(path) as image:  # its header only
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        mode, format_ = image.mode, image.format or ""
    digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
    return Facts(pixels.shape[:2], mode, format_, orientation, digest, **more)


# --- memory ---


class _Memory:
    """Facts by folder, name, size and modification time: one JSON file for each folder of the data set.

    Losing it costs a second reading, never correctness: a cache that cannot be written or read is no error.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, Any]] = {}
        self._states: dict[Path, list[int]] = {}  # before reading: a file that changes meanwhile is read again
        self._changed: set[Path] = set()

    def recall(self, path: Path | None, kind: Kind) -> Facts | None:
        if path is None:
            return None
        entry = self._folder(path.parent).get(f"{kind} {path.name}")
        try:
            stat = path.stat()
            self._states[path] = [stat.st_size, stat.st_mtime_ns]
            if not entry or entry["state"] != self._states[path]:
                return None
            return Facts(**{key: _frozen(value) for key, value in entry["facts"].items()})
        except (OSError, TypeError, KeyError):
            return None

    def remember(self, path: Path, kind: Kind, facts: Facts) -> None:
        if path in self._states:
            self._folder(path.parent)[f"{kind} {path.name}"] = {"state": self._states[path], "facts": asdict(facts)}
            self._changed.add(path.parent)

    def save(self) -> None:
        for folder in self._changed:
            record = _record(folder)
            part = record.with_suffix(f".{os.getpid()}.part")
            try:
                record.parent.mkdir(parents=True, exist_ok=True)
                part.write_text(json.dumps({"format": _FORMAT, "files": self._folders[folder]}))
                part.replace(record)
            except OSError:
                with suppress(OSError):
                    part.unlink()

    def _folder(self, folder: Path) -> dict[str, Any]:
        if folder not in self._folders:
            self._folders[folder] = _load(_record(folder))
        return self._folders[folder]


def _record(folder: Path) -> Path:
    place = hashlib.sha256(str(folder.absolute()).encode(errors="surrogateescape")).hexdigest()[:24]
    return cache_folder() / "checked" / f"{place}.json"


def _load(record: Path) -> dict[str, Any]:
    try:
        stored = json.loads(record.read_text())
        return stored["files"] if stored["format"] == _FORMAT and isinstance(stored["files"], dict) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
