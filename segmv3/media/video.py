"""Videos in, through PyAV (the extra `[video]`, imported when the first video is opened): all formats of FFmpeg.

What a file announces about itself is reported, never relied on: frames are counted while they are decoded.
"""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Self

from segmv3.errors import PartialVideoError, Segmv3Warning, VideoError
from segmv3.images import MAX_PIXELS, UInt8Array
from segmv3.media.containers import avi_ticks, breaks_off, import_av, local, reason
from segmv3.media.frames import View
from segmv3.media.sound import Sound

_FALLBACK_FPS = Fraction(25)
_FINEST = Fraction(1, 1000)  # between two frames of a WebM
_JUMP = 10  # seconds: more than this between two frames of a broadcast is a new clock, as to FFmpeg
_DEFAULT = 1  # FFmpeg's flags of a stream
_ATTACHED_PICTURE = 1024


class VideoReader:
    """The frames of a video: a context manager, and an iterable that can be run through once.

    Each frame is uint8 H x W x 3, RGB, as players show it: turned and mirrored as the file asks, in square pixels,
    HDR brought down to SDR. All have the size of the first. Memory does not grow with the length.

    Args:
        path: the file; with `container`, a name for messages.
        container: what PyAV opened already, where the video came from elsewhere.
        stored: the file on disk that holds the video of `container`, where there is one.

    Of several video streams the one is read that FFmpeg would take; a line names the others.

    Attributes: fps: frames per second, on average; frames_read: frames handed out so far.

    Raises, when opened: VideoError naming the path when it is missing, is no video, has no readable frame or too
    large ones; ResourceError without the package av.
    Raises, after the last frame: PartialVideoError when stretches could not be decoded, or the file breaks off. How
    many frames a file announces is no evidence: such counts are often wrong.
    """

    def __init__(self, path: Path | str, container: Any = None, *, stored: Path | None = None) -> None:
        self.path: Path | str = path if container else Path(path)
        self._file = stored if container else Path(path)
        self.frames_read = 0
        self._damaged = self._begun = False
        self._empty: set[int] = set()  # ticks of an AVI that repeat the frame before
        self._container = container or _open(Path(path))
        self._avi = self._file if self._container.format.name == "avi" else None
        self._broadcast = "mpeg" in self._container.format.name
        try:
            self._stream = video_stream(self._container, self.path)
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
        self._stored: tuple[int, int] | None = (first.width, first.height)  # until a change is told
        self._start = (first.pts or 0) * self._stream.time_base
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

    @property
    def sound(self) -> Sound | None:
        """What is heard with the pictures; None where nothing is."""
        streams = self._container.streams.audio
        return Sound(self._file, streams[0].codec_context.name, self._start, self.path) if streams else None

    def __iter__(self) -> Iterator[UInt8Array]:
        return (frame for frame, _ in self.timed())

    def timed(self) -> Iterator[tuple[UInt8Array, Fraction]]:
        """Each frame and when it is shown, in seconds since the first."""
        clock = _Clock(1 / self._rate, self._broadcast)
        unit, tick, pixels = self._stream.time_base, 0, None
        for frame in self._frames:
            while tick in self._empty:
                if pixels is not None:
                    yield self._handed_out(pixels), clock.at(tick * unit)
                tick += 1
            pixels = self._view.pixels(frame)
            self._note_size(frame)
            time = tick if self._avi else frame.pts
            yield self._handed_out(pixels), clock.at(None if time is None else time * unit)
            tick += 1
        while tick in self._empty and pixels is not None:
            yield self._handed_out(pixels), clock.at(tick * unit)
            tick += 1
        self._complain()

    def _note_size(self, frame: Any) -> None:
        if self._stored and (frame.width, frame.height) != self._stored:
            old, new = (f"{width}x{height}" for width, height in (self._stored, (frame.width, frame.height)))
            _warn(
                f"{self.path}: the frames are {new} from number {self.frames_read + 1:,} on; they are scaled to {old}"
            )
            self._stored = None

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
        ticks = avi_ticks(self._avi, self._stream.index) if self._avi else 0
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
                if packet.dts is not None and self._avi:  # FFmpeg leaves out the empty chunks
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
        if self._begun or not self._broadcast:
            self._damaged = True

    def _complain(self) -> None:
        """Say after the last frame what is missing."""
        held = f"result holds {self.frames_read:,} frames"
        if self._file and breaks_off(self._file):
            announced = self.announced_frames or 0
            if announced > self.frames_read:
                held = f"only {self.frames_read:,} of the announced {announced:,} frames could be read; {held}"
            raise PartialVideoError(f"{held} ({self.path} is cut or damaged)")
        if self._damaged:
            raise PartialVideoError(f"damaged stretches of {self.path} were skipped; {held}")


class _Clock:
    """Times of frames that only grow, from times that a file may leave out, repeat or begin anew.

    Args:
        step: seconds from one frame to the next where nothing else is said.
        restarts: whether a long gap is the clock of another recording, as in broadcasts, and not a pause.
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


def _open(path: Path) -> Any:
    import_av()
    if not path.exists():
        raise VideoError(f"{path} does not exist")
    if path.is_dir():
        raise VideoError(f"{path} is a folder, not a video")
    if not path.is_file():
        raise VideoError(f"{path} is a pipe or a device, not a file; save it as a file first")
    return open_video(local(path), path, "file")  # a file cannot lead to the net


def open_video(source: Any, title: Path | str, protocols: str = "none") -> Any:
    """A container of PyAV.

    Args:
        source: what PyAV opens: a path, or an object to read from.
        title: what messages call it.
        protocols: what its contents may lead to, as FFmpeg names it.

    Raises: VideoError when it is no video.
    """
    av = import_av()
    try:
        return av.open(source, options={"protocol_whitelist": protocols})
    except MemoryError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{title} cannot be opened as a video ({reason(error)}); it is damaged or not one") from None


def video_stream(container: Any, path: Path | str) -> Any:
    """The stream FFmpeg would take: the default one with most pixels.

    It is not decoded by a thread for each frame: there an error in one frame would damage its neighbours, too.
    """
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


def _refuse_large(path: Path | str, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise VideoError(f"{path} has frames of {width}x{height}: over the limit of {MAX_PIXELS:,} pixels")


def _streams(container: Any) -> str:
    return ", ".join(stream.type for stream in container.streams) or "nothing"


def _warn(text: str) -> None:
    warnings.warn(f"video: {text}", Segmv3Warning, stacklevel=3)
