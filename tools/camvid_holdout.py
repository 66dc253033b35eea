"""CamVid with one whole drive held out: python tools/camvid_holdout.py data/camvid data/camvid-0006R0 [--drive 0006R0]

All of CamVid's val is one clip of a drive that is also in train, so that its scores flatter. Here val is a drive that
training never sees: the frames of train whose names begin with it. The other frames of train stay train; the val part
as published is left out. The new folder has the same layout and links to the files of the old one.

--drive all makes one folder for each drive in the new one: leave-one-drive-out (docs/results/generalisation.md).

--frames 50 makes the few frames of docs/results/fine-tuning.md instead: train is a seeded draw from the other drives,
val stays as published, and the drive is a split of its own (segmv3 evaluate --split drive).
"""

import argparse
import random
import shutil
import sys
from pathlib import Path

import numpy as np

from segmv3.config import Data
from segmv3.data.check import class_pixels
from segmv3.data.datasets import open_dataset
from segmv3.errors import ConfigError, OutputError, Segmv3Error


def hold_out(source: Path, target: Path, drive: str, count: int | None = None, seed: int = 0) -> dict[str, int]:
    """Make `target` from the train part of `source`; returns the number of frames of each new split.

    Args: count: frames to draw for train; None takes all, and the drive as val. seed: of the draw.
    Raises: DataError, ConfigError, OutputError. A target is there as a whole or not at all.
    """
    frames = open_dataset(Data(dataset="camvid", root=source), "train").pairs
    drives = [pair.image.name.partition("_")[0] for pair in frames]
    if drive not in drives or len(set(drives)) == 1:
        found = ", ".join(sorted(set(drives)))
        raise ConfigError(f"--drive {drive}: it must be one of several drives in train; there are {found}")
    parts = {"train": [pair for pair, own in zip(frames, drives, strict=True) if own != drive]}
    held = [pair for pair, own in zip(frames, drives, strict=True) if own == drive]
    if count is None:
        parts["val"] = held
    elif not 1 <= count <= len(parts["train"]):
        raise ConfigError(f"--frames {count}: the other drives have {len(parts['train'])}")
    else:
        drawn = random.Random(seed).sample(parts["train"], count)
        parts = {
            "train": drawn,
            "val": [*open_dataset(Data(dataset="camvid", root=source), "val").pairs],
            "drive": held,
        }
    if target.exists():
        raise OutputError(f"{target} exists; name another folder or remove it")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for split, pairs in parts.items():
            for pair in pairs:
                for kind, file in (("images", pair.image), ("labels", pair.label)):
                    link = unfinished / split / kind / file.name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.resolve())
        for classes in source.glob("classes.*"):
            shutil.copy(classes, unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror or error})") from None
    return {split: len(pairs) for split, pairs in parts.items()}


def class_weights(root: Path) -> list[float]:
    """What the recipes of CamVid give for `loss.class_weights`: sqrt(median / frequency) of the frames to train on."""
    pixels = class_pixels(open_dataset(Data(dataset="camvid", root=root), "train"))
    return [round(float(each), 2) for each in np.sqrt(np.median(pixels) / np.maximum(pixels, 1))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="CamVid as data/README.md lays it out")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--drive", default="0006R0", help="the drive that becomes val (default 0006R0); all: each")
    parser.add_argument("--frames", type=int, help="draw so many frames for train")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default 0)")
    arguments = parser.parse_args()
    source, target, drives = arguments.source, arguments.target, [arguments.drive]
    try:
        if arguments.drive == "all":
            frames = open_dataset(Data(dataset="camvid", root=source), "train").pairs
            drives = sorted({pair.image.name.partition("_")[0] for pair in frames})
        for drive in drives:
            made = target if arguments.drive == drive else target / drive
            found = hold_out(source, made, drive, arguments.frames, arguments.seed)
            scored = f"{found.get('drive', found['val'])} of {drive} as {'drive' if 'drive' in found else 'val'}"
            print(f"{made}: {found['train']} frames to train on, {scored}")
            print(f"  --data.root {made} --loss.class-weights {' '.join(map(str, class_weights(made)))}")
    except Segmv3Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
