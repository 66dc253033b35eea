"""The label map on a GPU, in one Triton kernel: a program labels a strip of pixels and walks over the classes."""

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from segmv3.decode import cpu

_PIXELS = 256


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    logits, classes, step_n, step_c, step_y, step_x, height, width,
    top, bottom, y_weight, y_next_weight, left, right, x_weight, x_next_weight,
    table, labels, confidence, LIMIT: tl.constexpr, SURE: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One program for each strip of PIXELS, row and image; `cpu.Axis` says where each pixel looks."""
    strips = tl.cdiv(width, PIXELS)
    x = tl.program_id(0) % strips * PIXELS + tl.arange(0, PIXELS)
    y = tl.program_id(0) // strips
    n = tl.program_id(1).to(tl.int64)
    inside = x < width
    x0 = tl.load(left + x, mask=inside, other=0) * step_x
    x1 = tl.load(right + x, mask=inside, other=0) * step_x
    p = tl.load(x_weight + x, mask=inside, other=0.0)
    q = tl.load(x_next_weight + x, mask=inside, other=0.0)
    r, s = tl.load(y_weight + y), tl.load(y_next_weight + y)
    upper = logits + n * step_n + tl.load(top + y) * step_y
    lower = logits + n * step_n + tl.load(bottom + y) * step_y
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    label = tl.zeros([PIXELS], tl.int32)
    total = tl.zeros([PIXELS], tl.float32)
    for c in range(classes):
        at = c * step_c
        a = _bounded(tl.load(upper + at + x0, mask=inside, other=0.0), LIMIT)
        b = _bounded(tl.load(upper + at + x1, mask=inside, other=0.0), LIMIT)
        d = _bounded(tl.load(lower + at + x0, mask=inside, other=0.0), LIMIT)
        e = _bounded(tl.load(lower + at + x1, mask=inside, other=0.0), LIMIT)
        value = r * (p * a + q * b) + s * (p * d + q * e)
        wins = value > best
        if SURE:  # total is the sum of exp(value - best) so far
            apart = tl.exp(-tl.abs(value - best))
            total = tl.where(wins, total * apart + 1, total + apart)
        label = tl.where(wins, c, label)
        best = tl.where(wins, value, best)
    out = (n * height + y) * width + x
    tl.store(labels + out, tl.load(table + label).to(tl.uint8), mask=inside)
    if SURE:
        tl.store(confidence + out, 1 / total, mask=inside)


@triton.jit
def _bounded(value, LIMIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bring a value to float32 and within the limit; NaN fails the first comparison."""
    value = value.to(tl.float32)
    value = tl.where(value > -LIMIT, value, -LIMIT)
    return tl.where(value < LIMIT, value, LIMIT)


@functools.lru_cache(maxsize=64)
def _axis(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, ...]:
    axis = cpu.axis(inputs, outputs)
    return tuple(
        torch.from_numpy(values).to(device)
        for values in (axis.index, axis.next_index, axis.weight[:outputs], axis.next_weight[:outputs])
    )


def label_map(
    logits: Tensor, size: tuple[int, int], table: NDArray[np.int32], *, confidence: bool
) -> tuple[Tensor, Tensor]:
    """As `segmv3.decode.label_map`, of checked arguments; the confidence is empty when not asked for."""
    if logits.dtype == torch.float64:
        logits = logits.float()
    count, classes, height, width = logits.shape
    labels = logits.new_empty((count, *size), dtype=torch.uint8)
    chances = logits.new_empty((count, *size) if confidence else (0,), dtype=torch.float32)
    if count:
        grid = (triton.cdiv(size[1], _PIXELS) * size[0], count)
        with torch.cuda.device_of(logits):
            _kernel[grid](
                *(logits, classes, *logits.stride(), *size),
                *(*_axis(height, size[0], logits.device), *_axis(width, size[1], logits.device)),
                *(torch.from_numpy(table).to(logits.device), labels, chances),
                **{"LIMIT": float(cpu.LIMIT), "SURE": confidence, "PIXELS": _PIXELS},
            )
    return labels, chances
