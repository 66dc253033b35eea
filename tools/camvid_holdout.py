"""CamVid with one whole drive held out: python tools/camvid_holdout.py data/camvid data/camvid-0006R0 [--drive 0006R0]

All of CamVid's val is one clip of a drive that is also in train, so that its scores flatter. Here val is a drive that
training never sees: the frames of train whose names begin with it. The other frames of train stay train; the val part
as published is left out. The new folder has the same layout and links to the files of the old one.
"""

import argparse
import shutil
import sys
from pathlib import Path

from segmv3.config import Data
from segmv3.data.datasets import open_dataset
from segmv3.errors import ConfigError, OutputError, Segmv3Error


def hold_out(source: Path, target: Path, drive: str) -> dict[str, int]:
    """Make `target` from the train part of `source`; returns the number of frames of each new split.

    Raises: DataError, ConfigError, OutputError. A target is there as a whole or not at all.
    """
    frames = open_dataset(Data(dataset="camvid", root=source), "train").pairs
    drives = [pair.image.name.partition("_")[0] for pair in frames]
    if drive not in drives or len(set(drives)) == 1:
        found = ", ".join(sorted(set(drives)))
        raise ConfigError(f"--drive {drive}: it must be one of several drives in train; there are {found}")
    if target.exists():
        raise OutputError(f"{target} exists; name another folder or remove it")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for pair, own in zip(frames, drives, strict=True):
            for kind, file in (("images", pair.image), ("labels", pair.label)):
                link = unfinished / ("val" if own == drive else "train") / kind / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
        for classes in source.glob("classes.*"):
            shutil.copy(classes, unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror or error})") from None
    return {"train": len(frames) - drives.count(drive), "val": drives.count(drive)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="CamVid as data/README.md lays it out")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--drive", default="0006R0", help="the drive that becomes val (default 0006R0)")
    arguments = parser.parse_args()
    try:
        found = hold_out(arguments.source, arguments.target, arguments.drive)
    except Segmv3Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{arguments.target}: {found['train']} frames to train on, {found['val']} of {arguments.drive} as val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
