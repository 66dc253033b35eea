"""Small parts that several nets share."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.errors import ModelError
from segmv3.models.backbones import Tap

Activation = Literal["relu", "hard_swish"]
Norm = partial[nn.BatchNorm2d]
Place = tuple[int, Literal["", "expanded", "expansion"]]
"""Where a feature map is: number of the layer, the stem being 0, and which map inside it, if not its output."""


_GIVEN: tuple[Literal["expanded", "", "expansion"], ...] = ("expanded", "", "expansion")  # by a block, in this order


class FeatureMaps(nn.Module):
    """What a net asks of its backbone's module.

    Attributes:
        channels: of the maps that it returns, one number each, the deep one last.
    """

    channels: tuple[int, ...]

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> tuple[Tensor, ...]:
            """Normalised image, float N x 3 x H x W -> the maps, the deep one last."""


class TappedMaps(FeatureMaps):
    """A stem, blocks and maybe a last layer, the maps of which can be taken out.

    A block returns its expanded map, after the depthwise convolution, and its output; and then the map before the
    depthwise convolution, where its `gives_expansion` is set.
    """

    stem: nn.Module
    blocks: nn.ModuleList
    last: nn.Module

    def tap(self, taps: tuple[Tap, ...], strides: list[int], widths: list[int], expanded: list[int], deep: int) -> None:
        """Choose the maps to return before the deep one. Called once the blocks are there.

        Args:
            taps: the maps, in this order.
            strides: undilated ones of the layers, the stem first.
            widths: channels of the layers, the stem first.
            expanded: channels of the expanded maps of the blocks.
            deep: channels of the deep map.

        Raises:
            ModelError: the net has no such map.
        """
        self._strides = strides
        self._channels: dict[Place, int] = {(i, ""): width for i, width in enumerate(widths)}
        for i, width in enumerate(expanded, 1):
            self._channels |= {(i, "expanded"): width, (i, "expansion"): width}
        located = [self.locate(tap) for tap in taps]
        self.taps = tuple(place for place, _ in located)
        self.channels = (*(channels for _, channels in located), deep)
        for number, at in self.taps:
            if at == "expansion":
                block = cast(Any, self.blocks[number - 1])
                if not getattr(block, "has_expansion", False):
                    raise ModelError(f"block {number} has no expansion before its depthwise convolution to be tapped")
                block.gives_expansion = True

    def locate(self, tap: Tap) -> tuple[Place, int]:
        """Where a feature map is, and its channels."""
        place: Place = (tap.layer(self._strides), tap.at if tap.at in ("expanded", "expansion") else "")
        return place, self._channels[place]

    def layers_by_stride(self) -> dict[int, list[nn.Module]]:
        """Its layers by their stride in the undilated net."""
        found: dict[int, list[nn.Module]] = {}
        for stride, layer in zip(self._strides, (self.stem, *self.blocks), strict=True):
            found.setdefault(stride, []).append(layer)
        found[self._strides[-1]].append(self.last)
        return found

    def forward(self, x: Tensor, also: tuple[Place, ...] = ()) -> tuple[Tensor, ...]:
        """N x 3 x H x W normalised -> the taps, then the deep map N x D x H/os x W/os (sizes rounded up), then the maps
        at the places `also`."""
        wanted = (*self.taps, *also)
        x = self.stem(x)
        maps: dict[Place, Tensor] = {(0, ""): x}
        for i, block in enumerate(self.blocks, 1):
            found = block(x)
            x = found[1]
            for at, map_ in zip(_GIVEN, found, strict=False):
                if (i, at) in wanted:
                    maps[i, at] = map_
        return (*(maps[place] for place in self.taps), self.last(x), *(maps[place] for place in also))


class Normalize(nn.Module):
    """RGB in 0..255 (uint8 or float) to zero mean and unit variance, in float.

    Not persistent: mean and std are settings, and are restored from the config beside the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.to(self.mean.dtype) - self.mean) / self.std


class Conv2dSame(nn.Conv2d):
    """Convolution padded as TensorFlow's "SAME": what is missing, the odd one of it at the bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for n, k, s, d in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation, strict=True):
            # (n - 1) // s + 1 outputs; -(-n // s) would come out of an ONNX export as another number
            missing = max(0, (n - 1) // s * s + (k - 1) * d + 1 - n)
            padding += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int = 1,
    *,
    norm: Norm,
    activation: Activation | None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    same: bool = False,
) -> nn.Sequential:
    """Convolution without bias, BN and activation, padded so that stride 1 keeps the size.

    Args:
        same: pad a strided convolution as TensorFlow does; at stride 1 both ways agree.
    """
    conv = (Conv2dSame if same and stride > 1 else nn.Conv2d)(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=(kernel - 1) // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    layers: list[nn.Module] = [conv, norm(channels_out)]
    if activation:
        layers.append(make_activation(activation))
    return nn.Sequential(*layers)


def make_activation(kind: Activation) -> nn.Module:
    return nn.ReLU(inplace=True) if kind == "relu" else nn.Hardswish(inplace=True)


def multiple_of_8(channels: float) -> int:
    """Round to a multiple of 8 without going below 90 % of the value (the paper's released code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def initialise(module: nn.Module) -> None:
    """Weights to start from scratch with: He (fan out) for convolutions, N(0, 0.01) for linear layers."""
    if any(p.is_meta for p in module.parameters(recurse=False)):
        return  # a net that is only counted; drawing numbers for it would import half of torch
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def dilated(strides: list[int], output_stride: int, *, dilate_first: bool = True) -> list[tuple[int, int]]:
    """(stride, dilation) of each block after a stem of stride 2, strides beyond `output_stride` taken out.

    Args:
        dilate_first: whether a block that lost its stride is dilated at the new rate or still at the old one.
    """
    result, reached, dilation = [], 2, 1
    for stride in strides:
        before = dilation
        if stride == 2 and reached >= output_stride:
            dilation *= 2
            result.append((1, dilation if dilate_first else before))
        else:
            reached *= stride
            result.append((stride, dilation))
    return result


def global_pool(x: Tensor) -> Tensor:
    """N x C x H x W -> N x C x 1 x 1: the mean of the whole map."""
    return x.mean((2, 3), keepdim=True)


def window_pool(x: Tensor, *, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Means over windows without padding (VALID); a window larger than the map shrinks to it."""
    height, width = min(window[0], int(x.shape[2])), min(window[1], int(x.shape[3]))  # constants of an exported graph
    return F.avg_pool2d(x, (height, width), stride)


def box_mean(x: Tensor, side: int) -> Tensor:
    """The mean around each cell, over a square of an odd side: N x C x H x W as before.

    What reaches over the edge does not count, so that a map of any size will do, 1 x 1 too.
    """
    half = side // 2
    x = F.avg_pool2d(x, (side, 1), 1, (half, 0), count_include_pad=False)  # rows, then columns: 2 sides, not side^2
    return F.avg_pool2d(x, (1, side), 1, (0, half), count_include_pad=False)


def cell_means(x: Tensor, cells: int) -> Tensor:
    """Means over cells x cells parts of a map, as `F.adaptive_avg_pool2d`: N x C x H x W -> N x C x cells x cells.

    As products of matrices, because an exporter takes that function only where the parts are of equal size.
    """
    if cells == 1:
        return global_pool(x)
    rows, columns = (_shares(side, cells, x) for side in x.shape[2:])
    return F.linear(F.linear(x, columns).transpose(2, 3), rows).transpose(2, 3)


def _shares(length: int, cells: int, like: Tensor) -> Tensor:
    """Weight of each place of a line in the mean of each cell, cells x length; neighbours may share a place."""
    place, cell = (torch.arange(count, device=like.device) for count in (length, cells))
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = (place >= first[:, None]) & (place < end[:, None])
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)
