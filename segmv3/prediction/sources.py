"""What a user names as SOURCE, turned into work: images with names for their results, or the frames of one video."""

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from segmv3.errors import ConfigError, DataError, ResourceError
from segmv3.files import expanded
from segmv3.images import MAX_BYTES, PHONE_SUFFIXES, UInt8Array, is_image, read_image
from segmv3.media import addresses, live, pipes
from segmv3.media.live import LiveReader
from segmv3.media.video import VideoReader
from segmv3.prediction import listing
from segmv3.prediction.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ImageSource, listed, surroundings
from segmv3.waiting import in_thread

_LIST_SUFFIX = ".txt"


class PictureSource(Protocol):
    """Pictures, each with a name and a size of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """One per picture and all different: where its results go below the output folder, without a suffix."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files that results must not replace."""
        ...

    def pictures(self) -> Iterable[UInt8Array | DataError]:
        """Uint8 H x W x 3, RGB; or why there is none: the others are still to be read."""
        ...


@runtime_checkable
class FrameSource(Protocol):
    """A video, a camera or a stream: frames of one size, each with a time."""

    @property
    def name(self) -> str:
        """How its results are named, without a suffix."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files that results must not replace."""
        ...

    def open(self) -> AbstractContextManager[Any]:
        """Its frames, as `segmv3.media.video.VideoReader` gives them, or `segmv3.media.live.LiveReader`."""
        ...


Source = PictureSource | FrameSource
"""What `predict_source` works on; one of a user's own is an object with the same members."""


@dataclass(frozen=True)
class HeldImage:
    """One picture that is no file: it came through a pipe or from the net."""

    name: str
    data: bytes
    origin: str
    paths: tuple[Path, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its name alone."""
        return (self.name,)

    def pictures(self) -> Iterator[UInt8Array]:
        """The picture. Raises: DataError when it cannot be read."""
        yield read_image(self.origin, self.data)


@dataclass(frozen=True)
class VideoSource:
    """One video file."""

    path: Path

    @property
    def name(self) -> str:
        """How its results are named, without a suffix."""
        return self.path.stem

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def open(self) -> VideoReader:
        """Its frames."""
        return VideoReader(self.path)


@dataclass(frozen=True)
class OpenedSource:
    """Frames that come from elsewhere than a file."""

    name: str
    opener: Callable[[], AbstractContextManager[Any]]
    paths: tuple[Path, ...] = ()

    def open(self) -> AbstractContextManager[Any]:
        """Its frames."""
        return self.opener()


@dataclass(frozen=True)
class _Asked:
    """What the user wrote as SOURCE."""

    text: str
    path: Path
    leave_out: Path | None
    raw: tuple[int, int] | None
    fps: float | None


def find_source(
    source: str, *, leave_out: Path | None = None, raw: tuple[int, int] | None = None, fps: float | None = None
) -> Source:
    """Find what SOURCE stands for; nothing is decoded. What exists as a file or folder is that.

    Args:
        source: an image, a folder (searched with its subfolders, sorted; dot files are ignored), a glob
            pattern, a sequence such as `frame_%04d.png`, a .txt file with one image path a line (relative to the
            current folder, or else to that of the file; `#` starts a comment line), a video, the number of a camera,
            an address, "screen", or "-" for standard input.
        leave_out: a folder below the searched one that is not entered: where results go, so that a second
            run does not take the results of the first for images.
        raw: width and height of bare RGB frames on standard input.
        fps: how many of them come in a second, 0.5 to 480; 25 by default.

    Raises: DataError when there is nothing there or nothing that can be read.
    Warns: Segmv3Warning when a folder or pattern also holds pictures or videos that are left out.
    """
    if not source.strip():
        raise DataError(f"no source was named; {_SUPPORTED}")
    path = expanded(source)
    try:
        path.exists()
    except OSError as error:
        raise DataError(f"{source[:60]}... cannot be looked up ({error.strerror})") from None
    asked = _Asked(source, path, leave_out, raw, fps)
    if raw and (source != "-" or min(raw) < 1):
        raise ConfigError("--raw is width and height, at least 1, of frames on standard input; name - as the source")
    if fps is not None and not (raw and 0.5 <= fps <= 480):
        raise ConfigError(f"--fps is {fps:g}; it is the rate of --raw, 0.5 to 480 (videos have their own, images none)")
    return next(opener for matches, opener in _OPENERS if matches(asked))(asked)


def _missing(asked: _Asked) -> Source:
    if asked.path.is_symlink():
        raise DataError(f"{asked.path} is a link to nowhere")
    raise DataError(f"{asked.text} does not exist ({surroundings(asked.path)})")


def _from_file(asked: _Asked) -> Source:
    path, suffix = asked.path, asked.path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; {_SUPPORTED}")
    if suffix in VIDEO_SUFFIXES:
        return VideoSource(path)
    if suffix == _LIST_SUFFIX:
        return listing.inlisted(path)
    if suffix in IMAGE_SUFFIXES:
        return ImageSource((path,), (path.stem,))
    if suffix in PHONE_SUFFIXES:
        advice = "pip install -U pillow" if suffix == ".avif" else 'pip install "segmv3[heic]"'
        raise ResourceError(f"{path} needs a decoder that is not installed: {advice}")
    raise DataError(f"{path} is of a type that cannot be read; {_SUPPORTED}")


def _from_camera(asked: _Asked) -> Source:
    device = int(asked.text) if asked.text.isdigit() else str(asked.path)
    title = f"camera {device}"
    name = f"camera{device}" if isinstance(device, int) else asked.path.name
    return OpenedSource(name, lambda: LiveReader(title, lambda: live.camera(device)))


def _from_screen(asked: _Asked) -> Source:
    return OpenedSource("screen", lambda: LiveReader("screen", live.screen))


def _from_address(asked: _Asked) -> Source:
    """A picture is here at once; a video of known length is downloaded when it is opened; the rest is live."""
    address = asked.text
    try:
        scheme, name = address.partition("://")[0].lower(), addresses.name_of(address)
    except ValueError as error:
        raise DataError(f"{addresses.shown(address)} is no address ({error})") from None

    def follow() -> AbstractContextManager[Any]:
        return LiveReader(addresses.shown(address), live.StreamFeed(address))

    if scheme in addresses.STREAMS:
        return OpenedSource(name, follow)
    if scheme not in addresses.WEB:
        raise DataError(f"{addresses.shown(address)} is no address that is read; {_SUPPORTED}")
    answer = addresses.ask(address, MAX_BYTES)
    if answer.image:
        return HeldImage(name, answer.image, addresses.shown(address))
    if not answer.endless:
        return OpenedSource(name, lambda: pipes.kept(lambda folder: addresses.download(address, folder), address))
    if answer.multipart:
        return OpenedSource(name, follow)

    def recorded() -> VideoReader | None:
        recording = addresses.open_recording(address)
        return VideoReader(addresses.shown(address), recording) if recording else None

    return OpenedSource(name, lambda: in_thread(recorded) or follow())


def _from_input(asked: _Asked) -> Source:
    """A picture is read at once, an MP4 kept in a file: its index may come last. Other videos are read as they come."""
    pipe, name = pipes.standard_input(), "stdin"
    if size := asked.raw:
        return OpenedSource(name, lambda: pipes.RawReader(pipe, size, asked.fps or 25))
    head = pipe.peek(64)
    if is_image(head):
        return HeldImage(name, pipe.read(MAX_BYTES), pipes.INPUT)
    if head[4:8] == b"ftyp":
        return OpenedSource(name, lambda: pipes.kept(lambda folder: pipes.save(pipe, folder), pipes.INPUT))
    return OpenedSource(name, lambda: pipes.read_pipe(pipe))


def _from_pattern(asked: _Asked) -> Source:
    found = listing.by_pattern(str(asked.path))
    return VideoSource(found) if isinstance(found, Path) else found


_SUPPORTED = (
    f"supported are images ({listed(IMAGE_SUFFIXES)}), folders, glob patterns and sequences (%04d) of images, "
    f"a .txt file of image paths, videos ({listed(VIDEO_SUFFIXES)}), the number of a camera, addresses "
    f"({' '.join(f'{scheme}://' for scheme in (*addresses.WEB, *addresses.STREAMS))}), screen, and - for standard input"
)
_OPENERS: tuple[tuple[Callable[[_Asked], object], Callable[[_Asked], Source]], ...] = (
    (lambda asked: asked.text == "-", _from_input),
    (lambda asked: asked.path.is_dir(), lambda asked: listing.in_folder(asked.path, asked.leave_out)),
    (lambda asked: re.fullmatch(r"/dev/video\d+", asked.text), _from_camera),
    (lambda asked: asked.path.exists(), _from_file),
    (lambda asked: asked.text.isascii() and asked.text.isdigit(), _from_camera),
    (lambda asked: asked.text == "screen", _from_screen),
    (lambda asked: "://" in asked.text, _from_address),
    (lambda asked: re.search(r"%0?\d*d", asked.path.name), lambda asked: listing.in_sequence(asked.path)),
    (lambda asked: glob.has_magic(asked.text), _from_pattern),
    (lambda asked: True, _missing),
)
"""What a text is, and how it is opened; the first that fits."""
