"""Live pictures: cameras, streams and the screen.

A thread reads all that comes and keeps the newest; whoever labels the pictures gets that one and is never late. A
source that is lost is opened again, after pauses that grow.
"""

import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np

from segmv3.errors import PartialVideoError, ResourceError, Segmv3Error, Segmv3Warning
from segmv3.images import UInt8Array
from segmv3.media import addresses
from segmv3.media.addresses import open_address, shown
from segmv3.media.containers import import_av, reason
from segmv3.media.frames import View
from segmv3.media.sound import Sound
from segmv3.media.video import video_stream
from segmv3.waiting import PATIENCE, giving_up

Feed = Callable[[], Iterator[Callable[[], UInt8Array]]]
"""Opens a source and gives what comes, each picture as a call that makes its pixels: for a dropped one it is not made.
After its end, or an exception, it is called again, unless the first call ends with a Segmv3Error: that is for good."""

PAUSES = (0.5, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each try to open a lost source again."""
_SCREEN_RATE = 30


class LiveReader:
    """The newest frames of a live source: a context manager with the interface of `VideoReader`.

    Each frame is uint8 H x W x 3, RGB, of the size of the first; its time is when it came, in seconds since the first.

    Args:
        name: what messages call the source.
        feed: opens it.

    Raises, when opened and while frames are read: PartialVideoError when it cannot be opened in five tries; whatever
    Segmv3Error `feed` raises at first.
    Warns: Segmv3Warning when the source is lost, when its size changes, and at the end of how many frames were dropped.
    """

    announced_frames = None
    fps = 30.0

    def __init__(self, name: str, feed: Feed) -> None:
        self.name, self._feed = name, feed
        self.frames_read = self.frames_dropped = 0
        self._newest: tuple[float, Callable[[], UInt8Array]] | None = None
        self._error: Segmv3Error | None = None
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._notes: deque[str] = deque()
        self._resized = self._seen = self._gave = False
        self._thread = threading.Thread(target=self._run, name=f"segmv3 {name}", daemon=True)
        self._thread.start()
        try:
            self._begun, first = self._take()
            self._first: UInt8Array | None = first()
            self.size: tuple[int, int] = self._first.shape[:2]
        except BaseException:
            self._end()
            raise

    @property
    def sound(self) -> Sound | None:
        """What is heard with the pictures, and is not copied."""
        return getattr(self._feed, "sound", None)

    def timed(self) -> Iterator[tuple[UInt8Array, Fraction]]:
        """The newest frame each time one is asked for, once it is there, and when it came."""
        with self._changed:  # what came while a net was opened is old by now
            newest, self._newest, self.frames_dropped = self._newest, None, 0
        pixels, self._first, milliseconds = self._first, None, 0
        if newest:
            self._begun, pixels = newest[0], self._fitted(newest[1]())
        while True:
            assert pixels is not None
            self.frames_read += 1
            yield pixels, Fraction(milliseconds, 1000)
            came, make = self._take()
            pixels = self._fitted(make())
            milliseconds = max(milliseconds + 1, round((came - self._begun) * 1000))  # no two at the same time

    def _take(self) -> tuple[float, Callable[[], UInt8Array]]:
        """Wait for a frame, in steps: a signal can come between them."""
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._error, 0.5)
                newest, self._newest = self._newest, None
                error = self._error
            self._say()
            if newest:
                return newest
            if error:
                raise error
        raise PartialVideoError(f"{self.name} is closed")

    def _fitted(self, pixels: UInt8Array) -> UInt8Array:
        if pixels.shape[:2] == self.size:
            return pixels
        if not self._resized:
            self._resized = True
            (old, new) = (f"{width}x{height}" for height, width in (self.size, pixels.shape[:2]))
            self._notes.append(f"{self.name}: the frames are {new} from now on; they are scaled to {old}")
        return cv2.resize(pixels, self.size[::-1], interpolation=cv2.INTER_AREA)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._gave = False
            try:
                with closing(self._feed()) as frames:  # type: ignore[type-var]
                    for frame in frames:
                        if self._stop.is_set():
                            return
                        self._put(frame)
                why = "it ended"
            except Segmv3Error as error:
                if not self._seen:
                    self._fail(error)
                    return
                why = str(error.args[0])
            except Exception as error:
                why = reason(error)
            failures = 0 if self._gave else failures + 1
            if failures >= len(PAUSES):
                done = f"; result holds {self.frames_read:,} frames" if self.frames_read else ""
                self._fail(PartialVideoError(f"{self.name} gives no pictures ({why}; {failures} tries){done}"))
                return
            if self._gave or (not self._seen and failures == 1):
                self._notes.append(f"{self.name}: no picture comes ({why}); it is opened again")
            self._stop.wait(PAUSES[failures])

    def _put(self, frame: Callable[[], UInt8Array]) -> None:
        self._gave = self._seen = True
        with self._changed:
            self.frames_dropped += self._newest is not None
            self._newest = time.monotonic(), frame
            self._changed.notify_all()

    def _fail(self, error: Segmv3Error) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _say(self) -> None:
        while self._notes:
            warnings.warn(f"video: {self._notes.popleft()}", Segmv3Warning, stacklevel=4)

    def _end(self) -> None:
        """End the thread. One that is in a driver which does not answer ends when the driver does."""
        self._stop.set()
        with giving_up(self._thread.ident):
            self._thread.join(PATIENCE)

    def close(self) -> None:
        """End the thread, and say how many frames were dropped."""
        self._end()
        seen, seconds = self.frames_read + self.frames_dropped, time.monotonic() - self._begun
        self._notes.append(
            f"{self.name}: {self.frames_read:,} of {seen:,} frames were labelled in {seconds:.1f} s, "
            f"{self.frames_dropped:,} dropped: only the newest is taken"
        )
        self._say()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# ---- feeds ----


def camera(device: int | str) -> Iterator[Callable[[], UInt8Array]]:
    """A camera of this machine, by its number or its path."""
    path = Path(f"/dev/video{device}" if isinstance(device, int) else device)
    if sys.platform == "linux" and not path.exists():
        raise OSError(f"{path} is not there")
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)  # the error below says what OpenCV would print
    capture = cv2.VideoCapture(device)
    try:
        while capture.isOpened():
            here, picture = capture.read()
            if not here:
                break
            yield partial(cv2.cvtColor, picture, cv2.COLOR_BGR2RGB)
        raise OSError("it gives no picture" if capture.isOpened() else "it does not open")
    finally:
        capture.release()


class StreamFeed:
    """What is sent at an address. Pictures that came damaged are left out."""

    sound: Sound | None = None

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self) -> Iterator[Callable[[], UInt8Array]]:
        av = import_av()
        with open_address(self.address) as container:
            if container.streams.audio:
                self.sound = Sound(None, container.streams.audio[0].codec_context.name, title=shown(self.address))
            yield from self._frames(container, av)

    def _frames(self, container: Any, av: Any) -> Iterator[Callable[[], UInt8Array]]:
        video = video_stream(container, shown(self.address))
        packets = container.demux(video)
        view: View | None = None
        viewed = 0, 0
        while True:
            try:
                packet = next(packets, None)
                frames = video.decode(packet) if packet and packet.size else []
            except av.error.InvalidDataError:
                continue
            except av.error.ExitError:
                raise TimeoutError(f"nothing came for {addresses.PATIENCE} s") from None
            if packet is None:
                return
            for frame in frames:
                size = frame.width, frame.height
                if view is None or size != viewed:  # a view of each frame would keep it in memory for long
                    view, viewed = View.of(frame, video.sample_aspect_ratio), size
                yield partial(view.pixels, frame)


def screen() -> Iterator[Callable[[], UInt8Array]]:
    """The screen, at most 30 times a second."""
    from PIL import Image, ImageGrab

    def pixels(picture: Image.Image) -> UInt8Array:
        return np.asarray(picture.convert("RGB"))

    while True:
        begun = time.monotonic()
        try:
            picture = ImageGrab.grab()
        except Exception as error:
            raise ResourceError(f"the screen cannot be read here ({reason(error)})") from None
        yield partial(pixels, picture)
        time.sleep(max(0.0, 1 / _SCREEN_RATE - (time.monotonic() - begun)))
