"""`segmv3 benchmark decode`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from segmv3.commands.benchmark.shared import Measurement, columns, measuring, milliseconds, refuse_repeat, refuse_sizes
from segmv3.commands.options import parse
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.decode import Case, Timing
    from segmv3.benchmark.timing import Times


@dataclass(frozen=True, kw_only=True)
class Decode(Measurement):
    """Time the way from low-resolution logits to a label map, on the CPU: ours, and torch's interpolate and argmax."""

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
    if options.device == "cuda":
        raise ConfigError("decode is timed on the CPU only; leave --device cuda out")
    with measuring("decode", replace(options, device="cpu"), arguments) as session:
        from benchmarks.decode import cases, time_decoders

        with session.progress() as (tell, advance):
            tell("making logits")
            for case in cases(options.size, options.classes):
                tell(f"timing, {case.title} logits")
                timings = time_decoders(case, options.repeat, progress=advance)
                reasons = "\n".join(f"{timing.name}: {timing.reason}" for timing in timings if not timing.times)
                session.show(_title(case, options.repeat), _table(timings), reasons)
                session.keep(rows=[_facts(case, timing, timings[0]) for timing in timings])
        session.finish()


def _title(case: Case, repeat: int) -> str:
    _, classes, height, width = case.logits.shape
    return (
        f"{case.title} logits, {classes} x {height} x {width} to labels of {case.size[0]}x{case.size[1]}; {repeat} "
        "calls each, in turns; the labels are equal"
    )


def _table(timings: list[Timing]) -> Table:
    table = columns("implementation", "median ms", "p95 ms", "times ours", text=("implementation",))
    for timing in timings:
        numbers = ["-"] * 3
        if timing.times:
            ratio = f"{_ratio(timing.times, timings[0]):.1f}"
            numbers = [milliseconds(timing.times.median), milliseconds(timing.times.p95), ratio]
        table.add_row(timing.name, *numbers)
    return table


def _ratio(times: Times, ours: Timing) -> float:
    assert ours.times  # what ails ours is raised
    return times.median / ours.times.median


def _facts(case: Case, timing: Timing, ours: Timing) -> dict[str, Any]:
    facts = {"logits": case.title, "shape": list(case.logits.shape), "size": list(case.size), "name": timing.name}
    if not timing.times:
        return facts | {"reason": timing.reason}
    return facts | timing.times.facts() | {"times_ours": round(_ratio(timing.times, ours), 3)}
