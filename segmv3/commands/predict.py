"""`segmv3 predict`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from segmv3.commands.options import OnDevice, parse
from segmv3.config import Precision


@dataclass(frozen=True, kw_only=True)
class Predict(OnDevice):
    """Label an image, a list of images (.txt), a folder, a glob or a video."""

    source: tyro.conf.Positional[str]
    """What to label."""
    weights: Path
    """Weight file written by a run."""
    output: Path
    """Folder for the results."""
    save: str = "overlay"
    """Comma-separated kinds: overlay (colours over the image, with a legend), color (colours alone), labels
    (grey PNG of train ids)."""
    overwrite: bool = False
    """Replace results of an earlier run."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""


def run(arguments: list[str]) -> None:
    options = parse(Predict, "segmv3 predict", arguments)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from segmv3.prediction import predict_source
    from segmv3.runtime import load

    predict = load(options.weights, threads=options.threads, device=options.device, precision=options.precision)
    console = Console()
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predict", total=None)
        written = predict_source(
            options.source,
            predict,
            predict.classes,
            options.output,
            save=tuple(kind.strip() for kind in options.save.split(",")),
            overwrite=options.overwrite,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    files = "1 file" if len(written) == 1 else f"{len(written):,} files"
    console.print(f"wrote {files} to {options.output}", highlight=False, soft_wrap=True)
