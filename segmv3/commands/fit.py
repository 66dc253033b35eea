"""`segmv3 fit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import OnDevice, given, parse, refuse_existing, refuse_itself, settings_among
from segmv3.fitting.settings import Fitting


@dataclass(frozen=True, kw_only=True)
class Fit(Fitting, OnDevice):
    """Narrow a trained net, layer after layer, until it is fast enough on this machine.

    Each step tries narrower layers, fine-tunes them briefly and keeps the one that loses least for the time it saves.
    The command goes on where it was stopped.
    """

    config: tyro.conf.Positional[Path]
    """Config file that the net is fine-tuned by, of `segmv3 train` or `segmv3 classify train`."""
    weights: str
    """Weight file of the net, or name of `segmv3 weights list`."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Weight file to write."""
    run: Path | None = None
    """Folder for the work. [runs/fit-NAME]"""
    overwrite: bool = False
    """Replace the output file."""


def run(arguments: list[str]) -> None:
    """Fit a net and print what it lost and won.

    Args:
        arguments: what follows the name of the command.

    Raises:
        Segmv3Error: a config, weights, a budget or flags that cannot be used, and a busy machine.
    """
    options = parse(Fit, "segmv3 fit", arguments)
    settings = settings_among(options, Fitting)
    refuse_existing(options.output, options.overwrite)
    refuse_itself(options.output, options.weights, "the net itself")
    from segmv3.fitting.run import fit
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as progress:
        fitted = fit(
            options.config,
            options.weights,
            options.output,
            settings,
            progress=progress,
            say=console.say,
            **given(options, "run", "device", "threads"),
        )
    saved = 100 * (1 - fitted.latency / fitted.latency_before)
    console.say(f"score: {fitted.score_before:.2f} % before, {fitted.score:.2f} % now")
    console.say(
        f"latency: {fitted.latency_before:.2f} ms before, {fitted.latency:.2f} ms now ({saved:.0f} % less), measured "
        f"with {options.runtime}"
    )
    if fitted.latency > options.budget_ms:
        console.say(
            f"that is above the budget of {options.budget_ms:g} ms, for the table is off by up to "
            f"{fitted.table_error:.1f} %; fit again with a smaller --budget-ms"
        )
    console.say(f"wrote {fitted.weights} and {fitted.page}")
