"""The page of a fit, `fit.html`: score against latency, step by step."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from segmv3.files import make_folder
from segmv3.images import UInt8Array
from segmv3.report.html import Chart, write_page
from segmv3.report.plots import ROUND, SMALL, Theme, new_figure, pixels_of, style

PAGE = "fit.html"


def write_fitting_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/fit.html` and its chart into `folder/figures`, each complete or not at all.

    Args:
        folder: of the fit.
        result: the content of result.json.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = make_folder(folder / "figures")
    return write_page(
        folder / PAGE,
        "fitting.html",
        title=f"{result['net']} on {result['dataset']}: fit",
        result=result,
        saved=100 * (1 - result["latency_ms"] / result["latency_before_ms"]),
        chart=Chart(figures / "fit.png", lambda theme: fit_curve(result, theme)),
    )


def fit_curve(result: dict[str, Any], theme: Theme) -> UInt8Array:
    """The score over the latency by the table: the steps as a line, other proposals as dots, the end as a ring."""
    figure = new_figure(640, 400)
    axes = figure.add_subplot()
    style(axes, theme, title=f"{result['metric']}, %", x="latency by the table, ms")
    steps = result["steps"]
    tried = [each for step in steps for each in step["proposals"] if each["score"] is not None]
    axes.plot([e["latency_ms"] for e in tried], [e["score"] for e in tried], "o", color=theme.muted, markersize=3.5)
    points = [(result["start_ms"], result["score_before"]), *((s["latency_ms"], s["score"]) for s in steps)]
    axes.plot(*zip(*points, strict=True), color=theme.accent, linewidth=1.8, marker="o", markersize=5)
    for number, point in enumerate(points):
        axes.annotate(str(number) if number else "start", point, (0, 8), textcoords="offset points", ha="center").set(
            color=theme.ink, fontsize=SMALL
        )
    end = (result["table_ms"], result["score"])
    axes.plot(*end, "o", color=theme.surface, markersize=10, markeredgecolor=theme.warm, markeredgewidth=2.2)
    axes.axvline(result["budget_ms"], color=theme.warm, linewidth=1, linestyle=(0, (4, 3)))
    axes.invert_xaxis()
    axes.margins(x=0.06, y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    return pixels_of(figure, theme)
