"""MobileNetV3-Large and -Small as segmentation backbones (arXiv 1905.02244).

The layer tables are the paper's tables 1 and 2. Output stride, dilation and the halved last block (RF2,
section 6.4) are applied to the table before anything is built, so that a net is one readable list of blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

from torch import Tensor, nn

Activation = Literal["relu", "hard_swish"]


@dataclass(frozen=True)
class Block:
    """One row of the paper's table: an inverted residual."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    activation: Activation
    stride: int
    dilation: int = 1


LARGE = (
    Block(3, 16, 16, False, "relu", 1),
    Block(3, 64, 24, False, "relu", 2),
    Block(3, 72, 24, False, "relu", 1),
    Block(5, 72, 40, True, "relu", 2),
    Block(5, 120, 40, True, "relu", 1),
    Block(5, 120, 40, True, "relu", 1),
    Block(3, 240, 80, False, "hard_swish", 2),
    Block(3, 200, 80, False, "hard_swish", 1),
    Block(3, 184, 80, False, "hard_swish", 1),
    Block(3, 184, 80, False, "hard_swish", 1),
    Block(3, 480, 112, True, "hard_swish", 1),
    Block(3, 672, 112, True, "hard_swish", 1),
    Block(5, 672, 160, True, "hard_swish", 2),
    Block(5, 960, 160, True, "hard_swish", 1),
    Block(5, 960, 160, True, "hard_swish", 1),
)

SMALL = (
    Block(3, 16, 16, True, "relu", 2),
    Block(3, 72, 24, False, "relu", 2),
    Block(3, 88, 24, False, "relu", 1),
    Block(5, 96, 40, True, "hard_swish", 2),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 120, 48, True, "hard_swish", 1),
    Block(5, 144, 48, True, "hard_swish", 1),
    Block(5, 288, 96, True, "hard_swish", 2),
    Block(5, 576, 96, True, "hard_swish", 1),
    Block(5, 576, 96, True, "hard_swish", 1),
)

_STEM_CHANNELS = 16
_LAST_BLOCK = 3  # rows of each table that RF2 halves: the last stride-2 block and the two after it
_DEEP_EXPANSION = 6  # the closing 1x1 conv, in units of the last block's output
_TAP_CHANNELS = {"large": 40, "small": 24}  # width of the 1/8 stage; DeepLab taps its last block


def layout(size: str, tail: str, output_stride: int) -> tuple[Block, ...]:
    """The blocks of a net after RF2 and dilation.

    Strides beyond `output_stride` are taken out; the block that lost its stride and all after it are dilated
    (mmsegmentation's and torchvision's rule: that block included).
    """
    blocks = list(LARGE if size == "large" else SMALL)
    if tail == "rf2":
        for i in range(len(blocks) - _LAST_BLOCK, len(blocks)):
            blocks[i] = replace(blocks[i], expanded=blocks[i].expanded // 2, out=blocks[i].out // 2)
    stride, dilation = 2, 1  # after the stem
    for i, block in enumerate(blocks):
        if block.stride == 2 and stride >= output_stride:
            dilation *= 2
            blocks[i] = replace(block, stride=1, dilation=dilation)
        else:
            stride *= block.stride
            blocks[i] = replace(block, dilation=dilation)
    return tuple(blocks)


def multiple_of_8(channels: float) -> int:
    """Round to a multiple of 8 without going below 90 % of the value (the paper's released code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int = 1,
    *,
    norm: partial[nn.BatchNorm2d],
    activation: Activation | None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution without bias, BN and activation, padded so that stride 1 keeps the size."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=(kernel - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        norm(channels_out),
    ]
    if activation:
        layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.Hardswish(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Channel gate: global mean, two 1x1 convs with bias, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = multiple_of_8(channels / 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * nn.functional.hardsigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (depthwise), squeeze-and-excite, project (1x1); with a shortcut where shapes allow."""

    def __init__(self, channels_in: int, block: Block, norm: partial[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.shortcut = block.stride == 1 and channels_in == block.out
        self.expand = (
            conv_bn(channels_in, block.expanded, norm=norm, activation=block.activation)
            if block.expanded != channels_in
            else nn.Identity()
        )
        self.depthwise = conv_bn(
            block.expanded,
            block.expanded,
            block.kernel,
            norm=norm,
            activation=block.activation,
            stride=block.stride,
            dilation=block.dilation,
            groups=block.expanded,
        )
        self.squeeze: nn.Module = SqueezeExcite(block.expanded) if block.squeeze else nn.Identity()
        self.project = conv_bn(block.expanded, block.out, norm=norm, activation=None)

    def filter(self, x: Tensor) -> Tensor:
        """The expanded map after the depthwise conv and before SE: what DeepLab's decoder taps."""
        return self.depthwise(self.expand(x))

    def finish(self, x: Tensor, filtered: Tensor) -> Tensor:
        y = self.project(self.squeeze(filtered))
        return x + y if self.shortcut else y

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.filter(x))


class MobileNetV3(nn.Module):
    """Backbone that returns a low feature map at 1/8 and a deep one at 1/`output_stride`.

    The low map is the *expanded* one of the last block of the 1/8 stage (Large: third 40-channel block, 120
    channels; Small: second 24-channel block, 88 channels), as in DeepLab's released `feature_extractor.py`.

    Args: output_stride: 8, 16 or 32. tail: "full" ends in 960 / 576 channels, "rf2" in 480 / 288.
    """

    def __init__(
        self,
        size: Literal["large", "small"],
        *,
        tail: Literal["full", "rf2"] = "full",
        output_stride: Literal[8, 16, 32] = 16,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum)
        blocks = layout(size, tail, output_stride)
        self.tap = max(i for i, block in enumerate(blocks) if block.out == _TAP_CHANNELS[size])
        self.low_channels = blocks[self.tap].expanded
        self.deep_channels = blocks[-1].out * _DEEP_EXPANSION
        self.stem = conv_bn(3, _STEM_CHANNELS, 3, norm=norm, activation="hard_swish", stride=2)
        channels = [_STEM_CHANNELS, *(block.out for block in blocks)]
        self.blocks = nn.ModuleList(
            InvertedResidual(c, block, norm) for c, block in zip(channels, blocks, strict=False)
        )
        self.last = conv_bn(channels[-1], self.deep_channels, norm=norm, activation="hard_swish")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """N x 3 x H x W normalised -> (low: N x C x H/8 x W/8, deep: N x D x H/os x W/os), rounded up."""
        x = self.stem(x)
        low = x
        for i, block in enumerate(cast(Iterable[InvertedResidual], self.blocks)):
            filtered = block.filter(x)
            if i == self.tap:
                low = filtered
            x = block.finish(x, filtered)
        return low, self.last(x)
