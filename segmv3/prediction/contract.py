"""What every kind of result of `segmv3 predict` keeps to: from one labelled picture (`Shot`) to files (`Sink`).

Pictures come from a folder, each with a name and a size of its own, or from a video, all of one size, each with a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.draw import STYLE, Style, blurred
from segmv3.media.sound import Sound
from segmv3.prediction.merging import ids_of

Found = UInt8Array | tuple[UInt8Array, UInt8Array | None]
"""What a net says of an image: labels alone, or with the confidence of each pixel (as in `Shot`)."""


@dataclass(frozen=True)
class Objects:
    """What a detector says of an image."""

    boxes: NDArray[np.float32]
    """n x 6: left, top, right, bottom in pixels, class, score (`segmv3.detection.drawing.draw_boxes`)."""
    labels: UInt8Array | None = None
    """H x W, train ids, of a net that labels areas too."""


def both(found: Found) -> tuple[UInt8Array, UInt8Array | None]:
    """Labels and confidence; None where there is no confidence."""
    return found if isinstance(found, tuple) else (found, None)


@dataclass(frozen=True)
class Shot:
    """One labelled picture."""

    name: str
    """Below the output folder, "/" separates folders; of a video's frame its number in six digits."""
    image: UInt8Array
    """H x W x 3, RGB."""
    labels: UInt8Array
    """H x W, train ids; 0 x 0 where a detector found boxes alone."""
    time: Fraction | None = None
    """Seconds since the first frame of a video."""
    confidence: UInt8Array | None = None
    """H x W, the probability of each pixel's class as 0..255; None where it was not asked for."""
    file: str = ""
    """The picture's file below the source, "/" separates folders; of a frame that of its video."""
    boxes: NDArray[np.float32] | None = None
    """As in `Objects`, of a detector."""


class Frames(Protocol):
    """A video, as far as its results need to know it."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of all frames."""
        ...

    @property
    def sound(self) -> Sound | None:
        """What is heard with them and can be copied."""
        ...

    fps: float


@dataclass(frozen=True)
class Job:
    """What all results of a run share."""

    net_classes: Classes | Callable[[], Classes]
    """Or how to get them: that may need the net, which takes seconds to open."""
    output: Path
    overwrite: bool = False
    video: str = "webm"
    """The kind of video to write, a key of `segmv3.media.encoding.FORMATS`."""
    style: Style = STYLE
    only: tuple[str, ...] = ()
    """The classes that masks and annotations are made of; none for all."""
    polygons: bool = False
    """Whether annotations are polygons instead of masks."""
    every: int = 1
    """Of a video's frames every so many are labelled."""

    @cached_property
    def classes(self) -> Classes:
        """The net's classes. Ask for them late: what must be refused is refused before the net is opened."""
        return self.net_classes() if callable(self.net_classes) else self.net_classes

    @cached_property
    def chosen(self) -> list[int]:
        """The train ids of `only`. Raises: ConfigError for a class that the net does not know."""
        return ids_of(self.only or self.classes.names, self.classes, "--classes")

    @cached_property
    def hidden(self) -> list[int]:
        """The train ids of what is blurred. Raises: ConfigError for a class that the net does not know."""
        return ids_of(self.style.blur, self.classes, "--blur")

    def shot(
        self, name: str, image: UInt8Array, found: Found | Objects, *, time: Fraction | None = None, file: str = ""
    ) -> Shot:
        """A labelled picture, with what must not be seen of it already blurred."""
        if isinstance(found, Objects):
            labels = np.zeros((0, 0), np.uint8) if found.labels is None else found.labels
            return Shot(name, image, labels, time, file=file, boxes=found.boxes)
        labels, confidence = both(found)
        return Shot(name, blurred(image, labels, self.hidden), labels, time, confidence, file)

    def occurring(self, labels: UInt8Array) -> list[int]:
        """The chosen classes that occur, by train id."""
        present = set(np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256])).tolist())
        return [train_id for train_id in self.chosen if train_id in present]


class Sink(ABC):
    """Where one kind of result of one run goes."""

    targets: Sequence[Path] = ()
    """The files and folders that it will write."""

    @abstractmethod
    def write(self, shot: Shot) -> Any:
        """Write what belongs to one picture. Of a folder several are written at a time, in any order; of a video one
        after the other.

        Returns: what `note` is to get; files written, as a rule.
        Raises: OutputError, which concerns this picture alone; ResourceError, which ends the run.
        """

    def note(self, written: Any) -> list[Path]:
        """Called with what `write` returned, in the order of the pictures. Returns: the files that are now there."""
        return written or []

    def finish(self) -> list[Path]:
        """Called once after the last picture, also when a signal or an error ended the run, which may be one of `note`.

        Returns: the files that were written only now.
        """
        return []


class Kind(ABC):
    """One kind of result."""

    name: ClassVar[str]
    confidence: ClassVar[Literal["unused", "used", "needed"]] = "unused"
    """Whether it shows how sure the net is, and whether it can do without."""

    @abstractmethod
    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        """The results of pictures of these names."""

    @abstractmethod
    def of_video(self, job: Job, name: str) -> "VideoSink":
        """The results of a video of this name."""


class VideoSink(Sink):
    """Results of a video. It opens its files once the size of the frames is known."""

    def open(self, frames: Frames, files: ExitStack) -> None:
        """Get ready. Most have nothing to do.

        Args:
            frames: the open video.
            files: closes what is entered into it when the run ends.
        """
