"""Class names and colours as people write them down."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from segmv3.data.importing.settings import ImportSettings
from segmv3.errors import ConfigError, DataError
from segmv3.labels import Color, parse_json, text_of

_USUAL = ("classes.json", "classes.txt", "labelmap.txt", "label_colors.txt", "class_dict.csv")
_NUMBER = r"(?:\d|\d\d|[01]\d\d|2[0-4]\d|25[0-5])"
_RGB = re.compile(rf"(?<![\w.])({_NUMBER})[,;\s]+({_NUMBER})[,;\s]+({_NUMBER})(?![\w.])")
_ID = re.compile(r"^\s*(\d{1,5})\s*[,;:=\s]\s*(?=\S)")


@dataclass(frozen=True)
class Named:
    """A class as a file or a flag names it."""

    name: str
    id: int | None = None
    rgb: Color | None = None
    ignored: bool = False


def names_given(source: Path, settings: ImportSettings) -> tuple[tuple[Named, ...], Path | str]:
    """The classes that the user or a file in the source names; none where nobody does, and where they are from.

    Raises: ConfigError for two flags that contradict each other, DataError for a file that is not understood.
    """
    if settings.classes and settings.palette:
        raise ConfigError("--classes and --palette both name the classes; give one of them")
    files = [settings.palette] if settings.palette else []
    if len(settings.classes) == 1 and Path(settings.classes[0]).suffix in (".txt", ".json", ".csv"):
        files = [Path(settings.classes[0])]
    elif settings.classes:
        return tuple(map(Named, settings.classes)), "--classes"
    places = (source, *sorted(path for path in source.iterdir() if path.is_dir()))
    files = files or [path for place in places for name in _USUAL if (path := place / name).is_file()]
    return (names_in(files[0]), files[0]) if files else ((), source)


def names_in(path: Path) -> tuple[Named, ...]:
    """The classes of a file: a classes.json, or lines of a name, with an id in front or three numbers of a colour.

    CamVid's `label_colors.txt`, CVAT's `labelmap.txt` and tables of name, r, g, b are such files.

    Raises: DataError naming the path.
    """
    text = text_of(path)
    if path.suffix == ".json":
        return tuple(_of_json(path, text))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise DataError(f"{path} names no class")
    if not any(map(_RGB.search, lines)):
        matches = [match for line in lines if (match := _ID.match(line))]
        if len(matches) < len(lines):
            return tuple(map(Named, lines))
        return tuple(Named(match.string[match.end() :], int(match[1])) for match in matches)
    if not _RGB.search(lines[0]):  # the head of a table
        lines = lines[1:]
    return tuple(_coloured(line, path) for line in lines)


def _coloured(line: str, path: Path) -> Named:
    match = _ID.match(line)
    if match and not _RGB.search(line, match.end()):  # the first number is red
        match = None
    rest = line[match.end() :] if match else line
    found = _RGB.search(rest)
    if not found:
        raise DataError(f"{path}: a line has no colour: {line}; write a name and three numbers from 0 to 255")
    name = (rest[: found.start()] + rest[found.end() :]).strip(" \t,;:")
    red, green, blue = map(int, found.groups())
    return Named(name, int(match[1]) if match else None, (red, green, blue))


def _of_json(path: Path, text: str) -> list[Named]:
    rows = []
    for entry in parse_json(text, path):
        name, id_, rgb = entry.get("name"), entry.get("id"), entry.get("rgb")
        color = rgb_of(rgb)
        if not isinstance(name, str) or type(id_) not in (int, NoneType) or (color is None) != (rgb is None):
            raise DataError(f'{path}: an entry must be like {{"id": 0, "name": "road", "rgb": [128, 64, 128]}}')
        rows.append(Named(name, id_, color, entry.get("ignore") is True))
    return rows


def rgb_of(color: object) -> Color | None:
    """A colour of a file: `#804080` or three numbers; None for what is neither."""
    if isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color):
        red, green, blue = bytes.fromhex(color[1:])
        return red, green, blue
    numbers = color if isinstance(color, list) and len(color) == 3 else ()
    return tuple(numbers) if numbers and all(type(n) is int and 0 <= n < 256 for n in numbers) else None
