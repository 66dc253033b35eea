"""`segmv3 benchmark table`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import Root
from segmv3.commands.options import parse, refuse_existing, refuse_limit
from segmv3.config import Device, Precision
from segmv3.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from benchmarks.table import Line
    from segmv3.data.datasets import Dataset
    from segmv3.screen import Screen


@dataclass(frozen=True, kw_only=True)
class Table:
    """The mmsegmentation table with our numbers beside it."""

    results: Path = Path("docs/results")
    """Folder of result files, as segmv3 evaluate --output writes them."""
    evaluate: bool = False
    """First evaluate the four published weights, then those of --weights, and write their result files."""
    weights: tuple[Path, ...] = ()
    """Weight files of our own training to evaluate too."""
    data: Root = field(default_factory=Root)
    limit: int | None = None
    """Evaluate only the first N images; such a result fills no row."""
    output: Path | None = None
    """Also write the table to this Markdown file."""
    overwrite: bool = False
    """Replace the file that --output names, and result files."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""
    device: Device = "auto"
    """Where to evaluate; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


def run(arguments: list[str]) -> None:
    options = parse(Table, "segmv3 benchmark table", arguments)
    _check_table(options)
    from benchmarks.table import NOTES, lines, markdown, read_results, reasons
    from segmv3.files import make_folder, write_bytes
    from segmv3.models.count import describe_nets
    from segmv3.screen import Screen

    console = Screen()
    if options.output:
        make_folder(options.output.parent)
    failures = _evaluate(options, console) if options.evaluate else {}
    results = read_results(options.results)
    table = lines(results, describe_nets(), failures)
    if options.output:
        write_bytes(options.output, markdown(table, results).encode())
    console.print(_rendered(table))
    for line in (NOTES, *reasons(table), *(f"left out: {line}" for line in results.left_out)):
        console.say(line)
    if options.output:
        console.say(f"wrote {options.output}")


def _check_table(options: Table) -> None:
    refuse_limit(options.limit)
    if options.output:
        refuse_existing(options.output, options.overwrite)
    if options.evaluate and not options.data.root:
        raise ConfigError("--evaluate needs --data.root DIR, the folder of Cityscapes")
    given = [
        f
        for f, value in (("data.root", options.data.root), ("weights", options.weights), ("limit", options.limit))
        if value
    ]
    if given and not options.evaluate:
        raise ConfigError(f"--{given[0]} belongs to --evaluate")
    if options.results.exists() and not options.results.is_dir():
        raise DataError(f"{options.results} is a file; --results names a folder of result files")


def _evaluate(options: Table, console: Screen) -> dict[str, str]:
    """Evaluate all weights with both modes. Returns: why some could not be, by published name or recipe."""

    from benchmarks.table import ROWS, measure, recipe_of, result_file
    from segmv3.config import Data
    from segmv3.evaluation.counting import open_labelled
    from segmv3.evaluation.settings import Settings
    from segmv3.files import make_folder, write_bytes
    from segmv3.runtime import use_device

    assert options.data.root
    data = Data(dataset="cityscapes", root=options.data.root)
    dataset = open_labelled(data, "val")
    sources: list[tuple[str, str | Path]] = [(row.published, row.published) for row in ROWS if row.published]
    sources += [(recipe_of(path), path) for path in options.weights]
    twice = next((name for i, (name, _) in enumerate(sources) if name in dict(sources[:i])), None)
    if twice:
        raise ConfigError(f"two files of --weights are of {twice}; name one of them")
    todo = [
        (name, source, flip, path)
        for name, source in sources
        for flip in (False, True)
        if not _is_there(options, name, source, path := result_file(options.results, name, flip), dataset)
    ]
    make_folder(options.results)
    device = use_device(options.device, options.threads)
    failures: dict[str, str] = {}
    for name, source, flip, path in todo:
        if name in failures:
            continue
        settings = Settings(multi_scale_flip=flip, limit=options.limit, precision=options.precision)
        try:
            with console.bars(f"{name}{' ms+flip' if flip else ''}") as progress:
                result = measure(source, data, settings, device, progress)
        except CheckpointError as error:
            failures[name] = str(error)
            continue
        write_bytes(path, result.to_json().encode())
        console.say(f"wrote {path}: mIoU {result.miou:.2f} % on {result.images:,} images")
    return failures


def _is_there(options: Table, name: str, source: str | Path, path: Path, dataset: Dataset) -> bool:
    """Whether an earlier run wrote this result. Raises: OutputError for another result in its place."""
    from benchmarks.table import weights_of
    from segmv3.results.result import Result

    if options.overwrite or not path.exists():
        return False
    wanted = (name, dataset.title, min(options.limit or len(dataset), len(dataset)), options.precision, str(source))
    try:
        result = Result.read(path)
        found = (weights_of(result), result.dataset, result.images, result.precision, result.weights)
    except DataError:
        found = None
    if found != wanted:
        refuse_existing(path, overwrite=False)
    return True


_WIDE = ("their mem (GB)", "mem (GB)")
"""Columns of the file that --output names and of the result files, for which a terminal has no room."""


def _rendered(table: list[Line]) -> RichTable:
    """For the terminal: without `_WIDE`, and blank where a line shares with the one above."""
    from rich import box
    from rich.table import Table as RichTable

    from benchmarks.table import COLUMNS, MISSING, cells

    titles = [column for column in COLUMNS if column not in _WIDE]
    rows = []
    above = ""
    for line in table:
        known = dict(zip(COLUMNS, cells(line), strict=True))
        row = ["-" if known[title] == MISSING else known[title] for title in titles]  # why is said below
        row[0] = row[0].removeprefix("LRASPP ")
        above, last = row[0], above
        if row[0] == last:
            row[:4] = [""] * 4
        rows.append(row)
    rendered = RichTable(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for title, values in zip(titles, zip(*rows, strict=True), strict=True):
        text = title in ("method", "our weights", "device")
        column = title.replace("+", "+ ")  # where it may be folded
        words = [word for value in (column, *values) for word in value.split()]
        rendered.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=title == "method",
            min_width=max(map(len, values if title == "method" else words)),
        )
    for row in rows:
        rendered.add_row(*row)
    return rendered
