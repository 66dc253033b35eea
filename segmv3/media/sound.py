"""The sound of a video, copied packet by packet beside new pictures: nothing is decoded, nothing gets worse."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from segmv3.media.containers import import_av, local

HELD = {
    ".webm": ("opus", "vorbis"),
    ".mp4": ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"),
}
"""Codecs of sound that players expect in a container, by its suffix."""


class Sound:
    """The first audio stream of a video.

    Args:
        path: the file; None where the video comes once, through a pipe or live: then nothing can be copied.
        codec: FFmpeg's name of the stream's codec.
        start: time in the file at which the pictures begin, in seconds.
        title: what messages call the video.
    """

    def __init__(self, path: Path | None, codec: str, start: Fraction = Fraction(0), title: object = None) -> None:
        self.path, self.codec, self.start, self.title = path, codec, start, title or path


class SoundCopier:
    """Copies sound to a container, as far as its pictures have come.

    Args:
        sound: what is copied; it has a file.
        target: a container of PyAV that is being written.
    """

    def __init__(self, sound: Sound, target: Any) -> None:
        assert sound.path
        av = import_av()
        self._source = av.open(local(sound.path), options={"protocol_whitelist": "file"})
        self._broken = av.error.FFmpegError
        stream = self._source.streams.audio[0]
        self._target, self._stream = target, target.add_stream_from_template(stream)
        self._packets = self._shifted(stream, sound.start)
        self._next = next(self._packets, None)

    def _shifted(self, stream: Any, start: Fraction) -> Iterator[tuple[Fraction, Any]]:
        last = -1
        try:
            for packet in self._source.demux(stream):
                if packet.dts is None or not packet.size:
                    continue
                shift = round(start / packet.time_base)
                packet.dts -= shift
                packet.pts = packet.dts  # sound has no order of its own
                if packet.dts > last and packet.dts >= 0:
                    last = packet.dts
                    yield packet.dts * packet.time_base, packet
        except self._broken:  # a file that breaks off: its reader says so
            return

    def copy(self, until: Fraction) -> None:
        """Write what is heard before `until`, in seconds since the first picture."""
        while self._next and self._next[0] < until:
            packet = self._next[1]
            packet.stream = self._stream
            self._target.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._source.close()
