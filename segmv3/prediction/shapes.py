"""The pixels of a class as annotation tools store them: lengths of runs, or polygons."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.images import UInt8Array

Box = tuple[int, int, int, int]
"""Left, top, width and height, in pixels."""


def box_of(mask: UInt8Array) -> Box:
    """The smallest box around the pixels of a mask that are not 0."""
    left, top, width, height = cv2.boundingRect(mask)
    return left, top, width, height


def runs(mask: UInt8Array) -> NDArray[np.int64]:
    """How many pixels in turn are outside and inside, row by row; the first number is of those outside, maybe 0.

    Args:
        mask: uint8 of any shape; 0 is outside.
    """
    flat = mask.ravel() > 0
    cuts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.diff(cuts, prepend=[0, 0] if flat[0] else 0, append=flat.size)


def runs_down(labels: UInt8Array, train_ids: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """The `runs` of each class, column by column, as COCO has them: the picture is looked through once for all.

    Args:
        labels: uint8 H x W.
        train_ids: the classes.
    """
    flat = cv2.transpose(labels).ravel()
    cuts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], cuts, [flat.size]])
    values = flat[edges[:-1]]
    for train_id in train_ids:
        own = np.flatnonzero(values == train_id)
        inside = np.stack([edges[own], edges[own + 1]], axis=1).ravel()
        ends = bool(inside.size) and inside[-1] == flat.size
        yield np.diff(inside if ends else np.append(inside, flat.size), prepend=0)


_LONGEST = 2**16
_LENGTH_BITS = np.array([3, 4, 8, 16])


def brush_rle(mask: UInt8Array) -> list[int]:
    """A mask as Label Studio's brush has it: the bytes of an RGBA picture, packed as thi.ng's `rle-pack` does.

    A header says how many bytes, of how many bits, and the four sizes that the length of a run may have. Each run is
    a 1, the number of its size in 2 bits, its length less one, and its byte.

    Args:
        mask: uint8 H x W; 0 is outside.

    Returns:
        Numbers 0..255.
    """
    lengths = 4 * runs(mask)
    values = np.where(np.arange(len(lengths)) % 2, 255, 0)
    parts = -(-lengths // _LONGEST)  # none of a run without pixels
    last = np.cumsum(parts) - 1
    values = np.repeat(values, parts)
    pieces = np.full(len(values), _LONGEST)
    pieces[last[parts > 0]] = (lengths - (parts - 1) * _LONGEST)[parts > 0]
    size = np.searchsorted(2**_LENGTH_BITS, pieces)
    bits = _LENGTH_BITS[size]
    codes = ((4 + size) << bits | (pieces - 1)) << 8 | values
    count = 3 + bits + 8
    place = np.arange(count.max())
    table = codes[:, None] >> np.maximum(count[:, None] - 1 - place, 0) & 1
    header = f"{4 * mask.size:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in _LENGTH_BITS)
    stream = np.concatenate([np.array([*header], np.uint8), table[place < count[:, None]].astype(np.uint8)])
    return np.packbits(stream).tolist()


def polygons(mask: UInt8Array, tolerance: float = 0.35) -> list[NDArray[np.float64]]:
    """Outlines without holes, each N x 2 (x, y), in pixels; the first pixel covers 0..1.

    What has a hole is cut through the hole: most tools store none. Outlines run a quarter of a pixel inside of the
    pixels' edges, so that their centres are safely within, and are simplified by up to `tolerance` more.

    Args:
        mask: uint8 H x W; 0 is outside.
        tolerance: pixels.
    """
    left, top, width, height = box_of(mask)
    if not width:
        return []
    inside = (mask[top : top + height, left : left + width] > 0).view(np.uint8)
    double = cv2.resize(inside, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    return [(_simple(ring, 2 * tolerance) + 0.5) / 2 + (left, top) for ring in _rings(double)]


def largest_outline(mask: UInt8Array) -> list[list[float]]:
    """The outline of the largest connected part, its holes filled, simplified to about a 500th of the picture.

    Returns:
        Points [x, y] in pixels; none where the mask is empty.
    """
    count, parts, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return []
    largest = 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax())
    contours, _ = cv2.findContours((parts == largest).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return (_simple(contours[0], max(1.0, max(mask.shape) / 500)) + 0.5).tolist()


def _simple(ring: NDArray[np.int32], tolerance: float) -> NDArray[np.float64]:
    simple = cv2.approxPolyDP(ring, tolerance, closed=True)
    thin = len(simple) < 3 or cv2.contourArea(ring) < 2 * cv2.arcLength(ring, closed=True)  # a pole could vanish
    return (ring if thin else simple)[:, 0].astype(np.float64)


def _rings(mask: UInt8Array) -> Iterator[NDArray[np.int32]]:
    """Outlines of the connected parts; a part with holes is cut in two through the one in the middle of them."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for index, contour in enumerate(contours):
        _, _, hole, parent = tree[0][index]
        if parent >= 0:
            continue
        middles = []
        while hole >= 0:
            left, _, width, _ = cv2.boundingRect(contours[hole])
            middles.append((left + width // 2) // 2 * 2)  # between pixels of the picture
            hole = tree[0][hole][0]
        if not middles:
            yield contour
            continue
        left, top, width, height = cv2.boundingRect(contour)
        canvas = np.zeros((height, width), np.uint8)
        cv2.drawContours(canvas, contours, index, 1, cv2.FILLED, hierarchy=tree, maxLevel=1, offset=(-left, -top))
        cut = sorted(middles)[len(middles) // 2] - left
        for start, half in ((0, canvas[:, :cut]), (cut, canvas[:, cut:])):
            for ring in _rings(np.ascontiguousarray(half)):
                yield ring + np.array([left + start, top], np.int32)
