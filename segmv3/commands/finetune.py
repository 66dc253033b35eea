"""`segmv3 finetune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import OnDevice, parse
from segmv3.config import Layout, standalone


@dataclass(frozen=True, kw_only=True)
class Finetune(OnDevice):
    """Fit a net to your labelled frames, in a given time.

    Looks at the data, chooses net, start, crop, batch, rates and freezing, measures a few steps, says the plan and
    follows it. The same command goes on where it was stopped. Nothing is asked.
    """

    data: tyro.conf.Positional[Path]
    """Folder of a data set; without a val, a part of its train is held out."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Weight file, or a name of `segmv3 weights list`, to start from; by default the best published net for streets,
    and new weights where it cannot be had."""
    minutes: float = 10.0
    """Time for all of it; the steps that fit are measured at the start."""
    run: Path | None = None
    """Folder of the run; by default runs/finetune-NAME. Its config lies beside it, runs/finetune-NAME.py."""
    dataset: Layout | None = None
    """Layout on disk; by default what the folder looks like. See data/README.md."""
    show_config: bool = False
    """Print the plan's config, a Python file to edit, and stop."""


def run(arguments: list[str]) -> None:
    options = parse(Finetune, "segmv3 finetune", arguments)
    from segmv3.finetuning.run import command, finetune, planned, run_folder
    from segmv3.screen import Screen

    if options.show_config:
        config = planned(
            options.data,
            run_folder(options.data, options.run),
            start=options.start,
            minutes=options.minutes,
            layout=options.dataset,
            device=options.device,
            threads=options.threads,
            screen=Screen(stderr=True),
        )
        print(standalone(config, command(options.data, options.start, options.minutes, options.dataset)), end="")
        return
    finetune(
        options.data,
        options.run,
        start=options.start,
        minutes=options.minutes,
        layout=options.dataset,
        device=options.device,
        threads=options.threads,
    )
