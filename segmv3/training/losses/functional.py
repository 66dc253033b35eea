"""The arithmetic of the losses, as sums and what they were summed over."""

import importlib.util
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmv3.labels import IGNORE
from segmv3.training.losses import chunked, cpu


def cross_entropy(
    low_logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    ohem: float | None = None,
    min_kept: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the upsampled logits, summed over the labelled pixels.

    The upsampling is bilinear (align_corners=False). Logits at full size never exist: the gradient of the
    low-resolution ones is computed along with the loss and kept until the backward pass scales it; a second derivative
    is refused. A batch without a labelled pixel gives 0 and zero gradients.

    Args:
        low_logits: float N x C x h x w, in any layout. float64 is computed as such, anything else in float32, also
            under autocast.
        labels: uint8 or int64 N x H x W, 255 = ignore.
        weights: float C, of each class, say by their frequency (arXiv 1411.4734, 1606.02147).
        smoothing: share of the target spread evenly over all classes, 0 <= s < 1 (arXiv 1512.00567); with weights as
            torch's cross_entropy mixes them.
        ohem: only the pixels that `hard_pixels` keeps at this threshold count; None for all.
        min_kept: as for `hard_pixels`.

    Returns:
        (sum of the loss, number of pixels it is a sum over or, with weights, the sum of their weights), so that the
        mean can be taken over all processes; both stay on the device.

    Raises:
        ValueError: an argument is none of these, or a label is no class. On a GPU nothing waits for the loss: such a
            label makes it NaN there.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1")
    if ohem is not None:
        labels = hard_pixels(low_logits, labels, ohem, min_kept)
    dtype = torch.float64 if low_logits.dtype == torch.float64 else torch.float32
    own, spread = low_logits.new_ones(low_logits.shape[1], dtype=dtype), None
    if weights is not None:
        if weights.shape != own.shape:
            raise ValueError(f"weights must be {len(own)}, one for each class, found shape {tuple(weights.shape)}")
        own = weights.to(own)
    if smoothing:
        spread = own * (smoothing / len(own))
        own = own * (1 - smoothing)
    total, weight, labelled = _CrossEntropy.apply(low_logits, labels, own, spread, torch.is_grad_enabled())
    return total, labelled if weights is None else weight / (1 - smoothing)


def balanced_weights(pixels: NDArray[np.int64]) -> Tensor:
    """ENet's weights of the classes, 1 / ln(1.02 + p): 1.4 for a class that is everything, 50 for one that is nothing.

    The 1.02 bounds them, which the inverse frequency is not (arXiv 1606.02147, section 5.2).

    Args:
        pixels: int64 C, labelled pixels of each class.

    Returns:
        float32 C.
    """
    share = pixels / max(1, pixels.sum())
    return torch.from_numpy(1 / np.log(1.02 + share)).float()


@torch.no_grad()
def hard_pixels(low_logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """The labels that online hard example mining keeps; 255 for the others.

    Kept are the pixels whose own class has a probability below the threshold, and at least the `min_kept` hardest, of
    the batch of this process. arXiv 1604.03540 mines regions, 1605.06457 pixels; the form with both numbers is that of
    the BiSeNet (arXiv 1808.00897: 0.7 and a sixteenth of the pixels) and PIDNet (2206.02066: 0.9 and 131,072) recipes.

    Args:
        low_logits: as for `cross_entropy`.
        labels: as for `cross_entropy`.
        threshold: 0 < t <= 1.
        min_kept: at least 0.

    Returns:
        The labels, in their own type.

    Raises:
        ValueError: an argument is none of these.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the OHEM threshold is {threshold}; it must be above 0 and at most 1")
    if min_kept < 0:
        raise ValueError(f"the OHEM minimum is {min_kept}; it must be at least 0")
    own = low_logits.new_ones(low_logits.shape[1], dtype=torch.float32)
    loss = _sums(low_logits, labels, own, None, differentiate=False, pixels=True)[4]
    hard = ~(loss <= -math.log(threshold))  # NaN is kept: it must not train on unnoticed
    if min_kept and (loss.device.type != "cpu" or int(hard.sum()) < min_kept):
        hard |= loss >= loss.flatten().topk(min(min_kept, loss.numel())).values.amin()
    return labels.where(hard, IGNORE)


def channel_distillation(student_low: Tensor, teacher_low: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Channel-wise distillation (Shu et al., arXiv 2011.13256): where in the image each class is, by the teacher.

    Each channel becomes a distribution over the positions, a softmax of its logits over the temperature; the loss is
    the Kullback-Leibler divergence of the student's from the teacher's, times the temperature squared.

    Args:
        student_low: float N x C x h x w.
        teacher_low: float N x C of any size, resized to the student's. It gets no gradient.
        temperature: above 0. The paper takes 4, and weights the mean with 3 for logits.

    Returns:
        (sum over images and channels, their number).

    Raises:
        ValueError: an argument is none of these.
    """
    if temperature <= 0:
        raise ValueError(f"the temperature is {temperature}; it must be above 0")
    if student_low.shape[:2] != teacher_low.shape[:2]:
        found = " and ".join(" x ".join(map(str, x.shape[:2])) for x in (student_low, teacher_low))
        raise ValueError(f"student and teacher must have the same images x classes, found {found}")
    with torch.autocast(student_low.device.type, enabled=False):
        teacher = teacher_low.detach().float()
        if teacher.shape != student_low.shape:
            teacher = F.interpolate(teacher, student_low.shape[2:], mode="bilinear", align_corners=False)
        log_p, log_q = ((x.flatten(2) / temperature).log_softmax(2) for x in (student_low.float(), teacher))
        total = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * temperature**2
    return total, torch.full((), student_low.shape[0] * student_low.shape[1], device=total.device)


def feature_distillation(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """One minus the cosine of the angle between two nets' features, at each place of the teacher's map.

    Args:
        student: float N x C x h x w, resized to the teacher's.
        teacher: float N x C of any size; it gets no gradient.

    Returns:
        The sum over images of the mean over places, and the number of images.

    Raises:
        ValueError: the images or channels differ.
    """
    if student.shape[:2] != teacher.shape[:2]:
        found = " and ".join(" x ".join(map(str, x.shape[:2])) for x in (student, teacher))
        raise ValueError(f"student and teacher must have the same images x channels, found {found}")
    with torch.autocast(student.device.type, enabled=False):
        teacher = teacher.detach().float()
        own = F.interpolate(student.float(), teacher.shape[2:], mode="bilinear", align_corners=False)
        total = (1 - F.cosine_similarity(own, teacher, dim=1)).mean((1, 2)).sum()
    return total, torch.full((), len(student), device=total.device)


class _CrossEntropy(torch.autograd.Function):
    """The gradient of the loss is computed with the loss: there is nothing to recompute, and nothing large to keep."""

    @staticmethod
    def forward(
        ctx: Any, low_logits: Tensor, labels: Tensor, own: Tensor, spread: Tensor | None, grad_enabled: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        differentiate = grad_enabled and ctx.needs_input_grad[0]
        total, weight, labelled, gradient, _ = _sums(
            low_logits, labels, own, spread, differentiate=differentiate, pixels=False
        )
        ctx.save_for_backward(gradient)
        ctx.dtype = low_logits.dtype
        ctx.mark_non_differentiable(weight, labelled)
        return total, weight, labelled

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("the cross-entropy of upsampled logits has no second derivative")
        (gradient,) = ctx.saved_tensors
        return (gradient * slope).to(ctx.dtype), None, None, None, None


def _sums(
    low: Tensor, labels: Tensor, own: Tensor, spread: Tensor | None, *, differentiate: bool, pixels: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`cpu.sums` by the fastest means for the device, as tensors; `spread` is `all_weight`, None for zeros."""
    if low.ndim != 4 or not low.is_floating_point() or not 1 <= low.shape[1] <= IGNORE or 0 in low.shape[2:]:
        raise ValueError(f"logits must be floating-point N x 1-255 x h x w, found {low.dtype} {tuple(low.shape)}")
    if labels.ndim != 3 or labels.shape[0] != low.shape[0] or 0 in labels.shape[1:]:
        raise ValueError(f"labels must be {low.shape[0]} x H x W, found {tuple(labels.shape)}")
    if labels.dtype not in (torch.uint8, torch.int64):
        raise ValueError(f"labels must be uint8 or int64, found {labels.dtype}")
    low, labels = low.detach(), labels.contiguous()
    size, exact = (labels.shape[1], labels.shape[2]), low.dtype == torch.float64
    if low.device.type == "cuda" and not exact and importlib.util.find_spec("triton"):
        from segmv3.training.losses import cuda

        if cuda.largest_cell((low.shape[2], low.shape[3]), size) <= cuda.LARGEST_CELL:
            return cuda.sums(low, labels, own, spread, differentiate=differentiate, pixels=pixels)
    low = low if exact else low.float()
    own, spread = own.detach().to(low), torch.zeros_like(own).to(low) if spread is None else spread.detach().to(low)
    if low.device.type != "cpu" or exact:
        with torch.autocast(low.device.type, enabled=False):
            elements = 2**18 if low.device.type == "cpu" else 2**24  # its cache; elsewhere every strip costs launches
            return chunked.sums(low, labels, own, spread, differentiate=differentiate, pixels=pixels, elements=elements)
    loss, weight, labelled, gradient, found = cpu.sums(
        *(x.contiguous().numpy() for x in (low, labels, own, spread)),
        differentiate=differentiate,
        pixels=pixels,
        threads=torch.get_num_threads(),
    )
    return (
        torch.tensor(loss, dtype=torch.float32),
        torch.tensor(weight, dtype=torch.float32),
        torch.tensor(labelled),
        torch.from_numpy(gradient),
        torch.from_numpy(found),
    )
