"""`segmv3 evaluate`."""

import json
from dataclasses import dataclass
from pathlib import Path

import segmv3
from segmv3.commands.options import config_file, parse, refuse_existing, refuse_limit
from segmv3.config import Data, Device, Model, Precision
from segmv3.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score weights on a split, at the size of its ground truth."""

    model: Model
    data: Data
    weights: Path
    """Weight file written by a run."""
    multi_scale_flip: bool = False
    """Average six scales and their mirror images, as in the mmsegmentation table."""
    split: str = "val"
    """Part of the data set to score."""
    limit: int | None = None
    """Score only the first N images."""
    output: Path | None = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the file that --output names."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""
    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


def run(arguments: list[str]) -> None:
    path, config, rest = config_file("evaluate", arguments)
    options = parse(
        Evaluate,
        f"segmv3 evaluate {path}",
        rest,
        {"model": config.model, "data": config.data},
    )
    output = options.output
    if output:
        refuse_existing(output, options.overwrite)
    from rich.console import Console
    from rich.progress import Progress

    from segmv3 import checkpoint
    from segmv3.data.datasets import open_dataset
    from segmv3.evaluation import evaluate, multi_scale, scores, single_scale
    from segmv3.files import make_folder, write_bytes
    from segmv3.report.tables import scores_table, summary
    from segmv3.runtime import use_device
    from segmv3.weights.opening import open_segmenter

    device = use_device(options.device, options.threads)
    dataset = open_dataset(options.data, options.split)
    model, card = open_segmenter(options.weights)
    checkpoint.check_net(card, model, options.model, dataset.classes, options.weights)
    refuse_limit(options.limit)
    if output:
        make_folder(output.parent)
    count = min(options.limit or len(dataset), len(dataset))
    mode = multi_scale if options.multi_scale_flip else single_scale
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"evaluate {options.split}", total=count)
        confusion = evaluate(
            mode(model.to(device)),
            dataset,
            device=device,
            precision=options.precision,
            indices=range(count),
            progress=lambda done, _: progress.update(bar, completed=done),
        )
    if not confusion.matrix.any():
        raise DataError(f"no pixel of '{options.split}' is labelled: there is nothing to score")
    result = scores(confusion, dataset, images=count, multi_scale_flip=options.multi_scale_flip)
    result |= {
        "config": str(path),
        "weights": str(options.weights),
        "weights_sha256": card.sha256,
        "precision": options.precision,
        "device": device.type,
        "segmv3": segmv3.__version__,
    }
    console.print(scores_table(result))
    console.print(summary(result), highlight=False, soft_wrap=True)
    console.print(f"weights {options.weights}, SHA-256 {card.sha256}", highlight=False, soft_wrap=True)
    if output:
        write_bytes(output, json.dumps(result, indent=2).encode())
