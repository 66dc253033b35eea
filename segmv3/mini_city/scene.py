"""One scene of mini-city: its light, its street, and what stands, walks and drives there, painted far to near.

Scene i of a split is a pure function of (seed, split, i, size). It is laid out in metres along a road
(`_Street`); what is not of one kind of thing is painted here: sky, ground, our own bonnet, the lens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from segmv3.images import UInt8Array
from segmv3.mini_city import figures, scenery, vehicles
from segmv3.mini_city.canvas import DATA, SUPERSAMPLE, Camera, Canvas, FloatArray, Light, Rgb, ellipse, fractal_noise
from segmv3.mini_city.things import SIZES, Pose, pick, scaled

CITIES = {"train": "minitown", "val": "minihaven"}
"""The splits and their cities; their order is part of every scene's random numbers."""

SPEED, FPS = 8.0, 15
"""Speed of a drive in metres a second, and its frames a second."""

Scene = tuple[UInt8Array, list[dict[str, object]]]
"""The picture, uint8 H x W x 3 RGB, and its objects in painting order, as in Cityscapes."""

_FAR_END = 170.0  # metres to the skyline that closes the street
_ONCOMING = -0.6  # as fast as most of us, the other way


class Task(NamedTuple):
    """Something to paint."""

    z: float
    """Where on the street it is: the farthest is painted first."""
    paint: Callable[[], None]
    speed: float | None = 0.0
    """Along the road, in units of ours. None blocks the way: a drive leaves it out."""


@dataclass(frozen=True)
class _Street:
    """The cross-section of the road; metres from its middle line, traffic on the right."""

    lane: float
    road: float
    """Half the road's width."""
    parking: tuple[bool, bool]
    """Whether cars park at the left and the right kerb."""
    sidewalk: float
    verge: float
    """Grass between the sidewalk and what stands behind it."""
    camera_x: float

    def kerb(self, side: int) -> float:
        """Edge of the moving traffic on the left (-1) or right (1)."""
        return side * (self.road - (2.1 if self.parking[side > 0] else 0.0))


def render_scene(split: str, index: int, *, size: tuple[int, int], seed: int) -> Scene:
    """Paint one scene."""
    return _render([seed, list(CITIES).index(split), index], size)


def render_frame(frame: int, *, size: tuple[int, int], seed: int) -> Scene:
    """Paint one frame of a drive along a street at `SPEED`, `FPS` frames a second.

    Everything keeps its place and its look from frame to frame; cars move; only the sensor's noise is new.
    """
    return _render([seed, len(CITIES), 1], size, frame)


def _render(seed: list[int], size: tuple[int, int], frame: int | None = None) -> Scene:
    rng = np.random.default_rng(seed)
    light, street = _draw_light(rng), _draw_street(rng)
    way = 0.0 if frame is None else SPEED / FPS * frame
    camera = replace(_draw_camera(rng, size, street), z=way)
    canvas = Canvas(size, camera, light)
    index = seed[-1]
    _paint_sky(canvas, rng)
    _paint_ground(canvas, rng, street, tram=index % 3 != 0)
    scenery.skyline(canvas, rng, _FAR_END)
    tasks = _frontage(canvas, rng, street, index) + _traffic(canvas, rng, street, index)
    tasks += _footway(canvas, rng, street)
    if frame is None:
        for task in sorted(tasks, key=lambda task: -task.z):
            task.paint()
    else:
        _paint_moving(canvas, rng, tasks, [*seed, len(tasks)], way)
    if rng.random() < 0.3:
        _paint_bonnet(canvas, rng)
    noise = rng if frame is None else np.random.default_rng([*seed, frame, 1])
    return _photograph(canvas, rng, noise), canvas.objects


def _paint_moving(canvas: Canvas, rng: np.random.Generator, tasks: list[Task], seed: list[int], way: float) -> None:
    """Paint the things of a drive after `way` metres: far to near, each from random numbers of its own."""
    camera = canvas.camera
    seen = [
        (task.z + (task.speed - 1) * way, number, task)  # (distance now, number, task)
        for number, task in enumerate(tasks)
        if task.speed is not None
    ]
    for distance, number, task in sorted(seen, key=lambda one: -one[0]):
        rng.bit_generator.state = np.random.default_rng([*seed, number]).bit_generator.state
        if 1.0 < distance < _FAR_END:
            canvas.camera = replace(camera, z=task.z - distance)  # what drives before us has a camera that lags
            task.paint()
    canvas.camera = camera
    rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def _draw_light(rng: np.random.Generator) -> Light:
    """One of the lights of `DATA`; where a share of clouds is a range, it is drawn."""
    side, lights = float(rng.choice([-1.0, 1.0])), []
    for each in DATA["lights"].values():
        cover = float(rng.uniform(*each["cover"])) if isinstance(each["cover"], list) else each["cover"]
        sun = np.multiply(each["sun"], (side, 1, 1)) * rng.uniform(0.8, 1.2, 3)
        lights.append(Light(**each | {"cover": cover, "sun": tuple((sun / np.linalg.norm(sun)).tolist())}))
    return lights[int(rng.choice(4, p=[0.4, 0.24, 0.22, 0.14]))]


def _draw_street(rng: np.random.Generator) -> _Street:
    lane = float(rng.uniform(3.0, 3.5))
    parking = (bool(rng.random() < 0.6), bool(rng.random() < 0.5))
    road = lane + (2.1 if any(parking) else float(rng.uniform(0.3, 1.6)))
    verge = float(rng.uniform(1.5, 4.0)) if rng.random() < 0.8 else 0.4
    return _Street(lane, road, parking, float(rng.uniform(2.0, 3.2)), verge, float(lane / 2 + rng.uniform(-0.5, 0.3)))


def _draw_camera(rng: np.random.Generator, size: tuple[int, int], street: _Street) -> Camera:
    height, width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    return Camera(
        focal=width * float(rng.uniform(0.82, 1.0)),
        center=width * 0.5,
        horizon=height * float(rng.uniform(0.40, 0.48)),
        height=float(rng.uniform(1.4, 1.7)),
        x=street.camera_x,
        yaw=float(rng.normal(0, 0.025)),
        curvature=float(rng.normal(0, 1 / 1100)),
    )


def _paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    light, width = canvas.light, canvas.pixels.shape[1]
    height = min(canvas.pixels.shape[0], int(canvas.camera.horizon) + 40)  # what is below gets covered
    fall = np.clip(np.arange(height, dtype=np.float32) / canvas.camera.horizon, 0, 1)[:, None, None] ** 0.8
    top, low, white = (np.asarray(c, np.float32) for c in (light.sky_top, light.sky_low, light.cloud))
    sky = top * (1 - fall) + low * fall
    # Clouds are drawn once at low resolution and stretched: they must not depend on the size of the picture.
    drift = fractal_noise(64, 64, 1.5, rng)
    level = np.quantile(drift, 1 - light.cover)
    cloud = cv2.resize(
        np.clip((drift - level) * 0.9, 0, 1).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    cloud = np.clip(cloud, 0, 1)[..., None] * (0.9 - 0.5 * fall)
    with canvas.object("sky"):
        below = canvas.pixels.shape[0]
        canvas.claim(np.array([(0, 0), (width, 0), (width, below), (0, below)], dtype=np.float64))
        canvas.pixels[:height] = sky + (white - sky) * cloud


def _band(canvas: Canvas, left: float, right: float, near: float = 1.6, far: float = _FAR_END) -> FloatArray:
    """The canvas polygon of the ground between two lines along the road."""
    z = np.geomspace(near, far, 40)
    edges = [np.stack([np.full_like(z, x), np.zeros_like(z), z], axis=1) for x in (left, right)]
    return canvas.camera.project(np.concatenate([edges[0], edges[1][::-1]]))


def _paint_ground(canvas: Canvas, rng: np.random.Generator, street: _Street, tram: bool) -> None:
    grass = pick(rng, ((112, 132, 62), (96, 124, 58), (138, 136, 80), (124, 112, 78)), 6)
    paving = pick(rng, ((178, 172, 164), (166, 158, 150), (186, 172, 160)), 6)
    asphalt = pick(rng, ((92, 93, 97), (78, 80, 86), (106, 104, 103)), 4)
    outside = 260.0
    with canvas.object("terrain"):
        canvas.fill_ground(_band(canvas, -outside, outside), grass, "grass")
    for side in (-1, 1):
        inner, outer = sorted((side * street.road, side * (street.road + street.sidewalk)))
        with canvas.object("sidewalk"):
            canvas.fill_ground(_band(canvas, inner, outer), paving, "slabs")
            kerb = sorted((side * street.road, side * (street.road + 0.22)))
            canvas.fill_ground(_band(canvas, *kerb), scaled(paving, 1.12))
    with canvas.object("road"):
        canvas.fill_ground(_band(canvas, -street.road, street.road), asphalt, "asphalt")
        for _ in range(3):  # patched asphalt
            x, z = float(rng.uniform(-street.road, street.road - 1.5)), float(rng.uniform(4, 30))
            patch = _band(canvas, x, x + float(rng.uniform(0.8, 1.5)), z, z + float(rng.uniform(1.5, 6)))
            canvas.fill_ground(patch, scaled(asphalt, float(rng.uniform(0.84, 1.14))), "asphalt")
        if tram:
            for x in (-street.lane / 2 - 0.72, -street.lane / 2 + 0.72):
                canvas.fill_ground(_band(canvas, x - 0.07, x + 0.07), (74, 72, 72))
                canvas.fill_ground(_band(canvas, x - 0.02, x + 0.03), (176, 178, 180))
        _paint_markings(canvas, rng, street)
    canvas.fade_ground()


def _paint_markings(canvas: Canvas, rng: np.random.Generator, street: _Street) -> None:
    white: Rgb = (226, 226, 220)
    dash, gap = (3.0, 4.5) if rng.random() < 0.75 else (60.0, 0.5)
    for z in np.arange(float(rng.uniform(1.8, 4)), 110, dash + gap):
        canvas.fill_ground(_band(canvas, -0.07, 0.07, z, z + dash), white, "concrete")
    for side in (-1, 1):
        edge = street.kerb(side) - side * 0.25
        canvas.fill_ground(_band(canvas, edge - 0.06, edge + 0.06), white)
    if rng.random() < 0.35:  # a zebra crossing
        near = float(rng.uniform(7, 14))
        for x in np.arange(-street.road + 0.5, street.road - 0.6, 1.0):
            canvas.fill_ground(_band(canvas, x, x + 0.5, near, near + 3), white, "concrete")


def _frontage(canvas: Canvas, rng: np.random.Generator, street: _Street, index: int) -> list[Task]:
    """Houses on both sides; near the camera a fence on one side and a wall on the other stand before them."""
    tasks: list[Task] = []
    for side in (-1, 1):
        screen = scenery.fence if side == (-1) ** index else scenery.wall
        start, end = float(rng.uniform(5, 9)), float(rng.uniform(24, 38))
        x = side * (street.road + street.sidewalk + street.verge)
        tasks.append(Task(end, partial(screen, canvas, rng, x, (start, end))))
        if rng.random() < 0.4:
            beyond = (end + 1, end + float(rng.uniform(10, 25)))
            other = scenery.wall if screen is scenery.fence else scenery.fence
            tasks.append(Task(beyond[1], partial(other, canvas, rng, x, beyond)))
        z, gardens = 4.0, float(rng.uniform(2.0, 5.0))
        while z < 130:
            length = float(rng.uniform(8, 17))
            at = x + side * (gardens if z < end + 6 else float(rng.uniform(0, 1.5)))
            if rng.random() < (0.78 if z > 20 else 0.55):
                floors = int(rng.integers(2, 6))
                house = partial(scenery.building, canvas, rng, at, (z, z + length), floors)
                tasks.append(Task(z + length + 1, house))
            else:
                for _ in range(3):
                    where = z + float(rng.uniform(1, length))
                    across, size = at + side * float(rng.uniform(1, 5)), float(rng.uniform(0.8, 1.3))
                    crown = partial(scenery.tree, canvas, rng, across, where, size)
                    tasks.append(Task(max(where, end + 0.5 if z < end else where), crown))
            z += length + float(rng.choice([0.0, 0.0, 4.0]))
        if rng.random() < 0.7:
            hedge = (start + float(rng.uniform(2, 8)), end)
            row = partial(scenery.bushes, canvas, rng, x + side * 1.2, hedge, float(rng.uniform(0.9, 1.9)))
            tasks.append(Task(end + 0.2, row))
    return tasks


def _traffic(canvas: Canvas, rng: np.random.Generator, street: _Street, index: int) -> list[Task]:
    """Two heavy vehicles (each of truck, bus, train is in two of three scenes), cars, two-wheelers."""
    pair = (("truck", "bus"), ("bus", "train"), ("train", "truck"))[index % 3]
    order = pair if rng.random() < 0.5 else pair[::-1]
    # The oncoming one passes on the left, the other one drives ahead: both are in full view.
    if order[1] == "train":
        order = order[::-1]  # rails lie in the oncoming lane
    tasks: list[Task] = []
    oncoming, ahead = -street.lane / 2, street.lane / 2
    near = float(rng.uniform(8.5, 17))
    tasks.append(_vehicle(canvas, rng, order[0], oncoming, near, np.pi, _ONCOMING))
    behind = near + SIZES[order[0]][0]
    crosses, near = rng.random() < 0.25, float(rng.uniform(13, 26))
    if crosses:
        x, heading = float(rng.uniform(0, 3)), float(rng.choice([-1, 1])) * np.pi / 2
        tasks.append(_vehicle(canvas, rng, order[1], x, near, heading, None))
    else:
        tasks.append(_vehicle(canvas, rng, order[1], ahead + float(rng.uniform(-0.2, 0.3)), near, 0.0, 1.0))
    if not crosses and near > 18 and rng.random() < 0.6:
        tasks.append(_vehicle(canvas, rng, "car", ahead, near - float(rng.uniform(6, 8)), 0.0, 1.0))
    tasks += [
        _vehicle(canvas, rng, "car", oncoming, behind + float(gap), np.pi, _ONCOMING)
        for gap in rng.uniform((4, 18), (10, 40))
    ]
    for side in (-1, 1):
        if street.parking[side > 0]:
            spots = np.arange(float(rng.uniform(6, 9)), 75, 5.8)
            for z in spots[rng.random(len(spots)) < 0.62]:
                x, heading = side * (street.road - 1.05), 0.0 if side > 0 else np.pi
                # Whoever passes a parked car is nearer to us than its far end, and in front of it.
                tasks.append(_vehicle(canvas, rng, "car", x, float(z), heading, 0.0)._replace(z=float(z) + 5.0))
    return tasks + _two_wheelers(canvas, rng, street)


def _vehicle(
    canvas: Canvas, rng: np.random.Generator, kind: str, x: float, near: float, heading: float, speed: float | None
) -> Task:
    """A vehicle whose nearer end is `near` metres away."""
    paint = {"car": vehicles.car, "truck": vehicles.truck, "bus": vehicles.bus, "train": vehicles.train}[kind]
    length, width, _ = SIZES[kind]
    depth = abs(np.cos(heading)) * length + abs(np.sin(heading)) * width
    pose = Pose(x, near + depth * 0.55, heading + float(rng.normal(0, 0.02)))
    return Task(near, partial(paint, canvas, rng, pose), speed)


def _two_wheelers(canvas: Canvas, rng: np.random.Generator, street: _Street) -> list[Task]:
    """A bicycle and a motorcycle on the road with riders, others parked on the sidewalk."""
    tasks: list[Task] = []
    sides = (-1, 1) if rng.random() < 0.5 else (1, -1)
    for side, vehicle in zip(sides, (figures.bicycle, figures.motorcycle), strict=True):
        # Next to the kerb, and so near that nothing of the traffic is in front of it.
        x = street.kerb(side) - side * float(rng.uniform(0.1, 0.6))
        z = float(rng.uniform(6.0, 10.5) + (1.5 if side < 0 else 0))
        turn = float(rng.choice([-1, 1]) * rng.uniform(0.4, 0.95))
        tasks.append(Task(z, partial(vehicle, canvas, rng, x, z, turn)))
        on = partial(figures.rider, canvas, rng, x, z, turn, vehicle is figures.motorcycle)
        tasks.append(Task(z - 0.01, on))
    for vehicle, chance in ((figures.bicycle, 0.85), (figures.motorcycle, 0.7)):
        if rng.random() < chance:
            side, z = int(rng.choice([-1, 1])), float(rng.uniform(8, 15))
            x = side * (street.road + street.sidewalk * float(rng.uniform(0.3, 0.8)))
            for k in range(int(rng.integers(1, 4 if vehicle is figures.bicycle else 2))):
                turn = float(rng.choice([-1, 1]) * rng.uniform(0.6, 1.0))
                tasks.append(Task(z + 0.8 * k, partial(vehicle, canvas, rng, x, z + 0.8 * k, turn)))
    return tasks


def _footway(canvas: Canvas, rng: np.random.Generator, street: _Street) -> list[Task]:
    """People, street trees, posts, signs and signals on the sidewalks, and some who cross the road."""
    tasks: list[Task] = []

    def stand(paint: Callable[..., None], x: float, z: float, *more: float) -> None:
        # A parked car hides what stands behind it: paint that before the car.
        hidden = abs(x) > street.road and street.parking[x > 0]
        tasks.append(Task(z + 6.0 * hidden, partial(paint, canvas, rng, x, z, *more)))

    for side in (-1, 1):
        kerb, walk = side * (street.road + 0.45), side * (street.road + street.sidewalk * 0.5)
        for _ in range(int(rng.integers(2, 5))):
            stand(figures.person, walk + float(rng.normal(0, 0.5)), float(rng.uniform(8.5, 32)))
        for z in np.arange(float(rng.uniform(10, 20)), 90, float(rng.uniform(15, 24))):
            stand(figures.street_lamp, kerb, float(z))
        for z in rng.uniform(10.5, 24, int(rng.integers(1, 3))):
            stand(figures.traffic_sign, kerb + side * 0.1, float(z))
        if rng.random() < 0.75:
            stand(figures.traffic_light, kerb, float(rng.uniform(10.5, 19)))
        for z in np.arange(float(rng.uniform(14, 40)), 100, float(rng.uniform(9, 18))):
            if street.verge > 1 and rng.random() < 0.5:
                stand(scenery.tree, side * (street.road + street.sidewalk + 0.5), float(z), 0.8)
        if rng.random() < 0.3:
            stand(figures.bin_or_box, side * (street.road + street.sidewalk - 0.4), float(rng.uniform(9, 20)))
        if rng.random() < 0.12:
            stand(figures.pram, walk, float(rng.uniform(9, 16)))
    for _ in range(int(rng.random() < 0.45) * int(rng.integers(1, 4))):
        stand(figures.person, float(rng.uniform(-street.road, street.road)), float(rng.uniform(9, 13)))
    return tasks


def _paint_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The front of our own car, which Cityscapes shows and ignores."""
    height, width = canvas.pixels.shape[:2]
    rise = height * float(rng.uniform(0.05, 0.09))
    color = canvas.lit((34, 36, 42), 0.0)
    with canvas.object("ego vehicle"):
        canvas.fill(ellipse(width / 2, height + rise, width * 0.52, 2 * rise, 60), color)
    canvas.shadow(ellipse(width / 2, height + rise * 1.5, width * 0.4, rise * 1.9, 60), 0.35, rise * 0.3)


def _photograph(canvas: Canvas, rng: np.random.Generator, noise: np.random.Generator) -> UInt8Array:
    """Reduce the canvas to uint8 H x W x 3 through an imperfect lens and a sensor with noise."""
    height, width = canvas.pixels.shape[0] // SUPERSAMPLE, canvas.pixels.shape[1] // SUPERSAMPLE
    picture = cv2.resize(canvas.pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    if (blur := float(rng.uniform(0, 0.7)) * height / 256) > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    vignette = 1 - float(rng.uniform(0.05, 0.2)) * (x**2 + y**2) / 2
    exposure = float(rng.uniform(0.9, 1.1))
    picture *= (vignette[..., None] * np.asarray(canvas.light.gain) * exposure).astype(np.float32)
    picture += noise.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(1.0, 4.0))
    return np.clip(picture, 0, 255).astype(np.uint8)
