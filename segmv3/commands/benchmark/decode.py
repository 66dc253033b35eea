"""`segmv3 benchmark decode`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segmv3.commands.benchmark.shared import Measurement, columns, measuring, milliseconds, refuse_repeat, refuse_sizes
from segmv3.commands.options import parse
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from segmv3.benchmark.decode import Case, Timing


@dataclass(frozen=True, kw_only=True)
class Decode(Measurement):
    """Time the way from low-resolution logits to a label map: ours, and torch's interpolate and argmax."""

    size: tuple[int, int] = (1024, 2048)
    """Height and width of the label map, at least 64 128."""
    classes: int = 19
    """Of the logits."""


def run(arguments: list[str]) -> None:
    options = parse(Decode, "segmv3 benchmark decode", arguments)
    refuse_sizes([options.size])
    refuse_repeat(options.classes, "classes")
    if options.classes > 256:
        raise ConfigError(f"--classes is {options.classes}; a label map holds at most 256")
    with measuring("decode", options, arguments) as session:
        from segmv3.benchmark.decode import cases, time_decoders

        rows = []
        with session.progress() as (tell, _):
            tell("making logits")
            for case in cases(options.size, options.classes):
                tell(f"timing, {case.title} logits")
                timings = time_decoders(case, options.repeat)
                session.show(_title(case, options.repeat), _table(timings))
                rows += [_facts(case, timing) for timing in timings]
        session.finish(rows=rows)


def _title(case: Case, repeat: int) -> str:
    _, classes, height, width = case.logits.shape
    return (
        f"{case.title} logits, {classes} x {height} x {width} to labels of {case.size[0]}x{case.size[1]}; {repeat} "
        "calls each, in turns; the labels are equal"
    )


def _table(timings: list[Timing]) -> Table:
    table = columns("implementation", "median ms", "p95 ms", "times ours", text=("implementation",))
    for timing in timings:
        if not timing.seconds:
            table.add_row(f"{timing.name}: {timing.reason}", "-", "-", "-")
            continue
        numbers = (milliseconds(timing.median), milliseconds(timing.p95), f"{timing.ratio:.1f}")
        table.add_row(timing.name, *numbers)
    return table


def _facts(case: Case, timing: Timing) -> dict[str, Any]:
    from segmv3.benchmark.timing import Times

    facts = {"logits": case.title, "shape": list(case.logits.shape), "size": list(case.size), "name": timing.name}
    if not timing.seconds:
        return facts | {"reason": timing.reason}
    ratio = None if math.isnan(timing.ratio) else round(timing.ratio, 3)
    return facts | Times(timing.seconds).facts() | {"times_ours": ratio}
