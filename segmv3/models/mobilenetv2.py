"""MobileNetV2 (arXiv 1801.04381) as a backbone: torchvision's layers, dilated and tapped.

It is here for the rows of the MobileNetV3 paper's Cityscapes table that compare with it.
"""

from collections.abc import Iterable
from functools import partial
from typing import cast

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2

from segmv3.models.backbones import MobileNetV2, Tap
from segmv3.models.layers import TappedMaps, dilated

# expansion, channels, blocks, stride of each stage
_STAGES = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1]]
_TAILS = {
    "full": [[6, 160, 3, 2], [6, 320, 1, 1]],
    # Half the filters of the last block, its first expansion as it was: this, and not MobileNetV3's way of halving
    # that too, agrees with the parameters of the paper's rows 2, 3, 4 and 9.
    "rf2": [[6, 80, 3, 2], [6, 160, 1, 1]],
}


class _Block(InvertedResidual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-> the expanded map after the depthwise convolution, and the output."""
        filtered = self.conv[:-2](x)
        y = self.conv[-2:](filtered)
        return filtered, x + y if self.use_res_connect else y


class MobileNetV2Backbone(TappedMaps):
    """Normalised image in, the tapped feature maps and the deep one (the last block's output) out.

    Args:
        taps: the maps to return before the deep one, in this order.

    Attributes:
        channels: numbers of channels of the returned maps, the deep one last.
    """

    def __init__(self, net: MobileNetV2, taps: tuple[Tap, ...] = (), *, bn_momentum: float = 0.1) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=net.bn_eps, momentum=bn_momentum)
        stages = _STAGES + _TAILS[net.tail]
        layers = TorchvisionMobileNetV2(
            width_mult=net.width, inverted_residual_setting=stages, block=_Block, norm_layer=norm
        ).features[:-1]  # the closing 1280-channel layer only serves classification
        self.stem = layers[0]
        self.blocks = nn.ModuleList(layers[1:])
        blocks = list(cast(Iterable[_Block], self.blocks))
        strides = [2]
        for block, (stride, dilation) in zip(
            blocks, dilated([b.stride for b in blocks], net.output_stride), strict=True
        ):
            strides.append(strides[-1] * block.stride)
            filter_ = cast(nn.Conv2d, block.conv[-3][0])
            filter_.stride, filter_.dilation, filter_.padding = (stride,) * 2, (dilation,) * 2, (dilation,) * 2
        widths = [layers[0][0].out_channels, *(b.out_channels for b in blocks)]
        expanded = [cast(nn.Conv2d, b.conv[-2]).in_channels for b in blocks]
        self.tap(taps, strides, widths, expanded, widths[-1])
        self.last = nn.Identity()
