"""The module of PaddleSeg's MobileSeg head: from the feature maps of a backbone to logits."""

from functools import partial

from torch import Tensor, nn

from segmv3.models.heads import MobileSeg
from segmv3.models.layers import Norm, cell_means, conv_bn
from segmv3.models.lraspp import resize


class MobileSegHead(nn.Module):
    """MobileSeg's head (PaddleSeg, paddleseg/models/mobileseg.py), without what only trains.

    The deep map is pooled into a few cells in several ways, and each way is projected, enlarged and summed. On the way
    up a separable 3x3 convolution of each backbone map is added to the enlarged map, and another one follows the sum.
    PaddleSeg's two further classifiers of the coarser maps exist in training alone.
    """

    def __init__(
        self, head: MobileSeg, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float = 0.1
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=head.bn_eps, momentum=bn_momentum)
        coarser = (*head.fused[1:], head.channels)  # what comes from below, at each map
        self.cells = head.cells
        self.context = nn.ModuleList(
            conv_bn(channels[-1], head.channels, norm=norm, activation="relu") for _ in head.cells
        )
        self.mix = _separable(head.channels, head.channels, norm)
        self.skips = nn.ModuleList(_separable(*each, norm) for each in zip(channels, coarser, strict=True))
        self.fuse = nn.ModuleList(_separable(*each, norm) for each in zip(coarser, head.fused, strict=True))
        self.project = _separable(head.fused[0], head.hidden, norm)
        self.finest_classifier = nn.Conv2d(head.hidden, num_classes, 1, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        """Maps, float N x C x h x w, finest first -> logits N x classes x h x w at the finest one's size."""
        deep = features[-1]
        pooled = [
            resize(project(cell_means(deep, cells)), deep)
            for cells, project in zip(self.cells, self.context, strict=True)
        ]
        x = self.mix(sum(pooled[1:], pooled[0]))
        for skip, add, fuse in zip(features[::-1], reversed(self.skips), reversed(self.fuse), strict=True):
            x = fuse(resize(x, skip) + add(skip))
        return self.finest_classifier(self.project(x))


def _separable(channels_in: int, channels_out: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(channels_in, channels_in, 3, norm=norm, activation=None, groups=channels_in),
        conv_bn(channels_in, channels_out, norm=norm, activation="relu"),
    )
