"""`segmv3 benchmark video`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from segmv3.commands.benchmark.shared import Measurement, columns, measuring
from segmv3.commands.options import Trusting, parse
from segmv3.config import AnyBackend, AnyPrecision
from segmv3.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.video import Rate
    from segmv3.benchmark.nets import Place
    from segmv3.runtime import Predictor


@dataclass(frozen=True, kw_only=True)
class Video(Measurement, Trusting):
    """Time predict on a video, with reading, drawing and encoding, against the net alone."""

    clip: tyro.conf.Positional[Path]
    """A short video; its frames are kept in memory."""
    weights: str
    """A weight file, an exported file or a published name."""
    repeat: int = 5
    """Timed passes of each."""
    backend: AnyBackend = "auto"
    """Runtime; auto is the fastest."""
    precision: AnyPrecision = "auto"
    """Arithmetic of the net; auto is the fastest."""
    ultralytics: Path | None = None
    """Python of an environment that has the package ultralytics: its own predict then takes turns."""


def run(arguments: list[str]) -> None:
    options = parse(Video, "segmv3 benchmark video", arguments)
    for path in filter(None, (options.clip, options.ultralytics)):
        if not path.is_file():
            raise DataError(f"{path} does not exist")
    with measuring("video", options, arguments) as session:
        from benchmarks.video import time_clip
        from segmv3.benchmark.nets import open_weights

        with session.progress() as (tell, advance):
            tell("opening the net and timing")
            nets: list[Predictor] = []

            def opened(place: Place) -> Predictor:
                """The net; a second time with the same runtime and arithmetic."""
                how = (nets[0].backend, nets[0].precision) if nets else (options.backend, options.precision)
                nets.append(open_weights(options.weights, *how, place))  # type: ignore[arg-type]
                return nets[-1]

            rates = time_clip(
                options.clip.resolve(),
                opened,
                session.place,
                options.repeat,
                ultralytics=options.ultralytics and options.ultralytics.absolute(),
                progress=advance,
            )
            session.show(f"{options.clip.name}, {nets[0].backend} {nets[0].precision}", _table(rates), _NOTE)
            session.keep(rates=[{"name": rate.name, "frames": rate.frames, "seconds": rate.costs} for rate in rates])
        session.finish()


_NOTE = (
    "share: of the frame rate of the net alone, one frame at a time; CPU share: the same by CPU time of all threads, "
    "which a busy machine changes less"
)


def _table(rates: list[Rate]) -> Table:
    table = columns("what", "frames a second", "ms a frame", "share", "CPU ms a frame", "CPU share", text=("what",))
    for rate in rates:
        wall, cpu = rate.milliseconds("wall"), rate.milliseconds("cpu")
        shares = [f"{rates[0].milliseconds(clock) / rate.milliseconds(clock):.0%}" for clock in ("wall", "cpu")]
        share, of_cpu = shares if rate is not rates[0] else ("", "")
        table.add_row(rate.name, f"{1000 / wall:.1f}", f"{wall:.1f}", share, f"{cpu:.1f}", of_cpu)
    return table
