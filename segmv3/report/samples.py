"""Pictures of a report: an image, its truth, what was predicted, and where that is wrong."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.draw import colorize, draw_errors, font, legend, occurring, shorten


@dataclass(frozen=True)
class Sample:
    """One image with its labels."""

    name: str
    image: UInt8Array
    """uint8 H x W x 3, RGB."""
    truth: UInt8Array
    """uint8 H x W train ids, 255 = ignore."""
    prediction: UInt8Array
    """uint8 H x W train ids."""


def sample_panel(samples: list[Sample], classes: Classes) -> UInt8Array:
    """Rows of image | truth | prediction | errors under column titles, each with its name; a legend below.

    Raises: ValueError when there is no sample.
    """
    if not samples:
        raise ValueError("a panel needs at least one sample")
    rows = [thumbnails(sample, classes) for sample in samples]
    cell = max(max(row.image.shape[1] for row in rows), 160)
    width = 4 * cell + 3 * _GAP
    blocks = [_titles(cell, width)]
    for sample, row in zip(samples, rows, strict=True):
        pictures = (row.image, row.truth, row.prediction, row.errors)
        blocks += [_row(pictures, cell, width), _caption(sample.name, width)]
    blocks.append(legend(classes, width, present(samples, classes)))
    return _framed(np.vstack(blocks))


def present(samples: list[Sample], classes: Classes) -> set[int]:
    """The train ids that occur (on 0.05 % of the pixels) in a truth or a prediction."""
    maps = [labels for sample in samples for labels in (sample.truth, sample.prediction)]
    return set().union(*(occurring(labels, classes) for labels in maps))


@dataclass(frozen=True)
class Thumbnails:
    """The four pictures of a sample, uint8 h x w x 3 RGB, at most 512 pixels wide and high."""

    image: UInt8Array
    truth: UInt8Array
    prediction: UInt8Array
    errors: UInt8Array


def thumbnails(sample: Sample, classes: Classes) -> Thumbnails:
    """Scale a sample for the report: images by area, labels by nearest; tiny ones grow by a whole factor."""
    size = thumbnail_size(*sample.image.shape[:2])
    shrinks = size[0] <= sample.image.shape[1]
    image = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    truth = cv2.resize(sample.truth, size, interpolation=cv2.INTER_NEAREST)
    prediction = cv2.resize(sample.prediction, size, interpolation=cv2.INTER_NEAREST)
    errors = draw_errors(image, truth, prediction)
    return Thumbnails(image, colorize(truth, classes), colorize(prediction, classes), errors)


# --- panel ---

_CELL = 512
_GAP = 14
_TITLES = ("image", "truth", "prediction", "errors")
_INK, _MUTED = (28, 33, 40), (102, 112, 128)


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of the thumbnail of an image, in OpenCV's order."""
    scale: float = min(_CELL / width, _CELL / height, 1)
    if max(height, width) <= _CELL // 4:
        scale = _CELL // 2 // max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _blank(height: int, width: int) -> UInt8Array:
    return np.full((height, width, 3), 255, np.uint8)


def _row(pictures: tuple[UInt8Array, ...], cell: int, width: int) -> UInt8Array:
    row = _blank(pictures[0].shape[0], width)
    for place, picture in enumerate(pictures):
        left = place * (cell + _GAP)
        row[:, left : left + picture.shape[1]] = picture
    return row


def _titles(cell: int, width: int) -> UInt8Array:
    strip = Image.new("RGB", (width, 44), (255, 255, 255))
    pen = ImageDraw.Draw(strip)
    for place, title in enumerate(_TITLES):
        pen.text((place * (cell + _GAP), 16), title, fill=_INK, font=font(24), anchor="lm")
    return np.array(strip)


def _caption(name: str, width: int) -> UInt8Array:
    strip = Image.new("RGB", (width, 52), (255, 255, 255))
    text = shorten(name, font(17), width)
    ImageDraw.Draw(strip).text((0, 18), text, fill=_MUTED, font=font(17), anchor="lm")
    return np.array(strip)


def _framed(picture: UInt8Array) -> UInt8Array:
    return np.pad(picture, ((24, 24), (24, 24), (0, 0)), constant_values=255)
