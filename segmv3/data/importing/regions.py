"""Regions as annotation files store them, and the label that they make: polygons, lengths of runs, brush strokes.

A pixel belongs to a polygon that its centre lies in; the first pixel covers 0..1. Where regions overlap, the later one
lies on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.errors import DataError
from segmv3.images import MAX_PIXELS, UInt8Array, read_image
from segmv3.records import typed

Size = tuple[int, int]
"""Height and width in pixels."""
Mask = NDArray[np.bool_]

_FAR = 1e9
_EDGES = 4096  # at a time: a polygon of a million corners would need gigabytes otherwise


@dataclass(frozen=True)
class Polygon:
    """A region inside of one closed line, by the even-odd rule."""

    ring: NDArray[np.float64]
    """N x 2 (x, y)."""
    whole: float | None = None
    """What the width and the height of the picture are in these numbers: 1, or 100 of percent; None for pixels."""

    def mask(self, size: Size) -> tuple[int, int, Mask]:
        ring = self.ring * size[::-1] / self.whole if self.whole else self.ring
        left, top = np.clip(np.floor(ring.min(0)), 0, size[::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(ring.max(0)), 0, size[::-1]).astype(int).tolist()
        return top, left, _filled(ring - (left, top), (max(0, bottom - top), max(0, right - left)))


def _filled(ring: NDArray[np.float64], size: Size) -> Mask:
    """Each edge switches the rows that it crosses between outside and inside, from its own place on."""
    height, width = size
    switched = np.zeros((height, width + 1), np.bool_)
    x, y = ring.T
    x2, y2 = np.roll(ring, -1, 0).T
    first = np.clip(np.ceil(np.minimum(y, y2) - 0.5), 0, height).astype(int)
    count = np.clip(np.ceil(np.maximum(y, y2) - 0.5), 0, height).astype(int) - first
    for start in range(0, len(ring), _EDGES):
        part = slice(start, start + _EDGES)
        edge = np.repeat(np.arange(len(ring))[part], count[part])
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count[part]) - count[part], count[part]) + first[edge]
        across = x[edge] + (row + 0.5 - y[edge]) * (x2 - x)[edge] / (y2 - y)[edge]
        np.logical_xor.at(switched, (row, np.clip(np.ceil(across - 0.5), 0, width).astype(int)), True)
    return np.logical_xor.accumulate(switched[:, :-1], axis=1)


def polygon(points: Any, where: str, whole: float | None = None) -> Polygon:
    """A polygon of a file.

    Args:
        points: pairs [x, y], or the flat list of their numbers.
        where: what it is called in messages.
        whole: as of `Polygon`.

    Raises:
        ValueError: they are no polygon.
    """
    try:
        numbers = np.array(points)
    except ValueError:  # lists of several lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "iuf" or numbers.shape[1:] not in ((), (2,)) or not np.isfinite(numbers).all():
        pairs = isinstance(points, list) and bool(points) and isinstance(points[0], list)
        numbers = np.array(typed(points, list[tuple[float, float]] if pairs else list[float], where))
    if numbers.size % 2 or numbers.size < 6:
        raise ValueError(f"{where} has {numbers.size} numbers; a polygon has an x and a y of three corners or more")
    return Polygon(np.clip(numbers.reshape(-1, 2).astype(np.float64), -_FAR, _FAR), whole)


@dataclass(frozen=True)
class Runs:
    """Run lengths of a mask: pixels outside, then inside, then outside, and so on, in the whole picture or in a box."""

    counts: NDArray[np.int64]
    by_columns: bool = False
    box: tuple[int, int, int, int] | None = None
    """Left, top, width and height."""

    def mask(self, size: Size) -> tuple[int, int, Mask]:
        left, top, width, height = self.box or (0, 0, size[1], size[0])
        if min(left, top) < 0 or min(width, height) < 1 or left + width > size[1] or top + height > size[0]:
            raise ValueError(f"its box {width}x{height} at {left},{top} leads out of the picture {size[1]}x{size[0]}")
        fits = ((self.counts >= 0) & (self.counts <= width * height)).all()  # a sum of larger ones could overflow
        if not fits or self.counts.sum() != width * height:
            raise ValueError(f"its runs do not fill {width}x{height} pixels")
        flat = np.repeat(np.arange(len(self.counts)) % 2 > 0, self.counts)
        return top, left, flat.reshape(width, height).T if self.by_columns else flat.reshape(height, width)


def coco_counts(text: str) -> list[int]:
    """The runs of COCO's compressed form: 5 bits a character, and from the third on differences to the last but one.

    Raises: ValueError where it is not that form.
    """
    counts: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("its compressed runs are damaged")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << shift - 4 if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its compressed runs end too early")
    return counts


@dataclass(frozen=True)
class Brush:
    """A picture RGBA as Label Studio's brush stores it (thi.ng's rle-pack); inside is where alpha is over a half."""

    data: bytes

    def mask(self, size: Size) -> tuple[int, int, Mask]:
        data, bits, done, whole = self.data + bytes(5), 8 * len(self.data), 0, 4 * size[0] * size[1]

        def number(at: int, length: int) -> int:
            return int.from_bytes(data[at // 8 : at // 8 + 5]) >> 40 - at % 8 - length & (1 << length) - 1

        if number(0, 32) != whole or number(32, 5) != 7:
            raise ValueError(f"its brush strokes are not those of a picture of {size[1]}x{size[0]}")
        lengths = [number(at, 4) + 1 for at in (37, 41, 45, 49)]
        place, pieces = 53, []
        while done < whole and place + 14 <= bits:
            same, length = number(place, 1), lengths[number(place + 1, 2)]
            count, place = number(place + 3, length) + 1, place + 3 + length
            end = place + 8 * (1 if same else count)
            if same:  # of the bytes from `done` on, those of alpha
                pieces.append(np.full((done + count) // 4 - done // 4, number(place, 8), np.uint8))
            else:
                part = np.unpackbits(np.frombuffer(data[place // 8 : end // 8 + 1], np.uint8))
                pieces.append(np.packbits(part[place % 8 : place % 8 + end - place])[(3 - done) % 4 :: 4])
            place, done = end, done + count
        if done != whole or place > bits:
            raise ValueError("its brush strokes are damaged")
        return 0, 0, np.concatenate(pieces).reshape(size) > 127


Region = Polygon | Runs | Brush
"""A part of a picture. Its `mask` gives top and left of a box, and bool H x W of its pixels, or raises ValueError."""


@dataclass(frozen=True)
class Drawing:
    """The label of one picture: its regions, drawn one after the other."""

    where: str
    """The file and the picture, for messages."""
    size: Size | Path
    """Or the picture, where the file does not say its size."""
    regions: Sequence[tuple[int, Region]]
    """Value of a pixel, and where."""
    rest: int
    """Value of the pixels in no region."""

    def __call__(self) -> UInt8Array:
        """Draw it: uint8 H x W. Raises: DataError for a region that cannot be drawn."""
        size = self.size if isinstance(self.size, tuple) else read_image(self.size).shape[:2]
        label = np.full(size, self.rest, np.uint8)
        for number, (value, region) in enumerate(self.regions, 1):
            try:
                top, left, mask = region.mask((size[0], size[1]))
            except ValueError as error:
                raise DataError(f"{self.where}: region {number}: {error}") from None
            label[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = value
        return label


def size_of(height: Any, width: Any, where: str) -> Size:
    """A picture's size as a file has it. Raises: ValueError where it is none, or too large."""
    sides = typed(height, int, f"the height of {where}"), typed(width, int, f"the width of {where}")
    if min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"{where} is {sides[1]}x{sides[0]}; at most {MAX_PIXELS:,} pixels are read")
    return sides
