"""Street furniture of mini-city: lamps, traffic lights, signs, bins. Flat, and turned to the camera."""

import numpy as np

from segmv3.mini_city.canvas import Canvas, Rgb, ellipse
from segmv3.mini_city.things import SIZES, Figure, pick, scaled, soft_spot

_LAMPS = (((255, 52, 36), (84, 26, 24)), ((255, 190, 40), (88, 66, 20)), ((60, 236, 130), (20, 72, 48)))
"""Red, amber and green, each lit and dark."""


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
    soft_spot(canvas, x, z, 0.4, height)
    with canvas.object("pole"):
        figure = Figure(canvas, canvas.billboard(x, z))
        _mast(canvas, x, z, height, 0.24, color)
        _mast(canvas, x, z, 1.1, 0.34, scaled(color, 0.85))
        figure.limb([(0, height - 0.1), (reach * 0.5, height + 0.35), (reach, height + 0.4)], 0.12, color)
        figure.limb([(reach * 0.75, height + 0.36), (reach * 1.25, height + 0.36)], 0.2, scaled(color, 0.9))


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A signal on its post; sometimes a second one hangs over the road."""
    _, width, height = np.array(SIZES["traffic light"]) * float(rng.uniform(1.05, 1.4))
    color, low = pick(rng, ((120, 124, 126), (84, 92, 92), (150, 148, 140)), 5), float(rng.uniform(2.1, 2.5))
    reach, state = -np.sign(x) * float(rng.uniform(2.2, 3.4)), int(rng.integers(3))
    hanging = rng.random() < 0.4
    soft_spot(canvas, x, z, 0.35, low)
    figure = Figure(canvas, canvas.billboard(x, z))
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
    figure = Figure(canvas, canvas.billboard(x, z))
    middle = low + radius
    soft_spot(canvas, x, z, 0.3, low + radius)
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
    soft_spot(canvas, x, z, width, height)
    with canvas.object("static"):
        canvas.fill(canvas.street_rectangle((x - width / 2, x + width / 2), (0, height), z), canvas.lit(color, z))
        lid = canvas.street_rectangle((x - width * 0.55, x + width * 0.55), (height * 0.86, height), z)
        canvas.fill(lid, canvas.lit(scaled(color, 0.6), z))
