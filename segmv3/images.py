"""The one image decoder: training, scoring and demos all read pixels here.

Pillow with a full decode, and for plain PNG files what decodes them faster: libspng where the extra `png` is installed,
else OpenCV. `PIL.Image.verify` and `cv2.imread` both accept half a JPEG; `load()` does not.
"""

import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from segmv3.errors import ConfigError, DataError, ResourceError, Segmv3Error, Segmv3Warning, is_out_of_memory
from segmv3.files import write_bytes

UInt8Array = NDArray[np.uint8]

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".webp", ".bmp", ".tif", ".tiff"}  # .jfif: as browsers save
)
PHONE_SUFFIXES = {".avif": "PIL._avif", ".heic": "pillow_heif", ".heif": "pillow_heif"}
"""Of photographs of phones, and the module that decodes them. `segmv3 predict` takes them; no data set has them."""
NOTES = frozenset(
    {".txt", ".md", ".rst", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".html", ".log", ".pdf"}
    | {".db", ".ini", ".py", ".sh", ".part", ".lock"}
)
"""Suffixes of what lies beside images, never in their place."""


def _pixel_limit() -> int:
    said = os.environ.get("SEGMV3_MAX_PIXELS") or "179000000"
    if not (said.isascii() and said.isdigit() and 0 < int(said) < 2**40):
        raise ConfigError(f"SEGMV3_MAX_PIXELS is {said!r}; it must be a number of pixels, such as 400000000")
    return int(said)


MAX_PIXELS = _pixel_limit()
"""No larger picture is decoded: a PNG of 20 kB can ask for gigabytes. The variable SEGMV3_MAX_PIXELS sets another."""
MAX_BYTES = 12 * MAX_PIXELS
"""Of a file: more than a picture of that many pixels fills."""
if Image.MAX_IMAGE_PIXELS is not None and MAX_PIXELS > 2 * Image.MAX_IMAGE_PIXELS:  # Pillow's limit inside of TIFF
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (_PNG, PngImagePlugin.PngImageFile),
    (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
)
"""Regular expression of the first bytes of a file, and what of Pillow opens it."""
_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# Of a PNG, what its pixels are made of and which way is up. All else is left out: profiles and texts of any size.
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf"})
_TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def read_file(path: Path) -> bytes:
    """The contents of a regular file; pipes and devices are neither waited for nor read.

    Raises: DataError naming the path, ResourceError when the memory does not hold it.
    """
    try:
        stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not an image") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with stream, _blamed_on(path, "cannot be read"):
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{path} is a pipe or a device, not a file")
        if about.st_size > MAX_BYTES:
            raise DataError(f"{path} holds {about.st_size:,} bytes: over the limit of {MAX_BYTES:,}")
        return stream.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe has no other end to wait for


@contextmanager
def _blamed_on(path: Path, what: str, advice: str = "") -> Iterator[None]:
    """Turn what a decoder raises into a `DataError` about the file, or into one about memory."""
    try:
        yield
    except Segmv3Error:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if is_out_of_memory(error) or "out of memory" in text:
            raise ResourceError(f"out of memory while {path} was read; use smaller images") from None
        if any(word in text for word in ("unknown pixel mode", "unknown data organization", "Unsupported BMP")):
            what, advice = "holds pixels of a type that is not read", "; store it as 8-bit RGB"
        raise DataError(f"{path} {what} ({text}){advice}") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} is {width}x{height}: over the limit of {MAX_PIXELS:,} pixels (SEGMV3_MAX_PIXELS sets another)"
        )


def _png_chunks(data: bytes, path: Path) -> list[tuple[bytes, int, int]]:
    """Name, start and end of every chunk of a PNG before its IEND, all of them with the right checksum.

    Pillow stops reading once the picture is full and ignores what the checksums say of the pixels, and what OpenCV says
    of a damaged file is not to be relied on.
    """
    view, place, chunks = memoryview(data), len(_PNG), []
    while (name := data[place + 4 : place + 8]) != b"IEND":
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        if end > len(data):
            raise DataError(f"{path} is damaged (it ends too early; file of {len(data):,} bytes); replace it")
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise DataError(f"{path} is damaged (wrong checksum of {name!r}; file of {len(data):,} bytes); replace it")
        chunks.append((name, place, end))
        place = end
    if data[place : place + 4] + data[place + 8 : place + 12] != b"\0\0\0\0\xaeB`\x82":
        raise DataError(f"{path} is damaged (its last chunk is; file of {len(data):,} bytes); replace it")
    if not chunks or chunks[0][0] != b"IHDR" or chunks[0][2] - chunks[0][1] != 25:
        raise DataError(f"{path} cannot be opened as an image (a PNG without its header); replace it")
    return chunks


def _bare_png(data: bytes, path: Path) -> tuple[bytes, bool]:
    """A PNG without what does not change its pixels, and whether it may be decoded by other than Pillow."""
    chunks = _png_chunks(data, path)
    _check_size(path, int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    kept, names = [data[:8]], set()
    for name, start, end in chunks:
        text = name in (b"tEXt", b"zTXt", b"iTXt") and end - start < 65536
        if name in _PIXEL_CHUNKS or (text and data.startswith(_TURNING_TEXTS, start + 8)):
            kept.append(data[start:end])
            names.add(name)
        elif name == b"acTL":
            _say_first(path, int.from_bytes(data[start + 8 : start + 12], "big"), "frames")
    whole = len(kept) == len(chunks) + 1
    plain = data[24:25] == b"\x08" and data[28:29] == b"\0" and names <= {b"IHDR", b"IDAT"}
    return data if whole else b"".join((*kept, b"\0\0\0\0IEND\xaeB`\x82")), plain


def _plain_png(data: bytes, *, color: bool) -> UInt8Array | None:
    """The pixels of an 8-bit grey or RGB PNG of header and pixels alone, whose checksums are right.

    OpenCV's libpng takes a fifth less time than Pillow, libspng with zlib-ng two fifths less. None is Pillow's turn: to
    decode, or to say what is wrong.

    Args:
        data: the file.
        color: RGB of either kind, uint8 H x W x 3; otherwise grey alone, H x W.
    """
    if data[25:26] not in ((b"\0", b"\2") if color else (b"\0",)):
        return None
    if png_library() == "libspng":
        import pyspng

        with suppress(RuntimeError):  # whole by its checksums, and yet no picture
            return cast(UInt8Array, pyspng.load(data, format="RGB" if color else "L"))
        return None
    import cv2

    with suppress(cv2.error):  # of its own limits, or no memory: Pillow will say
        flags = cv2.IMREAD_COLOR_RGB if color else cv2.IMREAD_UNCHANGED
        return cast(UInt8Array | None, cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    return None


@cache  # an import that fails is searched for each time
def png_library() -> str:
    """What decodes plain PNG files here: libspng where the extra `png` is installed, otherwise OpenCV."""
    try:
        import pyspng  # noqa: F401
    except ImportError:
        return "OpenCV"
    return "libspng"


def decoded(data: bytes, path: Path, *, color: bool) -> UInt8Array | Image.Image:
    """A file as pixels where it is a plain PNG, otherwise as Pillow's image, decoded to its last pixel.

    JPEG has no checksums: a flipped bit in one goes unnoticed, a missing end does not.
    """
    size = f"file of {len(data):,} bytes"
    kind = _decoder(data, path)
    if data[:4] == b"RIFF":
        _check_size(path, *_webp_size(data))  # opened, it takes the memory of its canvas
    if data.startswith(_PNG):
        with _blamed_on(path, "is damaged", f"; {size}; replace it"):
            data, plain = _bare_png(data, path)
            pixels = _plain_png(data, color=color) if plain else None
        if pixels is not None:
            return pixels
    with _blamed_on(path, "cannot be opened as an image", "; replace it"):
        image = kind(io.BytesIO(data))
        _check_size(path, *image.size)
    with _blamed_on(path, "is damaged", f"; {size}; replace it"):
        frames = 1 if image.format == "PNG" else getattr(image, "n_frames", 1)
        image.load()
        tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
        depths = data[24] if image.format == "PNG" else tags.get(258, 8)
        image.info["depth"] = int(np.max(depths))
    if frames > 1:
        _say_first(path, frames, "pages" if image.format == "TIFF" else "frames")
    return image


def _decoder(data: bytes, path: Path) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    """What of Pillow opens a file, by its first bytes."""
    kind = next((kind for start, kind in _FORMATS if re.match(start, data, re.DOTALL)), None)
    if kind is None and data[4:8] == b"ftyp":
        kind = _modern(data, path)
    if kind is None:
        raise DataError(f"{path} cannot be opened as an image (not a PNG, JPEG, WEBP, BMP or TIFF); replace it")
    return kind


def _modern(data: bytes, path: Path) -> Callable[[io.BytesIO], ImageFile.ImageFile] | None:
    """The decoder of an AVIF or HEIC file; None where it is a video."""
    brands = {data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4], "big"), 64), 4))}
    if brands & _AVIF:
        from PIL import features

        if not features.check("avif"):
            raise ResourceError(f"{path} is an AVIF, which this Pillow does not read; pip install -U pillow")
        from PIL import AvifImagePlugin

        return AvifImagePlugin.AvifImageFile
    if brands & _HEIC:
        try:
            from pillow_heif.as_plugin import HeifImageFile
        except ImportError:
            raise ResourceError(f'{path} is an HEIC: pip install "segmv3[heic]"') from None
        return HeifImageFile
    return None


def is_image(start: bytes) -> bool:
    """Whether a file that begins like this is a picture, by its first 64 bytes."""
    boxed = start[4:8] == b"ftyp" and start[8:12] in _AVIF | _HEIC
    return boxed or any(re.match(each, start, re.DOTALL) for each, _ in _FORMATS)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header of a WebP."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


_said: set[str] = set()  # once for each kind in a process, not for each of a million files


def _say_first(path: Path, count: int, what: str) -> None:
    if count > 1 and what not in _said:
        _said.add(what)
        text = f"data: {path} holds {count:,} {what}; the first is read, of this file and of others like it"
        warnings.warn(text, Segmv3Warning, stacklevel=4)


_COLOURS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_DARK = 1 << 14  # 10, 12 or 14 bits in 16 have no brighter values
_TURNED: dict[int, Callable[[UInt8Array], UInt8Array]] = {  # by EXIF's number
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def read_image(path: Path | str, data: bytes | None = None) -> UInt8Array:
    """Decode an image file completely.

    Grey, palette, CMYK, YCbCr and 16-bit images become 8-bit RGB, alpha is dropped, EXIF rotation is applied. Of an
    animation or a file of many pages the first picture is read.

    Args:
        path: the file; messages name it.
        data: its bytes, where they are read already. Without them the file is read.

    Returns:
        uint8 H x W x 3, RGB.

    Raises:
        DataError: the file is missing, damaged or no image, or the range of its pixels is unknown (floating point, 32
            bits, LAB).
        ResourceError: memory runs out.
    """
    path = Path(path)
    image = decoded(read_file(path) if data is None else data, path, color=True)
    if isinstance(image, np.ndarray):
        return image
    with _blamed_on(path, "has unreadable EXIF data", "; replace it"):
        turn = image.getexif().get(0x0112, 1)
    with _blamed_on(path, "cannot be converted to RGB"):
        pixels = _rgb(image, path)
        return np.ascontiguousarray(_TURNED[turn](pixels)) if turn in _TURNED else pixels


def _rgb(image: Image.Image, path: Path) -> UInt8Array:
    """Uint8 H x W x 3, made in strips: there is no second copy of a large picture in another form."""
    wide = image.mode.startswith("I;16")
    if not wide and image.mode not in _COLOURS:
        kind = {"F": "floating-point", "I": "32-bit or signed", "LAB": "LAB"}.get(image.mode, image.mode)
        raise DataError(f"{path} holds {kind} pixels, which are not read; store it as 8-bit RGB or 16-bit grey")
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    brightest = 0
    image.info.pop("transparency", None)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, 2**18 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        into = pixels[top : top + rows]
        if wide:  # Pillow's own conversion clips at 255
            grey = np.asarray(strip)
            brightest = max(brightest, int(grey.max()))
            grey = 65535 - grey if tags.get(262) == 0 else grey  # WhiteIsZero
            into[:] = ((grey.astype(np.uint32) + 128) // 257)[..., None]
        else:
            into[:] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    if image.info["depth"] == 16 and image.mode in ("L", "LA", "RGB", "RGBA"):  # Pillow keeps the upper 8 bits
        brightest = 257 * int(pixels.max())
    if 0 < brightest < _DARK:
        raise DataError(
            f"{path} holds 16-bit values up to about {brightest:,}, nearly black: are they of 12 bits or so? "
            "Scale them to 0..65535, or store it with 8 bits"
        )
    return pixels


class NoLabelMap(DataError):
    """A sound picture where a map of ids should be."""


def read_ids(path: Path, data: bytes | None = None) -> UInt8Array:
    """Decode a label file: uint8 H x W, values as stored (a palette is kept as ids, never turned into colours).

    Args:
        data: the bytes of the file, where it lies in an archive.

    Raises:
        DataError: the file is missing, damaged, not 8-bit single-channel, or a JPEG, whose compression invents ids.
    """
    image = decoded(read_file(path) if data is None else data, path, color=False)
    if isinstance(image, np.ndarray):
        return image
    lossy = "a JPEG" if image.format == "JPEG" or "jpeg" in str(image.info.get("compression", "")) else ""
    if lossy or image.mode not in _IDS:
        kind = lossy or _KINDS.get(image.mode, f"of mode {image.mode}")
        advice = "compression changes ids: store it as PNG" if lossy else "labels must be 8-bit single-channel ids"
        city = "_gtFine_" in path.name  # other data sets have no such files
        for mark in ("color", "instanceIds"):
            advice += f" (is it a gtFine_{mark} file?)" if city and path.stem.endswith(f"_{mark}") else ""
        raise NoLabelMap(f"{path} is {kind}; {advice}")
    pixels = np.array(image, np.uint8)
    depth = image.info["depth"] if image.mode == "L" else 8
    return pixels if depth >= 8 else pixels // (255 // (2**depth - 1))  # Pillow spreads grey of 2 or 4 bits over 0..255


_IDS = ("1", "L", "P")  # of one bit: ids 0 and 1
_KINDS = {
    **dict.fromkeys(("RGB", "RGBA", "PA", "CMYK", "YCbCr", "LAB"), "a colour image"),
    **dict.fromkeys(("LA", "La"), "an image with an alpha channel"),
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I"), "an image of 16 bits or more, as instance ids are stored"),
}


def write_png(path: Path, pixels: UInt8Array) -> None:
    """Write uint8 H x W (grey or ids) or H x W x 3 (RGB) as PNG: complete or not at all.

    Raises: OutputError or ResourceError naming the path when it cannot be written.
    """
    buffer = io.BytesIO()
    # run lengths alone: of label maps and overlays smaller than a search for repeats, and half the time
    Image.fromarray(pixels).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    write_bytes(path, buffer.getvalue(), durable=False)
