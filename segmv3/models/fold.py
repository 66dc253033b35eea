"""A net for inference, computing the same with fewer steps."""

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segmv3.models.classifier import ImageClassifier
from segmv3.models.segmenter import Segmenter

Net = TypeVar("Net", Segmenter, ImageClassifier, Segmenter | ImageClassifier)


class _Centre(nn.Module):
    """What is left of the normalisation once the first convolution divides by the deviation."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return image.to(self.mean.dtype) - self.mean


@torch.no_grad()
def folded(model: Net) -> Net:
    """A copy of a net, in eval mode and without gradients, that computes the same with fewer steps.

    Every BN goes into the convolution before it, its neighbour in an `nn.Sequential` everywhere in segmv3; the
    deviation of the pixels goes into the first convolution of a backbone that has a `stem`. Their mean stays outside,
    because a padded zero means a pixel of that mean. A head that has a method `folded` knows more.
    """
    copied = copy.deepcopy(model).eval()
    normalize = copied.normalize
    stem = getattr(copied.backbone, "stem", None)
    if isinstance(stem, nn.Sequential) and isinstance(stem[0], nn.Conv2d):  # all pixels go through it, and nowhere else
        stem[0].weight.div_(normalize.std)
        copied.normalize = _Centre(normalize.mean)  # type: ignore[assignment]
    for layers in [module for module in copied.modules() if isinstance(module, nn.Sequential)]:
        for place in range(len(layers) - 1):
            conv, norm = layers[place], layers[place + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[place], layers[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    if hasattr(getattr(copied, "head", None), "folded"):
        cast(Any, copied).head = cast(Any, copied).head.folded()
    return copied.requires_grad_(False)
