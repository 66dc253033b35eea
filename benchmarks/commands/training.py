"""`segmv3 benchmark training`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from segmv3.commands.benchmark.shared import (
    Measurement,
    columns,
    measuring,
    milliseconds,
    refuse_repeat,
    refuse_sizes,
)
from segmv3.commands.options import parse
from segmv3.config import TrainingPrecision
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.training import Row
    from segmv3.benchmark.nets import Place


@dataclass(frozen=True, kw_only=True)
class Training(Measurement):
    """Images per second of whole training steps on crops held on the device, beside other projects' plain loops."""

    net: tuple[str, ...] = ()
    """Named nets. Without: lraspp_large_d8 lraspp_small_d8; on a GPU lraspp_large_d8 and both of mmsegmentation's."""
    size: tuple[tuple[int, int], ...] = ()
    """Heights and widths of the crops. Without: 360 480; on a GPU 512 1024."""
    batch: tuple[int, ...] = ()
    """Crops of a step. Without: 8; on a GPU 16 and 4."""
    precision: tuple[TrainingPrecision, ...] = ()
    """Arithmetic of our steps; the plain loops are fp32. Without: fp32; on a GPU bf16."""
    compile: tuple[Literal["off", "on"], ...] = ()
    """Whether torch.compile makes our steps. Without: off; on a GPU off and on."""
    recompute: tuple[Literal["off", "on"], ...] = ("off",)
    """Whether layers run again in the backward pass, to need less memory; never in compiled steps."""
    peers: bool = True
    """Time torchvision's LR-ASPP and mmsegmentation's net in plain loops, too."""
    budget: int = 20
    """Seconds for the timed steps of each; a slow one gets fewer, but three."""
    memory: bool = True
    """See how much memory each takes, on a CPU in a process of its own."""


def run(arguments: list[str]) -> None:
    options = parse(Training, "segmv3 benchmark training", arguments)
    _check(options)
    with measuring("training", options, arguments) as session:
        from benchmarks.training import cases, time_steps

        options = _filled(options, session.place)
        with session.progress() as (tell, advance):
            for size in options.size:
                for batch in options.batch:
                    what = f"{size[0]}x{size[1]}, batch {batch}"
                    ways = [[value == "on" for value in flag] for flag in (options.compile, options.recompute)]
                    rows = time_steps(
                        cases(options.net, size, batch, options.precision, *ways, peers=options.peers),
                        session.place,
                        options.repeat,
                        budget=options.budget,
                        memory=options.memory,
                        say=lambda text, what=what: tell(f"{what}: {text}"),  # type: ignore[misc]
                        progress=advance,
                    )
                    session.show(f"a training step of {what}, 19 classes, in turns", _table(rows), _note(rows))
                    session.keep(rows=_facts(rows))
        session.finish()


def _check(options: Training) -> None:
    from segmv3.models.zoo import net

    for name in options.net:
        net(name)
    if options.size:
        refuse_sizes(options.size)
    refuse_repeat(options.budget, "budget")
    if any(batch < 1 for batch in options.batch):
        raise ConfigError(f"--batch is {' '.join(map(str, options.batch))}; each must be at least 1")
    for flag in ("net", "batch", "precision", "compile", "recompute"):
        if len(set(getattr(options, flag))) < len(getattr(options, flag)):
            raise ConfigError(f"--{flag} names one twice")
    if options.recompute == ("on",) and options.compile == ("on",):
        raise ConfigError("--recompute on needs --compile off")


def _filled(options: Training, place: Place) -> Training:
    """With what suits the device where nothing was asked for."""
    on_gpu = place.device == "cuda"
    if "fp16" in options.precision and not on_gpu:
        raise ConfigError("--precision fp16 trains on a GPU only; use bf16 or fp32")
    nets = ("lraspp_large_d8", "lraspp_small_d8")
    if on_gpu:
        nets = ("lraspp_large_d8", "lraspp_large_d8_mmseg", "lraspp_small_d8_mmseg")  # type: ignore[assignment]
    return replace(
        options,
        net=options.net or nets,
        size=options.size or (((512, 1024),) if on_gpu else ((360, 480),)),
        batch=options.batch or ((16, 4) if on_gpu else (8,)),
        precision=options.precision or (("bf16",) if on_gpu else ("fp32",)),
        compile=options.compile or (("off", "on") if on_gpu else ("off",)),
    )


def _table(rows: list[Row]) -> Table:
    from benchmarks.training import baselines

    table = columns(
        *("implementation", "steps", "median\nms", "p95\nms", "images\n/ s", "times\nplain"),
        *("peak\nMiB", "floor\n%", "hours\n320k"),
        text=("implementation",),
    )
    plain = baselines(rows)
    for row in rows:
        if row.times is None:
            table.add_row(row.case.name, *["-"] * 8)  # the reason is too long for a column
            continue
        table.add_row(
            row.case.name,
            str(len(row.times.seconds)),
            milliseconds(row.times.median),
            milliseconds(row.times.p95),
            f"{row.images_per_second:,.1f}",
            f"{row.images_per_second / plain[row.case]:.2f}" if row.case in plain else "-",
            f"{row.memory:,.0f}" if row.memory else "-",
            f"{100 * row.share:.0f}" if row.share else "-",
            f"{row.hours:,.1f}",
        )
    return table


def _note(rows: list[Row]) -> str:
    return "\n".join(
        [
            *(f"{row.case.name}: {row.reason}" for row in rows if row.times is None),
            "times plain: images per second against the fastest plain loop (fp32) with a net of the same kind",
            "floor: the share that three forward passes of the convolutions alone would take, at the speed of a matrix "
            "product or of a copy in memory; hours: 320,000 such steps",
        ]
    )


def _facts(rows: list[Row]) -> list[dict[str, object]]:
    """For the receipt, of one size and batch."""
    from benchmarks.training import baselines

    plain = baselines(rows)
    facts = []
    for row in rows:
        ratio = {"times_plain": round(row.images_per_second / plain[row.case], 3)} if row.case in plain else {}
        facts.append(row.facts() | ratio)
    return facts
