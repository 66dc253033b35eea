"""COCO: JSON of images, categories and annotations, the regions as polygons or runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmv3.data.importing.annotated import (
    AnnotationReader,
    Annotations,
    Picture,
    has_keys,
    json_files,
    rgb_of,
    split_in,
)
from segmv3.data.importing.regions import Region, Runs, coco_counts, polygon, size_of
from segmv3.records import read_json, typed


@dataclass(frozen=True)
class _Image:
    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class _Category:
    id: int
    name: str
    color: Any = None


@dataclass(frozen=True)
class _Annotation:
    image_id: int
    category_id: int
    segmentation: Any = None
    iscrowd: Any = 0


@dataclass(frozen=True)
class _File:
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class Coco(AnnotationReader):
    """Polygons, runs and compressed runs; crowds lie below all others."""

    name = "coco"
    looks_for = "a .json with images, annotations and categories"

    def files(self, source: Path) -> list[Path]:
        files = json_files(source, "*.json", "annotations/*.json", "*/_annotations.coco.json")
        instances = [path for path in files if path.name.startswith("instances")]  # beside captions and key points
        return [path for path in instances or files if has_keys(path, "images", "annotations", "categories")]

    def add(self, found: Annotations, path: Path, source: Path) -> None:
        file, split = typed(read_json(path), _File), split_in(path.stem) or split_in(path.parent.name)
        names = {each.id: each.name for each in file.categories}
        for category in file.categories:
            found.colors.setdefault(category.name, rgb_of(category.color))
        pictures = {
            each.id: Picture(each.file_name, size_of(each.height, each.width, each.file_name), path, split=split)
            for each in file.images
        }
        for number, each in enumerate(sorted(file.annotations, key=lambda each: not each.iscrowd)):
            where = f"annotation {number + 1} of image {each.image_id}"
            if each.image_id not in pictures or each.category_id not in names:
                raise ValueError(f"{where} is of category {each.category_id}, and there is no such image or category")
            regions = _regions(each.segmentation, where)
            if not regions:
                found.skipped["annotations without a region, boxes alone"] += 1
            pictures[each.image_id].regions += [(names[each.category_id], region) for region in regions]
        found.pictures += pictures.values()


def _regions(segmentation: Any, where: str) -> list[Region]:
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        return [polygon(ring, f"{where}: polygon {place + 1}") for place, ring in enumerate(segmentation)]
    counts = typed(segmentation, dict, where).get("counts")
    runs = coco_counts(counts) if isinstance(counts, str) else typed(counts, list[int], f"{where}: counts")
    return [Runs(np.array(runs, np.int64), by_columns=True)]
