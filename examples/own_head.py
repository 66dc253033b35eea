"""A head of your own: `segmv3 train examples/own_head_config.py` trains it on mini-city.

Then `segmv3 predict street.png --weights FILE --parts examples/own_head.py --output out` labels with it.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.config import Head, Tap


class SumHead(nn.Module):
    """The deep map and the 1/8 map, each through a 1x1 convolution, added at 1/8."""

    def __init__(self, low: int, deep: int, num_classes: int) -> None:
        super().__init__()
        self.low = nn.Conv2d(low, num_classes, 1)
        self.deep = nn.Conv2d(deep, num_classes, 1)

    def forward(self, low: Tensor, deep: Tensor) -> Tensor:
        """(N x C x h x w, N x D x h' x w') -> logits N x classes x h x w."""
        return self.low(low) + F.interpolate(self.deep(deep), low.shape[2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Sum(Head):
    """Its settings; every field would be a flag, such as --model.head.channels."""

    classifiers = ("low", "deep")

    def taps(self) -> tuple[Tap, ...]:
        return (Tap(8),)

    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> nn.Module:
        low, deep = channels
        return SumHead(low, deep, num_classes)
