"""What mini-city is drawn with: a pinhole camera, a light, textures, and a canvas that annotates itself.

Street coordinates are metres: x to the right of the road's middle line, y up from the ground, z forward from
the camera along the (possibly curved) road. The canvas has twice the resolution of the final picture in each
direction, and everything painted while an object is open becomes that object's polygon, so that a label can
never disagree with the picture.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.images import UInt8Array

FloatArray = NDArray[np.floating]
Rgb = tuple[float, float, float]
Vector = tuple[float, float, float]
Annotation = dict[str, object]
Area = tuple[slice, slice, UInt8Array]
"""Rows, columns and the mask (0 or 255) of a part of the canvas."""

UP: Vector = (0.0, 1.0, 0.0)
TOWARDS_US: Vector = (0.0, 0.0, -1.0)

DATA = json.loads(Path(__file__).with_name("things.json").read_bytes())
"""`sizes` of vehicles: length, width, height in metres, around which each one varies. `cars`: profiles, from the rear
over the roof, for a length and height of 1. `colors` by what has them. `textures`: metres after which each repeats,
shares of four kinds of noise, rows and columns of blocks. `lights` for `Light`, with ranges to draw from. `signs`:
layers from the outside in, and the bar on them. `drawings` of two-wheelers and prams, part after part."""

SUPERSAMPLE = 2
_SUBPIXEL = 4  # fractional bits of the coordinates handed to OpenCV
_FAR_OUTSIDE = 20_000  # canvas pixels; OpenCV overflows silently beyond 2**31 >> _SUBPIXEL
_LEAST_AREA = 10.0  # canvas pixels; Pillow refuses polygons that collapse to a point
_NEAREST = 0.3  # metres
_FARTHEST = 280.0  # metres; OpenCV wraps texture coordinates only within 16 bits
_TILE = 256
_PLAIN = 128  # the stored brightness that leaves a colour as it is


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above a road of constant curvature. Pixels are canvas pixels."""

    focal: float
    center: float
    """Column of the principal point."""
    horizon: float
    """Row of the horizon."""
    height: float
    """Metres above the ground."""
    x: float
    """Metres right of the road's middle line."""
    yaw: float
    """Radians; positive looks to the left, so that the road goes to the right."""
    curvature: float
    """1 / metres; positive bends to the right."""
    z: float = 0.0
    """Metres along the road."""

    def depth(self, z: FloatArray | float) -> FloatArray | float:
        """Metres from the camera to street z; what lies beside or behind it is taken to be just before it."""
        return np.maximum(z - self.z, _NEAREST)

    def scale(self, z: float) -> float:
        """Canvas pixels per metre at street z."""
        return self.focal / float(self.depth(z))

    def project(self, street: FloatArray) -> FloatArray:
        """Street points N x 3 (x, y, z in metres) to canvas points N x 2 (column, row)."""
        x, y, z = street[:, 0], street[:, 1], self.depth(street[:, 2])
        seen = np.empty((len(street), 2))
        seen[:, 0] = self.center + self.focal * ((x - self.x) / z + self.yaw + self.curvature * z / 2)
        seen[:, 1] = self.horizon + self.focal * (self.height - y) / z
        return seen

    def ground(self, height: int, width: int) -> tuple[FloatArray, FloatArray]:
        """Street x and depth (metres, float32 H x W) of the ground under every canvas pixel."""
        rows = np.arange(height, dtype=np.float32)[:, None]
        columns = np.arange(width, dtype=np.float32)[None, :]
        z = np.minimum(self.focal * self.height / np.maximum(rows - self.horizon, 0.5), _FARTHEST)
        x = self.x + z * ((columns - self.center) / self.focal - self.yaw - self.curvature * z / 2)
        return np.clip(x, -_FARTHEST, _FARTHEST).astype(np.float32), np.broadcast_to(z, x.shape)


@dataclass(frozen=True)
class Light:
    """Time of day and weather."""

    sky_top: Rgb
    sky_low: Rgb
    cloud: Rgb
    cover: float
    """Share of the sky under clouds, 0..1."""
    sun: Vector
    """Unit vector towards the sun in street coordinates."""
    direct: float
    """Strength of sunlight on a surface that faces the sun; daylight from everywhere is `ambient`."""
    ambient: float
    gain: Rgb
    """Colour of the light, multiplied over the finished picture."""
    haze: float
    """Metres after which 63 % of an object has faded into the sky's colour."""


Plane = tuple[FloatArray, tuple[float, float]]
"""Canvas corners, from the lower left clockwise, of a flat rectangle, and its width and height in metres."""


class Canvas:
    """An RGB picture at twice its final resolution and the Cityscapes annotation of what was painted on it.

    Attributes: `pixels` uint8 2H x 2W x 3, RGB; `objects` the annotated polygons in painting order, in pixels
    of the final picture.
    """

    def __init__(self, size: tuple[int, int], camera: Camera, light: Light) -> None:
        height, width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
        self.camera, self.light = camera, light
        self.pixels: UInt8Array = np.zeros((height, width, 3), np.uint8)
        self.objects: list[Annotation] = []
        self._claims: list[NDArray[np.int32]] = []
        self._ground_x, self._ground_z = camera.ground(height, width)

    @contextmanager
    def object(self, label: str, whole: bool = True) -> Iterator[None]:
        """Annotate what is painted inside the `with` block as one object (`whole`) or as all its pieces."""
        self._claims = []
        yield
        if self._claims:
            self._annotate(label, whole)
        self._claims = []

    def claim(self, points: FloatArray) -> None:
        """Make an area part of the open object without painting it (a fence is labelled between its bars)."""
        self._claims.append(_fixed(points))

    def fill(self, points: FloatArray, color: Rgb, texture: str | None = None, plane: Plane | None = None) -> None:
        """Paint a polygon, plainly or with a texture that lies in `plane`."""
        self.claim(points)
        if texture is None or plane is None:
            cv2.fillPoly(self.pixels, [self._claims[-1]], color, shift=_SUBPIXEL)
            return
        if (area := self._covered(points)) is None:
            return
        rows, columns, mask = area
        repeat = _TILE / DATA["textures"][texture]["metres"]
        corners, (wide, high) = plane
        source, target = rectangle(0, 0, wide * repeat, high * repeat), corners - (columns.start, rows.start)
        matrix = cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))
        tile, wrap = texture_tile(texture), cv2.BORDER_WRAP
        surface = cv2.warpPerspective(tile, matrix, mask.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=wrap)
        self._paint(area, surface, color)

    def fill_ground(self, points: FloatArray, color: Rgb, texture: str | None = None) -> None:
        """Paint a polygon that lies on the ground, with a texture in street coordinates."""
        if texture is None:
            self.fill(points, self.lit(color, 0.0, UP))
            return
        self.claim(points)
        if (area := self._covered(points)) is None:
            return
        rows, columns, _ = area
        repeat = np.float32(_TILE / DATA["textures"][texture]["metres"])
        x, z = self._ground_x[rows, columns] * repeat, (self._ground_z[rows, columns] + self.camera.z) * repeat
        surface = cv2.remap(texture_tile(texture), x, z, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)
        contrast = np.minimum(1, 14 / self._ground_z[rows, :1])  # far away, a texture would only flicker
        surface = (_PLAIN + (surface - np.float32(_PLAIN)) * contrast).astype(np.uint8)
        self._paint(area, surface, self.lit(color, 0.0, UP))

    def fade_ground(self) -> None:
        """Lay the haze over the ground, when all of it is painted."""
        top = max(0, int(self.camera.horizon))
        haze = 1 - np.exp(-self._ground_z[top:, :1, None] / self.light.haze)
        ground = self.pixels[top:]
        ground[...] = ground + (np.asarray(self.light.sky_low) - ground).astype(np.float32) * haze.astype(np.float32)

    def stroke(self, points: FloatArray, width: float, color: Rgb) -> None:
        """Paint a line of `width` canvas pixels (at least 1.6) through the points."""
        half = max(width, 1.6) / 2
        for a, b in pairwise(points):
            along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6) * half
            across = np.array([-along[1], along[0]])
            self.fill(np.array([a - along + across, b + along + across, b + along - across, a - along - across]), color)

    def shadow(self, points: FloatArray, strength: float, softness: float) -> None:
        """Darken a polygon (0 = not at all, 1 = black) with edges `softness` canvas pixels wide; no label."""
        margin = round(2 * softness) + 1
        if (area := self._covered(points, margin)) is None:
            return
        rows, columns, mask = area
        if softness >= 1:
            mask = cv2.GaussianBlur(mask, (0, 0), softness)
        part = self.pixels[rows, columns]
        part[...] = part * (1 - strength / 255 * mask[..., None].astype(np.float32))

    def lit(self, color: Rgb, z: float, normal: Vector | None = None) -> Rgb:
        """The colour (0..255) of a surface at street z under this light, seen through the air before it.

        Without a unit normal it is a rounded one, lit on average.
        """
        facing, sun = 0.45, self.light.sun
        if normal:
            facing = max(0.0, normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2])
        shade = self.light.ambient + self.light.direct * facing
        haze = 1 - math.exp(-max(z - self.camera.z, 0.0) / self.light.haze)
        red, green, blue = (
            near + (far - near) * haze
            for near, far in zip((min(c * shade, 255.0) for c in color), self.light.sky_low, strict=True)
        )
        return red, green, blue

    def street_rectangle(self, x: tuple[float, float], y: tuple[float, float], z: float) -> FloatArray:
        """The canvas polygon of an upright rectangle that faces the camera at distance z."""
        return self.camera.project(np.array([(a, b, z) for a, b in rectangle(x[0], y[0], x[1], y[1])]))

    def _covered(self, points: FloatArray, margin: int = 0) -> Area | None:
        """The part of the canvas that a polygon touches, and its mask (0 or 255) there."""
        height, width = self.pixels.shape[:2]
        left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - margin, 0)
        right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1 + margin, (width, height))
        if left >= right or top >= bottom:
            return None
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [_fixed(points - (left, top))], 255, shift=_SUBPIXEL)
        return slice(top, bottom), slice(left, right), mask

    def _paint(self, area: Area, surface: UInt8Array, color: Rgb) -> None:
        """Put a brightness pattern in this colour on the masked part of the canvas."""
        rows, columns, mask = area
        table = np.arange(256)[:, None] / _PLAIN * np.asarray(color)
        painted = cv2.LUT(cv2.merge([surface] * 3), np.clip(table, 0, 255).astype(np.uint8)[:, None])
        cv2.copyTo(painted, mask, self.pixels[rows, columns])

    def _annotate(self, label: str, whole: bool) -> None:
        height, width = self.pixels.shape[:2]
        reach = np.concatenate(self._claims) >> _SUBPIXEL
        left, top = np.maximum(reach.min(axis=0) - 1, 0)
        right, bottom = np.minimum(reach.max(axis=0) + 2, (width, height))
        if left >= right or top >= bottom:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        offset = (np.array([left, top]) << _SUBPIXEL).astype(np.int32)
        for claim in self._claims:
            cv2.fillPoly(mask, [claim - offset], 255, shift=_SUBPIXEL)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outlines = sorted(outlines, key=cv2.contourArea, reverse=True)
        for outline in outlines[:1] if whole else outlines:
            # Outlines are part of what Pillow fills, so halving the indices is exact for either edge.
            corners = (cv2.approxPolyDP(outline, 0.8, True)[:, 0] + (left, top)) // SUPERSAMPLE
            if cv2.contourArea(outline) >= _LEAST_AREA and len(corners) >= 3:
                self.objects.append({"label": label, "polygon": corners.tolist()})


def _fixed(points: FloatArray) -> NDArray[np.int32]:
    kept = np.minimum(np.maximum(points, -_FAR_OUTSIDE), _FAR_OUTSIDE)
    return np.rint(kept * (1 << _SUBPIXEL)).astype(np.int32)


def rectangle(left: float, bottom: float, right: float, top: float) -> FloatArray:
    return np.array([(left, bottom), (left, top), (right, top), (right, bottom)], dtype=np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, corners: int = 18) -> FloatArray:
    """A polygon `corners` x 2 around (x, y)."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    ry = radius_x if radius_y is None else radius_y
    return np.stack([x + radius_x * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def fractal_noise(height: int, width: int, power: float, rng: np.random.Generator) -> FloatArray:
    """Seamless noise float64 H x W, mean 0, deviation 1; the larger `power`, the larger its blobs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency**power, (height, width))
    return noise / noise.std()


@cache
def texture_tile(kind: str) -> UInt8Array:
    """A seamless brightness pattern, uint8 256 x 256, 128 = unchanged; the same in all scenes."""
    rng, texture = np.random.default_rng(sorted(DATA["textures"]).index(kind)), DATA["textures"][kind]
    soft, fine = fractal_noise(_TILE, _TILE, 1.2, rng), rng.standard_normal((_TILE, _TILE))
    noises = (soft, fine, fractal_noise(_TILE, _TILE, 0.5, rng), fractal_noise(_TILE, _TILE, 1.0, rng))
    pattern = _masonry(rng, *texture["blocks"]) if "blocks" in texture else np.ones((_TILE, _TILE))
    for share, noise in zip(texture["noise"], noises, strict=True):
        pattern += share * noise
    return np.clip(pattern * _PLAIN, 40, 230).round().astype(np.uint8)


def _masonry(rng: np.random.Generator, rows: int, columns: int) -> FloatArray:
    """Blocks of varied brightness with darker joints; every other row is moved by half a block."""
    height, width = _TILE / rows, _TILE / columns
    y, x = np.mgrid[:_TILE, :_TILE].astype(np.float64)
    row = (y // height).astype(int)
    x = (x + (row % 2) * width / 2) % _TILE
    blocks = rng.normal(1, 0.09, (rows, columns))[row, (x // width).astype(int)]
    return np.where((y % height < 2.2) | (x % width < 2.2), 0.72, blocks)
