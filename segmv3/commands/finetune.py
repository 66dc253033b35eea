"""`segmv3 finetune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import given, parse
from segmv3.config import standalone
from segmv3.finetuning import Wanted


@dataclass(frozen=True, kw_only=True)
class Finetune(Wanted):
    """Fit a net to your labelled frames, in a given time.

    Looks at the data, chooses net, start, crop, batch, rates and freezing, measures a few steps, says the plan and
    follows it. The same command goes on where it was stopped. Nothing is asked.
    """

    data: tyro.conf.Positional[Path]
    """Folder of a data set; without a val, a part of its train is held out."""
    start: Annotated[str | None, tyro.conf.arg(name="from", aliases=["--weights"])] = None
    """Weight file, or a name of `segmv3 weights list`, to start from; by default the best published net for streets,
    and new weights where it cannot be had."""
    run: Path | None = None
    """Folder of the run; by default runs/finetune-NAME. Its config lies beside it, runs/finetune-NAME.py."""
    show_config: bool = False
    """Print the plan's config, a Python file to edit, and stop."""


def run(arguments: list[str]) -> None:
    options = parse(Finetune, "segmv3 finetune", arguments)
    from segmv3.data.sources import layout_of

    if options.dataset is None:
        layout_of(options.data)  # refused before torch is imported
    from segmv3.finetuning.run import finetune, planned, run_folder
    from segmv3.screen import Screen

    if options.show_config:
        config = planned(options, run_folder(options, options.run), Screen(stderr=True))
        print(standalone(config, options.command), end="")
        return
    finetune(options.data, options.run, **given(options, "start", "minutes", "dataset", "device", "threads"))
