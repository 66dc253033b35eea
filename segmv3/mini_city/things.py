"""What the things of a mini-city street share: sizes, colours, poses, the flat figure, shadows.

Each thing is one function, in the file of its kind, that paints and annotates itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segmv3.mini_city.canvas import DATA, Canvas, FloatArray, Rgb, ellipse

Points = Sequence[Sequence[float]] | FloatArray

SIZES, PAINTS, CLOTHES = DATA["sizes"], DATA["colors"]["paints"], DATA["colors"]["clothes"]
RUBBER, STEEL, BLACK = (28, 28, 30), (128, 132, 136), (22, 23, 26)


@dataclass(frozen=True)
class Pose:
    """A vehicle's middle in street coordinates and its heading (radians, 0 = driving away)."""

    x: float
    z: float
    heading: float = 0.0

    def street(self, local: Points) -> FloatArray:
        """Vehicle coordinates N x 3 (side, up, along) to street coordinates N x 3."""
        side, up, along = np.asarray(local, dtype=np.float64).T
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return np.stack([self.x + side * cos + along * sin, up, self.z - side * sin + along * cos], axis=1)


def pick(rng: np.random.Generator, colors: Sequence[Rgb], spread: float = 12.0) -> Rgb:
    red, green, blue = np.clip(np.asarray(colors[int(rng.integers(len(colors)))]) + rng.normal(0, spread, 3), 8, 250)
    return float(red), float(green), float(blue)


def scaled(color: Rgb, factor: float) -> Rgb:
    return color[0] * factor, color[1] * factor, color[2] * factor


def cast_shadow(canvas: Canvas, base: FloatArray, height: float, softness: float) -> None:
    """The sun's shadow of an upright prism with ground plan `base` (N x 2 street x, z), on flat ground."""
    x, y, z = canvas.light.sun
    shift = np.array([-x / y, -z / y]) * height
    plan = np.concatenate([base, base + shift])
    hull = cv2.convexHull(plan.astype(np.float32))[:, 0].astype(np.float64)
    hull[:, 1] = np.maximum(hull[:, 1], canvas.camera.z + 2.0)  # the camera cannot project what lies behind it
    street = np.stack([hull[:, 0], np.zeros(len(hull)), hull[:, 1]], axis=1)
    canvas.shadow(canvas.camera.project(street), min(0.5, canvas.light.direct * 0.75), softness)


def soft_spot(canvas: Canvas, x: float, z: float, width: float, height: float) -> None:
    """Contact shadow, and under a sun the cast one, of something narrow that stands at street (x, z)."""
    softness = canvas.camera.scale(z) * 0.05
    spot = ellipse(x, z, width / 2, 0.18)
    ground = np.stack([spot[:, 0], np.zeros(len(spot)), spot[:, 1]], axis=1)
    canvas.shadow(canvas.camera.project(ground), 0.5, softness)
    if canvas.light.direct > 0.25:
        cast_shadow(canvas, spot, height, softness)


class Figure:
    """A flat upright figure at street (x, z) that faces the camera; points, widths and radii in its own metres.

    Its `turn` is 1 when it is seen from the side, towards 0 when it is seen end-on, and negative when mirrored.
    """

    def __init__(self, canvas: Canvas, x: float, z: float, turn: float = 1.0) -> None:
        self.canvas, self.z, self.turn, self.scale = canvas, z, turn, canvas.camera.scale(z)
        self.foot = canvas.camera.project(np.array([[x, 0.0, z]]))[0]

    def seen(self, points: Points) -> FloatArray:
        """Points (x right, y up) on the canvas."""
        return np.asarray(points, dtype=np.float64) * (self.scale * self.turn, -self.scale) + self.foot

    def shape(self, points: Points, color: Rgb, glow: bool = False) -> None:
        self.canvas.fill(self.seen(points), color if glow else self.canvas.lit(color, self.z))

    def limb(self, points: Points, width: float, color: Rgb) -> None:
        self.canvas.stroke(self.seen(points), width * self.scale, self.canvas.lit(color, self.z))

    def box(self, left: float, low: float, right: float, high: float, color: Rgb) -> None:
        self.shape([(left, low), (left, high), (right, high), (right, low)], color)

    def draw(self, name: str, paint: Rgb) -> None:
        """A drawing of `DATA`: lines have a width, lamps glow, and what has no colour of its own is of this paint."""
        for part in DATA["drawings"][name]:
            points, color = part.get("points") or ellipse(*part["disc"]), part.get("color", paint)
            if "width" in part:
                self.limb(points, part["width"], color)
            else:
                self.shape(points, color, glow="glow" in part)
