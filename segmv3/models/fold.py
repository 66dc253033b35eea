"""A net for inference, computing the same with fewer steps."""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segmv3.models.heads import LRASPPDecoderHead, resize
from segmv3.models.segmenter import Segmenter


class _Centre(nn.Module):
    """What is left of the normalisation once the first convolution divides by the deviation."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return image.to(self.mean.dtype) - self.mean


class _Decoder(nn.Module):
    """`LRASPPDecoderHead` with what is linear multiplied out.

    Enlarging and a 1x1 convolution commute, so maps are convolved while they are small, and neighbouring convolutions
    without an activation between them become one.

    Args: head: its BN folded.
    """

    def __init__(self, head: LRASPPDecoderHead) -> None:
        super().__init__()
        self.gated = head.gated
        self.enlarged, self.skips = nn.ModuleList(), nn.ModuleList()  # coarsest first
        before: nn.Conv2d | None = head.project
        for project, fuse in zip(reversed(head.skips), reversed(head.fuse), strict=True):
            conv = cast(nn.Conv2d, cast(nn.Sequential, fuse)[0])
            split = before.out_channels if before else conv.in_channels - cast(nn.Conv2d, project).out_channels
            enlarged, skip = _part(conv, slice(None, split)), _part(conv, slice(split, None), bias=False)
            self.enlarged.append(_product(enlarged, before) if before else enlarged)
            self.skips.append(_product(skip, cast(nn.Conv2d, project)))
            before = None
        self.classifier = head.classifier

    def forward(self, *features: Tensor) -> Tensor:
        """As the head's."""
        *skips, deep = features
        x = self.gated(deep)
        for skip, enlarge, add in zip(skips[::-1], self.enlarged, self.skips, strict=True):
            x = F.relu(resize(enlarge(x), skip) + add(skip))
        return self.classifier(x)


def _part(conv: nn.Conv2d, channels: slice, *, bias: bool = True) -> nn.Conv2d:
    """A 1x1 convolution of some of the channels that it takes."""
    return _pointwise(conv.weight[:, channels], conv.bias if bias else None)


def _product(second: nn.Conv2d, first: nn.Conv2d) -> nn.Conv2d:
    """Two 1x1 convolutions in a row as one."""
    outer, inner = (conv.weight.flatten(1).double() for conv in (second, first))
    bias = second.bias
    if first.bias is not None:
        bias = outer @ first.bias.double() + (0 if bias is None else bias.double())
    return _pointwise((outer @ inner)[..., None, None], bias)


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device=weight.device)
    conv.weight.copy_(weight)
    if bias is not None:
        assert conv.bias is not None
        conv.bias.copy_(bias)
    return conv


@torch.no_grad()
def folded(model: Segmenter) -> Segmenter:
    """A copy of a net, in eval mode and without gradients, that computes the same with fewer steps.

    Every BN goes into the convolution before it, its neighbour in an `nn.Sequential` everywhere in segmv3; the
    deviation of the pixels goes into the first convolution. Their mean stays: the zeros that pad an image stand for it.
    Of mmsegmentation's decoder more can be multiplied out.
    """
    copied = copy.deepcopy(model).eval()
    normalize = copied.normalize
    stem = next(module for module in copied.backbone.modules() if isinstance(module, nn.Conv2d))
    stem.weight.div_(normalize.std)
    copied.normalize = _Centre(normalize.mean)  # type: ignore[assignment]
    for layers in [module for module in copied.modules() if isinstance(module, nn.Sequential)]:
        for place in range(len(layers) - 1):
            conv, norm = layers[place], layers[place + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[place], layers[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    if isinstance(copied.head, LRASPPDecoderHead):
        copied.head = _Decoder(copied.head)  # type: ignore[assignment]
    return copied.requires_grad_(False)
