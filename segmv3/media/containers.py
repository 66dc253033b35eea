"""Files of videos: opened through PyAV, and what their outermost layer says where FFmpeg keeps it to itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from segmv3.errors import ResourceError

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_Box = tuple[bytes, int, int]  # its name, where its content begins and where it should end


def import_av() -> Any:
    try:
        import av
    except ImportError:
        raise ResourceError('video needs the package av: pip install "segmv3[video]"') from None
    return av


def local(path: Path) -> str:
    """A name that FFmpeg cannot take for an address: to it, `rec12:30.mp4` has the protocol rec12."""
    return str(path.absolute())


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def breaks_off(path: Path) -> bool:
    """Whether an MP4, AVI, WebM or Matroska file is shorter than its outermost boxes say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        return any(end > size for _, _, end in _boxes(file, size))


def avi_ticks(path: Path, stream: int) -> int:
    """How many frames the index of an AVI file lists for a stream, empty ones included; 0 where it has no index."""
    names = (b"%02ddc" % stream, b"%02ddb" % stream)
    with path.open("rb") as file:
        size = path.stat().st_size
        for name, start, end in _boxes(file, size):
            if name != b"RIFF":
                break
            for inner, begin, stop in _chunks(file, start + 4, min(end, size)):
                if inner == b"idx1":
                    file.seek(begin)
                    index = file.read(min(stop, size) - begin)
                    return sum(index[at : at + 4] in names for at in range(0, len(index), 16))
    return 0


def _boxes(file: BinaryIO, size: int) -> Iterator[_Box]:
    head = file.read(4)
    file.seek(0)
    if head == b"RIFF":
        return _chunks(file, 0, size)
    return _ebml(file) if head == _EBML else _atoms(file, size)


def _chunks(file: BinaryIO, start: int, stop: int) -> Iterator[_Box]:
    """Chunks of RIFF: a name, a length, and content up to an even length."""
    while start + 8 <= stop:
        file.seek(start)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if length == 0xFFFFFFFF:  # written to a pipe: nobody knew
            return
        yield head[:4], start + 8, start + 8 + length
        start += 8 + length + length % 2


def _atoms(file: BinaryIO, size: int) -> Iterator[_Box]:
    """Boxes of MP4: a length that counts itself, and a name. Boxes after the last known name are not read."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or name not in (b"ftyp", b"free", b"skip", b"wide", b"mdat", b"moov", b"moof", b"mfra", b"uuid"):
            return  # a length of 0 means: to the end
        yield name, start + 8, start + length
        start += length


def _ebml(file: BinaryIO) -> Iterator[_Box]:
    """Of WebM and Matroska: the header, and one segment of which a live recording does not know the length."""
    start = 0
    for _ in range(2):
        file.seek(start)
        name, head = file.read(4), file.read(8)
        width = 9 - head[0].bit_length() if head and head[0] else 9
        if width > len(head) or name not in (_EBML, _SEGMENT):
            return
        length = int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)
        start += 4 + width + length
        if length == (1 << 7 * width) - 1:
            return
        yield name, start - length, start
