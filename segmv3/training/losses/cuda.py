"""Cross-entropy of upsampled logits on a GPU: one Triton kernel gives the loss and its gradient.

A program works on some cells, the output pixels between the same four low-resolution ones. It adds up the gradient of
each corner over the cell, so that a low-resolution pixel gets four numbers from four cells: no atomics, the same bits
every time, and no logit is interpolated for two programs.
"""

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from segmv3.labels import IGNORE

_PIXELS = 512
"""Output pixels of a program, about."""

LARGEST_CELL = 1024
"""Pixels, those of a net with stride 32; much larger ones do not fit a program's registers."""

_CORNERS = 2**26
"""Bytes that the gradients of the corners may take: large maps go through in several launches."""


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    logits, classes, step_n, step_c, step_y, step_x, low_height, low_width,
    labels, height, width, y_start, y_weight, x_start, x_weight, own_weight, all_weight,
    partial, corners, plane, pixels,
    IGNORE: tl.constexpr, SMOOTH: tl.constexpr, CLASSES: tl.constexpr, DIFFERENTIATE: tl.constexpr,
    PIXELS: tl.constexpr, CELLS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program for CELLS neighbouring cells of a row, and image. `_cells` says where they are."""
    groups = tl.cdiv(low_width + 1, CELLS)
    j = tl.program_id(0) // groups
    i = tl.program_id(0) % groups * CELLS + tl.arange(0, CELLS)
    n = tl.program_id(1).to(tl.int64)
    real = i <= low_width
    spot = tl.arange(0, ROWS * COLUMNS)
    y = tl.load(y_start + j) + spot // COLUMNS
    x = tl.load(x_start + i, mask=real, other=0)[:, None] + (spot % COLUMNS)[None, :]
    x_end = tl.load(x_start + i + 1, mask=real, other=0)
    inside = (y < tl.load(y_start + j + 1))[None, :] & (x < x_end[:, None])  # CELLS x pixels of a cell
    s = tl.load(y_weight + y, mask=y < height, other=0.0)[None, :]
    q = tl.load(x_weight + x, mask=inside, other=0.0)
    r, p = 1 - s, 1 - q
    out = (n * height + y[None, :]) * width + x
    name = tl.load(labels + out, mask=inside, other=IGNORE).to(tl.int32)
    known = (name != IGNORE).to(tl.float32)
    top, bottom = tl.maximum(j - 1, 0) * step_y, tl.minimum(j, low_height - 1) * step_y
    left, right = tl.maximum(i - 1, 0) * step_x, tl.minimum(i, low_width - 1) * step_x
    image = logits + n * step_n
    everything = 0.0
    if SMOOTH:
        number = tl.arange(0, CLASSES)
        everything = tl.sum(tl.load(all_weight + number, mask=number < classes, other=0.0), 0)

    best = tl.full([CELLS, ROWS * COLUMNS], -3.0e38, tl.float32)
    total = tl.zeros([CELLS, ROWS * COLUMNS], tl.float32)  # of exp(value - best) so far
    truth = tl.zeros([CELLS, ROWS * COLUMNS], tl.float32)
    own = tl.zeros([CELLS, ROWS * COLUMNS], tl.float32)
    all_values = tl.zeros([CELLS, ROWS * COLUMNS], tl.float32)
    for c in range(classes):
        value = _interpolate(image + c * step_c, top, bottom, left, right, real, p, q, r, s)
        wins = value > best
        apart = tl.exp(-tl.abs(value - best))
        total = tl.where(wins, total * apart + 1, total + apart)
        best = tl.where(wins, value, best)
        truth = tl.where(name == c, value, truth)
        own = tl.where(name == c, tl.load(own_weight + c), own)
        if SMOOTH:
            all_values += tl.load(all_weight + c) * value
    level = tl.log(total)  # -log p of a class is this, and how far its logit is behind the best one
    pixel = own * (level + (best - truth))
    if SMOOTH:
        pixel += everything * level + (everything * best - all_values)
    pixel = tl.where(known > 0, pixel, 0.0)
    wrong = (known > 0) & ((name < 0) | (name >= classes))
    pixel = tl.where(wrong, float("nan"), pixel)
    if PIXELS:
        tl.store(pixels + out, pixel, mask=inside)
    at = partial + 3 * (n * tl.num_programs(0) + tl.program_id(0))
    tl.store(at, tl.sum(tl.sum(pixel, 1), 0))
    tl.store(at + 1, tl.sum(tl.sum(own, 1), 0))
    tl.store(at + 2, tl.sum(tl.sum(known, 1), 0))

    if DIFFERENTIATE:
        factor = (own + everything * known) / total
        for c in range(classes):
            value = _interpolate(image + c * step_c, top, bottom, left, right, real, p, q, r, s)
            slope = factor * tl.exp(value - best) - tl.where(name == c, tl.load(own_weight + c), 0.0)
            if SMOOTH:
                slope -= tl.load(all_weight + c) * known
            corner = corners + ((n * classes + c) * (low_height + 1) + j) * (low_width + 1) + i
            tl.store(corner, tl.sum(r * p * slope, 1), mask=real)
            tl.store(corner + plane, tl.sum(r * q * slope, 1), mask=real)
            tl.store(corner + 2 * plane, tl.sum(s * p * slope, 1), mask=real)
            tl.store(corner + 3 * plane, tl.sum(s * q * slope, 1), mask=real)


@triton.jit
def _interpolate(image, top, bottom, left, right, real, p, q, r, s):  # type: ignore[no-untyped-def]
    """Of one class, from the four corners of every cell to its pixels."""
    a = tl.load(image + top + left, mask=real, other=0.0).to(tl.float32)[:, None]
    b = tl.load(image + top + right, mask=real, other=0.0).to(tl.float32)[:, None]
    d = tl.load(image + bottom + left, mask=real, other=0.0).to(tl.float32)[:, None]
    e = tl.load(image + bottom + right, mask=real, other=0.0).to(tl.float32)[:, None]
    return r * (p * a + q * b) + s * (p * d + q * e)


@functools.lru_cache(maxsize=64)
def _cells(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """One direction of the resize, in cells between input k - 1 and input k; cells 0 and `inputs` are the margins.

    Returns: (first output of each cell, then the number of outputs; weight of the second input for each output, with
        the float32 arithmetic of torch's interpolate; outputs of the largest cell).
    """
    half = np.float32(0.5)
    place = np.arange(outputs, dtype=np.float32)
    if inputs != outputs:
        place = (place + half) * (np.float32(inputs) / np.float32(outputs)) - half
    before = np.floor(place)
    cell = np.clip(before.astype(np.int32) + 1, 0, inputs)
    weight = np.where(cell == 0, np.float32(1), np.where(cell == inputs, np.float32(0), place - before))
    start = np.searchsorted(cell, np.arange(inputs + 2)).astype(np.int32)
    return torch.from_numpy(start).to(device), torch.from_numpy(weight).to(device), int(np.diff(start).max())


def largest_cell(inputs: tuple[int, int], outputs: tuple[int, int]) -> int:
    """Pixels of the largest cell, its sides rounded up to powers of two."""
    sides = (_cells(a, b, torch.device("cpu"))[2] for a, b in zip(inputs, outputs, strict=True))
    return int(np.prod([triton.next_power_of_2(side) for side in sides]))


def sums(
    low: Tensor,
    labels: Tensor,
    own_weight: Tensor,
    all_weight: Tensor | None,
    *,
    differentiate: bool,
    pixels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `cpu.sums`, of tensors on one GPU: low of any float type and layout, its largest cell not over LARGEST_CELL.

    Nothing waits for the device; a label that is neither a class nor 255 therefore makes the loss NaN.
    """
    count, classes, height, width = low.shape
    size = labels.shape[1:]
    y_start, y_weight, tallest = _cells(height, size[0], low.device)
    x_start, x_weight, widest = _cells(width, size[1], low.device)
    rows, columns = triton.next_power_of_2(tallest), triton.next_power_of_2(widest)
    cells = min(max(1, _PIXELS // (rows * columns)), triton.next_power_of_2(width + 1))
    programs = (height + 1) * triton.cdiv(width + 1, cells)
    partial = low.new_empty((count, programs, 3), dtype=torch.float32)
    gradient = low.new_empty(low.shape if differentiate else 0, dtype=torch.float32)
    found = low.new_empty(labels.shape if pixels else (count,), dtype=torch.float32)
    fit = _CORNERS // (16 * classes * (height + 1) * (width + 1)) if differentiate else count
    for part in torch.arange(count).split(max(1, fit)):
        images = slice(int(part[0]), int(part[-1]) + 1)
        corners = low.new_empty(
            (4, len(part), classes, height + 1, width + 1) if differentiate else (4,), dtype=torch.float32
        )
        with torch.cuda.device_of(low):
            _kernel[programs, len(part)](
                *(low[images], classes, *low.stride(), height, width),
                *(labels[images], *size, y_start, y_weight, x_start, x_weight),
                *(own_weight, own_weight if all_weight is None else all_weight),
                *(partial[images], corners, corners.numel() // 4, found[images]),
                **{"IGNORE": IGNORE, "SMOOTH": all_weight is not None, "CLASSES": triton.next_power_of_2(classes)},
                **{"DIFFERENTIATE": differentiate, "PIXELS": pixels},
                **{"CELLS": cells, "ROWS": rows, "COLUMNS": columns},
            )
        if differentiate:  # a low-resolution pixel is the last corner of the cell before it, the first of the one after
            first, right, bottom, last = corners
            torch.add(last[..., :-1, :-1], bottom[..., :-1, 1:], out=gradient[images])
            gradient[images] += right[..., 1:, :-1]
            gradient[images] += first[..., 1:, 1:]
    loss, weight, labelled = partial.sum((0, 1), dtype=torch.float64)
    return loss.float(), weight.float(), labelled.long(), gradient, found
