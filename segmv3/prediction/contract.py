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
from typing import Any, ClassVar, Protocol

from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.sound import Sound


@dataclass(frozen=True)
class Shot:
    """One labelled picture."""

    name: str
    """Below the output folder, "/" separates folders; of a video's frame its number in six digits."""
    image: UInt8Array
    """H x W x 3, RGB."""
    labels: UInt8Array
    """H x W, train ids."""
    time: Fraction | None = None
    """Seconds since the first frame of a video."""


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

    @cached_property
    def classes(self) -> Classes:
        """The net's classes. Ask for them late: what must be refused is refused before the net is opened."""
        return self.net_classes() if callable(self.net_classes) else self.net_classes


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

    def note(self, written: Any) -> None:  # noqa: B027 (most kinds have nothing to note)
        """Called with what `write` returned, in the order of the pictures."""

    def finish(self) -> list[Path]:
        """Called once after the last picture, also when a signal or an error ended the run.

        Returns: the files that were written only now.
        """
        return []


class Kind(ABC):
    """One kind of result."""

    name: ClassVar[str]

    @abstractmethod
    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        """The results of pictures of these names."""

    @abstractmethod
    def of_video(self, job: Job, name: str) -> "VideoSink":
        """The results of a video of this name."""


class VideoSink(Sink):
    """Results of a video. It opens its files once the size of the frames is known."""

    def open(self, frames: Frames, files: ExitStack) -> None:
        """Get ready. Args: files: closes what is entered into it when the run ends."""
