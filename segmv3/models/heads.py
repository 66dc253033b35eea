"""Segmentation heads as settings: each says which maps it takes, which values it allows, and builds its module.

A head of your own is a frozen dataclass that inherits `Head` (examples/own_head.py). Nothing here imports torch; the
modules do, and they are imported when a net is built.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from segmv3.models.backbones import Tap, bn_eps_rule
from segmv3.settings import Rule

if TYPE_CHECKING:
    from torch import nn

_MOST_CHANNELS = 4096


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    """What a net asks of its head's settings. A subclass is a frozen dataclass."""

    classifiers: ClassVar[tuple[str, ...]] = ("classifier",)
    """Names of the submodules whose output channels are the classes."""

    @abstractmethod
    def taps(self) -> tuple[Tap, ...]:
        """The feature maps that it takes beside the deep one, in this order."""

    @abstractmethod
    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> "nn.Module":
        """Build the module with fresh weights.

        Args:
            channels: of the maps of `taps`, then of the deep one.
            num_classes: channels of the logits.
            bn_momentum: weight of the newest batch in BN's running statistics.

        Returns:
            A module that takes the maps, float N x C x h x w each, and returns logits N x num_classes x h x w at the
            size of any of them. A method `folded()`, where it has one, returns a module for inference that computes the
            same with fewer steps.
        """

    def rules(self) -> list[Rule]:
        """What its values must keep to: (whether it holds, setting, what is wrong where it does not)."""
        return []

    @property
    def fixed_size(self) -> bool:
        """Whether an exported graph is for one size of images only."""
        return False

    @property
    def normalises_pooled(self) -> bool:
        """Whether a BN layer of it sees one value for each image and channel: a batch of one cannot train it."""
        return False


@dataclass(frozen=True, kw_only=True)
class LRASPP(Head):
    """The paper's head (figure 10): gated deep features and the 1/8 features, each classified, then summed."""

    channels: int = 128
    """Filters F."""
    tap: Literal["expanded", "output"] = "expanded"
    """The 1/8 features: the expanded map inside the last block of that stage (DeepLab's released nets), or the
    output of its first block (torchvision)."""
    gate: Literal["hard_sigmoid", "sigmoid"] = "hard_sigmoid"
    gate_bias: bool = True
    """Whether the gate's convolution has a bias."""
    pool: Literal["global", "window"] = "global"
    """Pooling of the gate: the whole map, or windows of `pool_window` cells every `pool_stride`."""
    pool_window: tuple[int, int] = (49, 49)
    pool_stride: tuple[int, int] = (16, 20)
    bn_eps: float = 1e-5

    classifiers = ("deep_classifier", "low_classifier")

    def taps(self) -> tuple[Tap, ...]:
        return (Tap(8, "expanded" if self.tap == "expanded" else "first"),)

    def rules(self) -> list[Rule]:
        return [*_common_rules(self.channels, self.bn_eps), *_window_rules(self.pool_window, self.pool_stride)]

    @property
    def fixed_size(self) -> bool:
        return self.pool == "window"

    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> "nn.Module":
        from segmv3.models.lraspp import LRASPPHead

        return LRASPPHead(self, channels, num_classes, bn_momentum=bn_momentum)


@dataclass(frozen=True, kw_only=True)
class LRASPPDecoder(Head):
    """mmsegmentation's LR-ASPP: gated deep features, refined by two skips on the way up to half the input size."""

    channels: int = 128
    skip_strides: tuple[int, int] = (2, 4)
    """Where the skips come from, finest first; the logits come out at the first one."""
    skip_channels: tuple[int, int] = (32, 64)
    gate: Literal["hard_sigmoid", "sigmoid"] = "sigmoid"
    gate_bias: bool = False
    pool: Literal["global", "window"] = "window"
    pool_window: tuple[int, int] = (49, 49)
    pool_stride: tuple[int, int] = (16, 20)
    align_corners: bool = False
    """How a gate of several windows is enlarged to the map (fastseg: true)."""
    dropout: float = 0.1
    bn_eps: float = 1e-3

    def taps(self) -> tuple[Tap, ...]:
        return tuple(Tap(stride) for stride in self.skip_strides)

    def rules(self) -> list[Rule]:
        fine, coarse = self.skip_strides
        few, many = min(self.skip_channels), max(self.skip_channels)
        return [
            *_common_rules(self.channels, self.bn_eps),
            *_window_rules(self.pool_window, self.pool_stride),
            (fine < coarse and {fine, coarse} <= {2, 4, 8}, "skip-strides", "must be two rising ones of 2, 4, 8"),
            (1 <= few <= many <= _MOST_CHANNELS, "skip-channels", f"must lie between 1 and {_MOST_CHANNELS}"),
            (0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1"),
        ]

    @property
    def fixed_size(self) -> bool:
        return self.pool == "window"

    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> "nn.Module":
        from segmv3.models.lraspp import LRASPPDecoderHead

        return LRASPPDecoderHead(self, channels, num_classes, bn_momentum=bn_momentum)


@dataclass(frozen=True, kw_only=True)
class LRASPPPlus(Head):
    """For backbones without dilation: LR-ASPP with means over windows beside its gate, finer features added on the way
    up, and one separable 3x3 convolution of the sum. `segmv3.models.lraspp.LRASPPPlusHead` gives the reasons."""

    channels: int = 128
    """Filters F, everywhere in the head."""
    finest: Literal[8, 4] = 8
    """Stride of the finest features that are added, and of the logits. 4 is for small images, where a pole is one to
    three pixels wide."""
    bn_eps: float = 1e-5

    def taps(self) -> tuple[Tap, ...]:
        return tuple(Tap(stride) for stride in (4, 8, 16) if stride >= self.finest)

    def rules(self) -> list[Rule]:
        return _common_rules(self.channels, self.bn_eps)

    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> "nn.Module":
        from segmv3.models.lraspp import LRASPPPlusHead

        return LRASPPPlusHead(self, channels, num_classes, bn_momentum=bn_momentum)


@dataclass(frozen=True, kw_only=True)
class MobileSeg(Head):
    """PaddleSeg's MobileSeg, for backbones without dilation: pooled context, then separable convolutions on the way up
    to 1/8. The defaults are those of its nets with MobileNetV3-Large."""

    channels: int = 128
    """Filters of the pooled context."""
    cells: tuple[int, ...] = (1, 2, 4)
    """Into how many cells a side the deep map is pooled, in each of several ways."""
    fused: tuple[int, int, int] = (32, 64, 128)
    """Filters of the fused maps at 1/8, 1/16 and the deep map's stride."""
    hidden: int = 32
    """Filters before the classifier."""
    bn_eps: float = 1e-5

    classifiers = ("finest_classifier",)

    def taps(self) -> tuple[Tap, ...]:
        return Tap(8), Tap(16)

    def rules(self) -> list[Rule]:
        few, many = min(*self.fused, self.hidden), max(*self.fused, self.hidden)
        return [
            *_common_rules(self.channels, self.bn_eps),
            (1 <= few <= many <= _MOST_CHANNELS, "fused", f"and hidden must lie between 1 and {_MOST_CHANNELS}"),
            (min(self.cells, default=0) >= 1, "cells", "must be one or more, each at least 1"),
        ]

    @property
    def normalises_pooled(self) -> bool:
        return 1 in self.cells

    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> "nn.Module":
        from segmv3.models.mobileseg import MobileSegHead

        return MobileSegHead(self, channels, num_classes, bn_momentum=bn_momentum)


@dataclass(frozen=True, kw_only=True)
class RASPP(Head):
    """The paper's comparison head: 1x1 convolution and global pooling, concatenated and projected, at 1/16."""

    channels: int = 256
    """Filters F."""
    bn_eps: float = 1e-5

    def taps(self) -> tuple[Tap, ...]:
        return ()

    def rules(self) -> list[Rule]:
        return _common_rules(self.channels, self.bn_eps)

    @property
    def normalises_pooled(self) -> bool:
        return True

    def build(self, channels: tuple[int, ...], num_classes: int, *, bn_momentum: float) -> "nn.Module":
        from segmv3.models.lraspp import RASPPHead

        return RASPPHead(self, channels, num_classes, bn_momentum=bn_momentum)


def _common_rules(channels: int, bn_eps: float) -> list[Rule]:
    in_range = 1 <= channels <= _MOST_CHANNELS
    return [(in_range, "channels", f"must lie between 1 and {_MOST_CHANNELS}"), bn_eps_rule(bn_eps)]


def _window_rules(window: tuple[int, int], stride: tuple[int, int]) -> list[Rule]:
    return [
        (min(window) >= 1, "pool-window", "must be at least 1 x 1"),
        (min(stride) >= 1, "pool-stride", "must be at least 1 x 1"),
    ]
