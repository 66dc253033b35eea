"""Videos in and out, through PyAV (the extra `[video]`, imported when the first video is opened).

Read are all formats of FFmpeg; written is VP9, in WebM or MP4. PyAV's wheels also bundle x264, which is GPL
and therefore not used. What a file announces about itself is reported, never relied on: frames are counted
while they are decoded.
"""

import errno
import os
import secrets
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
from segmv3.images import MAX_PIXELS, UInt8Array
from segmv3.media.containers import avi_ticks, breaks_off
from segmv3.media.frames import View

# Every frame reaches the disk at once: a hard kill costs one or two. An MP4 gets its index at the end besides.
_MUXING = {
    ".webm": {"cluster_time_limit": "0", "flush_packets": "1"},
    ".mp4": {"movflags": "hybrid_fragmented+frag_every_frame", "flush_packets": "1"},
}
_FALLBACK_FPS = Fraction(25)
_FINEST = Fraction(1, 1000)  # between two frames of a WebM
_JUMP = 10  # seconds: more than this between two frames of a broadcast is a new clock, as to FFmpeg
_DEFAULT = 1  # FFmpeg's flags of a stream
_ATTACHED_PICTURE = 1024
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


class VideoReader:
    """The frames of a video: a context manager, and an iterable that can be run through once.

    Each frame is uint8 H x W x 3, RGB, as players show it: turned and mirrored as the file asks, in square pixels,
    HDR brought down to SDR. All have the size of the first. Memory does not grow with the length.

    Of several video streams the one is read that FFmpeg would take; a line names the others.

    Attributes: fps: frames per second, on average; frames_read: frames handed out so far.

    Raises, when opened: VideoError naming the path when it is missing, is no video, has no readable frame or too
    large ones; ResourceError without the package av.
    Raises, after the last frame: PartialVideoError when stretches could not be decoded, or the file breaks off. How
    many frames a file announces is no evidence: such counts are often wrong.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.frames_read = 0
        self._damaged = self._begun = False
        self._empty: set[int] = set()  # ticks of an AVI that repeat the frame before
        self._container = _open(self.path)
        try:
            self._stream = _video_stream(self._container, self.path)
            decoded = self._decode()
            first = next(decoded, None)
            if first is None:
                raise VideoError(f"{self.path} has no readable frame; it is damaged or not a video")
            self._begun = True
            self._view = View.of(first, self._stream.sample_aspect_ratio)
            _refuse_large(self.path, *self.size)
            self._rate = self._frame_rate(first)
        except BaseException:
            self.close()
            raise
        self.fps = float(self._rate)
        self._frames = chain([first], decoded)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame, in pixels."""
        return self._view.size

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
        return (frame for frame, _ in self.timed())

    def timed(self) -> Iterator[tuple[UInt8Array, Fraction]]:
        """Each frame and when it is shown, in seconds since the first."""
        avi = self._container.format.name == "avi"
        clock = _Clock(1 / self._rate, "mpeg" in self._container.format.name)
        unit, tick, pixels = self._stream.time_base, 0, None
        for frame in self._frames:
            while tick in self._empty:
                if pixels is not None:
                    yield self._handed_out(pixels), clock.at(tick * unit)
                tick += 1
            pixels = self._view.pixels(frame)
            time = tick if avi else frame.pts
            yield self._handed_out(pixels), clock.at(None if time is None else time * unit)
            tick += 1
        while tick in self._empty and pixels is not None:
            yield self._handed_out(pixels), clock.at(tick * unit)
            tick += 1
        self._complain()

    def _handed_out(self, pixels: UInt8Array) -> UInt8Array:
        self.frames_read += 1
        return pixels

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; frames that were handed out stay valid."""
        self._container.close()

    def _frame_rate(self, first: Any) -> Fraction:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate and rate > 0:
            return Fraction(rate)
        if first.pts is None:
            _warn(f"{self.path} announces neither a frame rate nor times; {_FALLBACK_FPS} frames per second are used")
        return _FALLBACK_FPS

    def _decode(self) -> Iterator[Any]:
        """PyAV frames. Damaged stretches are noted and skipped; a file that breaks off just ends."""
        import av

        packets = self._container.demux(self._stream)
        avi = self._container.format.name == "avi"
        ticks = avi_ticks(self.path, self._stream.index) if avi else 0
        tick = 0
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self._note_damage(error)
                packet = None
            if packet is not None:
                if not packet.size:  # to the decoder an empty packet would mean the end
                    continue
                if packet.dts is not None and avi:  # FFmpeg leaves out the empty chunks
                    self._empty.update(range(tick, min(packet.dts, ticks or self._stream.duration or 0)))
                    tick = packet.dts + 1
            else:
                self._empty.update(range(tick, ticks))
            try:
                frames = self._stream.decode(packet)  # None: what the decoder still holds
            except av.error.EOFError:
                frames = []
            except av.error.FFmpegError as error:
                self._note_damage(error)
                frames = []
            yield from frames
            if packet is None:
                return

    def _note_damage(self, error: Exception) -> None:
        """A recording of a broadcast begins anywhere: what comes before its first whole picture is no damage."""
        if isinstance(error, MemoryError):
            raise error
        if self._begun or "mpeg" not in self._container.format.name:
            self._damaged = True

    def _complain(self) -> None:
        """After the last frame: say what is missing."""
        held = f"result holds {self.frames_read:,} frames"
        if breaks_off(self.path):
            announced = self.announced_frames or 0
            if announced > self.frames_read:
                held = f"only {self.frames_read:,} of the announced {announced:,} frames could be read; {held}"
            raise PartialVideoError(f"{held} ({self.path} is cut or damaged)")
        if self._damaged:
            raise PartialVideoError(f"damaged stretches of {self.path} were skipped; {held}")


class _Clock:
    """Times of frames that only grow, from times that a file may leave out, repeat or begin anew.

    Args: step: seconds from one frame to the next where nothing else is said. restarts: whether a long gap is the
        clock of another recording, as in broadcasts, and not a pause.
    """

    def __init__(self, step: Fraction, restarts: bool) -> None:
        self._step, self._restarts = step, restarts
        self._offset: Fraction | None = None
        self._last = -step

    def at(self, said: Fraction | None) -> Fraction:
        if said is not None and self._offset is None:
            self._offset = said - (self._last + self._step)
        time = self._last + self._step if said is None or self._offset is None else said - self._offset
        late = time - self._last
        if late < -self._step or (self._restarts and late > _JUMP):
            time = self._last + self._step
            self._offset = said - time if said is not None else None
        elif late <= 0:
            time = self._last + min(self._step, _FINEST)
        self._last = time
        return time


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
        self._av = _import_av()
        self._rate = Fraction(fps).limit_denominator(1001)
        height, width = _even(size)
        self._planes = np.empty((height * 3 // 2, width), np.uint8)  # luma, then the two colour planes
        with self._failing_in_one_line():
            if self.path.exists() and not overwrite:
                raise OutputError(f"{self.path} exists; choose another name")
            self._partial = _new_file(self.path)
            try:
                options = _MUXING[self._partial.suffix]
                self._container = self._av.open(_local(self._partial), "w", options=options)
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
            raise OutputError(f"{self.path} cannot be written ({_reason(error)}){held}") from None


def _new_file(path: Path) -> Path:
    """A file beside `path` that nobody could have laid there before, for what is to become `path`."""
    stem = os.fsdecode(os.fsencode(path.stem)[:200])
    partial = path.with_name(f".{stem}.{secrets.token_hex(4)}.partial{path.suffix.lower()}")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
    return partial


def _count(path: Path) -> int:
    """How many frames a file holds that was not finished."""
    av = _import_av()
    with suppress(av.error.FFmpegError, OSError), av.open(_local(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))
    return 0


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
    if not path.is_file():
        raise VideoError(f"{path} is a pipe or a device, not a file; save it as a file first")
    try:
        return av.open(_local(path), options={"protocol_whitelist": "file"})  # a file cannot lead to the net
    except MemoryError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be opened as a video ({_reason(error)}); it is damaged or not one") from None


def _local(path: Path) -> str:
    """A name that FFmpeg cannot take for an address: to it, `rec12:30.mp4` has the protocol rec12."""
    return str(path.absolute())


def _video_stream(container: Any, path: Path) -> Any:
    """The stream FFmpeg would take: the default one with most pixels. Not threaded by frame: an error would also take
    its neighbours."""
    streams = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED_PICTURE]
    if not streams:
        raise VideoError(f"{path} has no video stream (found: {_streams(container)})")
    best = max(streams, key=lambda stream: stream.width * stream.height + 5_000_000 * (stream.disposition & _DEFAULT))
    others = [f"{stream.index} ({stream.width}x{stream.height})" for stream in streams if stream is not best]
    if others:
        _warn(
            f"{path} holds {len(streams)} video streams: {best.index} ({best.width}x{best.height}) is read, "
            f"{', '.join(others)} left out"
        )
    _refuse_large(path, best.height, best.width)
    best.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # for frames that are larger than announced
    return best


def _refuse_large(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise VideoError(f"{path} has frames of {width}x{height}: over the limit of {MAX_PIXELS:,} pixels")


def _streams(container: Any) -> str:
    return ", ".join(stream.type for stream in container.streams) or "nothing"


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


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _warn(text: str) -> None:
    warnings.warn(f"video: {text}", Segmv3Warning, stacklevel=3)
