"""`segmv3.finetune`: plan, say so, train."""

from pathlib import Path

from segmv3.config import Config, Device, Layout, headline, load_config, standalone
from segmv3.errors import ConfigError
from segmv3.files import make_folder, write_bytes
from segmv3.finetuning import Wanted
from segmv3.finetuning.plan import make_plan
from segmv3.screen import Screen
from segmv3.training.loop import train
from segmv3.training.run import Run, Trained


def finetune(
    data: Path | str,
    run: Path | str | None = None,
    *,
    start: str | None = None,
    minutes: float = 10.0,
    dataset: Layout | None = None,
    device: Device = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> Trained:
    """Fit a net to a few labelled frames, in a given time; or go on with a run where it stopped.

    Net, crop, batch, weights of the classes, rates and freezing follow from the data and the start; the steps from the
    time, by the pace of a few real ones. The plan is said before the training, and kept as a config beside the run.

    Args:
        data: folder of a data set. Without a val, a part of its train is held out.
        run: folder of the run; by default runs/finetune-NAME. Its config is written beside it, NAME.py.
        start: weight file or published name to start from; by default the best published net that can be had.
        minutes: what training, scoring and the report may take together, as measured at the start.
        dataset: its layout; by default what it looks like.
        device: where to train; "auto" takes a GPU when there is one.
        threads: of the CPU; torch's own choice by default.
        quiet: no lines and no progress bar.

    Returns:
        The best score, and where the files are.

    Raises:
        ConfigError: the time is too short, or the folder holds another run.
        DataError, CheckpointError, OutputError: as `segmv3.train`, before anything is written.
    """
    wanted = Wanted(data=Path(data), start=start, minutes=minutes, dataset=dataset, device=device, threads=threads)
    place, screen = run_folder(wanted, run), Screen(quiet=quiet)
    file = place.with_name(f"{place.name}.py")
    if file.exists():
        config = _begun(file, wanted)
        screen.say(f"going on with the plan in {file}")
    else:
        config = planned(wanted, place, screen)
        make_folder(file.parent)
        write_bytes(file, standalone(config, wanted.command).encode())
        screen.say(f"config: {file}, to be edited; the same command goes on where it stops")
    return train(config, place, device=device, threads=threads, quiet=quiet)


def planned(wanted: Wanted, run: Path, screen: Screen) -> Config:
    """The config of a new run, with its reasons on the screen; nothing is written.

    Raises: as `finetune`.
    """
    if Run(run).settings_file.exists():
        raise ConfigError(f"{run} holds a run that has no plan of finetune beside it; choose another --run")
    Run(run).check({})
    with screen.bars() as tell:
        plan = make_plan(wanted, run, tell)
    for line in plan.lines:
        screen.say(line)
    return plan.config


def run_folder(wanted: Wanted, run: Path | str | None) -> Path:
    """The folder of the run, by default one that is called like the data."""
    return Path(run) if run else Path("runs") / f"finetune-{wanted.data.resolve().name}"


def _begun(file: Path, wanted: Wanted) -> Config:
    """The plan of a run that began. Raises: ConfigError where another one was asked for."""
    text = file.read_text(errors="replace").partition("\n")[0]
    if text != headline(wanted.command):
        raise ConfigError(f"{file} is another plan, {text[:200]}; use another --run, or: segmv3 train {file}")
    return load_config(file)
