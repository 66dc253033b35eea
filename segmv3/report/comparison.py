"""The page of a comparison of runs, its figures as PNG, SVG and PDF, and its tables as CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from segmv3.errors import printable
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.draw import colorize, draw_errors
from segmv3.report.html import Chart, data_uri, write_page
from segmv3.report.plots import LIGHT, NORMAL, ROUND, SMALL, Theme, cut, new_figure, nothing_to_show, pixels_of, style
from segmv3.report.samples import Sample, present, shrunk

PAGE = "comparison.html"
# of Okabe and Ito, which colour-blind readers tell apart; with the dashes they are told apart in grey, too
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_AXES = {"step": "optimiser steps", "images": "images seen", "minutes": "minutes of training"}
_BLOCK = 4  # runs side by side in the pictures
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"\\": r"\textbackslash{}", "–": "--", "±": r"$\pm$"}  # noqa: RUF001

Cell = tuple[str, bool]
"""A text of a table, and whether it is the best of its row or column."""


@dataclass(frozen=True)
class Column:
    """One run of a comparison.

    Attributes:
        name: as it is shown, with its letter.
        points: by event of the log: step, images, minutes, and loss or score.
    """

    name: str
    points: list[dict[str, float]]


@dataclass(frozen=True)
class Rows:
    """A table: the names of its columns, and its rows."""

    title: str
    header: list[str]
    rows: list[list[Cell]]


def curves(columns: Sequence[Column], axis: str, metric: str, theme: Theme) -> Figure:
    """The score and the loss of all runs over steps, images or minutes."""
    figure = new_figure(370, 440)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, key, title in ((upper, "score", f"{metric}, %"), (lower, "loss", "Training loss")):
        style(axes, theme, title=title)
        drawn = False
        for place, column in enumerate(columns):
            found = [(each[axis], each[key]) for each in column.points if key in each]
            if found:
                drawn, marker = True, "o" if key == "score" else ""
                axes.plot(*zip(*found, strict=True), marker=marker, markersize=3, **_pen(place))
        if not drawn:
            nothing_to_show(axes, "nothing logged yet", theme)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    lower.set_xlabel(_AXES[axis], color=theme.muted, fontsize=NORMAL)
    lower.xaxis.set_major_formatter("{x:,g}")
    lower.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    _legend(figure, columns, theme)
    return figure


def class_dots(
    names: Sequence[str], scores: Sequence[Sequence[float]], columns: Sequence[Column], theme: Theme
) -> Figure:
    """The IoU of each class as a dot for each run; a line joins the lowest and the highest."""
    figure = new_figure(500, 110 + 24 * len(names))
    axes = figure.add_subplot()
    style(axes, theme, grid="x", x="IoU, %")
    values = np.array(scores, np.float64)
    for place, row in enumerate(values.T):
        if np.isfinite(row).any():
            axes.plot((np.nanmin(row), np.nanmax(row)), (place, place), color=theme.line, linewidth=4, zorder=1)
    for place, row in enumerate(values):
        marker: dict[str, Any] = {"marker": "osD^v<>P"[place % 8], "markersize": 5, "linestyle": ""}
        axes.plot(row, range(len(names)), color=_COLORS[place], zorder=2, label=columns[place].name, **marker)
    axes.set_yticks(range(len(names)), [cut(name) for name in names], color=theme.ink, fontsize=NORMAL)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-1, 101)
    _legend(figure, columns, theme, axes.get_legend_handles_labels()[0])
    return figure


def image_grid(
    samples: Sequence[Sequence[Sample]], columns: Sequence[Column], classes: Classes, theme: Theme
) -> Figure:
    """Image and truth, and each run's prediction and errors; one image below the other.

    Args:
        samples: for each image, what each run made of it.
        columns: the runs.
        classes: of the data.
        theme: colours.
    """
    blocks = [(each, start) for each in samples for start in range(0, len(columns), _BLOCK)]
    wide = min(len(columns), _BLOCK) + 1
    height, width = samples[0][0].image.shape[:2]
    figure = new_figure(640, round(len(blocks) * 2 * (620 / wide * height / width + 14) + 70))
    grid = figure.subplots(2 * len(blocks), wide, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (runs, start) in enumerate(blocks):
        cells = _cells(runs, start, columns, classes)
        for axes, (what, picture) in zip(grid[2 * place : 2 * place + 2].flat, cells, strict=False):
            if picture is not None:
                axes.imshow(picture, interpolation="antialiased")
                axes.set_title(cut(what, 28), fontsize=SMALL - 1.5, color=theme.ink, pad=2)
    shown = present([shrunk(each) for runs in samples for each in runs], classes)
    patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*rgb), label=cut(name)) for name, rgb in classes.key(shown)]
    patches.append(Patch(color="#ed2438", label="wrong"))
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=SMALL - 1.5, frameon=False)
    return figure


def _cells(
    runs: Sequence[Sample], start: int, columns: Sequence[Column], classes: Classes
) -> list[tuple[str, UInt8Array | None]]:
    """Two rows of captions and pictures: image and predictions, truth and errors; the last of few runs are followed by
    nothing, so that all rows are alike."""
    some, names = [shrunk(each) for each in runs[start : start + _BLOCK]], [each.name for each in columns[start:]]
    gap: list[tuple[str, UInt8Array | None]] = [("", None)] * (min(len(columns), _BLOCK) - len(some))
    upper = [(name, colorize(each.prediction, classes)) for name, each in zip(names, some, strict=False)]
    lower = [
        (f"{name}: errors", draw_errors(each.image, each.truth, each.prediction))
        for name, each in zip(names, some, strict=False)
    ]
    return [("image", some[0].image), *upper, *gap, ("truth", colorize(some[0].truth, classes)), *lower, *gap]


def _pen(place: int) -> dict[str, Any]:
    return {"color": _COLORS[place], "linestyle": _DASHES[place % len(_DASHES)], "linewidth": 1.5}


def _legend(figure: Figure, columns: Sequence[Column], theme: Theme, handles: Sequence[Any] = ()) -> None:
    names = [cut(column.name) for column in columns]
    shown = handles or [Line2D([], [], **_pen(place)) for place in range(len(columns))]
    look: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "labelcolor": theme.ink, "handlelength": 3}
    figure.legend(shown, names, loc="outside lower center", ncols=2, **look)


def export(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, SVG and PDF, for print. Letters stay letters in the PDF and become paths in the SVG."""
    pixels_of(figure, LIGHT)
    for kind, dated in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        file = io.BytesIO()
        with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "segmv3"}):
            figure.savefig(file, format=kind, dpi=dpi, metadata=dated)
        write_bytes(path.with_suffix(f".{kind}"), file.getvalue(), durable=False)


def write_tables(folder: Path, tables: dict[str, Rows]) -> None:
    """Write each table as CSV, and as LaTeX for the package booktabs."""
    for name, table in tables.items():
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([table.header, *([text for text, _ in row] for row in table.rows)])
        write_bytes(folder / f"{name}.csv", file.getvalue().encode(), durable=False)
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
        head = " & ".join(_latex((text, False)) for text in table.header) + r" \\"
        begin = rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}"
        text = [begin, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
        write_bytes(folder / f"{name}.tex", ("\n".join(text) + "\n").encode(), durable=False)


def _latex(cell: Cell) -> str:
    text = "".join(_LATEX.get(letter, letter) for letter in printable(cell[0]))
    return rf"\textbf{{{text}}}" if cell[1] else text


def write_comparison(
    folder: Path,
    *,
    dpi: int,
    columns: Sequence[Column],
    metric: str,
    tables: dict[str, Rows],
    scores: tuple[Sequence[str], Sequence[Sequence[float]]] | None,
    samples: Sequence[Sequence[Sample]],
    classes: Classes | None,
    **values: Any,
) -> Path:
    """Write `folder/comparison.html`, `folder/figures` and `folder/tables`.

    Args:
        folder: where they go; made where it is missing.
        dpi: of the figures.
        columns: the runs.
        metric: name of the score.
        tables: by the names of their files.
        scores: names of the classes, and the IoU of each run in percent; None where there are none.
        samples: for each image, what each run made of it.
        classes: of the data, where there are samples.
        values: what else the page shows: title, conditions, notes.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    figures, sheets = make_folder(folder / "figures"), make_folder(folder / "tables")
    draws: dict[str, Callable[[Theme], Figure]] = {
        f"curves_{axis}": partial(curves, columns, axis, metric) for axis in _AXES
    }
    if scores:
        draws["classes"] = partial(class_dots, *scores, columns)
    charts = {}
    for name, draw in draws.items():
        charts[name] = Chart(figures / f"{name}.png", lambda theme, draw=draw: pixels_of(draw(theme), theme))  # type: ignore[misc]
        export(draw(LIGHT), figures / f"{name}.png", dpi)
    key = []
    if samples and classes:
        export(image_grid(samples, columns, classes, LIGHT), figures / "images.png", dpi)
        key = classes.key(present([shrunk(each) for runs in samples for each in runs], classes))
    write_tables(sheets, tables)
    return write_page(
        folder / PAGE,
        "comparison.html",
        charts=charts,
        metric=metric,
        axes=list(_AXES.values()),
        tables=tables,
        pictures=[_blocks(runs, columns, classes) for runs in samples] if classes else [],
        present=key,
        wide=min(len(columns), _BLOCK) + 1,
        dpi=dpi,
        **values,
    )


def _blocks(
    runs: Sequence[Sample], columns: Sequence[Column], classes: Classes
) -> tuple[str, list[list[tuple[str, str]]]]:
    """The name of an image, and its rows of captions and pictures for the page."""
    blocks = [_cells(runs, start, columns, classes) for start in range(0, len(columns), _BLOCK)]
    return runs[0].name, [[(what, _address(what, each)) for what, each in block] for block in blocks]


def _address(what: str, picture: UInt8Array | None) -> str:
    if picture is None:
        return ""
    return data_uri(picture, "JPEG" if what == "image" or what.endswith(": errors") else "PNG")
