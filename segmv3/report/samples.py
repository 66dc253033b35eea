"""Pictures of a report: an image, its truth, what was predicted, and where that is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from segmv3.images import UInt8Array
from segmv3.labels import Classes, Color
from segmv3.media.draw import colorize, draw_errors, font, legend, occurring, shorten
from segmv3.report.html import data_uri


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


class Thumbnails(NamedTuple):
    """The four pictures of a sample, uint8 h x w x 3 RGB, at most 512 pixels wide and high."""

    image: UInt8Array
    truth: UInt8Array
    prediction: UInt8Array
    errors: UInt8Array


_CELL = 512
_GAP = 14
_INK, _MUTED = (28, 33, 40), (102, 112, 128)


def shrunk(sample: Sample) -> Sample:
    """A sample at the size of its thumbnails: images by area, labels by nearest; tiny ones grow by a whole factor."""
    height, width = sample.image.shape[:2]
    scale: float = min(_CELL / width, _CELL / height, 1)
    if max(height, width) <= _CELL // 4:
        scale = _CELL // 2 // max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return replace(
        sample,
        image=cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA if scale <= 1 else cv2.INTER_NEAREST),
        truth=cv2.resize(sample.truth, size, interpolation=cv2.INTER_NEAREST),
        prediction=cv2.resize(sample.prediction, size, interpolation=cv2.INTER_NEAREST),
    )


def thumbnails(sample: Sample, classes: Classes) -> Thumbnails:
    """The pictures of a sample for a report."""
    small = shrunk(sample)
    errors = draw_errors(small.image, small.truth, small.prediction)
    return Thumbnails(small.image, colorize(small.truth, classes), colorize(small.prediction, classes), errors)


def cells(sample: Sample, classes: Classes) -> list[tuple[str, Markup]]:
    """(caption, address) of each of the pictures, for a page."""
    kinds = ("JPEG", "PNG", "PNG", "JPEG")
    pictures = thumbnails(sample, classes)
    return [(what, data_uri(each, kind)) for what, each, kind in zip(pictures._fields, pictures, kinds, strict=True)]


def sample_panel(samples: list[Sample], classes: Classes) -> UInt8Array:
    """Rows of image | truth | prediction | errors under column titles, each with its name; a legend below.

    Raises:
        ValueError: there is no sample.
    """
    if not samples:
        raise ValueError("a panel needs at least one sample")
    rows = [thumbnails(sample, classes) for sample in samples]
    cell = max(max(row.image.shape[1] for row in rows), 160)
    width = 4 * cell + 3 * _GAP
    blocks = [_words(width, 44, 16, 24, _INK, {i * (cell + _GAP): title for i, title in enumerate(Thumbnails._fields)})]
    for sample, row in zip(samples, rows, strict=True):
        blocks += [side_by_side(row, cell, _GAP), _words(width, 52, 18, 17, _MUTED, {0: sample.name})]
    blocks.append(legend(classes, width, present(samples, classes)))
    return np.pad(np.vstack(blocks), ((24, 24), (24, 24), (0, 0)), constant_values=255)


def present(samples: list[Sample], classes: Classes) -> set[int]:
    """The train ids that occur (on 0.05 % of the pixels) in a truth or a prediction."""
    maps = [labels for sample in samples for labels in (sample.truth, sample.prediction)]
    return set().union(*(occurring(labels, classes) for labels in maps))


def side_by_side(pictures: Sequence[UInt8Array], cell: int, gap: int) -> UInt8Array:
    """Pictures of one height in a row of white cells, `cell` pixels wide."""
    row = np.full((pictures[0].shape[0], len(pictures) * (cell + gap) - gap, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        left = place * (cell + gap)
        row[:, left : left + picture.shape[1]] = picture
    return row


def _words(width: int, height: int, middle: int, size: int, color: Color, texts: dict[int, str]) -> UInt8Array:
    """A white strip with texts, each at its distance from the left."""
    strip, face = Image.new("RGB", (width, height), (255, 255, 255)), font(size)
    for left, text in texts.items():
        ImageDraw.Draw(strip).text((left, middle), shorten(text, face, width), fill=color, font=face, anchor="lm")
    return np.array(strip)
