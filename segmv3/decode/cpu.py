"""The label map on a CPU: numba-compiled tiles of rows, shared out among threads."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from segmv3.decode.simd import (
    LANES,
    add_exp,
    any_at_least,
    floats,
    ids,
    larger,
    load,
    mix,
    only_first,
    smaller,
    store,
    winner,
)
from segmv3.images import UInt8Array

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

LIMIT = np.float32(2**100)
"""Logits beyond it count as it, and NaN as its negative, so that no weight meets an infinity. About 1e30; a power of
two, so that weights times it are exact and classes that are all at the limit tie."""

_RUN = 128
"""Pixels that are interpolated together: all classes of them fit the cache nearest to the core."""

_SLACK = np.float32(20)
"""A class this far below the winner adds less than float rounding to the winner's probability: exp(-20) = 2e-9."""


# --- where each output pixel looks ---


@dataclass(frozen=True)
class Axis:
    """One direction of the resize, with the float32 arithmetic of torch's interpolate (align_corners=False).

    Output pixels between the same two inputs are a *cell*; a cell wider than `_RUN` is cut.

    Attributes: index, next_index: the two inputs of each output pixel. weight, next_weight: their weights, padded
        with zeros by a vector. start: first output pixel of each cell, then the output size. left, right: the inputs
        of each cell; the same one twice where the second has no weight.
    """

    index: Indices
    next_index: Indices
    weight: Floats
    next_weight: Floats
    start: Indices
    left: Indices
    right: Indices

    @property
    def parts(self) -> tuple[Indices, Indices, Indices, Floats, Floats]:
        """What the compiled part takes."""
        return self.start, self.left, self.right, self.weight, self.next_weight


@functools.lru_cache(maxsize=64)
def axis(inputs: int, outputs: int) -> Axis:
    """The axis from a number of inputs to a number of outputs."""
    half = np.float32(0.5)
    place = np.arange(outputs, dtype=np.float32)
    if inputs != outputs:
        place = np.maximum((place + half) * (np.float32(inputs) / np.float32(outputs)) - half, np.float32(0))
    index = np.minimum(place.astype(np.int64), inputs - 1)
    next_index = np.minimum(index + 1, inputs - 1)
    after = np.clip(place - index.astype(np.float32), np.float32(0), np.float32(1))
    cuts = np.flatnonzero(np.diff(index, prepend=-1))
    lengths = np.diff(cuts, append=outputs)
    start = np.concatenate([np.arange(a, a + n, _RUN) for a, n in zip(cuts, lengths, strict=True)] + [[outputs]])
    used = np.maximum.reduceat(after, start[:-1]) > 0
    left = index[start[:-1]]
    pad = (0, LANES)
    return Axis(
        index,
        next_index,
        np.pad(np.float32(1) - after, pad),
        np.pad(after, pad),
        start,
        left,
        np.where(used, next_index[start[:-1]], left),
    )


# --- the compiled part ---


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By numba, kept on disk for the next process; a machine without a writable cache folder compiles each time.

    Compiled functions are single-threaded and share nothing: any number of threads may call them. (numba's own
    parallel loops end the process when two threads run them at once, unless an extra package is installed.)
    """
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:
        return numba.njit(function, nogil=True, error_model="numpy")


@_compiled
def _read_row(memory, offset, steps, shape, rows, leaders, stride, slot):  # type: ignore[no-untyped-def]
    """Copy one row of all classes to a half of `rows`, bounded, class by class, and note the winner of each column."""
    along, across = steps[1], steps[3]
    classes, width = shape
    base = slot * classes * stride
    if across == 1:
        for c in range(classes):
            for x in range(width):
                rows[base + c * stride + x] = memory[offset + c * along + x]
    else:
        for x in range(width):
            for c in range(classes):
                rows[base + c * stride + x] = memory[offset + c * along + x * across]
    low, high = floats(-LIMIT), floats(LIMIT)
    for c in range(classes):
        rows[base + c * stride + width] = rows[base + c * stride + width - 1]  # the column beside the last one
    for x in range(0, width + 1, LANES):
        best, lead = smaller(larger(load(rows, base + x), low), high), ids(np.int32(0))
        store(rows, base + x, best)
        for c in range(1, classes):
            value = smaller(larger(load(rows, base + c * stride + x), low), high)
            store(rows, base + c * stride + x, value)
            lead = winner(value, best, ids(np.int32(c)), lead)
            best = larger(value, best)
        store(leaders, slot * stride + x, lead)


@_compiled
def _contenders(rows, upper, lower, stride, classes, column, columns, slack, tops, found):  # type: ignore[no-untyped-def]
    """The classes that can win somewhere in up to sixteen neighbouring cells, in order, to `found`; returns how many.

    A class whose largest corner is below another's smallest cannot win in that cell.
    """
    floor = floats(-LIMIT)
    for c in range(classes):
        up, low = upper + c * stride + column, lower + c * stride + column
        a, b, d, e = load(rows, up), load(rows, up + 1), load(rows, low), load(rows, low + 1)
        floor = larger(smaller(smaller(a, b), smaller(d, e)), floor)
        store(tops, c * LANES, larger(larger(a, b), larger(d, e)))
    floor = only_first(mix(floats(np.float32(1)), floor, floats(np.float32(-1)), floats(slack)), np.float32(columns))
    count = 0
    for c in range(classes):
        if any_at_least(load(tops, c * LANES), floor):
            found[count] = c
            count += 1
    return count


@_compiled
def label_rows(memory, steps, shape, image, cells, down, across, table, labels, confidence):  # type: ignore[no-untyped-def]
    """Label the output rows of some vertical cells of one image.

    Args:
        memory: flat float32.
        steps: how far apart in it neighbours in N, C, h and w are.
        shape: (C, w).
        cells: the first one and the one after the last.
        down: the parts of the vertical `Axis` from `start` on.
        across: the same of the horizontal one.
        table: int32, what to write for each class.
        labels: uint8 N x H x W.
        confidence: float32 N x H x W, or N x 0 x 0 for none.
    """
    classes, width = shape
    start, top, bottom, weight, next_weight = down
    x_start, left, right, x_weight, x_next_weight = across
    out_width, groups = labels.shape[2], left.size
    sure = confidence.size > 0
    slack = _SLACK if sure else np.float32(0)
    stride = (width + 1) // LANES * LANES + 2 * LANES
    rows = np.zeros(2 * classes * stride, np.float32)
    leaders = np.zeros(2 * stride, np.uint8)
    held = np.full(2, -1)
    plain = np.empty(out_width + LANES, np.uint8)
    reach = _RUN + LANES
    spread = np.empty(2 * classes * reach, np.float32)
    tops, found = np.empty(classes * LANES, np.float32), np.empty(classes, np.int64)
    won, chance = np.empty(2 * reach, np.uint8), np.empty(2 * reach, np.float32)
    ends = np.empty(2, np.int64)
    for cell in range(cells[0], cells[1]):
        ends[0], ends[1] = top[cell], bottom[cell]
        for row in ends:
            if held[row & 1] != row:
                _read_row(memory, image * steps[0] + row * steps[2], steps, shape, rows, leaders, stride, row & 1)
                held[row & 1] = row
        upper, lower = (ends[0] & 1) * classes * stride, (ends[1] & 1) * classes * stride
        lead, lead_below = (ends[0] & 1) * stride, (ends[1] & 1) * stride
        if not sure:  # where one class leads at all corners, it is the label; the other pixels are written later
            for g in range(groups):
                name = ids(table[leaders[lead + left[g]]])
                for x in range(x_start[g], x_start[g + 1], LANES):
                    store(plain, x, name)
            for y in range(start[cell], start[cell + 1]):
                for x in range(out_width):
                    labels[image, y, x] = plain[x]
        g = 0
        while g < groups:
            begin = g
            while g < groups:
                one = leaders[lead + left[g]]
                uniform = (
                    one == leaders[lead + right[g]]
                    and one == leaders[lead_below + left[g]]
                    and one == leaders[lead_below + right[g]]
                )
                if uniform and not sure:
                    break
                if g > begin and (x_start[g + 1] - x_start[begin] > _RUN or left[g] - left[begin] >= LANES):
                    break
                g += 1
            if g == begin:
                g += 1
                continue
            x0, x1 = x_start[begin], x_start[g]
            count = _contenders(
                rows, upper, lower, stride, classes, left[begin], left[g - 1] - left[begin] + 1, slack, tops, found
            )
            if count == 1:
                for y in range(start[cell], start[cell + 1]):
                    for x in range(x0, x1):
                        labels[image, y, x] = table[found[0]]
                        if sure:
                            confidence[image, y, x] = 1
                continue
            # along the two input rows, once for all output rows; what a vector writes too far, the next cell rewrites
            for h in range(begin, g):
                for x in range(x_start[h], x_start[h + 1], LANES):
                    p, q, at = load(x_weight, x), load(x_next_weight, x), x - x0
                    for k in range(count):
                        line = upper + found[k] * stride
                        store(spread, at, mix(p, floats(rows[line + left[h]]), q, floats(rows[line + right[h]])))
                        line = lower + found[k] * stride
                        store(
                            spread, at + reach, mix(p, floats(rows[line + left[h]]), q, floats(rows[line + right[h]]))
                        )
                        at += 2 * reach
            # down the columns, two output rows at a time: they share what is loaded
            for y in range(start[cell], start[cell + 1], 2):
                z = min(y + 1, start[cell + 1] - 1)
                p, q = floats(weight[y]), floats(next_weight[y])
                r, s = floats(weight[z]), floats(next_weight[z])
                for x in range(0, x1 - x0, LANES):
                    a, b = load(spread, x), load(spread, x + reach)
                    best, best_below = mix(p, a, q, b), mix(r, a, s, b)
                    name = ids(table[found[0]])
                    label, label_below = name, name
                    at = x
                    for k in range(1, count):
                        at += 2 * reach
                        a, b, name = load(spread, at), load(spread, at + reach), ids(table[found[k]])
                        value = mix(p, a, q, b)
                        label = winner(value, best, name, label)
                        best = larger(value, best)
                        value = mix(r, a, s, b)
                        label_below = winner(value, best_below, name, label_below)
                        best_below = larger(value, best_below)
                    store(won, x, label)
                    store(won, x + reach, label_below)
                    if sure:
                        total, total_below = floats(np.float32(0)), floats(np.float32(0))
                        for k in range(count):
                            at = x + 2 * reach * k
                            a, b = load(spread, at), load(spread, at + reach)
                            total = add_exp(total, mix(p, a, q, b), best)
                            total_below = add_exp(total_below, mix(r, a, s, b), best_below)
                        store(chance, x, total)
                        store(chance, x + reach, total_below)
                for x in range(x1 - x0):
                    labels[image, y, x0 + x] = won[x]
                    labels[image, z, x0 + x] = won[reach + x]
                if sure:
                    for x in range(x1 - x0):
                        confidence[image, y, x0 + x] = np.float32(1) / chance[x]
                        confidence[image, z, x0 + x] = np.float32(1) / chance[reach + x]


# --- the threads ---


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="segmv3-decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork takes the pool along, but not its threads


def _flat(logits: Floats) -> tuple[Floats, tuple[int, ...]]:
    """The memory that an array lies in and its strides in numbers; read-only, so that one type serves all."""
    if any(stride < 0 or stride % logits.itemsize for stride in logits.strides) or not logits.flags.aligned:
        logits = np.ascontiguousarray(logits)
    steps = tuple(stride // logits.itemsize for stride in logits.strides)
    length = 1 + sum((n - 1) * step for n, step in zip(logits.shape, steps, strict=True))
    return np.lib.stride_tricks.as_strided(logits, (length,), (logits.itemsize,), writeable=False), steps


def label_map(
    logits: Floats, size: tuple[int, int], table: NDArray[np.int32], *, confidence: bool, threads: int
) -> tuple[UInt8Array, Floats]:
    """As `segmv3.decode.label_map`, of checked arguments; the confidence is N x 0 x 0 when not asked for."""
    count, classes, height, width = logits.shape
    labels = np.empty((count, *size), np.uint8)
    chances = np.empty((count, *(size if confidence else (0, 0))), np.float32)
    down, across = axis(height, size[0]), axis(width, size[1])
    memory, steps = _flat(logits)
    cells = down.left.size
    if not count:
        return labels, chances
    # several tiles for each thread, as some have more to interpolate; none so small that starting it counts
    tiles = max(1, min(8 * threads, cells, size[0] * size[1] * count // 65536))
    step = -(-cells // -(-tiles // count))
    work = [(n, (y, min(y + step, cells))) for n in range(count) for y in range(0, cells, step)]
    turn = itertools.count()

    def labour() -> None:
        while (i := next(turn)) < len(work):
            label_rows(*(memory, steps, (classes, width), *work[i], down.parts, across.parts, table, labels, chances))

    # The caller works too and waits only for threads that are at it, so calls from many threads cannot lock up.
    helpers: list[Future[None]] = []
    with suppress(RuntimeError):  # while the interpreter ends, no thread can be started: the caller does it all
        helpers.extend(_pool().submit(labour) for _ in range(min(threads, len(work)) - 1))
    try:
        labour()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    return labels, chances
