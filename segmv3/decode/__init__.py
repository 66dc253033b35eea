"""From low-resolution logits to a label map at full size, without the full-size logits.

Bilinear weights are shared by all classes and never negative: a class that leads at all four corners of a cell between
low-resolution pixels leads everywhere inside it. Only the other cells need arithmetic.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmv3.decode import cpu

__all__ = ["label_map", "label_map_and_confidence", "reference_label_map"]

Array = TypeVar("Array", Tensor, NDArray[Any])
Merge = Sequence[int] | NDArray[np.integer]


def label_map(logits: Array, size: tuple[int, int], *, merge: Merge | None = None, threads: int | None = None) -> Array:
    """The winning class of every pixel after bilinear upsampling (align_corners=False); ties go to the lower id.

    The result is that of torch's interpolate and argmax. Where the two best classes are closer than 1e-5, rounding
    decides, and either may be given. Logits are bounded by 2^100 on both sides, so infinities are just very large. NaN
    counts as the lower bound: a pixel whose classes are all NaN gets class 0. Any number of threads may call this at
    once.

    Args:
        logits: floating-point N x C x h x w, 1 <= C <= 256, in any memory layout; computed in float32.
        size: (height, width) of the result.
        merge: the id 0..255 to write for each class, at least C of them. The winner is found first, so the logits of
            merged classes do not add up.
        threads: CPU threads; torch's own number by default.

    Returns:
        uint8 N x height x width: a tensor on the same device for a tensor, an array for an array.

    Raises:
        ValueError: an argument is none of these.
    """
    return _decode(logits, size, merge, threads, confidence=False)[0]


def label_map_and_confidence(
    logits: Array, size: tuple[int, int], *, merge: Merge | None = None, threads: int | None = None
) -> tuple[Array, Array]:
    """As `label_map`, and how sure the net is: the softmax of the upsampled logits at the winner.

    Args:
        logits: floating-point N x C x h x w, as for `label_map`.
        size: (height, width) of the result.
        merge: the id 0..255 to write for each class.
        threads: CPU threads; torch's own number by default.

    Returns:
        The labels, and float32 N x height x width, 1/C..1. With `merge` it is still that of the winning class alone.

    Raises:
        ValueError: an argument is none of these.
    """
    return _decode(logits, size, merge, threads, confidence=True)


def reference_label_map(logits: Tensor, size: tuple[int, int], merge: Merge | None = None) -> tuple[Tensor, Tensor]:
    """What `label_map_and_confidence` means, in torch: all classes at full size, on the tensor's device.

    Args:
        logits: floating-point N x C x h x w, 1 <= C <= 256.
        size: (height, width) of the result.
        merge: the id 0..255 to write for each class.

    Returns:
        The labels, uint8 N x height x width, and the confidence, float32 of the same shape.

    Raises:
        ValueError: `merge` has no id 0..255 for some class.
    """
    bound = float(cpu.LIMIT)
    full = logits.detach().float().nan_to_num(nan=-bound).clamp(-bound, bound)
    if tuple(full.shape[2:]) != tuple(size):
        full = F.interpolate(full, tuple(size), mode="bilinear", align_corners=False)
    best, labels = full.max(1)
    table = torch.from_numpy(_table(merge, logits.shape[1])).to(logits.device)
    return table[labels].to(torch.uint8), 1 / (full - best[:, None]).exp().sum(1)


def _decode(
    logits: Any, size: tuple[int, int], merge: Merge | None, threads: int | None, *, confidence: bool
) -> tuple[Any, Any]:
    is_tensor = isinstance(logits, Tensor)
    floating = logits.is_floating_point() if is_tensor else np.issubdtype(logits.dtype, np.floating)
    if logits.ndim != 4 or not floating or 0 in logits.shape[1:] or logits.shape[1] > 256:
        raise ValueError(f"logits must be floating-point N x 1-256 x h x w, found {logits.dtype} {tuple(logits.shape)}")
    height, width = map(int, size)
    if height < 1 or width < 1:
        raise ValueError(f"size is {height} x {width}; both must be at least 1")
    table = _table(merge, logits.shape[1])
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    if is_tensor and logits.device.type == "cuda" and importlib.util.find_spec("triton"):
        from segmv3.decode import cuda

        return cuda.label_map(logits.detach(), (height, width), table, confidence=confidence)
    if is_tensor and logits.device.type != "cpu":
        return reference_label_map(logits, (height, width), table)
    array = logits.detach().float().numpy() if is_tensor else np.asarray(logits, np.float32)
    threads = threads or torch.get_num_threads()
    labels, sure = cpu.label_map(array, (height, width), table, confidence=confidence, threads=threads)
    return (torch.from_numpy(labels), torch.from_numpy(sure)) if is_tensor else (labels, sure)


def _table(merge: Merge | None, classes: int) -> NDArray[np.int32]:
    if merge is None:
        return np.arange(classes, dtype=np.int32)
    table = np.asarray(merge)
    if (
        table.ndim != 1
        or len(table) < classes
        or table.dtype.kind not in "iu"
        or not 0 <= table.min() <= table.max() <= 255
    ):
        raise ValueError(f"merge must hold an id 0-255 for each of the {classes} classes")
    return table[:classes].astype(np.int32)
