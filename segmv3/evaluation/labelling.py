"""Turn a function that gives logits into one that gives labels, for each way of scoring."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from segmv3.decode import label_map, label_map_and_confidence
from segmv3.inference import Size, multi_scale_flip, resize_image, resized_bands, sliding_window

LabelsFunction = Callable[[Tensor], Tensor]
"""Image uint8 1 x 3 x H x W (RGB) to labels uint8 1 x H x W."""

ConfidentFunction = Callable[[Tensor], Sequence[Tensor]]
"""Image to labels, and to the probability of the class of each pixel, float32 1 x H x W."""

InputSize = Callable[[Size], Size]
"""Maps the (height, width) of an image to the size at which the net sees it."""


class Net(Protocol):
    """What is scored: weights in PyTorch, or an exported file."""

    def low_logits(self, image: Tensor) -> Tensor:
        """Image uint8 1 x 3 x H x W (RGB) to float logits 1 x classes x h x w of any size h x w."""
        ...


def single_scale(net: Net, input_size: InputSize | None = None) -> LabelsFunction:
    """The net on the image, or on a copy of another size.

    Args:
        net: what gives the logits.
        input_size: the size that the net is shown an image at. A copy is made as by `segmv3.inference.resize_image`;
            its logits are enlarged to the copy, then to the image, both bilinear (align_corners=False).
    """
    return lambda image: _single_scale(net, image, input_size, lambda *each: (label_map(*each),))[0]


def confident(net: Net, input_size: InputSize | None = None) -> ConfidentFunction:
    """`single_scale` that also says how sure the net is."""
    return lambda image: _single_scale(net, image, input_size, label_map_and_confidence)


def _single_scale(
    net: Net, image: Tensor, input_size: InputSize | None, decode: Callable[[Tensor, Size], Sequence[Tensor]]
) -> Sequence[Tensor]:
    """No map of all classes is held at the size of an image that is larger than the net's input."""
    size = (image.shape[2], image.shape[3])
    shown = input_size(size) if input_size else size
    logits = net.low_logits(resize_image(image, shown))
    if shown == size:
        return decode(logits, size)
    if math.prod(shown) < math.prod(size):
        return decode(F.interpolate(logits.float(), shown, mode="bilinear", align_corners=False), size)
    bands = (decode(band, (band.shape[2], band.shape[3])) for _, band in resized_bands(logits, shown, size))
    return [torch.cat(parts, 1) for parts in zip(*bands, strict=True)]


def multi_scale(net: Net, input_size: InputSize | None = None) -> LabelsFunction:
    """Multi-scale and flip, as in the mmsegmentation table."""

    def labels_of(image: Tensor) -> Tensor:
        shown = input_size((image.shape[2], image.shape[3])) if input_size else None
        return multi_scale_flip(net.low_logits, image, input_size=shown).argmax(1).to(torch.uint8)

    return labels_of


def sliding(net: Net, window: Size, stride: Size) -> LabelsFunction:
    """Overlapping windows, their logits averaged."""

    def labels_of(image: Tensor) -> Tensor:
        strips = sliding_window(net.low_logits, image, window=window, stride=stride)
        return torch.cat([strip.argmax(1).to(torch.uint8) for strip in strips], 1)

    return labels_of
