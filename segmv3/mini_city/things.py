"""What the things of a mini-city street share: sizes, colours, poses, the flat figure, shadows.

Each thing is one function, in the file of its kind, that paints and annotates itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segmv3.mini_city.canvas import Billboard, Canvas, FloatArray, Rgb, ellipse

SIZES = {
    "car": (4.3, 1.8, 1.48),
    "truck": (8.5, 2.45, 3.4),
    "bus": (11.5, 2.5, 3.1),
    "train": (24.0, 2.4, 3.5),
    "motorcycle": (2.1, 0.8, 1.1),
    "bicycle": (1.75, 0.5, 1.05),
    "person": (0.35, 0.5, 1.75),
    "street lamp": (0.24, 0.24, 7.5),
    "traffic light": (0.3, 0.34, 0.95),
    "traffic sign": (0.02, 0.72, 0.72),
    "tree": (5.0, 5.0, 6.8),
    "wall": (30.0, 0.35, 2.2),
    "fence": (30.0, 0.05, 1.55),
    "storey": (12.0, 9.0, 3.15),
}
"""Length, width, height in metres; single objects vary around them."""

RUBBER, STEEL, BLACK = (28, 28, 30), (128, 132, 136), (22, 23, 26)
PAINTS = (
    (176, 30, 34), (32, 64, 138), (205, 208, 212), (236, 236, 232), (48, 50, 56), (92, 98, 106),
    (28, 92, 72), (196, 150, 40), (120, 40, 60), (90, 140, 186), (150, 152, 156), (70, 84, 60),
)  # fmt: skip
CLOTHES = (
    (180, 44, 48), (38, 70, 140), (230, 226, 216), (60, 62, 70), (208, 168, 60), (86, 120, 80),
    (140, 90, 150), (200, 110, 60), (90, 150, 170), (110, 76, 56), (34, 36, 44),
)  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """A vehicle's middle in street coordinates and its heading (radians, 0 = driving away)."""

    x: float
    z: float
    heading: float = 0.0

    def street(self, local: Sequence[Sequence[float]] | FloatArray) -> FloatArray:
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
    shift = np.asarray(canvas.light.shadow_shift()) * height
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


@dataclass(frozen=True)
class Figure:
    """A billboard being painted; points, widths and radii in its own metres."""

    canvas: Canvas
    board: Billboard

    def shape(self, points: Sequence[Sequence[float]] | FloatArray, color: Rgb, glow: bool = False) -> None:
        self.canvas.fill(self.board(points), color if glow else self.canvas.lit(color, self.board.z))

    def limb(self, points: Sequence[Sequence[float]] | FloatArray, width: float, color: Rgb) -> None:
        paint = self.canvas.lit(color, self.board.z)
        self.canvas.stroke(self.board(points), width * self.board.scale, paint)

    def box(self, left: float, low: float, right: float, high: float, color: Rgb) -> None:
        self.shape([(left, low), (left, high), (right, high), (right, low)], color)
