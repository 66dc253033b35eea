"""The results of a sweep for people: lines and a table for the terminal, and the page `sweep.html`.

All are made from the content of sweep.json. The page needs no other file, no script and no network.
"""

import math
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table

from segmv3.files import make_folder
from segmv3.images import UInt8Array
from segmv3.report.html import Chart, write_page
from segmv3.report.plots import WIDTH, Theme, cut, new_figure, nothing_to_show, pixels_of, style

PAGE = "sweep.html"
_TOP = 10
_LABEL_LETTERS = 34  # of all choices together that fit below a chart side by side


def shown(value: Any) -> str:
    """A value of a setting as a person writes it: 0.00321, 512 x 1024, none."""
    if isinstance(value, list):
        return " x ".join(map(shown, value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def headline(trial: dict[str, Any]) -> str:
    """What became of a trial, in one line."""
    values = ", ".join(f"{name} {shown(value)}" for name, value in trial["values"].items())
    if trial["state"] == "failed":
        return f"trial {trial['trial']}  failed: {trial['problem']}  {values}"
    score = "no score" if trial["score"] is None else f"{trial['score']:.2f} % at step {trial['step']:,}"
    if trial["same_as"] is not None:
        fate = f", the values of trial {trial['same_as']} again: not repeated"
    else:
        fate = f", stopped at step {trial['evaluations'][-1][0]:,}" if trial["state"] == "pruned" else ""
    return f"trial {trial['trial']}  {score}{fate}  {values}"


def best_table(result: dict[str, Any]) -> Table:
    """The best ten trials."""
    table = Table(box=box.SIMPLE)
    for column in ("trial", f"{result['metric_name']} %", "step", "state"):
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    for name in result["space"]:
        table.add_column(name.replace(".", ".\n"), justify="right", overflow="fold")
    for trial in _ranked(result)[:_TOP]:
        table.add_row(*_cells(trial, result))
    return table


def _ranked(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Trials with a score, best first, each set of values once; complete ones before pruned ones."""
    scored = [each for each in result["trials"] if each["score"] is not None and each["same_as"] is None]
    return sorted(scored, key=lambda each: (each["state"] != "complete", -each["score"]))


def _cells(trial: dict[str, Any], result: dict[str, Any]) -> list[str]:
    values = [shown(trial["values"][name]) if name in trial["values"] else "" for name in result["space"]]
    return [str(trial["trial"]), f"{trial['score']:.2f}", f"{trial['step']:,}", trial["state"], *values]


def write_sweep_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/sweep.html` and its charts into `folder/figures`, each complete or not at all.

    Args:
        result: the content of sweep.json.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = make_folder(folder / "figures")
    trials, best = result["trials"], result["best"]
    rows, states = [_cells(trial, result) for trial in _ranked(result)], [trial["state"] for trial in trials]
    facts = {}
    if best:
        facts = {"trial": best["trial"], "score": f"{best['score']:.2f} % at step {best['step']:,}"}
        facts |= {name: shown(value) for name, value in best["values"].items()} | {"weights": best["weights"]}
    return write_page(
        folder / PAGE,
        "sweep.html",
        title=f"{result['net']} on {result['dataset']}: sweep",
        result=result,
        conditions=_conditions(result),
        ended=len(states) - states.count("running"),
        pruned=states.count("pruned"),
        facts=facts,
        command=_parts(best["command"]) if best else [],
        curves=Chart(figures / "curves.png", lambda theme: trial_curves(result, theme)),
        charts={
            name: Chart(figures / f"{name}.png", partial(setting_scatter, result, name)) for name in result["space"]
        },
        rows=rows,
        top=_TOP,
        failed=[headline(trial) for trial in trials if trial["state"] == "failed"],
    )


def _conditions(result: dict[str, Any]) -> str:
    trials = result["trials"]
    failed = sum(trial["state"] == "failed" for trial in trials)
    copied = sum(trial["same_as"] is not None for trial in trials)
    parts = [
        result["split"],
        f"{len(result['space'])} settings",
        "median pruner" if result["pruner"] == "median" else "no pruner",
        f"seed {result['seed']}",
        f"{failed} failed" if failed else "",
        f"{copied} with the values of another, not repeated" if copied else "",
    ]
    return " · ".join(filter(None, parts))


def _parts(command: str) -> list[str]:
    """A command, broken before each of its flags."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    return [shlex.join(part) for part in parts]


def trial_curves(result: dict[str, Any], theme: Theme) -> UInt8Array:
    """The score of every trial over the steps: pruned ones grey, the best one bold."""
    figure = new_figure(WIDTH, 460)
    axes = figure.add_subplot()
    best = result["best"]["trial"] if result["best"] else None
    note = "" if best is None else f"best {result['best']['score']:.2f} in trial {best}"
    style(axes, theme, title=f"{result['metric_name']}, %", note=note, x="step")
    trials = [each for each in result["trials"] if each["evaluations"]]
    if not trials:
        nothing_to_show(axes, "not evaluated yet", theme)
    for trial in sorted(trials, key=lambda each: (each["trial"] == best, each["state"] != "pruned")):
        steps, scores = zip(*trial["evaluations"], strict=True)
        top, pruned = trial["trial"] == best, trial["state"] == "pruned"
        axes.plot(
            steps,
            scores,
            color=theme.muted if pruned else theme.accent,
            alpha=1 if top else 0.45,
            linewidth=2.4 if top else 1.1,
            marker="o" if top or pruned or len(steps) == 1 else "",
            markersize=4 if top else 3,
            markevery=None if top else [len(steps) - 1],
        )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return pixels_of(figure, theme)


def setting_scatter(result: dict[str, Any], name: str, theme: Theme) -> UInt8Array:
    """The score of each trial over one setting: pruned ones as grey rings, the best one ringed."""
    figure = new_figure(340, 250)
    axes = figure.add_subplot()
    style(axes, theme, title=cut(name, 36))
    best = result["best"]["trial"] if result["best"] else None
    setting = result["space"][name]
    trials = [each for each in _ranked(result) if name in each["values"]]
    choices = setting.get("values")
    for trial in reversed(trials):
        value = trial["values"][name]
        place = choices.index(value) if choices else value
        pruned = trial["state"] == "pruned"
        color = theme.muted if pruned else theme.accent
        axes.plot(place, trial["score"], "o", color="none" if pruned else color, markersize=5, markeredgecolor=color)
        if trial["trial"] == best:
            axes.plot(place, trial["score"], "o", color="none", markersize=11, markeredgecolor=color, markeredgewidth=2)
    if not trials:
        nothing_to_show(axes, "not evaluated yet", theme)
    if choices:
        labels = [shown(each) for each in choices]
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        crowded = sum(map(len, labels)) > _LABEL_LETTERS
        axes.set_xticks(range(len(labels)), [cut(label, 16) for label in labels], **(slanted if crowded else {}))
        axes.set_xlim(-0.6, len(labels) - 0.4)
    else:
        _number_axis(axes, setting)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(y=0.12)
    return pixels_of(figure, theme)


def _number_axis(axes: Axes, setting: dict[str, Any]) -> None:
    low, high = setting["low"], setting["high"]
    if setting["log"]:
        axes.set_xscale("log")
        pad = (high / low) ** 0.05
        axes.set_xlim(low / pad, high * pad)
        axes.set_xticks(log_ticks(low, high))
        axes.set_xticks([], minor=True)
    else:
        pad = 0.05 * (high - low)
        axes.set_xlim(low - pad, high + pad)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=isinstance(low, int)))
    axes.xaxis.set_major_formatter("{x:,.6g}")


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, as many as fit: 1-2-5, else 1-3, else powers of ten, else some of these."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{lead}e{e}") for e in exponents for lead in leading]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks if len(ticks) > 1 else [low, high]
    return ticks[:: -(-len(ticks) // most)]
