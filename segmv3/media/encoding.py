"""Videos out, through PyAV (the extra `[video]`): VP9 in WebM; H.264 or AV1 in MP4.

Of the encoders for a codec the first is taken that PyAV has and that opens here. The only one under the GPL, x264,
comes last. docs/how-to/label-images-and-videos.md has their licences.
"""

import errno
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from segmv3.errors import OutputError, ResourceError, Segmv3Warning
from segmv3.files import no_link
from segmv3.images import UInt8Array
from segmv3.media.containers import import_av, local, reason
from segmv3.media.sound import HELD, Sound, SoundCopier

# Every frame reaches the disk at once: a hard kill costs one or two. An MP4 gets its index at the end besides.
_AT_ONCE = {"flush_packets": "1", "max_interleave_delta": "1"}  # pictures do not wait for sound, which comes in order
_MUXING = {
    ".webm": {"cluster_time_limit": "0", **_AT_ONCE},
    ".mp4": {"movflags": "hybrid_fragmented+frag_every_frame", **_AT_ONCE},
}
# Half of the cores, up to four: the net runs on the same ones.
_THREADS = min(max((os.cpu_count() or 1) // 2, 1), 4)
# All are tuned to keep up with a net, and give out each frame at once. The lower `crf`, the better the picture.
_ENCODERS: dict[str, dict[str, dict[str, str]]] = {
    "VP9": {
        "libvpx-vp9": {
            **{"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "threads": str(_THREADS)},
            # Tiles are for several threads and slow one down; the encoder uses fewer where the picture is narrow.
            **({"row-mt": "1", "tile-columns": "2"} if _THREADS > 1 else {}),
            **{"crf": "34", "b": "0"},  # constant quality needs a bit rate of 0
        }
    },
    "H.264": {
        "libopenh264": {"allow_skip_frames": "0", "rc_mode": "quality"},
        "h264_videotoolbox": {"realtime": "1", "q": "60"},
        "h264_mf": {"rate_control": "quality", "quality": "70"},
        "libx264": {
            **{"preset": "ultrafast", "tune": "zerolatency", "crf": "25", "threads": str(_THREADS)},
            "x264-params": "no-deblock=0",  # a tenth more time, and no blocks are seen
        },
    },
    "AV1": {
        "libsvtav1": {"preset": "12", "crf": "35", "svtav1-params": f"pred-struct=1:lookahead=0:lp={_THREADS}"},
    },
}
_CODECS = {".webm": ("VP9", "AV1"), ".mp4": ("H.264", "AV1", "VP9")}
FORMATS = {"webm": (".webm", "VP9"), "mp4": (".mp4", "H.264"), "av1": (".mp4", "AV1")}
"""What `--video` takes: a suffix and a codec by name."""
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
    """Write frames as a video; a context manager.

    The file grows beside its place, as `.<name>.<random>.partial.<suffix>`, and takes its name when the block is
    left, also when that is by an exception or Ctrl-C: what was written by then plays. Without a single frame nothing
    is left behind. After a hard kill or on a full disk the frames written by then play under the partial name.

    Args:
        path: the file; its suffix, .webm or .mp4, chooses the container, and VP9 or H.264.
        fps: frames per second, on average.
        size: (height, width) of the frames. An odd side is padded by one pixel that repeats the edge, because
            the codec stores colours for 2 x 2 pixels.
        overwrite: whether an existing file may be replaced.
        codec: "VP9", "H.264" or "AV1", where it is not to be the suffix's own.
        sound: sound to copy beside the frames, where the container holds its codec.

    Raises: OutputError when the file exists, cannot be written, or its suffix is another; ResourceError
    when the disk is full, or without the package av.
    Warns: Segmv3Warning where the sound is left out, or another codec taken because no encoder is there.
    """

    def __init__(
        self,
        path: Path | str,
        fps: float,
        size: tuple[int, int],
        *,
        overwrite: bool = False,
        codec: str | None = None,
        sound: Sound | None = None,
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.frames_written = 0
        self._failed = False
        self._container: Any = None
        self._sound: SoundCopier | None = None
        self._until = Fraction(0)  # when the last frame ends
        if self.path.suffix.lower() not in _MUXING:
            raise OutputError(f"{self.path} is of a type that cannot be written; name it .webm or .mp4")
        self._av = import_av()
        self._rate = Fraction(fps).limit_denominator(1001)
        encoder, settings = _encoder(self.path, codec, self._rate, size)
        height, width = _even(size)
        self._picture = self._av.VideoFrame(width, height, "yuv420p")  # filled anew each time
        with self._failing_in_one_line():
            if self.path.exists() and not overwrite:
                raise OutputError(f"{self.path} exists; choose another name")
            self._partial = _new_file(self.path)
            try:
                options = _MUXING[self._partial.suffix]
                self._container = self._av.open(local(self._partial), "w", options=options)
                self._stream = self._container.add_stream(encoder, rate=self._rate, options=settings)
                _describe(self._stream.codec_context, self._rate, size)
                if sound and _holds(self._partial.suffix, sound):
                    self._sound = SoundCopier(sound, self._container)
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
        picture = self._picture
        picture.make_writable()  # it is another one where the encoder still holds it
        _to_yuv420(frame, [_pixels(plane) for plane in picture.planes])
        picture.time_base = self._stream.codec_context.time_base
        time = self.frames_written / self._rate if time is None else time
        picture.pts = round(time / picture.time_base)
        picture.duration = round(1 / self._rate / picture.time_base)
        self._until = time + 1 / self._rate
        with self._failing_in_one_line():
            if self._sound:
                self._sound.copy(self._until)
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
                self._close()
            if self.frames_written:
                os.replace(self._partial, self.path)  # noqa: PTH105 (replaces on Windows too)
            else:
                self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._sound:
            self._sound.close()
        if self._container:
            self._container.close()

    @contextmanager
    def _failing_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (self._av.error.FFmpegError, OSError) as error:
            self._failed = True
            with suppress(self._av.error.FFmpegError, OSError):
                self._close()
            held = ""
            if self.frames_written:
                held = f"; {_frames_in(self._partial):,} of {self.frames_written:,} frames are in {self._partial.name}"
            if isinstance(error, MemoryError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ResourceError(f"the disk is full: {self.path} cannot be finished{held}") from None
            raise OutputError(f"{self.path} cannot be written ({reason(error)}){held}") from None


def _new_file(path: Path) -> Path:
    """A file beside `path` that nobody could have laid there before, for what is to become `path`."""
    stem = os.fsdecode(os.fsencode(path.stem)[:200])
    partial = path.with_name(f".{stem}.{secrets.token_hex(4)}.partial{path.suffix.lower()}")
    os.close(no_link(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return partial


def _frames_in(path: Path) -> int:
    """How many frames a file holds that was not finished."""
    av = import_av()
    with suppress(av.error.FFmpegError, OSError), av.open(local(path)) as container:
        return sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(video=0))
    return 0


def _encoder(path: Path, codec: str | None, rate: Fraction, size: tuple[int, int]) -> tuple[str, dict[str, str]]:
    """FFmpeg's name of the encoder that `path` gets, and its settings."""
    wanted = dict.fromkeys((codec or _CODECS[path.suffix.lower()][0], *_CODECS[path.suffix.lower()]))
    for name in wanted:
        for encoder, settings in _ENCODERS[name].items():
            if _opens(encoder, settings, rate, size):
                if name != next(iter(wanted)):
                    text = (
                        f"video: no encoder for {next(iter(wanted))} opens here; {path.name} becomes {name} ({encoder})"
                    )
                    warnings.warn(text, Segmv3Warning, stacklevel=4)
                return encoder, settings
    raise ResourceError(f"PyAV has no encoder here for {path.suffix} (looked for {', '.join(wanted)}); reinstall av")


def _opens(encoder: str, settings: dict[str, str], rate: Fraction, size: tuple[int, int]) -> bool:
    """Whether an encoder is there, and takes frames of this size: some are the machine's, and some need 64 pixels."""
    av = import_av()
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    try:
        context = av.CodecContext.create(encoder, "w")
        context.options = settings
        _describe(context, rate, size)
        context.open()
    except MemoryError:
        raise
    except (av.error.FFmpegError, OSError, ValueError):
        return False
    return True


def _describe(context: Any, rate: Fraction, size: tuple[int, int]) -> None:
    """Tell a codec what comes. Its time base divides the time of a frame into whole numbers, and fits other times."""
    context.height, context.width = _even(size)
    context.pix_fmt = "yuv420p"
    context.framerate = rate
    context.time_base = Fraction(1, rate.numerator * -(-90_000 // rate.numerator))
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED


def _holds(suffix: str, sound: Sound) -> bool:
    """Whether sound can be copied into a container; where not, a line says why."""
    others = [each for each, codecs in HELD.items() if sound.codec in codecs]
    if sound.path and suffix in others:
        return True
    why = f"{suffix} holds {' or '.join(HELD[suffix])}, not {sound.codec}" if sound.path else "it is heard only once"
    advice = f"; an {others[0].removeprefix('.').upper()} keeps it" if others and sound.path else ""
    text = f"video: the sound of {sound.title} is left out ({why}){advice}"
    warnings.warn(text, Segmv3Warning, stacklevel=4)
    return False


def _even(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _pixels(plane: Any) -> UInt8Array:
    """The memory of a plane of a frame, uint8 H x W."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _to_yuv420(frame: UInt8Array, planes: Sequence[UInt8Array]) -> None:
    """Convert for the encoder, several times faster than FFmpeg does.

    Args:
        frame: uint8 H x W x 3, RGB.
        planes: luma, uint8 H' x W', and the two of colour, H'/2 x W'/2, to be filled. H' and W' are H and W rounded up
            to even numbers, by repeating the edge.
    """
    height, width = _even((frame.shape[0], frame.shape[1]))
    yuv = cv2.transform(np.ascontiguousarray(frame), _TO_YUV)
    if yuv.shape[:2] != (height, width):
        yuv = cv2.copyMakeBorder(yuv, 0, height - len(yuv), 0, width - yuv.shape[1], cv2.BORDER_REPLICATE)
    half = cv2.resize(yuv, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    for channel, (picture, plane) in enumerate(zip((yuv, half, half), planes, strict=True)):
        cv2.extractChannel(picture, channel, dst=plane)
