"""The one image decoder: training, scoring and demos all read pixels here.

Pillow with a full decode, and for plain PNG files what decodes them faster: libspng where the extra `png` is installed,
else OpenCV. `PIL.Image.verify` and `cv2.imread` both accept half a JPEG; `load()` does not.
"""

import io
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segmv3.errors import DataError
from segmv3.files import write_bytes

UInt8Array = NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, IndexError)  # the last: no IDAT
_HARMLESS_CHUNKS = frozenset({b"IHDR", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"bKGD", b"sBIT"})
MAX_PIXELS = 179_000_000  # a 20 kB PNG can ask for hundreds of MB; Pillow's own limit only warns at half of this


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not an image") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _plain_png(data: bytes, *, color: bool) -> UInt8Array | None:
    """The pixels of an 8-bit grey or RGB PNG that is whole and holds nothing that would change them.

    OpenCV's libpng takes a fifth less time than Pillow, libspng with zlib-ng two fifths less; what OpenCV says of a
    damaged file is not to be relied on, so that every checksum is looked at first. None is Pillow's turn: to decode, or
    to say what is wrong.

    Args: color: RGB of either kind, uint8 H x W x 3; otherwise grey alone, H x W.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        return None
    depth, kind, interlaced = data[24:25], data[25:26], data[28:29]
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    plain = depth == b"\x08" and interlaced == b"\x00" and kind in ((b"\x00", b"\x02") if color else (b"\x00",))
    if not plain or width * height > MAX_PIXELS:
        return None
    view, place = memoryview(data), 8
    while view[place + 4 : place + 8] != b"IEND":
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        if data[place + 4 : place + 8] not in _HARMLESS_CHUNKS:  # the end of a file that is cut, too
            return None
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return None
        place = end + 4
    decode = _by_libspng if png_library() == "libspng" else _by_opencv
    return decode(data, color)


@cache  # an import that fails is searched for each time
def png_library() -> str:
    """What decodes plain PNG files here: libspng where the extra `png` is installed, otherwise OpenCV."""
    try:
        import pyspng  # noqa: F401
    except ImportError:
        return "OpenCV"
    return "libspng"


def _by_libspng(data: bytes, color: bool) -> UInt8Array | None:
    import pyspng

    try:
        return cast(UInt8Array, pyspng.load(data, format="RGB" if color else "L"))
    except RuntimeError:  # whole by its checksums, and yet no picture
        return None


def _by_opencv(data: bytes, color: bool) -> UInt8Array | None:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB if color else cv2.IMREAD_UNCHANGED)
    return cast(UInt8Array | None, pixels)


def _load(data: bytes, path: Path) -> Image.Image:
    """Decode a file to its last pixel.

    Pillow stops reading a PNG once the picture is full and ignores what its checksums say of the pixels, hence
    the second look at those. JPEG has no checksums: a flipped bit in one goes unnoticed, a missing end does not.
    """
    image = _decode(data, path)
    try:
        if image.format == "PNG":
            image.verify()  # leaves the image unusable
            image = _decode(data, path)
        image.load()
    except _DECODING_ERRORS as error:
        raise DataError(f"{path} is damaged ({_reason(error)}; file of {len(data):,} bytes); replace it") from None
    return image


def _decode(data: bytes, path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be opened as an image ({_reason(error)}); replace it") from None
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{path} is {image.width}x{image.height}: over the limit of {MAX_PIXELS:,} pixels")
    return image


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "not a PNG, JPEG, WEBP, BMP or TIFF" if "cannot identify" in text else text


def read_image(path: Path | str) -> UInt8Array:
    """Decode an image file completely.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, alpha is dropped, EXIF rotation is applied.

    Returns: uint8 H x W x 3, RGB.
    Raises: DataError naming the path when the file is missing, damaged or not an image.
    """
    data = _read(Path(path))
    if (pixels := _plain_png(data, color=True)) is not None:
        return pixels
    try:
        image = ImageOps.exif_transpose(_load(data, Path(path)))
    except _DECODING_ERRORS as error:
        raise DataError(f"{path} has unreadable EXIF data ({_reason(error)}); replace it") from None
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion clips 16-bit values at 255
        grey = np.clip(np.asarray(image, dtype=np.float64) / 257, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_ids(path: Path) -> UInt8Array:
    """Decode a label file completely, values as stored (a palette is kept as ids, never turned into colours).

    Returns: uint8 H x W.
    Raises: DataError naming the path when the file is missing, damaged, or not 8-bit single-channel; and a
        JPEG, whose compression invents ids.
    """
    data = _read(path)
    if (pixels := _plain_png(data, color=False)) is not None:
        return pixels
    image = _load(data, path)
    lossy = "a JPEG" if image.format == "JPEG" or "jpeg" in str(image.info.get("compression", "")) else ""
    if lossy or image.mode not in _IDS:
        kind = lossy or _KINDS.get(image.mode, f"of mode {image.mode}")
        advice = "compression changes ids: store it as PNG" if lossy else "labels must be 8-bit single-channel ids"
        city = "_gtFine_" in path.name  # other data sets have no such files
        for mark in ("color", "instanceIds"):
            advice += f" (is it a gtFine_{mark} file?)" if city and path.stem.endswith(f"_{mark}") else ""
        raise DataError(f"{path} is {kind}; {advice}")
    pixels = np.array(image, np.uint8)
    depth = data[24] if image.format == "PNG" and image.mode == "L" else 8
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
