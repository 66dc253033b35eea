"""The modules of LR-ASPP and its relatives: from the feature maps of a backbone to logits."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.models.heads import LRASPP, RASPP, LRASPPDecoder, LRASPPPlus
from segmv3.models.layers import Norm, box_mean, conv_bn, global_pool, window_pool

_GATES: dict[str, Callable[[Tensor], Tensor]] = {"hard_sigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid}

_WINDOWS = (5, 9, 17)


class Gate(nn.Module):
    """Deep features through a 1x1 conv, each channel weighed by what is pooled from the whole map."""

    def __init__(self, head: LRASPP | LRASPPDecoder, deep_channels: int, norm: Norm) -> None:
        super().__init__()
        self.deep = conv_bn(deep_channels, head.channels, norm=norm, activation="relu")
        self.gate = nn.Conv2d(deep_channels, head.channels, 1, bias=head.gate_bias)
        self.sigmoid = _GATES[head.gate]
        self.align_corners = isinstance(head, LRASPPDecoder) and head.align_corners
        self.pool = (
            global_pool
            if head.pool == "global"
            else partial(window_pool, window=head.pool_window, stride=head.pool_stride)
        )

    def forward(self, deep: Tensor) -> Tensor:
        """N x D x h x w -> N x F x h x w."""
        gate = self.sigmoid(self.gate(self.pool(deep)))
        if gate.shape[2:] != (1, 1):
            gate = F.interpolate(gate, deep.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return self.deep(deep) * gate


class LRASPPHead(nn.Module):
    """Lite R-ASPP of the paper (arXiv 1905.02244, figure 10), wired as in DeepLab's released nets.

    Gated deep features and low features each get a 1x1 classifier; their logits are summed at the low features'
    size. Classifying before upsampling equals the other order and costs a quarter.
    """

    def __init__(self, head: LRASPP, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float = 0.1) -> None:
        super().__init__()
        low, deep = channels
        self.gated = Gate(head, deep, partial(nn.BatchNorm2d, eps=head.bn_eps, momentum=bn_momentum))
        self.deep_classifier = nn.Conv2d(head.channels, num_classes, 1)
        self.low_classifier = nn.Conv2d(low, num_classes, 1)

    def forward(self, low: Tensor, deep: Tensor) -> Tensor:
        """(N x C x h x w, N x D x h' x w') -> logits N x classes x h x w."""
        return resize(self.deep_classifier(self.gated(deep)), low) + self.low_classifier(low)


class _Fuse(nn.Sequential):
    """1x1 convolution, BN and ReLU of an enlarged map and a projected skip."""

    def forward(self, x: Tensor, skip: Tensor, project: nn.Module) -> Tensor:  # type: ignore[override]
        # Enlarged map and skip are convolved one by one and added: put together they would be the largest map of
        # the whole net. For the same reason each map is let go before the next layer needs memory.
        conv, *layers = self
        weight = cast(nn.Conv2d, conv).weight
        x = resize(x, skip)
        split = x.shape[1]
        fused = F.conv2d(x, weight[:, :split].contiguous())
        del x
        fused += F.conv2d(project(skip), weight[:, split:].contiguous())
        for layer in layers:
            fused = layer(fused)
        return fused


class LRASPPDecoderHead(nn.Module):
    """LR-ASPP as mmsegmentation builds it: a small decoder brings the gated features up through two skips."""

    def __init__(
        self, head: LRASPPDecoder, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float = 0.1
    ) -> None:
        super().__init__()
        *skips, deep = channels
        norm = partial(nn.BatchNorm2d, eps=head.bn_eps, momentum=bn_momentum)
        self.gated = Gate(head, deep, norm)
        self.project = nn.Conv2d(head.channels, head.channels, 1)
        self.skips = nn.ModuleList(
            nn.Conv2d(channels_in, channels_out, 1, bias=False)
            for channels_in, channels_out in zip(skips, head.skip_channels, strict=True)
        )
        self.fuse = nn.ModuleList(
            _Fuse(*conv_bn(head.channels + extra, head.channels, norm=norm, activation="relu"))
            for extra in head.skip_channels
        )
        self.dropout = nn.Dropout2d(head.dropout)
        self.classifier = nn.Conv2d(head.channels, num_classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        """(skips finest first, N x D x h' x w') -> logits N x classes x h x w at the finest skip's size."""
        *skips, deep = features
        x = self.project(self.gated(deep))
        for skip, project, fuse in zip(skips[::-1], reversed(self.skips), reversed(self.fuse), strict=True):
            x = fuse(x, skip, project)
        return self.classifier(self.dropout(x))

    def folded(self) -> nn.Module:
        """The same with fewer convolutions, for inference. BN must be folded already."""
        return _FoldedDecoder(self)


class _FoldedDecoder(nn.Module):
    """`LRASPPDecoderHead` with what is linear multiplied out.

    Enlarging and a 1x1 convolution commute, so maps are convolved while they are small, and neighbouring convolutions
    without an activation between them become one.

    Args:
        head: the head, its BN folded.
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


class RASPPHead(nn.Module):
    """R-ASPP of the paper (section 6.4): a 1x1 convolution and global pooling, concatenated, projected, classified."""

    def __init__(self, head: RASPP, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float = 0.1) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=head.bn_eps, momentum=bn_momentum)
        self.deep = conv_bn(channels[-1], head.channels, norm=norm, activation="relu")
        self.pooled = conv_bn(channels[-1], head.channels, norm=norm, activation="relu")
        self.project = conv_bn(2 * head.channels, head.channels, norm=norm, activation="relu")
        self.classifier = nn.Conv2d(head.channels, num_classes, 1)

    def forward(self, deep: Tensor) -> Tensor:
        """N x D x h x w -> logits N x classes x h x w."""
        pooled = self.pooled(global_pool(deep)).expand(-1, -1, *deep.shape[2:])
        return self.classifier(self.project(torch.cat([pooled, self.deep(deep)], 1)))


class LRASPPPlusHead(nn.Module):
    """LR-ASPP with more context below and one 3x3 convolution above, for a backbone without dilation.

    What each part is for:
    - no dilation: at output stride 32 the paper's Large has a fifth less arithmetic for 0.6 points (arXiv 1905.02244,
      table 8), and a decoder can win more than that back: on the same backbone PaddleSeg has 70.13 for LR-ASPP at
      stride 32, 73.19 for it dilated to 8, and 73.47 for MobileSeg, which is not dilated;
    - means over windows, each projected, then summed as in PP-LiteSeg's SPPM (arXiv 2204.02681): context that differs
      from place to place beside the gate's one mean. They are DDRNet's windows of 5, 9 and 17 cells (DAPPM, arXiv
      2101.06085), around each cell instead of in a number of bins: a training crop and a whole image are pooled alike,
      a map of any size will do, no layer of an exported graph depends on the size, and BN sees whole maps;
    - skips projected, enlarged and added, then a 3x3 convolution: in RegSeg's ablation on Cityscapes (arXiv
      2111.09957, reduced mIoU) 74.85 for LR-ASPP, 74.93 for the sum and a 1x1 convolution, 75.75 for the sum and a 3x3
      one; concatenating, which costs more, had 75.62;
    - depthwise-separable, as everything in MobileSeg's decoder: what is left of 10 GMACs is enough for F = 128 this
      way, for 56 with a plain 3x3. DeepLabv3+ (arXiv 1802.02611) has a similar mIoU with separable ones in its decoder.
    """

    def __init__(
        self, head: LRASPPPlus, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float = 0.1
    ) -> None:
        super().__init__()
        *skips, deep = channels
        filters = head.channels
        norm = partial(nn.BatchNorm2d, eps=head.bn_eps, momentum=bn_momentum)
        self.gated = Gate(LRASPP(channels=filters), deep, norm)
        self.pyramid = nn.ModuleList(conv_bn(deep, filters, norm=norm, activation="relu") for _ in _WINDOWS)
        self.skips = nn.ModuleList(conv_bn(skip, filters, norm=norm, activation="relu") for skip in skips)
        self.fuse = nn.Sequential(
            conv_bn(filters, filters, 3, norm=norm, activation="relu", groups=filters),
            conv_bn(filters, filters, norm=norm, activation="relu"),
        )
        self.classifier = nn.Conv2d(filters, num_classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        """(skips finest first, N x D x h' x w') -> logits N x classes x h x w at the finest skip's size."""
        *skips, deep = features
        x = self.gated(deep)
        for window, project in zip(_WINDOWS, self.pyramid, strict=True):
            x = x + project(box_mean(deep, window))
        for skip, project in zip(skips[::-1], reversed(self.skips), strict=True):
            x = resize(x, skip) + project(skip)
        return self.classifier(self.fuse(x))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the height and width of another map."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
