"""What can be saved of labelled pictures. Each kind of result is a class that knows its files and writes them.

A kind of your own inherits `Kind`; `KINDS` lists segmv3's.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np

from segmv3.files import make_folder
from segmv3.images import UInt8Array, write_png
from segmv3.labels import Classes
from segmv3.media.draw import colorize, legend, overlay, with_legend
from segmv3.media.encoding import FORMATS, VideoWriter
from segmv3.prediction.contract import Frames, Job, Kind, Shot, Sink, VideoSink


class Picture(Kind):
    """A PNG for each image; a video, or a folder of numbered PNGs, for each video."""

    as_video: ClassVar[bool] = True

    @abstractmethod
    def draw(self, shot: Shot, classes: Classes) -> UInt8Array:
        """uint8 H x W or H x W x 3, RGB."""

    def draw_still(self, shot: Shot, classes: Classes) -> UInt8Array:
        """As `draw`, with what only a picture of its own needs."""
        return self.draw(shot, classes)

    def strip(self, width: int, classes: Classes) -> UInt8Array:
        """What stands below every frame of a video: uint8 H x `width` x 3."""
        return np.zeros((0, width, 3), np.uint8)

    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        return _Stills(self, job, names)

    def of_video(self, job: Job, name: str) -> VideoSink:
        return _Video(self, job, name) if self.as_video else _NumberedStills(self, job, name)


class Overlay(Picture):
    """Colours over the image, with a legend of the classes that occur."""

    name = "overlay"

    def draw(self, shot: Shot, classes: Classes) -> UInt8Array:
        return overlay(shot.image, shot.labels, classes)

    def draw_still(self, shot: Shot, classes: Classes) -> UInt8Array:
        return with_legend(self.draw(shot, classes), classes, shot.labels)

    def strip(self, width: int, classes: Classes) -> UInt8Array:
        return legend(classes, width)  # of all classes: the size of a video is constant


class Labels(Picture):
    """Train ids."""

    name = "labels"
    as_video = False

    def draw(self, shot: Shot, classes: Classes) -> UInt8Array:
        return shot.labels


class Color(Picture):
    """Colours alone."""

    name = "color"

    def draw(self, shot: Shot, classes: Classes) -> UInt8Array:
        return colorize(shot.labels, classes)


class _Stills(Sink):
    """One PNG beside the others for each picture: `NAME_KIND.png`."""

    def __init__(self, kind: Picture, job: Job, names: Sequence[str]) -> None:
        self._kind, self._job = kind, job
        self.targets = [self._target(name) for name in names]

    def _target(self, name: str) -> Path:
        return self._job.output / f"{name}_{self._kind.name}.png"

    def write(self, shot: Shot) -> list[Path]:
        target = self._target(shot.name)
        write_png(target, self._kind.draw_still(shot, self._job.classes))
        return [target]


class _NumberedStills(VideoSink):
    """A folder of PNGs, one for each frame: 000000.png, 000001.png, ..."""

    _FRAME = re.compile(r"\d{6,}\.png")

    def __init__(self, kind: Picture, job: Job, name: str) -> None:
        self._kind, self._job = kind, job
        self._folder = job.output / f"{name}_{kind.name}"
        self.targets = [self._folder]

    def open(self, frames: Frames, files: ExitStack) -> None:
        make_folder(self._folder)
        for old in self._folder.iterdir():  # a longer former run must not leave frames behind the new ones
            if self._FRAME.fullmatch(old.name):
                old.unlink()

    def write(self, shot: Shot) -> None:
        write_png(self._folder / f"{shot.name}.png", self._kind.draw(shot, self._job.classes))


class _Video(VideoSink):
    """A video of the same length and times."""

    def __init__(self, kind: Picture, job: Job, name: str) -> None:
        self._kind, self._job = kind, job
        suffix, self._codec = FORMATS[job.video]
        self.targets = [job.output / f"{name}_{kind.name}{suffix}"]

    def open(self, frames: Frames, files: ExitStack) -> None:
        height, width = frames.size
        strip = self._kind.strip(width, self._job.classes)
        self._canvas = np.vstack([np.zeros((height, width, 3), np.uint8), strip])
        video: AbstractContextManager[VideoWriter] = VideoWriter(
            self.targets[0],
            frames.fps,
            self._canvas.shape[:2],
            overwrite=self._job.overwrite,
            codec=self._codec,
            sound=frames.sound,
        )
        self._writer = files.enter_context(video)

    def write(self, shot: Shot) -> None:
        self._canvas[: len(shot.labels)] = self._kind.draw(shot, self._job.classes)
        self._writer.write(self._canvas, shot.time)


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Overlay(), Labels(), Color())}
"""What `--save` takes, by name."""
