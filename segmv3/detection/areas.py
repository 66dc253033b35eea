"""The labels of a data set whose images have boxes too."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from segmv3.config import Data
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.listing import count_of, warn_of
from segmv3.detection.settings import BoxData
from segmv3.errors import DataError, printable
from segmv3.labels import Classes

if TYPE_CHECKING:
    from segmv3.detection.coco import BoxSet


def with_areas(boxes: "BoxSet", data: BoxData) -> "BoxSet":
    """Give the images of a split their labels, and boxes and labels one list of classes.

    The list is that of the labels; categories that they do not have follow it.

    Raises:
        DataError: an image has no label, or the labels cannot be opened.

    Warns:
        Segmv3Warning: images with labels that the boxes do not name.
    """
    assert data.areas
    labelled = open_dataset(Data(dataset=data.areas, root=data.root), boxes.split)
    pairs = {pair.image.resolve(): pair for pair in labelled.pairs}
    files = [(boxes.folder / name).resolve() for name in boxes.names]
    if lost := [name for name, file in zip(boxes.names, files, strict=True) if file not in pairs]:
        raise DataError(
            f"{count_of(len(lost), 'image', 'images')} of {boxes.file} {'has' if len(lost) == 1 else 'have'} no label "
            f"in the layout {data.areas} (first: {printable(lost[0])[:120]}); label them, or set --data.areas"
        )
    left = len(pairs.keys() - files)
    named = count_of(left, "image with a label is", "images with labels are")
    warn_of([f"{boxes.file}: {named} not in it and left out"] if left else [])
    classes, places = _joined(labelled.classes, boxes.classes)
    rows = tuple(each.copy() for each in boxes.boxes)
    for each in rows:
        each[:, 4] = places[each[:, 4].astype(int)]
    areas = Dataset(labelled.title, boxes.split, classes, tuple(pairs[file] for file in files))
    return replace(boxes, classes=classes, boxes=rows, areas=areas)


def _joined(areas: Classes, boxes: Classes) -> tuple[Classes, "np.ndarray"]:
    """One list of classes, and the place in it of each class of the boxes."""
    own = [(name, color) for name, color in zip(boxes.names, boxes.colors, strict=True) if name not in areas.names]
    names = (*areas.names, *(name for name, _ in own))
    try:
        joined = Classes(names, (*areas.colors, *(color for _, color in own)))
    except ValueError as error:
        raise DataError(f"boxes and labels have too many classes together: {error}") from None
    return joined, np.array([names.index(name) for name in boxes.names])
