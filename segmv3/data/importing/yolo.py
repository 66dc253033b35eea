"""YOLO segmentation: a text file of polygons for each picture, in parts of its width and height."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segmv3.data.importing.annotated import AnnotationReader, Annotations, Picture
from segmv3.data.importing.base import split_named
from segmv3.data.importing.regions import Polygon, Region, polygon
from segmv3.errors import DataError
from segmv3.records import read_regular, typed

_MAX_BYTES = 100_000_000


class Yolo(AnnotationReader):
    """Smaller polygons lie above larger ones, as Ultralytics draws them."""

    name = "yolo"
    looks_for = "a .yaml with names, beside labels/*.txt"

    def files(self, source: Path) -> list[Path]:
        files = [source] if source.is_file() else sorted(source.glob("*.yaml"))
        named = [path for path in files if path.suffix == ".yaml" and path.is_file() and b"names:" in path.read_bytes()]
        return named[:1] if named and any(_labels(named[0].parent)) else []

    def add(self, found: Annotations, path: Path, source: Path) -> None:
        names = _names(path)
        found.colors |= dict.fromkeys(names.values())
        for file in _labels(path.parent):
            try:
                found.pictures.append(_picture(file, path.parent, names, found))
            except ValueError as error:
                raise DataError(f"{file}: {error}") from None


def _labels(root: Path) -> Iterator[Path]:
    files = (path for path in sorted(root.rglob("*.txt")) if "labels" in path.relative_to(root).parts[:-1])
    return (path for path in files if path.name != "classes.txt")


def _names(path: Path) -> dict[int, str]:
    try:
        content = typed(yaml.safe_load(read_regular(path, 1_000_000)), dict[str, Any])
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    names: Any = content.get("names")
    numbered: dict[Any, Any] = (
        dict(enumerate(names)) if isinstance(names, list) else typed(names, dict[str, Any], "names")
    )
    if not all(type(number) is int and isinstance(name, str) for number, name in numbered.items()):
        raise ValueError("names must be texts, numbered from 0")
    return {int(number): numbered[number] for number in sorted(numbered)}


def _picture(file: Path, root: Path, names: dict[int, str], found: Annotations) -> Picture:
    parts = list(file.relative_to(root).with_suffix("").parts)
    parts[max(i for i, part in enumerate(parts[:-1]) if part == "labels")] = "images"
    drawn: list[tuple[float, str, Region]] = []
    for number, line in enumerate(read_regular(file, _MAX_BYTES).decode("utf-8", "replace").splitlines(), 1):
        kind, *texts = line.split() or [""]
        if not kind:
            continue
        if not re.fullmatch("[0-9]{1,9}", kind) or int(kind) not in names:
            raise ValueError(f"line {number} begins with {kind[:20]!r}, no class of {', '.join(names.values())[:80]}")
        if len(texts) == 4:
            found.skipped["boxes, which are no regions"] += 1
            continue
        try:
            shape = polygon([float(text) for text in texts], "it", whole=1)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        drawn.append((_area(shape), names[int(kind)], shape))
    drawn.sort(key=lambda each: -each[0])
    split = next(filter(None, map(split_named, parts[:-1])), "")
    return Picture("/".join(parts), None, file, [(name, shape) for _, name, shape in drawn], split)


def _area(shape: Polygon) -> float:
    x, y = shape.ring.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
