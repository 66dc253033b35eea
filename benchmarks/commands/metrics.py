"""`segmv3 benchmark metrics`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.commands import Root
from segmv3.commands.benchmark.shared import columns, milliseconds, refuse_repeat, show
from segmv3.commands.options import parse, refuse_limit
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.metrics import Timing


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Time the counting of one image's confusion matrix: segmv3, numpy, torchmetrics and mmsegmentation."""

    size: tuple[int, int] = (1024, 2048)
    """Height and width of the label maps."""
    repeat: int = 20
    """Updates that are timed, of each."""
    data: Root = field(default_factory=Root)
    limit: int | None = None
    """With --data.root: decode and score only the first N labels."""
    split: str = "val"
    """With --data.root: part of the data set."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


def run(arguments: list[str]) -> None:
    options = parse(Metrics, "segmv3 benchmark metrics", arguments)
    refuse_limit(options.limit)
    refuse_repeat(options.repeat)
    if options.limit and not options.data.root:
        raise ConfigError("--limit belongs to --data.root DIR")
    from benchmarks.metrics import random_maps, street_maps, time_shares, time_updates
    from segmv3.config import Data
    from segmv3.data.sources import layout_of
    from segmv3.evaluation.counting import open_labelled
    from segmv3.runtime import use_device
    from segmv3.screen import Screen

    root = options.data.root
    dataset = open_labelled(Data(dataset=layout_of(root), root=root), options.split) if root else None
    use_device("cpu", options.threads)
    console = Screen()
    console.say(_machine(options.size))
    for make in (random_maps, street_maps):
        with console.status("drawing label maps"):
            maps = make(options.size)
        with console.status(f"timing, {maps.title} labels"):
            timings = time_updates(maps, options.repeat)
        reasons = "\n".join(f"{one.implementation.name}: {one.version}" for one in timings if not one.times)
        show(console, f"{maps.title} labels, {options.repeat} updates each, in turns", _table(timings), reasons)
    if dataset is None:
        return
    with console.progress() as progress:
        bar = progress.add_task("decode and score", total=None)
        shares = time_shares(
            dataset,
            limit=options.limit,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    each = [1000 * value / shares.images for value in (shares.label, shares.prediction, shares.scoring)]
    count = "1 image" if shares.images == 1 else f"{shares.images:,} images"
    console.say(
        f"{count} of {dataset.title} {dataset.split} with cached predictions, one thread: reading the label "
        f"{each[0]:.2f} ms, the prediction {each[1]:.2f} ms, scoring {each[2]:.2f} ms an image; "
        f"decoding takes {shares.decoding:.1f} %, scoring {100 - shares.decoding:.1f} % of the time",
    )


def _machine(size: tuple[int, int]) -> str:
    import torch

    from segmv3.runtime.machine import cpu_name

    threads = torch.get_num_threads()
    return f"device CPU ({cpu_name()}), {threads} torch threads, label maps of {size[0]}x{size[1]}, 19 classes"


def _table(timings: list[Timing]) -> Table:
    text = ("implementation", "version", "labels")
    table = columns(*text, "median ms", "p95 ms", "times ours", text=text)
    ours = timings[0].times
    for timing in timings:
        cells = ["-"] * 4  # the reason is too long for a column
        if timing.times and ours:
            numbers = milliseconds(timing.times.median), milliseconds(timing.times.p95)
            cells = [timing.version, *numbers, f"{timing.times.median / ours.median:.1f}"]
        table.add_row(timing.implementation.name, cells[0], timing.implementation.takes, *cells[1:])
    return table
