"""Cross-entropy of upsampled logits in plain torch: for every device and for double precision."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segmv3.decode.cpu import axis
from segmv3.labels import IGNORE


def _interpolation(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """The matrix, outputs x inputs, of torch's linear interpolation."""
    unit = torch.eye(inputs, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], outputs, mode="linear", align_corners=False)[0].T


def sums(
    low: Tensor,
    labels: Tensor,
    own_weight: Tensor,
    all_weight: Tensor,
    *,
    differentiate: bool,
    pixels: bool,
    elements: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `cpu.sums`, of tensors on one device, in the precision of `low` (float32 or float64).

    A strip of output rows at a time: its logits are two matrix products with the low-resolution ones, its gradient goes
    back by their transposes. `elements` is about the size of a strip's logits.
    """
    count, classes, height, width = low.shape
    size = labels.shape[1:]
    down, across = _interpolation(height, size[0], low), _interpolation(width, size[1], low)
    place = axis(height, size[0])
    rows = max(1, elements // (classes * size[1]))
    numbers = torch.arange(classes, device=low.device)[:, None]
    loss, weight = low.new_zeros(()), low.new_zeros(())
    gradient = torch.zeros_like(low) if differentiate else low.new_empty(0)
    found = low.new_empty(labels.shape if pixels else 0)
    for n in range(count):
        wide = low[n].transpose(0, 1) @ across.T  # h x C x W
        slopes = torch.zeros_like(wide) if differentiate else wide
        for y in range(0, size[0], rows):
            end = min(y + rows, size[0])
            used = slice(int(place.index[y]), int(place.next_index[end - 1]) + 1)
            weights = down[y:end, used]
            log_p = (weights @ wide[used].flatten(1)).view(-1, classes, size[1]).log_softmax(1)  # rows x C x W
            known = (labels[n, y:end] != IGNORE)[:, None]  # rows x 1 x W
            names = labels[n, y:end, None].long().where(known, 0)
            own = own_weight[names] * known
            spread = all_weight[:, None] * known
            pixel = -own * log_p.gather(1, names) - (spread * log_p).sum(1, keepdim=True)
            pixel = pixel.where(known, 0)
            loss += pixel.sum()
            weight += own.sum()
            if pixels:
                found[n, y:end] = pixel[:, 0]
            if differentiate:
                slope = log_p.exp_() * (own + spread.sum(1, keepdim=True)) - spread - own * (numbers == names)
                slopes[used] += (weights.T @ slope.flatten(1)).view_as(slopes[used])
        if differentiate:
            gradient[n] = (slopes @ across).transpose(0, 1)
    return loss, weight, (labels != IGNORE).sum(), gradient, found
