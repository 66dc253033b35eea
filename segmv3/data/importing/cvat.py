"""CVAT for images 1.1: XML of images with polygons and masks, alone or in the archive that CVAT exports."""

import re
import zipfile
from contextlib import suppress
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, fromstring

import numpy as np

from segmv3.data.importing.annotated import AnnotationReader, Annotations, Picture
from segmv3.data.importing.base import split_named
from segmv3.data.importing.names import rgb_of
from segmv3.data.importing.regions import Region, Runs, polygon, size_of
from segmv3.records import read_regular

_MAX_BYTES = 1_000_000_000
_XML = "annotations.xml"


class Cvat(AnnotationReader):
    """Shapes of a higher z-order lie above others, and later ones above earlier ones."""

    name = "cvat"
    looks_for = "annotations.xml of CVAT for images 1.1, or a .zip that holds it"

    def files(self, source: Path) -> list[Path]:
        path = source / _XML if source.is_dir() else source
        if path.suffix == ".zip" and path.is_file():
            with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
                return [path] if _XML in archive.namelist() else []
        return [path] if path.suffix == ".xml" and path.is_file() else []

    def add(self, found: Annotations, path: Path, source: Path) -> None:
        root = tree_of(_unpacked(path) if path.suffix == ".zip" else read_regular(path))
        if root.find("track") is not None:
            raise ValueError('holds tracks of a video: export it as "CVAT for images 1.1"')
        for label in root.iterfind("./meta//labels/label"):
            found.colors[label.findtext("name") or ""] = rgb_of(label.findtext("color"))
        found.pictures += [_picture(image, path, found) for image in root.iterfind("image")]


def _unpacked(path: Path) -> bytes:
    """The annotations in an archive, up to a limit: a small archive can hold terabytes."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_XML) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{_XML} cannot be read from it ({error})") from None
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{_XML} in it is larger than {_MAX_BYTES / 1e6:,.0f} MB")
    return data


def tree_of(data: bytes) -> Element:
    """XML without a document type, so that there are no entities to expand.

    Raises: ValueError for what is no such XML.
    """
    text = data.decode()
    if "<!DOCTYPE" in text:
        raise ValueError("declares a document type or entities, which CVAT never does; it is not read")
    try:
        return fromstring(text)
    except ParseError as error:
        raise ValueError(f"is no XML ({error})") from None


def _picture(image: Element, path: Path, found: Annotations) -> Picture:
    name = image.get("name", "")
    size = size_of(_numbers(image, "height")[0], _numbers(image, "width")[0], name)
    picture = Picture(name, size, path, split=split_named(image.get("subset", "")))
    for shape in sorted(image, key=lambda shape: _numbers(shape, "z_order", "0")[0]):
        where = f"a {shape.tag} of {name}"
        region: Region
        if shape.tag == "polygon":
            region = polygon(
                [list(map(float, point.split(","))) for point in shape.get("points", "").split(";")], where
            )
        elif shape.tag == "mask":
            left, top, width, height = (_numbers(shape, key)[0] for key in ("left", "top", "width", "height"))
            region = Runs(np.array(_numbers(shape, "rle"), np.int64), box=(left, top, width, height))
        else:
            found.skipped[f"shapes of the type {shape.tag}: only polygons and masks are regions"] += 1
            continue
        picture.regions.append((shape.get("label", ""), region))
    return picture


def _numbers(element: Element, key: str, default: str | None = None) -> list[int]:
    """The whole numbers of an attribute."""
    text = element.get(key, default)
    if text is None:
        raise ValueError(f"{element.tag} has no {key}")
    numbers = [int(number) for number in text.split(",") if re.fullmatch(r"\s*-?\d{1,9}\s*", number)]
    if len(numbers) != text.count(",") + 1:
        raise ValueError(f"{key} of {element.tag} is {text[:20]!r}, no whole numbers")
    return numbers
