"""Videos out, through PyAV (the extra `[video]`): VP9, in WebM or MP4.

PyAV's wheels also bundle x264, which is GPL and therefore not used.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from segmv3.errors import OutputError, ResourceError
from segmv3.images import UInt8Array
from segmv3.media.containers import import_av, local, reason

# Every frame reaches the disk at once: a hard kill costs one or two. An MP4 gets its index at the end besides.
_MUXING = {
    ".webm": {"cluster_time_limit": "0", "flush_packets": "1"},
    ".mp4": {"movflags": "hybrid_fragmented+frag_every_frame", "flush_packets": "1"},
}
_BT709 = 1  # colour matrix as numbered in ITU-T H.273
_LIMITED = 1  # luma 16..235
# From R, G, B, 1 (0..255) to limited-range Y, Cb, Cr of BT.709.
_TO_YUV = np.array(
    [
        [0.182586, 0.614231, 0.062007, 16],
        [-0.100644, -0.338572, 0.439216, 128],
        [0.439216, -0.398942, -0.040274, 128],
    ],
    np.float32,
)


class VideoWriter:
    """Write frames as a VP9 video; a context manager.

    The file grows beside its place, as `.<name>.<random>.partial.<suffix>`, and takes its name when the block is
    left, also when that is by an exception or Ctrl-C: what was written by then plays. Without a single frame nothing
    is left behind. After a hard kill or on a full disk the frames written by then play under the partial name.

    Args:
        path: the file; its suffix, .webm or .mp4, chooses the container.
        fps: frames per second, on average.
        size: (height, width) of the frames. An odd side is padded by one pixel that repeats the edge, because
            the codec stores colours for 2 x 2 pixels.
        overwrite: whether an existing file may be replaced.

    Raises: OutputError when the file exists, cannot be written, or its suffix is another; ResourceError
    when the disk is full, or without the package av.
    """

    def __init__(self, path: Path | str, fps: float, size: tuple[int, int], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.size = size
        self.frames_written = 0
        self._failed = False
        self._container: Any = None
        if self.path.suffix.lower() not in _MUXING:
            raise OutputError(f"{self.path} is of a type that cannot be written; name it .webm or .mp4")
        self._av = import_av()
        self._rate = Fraction(fps).limit_denominator(1001)
        height, width = _even(size)
        self._planes = np.empty((height * 3 // 2, width), np.uint8)  # luma, then the two colour planes
        with self._failing_in_one_line():
            if self.path.exists() and not overwrite:
                raise OutputError(f"{self.path} exists; choose another name")
            self._partial = _new_file(self.path)
            try:
                options = _MUXING[self._partial.suffix]
                self._container = self._av.open(local(self._partial), "w", options=options)
                self._stream = _vp9_stream(self._container, self._rate, _even(size))
                self._container.start_encoding()  # a codec that cannot be opened fails now, not with the first frame
            except BaseException:
                with suppress(OSError):
                    self._partial.unlink()
                raise

    def write(self, frame: UInt8Array, time: Fraction | None = None) -> None:
        """Append a frame.

        Args:
            frame: uint8 H x W x 3, RGB, of the announced size.
            time: when it is shown, in seconds, later than the frame before; by default at an even rate.

        Raises: ValueError for another size; OutputError or ResourceError when it cannot be written.
        """
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, announced was uint8 {(*self.size, 3)}")
        _to_yuv420(frame, self._planes)
        picture = self._av.VideoFrame.from_ndarray(self._planes, format="yuv420p")
        picture.time_base = self._stream.codec_context.time_base
        picture.pts = round((self.frames_written / self._rate if time is None else time) / picture.time_base)
        picture.duration = round(1 / self._rate / picture.time_base)
        with self._failing_in_one_line():
            self._container.mux(self._stream.encode(picture))
        self.frames_written += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._finish()
        except (OutputError, ResourceError):
            if exception is None:  # else the first failure is the one to report
                raise

    def _finish(self) -> None:
        """Empty the encoder, write the trailer and give the file its name."""
        if self._failed:
            return
        with self._failing_in_one_line():
            try:
                if self.frames_written:
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
            if self.frames_written:
                os.replace(self._partial, self.path)  # noqa: PTH105 (replaces on Windows too)
            else:
                self._partial.unlink(missing_ok=True)

    @contextmanager
    def _failing_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (self._av.error.FFmpegError, OSError) as error:
            self._failed = True
            with suppress(self._av.error.FFmpegError, OSError):
                if self._container:
                    self._container.close()
            held = ""
            if self.frames_written:
                held = f"; {_count(self._partial):,} of {self.frames_written:,} frames are in {self._partial.name}"
            if isinstance(error, MemoryError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ResourceError(f"the disk is full: {self.path} cannot be finished{held}") from None
            raise OutputError(f"{self.path} cannot be written ({reason(error)}){held}") from None


def _new_file(path: Path) -> Path:
    """A file beside `path` that nobody could have laid there before, for what is to become `path`."""
    stem = os.fsdecode(os.fsencode(path.stem)[:200])
    partial = path.with_name(f".{stem}.{secrets.token_hex(4)}.partial{path.suffix.lower()}")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
    return partial


def _count(path: Path) -> int:
    """How many frames a file holds that was not finished."""
    av = import_av()
    with suppress(av.error.FFmpegError, OSError), av.open(local(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))
    return 0


def _vp9_stream(container: Any, rate: Fraction, size: tuple[int, int]) -> Any:
    """A VP9 stream tuned to keep up with a net on the same CPU: fast, and on half of the cores, up to four.

    Its time base divides the time of a frame into whole numbers, and fits frames at other times.
    """
    options = {
        "deadline": "realtime",
        "cpu-used": "8",
        "lag-in-frames": "0",  # what is encoded comes out at once
        "row-mt": "1",
        "tile-columns": "2",  # the encoder uses fewer where the picture is narrow
        "threads": str(min(max((os.cpu_count() or 1) // 2, 1), 4)),
        "crf": "32",  # constant quality, which needs a bit rate of 0
        "b": "0",
    }
    stream = container.add_stream("libvpx-vp9", rate=rate, options=options)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, rate.numerator * -(-90_000 // rate.numerator))
    stream.codec_context.colorspace = _BT709
    stream.codec_context.color_range = _LIMITED
    return stream


def _even(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _to_yuv420(frame: UInt8Array, planes: UInt8Array) -> None:
    """Convert for the encoder, several times faster than FFmpeg does.

    Args: frame: uint8 H x W x 3, RGB. planes: uint8 1.5 H' x W', to be filled; H' and W' are H and W rounded up to
        even numbers, by repeating the edge.
    """
    height, width = _even((frame.shape[0], frame.shape[1]))
    yuv = cv2.transform(np.ascontiguousarray(frame), _TO_YUV)
    if yuv.shape[:2] != (height, width):
        yuv = cv2.copyMakeBorder(yuv, 0, height - len(yuv), 0, width - yuv.shape[1], cv2.BORDER_REPLICATE)
    half = cv2.resize(yuv, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    cv2.extractChannel(yuv, 0, dst=planes[:height])
    for channel, plane in enumerate(planes[height:].reshape(2, height // 2, width // 2), 1):
        cv2.extractChannel(half, channel, dst=plane)
