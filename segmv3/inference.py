"""Ways to run a net over an image, as functions over any `image -> logits` callable.

Images are RGB tensors N x 3 x H x W, uint8 or float 0..255, on the callable's device.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LogitsFunction = Callable[[Tensor], Tensor]

MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The scales behind "ms+flip" in the mmsegmentation table."""


def multi_scale_flip(
    logits_of: LogitsFunction, image: Tensor, *, scales: Sequence[float] = MULTI_SCALES, flip: bool = True
) -> Tensor:
    """Mean class probabilities over resized and mirrored copies of the image.

    A copy at scale s is the image resized (bilinear, align_corners=False, no antialiasing) to
    (floor(H s + 0.5), floor(W s + 0.5)); its logits are resized to H x W the same way before the softmax.
    Copies run one after the other and only their sum is kept, so memory does not grow with their number.

    Returns: float probabilities N x classes x H x W at the image's own size.
    """
    height, width = image.shape[2:]
    total: Tensor | None = None
    for scale in scales:
        size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        resized = image.float()
        if size != (height, width):
            resized = F.interpolate(resized, size, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            logits = logits_of(resized.flip(3) if mirrored else resized)
            logits = logits.flip(3) if mirrored else logits
            if logits.shape[2:] != (height, width):
                logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
            probabilities = torch.softmax(logits.float(), dim=1)
            total = probabilities if total is None else total.add_(probabilities)
    if total is None:
        raise ValueError("no scales given")
    return total / (len(scales) * (2 if flip else 1))
