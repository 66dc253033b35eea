"""COCO: JSON of images, categories and annotations, the regions as polygons or runs."""

from pathlib import Path
from typing import Any

import numpy as np

from segmv3.data.importing.annotated import (
    AnnotationReader,
    Annotations,
    Picture,
    has_keys,
    json_files,
    split_in,
)
from segmv3.data.importing.names import rgb_of
from segmv3.data.importing.regions import Region, Runs, Size, coco_counts, polygon, size_of
from segmv3.records import read_json, typed


class Coco(AnnotationReader):
    """Polygons, runs and compressed runs; crowds lie below all others."""

    name = "coco"
    looks_for = "a .json with images, annotations and categories"

    def files(self, source: Path) -> list[Path]:
        files = json_files(source, "*.json", "annotations/*.json", "*/_annotations.coco.json")
        instances = [path for path in files if path.name.startswith("instances")]  # beside captions and key points
        return [path for path in instances or files if has_keys(path, "images", "annotations", "categories")]

    def add(self, found: Annotations, path: Path, source: Path) -> None:
        file, split = typed(read_json(path), dict[str, Any]), split_in(path.stem) or split_in(path.parent.name)
        images, categories, annotations = (
            typed(file.get(key), list[dict[str, Any]], key) for key in ("images", "categories", "annotations")
        )
        names: dict[int, str] = {}
        for each in categories:
            name = typed(each.get("name"), str, "the name of a category")
            number = typed(each.get("id"), int, f"the id of {name}")
            if names.setdefault(number, name) != name:
                raise ValueError(f"the categories {names[number]} and {name} have the same id {number}")
            found.colors.setdefault(name, rgb_of(each.get("color")))
        pictures: dict[int, Picture] = {}
        for each in images:
            name = typed(each.get("file_name"), str, "the file_name of an image")
            size = size_of(each.get("height"), each.get("width"), name)
            number = typed(each.get("id"), int, f"the id of {name}")
            if number in pictures:
                raise ValueError(f"the images {pictures[number].file} and {name} have the same id {number}")
            pictures[number] = Picture(name, size, path, split=split)
        for number, each in enumerate(sorted(annotations, key=lambda each: not each.get("iscrowd")), 1):
            image, category = (typed(each.get(key), int, key) for key in ("image_id", "category_id"))
            where = f"annotation {number} of image {image}"
            if image not in pictures or category not in names:
                raise ValueError(f"{where} is of category {category}, and there is no such image or category")
            regions = _regions(each.get("segmentation"), pictures[image].size, where)
            if not regions:
                found.skipped["annotations without a region, boxes alone"] += 1
            pictures[image].regions += [(names[category], region) for region in regions]
        found.pictures += pictures.values()


def _regions(segmentation: Any, size: Size | None, where: str) -> list[Region]:
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        return [polygon(ring, f"{where}: polygon {place + 1}") for place, ring in enumerate(segmentation)]
    own = typed(segmentation, dict, where).get("size")
    if own is not None and tuple(typed(own, list[int], f"{where}: size")) != size:
        raise ValueError(f"{where} has runs of another size (height and width {own}) than its image {size}")
    counts = segmentation.get("counts")
    runs = coco_counts(counts) if isinstance(counts, str) else typed(counts, list, f"{where}: counts")
    return [Runs(np.array(runs if set(map(type, runs)) == {int} else typed(runs, list[int], where)), by_columns=True)]
