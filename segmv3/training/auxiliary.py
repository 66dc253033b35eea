"""Auxiliary heads: they help to train a net and are dropped afterwards."""

from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from segmv3.errors import ModelError
from segmv3.models.backbones import Tap
from segmv3.models.layers import conv_bn, initialise
from segmv3.models.segmenter import Segmenter

_CHANNELS = 64  # BiSeNet's at 1/8 (arXiv 1808.00897); a quarter of the input's, as in PSPNet, would be 10 there


class WithAuxiliaryHeads(nn.Module):
    """A net with two FCN heads (3x3 convolution, BN, ReLU, 1x1 convolution) on its 1/8 and its deepest features.

    Deep supervision: the backbone gets its gradient past the real head too (PSPNet, arXiv 1612.01105, section 3.3).

    Attributes: net: what is kept in the end, as it was given.
    """

    def __init__(self, net: Segmenter) -> None:
        super().__init__()
        self.net = net
        if not hasattr(net.backbone, "locate"):
            raise ModelError(f"{net.config.backbone.title} has no 1/8 features for loss.auxiliary; leave it at 0")
        self._place, channels = cast(Any, net.backbone).locate(Tap(8))
        norm = partial(nn.BatchNorm2d, momentum=net.config.bn_momentum)
        self.heads = nn.ModuleList(
            nn.Sequential(
                conv_bn(width, _CHANNELS, 3, norm=norm, activation="relu"), nn.Conv2d(_CHANNELS, net.num_classes, 1)
            )
            for width in (channels, net.backbone.channels[-1])
        )
        self.heads.apply(initialise)

    def low_logits(self, image: Tensor) -> list[Tensor]:
        """N x 3 x H x W, as the net takes it -> the net's low logits, then those of the heads (at 1/8, and deepest)."""
        *features, low = self.net.backbone(self.net.normalize(image), (self._place,))
        return [self.net.head(*features), self.heads[0](low), self.heads[1](features[-1])]
