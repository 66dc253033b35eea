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

from segmv3.errors import ConfigError
from segmv3.files import make_folder
from segmv3.images import UInt8Array, write_png
from segmv3.media.draw import colorize, contoured, legend, overlay, with_legend
from segmv3.media.encoding import FORMATS, VideoWriter
from segmv3.prediction.annotations import Coco, Cvat, LabelStudio
from segmv3.prediction.contract import Frames, Job, Kind, Shot, Sink, VideoSink
from segmv3.prediction.gathering import ClassesFile, Several
from segmv3.prediction.tables import CsvTable, JsonTable


class Picture(Kind):
    """A PNG for each image; a video, or a folder of numbered PNGs, for each video."""

    as_video: ClassVar[bool] = True
    across: ClassVar[int] = 1
    """Images that a picture is wide."""

    @abstractmethod
    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        """uint8 H x W or H x W x 3, RGB."""

    def draw_still(self, shot: Shot, job: Job) -> UInt8Array:
        """As `draw`, with what only a picture of its own needs."""
        return self.draw(shot, job)

    def strip(self, width: int, job: Job) -> UInt8Array:
        """What stands below every frame of a video: uint8 H x `width` x 3."""
        return np.zeros((0, width, 3), np.uint8)

    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        return _Stills(self, job, names)

    def of_video(self, job: Job, name: str) -> VideoSink:
        return _Video(self, job, name) if self.as_video else _NumberedStills(self, job, name)


class Overlay(Picture):
    """Colours over the image, with a legend of the classes that occur."""

    name = "overlay"

    def draw(self, shot: Shot, job: Job, out: UInt8Array | None = None) -> UInt8Array:
        picture = overlay(shot.image, shot.labels, job.classes, job.style.alpha, out)
        return contoured(picture, shot.labels, job.classes) if job.style.contours else picture

    def draw_still(self, shot: Shot, job: Job) -> UInt8Array:
        picture = self.draw(shot, job)
        return with_legend(picture, job.classes, shot.labels) if job.style.legend else picture

    def strip(self, width: int, job: Job) -> UInt8Array:
        if not job.style.legend:
            return super().strip(width, job)
        return legend(job.classes, width)  # of all classes: the size of a video is constant


class SideBySide(Overlay):
    """The image, and right of it its overlay."""

    name = "side-by-side"
    across = 2

    def draw(self, shot: Shot, job: Job, out: UInt8Array | None = None) -> UInt8Array:
        return np.hstack([shot.image, super().draw(shot, job)])


class Image(Picture):
    """The image as it was labelled: the frames of a video, or a folder of photographs with faces blurred."""

    name = "image"
    as_video = False

    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        return shot.image


class Labels(Picture):
    """Train ids, with a `classes.json` that names them: with its images a data set."""

    name = "labels"
    as_video = False

    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        return shot.labels

    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        return Several([super().of_images(job, names), ClassesFile(job)])

    def of_video(self, job: Job, name: str) -> VideoSink:
        return Several([super().of_video(job, name), ClassesFile(job)])


class Color(Picture):
    """Colours alone."""

    name = "color"

    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        return colorize(shot.labels, job.classes)


class Confidence(Picture):
    """How sure the net is of each pixel: its class's probability, 0 black to 1 white (255)."""

    name = "confidence"
    confidence = "needed"

    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        if shot.confidence is None:
            raise ConfigError("cannot save 'confidence': what predicts gives labels alone")
        return shot.confidence


class Mask(Picture):
    """One class, 255 on 0."""

    as_video = False

    def __init__(self, of: str, name: str) -> None:
        """`of` is the name of the class, `name` that of the files."""
        self._of = of
        self.name = name  # type: ignore[misc]

    def draw(self, shot: Shot, job: Job) -> UInt8Array:
        return (shot.labels == job.classes.names.index(self._of)).view(np.uint8) * np.uint8(255)


class Masks(Kind):
    """A `Mask` of each chosen class."""

    name = "masks"

    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        return Several([mask.of_images(job, names) for mask in self._masks(job)])

    def of_video(self, job: Job, name: str) -> VideoSink:
        return Several([mask.of_video(job, name) for mask in self._masks(job)])

    def _masks(self, job: Job) -> list[Mask]:
        """Named by their class, as far as a file can be; classes that look alike then get numbers."""
        chosen = job.only or job.classes.names
        plain = [re.sub(r"[^\w.-]+", "_", name) for name in chosen]
        unique = [name if plain.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(plain)]
        return [Mask(of, f"mask_{name}") for of, name in zip(chosen, unique, strict=True)]


class _Stills(Sink):
    """One PNG beside the others for each picture: `NAME_KIND.png`."""

    def __init__(self, kind: Picture, job: Job, names: Sequence[str]) -> None:
        self._kind, self._job = kind, job
        self.targets = [self._target(name) for name in names]

    def _target(self, name: str) -> Path:
        return self._job.output / f"{name}_{self._kind.name}.png"

    def write(self, shot: Shot) -> list[Path]:
        target = self._target(shot.name)
        write_png(target, self._kind.draw_still(shot, self._job))
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
        write_png(self._folder / f"{shot.name}.png", self._kind.draw(shot, self._job))


class _Video(VideoSink):
    """A video of the same length and times."""

    def __init__(self, kind: Picture, job: Job, name: str) -> None:
        self._kind, self._job = kind, job
        suffix, self._codec = FORMATS[job.video]
        self.targets = [job.output / f"{name}_{kind.name}{suffix}"]

    def open(self, frames: Frames, files: ExitStack) -> None:
        height, width = frames.size[0], frames.size[1] * self._kind.across
        strip = self._kind.strip(width, self._job)
        self._canvas = np.vstack([np.zeros((height, width, 3), np.uint8), strip])
        video: AbstractContextManager[VideoWriter] = VideoWriter(
            self.targets[0],
            frames.fps / self._job.every,
            self._canvas.shape[:2],
            overwrite=self._job.overwrite,
            codec=self._codec,
            sound=frames.sound,
        )
        self._writer = files.enter_context(video)

    def write(self, shot: Shot) -> None:
        canvas = self._canvas[: len(shot.image)]
        if type(self._kind) is Overlay:
            self._kind.draw(shot, self._job, canvas)
        else:
            picture = self._kind.draw(shot, self._job)
            canvas[:] = picture if picture.ndim == 3 else picture[..., None]
        self._writer.write(self._canvas, shot.time)


# ---- all of them ----


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *(Overlay(), Labels(), Color(), Confidence(), SideBySide(), Image(), Masks()),
        *(JsonTable(), CsvTable(), Coco(), Cvat(), LabelStudio()),
    )
}
"""What `--save` takes, by name."""
