"""`segmv3 adapt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.adaptation.settings import Adaptation
from segmv3.commands.options import OnDevice, OwnParts, given, parse, refuse_existing, refuse_itself, settings_among


@dataclass(frozen=True, kw_only=True)
class Adapt(Adaptation, OnDevice, OwnParts):
    """Adapt a net to new streets without labels: it learns from what it is sure of there.

    The command goes on where it was stopped. It writes nothing that scores worse on a labelled part than before.
    """

    weights: tyro.conf.Positional[str]
    """Weight file, or name of `segmv3 weights list`."""
    frames: tyro.conf.Positional[str]
    """Frames of the new streets: a folder, a quoted glob, a .txt list of images or a video; or a data set, of which the
    train images are taken, else those of val."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Weight file to write."""
    source: Path | None = None
    """Data set whose labelled train images are learned from as well, so that nothing is forgotten: best the one that
    the net was trained on."""
    labelled: Path | None = None
    """Data set whose val part is scored before and after. By default that of FRAMES, where it is a data set."""
    run: Path | None = None
    """Folder for the work. [runs/adapt-NAME]"""
    overwrite: bool = False
    """Replace the output file."""


def run(arguments: list[str]) -> None:
    """Adapt a net and print what was measured before and after.

    Args:
        arguments: what follows the name of the command.

    Raises:
        Segmv3Error: weights, frames or flags that cannot be used, and a net that got worse.
    """
    options = parse(Adapt, "segmv3 adapt", arguments)
    settings = settings_among(options, Adaptation)
    refuse_existing(options.output, options.overwrite)
    refuse_itself(options.output, options.weights, "the net itself")
    options.import_parts()
    from segmv3.adaptation.run import adapt
    from segmv3.data.listing import count_of
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as progress:
        adapted = adapt(
            options.weights,
            options.frames,
            options.output,
            settings=settings,
            progress=progress,
            quiet=False,
            **given(options, "source", "labelled", "run", "device", "threads"),
        )
    for name, now in adapted.after.items():
        if name in adapted.before:
            before = adapted.before[name]
            worse = now > before if name == "flicker" else now < before
            console.say(
                f"{_NAMES[name]}: {before:.2f} % before, {now:.2f} % after{', which is worse' if worse else ''}"
            )
    console.say(f"wrote {adapted.weights}: adapted to {count_of(adapted.frames, 'frame', 'frames')}")


_NAMES = {
    "labelled": "mIoU on the labelled part",
    "source": "mIoU on val of --source",
    "agreement": "agreement of one look with several sizes and mirrored (trained for, so no proof that it is right)",
    "flicker": "flicker of what does not move",
}
