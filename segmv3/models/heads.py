"""Segmentation heads: from a backbone's low and deep features to logits."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.models.mobilenetv3 import conv_bn

Pool = Callable[[Tensor], Tensor]


def global_pool(x: Tensor) -> Tensor:
    """N x C x H x W -> N x C x 1 x 1: the mean of the whole map."""
    return x.mean((2, 3), keepdim=True)


def window_pool(x: Tensor, *, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Means over windows without padding (VALID); a window larger than the map shrinks to it."""
    height, width = min(window[0], x.shape[2]), min(window[1], x.shape[3])
    return F.avg_pool2d(x, (height, width), stride)


class LRASPPHead(nn.Module):
    """Lite R-ASPP of the paper (arXiv 1905.02244, figure 10), wired as in DeepLab's released nets.

    Deep features go through a 1x1 conv to F channels and are multiplied by a gate (pooling, 1x1 conv with bias
    and without BN, hard sigmoid). Product and low features each get a 1x1 classifier; their logits are summed
    at the low features' size. Classifying before upsampling equals the other order and costs a quarter.
    """

    def __init__(
        self,
        low_channels: int,
        deep_channels: int,
        num_classes: int,
        *,
        channels: int = 128,
        pool: Pool = global_pool,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum)
        self.pool = pool
        self.deep = conv_bn(deep_channels, channels, norm=norm, activation="relu")
        self.gate = nn.Conv2d(deep_channels, channels, 1)
        self.deep_classifier = nn.Conv2d(channels, num_classes, 1)
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)

    def forward(self, low: Tensor, deep: Tensor) -> Tensor:
        """(N x C x h x w, N x D x h' x w') -> logits N x classes x h x w."""
        gate = F.hardsigmoid(self.gate(self.pool(deep)))
        if gate.shape[2:] != (1, 1):
            gate = F.interpolate(gate, deep.shape[2:], mode="bilinear", align_corners=False)
        logits = self.deep_classifier(self.deep(deep) * gate)
        logits = F.interpolate(logits, low.shape[2:], mode="bilinear", align_corners=False)
        return logits + self.low_classifier(low)
