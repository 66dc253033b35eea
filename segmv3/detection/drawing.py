"""Boxes as pictures, and as the files that `segmv3 detect predict` writes."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.draw import font, overlay
from segmv3.prediction.annotations import Coco
from segmv3.prediction.contract import Job, Shot
from segmv3.prediction.gathering import Piece
from segmv3.prediction.results import Picture

_PADDING = 3


def draw_boxes(image: UInt8Array, boxes: NDArray[np.float32], classes: Classes) -> UInt8Array:
    """Draw boxes with their classes, the surest last, so that it lies above the others.

    Args:
        image: uint8 H x W x 3, RGB.
        boxes: n x 6: left, top, right, bottom in pixels, class, and score 0..1, which is written where it is above 0.
        classes: names and colours.

    Returns:
        uint8 H x W x 3, a new array.
    """
    picture = Image.fromarray(image)
    pen, side = ImageDraw.Draw(picture), min(image.shape[:2])
    line, face = max(1, round(side / 250)), font(max(11, round(side / 32)))
    for left, top, right, bottom, label, score in sorted(boxes.tolist(), key=lambda row: row[5]):
        color = classes.colors[int(label)]
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=line)
        text = classes.names[int(label)] + (f" {score:.0%}" if score else "")
        _, _, width, height = map(int, pen.textbbox((0, 0), text, font=face))
        x = max(0.0, min(left, image.shape[1] - width - 2 * _PADDING))
        y = top - height - _PADDING if top >= height + _PADDING else top
        pen.rectangle((x, y, x + width + 2 * _PADDING, y + height + _PADDING), fill=color)
        ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
        pen.text((x + _PADDING, y), text, fill=ink, font=face)
    return np.array(picture)


def draw_found(
    image: UInt8Array, boxes: NDArray[np.float32], labels: UInt8Array | None, classes: Classes
) -> UInt8Array:
    """`draw_boxes` over the colours of the areas, where a net labels them."""
    return draw_boxes(image if labels is None else overlay(image, labels, classes), boxes, classes)


def _boxes(shot: Shot) -> NDArray[np.float32]:
    """What a detector found."""
    assert shot.boxes is not None
    return shot.boxes


class DrawnBoxes(Picture):
    """Boxes over the image and its areas, a PNG for each image and a video for each video."""

    name = "boxes"

    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        return draw_found(shot.image, _boxes(shot), shot.labels if shot.labels.size else None, job.classes)


class CocoBoxes(Coco):
    """COCO's JSON, an annotation with a score for each box."""

    file = "boxes.json"

    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        height, width = shot.image.shape[:2]
        found = []
        for place, (left, top, right, bottom, label, score) in enumerate(_boxes(shot).tolist(), 1):
            box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
            about: dict[str, Any] = {
                **{"id": 1000 * index + place, "image_id": index + 1, "category_id": int(label) + 1, "iscrowd": 0},
                **{"bbox": box, "area": round(box[2] * box[3], 2), "score": round(score, 4)},
            }
            found.append(json.dumps(about))
        image = {"id": index + 1, "file_name": shot.file or shot.name, "width": width, "height": height}
        return self.between.join(found), json.dumps(image)
