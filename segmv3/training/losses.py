"""Training losses, as sums and what they were summed over."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segmv3.labels import IGNORE


def cross_entropy(low_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the upsampled logits, summed over the labelled pixels.

    One image at a time: full-size logits of a whole batch fall out of the cache, which costs a CPU half of
    the loss's time. A crop without a labelled pixel gives 0 and zero gradients.

    Args: low_logits: float N x C x h x w. labels: int64 N x H x W, 255 = ignore.
    Returns: (sum of the loss, number of labelled pixels), so that the mean can be taken over all processes.
    """
    total = low_logits.new_zeros((), dtype=torch.float32)
    for logits, target in zip(low_logits.float().split(1), labels.split(1), strict=True):
        full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
        total = total + F.cross_entropy(full, target, ignore_index=IGNORE, reduction="sum")
    return total, (labels != IGNORE).sum()


def class_cross_entropy(logits: Tensor, classes: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of whole pictures, summed over them.

    Args: logits: float N x C. classes: int64 N. smoothing: share of the target spread evenly over all classes.
    Returns: (sum of the loss, number of pictures).
    """
    total = F.cross_entropy(logits.float(), classes, label_smoothing=smoothing, reduction="sum")
    return total, classes.new_full((), len(classes))  # filled on the device: nobody waits for a copy
