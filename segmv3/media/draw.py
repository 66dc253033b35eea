"""Labels as pictures: colours, overlays, legends and error maps.

Pictures are uint8 H x W x 3, RGB. Labels are uint8 H x W train ids; an id that is no class (255 = ignore) has
no colour of its own. `overlay` runs on every frame of a video, so the work per pixel is left to OpenCV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segmv3.errors import printable
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, Classes, Color

WRONG: Color = (237, 36, 56)
"""RGB of a wrong pixel in `draw_errors`."""

_PAPER: Color = (250, 250, 251)
_INK: Color = (31, 35, 41)
_RIM: Color = (150, 156, 165)
_HATCH = 52
_RARE = 0.0005  # a class on fewer of the pixels is left out of a legend: a speck nobody would look up
_BLUR = 10  # parts of the shorter side: a face that fills half of a picture keeps 5 x 5 colours
_DIM, _LIFT = 0.45, 40.0  # grey values 40..155: darker than red, lighter than the hatching


@dataclass(frozen=True)
class Style:
    """How pictures are drawn."""

    alpha: float = 0.55
    """Weight of the class colours over the image, 0..1."""
    contours: bool = False
    """Whether the borders between classes are drawn."""
    legend: bool = True
    blur: tuple[str, ...] = ()
    """Names of the classes that must not be recognised."""


STYLE = Style()
"""As pictures are drawn unless told otherwise."""


def colorize(labels: UInt8Array, classes: Classes) -> UInt8Array:
    """Paint labels in the class colours; ignore and unused ids are black.

    Args:
        labels: uint8 H x W of train ids.
        classes: the classes with their colours.

    Returns:
        uint8 H x W x 3, RGB.
    """
    return cv2.applyColorMap(labels, classes.palette[:, None])


def overlay(
    image: UInt8Array, labels: UInt8Array, classes: Classes, alpha: float = 0.55, out: UInt8Array | None = None
) -> UInt8Array:
    """Blend the class colours over an image; pixels without a class stay as they are.

    Args:
        image: uint8 H x W x 3.
        labels: uint8 H x W.
        classes: their colours.
        alpha: weight of the colour, 0 (none) to 1 (opaque).
        out: uint8 H x W x 3, contiguous, to draw into: for the frames of a video, new memory takes a third of the time.

    Returns:
        uint8 H x W x 3: `out`, or a new array.

    Raises:
        ValueError: the sizes differ, or alpha is out of range.
    """
    _same_size(image=image, labels=labels)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, is {alpha}")
    image = np.ascontiguousarray(image)
    colors = cv2.applyColorMap(labels, classes.palette[:, None], out)
    if cv2.minMaxLoc(labels)[1] >= len(classes):  # a net's labels have no such pixels
        cv2.copyTo(image, (labels >= len(classes)).view(np.uint8), colors)
    return cv2.addWeighted(image, 1 - alpha, colors, alpha, 0, dst=colors)


def contoured(picture: UInt8Array, labels: UInt8Array, classes: Classes) -> UInt8Array:
    """Draw where classes meet: a line in the colour of each side, thicker in a larger picture.

    Args:
        picture: uint8 H x W x 3; it is changed.
        labels: uint8 H x W.
        classes: their colours.

    Returns:
        The picture.
    """
    reach = 1 + 2 * max(1, round(min(labels.shape) / 350))
    edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((reach, reach), np.uint8))
    edges[labels >= len(classes)] = 0  # what has no class has no colour
    return cv2.copyTo(colorize(labels, classes), edges, picture)


def blurred(image: UInt8Array, labels: UInt8Array, hidden: Sequence[int]) -> UInt8Array:
    """Make some classes unrecognisable: nothing finer than a tenth of the picture is left of them.

    A margin around their pixels goes with them, for labels are not exact to the pixel. What the net did not find stays.

    Args:
        image: uint8 H x W x 3.
        labels: uint8 H x W.
        hidden: train ids.

    Returns:
        uint8 H x W x 3; the image itself where there is nothing to hide.
    """
    mask = np.isin(labels, hidden).view(np.uint8)
    if not mask.any():
        return image
    height, width = labels.shape
    block = max(4, min(height, width) // _BLUR)
    margin = 1 + 2 * max(2, block // 4)
    mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin)))
    few = cv2.resize(image, (-(-width // block), -(-height // block)), interpolation=cv2.INTER_AREA)
    return cv2.copyTo(cv2.resize(few, (width, height), interpolation=cv2.INTER_LINEAR), mask, image.copy())


def draw_errors(image: UInt8Array, truth: UInt8Array, prediction: UInt8Array) -> UInt8Array:
    """Show where a prediction is wrong: red on the image in dim grey; ignored pixels are hatched black.

    Args:
        image: uint8 H x W x 3.
        truth: uint8 H x W, 255 = ignore.
        prediction: uint8 H x W.

    Returns:
        uint8 H x W x 3.

    Raises:
        ValueError: the sizes differ.
    """
    _same_size(image=image, truth=truth, prediction=prediction)
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    picture = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=_DIM, beta=_LIFT), cv2.COLOR_GRAY2RGB)
    picture[truth != prediction] = WRONG
    ignored = truth == IGNORE
    picture[ignored] = _hatching(*truth.shape)[ignored][:, None]
    return picture


def legend(classes: Classes, width: int, present: set[int] | None = None) -> UInt8Array:
    """A strip of colour swatches with class names, in aligned columns, wrapped to `width` pixels.

    Letters grow with the width, so that the strip reads well below a picture of that width; a name too long
    for it ends in "…".

    Args:
        present: train ids to show; None shows all.

    Returns:
        uint8 H x `width` x 3; height 0 when there is nothing to show.

    Raises:
        ValueError: the width is below 1.
    """
    if width < 1:
        raise ValueError(f"a legend must be at least 1 pixel wide, is {width}")
    shown = [i for i in range(len(classes)) if present is None or i in present]
    if not shown:
        return np.zeros((0, width, 3), np.uint8)
    style = _LegendStyle.for_width(width)
    room = width - 2 * style.margin - style.indent
    names = [shorten(classes.names[i], style.font, room) for i in shown]
    columns = _columns([style.indent + style.font.getlength(name) for name in names], width, style)
    rows = -(-len(shown) // len(columns))
    strip = Image.new("RGB", (width, rows * style.line + 2 * style.margin), _PAPER)
    pen = ImageDraw.Draw(strip)
    for place, (train_id, name) in enumerate(zip(shown, names, strict=True)):
        row, column = divmod(place, len(columns))
        corner = (columns[column], style.margin + row * style.line)
        _draw_entry(pen, corner, style, name, classes.colors[train_id])
    return np.array(strip)


def with_legend(picture: UInt8Array, classes: Classes, labels: UInt8Array) -> UInt8Array:
    """Append below a picture the legend of the classes on at least 0.05 % of the pixels of `labels`.

    Args:
        picture: uint8 H x W x 3.
        classes: the classes with their colours.
        labels: uint8 of any height and width.

    Returns:
        uint8 H' x W x 3 with H' >= H.
    """
    return np.vstack([picture, legend(classes, picture.shape[1], occurring(labels, classes))])


def occurring(labels: UInt8Array, classes: Classes) -> set[int]:
    """The train ids on at least 0.05 % of the pixels of `labels` (uint8 H x W)."""
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(classes)]
    return {int(i) for i in np.flatnonzero((counts > 0) & (counts >= _RARE * labels.size))}


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels; no font file of the system is needed."""
    return ImageFont.load_default(size=size)


def shorten(text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, or its beginning and "…" when it is wider than `room` pixels."""
    text = printable(text)
    if face.getlength(text) <= room:
        return text
    while text and face.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(frozen=True)
class _LegendStyle:
    """Measures of a legend, in pixels."""

    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    swatch: int
    indent: int
    """Columns from the left of a swatch to its text."""
    gap: int
    line: int
    margin: int

    @classmethod
    def for_width(cls, width: int) -> "_LegendStyle":
        size = round(min(max(width / 68, 12), 30))
        return cls(
            font=font(size),
            swatch=size,
            indent=round(1.5 * size),
            gap=round(1.4 * size),
            line=round(1.75 * size),
            margin=min(round(0.7 * size), width // 8),
        )


def _columns(widths: list[float], width: int, style: _LegendStyle) -> list[int]:
    """Left edges of the most columns that entries of these widths fit into, filled row by row."""
    for count in range(len(widths), 1, -1):
        column_widths = [max(widths[i::count]) for i in range(count)]
        if sum(column_widths) + style.gap * (count - 1) + 2 * style.margin <= width:
            lefts = np.cumsum([style.margin, *(w + style.gap for w in column_widths[:-1])])
            return [round(float(left)) for left in lefts]
    return [style.margin]


def _draw_entry(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], style: _LegendStyle, name: str, color: Color
) -> None:
    left, top = corner
    middle = top + style.line // 2
    box = (left, middle - style.swatch // 2, left + style.swatch - 1, middle + (style.swatch - 1) // 2)
    pen.rounded_rectangle(box, radius=style.swatch // 5, fill=color, outline=_RIM)  # a colour can be white
    pen.text((left + style.indent, middle), name, fill=_INK, font=style.font, anchor="lm")


def _hatching(height: int, width: int) -> UInt8Array:
    """Black with thin grey diagonals, uint8 H x W: unlike a shadow in the image."""
    diagonal = np.add.outer(np.arange(height), np.arange(width)) % 8
    return np.where(diagonal < 2, _HATCH, 0).astype(np.uint8)


def _same_size(**pictures: UInt8Array) -> None:
    sizes = {name: picture.shape[:2] for name, picture in pictures.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError("sizes differ: " + ", ".join(f"{name} {h}x{w}" for name, (h, w) in sizes.items()))
