"""`segmv3 compare`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from segmv3.commands.options import parse, refuse_existing
from segmv3.errors import ConfigError

if TYPE_CHECKING:  # numpy and rich only when there is something to compare
    from rich.table import Table

    from segmv3.results.result import Result
    from segmv3.results.uncertainty import Comparison, Difference


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two result files of one split, class by class."""

    a: tyro.conf.Positional[Path]
    """File of segmv3 evaluate --output."""
    b: tyro.conf.Positional[Path]
    """Another one, on the same images."""
    output: Path | None = None
    """Also write the comparison to this JSON file."""
    overwrite: bool = False
    """Replace the file that --output names."""
    resamples: int = 1000
    """Times the images are drawn anew for the intervals."""
    seed: int = 0
    """Same seed, same intervals."""


def run(arguments: list[str]) -> None:
    options = parse(Compare, "segmv3 compare", arguments)
    if options.resamples < 100:
        raise ConfigError(f"--resamples is {options.resamples}; an interval needs at least 100")
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}; it must be at least 0")
    if options.output:
        refuse_existing(options.output, options.overwrite)
    from segmv3.files import make_folder, write_bytes
    from segmv3.results.result import Result
    from segmv3.results.uncertainty import compare, shown
    from segmv3.screen import Screen

    a, b = Result.read(options.a), Result.read(options.b)
    comparison = compare(a, b, resamples=options.resamples, seed=options.seed)
    if options.output:
        make_folder(options.output.parent)
        write_bytes(options.output, json.dumps(_content(a, b, comparison), indent=2, allow_nan=False).encode())
    console = Screen()
    console.print(_table(comparison))
    console.say(_measured("a", a))
    console.say(_measured("b", b))
    differing = "; ".join(f"{key} {shown(key, a)} and {shown(key, b)}" for key, (a, b) in comparison.settings.items())
    console.say(f"a and b differ in: {differing}" if differing else "a and b have the same weights and settings")


def _table(comparison: "Comparison") -> "Table":
    from rich.table import Table

    from segmv3.results.uncertainty import FEWEST_IMAGES

    table = Table(
        caption="* the interval excludes 0. It is the middle 95 % of the difference over "
        f"{comparison.resamples:,} resamples of the images, the same for a and b; a class that a resample lacks is "
        f"left out of its mean. Classes in fewer than {FEWEST_IMAGES} images are never marked; of 20 classes that "
        "do not differ, one is marked by chance.",
        caption_justify="left",
    )
    table.add_column("class", no_wrap=True)
    for column in ("images", "IoU a", "IoU b", "b - a", "95 % interval", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparison.classes:
        table.add_row(*_cells(row))
    table.add_section()
    table.add_row(*_cells(comparison.miou))
    return table


def _cells(row: "Difference") -> tuple[str, ...]:
    interval = "" if math.isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}"
    difference = "" if math.isnan(row.difference) else f"{row.difference:+.2f}"
    scores = ("absent" if math.isnan(score) else f"{score:.2f}" for score in (row.a, row.b))
    return (row.name, f"{row.images:,}", *scores, difference, interval, "*" if row.beyond_chance else "")


def _measured(letter: str, result: "Result") -> str:
    """One line with a score and all that it depends on."""
    from segmv3.report.tables import mode
    from segmv3.results.uncertainty import shown

    size = f", {shown('size', result.size)}" if result.size else ""
    return (
        f"{letter}: {result.source}: mIoU {result.counts.miou:.2f} % on {len(result.names):,} images of "
        f"{result.dataset} {result.split}{size}, {mode(result)}, "
        f"weights {result.weights or 'unknown'}, SHA-256 {result.weights_sha256 or 'unknown'}"
    )


def _content(a: "Result", b: "Result", comparison: "Comparison") -> dict[str, Any]:
    """The comparison as JSON types, percent; None where there is no number."""
    return {
        "a": a.source,
        "b": b.source,
        "dataset": a.dataset,
        "split": a.split,
        "images": len(a.names),
        "size": a.size,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "miou": comparison.miou.to_dict(),
        "classes": [row.to_dict() for row in comparison.classes],
        "settings": comparison.settings,
        "weights_sha256": [a.weights_sha256, b.weights_sha256],
    }
