"""A decoded frame as its file means it to be seen: upright, in square pixels, in the colours of an ordinary screen."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Self

import cv2
import numpy as np

from segmv3.images import UInt8Array

_HD = 720  # from this height on an unmarked video means BT.709 colours, below it BT.601; players do the same
_UNMARKED = 2  # colour matrices and transfer functions as numbered in ITU-T H.273
_PQ, _HLG = 16, 18
_WHITE, _PEAK = 203.0, 1000.0  # cd/m2 of diffuse white, and of an HLG screen (ITU-R BT.2408, BT.2100)
_TO_BT709 = np.array(  # linear light, from the primaries of BT.2020 (ITU-R BT.2087, inverted)
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_LUMINANCE = np.array([[0.2627, 0.6780, 0.0593]], np.float32)  # of BT.2020
_STEPS = 16383  # of linear light, fine enough for the darkest grey
_BAND = 64  # rows that are mapped at a time: the work then stays in the processor's cache


@dataclass(frozen=True)
class View:
    """How the frames of a video are shown.

    Attributes:
        height: rows of the stored frame.
        width: columns of the stored frame once its pixels are made square.
        transposed: whether rows become columns, before anything is mirrored.
        upside_down: whether the rows are then mirrored.
        mirrored: whether the columns are then mirrored.
    """

    height: int
    width: int
    transposed: bool
    upside_down: bool
    mirrored: bool

    @classmethod
    def of(cls, frame: Any, aspect: Fraction | None) -> Self:
        """What a frame of PyAV says of itself.

        Args:
            frame: the first frame.
            aspect: width by height of a stored pixel, if it is known.
        """
        width = max(round(frame.width * aspect), 1) if aspect else frame.width
        return cls(frame.height, width, *_orientation(frame))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown, in pixels."""
        return (self.width, self.height) if self.transposed else (self.height, self.width)

    def pixels(self, frame: Any) -> UInt8Array:
        """The pixels of a frame as shown: uint8 H x W x 3, RGB, an array of its own."""
        hd = frame.colorspace == _UNMARKED and not frame.format.is_rgb and frame.height >= _HD
        hdr = frame.color_trc in (_PQ, _HLG)
        pixels = frame.to_ndarray(
            format="rgb48le" if hdr else "rgb24",
            height=self.height,
            width=self.width,
            src_colorspace="ITU709" if hd else None,
        )
        if hdr:
            pixels = _to_sdr(pixels, frame.color_trc)
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        return np.ascontiguousarray(pixels[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transposed, upside down, mirrored) by the display matrix: the nearest of the eight, as players do."""
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)  # x' = a x + c y, y' = b x + d y
    transposed = abs(a) + abs(d) < abs(b) + abs(c)
    return (True, bool(b < 0), bool(c < 0)) if transposed else (False, bool(d < 0), bool(a < 0))


def _to_sdr(pixels: np.ndarray, transfer: int) -> UInt8Array:
    """HDR to SDR: diffuse white becomes white, what is brighter is cut off, as by an ordinary camera.

    Args:
        pixels: uint16 H x W x 3, R'G'B' with the primaries of BT.2020.
        transfer: `_PQ` or `_HLG`.

    Returns: uint8 H x W x 3, sRGB.
    """
    result = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _BAND):
        light = _light(transfer)[pixels[top : top + _BAND]]
        if transfer == _HLG:  # light of the scene: how a screen shows it depends on its luminance
            light *= (_PEAK / _WHITE) * cv2.pow(cv2.transform(light, _LUMINANCE), 0.2)[..., None]
        light = cv2.transform(light, _TO_BT709)
        result[top : top + _BAND] = _srgb()[(np.clip(light, 0, 1) * _STEPS + 0.5).astype(np.uint16)]
    return result


@cache
def _light(transfer: int) -> np.ndarray:
    """Linear light of each of 65,536 values, float32: 1 = diffuse white (PQ), 1 = brightest (HLG); BT.2100."""
    value = np.arange(65536) / 65535
    if transfer == _PQ:
        root = value ** (32 / 2523)
        absolute = np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)
        return (10000 / _WHITE * absolute ** (8192 / 1305)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12).astype(np.float32)


@cache
def _srgb() -> UInt8Array:
    """sRGB of linear light in `_STEPS` steps (IEC 61966-2-1)."""
    light = np.arange(_STEPS + 1) / _STEPS
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * value).astype(np.uint8)
