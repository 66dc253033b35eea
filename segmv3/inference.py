"""Ways to run a net over an image that cost more than one pass: several scales and mirroring, sliding windows.

Functions over any callable from an image to logits; the formulae are in docs/scoring.md. Images are RGB tensors
N x 3 x H x W, uint8 or float 0..255, on the callable's device. Logits come at any size, such as that of a head,
and are resized here, a band of rows at a time: no map of all classes is ever held at the size of an enlarged image.
"""

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmv3.errors import ConfigError

LogitsFunction = Callable[[Tensor], Tensor]
"""Image N x 3 x H x W to logits N x classes x h x w of any size h x w."""

Size = tuple[int, int]
"""Height and width, pixels."""

MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The scales behind "ms+flip" in the mmsegmentation table."""

_BAND_BYTES = 4 * 2**20
"""What a band of resized logits may take, a few of which exist at a time: small enough for a processor cache."""


# ---- several scales, mirrored ----


def multi_scale_flip(
    logits_of: LogitsFunction,
    image: Tensor,
    *,
    scales: Sequence[float] = MULTI_SCALES,
    flip: bool = True,
    input_size: Size | None = None,
) -> Tensor:
    """Mean class probabilities over resized and mirrored copies of the image.

    As mmsegmentation 1.2.2 scores "ms+flip". A copy is the image at `scaled_size`, resized as a picture (bilinear,
    uint8 again if it was uint8). Its logits are resized to the size of the copy, then to H x W (both bilinear,
    align_corners=False), then put through the softmax. Copies run one after the other, the largest first, and only
    their sum is kept, so memory does not grow with their number.

    Args:
        logits_of: the net.
        image: N x 3 x H x W.
        scales: of the copies.
        flip: whether each copy is also seen mirrored.
        input_size: the (height, width) that the scales are of; that of the image by default.

    Returns:
        float32 probabilities N x classes x H x W at the image's own size.
    """
    if not scales:
        raise ValueError("no scales given")
    size = (image.shape[2], image.shape[3])
    total: Tensor | None = None
    for scale in sorted(scales, reverse=True):  # the largest needs most, and allocators keep a part of every copy's
        copy = resize_image(image, scaled_size(input_size or size, scale))
        for mirrored in (False, True) if flip else (False,):
            logits = logits_of(copy.flip(3)).flip(3) if mirrored else logits_of(copy)
            if total is None:
                total = torch.zeros((*logits.shape[:2], *size), device=logits.device)
            for rows, band in resized_bands(logits, (copy.shape[2], copy.shape[3]), size):
                total[:, :, rows] += torch.softmax(band, dim=1)
            del logits
    assert total is not None
    return total.div_(len(scales) * (2 if flip else 1))


def scaled_size(size: Size, scale: float) -> Size:
    """The size of a copy at a scale, rounded as mmsegmentation rounds it.

    Both sides are rounded half up, then the image is fitted into that box with its ratio of sides kept: where
    rounding moved the two sides by different shares, the smaller of the two ratios counts for both.

    Args:
        size: (height, width) of the image, pixels.
        scale: above 0; 1 leaves the size as it is.

    Returns:
        (height, width), each at least 1.
    """
    box = [max(1, int(side * scale + 0.5)) for side in size]
    ratio = min(max(box) / max(size), min(box) / min(size))
    height, width = (max(1, int(side * ratio + 0.5)) for side in size)
    return height, width


def resize_image(image: Tensor, size: Size) -> Tensor:
    """A copy of an image as a picture of another size, as mmsegmentation's nets see it.

    OpenCV's `resize` with INTER_LINEAR: bilinear, pixel centres aligned, no antialiasing; of uint8 in fixed point and
    rounded to whole grey levels. At half the size each pixel is the mean of four.

    Args:
        image: N x 3 x H x W, uint8 or float.
        size: (height, width) of the copy.
    """
    if tuple(image.shape[2:]) == size:
        return image
    pixels = (image if image.dtype == torch.uint8 else image.float()).permute(0, 2, 3, 1).cpu().numpy()
    resized = [cv2.resize(np.ascontiguousarray(picture), size[::-1]) for picture in pixels]
    return torch.from_numpy(np.stack(resized)).to(image.device).permute(0, 3, 1, 2)


# ---- sliding window ----


def sliding_window(logits_of: LogitsFunction, image: Tensor, *, window: Size, stride: Size) -> Iterator[Tensor]:
    """Mean logits over overlapping windows, in strips of rows from top to bottom.

    Windows start every `stride` pixels; the last of a row or column is moved inwards to end with the image. A side
    shorter than the window is taken whole, without padding. Logits are resized to the window (bilinear,
    align_corners=False) and averaged where windows overlap, before any softmax, as mmsegmentation 1.2.2 does.
    A strip is yielded when no window to come touches it, so that no more than `window` height x W is held.

    Args:
        logits_of: the net.
        image: N x 3 x H x W.
        window: its height and width.
        stride: rows and columns between windows.

    Yields:
        float32 logits N x classes x rows x W; the rows of all strips add up to H.

    Raises:
        ConfigError: the window or the stride cannot cover an image.
    """
    check_window(window, stride)
    return _strips(logits_of, image, window, stride)


def check_window(window: Size, stride: Size) -> None:
    """Refuse windows that cannot cover an image.

    Args:
        window: (height, width) of a window, pixels.
        stride: rows and columns from one window to the next.

    Raises:
        ConfigError: a size is below 1, or the stride leaves pixels between windows.
    """
    for flag, size in (("--sliding-window", window), ("--stride", stride)):
        if min(size) < 1:
            raise ConfigError(f"{flag} is {size[0]} {size[1]}; height and width must be at least 1")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise ConfigError(
            f"--stride {stride[0]} {stride[1]} leaves pixels between windows of {window[0]} x {window[1]}; "
            f"use at most {window[0]} {window[1]}"
        )


def default_stride(window: Size) -> Size:
    """Two thirds of the window, rounded down: 341 for 512, as is usual."""
    return max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3)


def _strips(logits_of: LogitsFunction, image: Tensor, window: Size, stride: Size) -> Iterator[Tensor]:
    height, width = image.shape[2:]
    tall, wide = min(window[0], height), min(window[1], width)
    tops, lefts = _starts(height, tall, stride[0]), _starts(width, wide, stride[1])
    down, across = (_coverage(*sides).to(image.device) for sides in ((height, tall, tops), (width, wide, lefts)))
    total: Tensor | None = None  # summed logits of the rows top : top + tall
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            logits = logits_of(image[:, :, top : top + tall, left : left + wide])
            if total is None:
                total = torch.zeros((*logits.shape[:2], tall, width), device=logits.device)
            for rows, band in resized_bands(logits, (tall, wide)):
                total[:, :, rows, left : left + wide] += band
        assert total is not None
        done = next_top - top
        yield total[:, :, :done] / (down[top:next_top, None] * across)
        total = F.pad(total[:, :, done:], (0, 0, 0, done))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side that is at least as long as they are."""
    return [min(start, length - window) for start in range(0, length - window + stride, stride)]


def _coverage(length: int, window: int, starts: Sequence[int]) -> Tensor:
    """How many windows hold each pixel of a side, float32."""
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + window] += 1
    return counts


# ---- logits resized in bands ----


def resized_bands(logits: Tensor, *sizes: Size) -> Iterator[tuple[slice, Tensor]]:
    """Logits resized to each of `sizes` in turn, as float32 bands of rows at the last of them.

    Bilinear with align_corners=False. It is linear and separable, so all steps are first taken over the rows that a
    band needs, then over its columns: equal to whole maps resized step by step, but for float32 rounding.

    Args:
        logits: floating-point N x classes x h x w.
        sizes: (height, width) of each step; the last one is the size of the result.

    Yields:
        The rows of the band, and its logits, float32 N x classes x rows x width.
    """
    logits = logits.float().contiguous()
    heights, widths = zip(*sizes, strict=True)
    row_bytes = logits.element_size() * logits.shape[0] * logits.shape[1] * max(*widths, logits.shape[3])
    step = max(1, _BAND_BYTES // row_bytes)
    for start in range(0, heights[-1], step):
        rows = range(start, min(start + step, heights[-1]))
        band = _resized_rows(logits, heights, rows)
        for width in widths:
            if width != band.shape[3]:
                band = F.interpolate(band, (len(rows), width), mode="bilinear", align_corners=False)
        yield slice(rows.start, rows.stop), band


def _resized_rows(x: Tensor, heights: Sequence[int], rows: range) -> Tensor:
    """Some rows of N x C x h x w resized in height to each of `heights` in turn."""
    if not heights:
        return x[:, :, rows.start : rows.stop]
    *earlier, height = heights
    before = earlier[-1] if earlier else x.shape[2]
    if before == height:
        return _resized_rows(x, earlier, rows)
    # In float32 and this order of operations, as torch finds the two rows that each row lies between.
    place = torch.arange(rows.start, rows.stop, dtype=torch.float32, device=x.device)
    place = ((place + 0.5) * torch.tensor(before / height, dtype=torch.float32) - 0.5).clamp(0, before - 1)
    upper = place.long()
    lower = (upper + 1).clamp(max=before - 1)
    first = int(upper[0])
    source = _resized_rows(x, earlier, range(first, int(lower[-1]) + 1))
    return torch.lerp(source[:, :, upper - first], source[:, :, lower - first], (place - upper)[:, None])
