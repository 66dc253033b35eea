"""Street sets as their archives unpack. Files say where what lies and what ids and colours mean: `sets/`."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw

from segmv3.data.importing.base import Content, Frame, Label, Legend, Reader, SourceClass, Tell, legend_of, split_named
from segmv3.data.importing.names import rgb_of
from segmv3.data.importing.regions import size_of
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.importing.values import ids_of, packed
from segmv3.data.listing import images_below
from segmv3.errors import DataError, printable
from segmv3.images import UInt8Array, read_ids
from segmv3.labels import Classes, Color, cityscapes_classes
from segmv3.records import packaged, read_json, typed

_HERE = "segmv3.data.importing"


class StreetSet(Reader):
    """One of the sets of `sets/sets.toml`, which holds these fields of each."""

    uses = ("native",)
    title: ClassVar[str]
    marks: ClassVar[list[str]]
    """Glob patterns of what its root holds one of."""
    images: ClassVar[list[str]]
    """Regular expressions of the way of an image. Words: split, drive, and those of `labels` and `frame`."""
    labels: ClassVar[list[str]]
    """The ways that its label may have; the first that is there is read."""
    table: ClassVar[str]
    """The file of its classes."""
    frame: ClassVar[str] = "{name}"
    colors: ClassVar[bool] = False
    """Whether labels hold the colours of the classes."""
    val: ClassVar[str] = ""
    """Regular expression of the frames for val, where folders do not tell."""
    config: ClassVar[str] = ""
    """The archive's own list of classes, to compare with ours."""

    def look(self, source: Path, settings: ImportSettings) -> str | None:
        there = source.is_dir() and any(next(source.glob(mark), None) for mark in self.marks)
        return self.title if there else None

    def read(self, source: Path, settings: ImportSettings, tell: Tell) -> Content:
        classes = _classes(self.table)
        if self.config and (source / self.config).is_file():
            self._compare(source / self.config, classes)
        ways = [(path, Path(path).relative_to(source).as_posix()) for path in images_below(source).paths]
        frames, used = [], set[str]()
        for number, (path, way) in enumerate(ways):
            tell("files", number, len(ways))
            match = next(filter(None, (re.fullmatch(pattern, way) for pattern in self.images)), None)
            if match is None:
                continue
            words = match.groupdict()
            ways_of_label = (label.format(**words) for label in self.labels)
            file = next((label for label in ways_of_label if (source / label).is_file()), None)
            used |= {way, file or way}
            label = self._label(source / file, classes) if file else None
            name, split = self.frame.format(**words), split_named(words.get("split") or "")
            if self.val:
                split = "val" if re.search(self.val, name) else "train"
            frames.append(Frame(Path(path), name, label, drive=words.get("drive") or "", split=split))
        if not any(frame.label for frame in frames):
            raise DataError(f"{source} holds no image of {self.title} with a label; looked for {self.looks_for}")
        others = [way for _, way in ways if way not in used]
        left_out = [f"{len(others):,} other images of the archive (first: {others[0]})"] if others else []
        legend, said = _legend(classes, settings, source, self.title)
        return Content(legend, tuple(frames), tuple(left_out), (said,))

    def _label(self, path: Path, classes: Sequence["SetClass"]) -> Label:
        if path.suffix == ".json":
            return partial(_drawn, path, {each.name: each.id for each in classes})
        if self.colors:
            return partial(ids_of, path, {int(packed(each.rgb)): each.id for each in classes}, coloured=True)
        return partial(read_ids, path)

    def _compare(self, path: Path, classes: Sequence["SetClass"]) -> None:
        """Raises: DataError where the archive is of another version than the table."""
        try:
            listed = typed(typed(read_json(path), dict[str, Any]).get("labels"), list[dict[str, Any]], "labels")
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        if [each.get("name") for each in listed] != [each.name for each in classes]:
            raise DataError(f"{path} lists {len(listed)} classes that are not the {len(classes)} of {self.title}")


@dataclass(frozen=True)
class SetClass:
    """One class of a set."""

    id: int
    name: str
    rgb: Color
    cityscapes: str | None
    """The class of Cityscapes that it is, or None."""
    own: str | None
    """The class that the set's benchmark makes of it, or None where it ignores it."""


def street_sets() -> tuple[StreetSet, ...]:
    """Every set, in the order in which a folder is compared with them."""
    table = packaged(_HERE, "sets/sets.toml")
    return tuple(type(name, (StreetSet,), {"name": name, **fields})() for name, fields in table.items())


def _classes(table: str) -> list[SetClass]:
    rows = csv.reader(files(_HERE).joinpath("sets", table).read_text(encoding="utf-8").splitlines()[1:])
    return [
        SetClass(int(id_), name, rgb_of(rgb) or (0, 0, 0), city or None, own or None)
        for id_, name, rgb, city, own in rows
    ]


def _legend(classes: Sequence[SetClass], settings: ImportSettings, source: Path, title: str) -> tuple[Legend, str]:
    """The 19 classes of Cityscapes, those without a pixel too; or the set's own. And what was chosen, in words."""
    city = cityscapes_classes()
    if settings.native or not any(each.cityscapes for each in classes):
        sources = [SourceClass(each.id, each.name, each.own, each.rgb) for each in classes]
        return legend_of(sources, settings, source), f"the classes are those of {title}"
    known = sorted(classes, key=lambda each: city.names.index(each.cityscapes) if each.cityscapes else 19)
    sources = [SourceClass(each.id, each.name, each.cityscapes, each.rgb) for each in known]
    legend = legend_of(sources, settings, source)
    ignored = {name.casefold() for name in settings.ignore}
    kept = [i for i, name in enumerate(city.names) if name.casefold() not in ignored]
    own = "; --native keeps those of the set" if any(each.own for each in classes) else ""
    chosen = Classes(tuple(city.names[i] for i in kept), tuple(city.colors[i] for i in kept))
    return replace(legend, classes=chosen), f"the classes of {title} became the {len(kept)} of Cityscapes{own}"


def _drawn(path: Path, ids: dict[str, int]) -> UInt8Array:
    """The label that polygons of IDD make, drawn as its own script draws them. Raises: DataError."""
    try:
        content = typed(read_json(path), dict[str, Any])
        size = size_of(content.get("imgHeight"), content.get("imgWidth"), "the image")
        image = Image.new("L", size[::-1], ids["unlabeled"])
        for number, each in enumerate(typed(content.get("objects"), list[dict[str, Any]], "objects")):
            name = typed(each.get("label"), str, f"objects[{number}].label")
            name = name if name in ids else name.removesuffix("group")
            points = typed(each.get("polygon"), list[tuple[float, float]], f"objects[{number}].polygon")
            if name not in ids:
                raise ValueError(f"objects[{number}] is of the class {printable(name)}, which IDD has not")
            if not each.get("deleted") and len(points) > 1:
                corners = [(float(x), float(y)) for x, y in np.clip(points, -1e6, 1e6)]
                ImageDraw.Draw(image).polygon(corners, fill=ids[name])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return np.array(image, np.uint8)
