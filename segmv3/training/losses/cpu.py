"""Cross-entropy of upsampled logits on a CPU: numba-compiled bands of rows, shared out among threads.

Logits at full size exist for sixteen pixels at a time. A low-resolution row is widened once for all output rows beside
it, and the gradient of a widened row is narrowed once; in between, a class of a pixel costs two multiplications to
interpolate, an exponential, and two multiplications to give its gradient back. `chunked.py` is the same in plain torch.

numba keeps what it compiled by the place of each function in this file.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmv3.decode.cpu import Axis, Floats, _compiled, axis
from segmv3.decode.simd import LANES, any_at_least, floats, larger, load, mix, smaller, store
from segmv3.labels import IGNORE
from segmv3.training.losses.simd import exp_below, log, over, where_equal

_BAND = 2**16
"""Output pixels of a band, about. It does not depend on the threads, so that any number of them gives the same bits."""


@_compiled
def _total(lanes, memory):  # type: ignore[no-untyped-def]
    """The sum of sixteen numbers, in double precision; `memory` is sixteen float32 to work in."""
    store(memory, 0, lanes)
    total = 0.0
    for i in range(LANES):
        total += memory[i]
    return total


@_compiled
def _widen(low, image, row, across, wide, offset, stride):  # type: ignore[no-untyped-def]
    """Interpolate one low-resolution row of all classes along itself."""
    start, left, right, weight, next_weight = across
    for c in range(low.shape[1]):
        at = offset + c * stride
        for g in range(left.size):
            a, b = floats(low[image, c, row, left[g]]), floats(low[image, c, row, right[g]])
            for x in range(start[g], start[g + 1], LANES):  # what a vector writes too far, the next cell rewrites
                store(wide, at + x, mix(load(weight, x), a, load(next_weight, x), b))


@_compiled
def _narrow(slopes, offset, stride, across, gradient, image, row):  # type: ignore[no-untyped-def]
    """The way back: add the gradient of a widened row to that of the low-resolution row, and clear it."""
    start, left, right, weight, next_weight = across
    for c in range(gradient.shape[1]):
        at = offset + c * stride
        for g in range(left.size):
            a = b = np.float32(0)
            for x in range(start[g], start[g + 1]):
                a += weight[x] * slopes[at + x]
                b += next_weight[x] * slopes[at + x]
            gradient[image, c, row, left[g]] += a
            gradient[image, c, row, right[g]] += b
    slopes[offset : offset + gradient.shape[1] * stride] = 0


@_compiled
def _band(low, labels, image, rows, down, across, own_weight, all_weight, gradient, pixels):  # type: ignore[no-untyped-def]
    """Some output rows of one image.

    Args:
        low: float32 N x C x h x w.
        labels: integers N x H x W.
        rows: the first one and the one after the last.
        down: index, next_index, weight and next_weight of the vertical `Axis`.
        across: the parts of the horizontal one.
        own_weight: see `sums`.
        all_weight: see `sums`.
        gradient: see `sums`.
        pixels: see `sums`.

    Returns:
        Sum of the loss, sum of `own_weight` over the labelled pixels, their number, and the number of pixels whose
        label is no class.
    """
    index, next_index, weight, next_weight = down
    classes, width = low.shape[1], labels.shape[2]
    differentiate, smooth = gradient.size > 0, all_weight.max() > 0
    stride = (width + LANES - 1) // LANES * LANES + LANES
    plane = classes * stride
    wide, slopes = np.zeros(2 * plane, np.float32), np.zeros(2 * plane if differentiate else 0, np.float32)
    names, found = np.full(stride, IGNORE, np.float32), np.empty(stride, np.float32)
    values, memory = np.empty(classes * LANES, np.float32), np.empty(LANES, np.float32)
    held = np.full(2, -1)
    loss = weights = labelled = wrong = 0.0
    zero, one, minus = floats(np.float32(0)), floats(np.float32(1)), floats(np.float32(-1))
    ignore, highest, all_weights = floats(np.float32(IGNORE)), floats(np.float32(classes - 1)), floats(all_weight.sum())
    for y in range(rows[0], rows[1]):
        for x in range(width):
            names[x] = labels[image, y, x]
        row_labelled, row_wrong = zero, zero
        for x in range(0, width, LANES):
            name = load(names, x)
            known = where_equal(name, ignore, zero, one)
            inside = smaller(larger(name, zero), highest)
            row_labelled = mix(one, row_labelled, one, known)
            row_wrong = mix(one, row_wrong, one, where_equal(name, inside, zero, known))
        if not any_at_least(row_labelled, one):
            if pixels.size:
                pixels[image, y] = 0
            continue
        labelled += _total(row_labelled, memory)
        wrong += _total(row_wrong, memory)
        top, p, q = index[y], weight[y], next_weight[y]
        if top == next_index[y]:  # the last row, or beyond it: both weights are its own
            p, q = p + q, np.float32(0)
        for row in (top, next_index[y]):
            slot = row & 1
            if held[slot] != row:
                if differentiate and held[slot] >= 0:
                    _narrow(slopes, slot * plane, stride, across, gradient, image, held[slot])
                _widen(low, image, row, across, wide, slot * plane, stride)
                held[slot] = row
        upper, lower = (top & 1) * plane, (1 - (top & 1)) * plane
        p, q = floats(p), floats(q)
        row_loss, row_weights = zero, zero
        for x in range(0, width, LANES):
            name = load(names, x)
            known = where_equal(name, ignore, zero, one)
            best, truth, own, behind = floats(np.float32(-np.inf)), zero, zero, zero
            for c in range(classes):
                at = c * stride + x
                value = mix(p, load(wide, upper + at), q, load(wide, lower + at))
                store(values, c * LANES, value)
                number = floats(np.float32(c))
                truth = where_equal(name, number, value, truth)
                own = where_equal(name, number, floats(own_weight[c]), own)
                best = larger(value, best)
            total = zero
            for c in range(classes):
                value = load(values, c * LANES)
                if smooth:
                    behind = mix(floats(all_weight[c]), mix(one, best, minus, value), one, behind)
                value = exp_below(value, best)
                store(values, c * LANES, value)
                total = mix(one, total, one, value)
            level = log(total)  # -log p of a class is this, and how far its logit is behind the best one
            pixel = mix(own, level, own, mix(one, best, minus, truth))
            if smooth:
                pixel = mix(one, pixel, one, mix(all_weights, level, one, behind))
            pixel = where_equal(name, ignore, zero, pixel)
            row_loss, row_weights = mix(one, row_loss, one, pixel), mix(one, row_weights, one, own)
            if pixels.size:
                store(found, x, pixel)
            if differentiate:
                factor = over(mix(one, own, known, all_weights), total)
                for c in range(classes):
                    at = c * stride + x
                    pull = where_equal(name, floats(np.float32(c)), floats(own_weight[c]), zero)
                    if smooth:
                        pull = mix(one, pull, floats(all_weight[c]), known)
                    slope = mix(factor, load(values, c * LANES), minus, pull)
                    store(slopes, upper + at, mix(p, slope, one, load(slopes, upper + at)))
                    store(slopes, lower + at, mix(q, slope, one, load(slopes, lower + at)))
        loss += _total(row_loss, memory)
        weights += _total(row_weights, memory)
        if pixels.size:
            pixels[image, y] = found[:width]
    for slot in range(2):
        if differentiate and held[slot] >= 0:
            _narrow(slopes, slot * plane, stride, across, gradient, image, held[slot])
    return loss, weights, labelled, wrong


def _bands(down: Axis, width: int) -> list[tuple[int, int]]:
    """Output rows of each band, cut where the input row changes: bands that are not neighbours share no input row."""
    cells = np.flatnonzero(np.diff(down.index, prepend=-1)).tolist()
    height = len(down.index)
    count = max(1, min(len(cells), height * width // _BAND))
    return list(pairwise([cells[i * len(cells) // count] for i in range(count)] + [height]))


def sums(
    low: Floats,
    labels: NDArray[Any],
    own_weight: Floats,
    all_weight: Floats,
    *,
    differentiate: bool,
    pixels: bool,
    threads: int,
) -> tuple[float, float, int, Floats, Floats]:
    """The loss of a batch, -log p of every labelled pixel's class and of all classes, weighted, and its gradient.

    Args:
        low: float32 N x C x h x w, C-contiguous.
        labels: uint8 or int64 N x H x W, 255 = ignore, C-contiguous.
        own_weight: float32 C, of -log p of a pixel's own class.
        all_weight: float32 C, of -log p of every class beside it.
        differentiate: whether the gradient is wanted.
        pixels: whether the loss of each pixel is wanted.

    Returns:
        (sum of the loss, sum of `own_weight` over the labelled pixels, their number, gradient of the sum, loss of each
        pixel). The gradient is float32 N x C x h x w or empty, the losses are float32 N x H x W or empty.

    Raises:
        ValueError: a label is neither a class nor 255.
    """
    count, classes, height, width = low.shape
    down, across = axis(height, labels.shape[1]), axis(width, labels.shape[2]).parts
    vertical = (down.index, down.next_index, down.weight, down.next_weight)
    gradient = np.zeros(low.shape if differentiate else (0, 0, 0, 0), np.float32)
    found = np.empty(labels.shape if pixels else (0, 0, 0), np.float32)
    bands = _bands(down, labels.shape[2])

    def work(place: tuple[int, tuple[int, int]]) -> tuple[float, float, float, float]:
        result: tuple[float, float, float, float] = _band(
            *(low, labels, *place, vertical, across, own_weight, all_weight, gradient, found)
        )
        return result

    results = [(0.0, 0.0, 0.0, 0.0)]
    with ThreadPoolExecutor(threads) as pool:
        for parity in (0, 1):  # neighbours share an input row: no two of them at once
            results += pool.map(work, [(image, rows) for image in range(count) for rows in bands[parity::2]])
    loss, weight, labelled, wrong = map(sum, zip(*results, strict=True))
    if wrong:
        raise ValueError(f"{wrong:.0f} labels are neither one of {classes} classes nor {IGNORE}")
    return loss, weight, int(labelled), gradient, found
