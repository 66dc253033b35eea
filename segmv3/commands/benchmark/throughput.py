"""`segmv3 benchmark throughput`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from segmv3.commands.benchmark.shared import (
    Measurement,
    columns,
    fresh_nets,
    measuring,
    refuse_odd,
    refuse_repeat,
    refuse_sizes,
)
from segmv3.commands.options import Trusting, parse
from segmv3.config import AnyBackend, AnyPrecision
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from segmv3.benchmark.throughput import Rate


@dataclass(frozen=True, kw_only=True)
class Throughput(Measurement, Trusting):
    """Images per second: batches, a folder on disk, and a video with reading, drawing and encoding."""

    repeat: int = 3
    """Timed passes of each."""
    weights: str | None = None
    """A weight file, an exported file or a published name. Without: fresh weights, of --net."""
    net: str | None = None
    """A named net, with fresh weights. Without, and without --weights: lraspp_large_d8."""
    size: tuple[int, int] = (1024, 2048)
    """Height and width, even, as videos have them."""
    backend: AnyBackend = "auto"
    """Runtime; auto is the fastest."""
    precision: tuple[AnyPrecision, ...] = ("auto",)
    """Arithmetic of the net; auto is the fastest."""
    batch: tuple[int, ...] = (1, 4, 8, 16)
    """Images of a batch."""
    images: int = 16
    """In the folder."""
    frames: int = 48
    """Of the video."""


def run(arguments: list[str]) -> None:
    options = _checked(parse(Throughput, "segmv3 benchmark throughput", arguments))
    with measuring("throughput", options, arguments) as session:
        from segmv3.benchmark.latency import Case
        from segmv3.benchmark.pictures import streets
        from segmv3.benchmark.roofline import work_of
        from segmv3.benchmark.throughput import time_batches, time_folder, time_video
        from segmv3.models.zoo import net

        sources: list[tuple[str, Callable[..., list[Rate]], int]] = [("folder", time_folder, options.images)]
        sources += [("video", time_video, options.frames)] if find_spec("av") else []
        with session.progress() as (tell, advance):
            tell("drawing a street")
            picture = streets([options.size])[options.size]
            work = work_of(net(options.net), options.size) if options.net else None
            for precision in options.precision:
                source = options.weights or options.net or ""
                case = Case(source, options.weights is not None, options.size, options.backend, precision)
                tell(f"opening {case.net}")
                predict = case.open(picture, session.place)
                folder = session.place.folder / precision
                rates: list[Rate] = []
                if options.batch:
                    tell(f"batches, {precision}")
                    rates += time_batches(predict, picture, options.batch, options.repeat, work=work, progress=advance)
                for what, time_them, count in sources:
                    tell(f"{what}, {precision}")
                    rates += time_them(predict, picture, folder / what, options.repeat, count, progress=advance)
                title = f"{case.net} {options.size[0]}x{options.size[1]}, {predict.backend} {predict.precision}"
                session.show(title, _table(rates), _NOTE)
                facts = {"net": case.net, "backend": predict.backend, "precision": predict.precision}
                session.keep(results=[facts | {"rates": [rate.facts() for rate in rates]}])
        if len(sources) == 1:
            session.say('no video was timed: that needs the package av; pip install "segmv3[video]"')
        session.finish()


def _checked(options: Throughput) -> Throughput:
    """With the net that is to be timed."""
    refuse_sizes([options.size])
    refuse_odd(options.size, "a video has even sides")
    for flag in ("images", "frames"):
        refuse_repeat(getattr(options, flag), flag)
    if any(batch < 1 for batch in options.batch) or len(set(options.batch)) < len(options.batch):
        raise ConfigError(f"--batch is {' '.join(map(str, options.batch))}; give different numbers, at least 1")
    if not options.precision or len(set(options.precision)) < len(options.precision):
        raise ConfigError("--precision needs one value or several different ones")
    given = (options.net,) if options.net else ()
    nets = fresh_nets(given, ("lraspp_large_d8",), weights=options.weights is not None)
    return replace(options, net=nets[0] if nets else None)


_NOTE = (
    "share: of the rate of the last row above that has none; of a folder or a video, reading, drawing, encoding and "
    "writing overlap with the net"
)


def _table(rates: list[Rate]) -> Table:
    on_gpu = any(rate.memory for rate in rates)
    extra = ("GPU MiB", "of bandwidth\nfloor") if on_gpu else ()
    table = columns("what", "images", "per second", "ms an image", "share", *extra, text=("what",))
    known = {rate.name: rate for rate in rates}
    for rate in rates:
        share = f"{100 * rate.per_second / known[rate.of].per_second:.1f} %" if rate.of else ""
        cells = [rate.name, str(rate.images), f"{rate.per_second:.2f}", f"{1000 / rate.per_second:,.2f}", share]
        if on_gpu:
            cells.append(f"{rate.memory:,.0f}" if rate.memory else "")
            cells.append(f"{100 * rate.floor / rate.times.median:.0f} %" if rate.floor else "")
        table.add_row(*cells)
    return table
