"""The reliability plot: how often a net is right, by how sure it is."""

import numpy as np
from matplotlib.axes import Axes

from segmv3.images import UInt8Array
from segmv3.report.plots import SMALL, WIDTH, Theme, new_figure, nothing_to_show, pixels_of, style
from segmv3.results.calibration import CalibrationScores


def reliability(calibration: CalibrationScores, theme: Theme) -> UInt8Array:
    """Accuracy of each bin of confidence against the diagonal on which it should lie; below, the share of pixels.

    Args:
        calibration: what was measured.
        theme: colours of the plot.

    Returns:
        uint8 H x W x 3 RGB, at twice the size it is meant to be seen at.
    """
    figure = new_figure(WIDTH, 560)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    note = f"ECE {calibration.ece:.2f} %" if calibration.pixels else ""
    style(above, theme, title="Reliability", note=note, y="accuracy, %" if calibration.pixels else "")
    style(below, theme, x="confidence, %", y="pixels, %" if calibration.pixels else "")
    if calibration.pixels:
        _accuracy(above, calibration, theme)
        _shares(below, calibration, theme)
    else:
        nothing_to_show(above, "no labelled pixel", theme)
        below.set_yticks([])
    below.set_xlim(0, 100)
    below.set_xticks([0, 20, 40, 60, 80, 100])
    return pixels_of(figure, theme)


def _accuracy(axes: Axes, calibration: CalibrationScores, theme: Theme) -> None:
    rows = [row for row in calibration.bins if row.pixels]
    low, high, accuracy, sure = np.array([(row.low, row.high, row.accuracy, row.confidence) for row in rows]).T
    places, widths = low + 0.08 * (high - low), 0.84 * (high - low)
    axes.bar(places, accuracy, widths, align="edge", color=theme.accent, linewidth=0, zorder=2, label="accuracy")
    axes.bar(
        places, sure - accuracy, widths, bottom=accuracy, align="edge", color=theme.bad, alpha=0.3, linewidth=0,
        zorder=3, label="gap to the mean confidence",
    )  # fmt: skip
    axes.plot((0, 100), (0, 100), color=theme.ink, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=4)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 20, 40, 60, 80, 100])
    legend = axes.legend(loc="upper left", frameon=False, fontsize=SMALL, labelcolor=theme.ink)
    legend.set_zorder(5)
    confidence, right = calibration.confidence, calibration.accuracy
    judged = "" if abs(confidence - right) < 0.05 else ": over-confident" if confidence > right else ": under-confident"
    note = f"mean confidence {confidence:.1f}, accuracy {right:.1f}{judged}"
    axes.text(0.02, 0.845, note, transform=axes.transAxes, color=theme.muted, fontsize=SMALL, va="center")


def _shares(axes: Axes, calibration: CalibrationScores, theme: Theme) -> None:
    low, high, pixels = np.array([(row.low, row.high, row.pixels) for row in calibration.bins]).T
    shares, width = 100 * pixels / calibration.pixels, high - low
    axes.bar(low + 0.08 * width, shares, 0.84 * width, align="edge", color=theme.muted, linewidth=0, zorder=2)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
