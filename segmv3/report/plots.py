"""The figures of a report, as pixels: training curves, IoU per class, confusion matrix, sample panel.

Every chart is drawn for a `Theme`, at twice the size it is meant to be seen at, and returned as uint8
H x W x 3 RGB. Only matplotlib's objects are used, never pyplot: no display and no global state. Numbers come
from `log.jsonl` and from scores (percent); None and NaN stand for "no number".
"""

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from segmv3.errors import printable
from segmv3.images import UInt8Array
from segmv3.labels import Classes, Color
from segmv3.metrics import percent

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Theme:
    """Colours of a chart and of the page around it, as CSS hex."""

    surface: str
    ink: str
    muted: str
    line: str
    accent: str
    warm: str
    bad: str


LIGHT = Theme("#ffffff", "#1c2128", "#667080", "#e4e7ec", "#2563c9", "#b4690e", "#d1293d")
DARK = Theme("#181c23", "#e7eaee", "#98a2b1", "#2d343f", "#74a9ff", "#e0a458", "#ff6b7a")

_PIXELS_PER_INCH = 100  # CSS pixels; a point is then 1.39 of them
WIDTH = 500  # of a chart that fills half the page
_SHARPNESS = 2  # device pixels per CSS pixel
SMALL, NORMAL = 8.5, 9.5  # points
_NAME_LENGTH = 26  # letters of a class name that fit beside a chart
ROUND = [1, 2, 2.5, 5, 10]  # distances between ticks
_FONTS = ("Inter", "Segoe UI", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")


def curves(log: list[dict], theme: Theme, score: tuple[str, str] = ("miou", "mIoU")) -> UInt8Array:
    """Loss, learning rate and score over steps: three panels on one axis.

    Args:
        log: parsed lines of log.jsonl; of two lines for one step (a resumed run) the later counts.
        theme: colours.
        score: key of the score in the log, and its name.

    Returns:
        uint8 H x W x 3, RGB.
    """
    figure = new_figure(WIDTH, 580)
    loss_axes, rate_axes, score_axes = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 0.8, 1.2))
    _loss_panel(loss_axes, *_series(log, "train", "loss"), theme)
    _rate_panel(rate_axes, *_series(log, "train", "lr"), theme)
    _score_panel(score_axes, f"{score[1]}, %", *_series(log, "eval", score[0]), theme)
    steps = sorted({step for step in map(_step, log) if step is not None})
    score_axes.set_xlabel("step", color=theme.muted, fontsize=NORMAL)
    score_axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(steps) < 2:
        score_axes.set_xticks(steps)
    else:
        pad = 0.02 * (steps[-1] - steps[0])
        score_axes.set_xlim(steps[0] - pad, steps[-1] + pad)
        score_axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND, integer=True))
    return pixels_of(figure, theme)


def iou_bars(scores: dict, classes: Classes, theme: Theme) -> UInt8Array:
    """IoU of each class as a bar in its colour, best first and absent ones last; the mean as a line."""
    named = [(row["name"], number(row["iou"])) for row in scores["classes"]]
    rows = sorted(named, key=lambda row: math.inf if math.isnan(row[1]) else -row[1])
    figure = new_figure(WIDTH, 60 + 31 * max(len(rows), 2))
    axes = figure.add_subplot()
    style(axes, theme, grid="x", x="IoU, %")
    axes.set_yticks(range(len(rows)), [cut(name) for name, _ in rows], color=theme.ink, fontsize=NORMAL)
    colors = dict(zip(classes.names, classes.colors, strict=True))
    _bars(axes, [iou for _, iou in rows], [colors.get(name) for name, _ in rows], theme)
    mean = number(scores["miou"])
    if math.isfinite(mean):
        span = (-0.5, len(rows) - 0.5)
        # a halo makes the line visible on a bar of any colour
        axes.plot((mean, mean), span, color=theme.surface, alpha=0.75, linewidth=3, zorder=3)
        axes.plot((mean, mean), span, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=3)
        axes.text(mean, -0.68, f"mean {mean:.1f}", color=theme.ink, fontsize=NORMAL, weight="bold", ha="center")
    axes.set_xlim(0, 117)
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.set_xticks([0, 25, 50, 75, 100])
    return pixels_of(figure, theme)


def confusion(scores: dict, theme: Theme) -> UInt8Array:
    """The confusion matrix, each row (truth) as percent of its pixels: blue is right, red is wrong.

    Colour grows with the square root, so that an error of a few percent is visible. Percentages are written
    for up to 24 classes.
    """
    names = [cut(row["name"], 22) for row in scores["classes"]]
    share = row_percent(scores["confusion_matrix"])
    side = int(min(max(200 + 34 * len(names), 420), 1400))  # CSS pixels
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(_heat(share, theme), interpolation="nearest", aspect="equal")
    _matrix_labels(axes, names, theme)
    if len(names) <= 40:
        edges, ends = np.arange(1, len(names)) - 0.5, (-0.5, len(names) - 0.5)
        axes.hlines(edges, *ends, color=theme.surface, linewidth=1.5)
        axes.vlines(edges, *ends, color=theme.surface, linewidth=1.5)
    if len(names) <= 24:
        for truth, predicted in np.argwhere(share >= 0.5):
            part = share[truth, predicted]
            ink = theme.surface if part > 30 else theme.ink
            text = f"{part:.{1 if len(names) <= 6 else 0}f}"
            axes.text(predicted, truth, text, color=ink, fontsize=SMALL, ha="center", va="center")
    return pixels_of(figure, theme)


def row_percent(matrix: list[list[int]]) -> FloatArray:
    """C x C counts (rows = truth) as percent of each row; NaN in rows without pixels."""
    counts = np.asarray(matrix, np.float64)
    return percent(counts, counts.sum(axis=1, keepdims=True))


def number(value: Any) -> float:
    """A number of a log or of scores as float; what is missing or no number (None, "NaN", text) as NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def new_figure(width: int, height: int) -> Figure:
    """An empty figure of a size in CSS pixels."""
    inches = (width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH)
    figure = Figure(figsize=inches, dpi=_PIXELS_PER_INCH * _SHARPNESS, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pixels_of(figure: Figure, theme: Theme) -> UInt8Array:
    figure.set_facecolor(theme.surface)
    family = _font_family()
    for text in figure.findobj(Text):
        text.set_fontfamily(family)
        text.set_parse_math(False)  # a $ in a name is a $
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():  # a class name may be in a script that no font here has: boxes, not noise
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


@cache
def _font_family() -> list[str]:
    installed = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in installed]


def style(
    axes: Axes,
    theme: Theme,
    *,
    grid: Literal["x", "y", ""] = "y",
    title: str = "",
    note: str = "",
    note_color: str = "",
    x: str = "",
    y: str = "",
) -> None:
    """The look of every chart: no frame, quiet ticks and words, hairlines.

    Args:
        axes: to be drawn on afterwards.
        theme: colours.
        grid: across which axis the hairlines go, if any.
        title: above, at the left.
        note: above, at the right.
        note_color: of the note; by default the accent.
        x: name of the x axis.
        y: name of the y axis.
    """
    axes.set_facecolor(theme.surface)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=5, colors=theme.muted, labelsize=SMALL, labelfontfamily=_font_family())
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=theme.line, linewidth=0.8)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=NORMAL + 1, weight="bold", pad=9)
    axes.set_title(note, loc="right", color=note_color or theme.accent, fontsize=NORMAL, pad=9)
    axes.set_xlabel(x, color=theme.muted, fontsize=NORMAL)
    axes.set_ylabel(y, color=theme.muted, fontsize=NORMAL)


def nothing_to_show(axes: Axes, text: str, theme: Theme) -> None:
    """A word in the middle of a chart that has no data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, color=theme.muted, fontsize=NORMAL, ha="center", va="center")
    axes.set_yticks([])


def _step(line: dict) -> int | None:
    step = number(line.get("step"))
    return int(step) if math.isfinite(step) else None


def _series(log: list[dict], event: str, key: str) -> tuple[FloatArray, FloatArray]:
    """(steps, values) of the lines of one event that have the key, in the order of steps."""
    points = {
        step: number(line[key])
        for line in log
        if line.get("event") == event and key in line and (step := _step(line)) is not None
    }
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)


def _smooth(values: FloatArray) -> FloatArray:
    """Mean over a bell of about a fortieth of the curve, not finite values left out; NaN where all are."""
    if not len(values):
        return values
    spread = len(values) / 100
    reach = min(math.ceil(3 * spread), len(values))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(spread, 0.1)) ** 2)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), bell, mode="full")[reach : reach + len(values)]
    weight = np.convolve(finite.astype(np.float64), bell, mode="full")[reach : reach + len(values)]
    return np.divide(total, weight, out=np.full_like(values, np.nan), where=weight > 1e-6)


def _dots(steps: FloatArray) -> str:
    """The marker of a curve: a line alone cannot show one point, or one between two gaps."""
    return "o" if len(steps) <= 12 else ""


def _loss_panel(axes: Axes, steps: FloatArray, losses: FloatArray, theme: Theme) -> None:
    smooth, finite = _smooth(losses), np.isfinite(losses)
    style(axes, theme, title="Loss", note=f"{smooth[finite][-1]:.3g} at the end, smoothed" if finite.any() else "")
    if not finite.any():
        nothing_to_show(axes, "no finite loss" if len(losses) else "nothing logged yet", theme)
    else:
        axes.plot(steps, losses, color=theme.accent, alpha=0.3, linewidth=0.9)
        axes.plot(steps, smooth, color=theme.accent, linewidth=1.8, marker=_dots(steps))
        top = max(float(np.quantile(losses[finite], 0.997)), float(np.nanmax(smooth)))  # a spike may leave the panel
        axes.set_ylim(min(0.0, float(losses[finite].min())), 1.08 * top if top > 0 else 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    if not finite.all():
        lost, bottom = steps[~finite], axes.get_xaxis_transform()
        axes.plot(lost, 0 * lost, "x", color=theme.bad, markersize=5, transform=bottom, clip_on=False, zorder=5)
        text = axes.text(0.99, 0.95, f"x: not finite at {len(lost)} of the logged steps", transform=axes.transAxes)
        text.set(color=theme.bad, fontsize=SMALL, ha="right", va="top")
        text.set_bbox({"facecolor": theme.surface, "edgecolor": "none", "pad": 2})


def _rate_panel(axes: Axes, steps: FloatArray, rates: FloatArray, theme: Theme) -> None:
    finite = np.isfinite(rates)
    note = f"{rates[finite][-1]:.2g} at the end" if finite.any() else ""
    style(axes, theme, title="Learning rate", note=note, note_color=theme.warm)
    if not finite.any():
        nothing_to_show(axes, "nothing logged yet", theme)
        return
    axes.plot(steps, rates, color=theme.warm, linewidth=1.8, marker=_dots(steps))
    axes.set_ylim(0, 1.1 * float(rates[finite].max()) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=ROUND))
    axes.yaxis.set_major_formatter("{x:g}")


def _score_panel(axes: Axes, title: str, steps: FloatArray, scores: FloatArray, theme: Theme) -> None:
    steps, scores = steps[np.isfinite(scores)], scores[np.isfinite(scores)]
    if not len(scores):
        style(axes, theme, title=title)
        nothing_to_show(axes, "not evaluated yet", theme)
        return
    best = int(np.argmax(scores))
    note = f"best {scores[best]:.2f} at step {steps[best]:,.0f}"
    style(axes, theme, title=title, note=note, note_color=theme.ink)
    axes.plot(steps, scores, color=theme.ink, linewidth=1.8, marker="o", markersize=3.5)
    ring = {"color": theme.surface, "markeredgecolor": theme.accent, "markeredgewidth": 2}
    axes.plot(steps[best], scores[best], "o", markersize=9, zorder=4, **ring)  # type: ignore[arg-type]
    axes.plot(steps[best], scores[best], "o", markersize=3.5, color=theme.accent, zorder=5)
    pad = max(0.12 * float(np.ptp(scores)), 1.0)
    axes.set_ylim(max(float(scores.min()) - pad, -1.0), float(scores.max()) + pad)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))


def cut(name: str, length: int = _NAME_LENGTH) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def _bars(axes: Axes, ious: list[float], colors: list[Color | None], theme: Theme) -> None:
    """A bar and its number per IoU, from the top down; "absent" where there is no number."""
    places = range(len(ious))
    fills = [tuple(v / 255 for v in color) if color else theme.muted for color in colors]
    axes.barh(places, 100, height=0.6, color=theme.line, alpha=0.55, linewidth=0)
    # the rim keeps a navy bar visible on a dark page and a pale one on white
    rim = {"edgecolor": theme.muted, "linewidth": [0.0 if math.isnan(iou) else 0.6 for iou in ious]}
    axes.barh(places, np.nan_to_num(ious), height=0.6, color=fills, zorder=2, **rim)  # type: ignore[arg-type]
    for place, iou in zip(places, ious, strict=True):
        if math.isnan(iou):
            axes.text(1.5, place, "absent", color=theme.muted, fontsize=SMALL, va="center", style="italic")
        else:
            text = f"{iou:.1f}"
            axes.text(116, place, text, color=theme.ink, fontsize=NORMAL, va="center_baseline", ha="right")


def _heat(share: FloatArray, theme: Theme) -> UInt8Array:
    """C x C percent as uint8 RGB: blue on the diagonal, red off it, grey in rows without pixels."""
    surface, right, wrong, nothing = (
        255 * np.array(to_rgb(color)) for color in (theme.surface, theme.accent, theme.bad, theme.line)
    )
    floor = 0.05  # an empty cell is still a cell
    depth = floor + (1 - floor) * np.sqrt(np.nan_to_num(share) / 100)
    full = np.where(np.eye(len(share), dtype=bool)[..., None], right, wrong)
    heat = surface + depth[..., None] * (full - surface)
    heat[np.isnan(share)] = surface + 0.7 * (nothing - surface)
    return heat.round().astype(np.uint8)


def _matrix_labels(axes: Axes, names: list[str], theme: Theme) -> None:
    size = NORMAL if len(names) <= 24 else max(min(NORMAL, 810 / len(names)), 3.5)
    style(axes, theme, grid="", x="prediction", y="truth")
    axes.tick_params(colors=theme.ink, pad=3.5, top=False, labeltop=True, labelbottom=False)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= 24:  # slanted, from the middle of the column on
        axes.set_xticks(range(len(names)), names, fontsize=size, rotation=45, ha="left", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90)
    axes.xaxis.label.set_fontweight("bold")
    axes.yaxis.label.set_fontweight("bold")
    axes.xaxis.set_label_position("top")
