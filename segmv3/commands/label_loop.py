"""`segmv3 data next` and `segmv3 data suspects`: what to label next, and which labels to look at again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import OnDevice, OwnParts, Trusting, given, parse
from segmv3.config import Config, Data, Layout, load_config
from segmv3.selection.settings import Settings

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class _OnData(OnDevice):
    dataset: Layout | None = None
    """Layout of the labelled data on disk; by default what the folder looks like. See data/README.md."""


@dataclass(frozen=True, kw_only=True)
class Next(Settings, _OnData, OwnParts):
    """Choose the unlabelled frames to label next: those that the net is unsure of and that differ from each other.

    Writes next.txt, a list that segmv3 predict takes, and the page next.html.
    """

    pool: tyro.conf.Positional[str]
    """The unlabelled frames: images or a video file, as segmv3 predict takes them."""
    weights: str
    """Weight file, or name of `segmv3 weights list`. An exported file has no features to compare frames by."""
    output: Output
    """Folder for the results."""
    labelled: Path | None = None
    """What is labelled already, a data set's folder or a config (.py): left out, and the choice differs from it."""


@dataclass(frozen=True, kw_only=True)
class Suspects(_OnData, Trusting):
    """List the labels that look wrong: the net denies a class there that it knows everywhere else.

    Writes suspects.txt (the images), suspects.csv and the page suspects.html.
    """

    source: tyro.conf.Positional[Path]
    """Folder of a data set, or a config file (.py)."""
    weights: str
    """Weight file, or a file that segmv3 export wrote. A net that was trained on a wrong label may have learned it."""
    output: Output
    """Folder for the results."""
    split: str = "train"
    """Part of the data set to look at."""
    count: int = 50
    """Suspects at most, the largest first."""
    overwrite: bool = False
    """Replace an earlier list there."""


def run_next(arguments: list[str]) -> None:
    options = parse(Next, "segmv3 data next", arguments)
    options.refuse_odd()
    options.import_parts()
    labelled = _data_of(options.labelled, options.dataset) if options.labelled else None
    from segmv3.screen import Screen
    from segmv3.selection.choosing import select_frames

    console = Screen()
    with console.bars() as progress:
        taken = given(options, "output", "device", "threads")
        chosen = select_frames(options.pool, options.weights, options, labelled=labelled, progress=progress, **taken)
    if chosen.left_out:
        counts = ", ".join(f"{count:,} {what}" for what, count in chosen.left_out.items())
        console.say(f"left out of the pool: {counts}")
    of = f"{len(chosen.frames):,} of {chosen.ranked:,} frames, beside {chosen.labelled:,} labelled ones"
    console.say(f"chose {of}: {' and '.join(map(str, chosen.files))}")


def run_suspects(arguments: list[str]) -> None:
    options = parse(Suspects, "segmv3 data suspects", arguments)
    data = _data_of(options.source, options.dataset)
    from segmv3.data.listing import count_of
    from segmv3.evaluation.suspects import find_suspects
    from segmv3.screen import Screen

    console = Screen()
    with console.bars() as progress:
        taken = given(options, "split", "count", "output", "overwrite", "device", "threads", "trust")
        suspects = find_suspects(data, options.weights, progress=progress, **taken)
    images = count_of(len({each.name for each in suspects}), "image", "images")
    found = count_of(len(suspects), "label", "labels")
    console.say(f"{options.output}: {found} in doubt in {images} of {options.split}")
    for each in suspects[:5]:
        console.say(f"  {each.name}: labelled {each.truth}, predicted {each.predicted} ({each.pixels:,} pixels)")


def _data_of(path: Path, layout: Layout | None) -> Config | Data:
    """A config, or the data set in a folder."""
    if path.suffix == ".py":
        return load_config(path)
    from segmv3.data.sources import data_in

    return data_in(path, layout)
