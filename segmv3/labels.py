"""Class names, colours and the tables from stored label ids to train ids.

A label image holds one id per pixel. Nets are trained on *train ids* 0..C-1 with 255 = ignore. Each way of
storing labels is one `LabelTable`; the Cityscapes facts come from `cityscapesscripts.helpers.labels`.
"""

import colorsys
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from segmv3.errors import DataError
from segmv3.images import UInt8Array

IGNORE = 255
"""The train id of pixels that count neither for the loss nor for the score."""

_ILLEGAL = 254  # inside a table only: a class count that large is refused

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in train-id order."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    """RGB, 0..255, one per class; for display only."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ValueError(f"{len(self.names)} names but {len(self.colors)} colours")
        if not 1 <= len(self.names) < _ILLEGAL:
            raise ValueError(f"{len(self.names)} classes; between 1 and {_ILLEGAL - 1} are possible")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> UInt8Array:
        """uint8 256 x 3, RGB by train id; ignore and unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self)] = self.colors
        return palette


@dataclass(frozen=True)
class LabelTable:
    """How one kind of label file stores its classes."""

    kind: str
    train_ids: tuple[tuple[int, int], ...]
    """(stored id, train id or IGNORE) of every legal stored id."""

    def __post_init__(self) -> None:
        lookup = np.full(256, _ILLEGAL, np.uint8)
        for stored, train in self.train_ids:
            lookup[stored] = train
        object.__setattr__(self, "_lookup", lookup)

    @property
    def legal(self) -> frozenset[int]:
        return frozenset(stored for stored, _ in self.train_ids)

    def to_train_ids(self, stored: UInt8Array, path: Path | str) -> UInt8Array:
        """Map stored ids (uint8 H x W) to train ids (uint8 H x W, 255 = ignore).

        Raises: DataError naming `path` and the ids when any id is not legal for this kind of file.
        """
        lookup: UInt8Array = self._lookup  # type: ignore[attr-defined]
        labels = np.take(lookup, stored)
        if (labels == _ILLEGAL).any():
            raise DataError(self._complaint(set(np.unique(stored).tolist()), path))
        return labels

    def _complaint(self, found: set[int], path: Path | str) -> str:
        illegal = sorted(found - self.legal)
        shown = ", ".join(map(str, illegal[:8])) + (", ..." if len(illegal) > 8 else "")
        text = f"{path} has ids {{{shown}}}; expected {_ranges(self.legal)} ({self.kind})."
        city_ids, city_train_ids = cityscapes_label_ids(), cityscapes_label_train_ids()
        if self != city_ids and found <= city_ids.legal and len(city_ids.legal) > len(self.legal):
            text += " These look like labelIds: name the file *_labelIds.png, or list them in classes.json."
        elif self == city_ids and found <= city_train_ids.legal:
            text += " These look like labelTrainIds: name the file *_labelTrainIds.png."
        return text


def _ranges(ids: frozenset[int]) -> str:
    """`{0, 1, 2, 255}` as `0-2 or 255`."""
    runs: list[list[int]] = []
    for value in sorted(ids):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return " or ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def numbered_classes(count: int) -> Classes:
    """Classes without names of their own: class_0, class_1, ... in evenly spaced colours."""
    return Classes(tuple(f"class_{i}" for i in range(count)), tuple(_spaced_color(i, count) for i in range(count)))


def are_numbered(names: tuple[str, ...]) -> bool:
    """Whether class names were made up for weights that came without any."""
    return names == tuple(f"class_{i}" for i in range(len(names)))


def _spaced_color(index: int, count: int) -> Color:
    """Evenly spaced hues, alternating in brightness so that neighbours differ."""
    r, g, b = colorsys.hsv_to_rgb(index / count, 0.65, 0.95 if index % 2 else 0.7)
    return round(r * 255), round(g * 255), round(b * 255)


@cache
def cityscapes_classes() -> Classes:
    """The 19 classes of the Cityscapes benchmark."""
    from cityscapesscripts.helpers.labels import trainId2label

    labels = [trainId2label[i] for i in range(19)]
    return Classes(tuple(label.name for label in labels), tuple(label.color for label in labels))


@cache
def cityscapes_label_ids() -> LabelTable:
    """`*_labelIds.png`: ids 0..33, of which 19 are classes and the rest is ignored."""
    from cityscapesscripts.helpers.labels import labels

    return LabelTable("labelIds", tuple((x.id, x.trainId) for x in labels if x.id >= 0))


@cache
def cityscapes_label_train_ids() -> LabelTable:
    """`*_labelTrainIds.png`: train ids 0..18, and 255 = ignore."""
    return LabelTable("labelTrainIds", (*((i, i) for i in range(19)), (IGNORE, IGNORE)))


def read_classes(root: Path) -> tuple[Classes, LabelTable]:
    """Read the classes file of a data folder.

    `classes.json` holds `{"classes": [{"id": 0, "name": "road", "rgb": [128, 64, 128]}, ...]}`; an entry with
    `"ignore": true` is left out of loss and score, `rgb` may be missing. `classes.txt` holds one name a line,
    the first being id 0. Stored id 255 always means ignore.

    Raises: DataError when there is no such file, or it cannot be understood.
    """
    for path, parse in ((root / "classes.json", _parse_json), (root / "classes.txt", _parse_text)):
        if path.is_file():
            try:
                entries = parse(path.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError:
                raise DataError(f"{path} is not UTF-8 text; save it as such") from None
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise DataError(f"{path} cannot be understood ({error!r}); see data/README.md") from None
            return _classes_of(entries, path)
    raise DataError(f"no classes.json or classes.txt in {root}; see data/README.md for its form")


def _parse_text(text: str) -> list[dict]:
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return [{"id": i, "name": name} for i, name in enumerate(names)]


def _parse_json(text: str) -> list[dict]:
    entries = json.loads(text)["classes"]
    return [{**entry, "id": int(entry["id"]), "name": str(entry["name"])} for entry in entries]


def _classes_of(entries: list[dict], path: Path) -> tuple[Classes, LabelTable]:
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) != len(ids) or any(not 0 <= i <= 255 for i in ids):
        raise DataError(f"{path}: ids must be different and between 0 and 255, found {ids}")
    kept = [entry for entry in entries if not entry.get("ignore") and entry["id"] != IGNORE]
    if not 1 <= len(kept) < _ILLEGAL:
        raise DataError(f"{path} names {len(kept)} classes; between 1 and {_ILLEGAL - 1} are possible")
    names = tuple(entry["name"] for entry in kept)
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two classes have the same name")
    colors = tuple(_color(entry.get("rgb"), i, len(kept), path) for i, entry in enumerate(kept))
    table = {entry["id"]: IGNORE for entry in entries} | {IGNORE: IGNORE}
    table |= {entry["id"]: i for i, entry in enumerate(kept)}
    return Classes(names, colors), LabelTable(path.name, tuple(sorted(table.items())))


def _color(rgb: object, index: int, count: int, path: Path) -> Color:
    if rgb is None:
        return _spaced_color(index, count)
    if not (isinstance(rgb, list) and len(rgb) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in rgb)):
        raise DataError(f"{path}: rgb must be three numbers from 0 to 255, found {rgb!r}")
    return tuple(rgb)
