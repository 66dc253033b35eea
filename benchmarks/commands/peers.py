"""`segmv3 benchmark peers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmv3.commands.benchmark.shared import (
    Measurement,
    columns,
    measuring,
    milliseconds,
    refuse_repeat,
    refuse_sizes,
)
from segmv3.commands.options import parse
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.peers import Row


@dataclass(frozen=True, kw_only=True)
class Peers(Measurement):
    """Time segmv3 and other projects in the same run: from an image to its labels, uint8 in, uint8 out."""

    size: tuple[tuple[int, int], ...] = ((1024, 2048),)
    """Heights and widths, such as --size 1024 2048 512 1024."""
    weights: str | None = None
    """Trained weights of ours instead of fresh ones."""
    budget: int = 12
    """Seconds for the timed calls of each; a slow one gets fewer, but three."""
    memory: bool = True
    """See how much memory each takes, in a process of its own."""


def run(arguments: list[str]) -> None:
    options = parse(Peers, "segmv3 benchmark peers", arguments)
    refuse_sizes(options.size)
    refuse_repeat(options.budget, "budget")
    if options.weights:
        _refuse_other_classes(options.weights)
    with measuring("peers", options, arguments) as session:
        from benchmarks.peers import implementations, time_peers
        from segmv3.benchmark.pictures import streets

        peers = implementations(session.place, options.weights)
        weights = f", segmv3 with {options.weights}" if options.weights else ""
        with session.progress() as (tell, advance):
            tell("drawing a street")
            pictures = streets(options.size)
            for size in options.size:
                found = time_peers(
                    pictures[size],
                    session.place,
                    options.repeat,
                    peers=peers,
                    budget=options.budget,
                    memory=options.memory,
                    say=lambda text, size=size: tell(f"{size[0]}x{size[1]}: {text}"),  # type: ignore[misc]
                    progress=advance,
                )
                title = f"{size[0]}x{size[1]} image to label map, uint8 to uint8, in turns{weights}"
                session.show(title, _table(found), _note(found))
                session.keep(rows=_facts(found))
        session.finish()


def _refuse_other_classes(weights: str) -> None:
    """Raises: ConfigError for weights of other classes than the peers', CheckpointError for what is no weight file."""
    from segmv3.benchmark.nets import CLASSES
    from segmv3.weights.opening import open_segmenter

    count = len(open_segmenter(weights)[1].names)
    if count != CLASSES:
        raise ConfigError(f"{weights} has {count} classes, the peers have {CLASSES}; name weights with as many")


def _table(rows: list[Row]) -> Table:
    from benchmarks.peers import ratios

    table = columns(
        *("implementation", "version", "calls", "median\nms", "p95\nms"),
        *("times\nour\nbest", "times\nour\nfp32", "peak\nMiB"),
        text=("implementation", "version"),
    )
    ours = ratios(rows)
    for row in rows:
        if row.times is None:
            table.add_row(row.peer.name, *["-"] * 7)  # the reason is too long for a column
            continue
        table.add_row(
            row.peer.name,
            row.version,
            str(len(row.times.seconds)),
            milliseconds(row.times.median),
            milliseconds(row.times.p95),
            *(f"{row.times.median / ours[key]:.2f}" if key in ours else "-" for key in ("best", "fp32")),
            f"{row.memory.peak:,.0f}" if row.memory else "-",
        )
    return table


def _note(rows: list[Row]) -> str:
    lines = [f"{row.peer.name}: {row.version}" for row in rows if row.times is None]
    if before := [row.memory.before for row in rows if row.memory]:
        lines.append(
            f"peak MiB: of a process that opens the net and labels one image; {min(before):,.0f} of them are Python, "
            "torch and segmv3"
        )
    return "\n".join(lines)


def _facts(rows: list[Row]) -> list[dict[str, object]]:
    """For the receipt, of one size."""
    from benchmarks.peers import ratios

    facts = []
    ours = ratios(rows)
    for row in rows:
        found = row.times and {f"times_our_{key}": round(row.times.median / value, 3) for key, value in ours.items()}
        facts.append(row.facts() | (found or {}))
    return facts
