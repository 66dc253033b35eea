"""LabelMe: a JSON file of shapes for each picture."""

import os
from dataclasses import dataclass
from pathlib import Path

from segmv3.data.importing.annotated import AnnotationReader, Annotations, Picture, has_keys
from segmv3.data.importing.base import split_named
from segmv3.data.importing.regions import polygon, size_of
from segmv3.records import read_json, typed


@dataclass(frozen=True)
class _Shape:
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = None


@dataclass(frozen=True)
class _File:
    shapes: list[_Shape]
    imagePath: str
    imageHeight: int | None = None
    imageWidth: int | None = None


class LabelMe(AnnotationReader):
    """Polygons and rectangles; later shapes lie above earlier ones."""

    name = "labelme"
    looks_for = "a .json with shapes and imagePath for each picture"

    def files(self, source: Path) -> list[Path]:
        files = [source] if source.suffix == ".json" else sorted(source.rglob("*.json")) if source.is_dir() else []
        return files if any(has_keys(path, "shapes", "imagePath") for path in files) else []

    def add(self, found: Annotations, path: Path, source: Path) -> None:
        content = read_json(path)
        if not isinstance(content, dict) or "shapes" not in content:
            found.skipped[".json files without shapes"] += 1
            return
        file = typed(content, _File)
        below = os.path.relpath(path.parent, source if source.is_dir() else source.parent)
        way = os.path.normpath(os.path.join(below, file.imagePath.replace("\\", "/")))  # noqa: PTH118 (not opened)
        size = None if file.imageHeight is None else size_of(file.imageHeight, file.imageWidth, file.imagePath)
        split = next(filter(None, map(split_named, Path(below).parts)), "")
        picture = Picture(way, size, path, split=split)
        for number, shape in enumerate(file.shapes, 1):
            points = [list(point) for point in shape.points]
            if shape.shape_type == "rectangle" and len(points) == 2:
                (x, y), (x2, y2) = points
                points = [[x, y], [x2, y], [x2, y2], [x, y2]]
            elif shape.shape_type not in (None, "polygon"):
                found.skipped[f"shapes of the type {shape.shape_type}: only polygons and rectangles are taken"] += 1
                continue
            picture.regions.append((shape.label, polygon(points, f"shape {number} ({shape.label})")))
        found.pictures.append(picture)
