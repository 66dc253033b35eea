"""The backbone over a picture whose maps would not fit in memory: every wide map exists a band of rows at a time.

The widest maps are inside the blocks. Of an 8K picture those of Small take 1.7 GB, those of Large 4 GB. Here a map is
a recipe for any of its rows, so only the narrow maps between blocks are ever held whole. Squeeze-and-excite needs the
mean of a whole map first; that map is computed twice. The result is the backbone's, but for float32 rounding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.models.layers import Conv2dSame, Place
from segmv3.models.mobilenetv3 import InvertedResidual, MobileNetV3Backbone, SqueezeExcite

_BAND_BYTES = 8 * 2**20
"""What the rows of one band of a map may take."""


class _Map(Protocol):
    """A feature map that can be asked for some of its rows.

    Attributes: height, width: of the whole map. channels: of it, or of the widest map that its rows are made from.
    """

    height: int
    width: int
    channels: int

    def rows(self, start: int, stop: int) -> Tensor:
        """-> N x C x (stop - start) x W."""
        ...


class _Whole:
    """A map that exists."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.channels, self.height, self.width = x.shape[1:]

    def rows(self, start: int, stop: int) -> Tensor:
        return self.x[:, :, start:stop]


class _Layers:
    """A map and the layers after it: a convolution, if there is one, and what works pixel by pixel."""

    def __init__(self, source: _Map, layers: nn.Module) -> None:
        self.source = source
        first, *rest = layers if isinstance(layers, nn.Sequential) else [layers]
        self.conv = first if isinstance(first, nn.Conv2d) else None
        self.rest = rest if self.conv else [first, *rest]
        self.height, self.width, self.channels = source.height, source.width, source.channels
        if self.conv:
            self.height, self._above, _ = _along(self.conv, 0, source.height)
            self.width, *self._beside = _along(self.conv, 1, source.width)
            self.channels = max(self.channels, self.conv.out_channels)

    def rows(self, start: int, stop: int) -> Tensor:
        x = self._convolved(self.conv, start, stop) if self.conv else self.source.rows(start, stop)
        for layer in self.rest:
            x = layer(x)
        return x

    def _convolved(self, conv: nn.Conv2d, start: int, stop: int) -> Tensor:
        (stride, *_), (dilation, *_), (kernel, *_) = conv.stride, conv.dilation, conv.kernel_size
        top = start * stride - self._above
        bottom = (stop - 1) * stride - self._above + (kernel - 1) * dilation + 1
        x = self.source.rows(max(0, top), min(bottom, self.source.height))
        padding = [*self._beside, max(0, -top), max(0, bottom - self.source.height)]
        if any(padding):
            x = F.pad(x, padding)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _along(conv: nn.Conv2d, axis: int, length: int) -> tuple[int, int, int]:
    """Outputs of a convolution along one side, and the zeros before and after the side."""
    stride, dilation, kernel = conv.stride[axis], conv.dilation[axis], conv.kernel_size[axis]
    reach = (kernel - 1) * dilation + 1
    if isinstance(conv, Conv2dSame):
        outputs = (length - 1) // stride + 1
        missing = max(0, (outputs - 1) * stride + reach - length)
        return outputs, missing // 2, missing - missing // 2
    before = cast(tuple[int, int], conv.padding)[axis]
    return (length + 2 * before - reach) // stride + 1, before, before


@dataclass
class _Projected:
    """What a block puts out: its filtered map, gated, projected, and added to what came in."""

    block: InvertedResidual
    source: _Map
    filtered: _Map
    gate: Tensor | None

    def __post_init__(self) -> None:
        self.height, self.width, self.channels = self.filtered.height, self.filtered.width, self.filtered.channels
        self.skip = _Layers(self.source, self.block.skip) if len(self.block.skip) else self.source

    def rows(self, start: int, stop: int) -> Tensor:
        x = self.filtered.rows(start, stop)
        if self.gate is not None:
            x = x * self.gate
        y = self.block.project(self.block.activate(x))
        return self.block.close(self.skip.rows(start, stop) + y if self.block.shortcut else y)


def features_in_bands(normalize: nn.Module, backbone: MobileNetV3Backbone, image: Tensor) -> tuple[Tensor, ...]:
    """What `backbone(normalize(image))` returns, in less memory and up to twice the time.

    Args:
        normalize: in eval mode.
        backbone: in eval mode.
        image: uint8 or float N x 3 x H x W.
    """
    x: _Map = _Layers(_Layers(_Whole(image), normalize), backbone.stem)
    maps: dict[Place, Tensor] = {}

    def kept(x: _Map, place: Place) -> _Map:
        if place not in backbone.taps:
            return x
        maps[place] = _whole(x)
        return _Whole(maps[place])

    x = kept(x, (0, ""))
    for i, block in enumerate(cast(Iterable[InvertedResidual], backbone.blocks), 1):
        filtered = kept(_Layers(_Layers(x, block.expand), block.depthwise), (i, "expanded"))
        gate = block.squeeze.gate(_mean(filtered)) if isinstance(block.squeeze, SqueezeExcite) else None
        x = kept(_Projected(block, x, filtered, gate), (i, ""))
        if 4 * x.height <= image.shape[2] + 3:  # the narrow maps at half of the picture's size are the largest of all
            x = _Whole(_whole(x))
    return (*(maps[place] for place in backbone.taps), _whole(_Layers(x, backbone.last)))


def _bands(x: _Map) -> Iterable[tuple[int, int]]:
    step = max(1, _BAND_BYTES // (4 * x.channels * x.width))
    return ((start, min(start + step, x.height)) for start in range(0, x.height, step))


def _whole(x: _Map) -> Tensor:
    if isinstance(x, _Whole):
        return x.x
    whole: Tensor | None = None
    for start, stop in _bands(x):
        band = x.rows(start, stop)
        if whole is None:
            size = (*band.shape[:2], x.height, x.width)
            whole = torch.empty(size, dtype=band.dtype, memory_format=torch.channels_last)
        whole[:, :, start:stop] = band
    assert whole is not None
    return whole


def _mean(x: _Map) -> Tensor:
    """N x C x 1 x 1: the mean of the whole map."""
    total = sum(x.rows(start, stop).sum((2, 3), keepdim=True, dtype=torch.float64) for start, stop in _bands(x))
    return (cast(Tensor, total) / (x.height * x.width)).float()
