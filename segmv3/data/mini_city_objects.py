"""The things of a mini-city street, one function per kind of object. Each paints and annotates itself.

Vehicles are extruded side profiles in vehicle coordinates (side, up, along; along points to the front).
People, two-wheelers, plants and street furniture are flat figures that face the camera.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from segmv3.data.mini_city_canvas import (
    TOWARDS_US,
    Billboard,
    Canvas,
    FloatArray,
    Plane,
    Rgb,
    Vector,
    ellipse,
)

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

_RUBBER, _GLASS, _STEEL, _BLACK = (28, 28, 30), (44, 56, 68), (128, 132, 136), (22, 23, 26)
_PAINTS = (
    (176, 30, 34), (32, 64, 138), (205, 208, 212), (236, 236, 232), (48, 50, 56), (92, 98, 106),
    (28, 92, 72), (196, 150, 40), (120, 40, 60), (90, 140, 186), (150, 152, 156), (70, 84, 60),
)  # fmt: skip
_CLOTHES = (
    (180, 44, 48), (38, 70, 140), (230, 226, 216), (60, 62, 70), (208, 168, 60), (86, 120, 80),
    (140, 90, 150), (200, 110, 60), (90, 150, 170), (110, 76, 56), (34, 36, 44),
)  # fmt: skip
_SKIN = ((232, 190, 160), (204, 150, 116), (150, 102, 74), (96, 66, 50))
_LEAVES = ((84, 118, 46), (66, 104, 44), (104, 128, 52), (58, 92, 52), (122, 132, 56), (150, 126, 50))
_PLASTERS = (
    (214, 196, 160), (196, 170, 140), (188, 182, 172), (206, 160, 120), (178, 130, 104), (224, 214, 196),
    (160, 164, 166), (198, 186, 130), (150, 120, 104), (176, 188, 184),
)  # fmt: skip
_ROOFS = ((142, 72, 52), (110, 62, 52), (84, 82, 86), (66, 62, 64))


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


# ---- vehicles


@dataclass(frozen=True)
class _Hull:
    """A vehicle's body: its side profile, and half its width at any height."""

    canvas: Canvas
    pose: Pose
    half: float
    belt: float
    """Metres above which the body leans in by `lean` metres per metre."""
    lean: float

    def half_at(self, up: float) -> float:
        return self.half - max(0.0, up - self.belt) * self.lean

    def panel(self, local: Sequence[Sequence[float]], color: Rgb, glow: bool = False) -> None:
        """Paint a flat face (corners clockwise as seen from outside) unless it faces away."""
        street = self.pose.street(local)
        seen = self.canvas.camera.project(street)
        if cv2.contourArea(seen.astype(np.float32), oriented=True) <= 0:
            return
        self.canvas.fill(seen, color if glow else self.canvas.lit(color, float(street[0, 2]), _normal(street)))

    def shell(self, profile: Sequence[tuple[float, float]], color: Rgb) -> None:
        """Paint roof, ends and sides of an extruded profile ((along, up) from the rear over the roof)."""
        for (a, low), (b, high) in pairwise(profile):
            self.across(a, low, b, high, color)
        self.sides(profile, color)

    def across(self, a: float, low: float, b: float, high: float, color: Rgb, width: float = 1.0) -> None:
        """A strip over the share `width` of the body, between two profile points (along, up)."""
        w, v = self.half_at(low) * width, self.half_at(high) * width
        self.panel([(-w, low, a), (-v, high, b), (v, high, b), (w, low, a)], color)

    def pane(self, start: tuple[float, float], end: tuple[float, float], inset: float) -> None:
        """Glass between two profile points (along, up), a share `inset` smaller at each end."""
        a, b = np.asarray(start), np.asarray(end)
        (along, up), (far, top) = a + (b - a) * inset, b - (b - a) * inset
        self.across(float(along), float(up), float(far), float(top), _GLASS, 0.87)

    def sides(self, outline: Sequence[tuple[float, float]], color: Rgb) -> None:
        """The same outline ((along, up), clockwise with the front on the right) on both sides."""
        self.panel([(self.half_at(up), up, along) for along, up in outline], color)
        self.panel([(-self.half_at(up), up, along) for along, up in reversed(outline)], color)

    def rear(self, x: float, up: float, width: float, height: float, along: float, color: Rgb, glow: bool) -> None:
        """A rectangle on the rear end, its middle at (x, up)."""
        a, b, low, high = x - width / 2, x + width / 2, up - height / 2, up + height / 2
        self.panel([(a, low, along), (a, high, along), (b, high, along), (b, low, along)], color, glow)

    def front(self, x: float, up: float, width: float, height: float, along: float, color: Rgb, glow: bool) -> None:
        """A rectangle on the front end, its middle at (x, up)."""
        a, b, low, high = x - width / 2, x + width / 2, up - height / 2, up + height / 2
        self.panel([(b, low, along), (b, high, along), (a, high, along), (a, low, along)], color, glow)

    def lamps(self, up: float, size: float, length: float, rear: Rgb = (196, 26, 22)) -> None:
        """Tail lamps and headlamps on both ends of a body of this length."""
        for side in (-1, 1):
            self.rear(side * (self.half - 0.22), up, size * 1.4, size, -length / 2 - 0.01, rear, True)
            self.front(side * (self.half - 0.28), up, size * 1.7, size, length / 2 + 0.01, (250, 246, 222), True)

    def plates(self, up: float, length: float) -> None:
        self.rear(0, up, 0.52, 0.14, -length / 2 - 0.01, (226, 226, 214), False)
        self.front(0, up, 0.52, 0.14, length / 2 + 0.01, (226, 226, 214), False)

    def wheels(self, alongs: Sequence[float], radius: float) -> None:
        for along in alongs:
            tyre = [(x, y) for x, y in ellipse(along, radius, radius)][::-1]
            rim = [(x, y) for x, y in ellipse(along, radius, radius * 0.58)][::-1]
            self.sides(tyre, _RUBBER)
            self.sides(rim, (150, 152, 156))

    def tyres(self, length: float, radius: float) -> None:
        """The treads seen below the bumpers; painted before the shell."""
        for side in (-1, 1):
            for end, face in ((-1, self.rear), (1, self.front)):
                face(
                    side * (self.half - 0.15),
                    radius,
                    0.24,
                    2 * radius,
                    end * (length / 2 - 0.3),
                    _RUBBER,
                    False,
                )


def _normal(corners: FloatArray) -> Vector:
    """The unit normal of a face, towards the side from which its corners are clockwise."""
    (a, b, c), (d, e, f) = (corners[1] - corners[0]).tolist(), (corners[2] - corners[0]).tolist()
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    length = math.sqrt(x * x + y * y + z * z) or 1.0
    return x / length, y / length, z / length


def _vehicle_shadow(canvas: Canvas, pose: Pose, length: float, width: float, height: float) -> None:
    corners = [(s * width / 2, 0.0, a * length / 2) for s, a in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    base = pose.street(corners)
    softness = canvas.camera.focal / pose.z * 0.1
    canvas.shadow(canvas.camera.project(base), 0.62, softness)
    if canvas.light.direct > 0.25:
        cast_shadow(canvas, base[:, [0, 2]], height * 0.9, softness * 0.6)


def cast_shadow(canvas: Canvas, base: FloatArray, height: float, softness: float) -> None:
    """The sun's shadow of an upright prism with ground plan `base` (N x 2 street x, z), on flat ground."""
    shift = np.asarray(canvas.light.shadow_shift()) * height
    plan = np.concatenate([base, base + shift])
    hull = cv2.convexHull(plan.astype(np.float32))[:, 0].astype(np.float64)
    hull[:, 1] = np.maximum(hull[:, 1], 2.0)  # the camera cannot project what lies behind it
    street = np.stack([hull[:, 0], np.zeros(len(hull)), hull[:, 1]], axis=1)
    canvas.shadow(canvas.camera.project(street), min(0.5, canvas.light.direct * 0.75), softness)


def car(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A hatchback, saloon or van."""
    kind = rng.choice(["hatchback", "saloon", "van"], p=[0.42, 0.36, 0.22])
    length, width, height = np.array(SIZES["car"]) * rng.uniform(0.94, 1.06, 3)
    height *= 1.22 if kind == "van" else 1.0
    rear, roof, front = {
        "hatchback": ((-0.48, 0.6), (-0.36, 0.02), (0.24, 0.6)),
        "saloon": ((-0.34, 0.64), (-0.2, 0.04), (0.24, 0.62)),
        "van": ((-0.5, 0.55), (-0.46, 0.16), (0.34, 0.58)),
    }[str(kind)]
    unit = [(-0.5, 0.17), (-0.5, 0.56), rear, (roof[0], 0.96), (roof[0] + 0.06, 1.0), (roof[1], 1.0), front,
            (0.47, 0.5), (0.5, 0.38), (0.5, 0.17)]  # fmt: skip
    profile = [(a * length, u * height) for a, u in unit]
    paint = pick(rng, _PAINTS)
    _vehicle_shadow(canvas, pose, length, width, height)
    with canvas.object("car"):
        hull = _Hull(canvas, pose, width / 2, 0.6 * height, 0.32)
        hull.tyres(length, 0.31)
        hull.shell(profile, paint)
        low, high = 0.17 * height, 0.26 * height
        sill = [(-length / 2, low), (-length / 2, high), (length / 2, high), (length / 2, low)]
        hull.sides(sill, scaled(paint, 0.55))
        (ra, ru), (fa, fu) = profile[2], profile[6]
        ta, tu = profile[3]
        sa, su = profile[5]
        hull.pane((ra, ru), (ta, tu), 0.1)
        hull.pane((sa, su), (fa, fu), 0.08)
        low, high, middle = 0.63 * height, 0.93 * height, ta + (sa - ta) * 0.55
        for start, end in ((ra + 0.12, middle - 0.05), (middle + 0.05, fa - 0.12)):
            top = (max(start, ta + 0.05), min(end, sa - 0.02))
            hull.sides([(start, low), (top[0], high), (top[1], high), (end, low)], _GLASS)
        hull.rear(0, 0.26 * height, width * 0.96, 0.14 * height, -length / 2 - 0.005, scaled(paint, 0.5), False)
        hull.front(0, 0.3 * height, width * 0.8, 0.2 * height, length / 2 + 0.005, _BLACK, False)
        hull.lamps(0.48 * height if kind != "saloon" else 0.5 * height, 0.17, length)
        hull.plates(0.36 * height, length)
        hull.wheels((-0.31 * length, 0.32 * length), 0.32)


def truck(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A cab in front of a box body, or of a tipper's low bed."""
    length, width, height = np.array(SIZES["truck"]) * rng.uniform(0.9, 1.1, 3)
    tipper = rng.random() < 0.25
    paint, load = (
        pick(rng, _PAINTS),
        pick(rng, ((232, 230, 224), (70, 110, 160), (214, 120, 44), (86, 120, 70))),
    )
    top = height * (0.62 if tipper else 1.0)
    seam, cab_top = length / 2 - 2.0, min(height * 0.88, 2.9)
    _vehicle_shadow(canvas, pose, length, width, height)
    with canvas.object("truck"):
        hull = _Hull(canvas, pose, width / 2, 9.0, 0.0)
        cab = _Hull(canvas, pose, width / 2 - 0.06, 1.6, 0.05)

        def paint_box() -> None:
            hull.tyres(length, 0.48)
            hull.rear(0, 0.75, width * 0.9, 0.3, -length / 2, _BLACK, False)
            hull.sides([(-length / 2, 0.55), (-length / 2, 0.95), (seam + 0.1, 0.95), (seam + 0.1, 0.55)], _BLACK)
            rear_wall = [(seam - 0.3, 0.9), (seam - 0.3, cab_top), (seam + 0.1, cab_top), (seam + 0.1, 0.9)]
            cab.sides(rear_wall, _BLACK)  # no gap between cab and load: a truck is one piece
            hull.shell([(-length / 2, 0.9), (-length / 2, top), (seam - 0.25, top), (seam - 0.25, 0.9)], load)
            for share in (0.2, 0.4, 0.6, 0.8):
                x = -length / 2 + share * (length - 2.25)
                hull.sides([(x, 1.0), (x, top - 0.1), (x + 0.06, top - 0.1), (x + 0.06, 1.0)], scaled(load, 0.78))
            for x in (-width / 4, width / 4):
                hull.rear(
                    x,
                    (top + 0.9) / 2,
                    width / 2 - 0.16,
                    top - 1.15,
                    -length / 2 - 0.01,
                    scaled(load, 0.86),
                    False,
                )
                hull.rear(x / 6, (top + 0.9) / 2, 0.05, top - 1.2, -length / 2 - 0.02, _STEEL, False)
            hull.lamps(0.72, 0.2, length - 0.01)
            hull.rear(0, 0.6, 0.52, 0.14, -length / 2 - 0.02, (226, 226, 214), False)
            hull.wheels((-length / 2 + 1.2, -length / 2 + 2.3), 0.48)

        def paint_cab() -> None:
            cab.shell([(seam, 0.45), (seam, cab_top), (length / 2 - 0.35, cab_top), (length / 2, 1.7),
                       (length / 2, 0.45)], paint)  # fmt: skip
            cab.across(length / 2 - 0.3, cab_top - 0.18, length / 2 - 0.02, 1.75, _GLASS, 0.88)
            cab.sides([(seam + 0.5, 1.7), (seam + 0.5, cab_top - 0.25), (length / 2 - 0.45, cab_top - 0.25),
                       (length / 2 - 0.15, 1.7)], _GLASS)  # fmt: skip
            cab.front(0, 1.15, width * 0.66, 0.55, length / 2 + 0.01, _BLACK, False)
            cab.front(0, 0.55, width * 0.94, 0.24, length / 2 + 0.01, _STEEL, False)
            cab.lamps(0.8, 0.2, length + 0.02)
            cab.wheels((length / 2 - 1.0,), 0.48)

        away = np.cos(pose.heading) > 0
        for part in (paint_cab, paint_box) if away else (paint_box, paint_cab):
            part()


def bus(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A city bus: tall side windows, destination display, doors on its right."""
    length, width, height = np.array(SIZES["bus"]) * rng.uniform(0.94, 1.06, 3)
    paint = pick(rng, ((206, 40, 38), (226, 186, 40), (40, 92, 160), (232, 232, 228), (50, 130, 90), (220, 110, 40)))
    lower = scaled(paint, 0.8) if rng.random() < 0.5 else pick(rng, ((230, 230, 226), (60, 62, 70)))
    half = length / 2
    _vehicle_shadow(canvas, pose, length, width, height)
    with canvas.object("bus"):
        hull = _Hull(canvas, pose, width / 2, height - 0.5, 0.16)
        hull.tyres(length, 0.46)
        hull.shell([(-half, 0.3), (-half, height - 0.2), (-half + 0.2, height), (half - 0.25, height),
                    (half - 0.08, height - 0.3), (half, 1.1), (half, 0.3)], paint)  # fmt: skip
        hull.sides([(-half, 0.3), (-half, 0.95), (half, 0.95), (half, 0.3)], lower)
        hull.sides([(-half + 0.3, 1.2), (-half + 0.3, 2.4), (half - 0.3, 2.4), (half - 0.2, 1.2)], _GLASS)
        for x in np.arange(-half + 1.5, half - 0.6, 1.45):
            hull.sides([(x, 1.2), (x, 2.4), (x + 0.1, 2.4), (x + 0.1, 1.2)], scaled(paint, 0.6))
        for x in (half - 1.5, -0.6):
            door = [(x, 0.4), (x, 2.4), (x + 1.1, 2.4), (x + 1.1, 0.4)]
            hull.panel([(hull.half + 0.01, up, along) for along, up in door], (58, 70, 80))
            hull.panel(
                [(hull.half + 0.02, up, x + 0.52 + d) for d, up in ((0, 0.4), (0, 2.4), (0.07, 2.4), (0.07, 0.4))],
                _BLACK,
            )
        hull.across(half - 0.07, height - 0.62, half + 0.01, 1.15, _GLASS, 0.93)
        hull.front(0, height - 0.42, width * 0.72, 0.3, half + 0.02, (36, 34, 30), False)
        hull.front(0, height - 0.42, width * 0.5, 0.13, half + 0.03, (255, 176, 40), True)
        hull.rear(0, height - 0.85, width * 0.8, 0.8, -half - 0.01, _GLASS, False)
        hull.rear(0, 0.95, width * 0.7, 0.45, -half - 0.01, scaled(paint, 0.55), False)
        hull.rear(0, 0.42, width * 0.96, 0.22, -half - 0.01, _BLACK, False)
        hull.front(0, 0.42, width * 0.96, 0.22, half + 0.01, _BLACK, False)
        hull.lamps(0.75, 0.24, length + 0.02)
        hull.plates(0.55, length + 0.02)
        hull.wheels((-half + 2.6, half - 2.5), 0.47)


def train(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A tram: sections with bellows, a sloping nose at both ends, skirts over its wheels, a pantograph."""
    length, width, height = np.array(SIZES["train"]) * rng.uniform(0.92, 1.06, 3)
    paint = pick(rng, ((238, 200, 52), (222, 214, 190), (190, 40, 44), (70, 140, 130), (236, 236, 236)))
    stripe = pick(rng, ((180, 30, 36), (30, 60, 120), (40, 110, 70), (44, 46, 54)))
    half = length / 2
    _vehicle_shadow(canvas, pose, length, width, height)
    with canvas.object("train"):
        hull = _Hull(canvas, pose, width / 2, 2.2, 0.14)
        z = pose.z
        arm = [(0, height, -1), (0, height + 0.7, 0.4), (0, height + 1.2, -0.6)]
        bow = [(-0.8, height + 1.2, -0.6), (0.8, height + 1.2, -0.6)]
        mast = canvas.camera.project(pose.street([*arm, *bow]))
        canvas.stroke(mast, 0.08 * canvas.camera.focal / z, canvas.lit(_BLACK, z))
        nose = [(0.0, 0.15), (0.0, 1.1), (0.5, height - 0.3), (0.9, height)]
        hull.shell([*((a - half, up) for a, up in nose), *((half - a, up) for a, up in reversed(nose))], paint)
        hull.sides([(-half, 0.15), (-half, 0.5), (half, 0.5), (half, 0.15)], _BLACK)
        hull.sides([(-half, 0.85), (-half, 1.1), (half, 1.1), (half, 0.85)], stripe)
        hull.sides([(-half + 0.5, 1.3), (-half + 0.65, 2.55), (half - 0.65, 2.55), (half - 0.5, 1.3)], _GLASS)
        for x in np.arange(-half + 2.2, half - 1.5, 1.6):
            hull.sides([(x, 1.3), (x, 2.55), (x + 0.16, 2.55), (x + 0.16, 1.3)], paint)
        for x in (-half / 3, half / 3):
            hull.sides([(x, 0.2), (x, height - 0.05), (x + 0.5, height - 0.05), (x + 0.5, 0.2)], (52, 54, 58))
        for end in (-1, 1):
            ends = [(-half, 1.25), (-half + 0.42, 2.7)] if end < 0 else [(half - 0.42, 2.7), (half, 1.25)]
            hull.across(*ends[0], *ends[1], _GLASS, 0.9)
            face = hull.rear if end < 0 else hull.front
            face(0, 0.93, width, 0.26, end * (half + 0.01), stripe, False)
            face(0, 0.32, width * 0.8, 0.3, end * (half + 0.01), _BLACK, False)
            face(0, height - 0.6, width * 0.55, 0.22, end * (half - 0.5), (255, 190, 60), True)
        hull.lamps(0.66, 0.2, length + 0.02)


# ---- people and two-wheelers


def _soft_spot(canvas: Canvas, x: float, z: float, width: float, height: float) -> None:
    """Contact shadow, and under a sun the cast one, of something narrow that stands at street (x, z)."""
    softness = canvas.camera.focal / z * 0.05
    spot = ellipse(x, z, width / 2, 0.18)
    ground = np.stack([spot[:, 0], np.zeros(len(spot)), spot[:, 1]], axis=1)
    canvas.shadow(canvas.camera.project(ground), 0.5, softness)
    if canvas.light.direct > 0.25:
        cast_shadow(canvas, spot, height, softness)


@dataclass(frozen=True)
class _Figure:
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


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Someone who walks or stands; sometimes a child, sometimes with a bag."""
    figure = _Figure(canvas, canvas.billboard(x, z, float(rng.choice([-1, 1]))))
    size = float(rng.normal(1.0, 0.05)) * (0.68 if rng.random() < 0.12 else 1.0)
    coat, trousers, skin = pick(rng, _CLOTHES), pick(rng, _CLOTHES[3:]), pick(rng, _SKIN, 6)
    hair = pick(rng, ((40, 30, 26), (96, 66, 40), (176, 146, 96), (120, 116, 112)), 8)
    step = float(rng.uniform(0.06, 0.34))
    long_coat = rng.random() < 0.35
    _soft_spot(canvas, x, z, 0.6, SIZES["person"][2] * size)

    def at(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(a * size, b * size) for a, b in points]

    with canvas.object("person"):
        for foot, shade in ((-step, 0.8), (step, 1.0)):
            leg = at([(0, 0.9), (foot * 0.45, 0.48), (foot, 0.05)])
            figure.limb(leg, 0.15 * size, scaled(trousers, shade))
            figure.limb(at([(foot - 0.03, 0.04), (foot + 0.12, 0.04)]), 0.08 * size, _BLACK)
        figure.limb(at([(0.0, 1.36), (-step * 0.6, 1.1), (-step * 0.5, 0.85)]), 0.11 * size, scaled(coat, 0.75))
        hem, flare = (0.66, 0.25) if long_coat else (0.86, 0.19)
        left = [(-flare, hem), (-0.2, 1.1), (-0.23, 1.36), (-0.12, 1.48)]
        figure.shape(at([*left, *((-x, y) for x, y in reversed(left))]), coat)
        figure.limb(at([(0.03, 1.36), (step * 0.5, 1.1), (step * 0.9 + 0.05, 0.9)]), 0.11 * size, scaled(coat, 0.88))
        figure.shape(ellipse(step * 0.9 + 0.06, 0.87, 0.05) * size, skin)
        if rng.random() < 0.3:
            figure.shape(at([(-0.34, 0.8), (-0.36, 1.25), (-0.17, 1.3), (-0.15, 0.85)]), pick(rng, _CLOTHES))
        figure.limb(at([(0, 1.46), (0.01, 1.56)]), 0.1 * size, skin)
        figure.shape(ellipse(0.01, 1.63, 0.105, 0.13) * size, skin)
        figure.shape(ellipse(-0.02, 1.68, 0.105, 0.09) * size, hair)


def _wheel(figure: _Figure, x: float, radius: float, tyre: float) -> None:
    rim = ellipse(x, radius, radius - tyre / 2, corners=20)
    figure.limb(np.concatenate([rim, rim[:1]]), tyre, _RUBBER)
    for angle in np.linspace(0, np.pi, 5, endpoint=False):
        spoke = np.array([(-np.cos(angle), -np.sin(angle)), (np.cos(angle), np.sin(angle))]) * (radius - tyre)
        figure.limb(np.add(spoke, (x, radius)), 0.012, (150, 152, 154))


def bicycle(canvas: Canvas, rng: np.random.Generator, x: float, z: float, turn: float) -> None:
    """A bicycle; `turn` as in `Billboard`."""
    figure = _Figure(canvas, canvas.billboard(x, z, turn))
    frame = pick(rng, _PAINTS)
    _soft_spot(canvas, x, z, 1.5 * abs(turn), 0.8)
    with canvas.object("bicycle"):
        for wheel in (-0.53, 0.53):
            _wheel(figure, wheel, 0.35, 0.06)
        crank, saddle, head = (-0.08, 0.32), (-0.24, 0.86), (0.38, 0.82)
        stays = [(-0.53, 0.35), (-0.2, 0.72), (0.36, 0.74)]
        for tube in ([(-0.53, 0.35), crank, head], [crank, saddle], stays, [(0.53, 0.35), (0.34, 0.98)]):
            figure.limb(tube, 0.055, frame)
        figure.limb([(0.22, 1.03), (0.36, 1.0), (0.42, 0.98)], 0.05, _BLACK)
        figure.limb([(-0.36, 0.9), (-0.14, 0.89)], 0.085, _BLACK)
        figure.limb([(-0.2, 0.2), (0.04, 0.44)], 0.04, _STEEL)
        figure.limb([(-0.82, 0.5), (-0.66, 0.68), (-0.4, 0.7)], 0.04, _BLACK)


def motorcycle(canvas: Canvas, rng: np.random.Generator, x: float, z: float, turn: float) -> None:
    """A motorcycle or a scooter; `turn` as in `Billboard`."""
    figure = _Figure(canvas, canvas.billboard(x, z, turn))
    paint = pick(rng, _PAINTS)
    _soft_spot(canvas, x, z, 1.7 * abs(turn), 0.9)
    with canvas.object("motorcycle"):
        for wheel in (-0.7, 0.7):
            figure.shape(ellipse(wheel, 0.32, 0.32), _RUBBER)
            figure.shape(ellipse(wheel, 0.32, 0.17), (120, 122, 126))
        figure.limb([(0.7, 0.32), (0.42, 0.98)], 0.09, _STEEL)
        figure.shape([(-0.4, 0.22), (-0.42, 0.6), (0.3, 0.66), (0.38, 0.3), (0.1, 0.18)], (64, 66, 70))
        figure.limb([(-0.85, 0.3), (-0.1, 0.27)], 0.11, (172, 174, 178))
        figure.shape([(-0.1, 0.62), (-0.02, 0.9), (0.26, 0.98), (0.44, 0.84), (0.36, 0.6)], paint)
        figure.shape([(-0.95, 0.74), (-0.92, 0.9), (-0.5, 0.84), (-0.06, 0.86), (-0.06, 0.7), (-0.5, 0.64)], _BLACK)
        figure.shape([(-0.98, 0.6), (-0.95, 0.74), (-0.4, 0.64), (-0.45, 0.5)], paint)
        figure.shape([(0.42, 0.62), (0.5, 0.72), (0.92, 0.68), (1.02, 0.5), (0.7, 0.66)], paint)
        figure.shape([(0.38, 0.8), (0.36, 1.12), (0.5, 1.1), (0.62, 0.86)], paint)
        figure.limb([(0.2, 1.06), (0.42, 1.02)], 0.06, _BLACK)
        figure.shape(ellipse(0.58, 0.9, 0.09), (250, 244, 214), glow=True)
        figure.shape(ellipse(-0.97, 0.72, 0.06), (206, 30, 26), glow=True)


def rider(canvas: Canvas, rng: np.random.Generator, x: float, z: float, turn: float, helmet: bool) -> None:
    """Someone sitting on a bicycle, or with a full `helmet` on a motorcycle, at the same place and turn."""
    figure = _Figure(canvas, canvas.billboard(x, z, turn))
    wide = float(np.clip(1 / max(abs(turn), 0.3), 1, 1.9))  # a trunk does not get thin when seen from behind
    coat, trousers, skin = pick(rng, _CLOTHES), pick(rng, _CLOTHES[3:]), pick(rng, _SKIN, 6)
    seat, pedal, hand = (
        ((-0.3, 0.86), (0.08, 0.3), (0.22, 1.06)) if helmet else ((-0.22, 0.92), (-0.08, 0.18), (0.3, 1.04))
    )
    knee = (seat[0] + 0.42, seat[1] - 0.2)
    with canvas.object("rider"):
        far_leg = [seat, (knee[0] - 0.1, knee[1] + 0.1), (pedal[0] + 0.1, pedal[1] + 0.25)]
        figure.limb(far_leg, 0.15, scaled(trousers, 0.75))
        figure.limb([seat, knee, pedal], 0.17, trousers)
        figure.limb([pedal, (pedal[0] + 0.16, pedal[1] - 0.02)], 0.09, _BLACK)
        neck = (seat[0] + 0.2, 1.48)
        half = 0.19 * wide
        hips = [(seat[0] + half, 0.88), (seat[0] - half, 0.84)]
        back = [(neck[0] - half * 1.05, 1.3), (neck[0] - half * 0.5, neck[1] + 0.03)]
        chest = [(neck[0] + half * 0.6, neck[1]), (neck[0] + half, 1.28)]
        figure.shape([*hips, *back, *chest], coat)
        figure.limb([(neck[0], 1.36), (neck[0] + 0.16, 1.08), hand], 0.12, scaled(coat, 0.85))
        figure.shape(ellipse(hand[0], hand[1], 0.05 * wide, 0.05), skin)
        top = (neck[0] + 0.07, 1.64)
        figure.limb([neck, top], 0.12, skin)
        figure.shape(ellipse(*top, 0.11 * wide, 0.13), skin)
        if helmet:
            figure.shape(ellipse(top[0], top[1] + 0.01, 0.15 * wide, 0.16), pick(rng, _PAINTS))
            figure.box(top[0] + 0.02, 1.6, top[0] + 0.14 * wide, 1.7, _BLACK)
        else:
            cap = ellipse(top[0] - 0.01, top[1] + 0.04, 0.13 * wide, 0.11)
            figure.shape(cap, pick(rng, ((230, 230, 228), (40, 42, 48), (196, 50, 44), (60, 44, 36))))


# ---- street furniture


def _mast(canvas: Canvas, x: float, z: float, height: float, width: float, color: Rgb) -> None:
    """A round upright tube: lit on one side."""
    for left, right, shade in ((-0.5, 0.5, 0.82), (-0.1, 0.28, 1.12)):
        outline = canvas.street_rectangle((x + left * width, x + right * width), (0, height), z)
        canvas.fill(outline, canvas.lit(scaled(color, shade), z))


def street_lamp(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A lamp post whose arm reaches over the road."""
    height = SIZES["street lamp"][2] * float(rng.uniform(0.8, 1.15))
    color = pick(rng, ((128, 132, 134), (92, 98, 100), (70, 84, 78), (152, 150, 144)), 6)
    reach = -np.sign(x) * rng.uniform(1.2, 2.0)
    _soft_spot(canvas, x, z, 0.4, height)
    with canvas.object("pole"):
        figure = _Figure(canvas, canvas.billboard(x, z))
        _mast(canvas, x, z, height, 0.24, color)
        _mast(canvas, x, z, 1.1, 0.34, scaled(color, 0.85))
        figure.limb([(0, height - 0.1), (reach * 0.5, height + 0.35), (reach, height + 0.4)], 0.12, color)
        figure.limb([(reach * 0.75, height + 0.36), (reach * 1.25, height + 0.36)], 0.2, scaled(color, 0.9))


_LAMPS = (((255, 52, 36), (84, 26, 24)), ((255, 190, 40), (88, 66, 20)), ((60, 236, 130), (20, 72, 48)))
"""Red, amber and green, each lit and dark."""


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A signal on its post; sometimes a second one hangs over the road."""
    _, width, height = np.array(SIZES["traffic light"]) * float(rng.uniform(1.05, 1.4))
    color, low = pick(rng, ((120, 124, 126), (84, 92, 92), (150, 148, 140)), 5), float(rng.uniform(2.1, 2.5))
    reach, state = -np.sign(x) * float(rng.uniform(2.2, 3.4)), int(rng.integers(3))
    hanging = rng.random() < 0.4
    _soft_spot(canvas, x, z, 0.35, low)
    figure = _Figure(canvas, canvas.billboard(x, z))
    with canvas.object("pole"):
        _mast(canvas, x, z, 5.2 if hanging else low + height, 0.18, color)
        if hanging:
            figure.limb([(0, 5.15), (reach, 5.3)], 0.13, color)
    heads = [(0.0, low)] + ([(reach, 4.95)] if hanging else [])
    for side, foot in heads:
        with canvas.object("traffic light"):
            rim: Rgb = (214, 206, 150) if state == 1 else (70, 74, 72)
            figure.box(side - width / 2 - 0.02, foot - 0.02, side + width / 2 + 0.02, foot + height + 0.02, rim)
            figure.box(side - width / 2, foot, side + width / 2, foot + height, (32, 36, 36))
            for lamp, (on, off) in enumerate(_LAMPS):
                disc = ellipse(side, foot + height * (0.82 - 0.32 * lamp), width * 0.34)
                figure.shape(disc, on if lamp == state else off, glow=True)


def traffic_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A sign on its post: prohibition, warning, command, stop, priority or a direction board."""
    kind = str(rng.choice(["ban", "warning", "command", "stop", "priority", "board"]))
    radius, low = SIZES["traffic sign"][1] / 2 * float(rng.uniform(1.0, 1.35)), float(rng.uniform(1.9, 2.4))
    figure = _Figure(canvas, canvas.billboard(x, z))
    middle = low + radius
    _soft_spot(canvas, x, z, 0.3, low + radius)
    with canvas.object("pole"):
        _mast(canvas, x, z, low + 2 * radius, 0.13, pick(rng, ((140, 143, 146), (110, 114, 116)), 5))
    white, red, blue, dark = (238, 238, 234), (200, 28, 34), (28, 84, 172), (34, 34, 38)
    shape = {"warning": 3, "stop": 8, "priority": 4}.get(kind, 20)
    angle = np.linspace(0, 2 * np.pi, shape, endpoint=False) + (np.pi / 8 if shape == 8 else np.pi / 2)
    outline = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius * (1.2 if shape == 3 else 1.0)
    with canvas.object("traffic sign"):
        if kind == "board":
            wide = radius * float(rng.uniform(1.5, 2.4))
            face = pick(rng, ((28, 84, 172), (238, 206, 60), (236, 236, 232), (26, 120, 80)), 4)
            for grow, color in ((1.0, white), (0.9, face)):
                half, rise = wide * grow, radius * 0.8 * grow
                figure.box(-half, middle - rise, half, middle + rise, color)
            ink = white if sum(face) < 420 else dark
            for row in (-0.3, 0.25):
                figure.limb([(-wide * 0.7, middle + row * radius), (wide * 0.5, middle + row * radius)], 0.09, ink)
            return
        layers = {
            "ban": ((1.0, red), (0.74, white)), "warning": ((1.0, red), (0.62, white)),
            "command": ((1.0, white), (0.92, blue)), "stop": ((1.0, white), (0.92, red)),
            "priority": ((1.0, white), (0.72, (240, 196, 40))),
        }[kind]  # fmt: skip
        for grow, color in layers:
            figure.shape(outline * grow + (0, middle), color)
        symbol = {"stop": white, "command": white, "ban": dark, "warning": dark}.get(kind)
        if symbol is not None:
            bar = [(-0.45, 0), (0.45, 0)] if kind in ("stop", "ban") else [(0, -0.3), (0, 0.35)]
            figure.limb([(a * radius, middle + b * radius) for a, b in bar], 0.26 * radius, symbol)


def bin_or_box(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A litter bin or a grey switch cabinet: annotated `static`, which counts for nothing."""
    width, height = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.8, 1.3))
    color = pick(rng, ((70, 96, 80), (120, 122, 120), (60, 62, 66), (186, 110, 40)))
    _soft_spot(canvas, x, z, width, height)
    with canvas.object("static"):
        canvas.fill(canvas.street_rectangle((x - width / 2, x + width / 2), (0, height), z), canvas.lit(color, z))
        lid = canvas.street_rectangle((x - width * 0.55, x + width * 0.55), (height * 0.86, height), z)
        canvas.fill(lid, canvas.lit(scaled(color, 0.6), z))


def pram(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A pram or trolley: annotated `dynamic`, which counts for nothing."""
    figure, color = _Figure(canvas, canvas.billboard(x, z)), pick(rng, _CLOTHES)
    _soft_spot(canvas, x, z, 0.9, 0.8)
    with canvas.object("dynamic"):
        figure.limb([(-0.36, 0.12), (0.3, 0.5), (0.6, 0.98)], 0.05, _STEEL)
        figure.limb([(0.36, 0.12), (-0.2, 0.5)], 0.05, _STEEL)
        figure.shape([(-0.45, 0.45), (-0.5, 0.75), (-0.3, 1.0), (0.0, 0.78), (0.42, 0.74), (0.36, 0.45)], color)
        for wheel in (-0.36, 0.36):
            figure.shape(ellipse(wheel, 0.13, 0.13), _RUBBER)


# ---- plants and constructions


def _blob(rng: np.random.Generator, x: float, y: float, radius_x: float, radius_y: float) -> FloatArray:
    """A leafy outline: an ellipse whose edge goes in and out."""
    outline = ellipse(0, 0, 1, corners=34) * rng.uniform(0.84, 1.1, (34, 1))
    return outline * (radius_x, radius_y) + (x, y)


def _leaves(canvas: Canvas, rng: np.random.Generator, board: Billboard, outline: FloatArray, color: Rgb) -> None:
    """Foliage that is dark below and bright where the sun falls."""
    plane = board.plane(float(rng.uniform(1.6, 2.6)))
    middle, reach = outline.mean(axis=0), np.ptp(outline, axis=0)
    sun = np.array([np.sign(canvas.light.sun[0]) * 0.12, 0.16])
    for grow, shift, shade in ((1.0, 0.0, 0.66), (0.82, 0.5, 0.9), (0.56, 1.0, 1.16)):
        uneven = grow * rng.uniform(0.92, 1.05, (len(outline), 1))
        part = (outline - middle) * uneven + middle + sun * reach * shift
        canvas.fill(board(part), canvas.lit(scaled(color, shade), board.z), "foliage", plane)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, size: float = 1.0) -> None:
    """A broad-leaved tree or a conifer; trunk and crown are one piece of vegetation."""
    figure, color = _Figure(canvas, canvas.billboard(x, z)), pick(rng, _LEAVES, 9)
    trunk = float(rng.uniform(1.8, 2.8)) * size
    height = SIZES["tree"][2] * float(rng.uniform(0.75, 1.25)) * size
    _soft_spot(canvas, x, z, 1.2, height * 0.8)
    with canvas.object("vegetation", whole=False):
        bark = pick(rng, ((92, 74, 56), (70, 60, 50), (120, 108, 92)), 6)
        figure.shape(
            [(-0.17 * size, 0), (-0.12 * size, height * 0.6), (0.12 * size, height * 0.6), (0.17 * size, 0)],
            bark,
        )
        if rng.random() < 0.2:
            for share in (0.0, 0.3, 0.55):
                low, half = trunk * 0.5 + share * height * 0.8, (1 - share) * height * 0.27
                cone = np.array([(-1, 0), (-0.5, 0.2), (0, 0.45), (0.5, 0.2), (1, 0)]) * (half, height) + (
                    0,
                    low,
                )
                _leaves(canvas, rng, figure.board, cone, scaled(color, 0.72))
            return
        half = height * float(rng.uniform(0.26, 0.36))
        lobes = rng.uniform(-0.5, 0.5, (2 if z < 45 else 1, 2))
        for dx, dy in (*lobes, (0.0, 0.0)):
            crown = _blob(rng, dx * half, trunk + half + dy * half * 0.7, half * 0.85, half * 0.8)
            _leaves(canvas, rng, figure.board, crown, color)


def bushes(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float], height: float) -> None:
    """A row of bushes along the road from z[0] to z[1], far ones first."""
    color = pick(rng, _LEAVES, 8)
    with canvas.object("vegetation", whole=False):
        for at in np.arange(z[1], z[0], -height * 0.9):
            board = canvas.billboard(x + float(rng.normal(0, 0.15)), float(at))
            size = height * float(rng.uniform(0.8, 1.15))
            _leaves(canvas, rng, board, _blob(rng, 0, size * 0.42, size * 0.75, size * 0.58), color)


@dataclass(frozen=True)
class _Front:
    """An upright surface along the road at street x, from z[0] (near) to z[1]: metres to canvas points."""

    canvas: Canvas
    x: float
    z: tuple[float, float]

    @property
    def length(self) -> float:
        return self.z[1] - self.z[0]

    def __call__(self, points: Sequence[Sequence[float]]) -> FloatArray:
        """(metres from the left end as seen from the road, metres up) to canvas points."""
        right, (near, far) = self.x > self.canvas.camera.x, self.z
        return self.canvas.camera.project(
            np.array([(self.x, up, far - along if right else near + along) for along, up in points])
        )

    def box(self, left: float, low: float, width: float, height: float) -> FloatArray:
        return self([(left, low), (left, low + height), (left + width, low + height), (left + width, low)])

    def lit(self, color: Rgb) -> Rgb:
        towards_road = (-1.0 if self.x > self.canvas.camera.x else 1.0, 0.0, 0.0)
        return self.canvas.lit(color, (self.z[0] + self.z[1]) / 2, towards_road)


def building(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float], floors: int) -> None:
    """A house front of `floors` storeys with windows, a door or a shop, and sometimes a pitched roof."""
    front, storey = _Front(canvas, x, z), SIZES["storey"][2] * float(rng.uniform(0.92, 1.08))
    height, outwards = floors * storey + 0.8, float(np.sign(x - canvas.camera.x))
    brick = rng.random() < 0.35
    color = pick(rng, ((158, 92, 72), (170, 116, 88), (140, 84, 74)) if brick else _PLASTERS)
    texture = "brick" if brick else "plaster"
    middle = (z[0] + z[1]) / 2
    with canvas.object("building", whole=False):
        end = canvas.camera.project(
            np.array([(x + outwards * a, b, z[0]) for a, b in ((0, 0), (0, height), (9, height), (9, 0))])
        )
        facing = canvas.lit(color, z[0], TOWARDS_US)
        order = slice(None) if outwards > 0 else [3, 2, 1, 0]
        canvas.fill(end, facing, texture, Plane(end[order], (9, height)))
        if rng.random() < 0.55:
            roof, ridge = pick(rng, _ROOFS), height + float(rng.uniform(2.0, 3.2))
            slope = np.array(
                [
                    (x - outwards * 0.3, height - 0.1, z[1]),
                    (x + outwards * 4, ridge, z[1]),
                    (x + outwards * 4, ridge, z[0]),
                    (x - outwards * 0.3, height - 0.1, z[0]),
                ]
            )
            gable = np.array([(x, height, z[0]), (x + outwards * 4, ridge, z[0]), (x + outwards * 9, height, z[0])])
            canvas.fill(canvas.camera.project(gable), facing)
            canvas.fill(canvas.camera.project(slope), canvas.lit(roof, middle, (-outwards * 0.6, 0.8, 0.0)))
        wall = front.box(0, 0, front.length, height)
        canvas.fill(wall, front.lit(color), texture, Plane(wall, (front.length, height)))
        canvas.fill(front.box(0, height - 0.35, front.length, 0.35), front.lit(scaled(color, 0.8)))
        canvas.fill(front.box(0, 0, front.length, 0.5), front.lit(scaled(color, 0.62)))
        _windows(canvas, rng, front, floors, storey, color)


def _windows(canvas: Canvas, rng: np.random.Generator, front: _Front, floors: int, storey: float, wall: Rgb) -> None:
    pitch, shop = float(rng.uniform(2.1, 3.0)), rng.random() < 0.45
    count = max(1, int((front.length - 0.8) / pitch))
    margin, width, height = (
        (front.length - count * pitch) / 2,
        pitch * float(rng.uniform(0.42, 0.58)),
        storey * 0.56,
    )
    frame = pick(rng, ((236, 234, 228), (90, 70, 56), (208, 200, 188)), 6)
    lights = 0.3 if canvas.light.sky_low[0] > 1.6 * canvas.light.sky_low[2] else 0.04
    door = int(rng.integers(count))
    awning = pick(rng, _CLOTHES)
    for floor in range(floors):
        low = floor * storey + storey * 0.32
        for column in range(count):
            left = margin + column * pitch + (pitch - width) / 2
            if floor == 0 and (column == door or shop):
                wide = width if column == door else pitch * 0.86
                left = margin + column * pitch + (pitch - wide) / 2
                pane = pick(rng, ((92, 60, 40), (50, 70, 60), (60, 62, 70))) if column == door else (62, 76, 86)
                canvas.fill(front.box(left - 0.1, 0.1, wide + 0.2, storey * 0.8), front.lit(scaled(frame, 0.8)))
                canvas.fill(
                    front.box(
                        left,
                        0.15 if column == door else 0.5,
                        wide,
                        storey * (0.72 if column == door else 0.6),
                    ),
                    front.lit(pane),
                )
                if shop:
                    canvas.fill(front.box(margin + column * pitch, storey * 0.84, pitch, 0.45), front.lit(awning))
                continue
            if front.z[0] < 50:  # farther away, a window frame is less than a pixel
                canvas.fill(front.box(left - 0.1, low - 0.1, width + 0.2, height + 0.2), front.lit(frame))
            pane = (244, 208, 130) if rng.random() < lights else scaled((62, 78, 94), float(rng.uniform(0.7, 1.3)))
            canvas.fill(front.box(left, low, width, height), front.lit(pane))
            if front.z[0] < 50:
                canvas.fill(front.box(left + width / 2 - 0.04, low, 0.08, height), front.lit(frame))
                canvas.fill(front.box(left - 0.16, low - 0.2, width + 0.32, 0.12), front.lit(scaled(wall, 0.7)))


def wall(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float]) -> None:
    """A free-standing wall of brick, field stone or concrete with a coping."""
    front, height = _Front(canvas, x, z), SIZES["wall"][2] * float(rng.uniform(0.78, 1.24))
    texture, colors = (
        ("stone", ((142, 136, 124), (120, 116, 110))),
        ("concrete", ((168, 166, 160), (146, 148, 150))),
        ("brick", ((134, 76, 60), (116, 70, 62))),
    )[int(rng.choice(3, p=[0.4, 0.35, 0.25]))]
    color = pick(rng, colors, 8)
    with canvas.object("wall"):
        face = front.box(0, 0, front.length, height)
        canvas.fill(face, front.lit(color), texture, Plane(face, (front.length, height)))
        for along in np.arange(0, front.length, 4.0):
            canvas.fill(front.box(along, 0, 0.45, height), front.lit(scaled(color, 0.84)))
        end = canvas.street_rectangle((x, x + np.sign(x) * 0.35), (0, height), z[0])
        canvas.fill(end, canvas.lit(color, z[0], TOWARDS_US))
        canvas.fill(front.box(0, height, front.length, 0.16), front.lit(scaled(color, 1.25)))
        canvas.fill(front.box(0, 0, front.length, 0.18), front.lit(scaled(color, 0.66)))


def fence(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float]) -> None:
    """A fence of steel bars, wooden pales or mesh; its gaps belong to it."""
    kind, front, height = (
        str(rng.choice(["bars", "pales", "mesh"])),
        _Front(canvas, x, z),
        SIZES["fence"][2] * float(rng.uniform(0.78, 1.24)),
    )
    color = {
        "bars": pick(rng, ((40, 46, 48), (30, 60, 50), (90, 96, 98)), 5),
        "pales": pick(rng, ((168, 132, 92), (214, 206, 190), (128, 92, 64)), 8),
        "mesh": pick(rng, ((140, 148, 146), (70, 110, 84)), 6),
    }[kind]
    pitch, share = {"bars": (0.22, 0.3), "pales": (0.2, 0.72), "mesh": (0.16, 0.16)}[kind]
    with canvas.object("fence"):
        canvas.claim(front.box(0, 0, front.length, height))
        paint = front.lit(color)
        for along in np.arange(0, front.length, pitch):
            top = height - (0.1 * (along / pitch % 2) if kind == "pales" else 0.0)
            canvas.fill(front.box(along, 0.04, pitch * share, top), paint)
        for up in (0.2, height - 0.22) if kind != "mesh" else np.arange(0.1, height, 0.2):
            canvas.fill(
                front.box(0, up, front.length, 0.08 if kind != "mesh" else 0.03),
                front.lit(scaled(color, 0.86)),
            )
        for along in np.arange(0, front.length, 2.5):
            canvas.fill(front.box(along, 0, 0.14, height + 0.08), front.lit(scaled(color, 0.78)))


def skyline(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """What closes the street far away: house blocks with trees in front, pale in the haze."""
    middle = canvas.camera.x - canvas.camera.yaw * z
    with canvas.object("building", whole=False):
        for _ in range(16):
            figure = _Figure(canvas, canvas.billboard(middle + float(rng.uniform(-110, 110)), z))
            half, height = float(rng.uniform(6, 16)), float(rng.uniform(7, 26))
            figure.box(-half, -1, half, height, pick(rng, _PLASTERS))
    with canvas.object("vegetation", whole=False):
        for _ in range(14):
            board = canvas.billboard(middle + float(rng.uniform(-110, 110)), z)
            half, height = float(rng.uniform(6, 16)), float(rng.uniform(4, 9))
            _leaves(canvas, rng, board, _blob(rng, 0, height * 0.42, half, height * 0.6), pick(rng, _LEAVES))
        # No gap may show the sky below the horizon.
        _Figure(canvas, canvas.billboard(middle, z)).box(-300, -1.5, 300, 2.5, scaled(_LEAVES[0], 0.8))
