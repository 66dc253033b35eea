"""What fine-tuning will do: a config made of the data, the start and the time, and what to say of it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmv3.config import AdamW, Config, Data, Freeze, Layout, Loss, Schedule
from segmv3.data.check import class_pixels
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.division import Divided
from segmv3.data.facts import Facts, read_pairs
from segmv3.data.sources import layout_of, source_of
from segmv3.errors import ConfigError, DataError
from segmv3.finetuning import Wanted
from segmv3.finetuning.starts import Start, freezes, start_for
from segmv3.models.count import parameters
from segmv3.models.zoo import create_model, net_name
from segmv3.runtime import use_device
from segmv3.training.rehearsal import Pace, rehearse

HELD_OUT = 0.2
"""Share of the frames that is held out where the data set has no val."""

_EVALUATIONS, _LEAST_EVALUATIONS, _PATIENCE = 10, 4, 4
_FOR_SCORES = 0.1  # share of the time that evaluations may take
_FOR_THE_REST = 15.0  # seconds at least: start, the first batches, report; where the plan took longer, as long again
_LEAST_STEPS = 50
_CROP_SHARE = 2 / 3  # of the image's height and width
_MOST_PIXELS = {"cpu": 384 * 768, "cuda": 512 * 1024}  # of a crop
_BATCH = {"cpu": 8, "cuda": 16}


@dataclass(frozen=True)
class Plan:
    """What will be trained, and why."""

    config: Config
    lines: tuple[str, ...]
    """For people: a line for each decision."""


def make_plan(wanted: Wanted, run: Path, tell: Callable[[str, int, int], None] | None = None) -> Plan:
    """Look at the data, choose a start, and measure how many steps fit in the time.

    Raises:
        ConfigError: the time is too short for any training.
        DataError: the data set cannot be trained on.
        CheckpointError: the start that was named cannot be used.
    """
    root, minutes, device, threads = wanted.data, wanted.minutes, wanted.device, wanted.threads
    began, kind = time.monotonic(), use_device(device, threads).type
    data, divided = _data(root, wanted.dataset or layout_of(root))
    train, val = (open_dataset(data, split) for split in ("train", "val"))
    size = _usual_size(train, tell)
    pixels = class_pixels(train)
    if not pixels.any():
        raise DataError(
            f"{root}: no pixel of its {len(train):,} training frames is labelled: there is nothing to learn"
        )
    chosen = start_for(wanted.start, kind, size)
    first = _untimed(data, chosen, pixels, size, kind, threads)
    pace = rehearse(first, run, device=device, threads=threads)
    config, timing = _timed(first, chosen, pace, minutes, _since(began), len(val))
    return Plan(
        config,
        (
            f"data: {train.title}, {len(train):,} frames of {size[1]}x{size[0]} to train on, {len(val):,} to score on",
            *divided,
            f"classes: {_shares(train.classes.names, pixels)}",
            f"start: {chosen.told}",
            *_rows(chosen, train.classes.names),
            f"net: {net_name(config.model)}, {parameters(create_model(config.model, len(train.classes))):,} parameters",
            _recipe(config),
            *timing,
        ),
    )


def _data(root: Path, layout: Layout) -> tuple[Data, tuple[str, ...]]:
    """The data set, with a val made of its training frames where it has none."""
    data = Data(dataset=layout, root=root)
    if source_of(data).find(root, "val").images:
        return data, ()
    divided = Divided(layout=layout, hold_out=HELD_OUT)
    try:
        told = tuple(f"no val there, so {HELD_OUT:.0%} are held out: {text}" for text in divided.told(root))
    except DataError as error:
        reason = str(error.args[0]).partition(";")[0]
        raise DataError(
            f"{root} has no val, and none can be held out: {reason}; add images and labels of val"
        ) from None
    return replace(data, dataset=divided), told


def _usual_size(train: Dataset, tell: Callable[[str, int, int], None] | None) -> tuple[int, int]:
    """The median (height, width) of the images. Raises: DataError for a file that cannot be read."""
    found = read_pairs(train, tell and partial(tell, "look at the frames"))
    sizes = [image.size for image, _ in found if isinstance(image, Facts)]
    if not sizes:
        raise DataError(f"none of the {len(train):,} training images can be read; segmv3 data check shows why")
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def _untimed(
    data: Data,
    start: Start,
    pixels: NDArray[np.int64],
    size: tuple[int, int],
    device: str,
    threads: int | None,
) -> Config:
    """All but the schedule."""
    trained = start.net.pretrained is not None
    workers = 0 if device == "cpu" and threads == 1 else data.workers
    return Config(
        model=start.net,
        data=replace(
            data, batch_size=_BATCH[device], crop_size=_crop(size, device), scale_range=(0.75, 1.5), workers=workers
        ),
        loss=Loss(class_weights=_weights(pixels), auxiliary=0.4 if freezes(start.net) else 0.0),
        optim=AdamW(lr=4e-3 if trained else 8e-3, weight_decay=0.05),
        schedule=Schedule(steps=1000, policy="cosine", min_lr=1e-5),
    )


def _crop(size: tuple[int, int], device: str) -> tuple[int, int]:
    """Two thirds of the image each way, less where that is too much for a step, in multiples of 16."""
    share = min(_CROP_SHARE, math.sqrt(_MOST_PIXELS[device] / (size[0] * size[1])))
    height, width = (max(64, round(side * share / 16) * 16) for side in size)
    return height, width


def _weights(pixels: NDArray[np.int64]) -> tuple[float, ...]:
    """sqrt(median / share), at most 4: the root of SegNet's weights (arXiv 1511.00561)."""
    middle = float(np.median(pixels[pixels > 0]))
    return tuple(round(math.sqrt(middle / max(float(count), middle / 16)), 2) for count in pixels)


def _since(began: float) -> float:
    return time.monotonic() - began


def _timed(
    first: Config, start: Start, pace: Pace, minutes: float, spent: float, images: int
) -> tuple[Config, tuple[str, ...]]:
    """The schedule that fits in the time, of which some is spent, and what to say of it.

    Raises: ConfigError where that is too short for any.
    """
    rest = spent + max(_FOR_THE_REST, spent)
    seconds = 60 * minutes - rest
    affordable = _FOR_SCORES * max(seconds, 0.0) / pace.image  # images scored in all
    evaluations = max(_LEAST_EVALUATIONS, min(_EVALUATIONS, int(affordable // images)))
    scored = min(images, max(10, int(affordable // evaluations)))
    steps = int((seconds - evaluations * scored * pace.image) / pace.step)
    if steps < _LEAST_STEPS:
        needed = (_LEAST_STEPS * pace.step + rest + evaluations * scored * pace.image) / 60
        raise ConfigError(
            f"--minutes {minutes:g} leaves time for {max(0, steps)} steps of {pace.step:.2f} s; "
            f"give at least {math.ceil(10 * needed) / 10:g}"
        )
    every = math.ceil(steps / evaluations)
    data = first.data
    if scored < images:
        whole = Divided(layout=data.dataset) if isinstance(data.dataset, str) else data.dataset
        assert isinstance(whole, Divided)
        data = replace(data, dataset=replace(whole, most=scored))
    schedule = replace(
        first.schedule,
        steps=steps,
        warmup_steps=steps // 20,
        eval_every=every,
        save_every=max(1, every // 2),
        log_every=max(1, min(50, steps // 20)),
        ema=min(0.999, 1 - 13 / steps) if steps > 130 else 0.9,
        patience=_PATIENCE,
    )
    frozen = Freeze()
    if start.net.pretrained and freezes(start.net):
        frozen = Freeze(backbone=32, thaw_at=max(1, steps // 20), thaw_every=max(1, steps // 100))
    return replace(first, data=data, schedule=schedule, freeze=frozen), (
        *_told_freezing(frozen),
        f"scoring: every {every:,} steps on {'all' if scored == images else f'{scored:,} of the'} {images:,} val "
        f"frames ({scored * pace.image:.1f} s); the best weights are kept; {_PATIENCE} scores in a row without a "
        "better one end the training early",
        f"time: {minutes:g} min. A step takes {pace.step:.2f} s ({pace.device}, mean of {pace.steps}), so {steps:,} "
        f"steps fit; {rest:.0f} s are for this plan, the start and the report. The rate falls along these steps",
    )


def _told_freezing(frozen: Freeze) -> tuple[str, ...]:
    if not frozen.backbone:
        return ()
    return (
        f"freezing: the head learns alone for {frozen.thaw_at:,} steps; then the backbone thaws, from its deepest "
        f"stage on, a stage every {frozen.thaw_every:,} steps",
    )


def _recipe(config: Config) -> str:
    data, loss = config.data, config.loss
    assert isinstance(loss, Loss) and isinstance(loss.class_weights, tuple)
    low, high = min(loss.class_weights), max(loss.class_weights)
    return (
        f"training: batch {data.batch_size}, crops of {data.crop_size[1]}x{data.crop_size[0]} at scales "
        f"{data.scale_range[0]:g} to {data.scale_range[1]:g}, AdamW at {config.optim.lr:g}, class weights {low:g} to "
        f"{high:g} (rare classes count more), averaged weights"
    )


def _shares(names: Sequence[str], pixels: NDArray[np.int64]) -> str:
    order = np.argsort(-pixels, kind="stable")
    return ", ".join(f"{names[place]} {pixels[place] / pixels.sum():.1%}" for place in order)


def _rows(start: Start, names: tuple[str, ...]) -> tuple[str, ...]:
    if not start.names:
        return ()
    kept = start.kept(names)
    new = [name for name in names if name not in kept]
    listed = f"{', '.join(kept)} keep what tells them apart" if kept else "no class has the name of one of the data"
    return (f"classes of the start: {listed}; new: {', '.join(new) or 'none'}",)
