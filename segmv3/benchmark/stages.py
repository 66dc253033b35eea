"""The stages of `segmv3.benchmark.latency` as a picture."""

from collections.abc import Sequence

import numpy as np

from segmv3.benchmark.latency import STAGES, Row
from segmv3.data.listing import count_of
from segmv3.images import UInt8Array
from segmv3.report.plots import NORMAL, SMALL, Theme, cut, new_figure, pixels_of, style

_WIDTH = 760
_COLORS = ("#9aa5b4", "#5b8def", "#2563c9", "#17a398", "#e0a458", "#c8ccd4")
"""Of the stages: what surrounds the net is pale."""
_LABELLED = 0.06
"""Share of the longest bar from which a part has room for its number."""


def stage_bars(rows: Sequence[Row], theme: Theme) -> UInt8Array:
    """A bar of stacked medians for every row, the milliseconds written into and behind it: uint8 H x W x 3 RGB."""
    figure = new_figure(_WIDTH, 120 + 46 * len(rows))
    axes = figure.add_subplot()
    title = "From an image file to the picture of its labels"
    style(axes, theme, grid="x", title=title, x="median milliseconds")
    values = np.array([[1000 * row.stages[stage].median for stage in STAGES] for row in rows])
    longest = values.sum(axis=1).max()
    places = range(len(rows))
    starts = np.zeros(len(rows))
    for stage, color, widths in zip(STAGES, _COLORS, values.T, strict=True):
        axes.barh(places, widths, left=starts, height=0.6, color=color, label=stage, zorder=2)
        for place, start, width in zip(places, starts, widths, strict=True):
            if width >= _LABELLED * longest:
                ink = "#ffffff" if stage in ("net", "prepare", "labels") else "#1c2128"
                middle = start + width / 2
                axes.text(middle, place, _short(width), color=ink, fontsize=SMALL, ha="center", va="center", zorder=3)
        starts = starts + widths
    for place, end in zip(places, starts, strict=True):
        text = f"{_short(end)} ms"
        axes.text(end + 0.012 * longest, place, text, color=theme.ink, fontsize=NORMAL, va="center", weight="bold")
    names = [
        f"{cut(row.name)}  {row.case.size[0]}x{row.case.size[1]}\n{row.backend} {row.precision}, "
        f"{count_of(row.threads, 'thread', 'threads')}"
        for row in rows
    ]
    axes.set_yticks(places, names, color=theme.ink, fontsize=SMALL)
    axes.set_xlim(0, 1.14 * longest)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(STAGES),
        frameon=False,
        fontsize=SMALL,
        labelcolor=theme.ink,
        handlelength=1,
        columnspacing=1.6,
    )
    return pixels_of(figure, theme)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
