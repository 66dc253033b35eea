"""Videos that come through a pipe, or have to be kept in a file of their own to be read."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BufferedReader, FileIO
from itertools import count
from pathlib import Path
from select import select
from typing import Self

import numpy as np

from segmv3.errors import DataError, PartialVideoError
from segmv3.files import write_error
from segmv3.images import UInt8Array
from segmv3.media.video import VideoReader, open_video
from segmv3.waiting import given_up, in_thread

INPUT = "standard input"
_LOOK = 0.1  # seconds between two looks at whether to give up


def standard_input() -> BufferedReader:
    """What is piped in.

    Raises: DataError when it is a terminal, or holds nothing.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(f"{INPUT} is a terminal; pipe a picture or a video into segmv3, as in ... | segmv3 predict -")
    pipe: BufferedReader = sys.stdin.buffer  # type: ignore[assignment]
    if not pipe.peek(1):
        raise DataError(f"{INPUT} holds nothing")
    return pipe


class _OneWay:
    """A pipe whose reader can give up. PyAV needs no more than `read`; where there is a `seek`, it would wind back."""

    def __init__(self, pipe: BufferedReader) -> None:
        self._held = pipe.read1()  # what was looked at
        self._file: FileIO = pipe.raw  # type: ignore[assignment]

    def read(self, most: int) -> bytes:
        """What is there, at most so many bytes, and at least one but at the end or once the reader gives up."""
        data = self._held[:most] or self._next(most)
        self._held = self._held[most:]
        return data

    def _next(self, most: int) -> bytes:
        if os.name != "nt":  # where files cannot be waited for
            while not select([self._file.fileno()], [], [], _LOOK)[0]:
                if given_up():
                    return b""
        return self._file.read(most) or b""


def read_pipe(pipe: BufferedReader) -> VideoReader:
    """The frames of a video while it comes."""
    return in_thread(lambda: VideoReader(INPUT, open_video(_OneWay(pipe), INPUT)))


def save(pipe: BufferedReader, folder: Path) -> Path:
    """Keep all that comes.

    Raises: ResourceError when the disk is full.
    """
    path, done = folder / "video", 0
    try:
        with path.open("wb") as file:
            while part := pipe.read1(1 << 20):
                done += file.write(part)
    except OSError as error:
        raise write_error(error, path, done) from None
    return path


@contextmanager
def kept(fill: Callable[[Path], Path], title: str) -> Iterator[VideoReader]:
    """The frames of a video in a temporary file, which leads to no other file and no address.

    Args:
        fill: writes the file into a folder.
        title: what messages call it.
    """
    with tempfile.TemporaryDirectory(prefix="segmv3-") as folder:
        path = fill(Path(folder))
        with path.open("rb") as file, VideoReader(title, open_video(file, title), stored=path) as frames:
            yield frames


class RawReader:
    """Bare RGB frames from a pipe: a context manager with the interface of `VideoReader`.

    Args:
        pipe: where they come from.
        size: width and height, in pixels.
        fps: frames a second.

    Raises, after the last frame: PartialVideoError when it is not whole.
    """

    sound = None
    announced_frames = None

    def __init__(self, pipe: BufferedReader, size: tuple[int, int], fps: float) -> None:
        self._pipe, self.size, self.fps = _OneWay(pipe), size[::-1], fps

    def timed(self) -> Iterator[tuple[UInt8Array, Fraction]]:
        """Each frame and when it is shown, in seconds since the first."""
        height, width = self.size
        for number in count():
            frame = bytearray()
            while part := self._pipe.read(height * width * 3 - len(frame)):
                frame += part
            if not frame:
                return
            if len(frame) < height * width * 3:
                raise PartialVideoError(
                    f"{INPUT} ends within a frame of {width}x{height}; result holds {number:,} frames"
                )
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3), number / Fraction(self.fps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
