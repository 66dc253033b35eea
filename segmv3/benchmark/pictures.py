"""What the nets are timed on: a street, drawn or the user's own, at every size that is asked for."""

from collections.abc import Sequence

import cv2
import numpy as np

from segmv3.images import UInt8Array, read_image
from segmv3.runtime.autotune import STREET

Size = tuple[int, int]


def streets(sizes: Sequence[Size], picture: UInt8Array | None = None) -> dict[Size, UInt8Array]:
    """One street in several sizes, uint8 H x W x 3, RGB.

    Args:
        sizes: (height, width) each.
        picture: the street, to be resized; by default the drawn one that backends are chosen on.
    """
    picture = read_image(STREET) if picture is None else picture
    return {size: resized(picture, size) for size in sizes}


def resized(picture: UInt8Array, size: Size) -> UInt8Array:
    """A picture at (height, width), by area where it shrinks."""
    if picture.shape[:2] == tuple(size):
        return np.ascontiguousarray(picture)
    shrinks = size[0] <= picture.shape[0] and size[1] <= picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, (size[1], size[0]), interpolation=how)


def drive(picture: UInt8Array, frames: int) -> list[UInt8Array]:
    """A street that passes by: the picture, moved four columns further in each frame."""
    return [np.roll(picture, -4 * i, axis=1) for i in range(frames)]
