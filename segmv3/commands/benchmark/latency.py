"""`segmv3 benchmark latency`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segmv3.commands.benchmark.shared import Measurement, columns, fresh_nets, measuring, milliseconds, refuse_sizes
from segmv3.commands.options import Trusting, parse, refuse_existing
from segmv3.config import AnyBackend, AnyPrecision
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from segmv3.benchmark.latency import Row
    from segmv3.benchmark.pictures import Size


@dataclass(frozen=True, kw_only=True)
class Latency(Measurement, Trusting):
    """Time every stage from an image file to the picture of its labels: decode, prepare, net, labels, draw, encode."""

    weights: tuple[str, ...] = ()
    """Weight files, exported files or published names. Without: fresh weights, of --net."""
    net: tuple[str, ...] = ()
    """Named nets, with fresh weights. Without, and without --weights: lraspp_large_d8 lraspp_small_d8."""
    size: tuple[tuple[int, int], ...] = ((1024, 2048), (512, 1024))
    """Heights and widths, such as --size 1024 2048 512 1024."""
    backend: tuple[AnyBackend, ...] = ("auto",)
    """Runtimes; auto is the fastest."""
    precision: tuple[AnyPrecision, ...] = ("auto",)
    """Arithmetic of the net; auto is the fastest."""
    image: Path | None = None
    """The picture, resized to every size. Without: a drawn street."""
    memory: bool = True
    """See how much memory each takes, in a process of its own."""


def run(arguments: list[str]) -> None:
    options = _checked(parse(Latency, "segmv3 benchmark latency", arguments))
    plot = options.output.with_suffix(".png") if options.output else None
    if plot:
        refuse_existing(plot, options.overwrite)
    with measuring("latency", options, arguments) as session:
        from segmv3.benchmark.latency import Case, time_stages
        from segmv3.benchmark.pictures import streets
        from segmv3.benchmark.stages import stage_bars
        from segmv3.files import make_folder
        from segmv3.images import read_image, write_png
        from segmv3.report.plots import LIGHT

        picture = read_image(options.image) if options.image else None
        files: dict[Size, Path] = {}
        with session.progress() as (tell, advance):
            tell("drawing a street")
            for size, pixels in streets(options.size, picture).items():
                files[size] = session.place.folder / f"{size[0]}x{size[1]}.png"
                write_png(files[size], pixels)
            rows = time_stages(
                [
                    Case(net, bool(options.weights), size, backend, precision)
                    for size in options.size
                    for net in options.weights or options.net
                    for backend in options.backend
                    for precision in options.precision
                ],
                files,
                session.place,
                options.repeat,
                memory=options.memory,
                say=tell,
                progress=advance,
            )
        session.keep(rows=[row.facts() for row in rows])
        session.show(f"median milliseconds of {options.repeat} calls, in turns", _table(rows), _NOTE)
        for row in rows:  # how far each net is from what this machine can multiply and move
            if line := _floor(row):
                session.say(line)
        if plot:
            make_folder(plot.parent)
            write_png(plot, stage_bars(rows, LIGHT))
            session.say(f"wrote {plot}")
        session.finish()


def _checked(options: Latency) -> Latency:
    """With the nets that are to be timed."""
    refuse_sizes(options.size)
    nets = fresh_nets(options.net, ("lraspp_large_d8", "lraspp_small_d8"), weights=bool(options.weights))
    for flag in ("weights", "net", "backend", "precision"):
        given = getattr(options, flag)
        if len(set(given)) < len(given):
            raise ConfigError(f"--{flag} names one twice")
        if not given and flag in ("backend", "precision"):
            raise ConfigError(f"--{flag} needs a value")
    return replace(options, net=nets)


_NOTE = (
    "to labels: from the image, net + labels + checking the pixels; p95: of that; overhead: percent of it that is not "
    "the net; peak MiB: of a process that opens the net and labels one image, with Python and torch"
)


def _table(rows: list[Row]) -> Table:
    from segmv3.benchmark.latency import STAGES

    stages = [stage for stage in STAGES if stage != "prepare"]  # checking the pixels takes no time to speak of
    titles = [stage.replace(" ", "\n") for stage in stages]
    table = columns("net", *titles, "to\nlabels", "p95", "over-\nhead", "peak\nMiB", text=("net",))
    for row in rows:
        table.add_row(
            f"{row.name}\n{row.case.size[0]}x{row.case.size[1]} {row.backend} {row.precision}",
            *(milliseconds(row.stages[stage].median) for stage in stages),
            milliseconds(row.labelling.median),
            milliseconds(row.labelling.p95),
            f"{row.overhead:.1f}",
            f"{row.memory.peak:,.0f}" if row.memory else "-",
        )
    return table


def _floor(row: Row) -> str:
    if not (row.work and row.gflops and row.floor and row.gbytes):
        return ""
    return (
        f"{row.name} {row.case.size[0]}x{row.case.size[1]} {row.precision}: {row.work.gflop:.2f} GFLOP take "
        f"{milliseconds(row.floor)} ms at the {row.gflops:,.0f} GFLOP/s of a matrix product, the net reaches "
        f"{100 * row.floor / row.stages['net'].median:.0f} % of that; its maps are {row.gbytes:.2f} GB, which a copy "
        f"would move in {milliseconds(row.gbytes / row.bandwidth)} ms ({row.bandwidth:.0f} GB/s)"
    )
