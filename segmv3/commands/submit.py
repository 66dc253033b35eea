"""`segmv3 submit`."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segmv3.commands.options import OnDevice, Output, config_file, parse
from segmv3.config import Data, Model, Precision
from segmv3.errors import ConfigError, Segmv3Error

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from rich.table import Table

    from segmv3.images import UInt8Array
    from segmv3.models.segmenter import Segmenter
    from segmv3.screen import Screen
    from segmv3.submission import DryRun, Target

    Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Submit(OnDevice):
    """Write and check the files for the Cityscapes test server, or only check a zip."""

    model: Model
    data: Data
    weights: Path | None = None
    """Weight file of the net."""
    output: Output = None
    """Folder for the predictions and the zip; the same command goes on where it stopped."""
    split: str | None = None
    """Part of the data set to predict: test by default, val with --dry-run."""
    multi_scale_flip: bool = False
    """Average six scales and their mirror images, as in the mmsegmentation table."""
    dry_run: bool = False
    """Also score what was written by the official script; the split must have ground truth."""
    check: Path | None = None
    """Only check this zip or folder of predictions."""
    overwrite: bool = False
    """Replace predictions that were made with other settings, and the zip."""
    precision: Precision = "fp32"
    """Arithmetic of the net."""


def run(arguments: list[str]) -> None:
    path, config, rest = config_file("submit", arguments)
    options = parse(Submit, f"segmv3 submit {path}", rest, {"model": config.model, "data": config.data})
    _check_flags(options)
    from segmv3.screen import Screen
    from segmv3.submission import open_target

    split = options.split or ("val" if options.dry_run else "test")
    target = open_target(options.data, split)
    console = Screen()
    with console.bars() as tell:
        if options.check:
            _check(options.check, target, tell, console)
        else:
            _submit(options, target, tell, console)


def _check_flags(options: Submit) -> None:
    from segmv3.data.sources import name_of, source_of

    if not source_of(options.data).submits:
        raise ConfigError(f"segmv3 submit needs the Cityscapes layout; data.dataset is {name_of(options.data)!r}")
    given = [flag for flag in ("weights", "output") if getattr(options, flag) is not None]
    if options.check and (given or options.dry_run):
        flag = f"--{given[0]}" if given else "--dry-run"
        raise ConfigError(f"--check only reads what was written; leave {flag} out")
    if not options.check and len(given) < 2:
        raise ConfigError("segmv3 submit needs --weights FILE and --output DIR, or --check ZIP")
    if options.dry_run and options.split == "test":
        raise ConfigError("--dry-run needs ground truth, which 'test' has not; leave --split out for val")


def _check(source: Path, target: "Target", tell: "Tell", console: "Screen") -> None:
    from segmv3.submission import check_submission

    check = check_submission(source, target, progress=partial(tell, "check"))
    ids = ", ".join(map(str, check.ids))
    console.say(f"{source}: {check.files:,} predictions of {target.title} {target.split}, label ids {ids}: complete")


def _submit(options: Submit, target: "Target", tell: "Tell", console: "Screen") -> None:
    from segmv3 import checkpoint
    from segmv3.inference import MULTI_SCALES
    from segmv3.labels import cityscapes_classes
    from segmv3.runtime import use_device
    from segmv3.submission import dry_run, open_truth, write_predictions, write_zip
    from segmv3.weights.opening import open_segmenter

    assert options.weights and options.output
    dataset = open_truth(options.data, target.split) if options.dry_run else None  # before the work, not after it
    device = use_device(options.device, options.threads)
    model, card = open_segmenter(options.weights)
    card = checkpoint.in_order(card, model, cityscapes_classes(), options.weights)
    checkpoint.check_net(card, model, options.model, cityscapes_classes(), options.weights)
    scales = list(MULTI_SCALES) if options.multi_scale_flip else [1.0]
    folder, taken_over = write_predictions(
        target,
        _predictor(model, device, options.precision, options.multi_scale_flip),
        options.output,
        settings={
            "weights_sha256": card.sha256,
            "scales": scales,
            "flip": options.multi_scale_flip,
            "precision": options.precision,
        },
        overwrite=options.overwrite,
        progress=partial(tell, "predict"),
    )
    mode = f"scales {', '.join(f'{scale:g}' for scale in scales)} + flip" if len(scales) > 1 else "single scale"
    earlier = f"; {taken_over:,} of an earlier run verified and kept" if taken_over else ""
    console.say(f"predicted with {mode}, {options.precision}, on {device.type}{earlier}")
    console.say(f"weights {options.weights}, SHA-256 {card.sha256}")
    _check(folder, target, tell, console)
    archive = options.output / f"{target.split}.zip"
    digest = write_zip(folder, archive, overwrite=options.overwrite)
    console.say(f"{archive}: {archive.stat().st_size / 1e6:,.1f} MB, SHA-256 {digest}, read back and equal")
    if dataset:
        result = dry_run(folder, dataset, progress=partial(tell, "official script"))
        console.print(_table(result))
        console.say(
            f"official script: {result.official:.4f} %, segmv3: {result.ours:.4f} % mIoU on {len(dataset):,} images "
            f"of {dataset.title} {dataset.split}, from the written PNGs",
        )
        if abs(result.official - result.ours) > 1e-6:
            raise Segmv3Error("the two scores differ, which they must not: please report this with both numbers")


def _predictor(
    model: "Segmenter", device: "torch.device", precision: "Precision", multi_scale_flip: bool
) -> "Callable[[UInt8Array], UInt8Array]":
    """Image uint8 H x W x 3 to train ids uint8 H x W, by the functions that `segmv3 evaluate` scores."""
    import torch

    from segmv3.evaluation.labelling import multi_scale, single_scale

    net = model.eval().to(device).to(memory_format=torch.channels_last)
    labels_of = multi_scale(net) if multi_scale_flip else single_scale(net)

    def predict(image: "UInt8Array") -> "UInt8Array":
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return labels_of(pixels.contiguous(memory_format=torch.channels_last))[0].cpu().numpy()

    return predict


def _table(result: "DryRun") -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("class", no_wrap=True)
    for column in ("official IoU", "segmv3 IoU"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, official, ours in result.classes:
        table.add_row(name, *("absent" if math.isnan(iou) else f"{iou:.4f}" for iou in (official, ours)))
    table.add_section()
    table.add_row("mean", f"{result.official:.4f}", f"{result.ours:.4f}")
    return table
