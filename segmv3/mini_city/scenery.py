"""What lines a street of mini-city: trees, bushes, houses, walls, fences, and the skyline that closes it."""

from dataclasses import dataclass

import numpy as np

from segmv3.mini_city.canvas import DATA, TOWARDS_US, Canvas, FloatArray, Rgb, ellipse, rectangle
from segmv3.mini_city.things import CLOTHES, Figure, pick, scaled, soft_spot

_LEAVES, _PLASTERS, _ROOFS = (DATA["colors"][kind] for kind in ("leaves", "plasters", "roofs"))


def _blob(rng: np.random.Generator, x: float, y: float, radius_x: float, radius_y: float) -> FloatArray:
    """A leafy outline: an ellipse whose edge goes in and out."""
    outline = ellipse(0, 0, 1, corners=34) * rng.uniform(0.84, 1.1, (34, 1))
    return outline * (radius_x, radius_y) + (x, y)


def _leaves(rng: np.random.Generator, figure: Figure, outline: FloatArray, color: Rgb) -> None:
    """Foliage that is dark below and bright where the sun falls."""
    canvas, metres = figure.canvas, float(rng.uniform(1.6, 2.6))
    plane = figure.seen(rectangle(0, 0, metres, metres)), (metres, metres)
    middle, reach = outline.mean(axis=0), np.ptp(outline, axis=0)
    sun = np.array([np.sign(canvas.light.sun[0]) * 0.12, 0.16])
    for grow, shift, shade in ((1.0, 0.0, 0.66), (0.82, 0.5, 0.9), (0.56, 1.0, 1.16)):
        uneven = grow * rng.uniform(0.92, 1.05, (len(outline), 1))
        part = (outline - middle) * uneven + middle + sun * reach * shift
        canvas.fill(figure.seen(part), canvas.lit(scaled(color, shade), figure.z), "foliage", plane)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, size: float = 1.0) -> None:
    """A broad-leaved tree or a conifer; trunk and crown are one piece of vegetation."""
    figure, color = Figure(canvas, x, z), pick(rng, _LEAVES, 9)
    trunk = float(rng.uniform(1.8, 2.8)) * size
    height = 6.8 * float(rng.uniform(0.75, 1.25)) * size
    soft_spot(canvas, x, z, 1.2, height * 0.8)
    with canvas.object("vegetation", whole=False):
        bark = pick(rng, ((92, 74, 56), (70, 60, 50), (120, 108, 92)), 6)
        trunk_top = height * 0.6
        figure.shape([(-0.17 * size, 0), (-0.12 * size, trunk_top), (0.12 * size, trunk_top), (0.17 * size, 0)], bark)
        if rng.random() < 0.2:
            for share in (0.0, 0.3, 0.55):
                low, half = trunk * 0.5 + share * height * 0.8, (1 - share) * height * 0.27
                cone = np.array([(-1, 0), (-0.5, 0.2), (0, 0.45), (0.5, 0.2), (1, 0)]) * (half, height) + (0, low)
                _leaves(rng, figure, cone, scaled(color, 0.72))
            return
        half = height * float(rng.uniform(0.26, 0.36))
        lobes = rng.uniform(-0.5, 0.5, (2 if z < 45 else 1, 2))
        for dx, dy in (*lobes, (0.0, 0.0)):
            crown = _blob(rng, dx * half, trunk + half + dy * half * 0.7, half * 0.85, half * 0.8)
            _leaves(rng, figure, crown, color)


def bushes(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float], height: float) -> None:
    """A row of bushes along the road from z[0] to z[1], far ones first."""
    color = pick(rng, _LEAVES, 8)
    with canvas.object("vegetation", whole=False):
        for at in np.arange(z[1], z[0], -height * 0.9):
            figure = Figure(canvas, x + float(rng.normal(0, 0.15)), float(at))
            size = height * float(rng.uniform(0.8, 1.15))
            _leaves(rng, figure, _blob(rng, 0, size * 0.42, size * 0.75, size * 0.58), color)


@dataclass(frozen=True)
class _Front:
    """An upright surface along the road at street x, from z[0] (near) to z[1]: metres to canvas points."""

    canvas: Canvas
    x: float
    z: tuple[float, float]

    @property
    def length(self) -> float:
        return self.z[1] - self.z[0]

    def box(self, left: float, low: float, width: float, height: float) -> FloatArray:
        """The canvas corners of a rectangle; `left` is metres from the left end as seen from the road."""
        start, end = self.z[0] + left, self.z[0] + (left + width)
        if self.x > self.canvas.camera.x:
            start, end = self.z[1] - left, self.z[1] - (left + width)
        corners = rectangle(start, low, end, low + height)
        return self.canvas.camera.project(np.array([(self.x, up, z) for z, up in corners]))

    def lit(self, color: Rgb) -> Rgb:
        towards_road = (-1.0 if self.x > self.canvas.camera.x else 1.0, 0.0, 0.0)
        return self.canvas.lit(color, (self.z[0] + self.z[1]) / 2, towards_road)


def building(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float], floors: int) -> None:
    """A house front of `floors` storeys with windows, a door or a shop, and sometimes a pitched roof."""
    front, storey = _Front(canvas, x, z), 3.15 * float(rng.uniform(0.92, 1.08))
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
        canvas.fill(end, facing, texture, (end[order], (9, height)))
        if rng.random() < 0.55:
            roof, ridge = pick(rng, _ROOFS), height + float(rng.uniform(2.0, 3.2))
            eaves, top = (x - outwards * 0.3, height - 0.1), (x + outwards * 4, ridge)
            slope = np.array([(*eaves, z[1]), (*top, z[1]), (*top, z[0]), (*eaves, z[0])])
            gable = np.array([(x, height, z[0]), (*top, z[0]), (x + outwards * 9, height, z[0])])
            canvas.fill(canvas.camera.project(gable), facing)
            canvas.fill(canvas.camera.project(slope), canvas.lit(roof, middle, (-outwards * 0.6, 0.8, 0.0)))
        wall = front.box(0, 0, front.length, height)
        canvas.fill(wall, front.lit(color), texture, (wall, (front.length, height)))
        canvas.fill(front.box(0, height - 0.35, front.length, 0.35), front.lit(scaled(color, 0.8)))
        canvas.fill(front.box(0, 0, front.length, 0.5), front.lit(scaled(color, 0.62)))
        _windows(canvas, rng, front, floors, storey, color)


def _windows(canvas: Canvas, rng: np.random.Generator, front: _Front, floors: int, storey: float, wall: Rgb) -> None:
    pitch, shop = float(rng.uniform(2.1, 3.0)), rng.random() < 0.45
    count = max(1, int((front.length - 0.8) / pitch))
    margin, width, height = (front.length - count * pitch) / 2, pitch * float(rng.uniform(0.42, 0.58)), storey * 0.56
    frame = pick(rng, ((236, 234, 228), (90, 70, 56), (208, 200, 188)), 6)
    lights = 0.3 if canvas.light.sky_low[0] > 1.6 * canvas.light.sky_low[2] else 0.04
    door = int(rng.integers(count))
    awning = pick(rng, CLOTHES)
    for floor in range(floors):
        low = floor * storey + storey * 0.32
        for column in range(count):
            left = margin + column * pitch + (pitch - width) / 2
            if floor == 0 and (column == door or shop):
                wide = width if column == door else pitch * 0.86
                left = margin + column * pitch + (pitch - wide) / 2
                pane = pick(rng, ((92, 60, 40), (50, 70, 60), (60, 62, 70))) if column == door else (62, 76, 86)
                canvas.fill(front.box(left - 0.1, 0.1, wide + 0.2, storey * 0.8), front.lit(scaled(frame, 0.8)))
                foot, share = (0.15, 0.72) if column == door else (0.5, 0.6)
                canvas.fill(front.box(left, foot, wide, storey * share), front.lit(pane))
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
    front, height = _Front(canvas, x, z), 2.2 * float(rng.uniform(0.78, 1.24))
    texture, colors = (
        ("stone", ((142, 136, 124), (120, 116, 110))),
        ("concrete", ((168, 166, 160), (146, 148, 150))),
        ("brick", ((134, 76, 60), (116, 70, 62))),
    )[int(rng.choice(3, p=[0.4, 0.35, 0.25]))]
    color = pick(rng, colors, 8)
    with canvas.object("wall"):
        face = front.box(0, 0, front.length, height)
        canvas.fill(face, front.lit(color), texture, (face, (front.length, height)))
        for along in np.arange(0, front.length, 4.0):
            canvas.fill(front.box(along, 0, 0.45, height), front.lit(scaled(color, 0.84)))
        end = canvas.street_rectangle((x, x + np.sign(x) * 0.35), (0, height), z[0])
        canvas.fill(end, canvas.lit(color, z[0], TOWARDS_US))
        canvas.fill(front.box(0, height, front.length, 0.16), front.lit(scaled(color, 1.25)))
        canvas.fill(front.box(0, 0, front.length, 0.18), front.lit(scaled(color, 0.66)))


def fence(canvas: Canvas, rng: np.random.Generator, x: float, z: tuple[float, float]) -> None:
    """A fence of steel bars, wooden pales or mesh; its gaps belong to it."""
    kind, front = str(rng.choice(["bars", "pales", "mesh"])), _Front(canvas, x, z)
    height = 1.55 * float(rng.uniform(0.78, 1.24))
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
            rail = front.box(0, up, front.length, 0.08 if kind != "mesh" else 0.03)
            canvas.fill(rail, front.lit(scaled(color, 0.86)))
        for along in np.arange(0, front.length, 2.5):
            canvas.fill(front.box(along, 0, 0.14, height + 0.08), front.lit(scaled(color, 0.78)))


def skyline(canvas: Canvas, rng: np.random.Generator, z: float) -> None:
    """What closes the street far away: house blocks with trees in front, pale in the haze."""
    middle = canvas.camera.x - canvas.camera.yaw * z
    with canvas.object("building", whole=False):
        for _ in range(16):
            figure = Figure(canvas, middle + float(rng.uniform(-110, 110)), z)
            half, height = float(rng.uniform(6, 16)), float(rng.uniform(7, 26))
            figure.box(-half, -1, half, height, pick(rng, _PLASTERS))
    with canvas.object("vegetation", whole=False):
        for _ in range(14):
            figure = Figure(canvas, middle + float(rng.uniform(-110, 110)), z)
            half, height = float(rng.uniform(6, 16)), float(rng.uniform(4, 9))
            _leaves(rng, figure, _blob(rng, 0, height * 0.42, half, height * 0.6), pick(rng, _LEAVES))
        # No gap may show the sky below the horizon.
        Figure(canvas, middle, z).box(-300, -1.5, 300, 2.5, scaled(_LEAVES[0], 0.8))
