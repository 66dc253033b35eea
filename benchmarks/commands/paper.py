"""`segmv3 benchmark paper`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmv3.commands.benchmark.shared import Measurement, columns, measuring, milliseconds, refuse_odd, refuse_sizes
from segmv3.commands.options import parse
from segmv3.config import AnyBackend, AnyPrecision

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.paper import Finding, Row


@dataclass(frozen=True, kw_only=True)
class Paper(Measurement):
    """Time the nets of the MobileNetV3 paper, and set its claims about speed beside what is found here."""

    repeat: int = 10
    """Timed calls of each, at full and at half size."""
    size: tuple[int, int] = (1024, 2048)
    """Height and width of the full size, even."""
    backend: AnyBackend = "auto"
    """Runtime; auto is the fastest that is installed."""
    precision: AnyPrecision = "fp32"
    """Arithmetic of the nets; the paper's is fp32."""


def run(arguments: list[str]) -> None:
    options = parse(Paper, "segmv3 benchmark paper", arguments)
    refuse_sizes([options.size])
    refuse_odd(options.size, "its half is timed too")
    height, width = options.size
    with measuring("paper", options, arguments) as session:
        from benchmarks.paper import findings, time_nets
        from segmv3.benchmark.pictures import streets

        sizes = [(height, width), (height // 2, width // 2)]
        with session.progress() as (tell, advance):
            tell("drawing a street")
            pictures = streets(sizes)
            rows = time_nets(
                [pictures[size] for size in sizes],
                session.place,
                options.repeat,
                backend=options.backend,
                precision=options.precision,
                say=tell,
                progress=advance,
            )
        found = findings(rows)
        session.keep(rows=[row.facts() for row in rows], claims=[finding.facts() for finding in found])
        session.show(
            "milliseconds of the net alone, median and p95; to labels: image to label map at full size, median",
            _nets(rows),
            "paper: arXiv 1905.02244, one big core of a Pixel 3, 1024x2048 and 512x1024",
        )
        notes = "; ".join(f"{one.claim.title}: {one.claim.note}" for one in found if one.claim.note)
        session.show("time of the first as a share of the second's", _claims(found), notes)
        session.finish()


def _nets(rows: list[Row]) -> Table:
    from benchmarks.paper import SECONDS

    full, half = (f"{height}x{width}" for height, width in rows[0].times)
    table = columns(
        *("net", full, "p95", half, "p95", "half /\nfull", "to\nlabels", "paper\nms", "paper\nhalf /\nfull"),
        text=("net",),
    )
    for row in rows:
        big, small = row.times.values()
        paper = SECONDS[row.net]
        table.add_row(
            row.net,
            milliseconds(big.median),
            milliseconds(big.p95),
            milliseconds(small.median),
            milliseconds(small.p95),
            f"{small.median / big.median:.3f}",
            milliseconds(next(iter(row.labelling.values())).median),
            milliseconds(paper[0]),
            f"{paper[1] / paper[0]:.3f}",
        )
    return table


def _claims(found: list[Finding]) -> Table:
    table = columns("claim", "paper,\nfull", "here,\nfull", "paper,\nhalf", "here,\nhalf", text=("claim",))
    for one in found:
        pairs = zip(one.paper, one.here, strict=True)
        table.add_row(one.claim.title, *(f"{value:.3f}" for pair in pairs for value in pair))
    return table
