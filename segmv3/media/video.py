"""Videos in and out, through PyAV (the extra `[video]`, imported when the first video is opened).

Read are all formats of FFmpeg; written is VP9, in WebM or MP4. PyAV's wheels also bundle x264, which is GPL
and therefore not used. What a file announces about itself is reported, never relied on: frames are counted
while they are decoded.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from segmv3.errors import OutputError, PartialVideoError, ResourceError, Segmv3Warning, VideoError
from segmv3.images import UInt8Array

# Short clusters, flushed: a hard kill of a WebM costs two seconds of it. An MP4 has no index until its end.
_MUXING = {".webm": {"cluster_time_limit": "1000", "flush_packets": "1"}, ".mp4": {}}
_FPS_RANGE = (1.0, 240.0)
_FALLBACK_FPS = 25.0
_HD = 720  # from this height on an unmarked video means BT.709 colours, below it BT.601; players do the same
_BT709, _UNMARKED = 1, 2  # colour matrices as numbered in ITU-T H.273
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


class VideoReader:
    """The frames of a video: a context manager, and an iterable that can be run through once.

    Each frame is uint8 H x W x 3, RGB, turned upright when the file says that the camera was not. All have
    the size of the first. Memory does not grow with the length.

    Attributes: fps: frames per second, 1 to 240; frames_read: frames handed out so far.

    Raises, when opened: VideoError naming the path when it is missing, is no video or has no readable frame;
    ResourceError without the package av.
    Raises, after the last frame: PartialVideoError when fewer frames could be read than the file announces.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.frames_read = 0
        self._damage = 0
        self._start = 0.0  # of the first frame, in seconds
        self._end = 0.0  # of the last frame so far
        self._drift = 0.0  # largest distance of a frame from where an even frame rate would have it
        self._container = _open(self.path)
        try:
            self._stream = _video_stream(self._container, self.path)
            decoded = self._decode()
            first = next(decoded, None)
            if first is None:
                raise VideoError(f"{self.path} has no readable frame; it is damaged or not a video")
            self.fps = self._frame_rate()
        except BaseException:
            self.close()
            raise
        self._frames = chain([first], decoded)
        self._stored_size = first.height, first.width
        self._turns = round(first.rotation / 90) % 4  # counterclockwise quarters, as np.rot90 counts them

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame, in pixels."""
        height, width = self._stored_size
        return (width, height) if self._turns % 2 else (height, width)

    @property
    def announced_frames(self) -> int | None:
        """How many frames the file says it has, if it does. It may be wrong: good for display only."""
        count = self._stream.frames
        if count <= 0:
            return None
        if "mp4" in self._container.format.name and self._stream.duration and self._stream.average_rate:
            # An MP4 trimmed by an edit list still counts the frames outside; its duration does not.
            shown = self._stream.duration * self._stream.time_base * self._stream.average_rate
            return min(count, round(shown)) or count
        return count

    def __iter__(self) -> Iterator[UInt8Array]:
        for frame in self._frames:
            self._note_time(frame)
            self.frames_read += 1
            yield self._pixels(frame)
        self._complain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; frames that were handed out stay valid."""
        self._container.close()

    def _frame_rate(self) -> float:
        """Frames per second: what the file announces, unless that is impossible."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        fps = float(rate) if rate else 0.0
        if _FPS_RANGE[0] <= fps <= _FPS_RANGE[1]:
            return fps
        said = f"announces {fps:g} frames per second" if fps else "announces no frame rate"
        _warn(f"{self.path} {said}; {_FALLBACK_FPS:g} is used")
        return _FALLBACK_FPS

    def _decode(self) -> Iterator[Any]:
        """PyAV frames. Damaged stretches are counted and skipped; a file that breaks off just ends."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self._damage += 1
                packet = None
            if packet is not None and not packet.size:  # to the decoder an empty packet would mean the end
                continue
            try:
                frames = self._stream.decode(packet)  # None: what the decoder still holds
            except av.error.EOFError:
                frames = []
            except av.error.FFmpegError:
                self._damage += 1
                frames = []
            yield from frames
            if packet is None:
                return

    def _pixels(self, frame: Any) -> UInt8Array:
        height, width = self._stored_size  # a stream may change its size halfway
        hd = frame.colorspace == _UNMARKED and not frame.format.is_rgb and frame.height >= _HD
        colors = "ITU709" if hd else None
        pixels = frame.to_ndarray(format="rgb24", height=height, width=width, src_colorspace=colors)
        return np.ascontiguousarray(np.rot90(pixels, self._turns))

    def _note_time(self, frame: Any) -> None:
        if frame.time is None:
            return
        if self.frames_read == 0:
            self._start = frame.time
        self._drift = max(self._drift, abs(frame.time - self._start - self.frames_read / self.fps))
        lasting = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        self._end = max(self._end, frame.time + max(lasting, 1 / self.fps))

    def _complain(self) -> None:
        """After the last frame: say what is missing."""
        expected = self.announced_frames or self._frames_by_duration()
        held = f"result holds {self.frames_read:,} frames"
        if expected and self.frames_read < expected:
            raise PartialVideoError(
                f"only {self.frames_read:,} of the announced {expected:,} frames could be read; {held} "
                f"({self.path} is cut or damaged)"
            )
        if self._damage:
            raise PartialVideoError(f"damaged stretches of {self.path} were skipped; {held}")
        if self._drift > max(0.5, 2 / self.fps):
            _warn(
                f"{self.path} has a variable frame rate; the result plays evenly at {self.fps:g} frames per "
                f"second and is up to {self._drift:.1f} s off"
            )

    def _frames_by_duration(self) -> int | None:
        """How many frames would fill the announced time, where only that is announced (WebM, MKV)."""
        announced = self._announced_seconds()
        tolerance = max(3 / self.fps, 0.1)  # muxers round, and differ about the end of the last frame
        if self._end <= 0 or announced - self._end <= tolerance:
            return None
        return max(self.frames_read + 1, round(self.frames_read * announced / self._end))

    def _announced_seconds(self) -> float:
        hours, _, rest = self._stream.metadata.get("DURATION", "").partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:  # the container's duration may be that of its sound
            alone = len(self._container.streams) == 1 and self._container.duration
            return self._container.duration / 1_000_000 if alone else 0.0


class VideoWriter:
    """Write frames as a VP9 video; a context manager.

    The file grows as `.<name>.partial.<suffix>` and takes its name when the block is left, also when that is
    by an exception or Ctrl-C: what was written by then plays. Without a single frame nothing is left behind.
    A WebM plays even after a hard kill, under its partial name; an MP4 does not.

    Args:
        path: the file; its suffix, .webm or .mp4, chooses the container.
        fps: frames per second.
        size: (height, width) of the frames. An odd side is padded by one pixel that repeats the edge, because
            the codec stores colours for 2 x 2 pixels.
        overwrite: whether an existing file may be replaced.

    Raises: OutputError when the file exists, cannot be written, or its suffix is another; ResourceError
    without the package av.
    """

    def __init__(self, path: Path | str, fps: float, size: tuple[int, int], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.size = size
        self.frames_written = 0
        if self.path.suffix.lower() not in _MUXING:
            raise OutputError(f"{self.path} is of a type that cannot be written; name it .webm or .mp4")
        if self.path.exists() and not overwrite:
            raise OutputError(f"{self.path} exists; choose another name")
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix.lower()}")
        self._av = _import_av()
        height, width = _even(size)
        self._planes = np.empty((height * 3 // 2, width), np.uint8)  # luma, then the two colour planes
        try:
            options = _MUXING[self._partial.suffix]
            self._container = self._av.open(_local(self._partial), "w", options=options)
            self._stream = _vp9_stream(self._container, fps, _even(size))
            self._container.start_encoding()  # creates the file now, not with the first frame
        except (self._av.error.FFmpegError, OSError) as error:
            with suppress(OSError):
                self._partial.unlink()
            raise OutputError(f"{self.path} cannot be written ({_reason(error)})") from None

    def write(self, frame: UInt8Array) -> None:
        """Append a frame, uint8 H x W x 3, RGB, of the announced size.

        Raises: ValueError for another size; OutputError when it cannot be written.
        """
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, announced was uint8 {(*self.size, 3)}")
        _to_yuv420(frame, self._planes)
        picture = self._av.VideoFrame.from_ndarray(self._planes, format="yuv420p")
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
        except OutputError:
            if exception is None:  # else the first failure is the one to report
                raise

    def _finish(self) -> None:
        """Empty the encoder, write the trailer and give the file its name."""
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
            raise OutputError(
                f"{self.path} cannot be written ({_reason(error)}); {self.frames_written:,} frames are in "
                f"{self._partial.name}"
            ) from None


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise ResourceError('video needs the package av: pip install "segmv3[video]"') from None
    return av


def _open(path: Path) -> Any:
    av = _import_av()
    if not path.exists():
        raise VideoError(f"{path} does not exist")
    if path.is_dir():
        raise VideoError(f"{path} is a folder, not a video")
    try:
        return av.open(_local(path), options={"protocol_whitelist": "file"})  # a file cannot lead to the net
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be opened as a video ({_reason(error)}); it is damaged or not one") from None


def _local(path: Path) -> str:
    """A name that FFmpeg cannot take for an address: to it, `rec12:30.mp4` has the protocol rec12."""
    return str(path.absolute())


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path} has no video stream (found: {_streams(container)})")
    return container.streams.video[0]  # not threaded by frame: an error would also take its neighbours


def _streams(container: Any) -> str:
    return ", ".join(stream.type for stream in container.streams) or "nothing"


def _vp9_stream(container: Any, fps: float, size: tuple[int, int]) -> Any:
    """A VP9 stream tuned to keep up with a net on the same CPU: fast, and on half of the cores, up to four."""
    options = {
        "deadline": "realtime",
        "cpu-used": "8",
        "row-mt": "1",
        "tile-columns": "2",  # the encoder uses fewer where the picture is narrow
        "threads": str(min(max((os.cpu_count() or 1) // 2, 1), 4)),
        "crf": "32",  # constant quality, which needs a bit rate of 0
        "b": "0",
    }
    stream = container.add_stream("libvpx-vp9", rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
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


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _warn(text: str) -> None:
    warnings.warn(f"video: {text}", Segmv3Warning, stacklevel=3)
