"""`segmv3 benchmark throughput`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from segmv3.commands.benchmark.latency import Arithmetic, Backend
from segmv3.commands.benchmark.shared import Measurement, columns, measuring, refuse_repeat, refuse_sizes
from segmv3.commands.options import parse
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from segmv3.benchmark.throughput import Rate


@dataclass(frozen=True, kw_only=True)
class Throughput(Measurement):
    """Images per second: batches, a folder on disk, and a video with reading, drawing and encoding."""

    repeat: int = 3
    """Timed passes of each."""
    weights: str | None = None
    """A weight file, an exported file or a published name. Without: fresh weights, of --net."""
    net: str = "lraspp_large_d8"
    """A named net, with fresh weights."""
    size: tuple[int, int] = (1024, 2048)
    """Height and width."""
    backend: Backend = "auto"
    """Runtime; auto is the fastest."""
    precision: tuple[Arithmetic, ...] = ("auto",)
    """Arithmetic of the net; auto is the fastest."""
    batch: tuple[int, ...] = (1, 4, 8, 16)
    """Images of a batch."""
    images: int = 16
    """In the folder."""
    frames: int = 48
    """Of the video."""


def run(arguments: list[str]) -> None:
    options = parse(Throughput, "segmv3 benchmark throughput", arguments)
    _check(options)
    with measuring("throughput", options, arguments) as session:
        from segmv3.benchmark.floor import work_of
        from segmv3.benchmark.latency import Case
        from segmv3.benchmark.pictures import streets
        from segmv3.benchmark.throughput import time_batches, time_folder, time_video
        from segmv3.models.zoo import net

        found = []
        with session.progress() as (tell, advance):
            tell("drawing a street")
            picture = streets([options.size])[options.size]
            work = None if options.weights else work_of(net(options.net), options.size)
            for precision in options.precision:
                trained = options.weights is not None
                case = Case(options.weights or options.net, trained, options.size, options.backend, precision)
                tell(f"opening {case.net}")
                predict = case.open(picture, session.place)
                folder = session.place.folder / precision
                rates: list[Rate] = []
                if options.batch:
                    tell("batches")
                    rates += time_batches(predict, picture, options.batch, options.repeat, work=work, progress=advance)
                tell("folder")
                rates += time_folder(
                    predict,
                    picture,
                    folder / "folder",
                    options.repeat,
                    images=options.images,
                    progress=advance,
                )
                if find_spec("av"):
                    tell("video")
                    rates += time_video(
                        predict,
                        picture,
                        folder / "video",
                        options.repeat,
                        frames=options.frames,
                        progress=advance,
                    )
                title = f"{case.net} {options.size[0]}x{options.size[1]}, {predict.backend} {predict.precision}"
                session.show(title, _table(rates), _NOTE)
                facts = {"net": case.net, "backend": predict.backend, "precision": predict.precision}
                found.append(facts | {"rates": [rate.facts() for rate in rates]})
        if not find_spec("av"):
            session.say('no video was timed: that needs the package av; pip install "segmv3[video]"')
        session.finish(results=found)


def _check(options: Throughput) -> None:
    refuse_sizes([options.size])
    for flag in ("images", "frames"):
        refuse_repeat(getattr(options, flag), flag)
    if any(batch < 1 for batch in options.batch) or len(set(options.batch)) < len(options.batch):
        raise ConfigError(f"--batch is {' '.join(map(str, options.batch))}; give different numbers, at least 1")
    if not options.precision or len(set(options.precision)) < len(options.precision):
        raise ConfigError("--precision needs one value or several different ones")
    if options.weights and options.net != Throughput().net:
        raise ConfigError("--weights and --net exclude each other; a named net has fresh weights")
    if not options.weights:
        from segmv3.models.zoo import net

        net(options.net)


_NOTE = "of a folder or a video, reading, drawing, encoding and writing overlap with the net"


def _table(rates: list[Rate]) -> Table:
    on_gpu = any(rate.memory for rate in rates)
    extra = ("GPU MiB", "of bandwidth floor") if on_gpu else ()
    table = columns(
        *("what", "images", "per second", "ms an image", "share", "of", *extra),
        text=("what", "of"),
    )
    known = {rate.name: rate for rate in rates}
    for rate in rates:
        share = f"{100 * rate.per_second / known[rate.of].per_second:.1f} %" if rate.of else ""
        cells = [
            rate.name,
            str(rate.images),
            f"{rate.per_second:.2f}",
            f"{1000 / rate.per_second:,.2f}",
            share,
            rate.of,
        ]
        if on_gpu:
            cells.append(f"{rate.memory:,.0f}" if rate.memory else "")
            cells.append(f"{100 * rate.floor / rate.times.median:.0f} %" if rate.floor else "")
        table.add_row(*cells)
    return table
