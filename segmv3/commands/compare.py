"""`segmv3 compare`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from segmv3.commands.options import Output, parse, refuse_existing
from segmv3.config import Device
from segmv3.errors import ConfigError, OutputError, printable
from segmv3.settings import refuse

if TYPE_CHECKING:  # numpy and rich only when there is something to compare
    from rich.table import Table

    from segmv3.report.comparison import Rows
    from segmv3.results.result import Result
    from segmv3.results.uncertainty import Comparison, Difference


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare 2 to 8 runs on one page, or two result files of one split class by class."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of segmv3 train, finished or not; or two files of segmv3 evaluate --output."""
    output: Output = None
    """Folder of the page, figures and tables, by default comparison; for result files a JSON file, by default none."""
    overwrite: bool = False
    """Replace what --output names."""
    dpi: int = 300
    """Dots per inch of the PNG figures."""
    images: int = 4
    """Images to show: those where the runs differ most."""
    score: int = 100
    """Images to score anew, the first ones, to find these and for the intervals; 0 scores none."""
    data_root: Path | None = None
    """Root of the data set, where it is not where the runs found it."""
    resamples: int = 1000
    """Times the images are drawn anew for the intervals."""
    seed: int = 0
    """Same seed, same intervals."""
    device: Device = "auto"
    """Where to run the nets; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


def run(arguments: list[str]) -> None:
    options = parse(Compare, "segmv3 compare", arguments)
    refuse(
        (options.resamples >= 100, "--resamples", f"is {options.resamples}; an interval needs at least 100"),
        (options.seed >= 0, "--seed", f"is {options.seed}; it must be at least 0"),
        (50 <= options.dpi <= 1200, "--dpi", f"is {options.dpi}; it must be between 50 and 1,200"),
        (0 <= options.images <= 20, "--images", f"is {options.images}; it must be between 0 and 20"),
        (options.score >= 0, "--score", f"is {options.score}; it must be at least 0"),
    )
    folders = [path for path in options.runs if path.is_dir()]
    if folders and len(folders) < len(options.runs):
        file = next(path for path in options.runs if not path.is_dir())
        what = "is a file" if file.exists() else "does not exist"
        raise ConfigError(f"{file} {what} and {folders[0]} a folder; name runs alone, or two result files")
    if not folders and len(options.runs) != 2:
        raise ConfigError(f"compare takes 2 to 8 runs or two result files, not {len(options.runs)} files")
    (_compare_runs if folders else _compare_results)(options)


def _compare_runs(options: Compare) -> None:
    output = options.output or Path("comparison")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; name a folder")
    if (output / "comparison.html").exists() and not options.overwrite:
        raise OutputError(f"{output / 'comparison.html'} exists; choose another --output or add --overwrite")
    from segmv3.comparing import compare
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as progress:
        found = compare(
            options.runs,
            output,
            dpi=options.dpi,
            images=options.images,
            score=options.score,
            data_root=options.data_root,
            resamples=options.resamples,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            progress=progress,
        )
    names = [row[0][0] for row in found.tables["runs"].rows]
    for folder, name in zip(options.runs, names, strict=True):
        console.say(f"{name.split()[0]}: {folder}")
    for key, table in found.tables.items():
        if table.rows:
            console.print(_rich(table, names, turned=key == "runs"))
    for note in found.notes:
        console.say(note)
    console.say(f"wrote {found.page}, with its figures and tables beside it")


def _rich(rows: "Rows", names: list[str], *, turned: bool) -> "Table":
    """A table for the terminal, in which runs have their letters alone. `turned`: its columns are the runs."""
    from rich.table import Table
    from rich.text import Text

    cells = [[(name, False) for name in rows.header], *rows.rows]
    header, *body = zip(*cells, strict=True) if turned else cells
    table = Table(title=rows.title, title_justify="left")
    for place, (name, _) in enumerate(header):
        table.add_column(name.split()[0] if name in names else name, justify="right" if place else "left")
    for row in body:
        table.add_row(*(Text(printable(text), "bold" if best else "") for text, best in row))
    return table


def _compare_results(options: Compare) -> None:
    if options.output:
        refuse_existing(options.output, options.overwrite)
    from segmv3.files import make_folder, write_bytes
    from segmv3.results.result import Result
    from segmv3.results.uncertainty import compare, shown
    from segmv3.screen import Screen

    a, b = map(Result.read, options.runs)
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
