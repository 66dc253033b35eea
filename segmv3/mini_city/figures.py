"""Flat figures of mini-city that face the camera: people, two-wheelers, prams, lamps, traffic lights, signs, bins."""

from collections.abc import Sequence

import numpy as np

from segmv3.mini_city.canvas import DATA, Canvas, Rgb, ellipse
from segmv3.mini_city.things import BLACK, CLOTHES, PAINTS, RUBBER, Figure, pick, scaled, soft_spot

_SKIN = DATA["colors"]["skin"]


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Someone who walks or stands; sometimes a child, sometimes with a bag."""
    figure = Figure(canvas, x, z, float(rng.choice([-1, 1])))
    size = float(rng.normal(1.0, 0.05)) * (0.68 if rng.random() < 0.12 else 1.0)
    coat, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES[3:]), pick(rng, _SKIN, 6)
    hair = pick(rng, ((40, 30, 26), (96, 66, 40), (176, 146, 96), (120, 116, 112)), 8)
    step = float(rng.uniform(0.06, 0.34))
    long_coat = rng.random() < 0.35
    soft_spot(canvas, x, z, 0.6, 1.75 * size)

    def at(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(a * size, b * size) for a, b in points]

    with canvas.object("person"):
        for foot, shade in ((-step, 0.8), (step, 1.0)):
            leg = at([(0, 0.9), (foot * 0.45, 0.48), (foot, 0.05)])
            figure.limb(leg, 0.15 * size, scaled(trousers, shade))
            figure.limb(at([(foot - 0.03, 0.04), (foot + 0.12, 0.04)]), 0.08 * size, BLACK)
        figure.limb(at([(0.0, 1.36), (-step * 0.6, 1.1), (-step * 0.5, 0.85)]), 0.11 * size, scaled(coat, 0.75))
        hem, flare = (0.66, 0.25) if long_coat else (0.86, 0.19)
        left = [(-flare, hem), (-0.2, 1.1), (-0.23, 1.36), (-0.12, 1.48)]
        figure.shape(at([*left, *((-x, y) for x, y in reversed(left))]), coat)
        figure.limb(at([(0.03, 1.36), (step * 0.5, 1.1), (step * 0.9 + 0.05, 0.9)]), 0.11 * size, scaled(coat, 0.88))
        figure.shape(ellipse(step * 0.9 + 0.06, 0.87, 0.05) * size, skin)
        if rng.random() < 0.3:
            figure.shape(at([(-0.34, 0.8), (-0.36, 1.25), (-0.17, 1.3), (-0.15, 0.85)]), pick(rng, CLOTHES))
        figure.limb(at([(0, 1.46), (0.01, 1.56)]), 0.1 * size, skin)
        figure.shape(ellipse(0.01, 1.63, 0.105, 0.13) * size, skin)
        figure.shape(ellipse(-0.02, 1.68, 0.105, 0.09) * size, hair)


def bicycle(canvas: Canvas, rng: np.random.Generator, x: float, z: float, turn: float) -> None:
    """A bicycle; `turn` as in `Figure`."""
    figure, frame = Figure(canvas, x, z, turn), pick(rng, PAINTS)
    soft_spot(canvas, x, z, 1.5 * abs(turn), 0.8)
    with canvas.object("bicycle"):
        for wheel in (-0.53, 0.53):
            rim = ellipse(wheel, 0.35, 0.35 - 0.06 / 2, corners=20)
            figure.limb(np.concatenate([rim, rim[:1]]), 0.06, RUBBER)
            for angle in np.linspace(0, np.pi, 5, endpoint=False):
                spoke = np.array([(-np.cos(angle), -np.sin(angle)), (np.cos(angle), np.sin(angle))]) * (0.35 - 0.06)
                figure.limb(np.add(spoke, (wheel, 0.35)), 0.012, (150, 152, 154))
        figure.draw("bicycle", frame)


def motorcycle(canvas: Canvas, rng: np.random.Generator, x: float, z: float, turn: float) -> None:
    """A motorcycle or a scooter; `turn` as in `Figure`."""
    figure, paint = Figure(canvas, x, z, turn), pick(rng, PAINTS)
    soft_spot(canvas, x, z, 1.7 * abs(turn), 0.9)
    with canvas.object("motorcycle"):
        figure.draw("motorcycle", paint)


def rider(canvas: Canvas, rng: np.random.Generator, x: float, z: float, turn: float, helmet: bool) -> None:
    """Someone sitting on a bicycle, or with a full `helmet` on a motorcycle, at the same place and turn."""
    figure = Figure(canvas, x, z, turn)
    wide = float(np.clip(1 / max(abs(turn), 0.3), 1, 1.9))  # a trunk does not get thin when seen from behind
    coat, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES[3:]), pick(rng, _SKIN, 6)
    seat, pedal, hand = (
        ((-0.3, 0.86), (0.08, 0.3), (0.22, 1.06)) if helmet else ((-0.22, 0.92), (-0.08, 0.18), (0.3, 1.04))
    )
    knee = (seat[0] + 0.42, seat[1] - 0.2)
    with canvas.object("rider"):
        far_leg = [seat, (knee[0] - 0.1, knee[1] + 0.1), (pedal[0] + 0.1, pedal[1] + 0.25)]
        figure.limb(far_leg, 0.15, scaled(trousers, 0.75))
        figure.limb([seat, knee, pedal], 0.17, trousers)
        figure.limb([pedal, (pedal[0] + 0.16, pedal[1] - 0.02)], 0.09, BLACK)
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
            figure.shape(ellipse(top[0], top[1] + 0.01, 0.15 * wide, 0.16), pick(rng, PAINTS))
            figure.box(top[0] + 0.02, 1.6, top[0] + 0.14 * wide, 1.7, BLACK)
        else:
            cap = ellipse(top[0] - 0.01, top[1] + 0.04, 0.13 * wide, 0.11)
            figure.shape(cap, pick(rng, ((230, 230, 228), (40, 42, 48), (196, 50, 44), (60, 44, 36))))


def pram(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A pram or trolley: annotated `dynamic`, which counts for nothing."""
    figure, color = Figure(canvas, x, z), pick(rng, CLOTHES)
    soft_spot(canvas, x, z, 0.9, 0.8)
    with canvas.object("dynamic"):
        figure.draw("pram", color)


_LAMPS = (((255, 52, 36), (84, 26, 24)), ((255, 190, 40), (88, 66, 20)), ((60, 236, 130), (20, 72, 48)))
"""Red, amber and green, each lit and dark."""


def _mast(canvas: Canvas, x: float, z: float, height: float, width: float, color: Rgb) -> None:
    """A round upright tube: lit on one side."""
    for left, right, shade in ((-0.5, 0.5, 0.82), (-0.1, 0.28, 1.12)):
        outline = canvas.street_rectangle((x + left * width, x + right * width), (0, height), z)
        canvas.fill(outline, canvas.lit(scaled(color, shade), z))


def street_lamp(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A lamp post whose arm reaches over the road."""
    height = 7.5 * float(rng.uniform(0.8, 1.15))
    color = pick(rng, ((128, 132, 134), (92, 98, 100), (70, 84, 78), (152, 150, 144)), 6)
    reach = -np.sign(x) * rng.uniform(1.2, 2.0)
    soft_spot(canvas, x, z, 0.4, height)
    with canvas.object("pole"):
        figure = Figure(canvas, x, z)
        _mast(canvas, x, z, height, 0.24, color)
        _mast(canvas, x, z, 1.1, 0.34, scaled(color, 0.85))
        figure.limb([(0, height - 0.1), (reach * 0.5, height + 0.35), (reach, height + 0.4)], 0.12, color)
        figure.limb([(reach * 0.75, height + 0.36), (reach * 1.25, height + 0.36)], 0.2, scaled(color, 0.9))


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A signal on its post; sometimes a second one hangs over the road."""
    width, height = np.array([0.34, 0.95]) * float(rng.uniform(1.05, 1.4))
    color, low = pick(rng, ((120, 124, 126), (84, 92, 92), (150, 148, 140)), 5), float(rng.uniform(2.1, 2.5))
    reach, state = -np.sign(x) * float(rng.uniform(2.2, 3.4)), int(rng.integers(3))
    hanging = rng.random() < 0.4
    soft_spot(canvas, x, z, 0.35, low)
    figure = Figure(canvas, x, z)
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
    radius, low = 0.36 * float(rng.uniform(1.0, 1.35)), float(rng.uniform(1.9, 2.4))
    figure = Figure(canvas, x, z)
    middle = low + radius
    soft_spot(canvas, x, z, 0.3, low + radius)
    with canvas.object("pole"):
        _mast(canvas, x, z, low + 2 * radius, 0.13, pick(rng, ((140, 143, 146), (110, 114, 116)), 5))
    with canvas.object("traffic sign"):
        if kind == "board":
            wide = radius * float(rng.uniform(1.5, 2.4))
            face = pick(rng, ((28, 84, 172), (238, 206, 60), (236, 236, 232), (26, 120, 80)), 4)
            for grow, color in ((1.0, (238, 238, 234)), (0.9, face)):
                half, rise = wide * grow, radius * 0.8 * grow
                figure.box(-half, middle - rise, half, middle + rise, color)
            ink = (238, 238, 234) if sum(face) < 420 else (34, 34, 38)
            for row in (-0.3, 0.25):
                figure.limb([(-wide * 0.7, middle + row * radius), (wide * 0.5, middle + row * radius)], 0.09, ink)
            return
        sign = DATA["signs"][kind]
        angle = np.linspace(0, 2 * np.pi, sign["corners"], endpoint=False) + np.pi / (8 if kind == "stop" else 2)
        outline = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius * (1.2 if kind == "warning" else 1.0)
        for grow, color in sign["layers"]:
            figure.shape(outline * grow + (0, middle), color)
        if "bar" in sign:
            bar = [(a * radius, middle + b * radius) for a, b in sign["bar"]]
            figure.limb(bar, 0.26 * radius, sign["ink"])


def bin_or_box(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A litter bin or a grey switch cabinet: annotated `static`, which counts for nothing."""
    width, height = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.8, 1.3))
    color = pick(rng, ((70, 96, 80), (120, 122, 120), (60, 62, 66), (186, 110, 40)))
    soft_spot(canvas, x, z, width, height)
    with canvas.object("static"):
        canvas.fill(canvas.street_rectangle((x - width / 2, x + width / 2), (0, height), z), canvas.lit(color, z))
        lid = canvas.street_rectangle((x - width * 0.55, x + width * 0.55), (height * 0.86, height), z)
        canvas.fill(lid, canvas.lit(scaled(color, 0.6), z))
