"""Cars, trucks, buses and trams of mini-city.

Vehicles are extruded side profiles in vehicle coordinates (side, up, along; along points to the front).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from segmv3.mini_city.canvas import DATA, Canvas, FloatArray, Rgb, Vector, ellipse
from segmv3.mini_city.things import BLACK, PAINTS, RUBBER, SIZES, STEEL, Pose, cast_shadow, pick, scaled

_GLASS = (44, 56, 68)


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

    def rear(
        self, x: float, up: float, width: float, height: float, along: float, color: Rgb, glow: bool = False
    ) -> None:
        """A rectangle on the rear end, its middle at (x, up)."""
        a, b, low, high = x - width / 2, x + width / 2, up - height / 2, up + height / 2
        self.panel([(a, low, along), (a, high, along), (b, high, along), (b, low, along)], color, glow)

    def front(
        self, x: float, up: float, width: float, height: float, along: float, color: Rgb, glow: bool = False
    ) -> None:
        """A rectangle on the front end: one on the rear end whose corners are turned round."""
        self.rear(x, up, -width, height, along, color, glow)

    def box(self, a: float, low: float, b: float, high: float, color: Rgb) -> None:
        """A rectangle on both sides, from a to b along the body."""
        self.sides([(a, low), (a, high), (b, high), (b, low)], color)

    def lamps(self, up: float, size: float, length: float) -> None:
        """Tail lamps and headlamps on both ends of a body of this length."""
        for side in (-1, 1):
            self.rear(side * (self.half - 0.22), up, size * 1.4, size, -length / 2 - 0.01, (196, 26, 22), glow=True)
            self.front(side * (self.half - 0.28), up, size * 1.7, size, length / 2 + 0.01, (250, 246, 222), glow=True)

    def plates(self, up: float, length: float) -> None:
        self.rear(0, up, 0.52, 0.14, -length / 2 - 0.01, (226, 226, 214))
        self.front(0, up, 0.52, 0.14, length / 2 + 0.01, (226, 226, 214))

    def wheels(self, alongs: Sequence[float], radius: float) -> None:
        for along in alongs:
            for reach, color in ((radius, RUBBER), (radius * 0.58, (150, 152, 156))):
                self.sides([(x, y) for x, y in ellipse(along, radius, reach)][::-1], color)

    def tyres(self, length: float, radius: float) -> None:
        """The treads seen below the bumpers; painted before the shell."""
        for side in (-1, 1):
            for end, face in ((-1, self.rear), (1, self.front)):
                face(side * (self.half - 0.15), radius, 0.24, 2 * radius, end * (length / 2 - 0.3), RUBBER)


def _normal(corners: FloatArray) -> Vector:
    """The unit normal of a face, towards the side from which its corners are clockwise."""
    (a, b, c), (d, e, f) = (corners[1] - corners[0]).tolist(), (corners[2] - corners[0]).tolist()
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    length = math.sqrt(x * x + y * y + z * z) or 1.0
    return x / length, y / length, z / length


def _vehicle_shadow(canvas: Canvas, pose: Pose, length: float, width: float, height: float) -> None:
    corners = [(s * width / 2, 0.0, a * length / 2) for s, a in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    base = pose.street(corners)
    softness = canvas.camera.scale(pose.z) * 0.1
    canvas.shadow(canvas.camera.project(base), 0.62, softness)
    if canvas.light.direct > 0.25:
        cast_shadow(canvas, base[:, [0, 2]], height * 0.9, softness * 0.6)


def car(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A hatchback, saloon or van."""
    kind = rng.choice(["hatchback", "saloon", "van"], p=[0.42, 0.36, 0.22])
    length, width, height = np.array(SIZES["car"]) * rng.uniform(0.94, 1.06, 3)
    height *= 1.22 if kind == "van" else 1.0
    profile = [(a * length, u * height) for a, u in DATA["cars"][str(kind)]]
    paint = pick(rng, PAINTS)
    _vehicle_shadow(canvas, pose, length, width, height)
    with canvas.object("car"):
        hull = _Hull(canvas, pose, width / 2, 0.6 * height, 0.32)
        hull.tyres(length, 0.31)
        hull.shell(profile, paint)
        low, high = 0.17 * height, 0.26 * height
        hull.box(-length / 2, low, length / 2, high, scaled(paint, 0.55))
        hull.pane(profile[2], profile[3], 0.1)
        hull.pane(profile[5], profile[6], 0.08)
        ra, ta, sa, fa = (profile[corner][0] for corner in (2, 3, 5, 6))
        low, high, middle = 0.63 * height, 0.93 * height, ta + (sa - ta) * 0.55
        for start, end in ((ra + 0.12, middle - 0.05), (middle + 0.05, fa - 0.12)):
            top = (max(start, ta + 0.05), min(end, sa - 0.02))
            hull.sides([(start, low), (top[0], high), (top[1], high), (end, low)], _GLASS)
        hull.rear(0, 0.26 * height, width * 0.96, 0.14 * height, -length / 2 - 0.005, scaled(paint, 0.5))
        hull.front(0, 0.3 * height, width * 0.8, 0.2 * height, length / 2 + 0.005, BLACK)
        hull.lamps(0.48 * height if kind != "saloon" else 0.5 * height, 0.17, length)
        hull.plates(0.36 * height, length)
        hull.wheels((-0.31 * length, 0.32 * length), 0.32)


def truck(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A cab in front of a box body, or of a tipper's low bed."""
    length, width, height = np.array(SIZES["truck"]) * rng.uniform(0.9, 1.1, 3)
    tipper = rng.random() < 0.25
    paint = pick(rng, PAINTS)
    load = pick(rng, ((232, 230, 224), (70, 110, 160), (214, 120, 44), (86, 120, 70)))
    top = height * (0.62 if tipper else 1.0)
    seam, cab_top = length / 2 - 2.0, min(height * 0.88, 2.9)
    _vehicle_shadow(canvas, pose, length, width, height)
    with canvas.object("truck"):
        hull = _Hull(canvas, pose, width / 2, 9.0, 0.0)
        cab = _Hull(canvas, pose, width / 2 - 0.06, 1.6, 0.05)

        def paint_box() -> None:
            hull.tyres(length, 0.48)
            hull.rear(0, 0.75, width * 0.9, 0.3, -length / 2, BLACK)
            hull.box(-length / 2, 0.55, seam + 0.1, 0.95, BLACK)
            cab.box(seam - 0.3, 0.9, seam + 0.1, cab_top, BLACK)  # no gap between cab and load: a truck is one piece
            hull.shell([(-length / 2, 0.9), (-length / 2, top), (seam - 0.25, top), (seam - 0.25, 0.9)], load)
            for share in (0.2, 0.4, 0.6, 0.8):
                x = -length / 2 + share * (length - 2.25)
                hull.box(x, 1.0, x + 0.06, top - 0.1, scaled(load, 0.78))
            for x in (-width / 4, width / 4):
                middle, door = (top + 0.9) / 2, scaled(load, 0.86)
                hull.rear(x, middle, width / 2 - 0.16, top - 1.15, -length / 2 - 0.01, door)
                hull.rear(x / 6, middle, 0.05, top - 1.2, -length / 2 - 0.02, STEEL)
            hull.lamps(0.72, 0.2, length - 0.01)
            hull.rear(0, 0.6, 0.52, 0.14, -length / 2 - 0.02, (226, 226, 214))
            hull.wheels((-length / 2 + 1.2, -length / 2 + 2.3), 0.48)

        def paint_cab() -> None:
            cab.shell([(seam, 0.45), (seam, cab_top), (length / 2 - 0.35, cab_top), (length / 2, 1.7),
                       (length / 2, 0.45)], paint)  # fmt: skip
            cab.across(length / 2 - 0.3, cab_top - 0.18, length / 2 - 0.02, 1.75, _GLASS, 0.88)
            cab.sides([(seam + 0.5, 1.7), (seam + 0.5, cab_top - 0.25), (length / 2 - 0.45, cab_top - 0.25),
                       (length / 2 - 0.15, 1.7)], _GLASS)  # fmt: skip
            cab.front(0, 1.15, width * 0.66, 0.55, length / 2 + 0.01, BLACK)
            cab.front(0, 0.55, width * 0.94, 0.24, length / 2 + 0.01, STEEL)
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
        hull.box(-half, 0.3, half, 0.95, lower)
        hull.sides([(-half + 0.3, 1.2), (-half + 0.3, 2.4), (half - 0.3, 2.4), (half - 0.2, 1.2)], _GLASS)
        for x in np.arange(-half + 1.5, half - 0.6, 1.45):
            hull.box(x, 1.2, x + 0.1, 2.4, scaled(paint, 0.6))
        for x in (half - 1.5, -0.6):
            for out, left, wide, color in ((0.01, x, 1.1, (58, 70, 80)), (0.02, x + 0.52, 0.07, BLACK)):
                door = [(left, 0.4), (left, 2.4), (left + wide, 2.4), (left + wide, 0.4)]
                hull.panel([(hull.half + out, up, along) for along, up in door], color)
        hull.across(half - 0.07, height - 0.62, half + 0.01, 1.15, _GLASS, 0.93)
        hull.front(0, height - 0.42, width * 0.72, 0.3, half + 0.02, (36, 34, 30))
        hull.front(0, height - 0.42, width * 0.5, 0.13, half + 0.03, (255, 176, 40), glow=True)
        hull.rear(0, height - 0.85, width * 0.8, 0.8, -half - 0.01, _GLASS)
        hull.rear(0, 0.95, width * 0.7, 0.45, -half - 0.01, scaled(paint, 0.55))
        hull.rear(0, 0.42, width * 0.96, 0.22, -half - 0.01, BLACK)
        hull.front(0, 0.42, width * 0.96, 0.22, half + 0.01, BLACK)
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
        canvas.stroke(mast, 0.08 * canvas.camera.scale(z), canvas.lit(BLACK, z))
        nose = [(0.0, 0.15), (0.0, 1.1), (0.5, height - 0.3), (0.9, height)]
        hull.shell([*((a - half, up) for a, up in nose), *((half - a, up) for a, up in reversed(nose))], paint)
        hull.box(-half, 0.15, half, 0.5, BLACK)
        hull.box(-half, 0.85, half, 1.1, stripe)
        hull.sides([(-half + 0.5, 1.3), (-half + 0.65, 2.55), (half - 0.65, 2.55), (half - 0.5, 1.3)], _GLASS)
        for x in np.arange(-half + 2.2, half - 1.5, 1.6):
            hull.box(x, 1.3, x + 0.16, 2.55, paint)
        for x in (-half / 3, half / 3):
            hull.box(x, 0.2, x + 0.5, height - 0.05, (52, 54, 58))
        for end in (-1, 1):
            ends = [(-half, 1.25), (-half + 0.42, 2.7)] if end < 0 else [(half - 0.42, 2.7), (half, 1.25)]
            hull.across(*ends[0], *ends[1], _GLASS, 0.9)
            face = hull.rear if end < 0 else hull.front
            face(0, 0.93, width, 0.26, end * (half + 0.01), stripe)
            face(0, 0.32, width * 0.8, 0.3, end * (half + 0.01), BLACK)
            face(0, height - 0.6, width * 0.55, 0.22, end * (half - 0.5), (255, 190, 60), glow=True)
        hull.lamps(0.66, 0.2, length + 0.02)
