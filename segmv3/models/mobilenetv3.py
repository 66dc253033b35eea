"""MobileNetV3-Large and -Small as backbones (arXiv 1905.02244).

The layer tables are the paper's tables 1 and 2; mobilenetv3.toml holds them. Width, the minimalistic variant, the tail,
output stride and dilation are applied to the table before anything is built, so that a net is one readable list of
blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.errors import ModelError
from segmv3.models.backbones import MobileNetV3, Tap
from segmv3.models.layers import (
    Activation,
    Norm,
    TappedMaps,
    conv_bn,
    dilated,
    global_pool,
    make_activation,
    multiple_of_8,
)
from segmv3.records import packaged

Skip = Literal["", "depthwise", "pointwise", "both"]


@dataclass(frozen=True)
class Block:
    """One row of the paper's table: an inverted residual."""

    kernel: int
    expanded: int
    out: int
    squeeze: int
    """Channels inside squeeze-and-excite, 0 for none; in the tables only whether there is one."""
    activation: Activation
    stride: int
    dilation: int = 1
    shortcut: bool = True
    """Whether the input is added to the output."""
    squeeze_first: bool = False
    """Whether squeeze-and-excite comes before the depthwise convolution's activation."""
    expands: bool = True
    """Whether it begins with a 1x1 convolution."""
    skip: Skip = ""
    """Convolutions in the shortcut, which then is there whatever the shapes are."""
    closing: bool = False
    """Whether the activation follows the sum too."""


_TABLE = packaged("segmv3.models", "mobilenetv3.toml")
_TABLES = {size: tuple(Block(*row) for row in rows) for size, rows in _TABLE["layers"].items()}
_STEM_CHANNELS = 16
_LEAST_SQUEEZE = 8
_LAST_BLOCK = 3  # rows of each table that RF2 halves: the last stride-2 block and the two after it
_DEEP_EXPANSION = 6  # the closing 1x1 convolution, in units of the last block's output
_HIDDEN_CHANNELS = {"large": 1280, "small": 1024}


@dataclass(frozen=True)
class Family:
    """One code base's way from a width to channels; read from its source."""

    expansion_follows_input: bool = True
    """Expanded channels are a multiple of the block's (rounded) input, not the scaled value of the table."""
    stem_kept_below: float = 0.0
    """Widths below this leave the stem at 16 channels."""
    deep_follows_output: bool = True
    """The closing 1x1 convolution is six times the last block's output, not of its value at width 1.0, scaled."""
    hidden_scales: Sequence[float] = (1.0, 1.0)
    """The classifier's hidden layer scales with the width only outside these bounds."""
    hidden_as_large: bool = False
    """Small has Large's 1280 hidden channels."""
    hidden_bias: bool = True
    always_expands: bool = False
    """Blocks whose expansion is no wider than their input have the convolution for it all the same."""
    rounded_squeeze: bool = True
    """A quarter of the expanded channels is rounded to a multiple of 8."""
    squeeze_relu: bool = True
    """ReLU inside squeeze-and-excite; else the block's activation."""
    squeeze_first: bool = False
    """Squeeze-and-excite comes before the activation, but not in the first block."""
    shortcut_after_lost_stride: bool = True
    """A block that lost its stride to dilation may have a shortcut (only Small with a halved tail has the shape)."""
    first_shortcut: bool = True
    """Large's first block, which keeps its shape, has a shortcut."""
    first_squeeze_first: bool = False
    """`squeeze_first` holds for the first block too."""
    squeeze_bias: bool = True
    squeeze_norm: bool = False
    """BN after the first convolution of squeeze-and-excite, whose channels are at least 8."""
    hidden_norm: bool = False
    """BN after the classifier's hidden layer."""
    shortcut_convolutions: bool = False
    """Convolutions in the shortcuts of blocks that change the shape, and an activation after each sum."""
    expansion_14: int = 0
    """Expanded channels of Large's 14th block, where they differ from the paper's 960."""


FAMILIES = {name: Family(**values) for name, values in _TABLE["families"].items()}


def rows_of(net: MobileNetV3) -> tuple[Block, ...]:
    """The paper's table, or that of the deeper Large."""
    return _TABLES[f"{net.size}{'-deep' if net.deep else ''}"]


def layout(net: MobileNetV3) -> tuple[Block, ...]:
    """The blocks of a net: the paper's table after width, variant, tail, output stride and dilation.

    Raises: ModelError for exact widths that cannot be: a shortcut joins two, or a block without an expansion does.
    """
    blocks = _scaled(net)
    if not net.widths:
        return blocks
    for one, other in joined(net):
        if net.widths[one] != net.widths[other]:
            raise ModelError(
                f"backbone.widths: numbers {one + 1} and {other + 1} are joined and must be equal, not "
                f"{net.widths[one]} and {net.widths[other]}"
            )
    return tuple(
        replace(block, expanded=expanded, out=out, squeeze=_squeezed(net, expanded) if block.squeeze else 0)
        for block, expanded, out in zip(blocks, net.widths[1::2], net.widths[2::2], strict=False)
    )


def joined(net: MobileNetV3) -> list[tuple[int, int]]:
    """Pairs of places in `widths` that have the same number, by a shortcut or where a block does not expand."""
    blocks = _scaled(net)
    pairs = [(2 * i, 2 * i + 2) for i, block in enumerate(blocks) if block.shortcut]
    return pairs + [(2 * i, 2 * i + 1) for i, block in enumerate(blocks) if not block.expands]


def exact_widths(net: MobileNetV3) -> tuple[int, ...]:
    """The channels of a net, as its `widths` would name them."""
    pairs = [width for block in layout(net) for width in (block.expanded, block.out)]
    return (stem_channels(net), *pairs, *([deep_channels(net)] if net.last else []))


def _squeezed(net: MobileNetV3, expanded: int) -> int:
    """Channels inside squeeze-and-excite."""
    family = FAMILIES[net.family]
    squeezed = multiple_of_8(expanded / 4) if family.rounded_squeeze else round(expanded / 4)
    return max(squeezed, _LEAST_SQUEEZE) if family.squeeze_norm else squeezed


def _scaled(net: MobileNetV3) -> tuple[Block, ...]:
    """The blocks as `width` makes them, whatever the exact widths are."""
    family = FAMILIES[net.family]
    rows = rows_of(net)
    places = dilated([row.stride for row in rows], net.output_stride, dilate_first=net.dilate_first)
    blocks: list[Block] = []
    table_in, channels = _STEM_CHANNELS, stem_channels(replace(net, widths=()))
    for i, (row, (stride, dilation)) in enumerate(zip(rows, places, strict=True)):
        out, expanded, last = row.out, row.expanded, i - len(rows) + _LAST_BLOCK
        if net.tail != "full" and last >= 0:
            out //= 2
            if net.tail == "rf2" or last > 0:
                expanded //= 2
        if family.expansion_14 and net.size == "large" and i == 13:
            expanded = family.expansion_14
        ratio, table_in, channels_in = expanded / table_in, out, channels
        expanded = multiple_of_8(channels * ratio if family.expansion_follows_input else expanded * net.width)
        channels = multiple_of_8(out * net.width)
        allowed = family.first_shortcut if i == 0 else family.shortcut_after_lost_stride or row.stride == 1
        skip: Skip = ""
        if family.shortcut_convolutions and (row.stride == 2 or channels != channels_in):
            skip = "pointwise" if row.stride == 1 else "depthwise" if channels == channels_in else "both"
        block = Block(
            kernel=3 if net.minimal else row.kernel,
            expanded=expanded,
            out=channels,
            squeeze=_squeezed(net, expanded) if row.squeeze and not net.minimal else 0,
            activation="relu" if net.minimal else row.activation,
            stride=stride,
            dilation=dilation,
            shortcut=allowed and stride == 1 and channels == channels_in,
            squeeze_first=family.first_squeeze_first or (family.squeeze_first and i > 0),
            expands=family.always_expands or expanded != channels_in,
            skip=skip,
            closing=family.shortcut_convolutions,
        )
        blocks.append(block)
    return tuple(blocks)


def stem_channels(net: MobileNetV3) -> int:
    """Channels after the first convolution."""
    if net.widths:
        return net.widths[0]
    kept = net.width < FAMILIES[net.family].stem_kept_below
    return _STEM_CHANNELS if kept else multiple_of_8(_STEM_CHANNELS * net.width)


def deep_channels(net: MobileNetV3) -> int:
    """Channels of the deep map."""
    if not net.last:
        return layout(net)[-1].out
    if net.widths:
        return net.widths[-1]
    if FAMILIES[net.family].deep_follows_output:
        return _DEEP_EXPANSION * layout(net)[-1].out
    return multiple_of_8(_DEEP_EXPANSION * (_TABLES[net.size][-1].out // (1 if net.tail == "full" else 2)) * net.width)


def hidden_channels(net: MobileNetV3) -> int:
    """Channels of the classifier's hidden layer."""
    family = FAMILIES[net.family]
    channels = _HIDDEN_CHANNELS["large" if family.hidden_as_large else net.size]
    if net.tail == "torchvision":
        channels //= 2
    least, most = family.hidden_scales
    return channels if least <= net.width <= most else multiple_of_8(channels * net.width)


class SqueezeExcite(nn.Module):
    """Channel gate: global mean, two 1x1 convs, hard sigmoid."""

    def __init__(self, channels: int, squeezed: int, inner: Activation, norm: Norm | None, *, bias: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1, bias=bias)
        self.norm = norm(squeezed) if norm else nn.Identity()
        self.expand = nn.Conv2d(squeezed, channels, 1, bias=bias)
        self.inner = make_activation(inner)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(global_pool(x))

    def gate(self, mean: Tensor) -> Tensor:
        """Turn the mean of each channel into its factor in 0..1, both N x C x 1 x 1."""
        return F.hardsigmoid(self.expand(self.inner(self.norm(self.reduce(mean)))))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (depthwise), squeeze-and-excite, project (1x1); with a shortcut where shapes allow."""

    def __init__(self, channels_in: int, block: Block, norm: Norm, family: Family, *, same: bool) -> None:
        super().__init__()
        self.shortcut = block.shortcut or bool(block.skip)
        self.expand = (
            conv_bn(channels_in, block.expanded, norm=norm, activation=block.activation)
            if block.expands
            else nn.Identity()
        )
        self.depthwise = conv_bn(
            block.expanded,
            block.expanded,
            block.kernel,
            norm=norm,
            activation=None if block.squeeze_first else block.activation,
            stride=block.stride,
            dilation=block.dilation,
            groups=block.expanded,
            same=same,
        )
        self.squeeze: nn.Module = (
            SqueezeExcite(
                block.expanded,
                block.squeeze,
                "relu" if family.squeeze_relu else block.activation,
                norm if family.squeeze_norm else None,
                bias=family.squeeze_bias,
            )
            if block.squeeze
            else nn.Identity()
        )
        self.activate = make_activation(block.activation) if block.squeeze_first else nn.Identity()
        self.project = conv_bn(block.expanded, block.out, norm=norm, activation=None)
        self.skip = _skip(channels_in, block, norm)
        self.close = make_activation(block.activation) if block.closing else nn.Identity()
        self.has_expansion, self.gives_expansion = block.expands, False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """-> the expanded map after the depthwise conv and before SE, which DeepLab's decoder taps, and the output; the
        expansion before the depthwise convolution, which SSDLite taps, where `gives_expansion` is set."""
        expansion = self.expand(x)
        filtered = self.depthwise(expansion)
        kept = (expansion,) if self.gives_expansion else ()
        del expansion  # the widest map of all
        y = self.project(self.activate(self.squeeze(filtered)))
        return filtered, self.close(self.skip(x) + y if self.shortcut else y), *kept


def _skip(channels: int, block: Block, norm: Norm) -> nn.Sequential:
    """The convolutions of a shortcut; empty where it is plain, or not there."""
    layers: list[nn.Module] = []
    if block.skip in ("depthwise", "both"):
        settings: dict[str, Any] = {"stride": block.stride, "dilation": block.dilation, "padding": block.dilation}
        layers += [nn.Conv2d(channels, channels, 3, groups=channels, bias=False, **settings), norm(channels)]
    if block.skip in ("pointwise", "both"):
        layers += [nn.Conv2d(channels, block.out, 1, bias=block.skip == "both"), norm(block.out)]
    return nn.Sequential(*layers)


class MobileNetV3Backbone(TappedMaps):
    """Normalised image in, the tapped feature maps and the deep one out.

    Args:
        taps: the maps to return before the deep one, in this order.

    Attributes:
        channels: numbers of channels of the returned maps, the deep one last.
    """

    def __init__(self, net: MobileNetV3, taps: tuple[Tap, ...] = (), *, bn_momentum: float = 0.1) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=net.bn_eps, momentum=bn_momentum)
        kind: Activation = "relu" if net.minimal else "hard_swish"
        same = net.padding == "same"
        blocks = layout(net)
        widths = [stem_channels(net), *(block.out for block in blocks)]
        strides = list(accumulate((row.stride for row in rows_of(net)), mul, initial=2))
        self.stem = conv_bn(3, widths[0], 3, norm=norm, activation=kind, stride=2, same=same)
        self.blocks = nn.ModuleList(
            InvertedResidual(width, block, norm, FAMILIES[net.family], same=same)
            for width, block in zip(widths, blocks, strict=False)
        )
        self.tap(taps, strides, widths, [block.expanded for block in blocks], deep_channels(net))
        self.last = conv_bn(widths[-1], self.channels[-1], norm=norm, activation=kind) if net.last else nn.Identity()
        if net.last and net.deep:
            self.last = nn.Sequential(
                *cast(nn.Sequential, self.last),
                *conv_bn(self.channels[-1], self.channels[-1], norm=norm, activation=kind),
            )
