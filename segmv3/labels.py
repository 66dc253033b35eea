"""Class names, colours and the tables from stored label ids to train ids.

A label image holds one id per pixel. Nets are trained on *train ids* 0..C-1 with 255 = ignore. Each way of
storing labels is one `LabelTable`; the Cityscapes facts come from `cityscapesscripts.helpers.labels`.
"""

import colorsys
import json
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segmv3.errors import DataError
from segmv3.images import UInt8Array
from segmv3.records import read_regular

IGNORE = 255
"""The train id of pixels that count neither for the loss nor for the score."""

ILLEGAL = 254
"""What a table makes of an id that it does not know; no class has it."""

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
        if not 1 <= len(self.names) < ILLEGAL:
            raise ValueError(f"{len(self.names)} classes; between 1 and {ILLEGAL - 1} are possible")

    def __len__(self) -> int:
        return len(self.names)

    def key(self, train_ids: Iterable[int]) -> list[tuple[str, Color]]:
        """Names and colours of some classes in the order of their ids, for the key of a picture."""
        return [(self.names[i], self.colors[i]) for i in sorted(train_ids)]

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

    @cached_property
    def lookup(self) -> UInt8Array:
        """Train ids by stored id, 256 entries."""
        lookup = np.full(256, ILLEGAL, np.uint8)
        for stored, train in self.train_ids:
            lookup[stored] = train
        return lookup

    @property
    def legal(self) -> frozenset[int]:
        return frozenset(stored for stored, _ in self.train_ids)

    def to_train_ids(self, stored: UInt8Array, path: Path | str) -> UInt8Array:
        """Map stored ids (uint8 H x W) to train ids (uint8 H x W, 255 = ignore).

        Raises: DataError naming `path` and the ids when any id is not legal for this kind of file.
        """
        labels = np.take(self.lookup, stored)
        if (labels == ILLEGAL).any():
            raise DataError(self._complaint(set(np.unique(stored).tolist()), path))
        return labels

    def _complaint(self, found: set[int], path: Path | str) -> str:
        illegal = sorted(found - self.legal)
        text = f"{path} has ids {{{listed(illegal)}}}; expected {_ranges(self.legal)} ({self.kind})."
        city_ids, city_train_ids = cityscapes_label_ids(), cityscapes_label_train_ids()
        if self == city_train_ids and found <= city_ids.legal:
            text += " These look like labelIds: name the file *_labelIds.png."
        elif self == city_ids and found <= city_train_ids.legal:
            text += " These look like labelTrainIds: name the file *_labelTrainIds.png."
        elif self not in (city_ids, city_train_ids):
            text += f" List {'it' if len(illegal) == 1 else 'them'} in {self.kind}, or mend the label."
        return text


def listed(ids: Collection[int]) -> str:
    """The first eight of some ids, for messages."""
    return ", ".join(map(str, sorted(ids)[:8])) + (", ..." if len(ids) > 8 else "")


def _ranges(ids: frozenset[int]) -> str:
    """`{0, 1, 2, 255}` as `0-2 or 255`."""
    runs: list[list[int]] = []
    for value in sorted(ids):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return " or ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def named_classes(*names: str) -> Classes:
    """Classes in evenly spaced colours, train id 0 first."""
    return Classes(names, tuple(_spaced_color(i, len(names)) for i in range(len(names))))


def numbered_classes(count: int) -> Classes:
    """Classes without names of their own: class_0, class_1, ..."""
    return named_classes(*(f"class_{i}" for i in range(count)))


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


def class_name(name: object) -> str:
    """A class name as it is kept: in Unicode's normal form C, without spaces around it.

    What cannot be seen, or changes how other text is shown, is refused: two names that look alike must be one. Every
    reader of names (classes files, folders of pictures, weight files) asks here.

    Args:
        name: what a file holds in the place of a name.

    Raises: ValueError saying what is wrong with it, by code point.
    """
    if not isinstance(name, str):
        raise ValueError(f"a class name must be text, found {_shown(name)}")
    kept = unicodedata.normalize("NFC", name).strip(" ")
    if not kept:
        raise ValueError("a class name is empty")
    if len(kept) > _LONGEST_NAME:
        raise ValueError(
            f"a class name has {len(kept):,} characters ({ascii(kept[:20])[1:-1]}...), at most 100 are taken"
        )
    for character in kept:
        if (unicodedata.category(character) in _UNSEEN and character != " ") or character in _BLANK_LETTERS:
            what = unicodedata.name(character, "a control character" if character < "\xa0" else "no text")
            raise ValueError(f"the class name {kept!a} holds U+{ord(character):04X} ({what}): write it anew without")
    return kept


_LONGEST_NAME = 100
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})  # control, format, surrogate; line, paragraph, other spaces
_BLANK_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # fillers, the empty Braille pattern and the like


def read_classes(root: Path) -> tuple[Classes, LabelTable]:
    """Read the classes file of a data folder.

    `classes.json` holds `{"classes": [{"id": 0, "name": "road", "rgb": [128, 64, 128]}, ...]}`; an entry with
    `"ignore": true` is left out of loss and score, `rgb` may be missing. `classes.txt` holds one name a line,
    the first being id 0. Stored id 255 always means ignore.

    Raises: DataError when there is no such file, it cannot be understood, or it leaves less than two classes.
    """
    for path in (root / "classes.json", root / "classes.txt"):
        if path.exists() or path.is_symlink():
            parse = parse_json if path.suffix == ".json" else _parse_text
            return classes_of(parse(text_of(path), path), path)
    raise DataError(f"no classes.json or classes.txt in {root}; see data/README.md for its form")


def text_of(path: Path) -> str:
    """The text of a file of class names. Raises: DataError naming the path."""
    try:
        return read_regular(path, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save it as such") from None
    except ValueError as error:
        raise DataError(f"{path} {error}; it must be a file of class names, see data/README.md") from None


_MAX_BYTES = 1_000_000


def _parse_text(text: str, path: Path) -> list[dict[str, Any]]:
    """Lines end with a line feed, as editors show them; any other break is part of a name, which is then refused."""
    lines = (line.strip(" \t\r") for line in text.replace("\r\n", "\n").split("\n"))
    return [{"id": i, "name": name} for i, name in enumerate(filter(None, lines))]


def parse_json(text: str, path: Path) -> list[dict[str, Any]]:
    """The entries of a classes.json, not looked at yet. Raises: DataError naming the path."""

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) < len(items):
            raise ValueError("a key stands twice in one object")
        return dict(items)

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        entries = json.loads(text, object_pairs_hook=once, parse_constant=no_number)
        entries = entries.get("classes") if isinstance(entries, dict) else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be understood ({error}); see data/README.md") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        form = '{"classes": [{"id": 0, "name": "road"}, ...]}'
        raise DataError(f"{path} cannot be understood; its form is {form}, see data/README.md")
    return entries


def classes_of(entries: list[dict[str, Any]], path: Path) -> tuple[Classes, LabelTable]:
    """Classes from the entries of a classes file.

    Args:
        entries: each with `id` and `name`, maybe `rgb` and `ignore`.
        path: the file, for messages.

    Returns:
        The classes to learn in the order of the entries, and the table from their ids.

    Raises:
        DataError: an entry cannot be understood, two have the same id or name, or less than two classes are left.
    """
    if len(entries) > 256:
        raise DataError(f"{path} names {len(entries):,} classes; there are 256 ids")
    names: dict[int, str] = {}
    kept: list[dict[str, Any]] = []
    for entry in entries:
        number, ignored = entry.get("id"), entry.get("ignore")
        if type(number) is not int or not 0 <= number <= 255:  # a bool is an int, too
            raise DataError(f"{path}: an id must be a whole number between 0 and 255, found {_shown(number)}")
        if number in names:
            raise DataError(f"{path}: ids must be different, and {number} stands twice")
        if not isinstance(ignored, bool | None):
            raise DataError(f'{path}: "ignore" of id {number} must be true or false, found {_shown(ignored)}')
        try:
            names[number] = class_name(entry.get("name"))
        except ValueError as error:
            raise DataError(f"{path}: id {number}: {error}") from None
        if number == IGNORE and not ignored:
            raise DataError(
                f"{path}: id 255 of class {names[number]!r} always means ignore; store the class under another id, "
                'here and in the label files, or mark it "ignore": true'
            )
        if not ignored:
            kept.append(entry)
    return _kept_classes(kept, names, path)


def _kept_classes(kept: list[dict[str, Any]], names: dict[int, str], path: Path) -> tuple[Classes, LabelTable]:
    """Of the entries that are not ignored; `names` are those of all, by id."""
    if len(kept) == 1:
        only = names[kept[0]["id"]]
        raise DataError(f"{path} leaves one class to learn ({only}): a net of one class is always right; name another")
    if not 2 <= len(kept) < ILLEGAL:
        raise DataError(f"{path} names {len(kept)} classes; between 2 and {ILLEGAL - 1} are possible")
    learned = tuple(names[entry["id"]] for entry in kept)
    if twice := next((name for i, name in enumerate(learned) if name in learned[:i]), None):
        raise DataError(f"{path}: two classes have the same name, {twice}")
    colors = tuple(_color(entry.get("rgb"), i, len(kept), path) for i, entry in enumerate(kept))
    table = dict.fromkeys((*names, IGNORE), IGNORE) | {entry["id"]: i for i, entry in enumerate(kept)}
    return Classes(learned, colors), LabelTable(path.name, tuple(sorted(table.items())))


def _color(rgb: object, index: int, count: int, path: Path) -> Color:
    if rgb is None:
        return _spaced_color(index, count)
    if not (isinstance(rgb, list) and len(rgb) == 3 and all(type(v) is int and 0 <= v <= 255 for v in rgb)):
        raise DataError(f"{path}: rgb must be three numbers from 0 to 255, found {_shown(rgb)}")
    return tuple(rgb)


def _shown(value: object) -> str:
    """A value of a file in a message: short, and on one line."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deep; an integer of over 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:40] + "..."


def announced_classes(weights: Path) -> Classes | None:
    """What a weight file of segmv3 says of its classes, read without torch and without a check of the rest.

    Returns:
        None where it says nothing that can be used: whoever opens the file finds out why.
    """
    try:
        with weights.open("rb") as file:
            text = file.read(min(int.from_bytes(file.read(8), "little"), 1_000_000))
        header = json.loads(json.loads(text)["__metadata__"]["segmv3"])
        names, colors = tuple(header["classes"]), tuple((int(r), int(g), int(b)) for r, g, b in header["palette"])
        return Classes(tuple(map(class_name, names)), colors)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
