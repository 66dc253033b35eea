"""From low-resolution logits to a label map at full size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_map(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The winning class of every pixel after bilinear upsampling (align_corners=False); ties go to the lower id.

    Args: logits: float N x C x h x w, C <= 256. size: (height, width) of the result.
    Returns: uint8 N x height x width.
    """
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits.argmax(1).to(torch.uint8)
