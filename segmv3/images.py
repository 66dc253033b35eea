"""The one image decoder: training, scoring and demos all read pixels here.

Pillow with a full decode. `PIL.Image.verify` and `cv2.imread` both accept half a JPEG; `load()` does not.
"""

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segmv3.errors import DataError
from segmv3.files import write_bytes

UInt8Array = NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError)
_MAX_PIXELS = 179_000_000  # a 20 kB PNG can ask for hundreds of MB; Pillow's own limit only warns at half of this


def _load(path: Path) -> Image.Image:
    """Decode a file to its last pixel.

    Pillow stops reading a PNG once the picture is full and ignores what its checksums say of the pixels, hence
    the second look at those. JPEG has no checksums: a flipped bit in one goes unnoticed, a missing end does not.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not an image") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
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
    if image.width * image.height > _MAX_PIXELS:
        raise DataError(f"{path} is {image.width}x{image.height}: over the limit of {_MAX_PIXELS:,} pixels")
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
    try:
        image = ImageOps.exif_transpose(_load(Path(path)))
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
    Raises: DataError naming the path when the file is missing, damaged, or not 8-bit single-channel.
    """
    image = _load(path)
    if image.mode not in ("L", "P"):
        kind = {"RGB": "a colour image", "RGBA": "a colour image"}.get(image.mode, f"of mode {image.mode}")
        hint = "gtFine_color" if image.mode in ("RGB", "RGBA") else "gtFine_instanceIds"
        raise DataError(
            f"{path} is {kind}; labels must be 8-bit single-channel ids (is it a {hint} file or a picture?)"
        )
    return np.array(image)


def write_png(path: Path, pixels: UInt8Array) -> None:
    """Write uint8 H x W (grey or ids) or H x W x 3 (RGB) as PNG: complete or not at all.

    Raises: OutputError or ResourceError naming the path when it cannot be written.
    """
    buffer = io.BytesIO()
    # run lengths alone: of label maps and overlays smaller than a search for repeats, and half the time
    Image.fromarray(pixels).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    write_bytes(path, buffer.getvalue(), durable=False)
