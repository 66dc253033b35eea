"""Backbones as settings: each says what it is called, which values it takes, and builds its module.

A backbone of your own is a frozen dataclass that inherits `Backbone`. Nothing here imports torch; the modules do,
and they are imported when a net is built.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from segmv3.errors import ModelError
from segmv3.settings import Rule

_MOST_CHANNELS = 8192

if TYPE_CHECKING:
    from segmv3.models.layers import FeatureMaps


@dataclass(frozen=True)
class Tap:
    """Where a head takes a feature map out of a backbone."""

    stride: int
    """Of the undilated net: it names a stage, which keeps its name when an output stride takes strides out."""
    at: Literal["first", "last", "expanded", "expansion"] = "last"
    """Output of the first or last layer of the stage, or a map inside a block: "expanded" is that of the last block
    after the depthwise convolution and before squeeze-and-excite, "expansion" that of the first block after its first
    1x1 convolution, which still has the size of the stage before."""
    block: int | None = None
    """Take another block of the stage: its number in the net, counted from 1."""

    def layer(self, strides: list[int]) -> int:
        """Its place in a list of layers (stem first) given by their undilated strides.

        Raises: ModelError for a block that is not of this stage.
        """
        places = [i for i, stride in enumerate(strides) if stride == self.stride]
        if self.block is not None:
            if self.block not in places:
                raise ModelError(f"block {self.block} is not at stride {self.stride}; its blocks are {places}")
            return self.block
        return places[0] if self.at in ("first", "expansion") else places[-1]


@dataclass(frozen=True, kw_only=True)
class Backbone(ABC):
    """What a net asks of its backbone's settings. A subclass is a frozen dataclass."""

    @property
    @abstractmethod
    def output_stride(self) -> int:
        """Input size over the size of the deep map; a field, with a default, in a subclass."""

    @abstractmethod
    def build(self, taps: tuple[Tap, ...], *, bn_momentum: float) -> "FeatureMaps":
        """Build the module with fresh weights.

        Args:
            taps: the feature maps that the head wants beside the deep one.
            bn_momentum: weight of the newest batch in BN's running statistics.

        Returns:
            A module that takes a normalised image, float N x 3 x H x W, and returns the maps of `taps` in their order,
            then the deep map.
        """

    @property
    def title(self) -> str:
        """What messages and tables call it."""
        return type(self).__name__

    @property
    def normalises_pooled(self) -> bool:
        """Whether a BN layer of it sees one value for each image and channel: a batch of one cannot train it."""
        return False

    def rules(self) -> list[Rule]:
        """What its values must keep to: (whether it holds, setting, what is wrong where it does not)."""
        return []


@dataclass(frozen=True, kw_only=True)
class MobileNetV3(Backbone):
    """A MobileNetV3 backbone (arXiv 1905.02244, tables 1 and 2). The defaults are the classification net."""

    size: Literal["large", "small"] = "large"
    width: float = 1.0
    """Multiplier of all channels; the result is rounded to multiples of 8. Published: 0.35, 0.5, 0.75, 1, 1.25."""
    deep: bool = False
    """A fifth more blocks in each stage and a second closing convolution (timm's mobilenetv3_large_150d: width 1.5)."""
    minimal: bool = False
    """No squeeze-and-excite, no h-swish, 3x3 kernels only (TensorFlow's "minimalistic" nets)."""
    family: Literal["timm", "d-li14", "torchvision", "paddle", "rw", "showlo", "sqlai"] = "timm"
    """Whose rules turn a width into channels, and what the squeeze and the classifier look like; see
    `segmv3.models.mobilenetv3.FAMILIES`. At width 1.0 timm and torchvision agree; showlo and sqlai have no other."""
    tail: Literal["full", "rf2", "torchvision"] = "full"
    """Last block: as for classification, with half the filters (the paper's RF2), or with all but the first
    expansion halved (torchvision's `reduced_tail`)."""
    output_stride: Literal[8, 16, 32] = 32
    """Input size over deep feature size; strides beyond it become dilation."""
    dilate_first: bool = True
    """Whether a block that lost its stride is dilated too (mmsegmentation, torchvision) or only those after it
    (timm, TensorFlow)."""
    last: bool = True
    """Whether the closing 1x1 convolution is there; PaddleSeg's segmentation nets end with the blocks."""
    padding: Literal["symmetric", "same"] = "symmetric"
    """"same" is TensorFlow's: at stride 2 an even size gets its extra row and column at the bottom and right."""
    bn_eps: float = 1e-3
    widths: tuple[int, ...] = ()
    """Exact channels instead of `width`, as `segmv3 fit` finds them: of the stem, of each block the expansion and the
    output, and of the closing convolution where there is one. Empty for the rounded channels of `width`."""

    @property
    def title(self) -> str:
        kind = f"{' deep' if self.deep else ''}{' minimal' if self.minimal else ''}{' fitted' if self.widths else ''}"
        return f"MobileNetV3-{self.size}{kind}"

    @property
    def layers(self) -> int:
        """Numbers in `widths`, where they are given."""
        blocks = {"large": 21 if self.deep else 15, "small": 11}[self.size]
        return 1 + 2 * blocks + self.last

    @property
    def normalises_pooled(self) -> bool:
        return self.family == "sqlai"

    def rules(self) -> list[Rule]:
        published = (self.width == 1 and not self.widths) or self.family not in ("showlo", "sqlai")
        return [
            _width_rule(self.width),
            (not self.deep or (self.size, self.family) == ("large", "timm"), "deep", "is for timm's Large only"),
            (published, "width", f"must be 1: the family {self.family} has no other"),
            (len(self.widths) in (0, self.layers), "widths", f"must be {self.layers} numbers, one for each layer"),
            (all(1 <= n <= _MOST_CHANNELS for n in self.widths), "widths", f"must lie between 1 and {_MOST_CHANNELS}"),
            bn_eps_rule(self.bn_eps),
        ]

    def build(self, taps: tuple[Tap, ...], *, bn_momentum: float) -> "FeatureMaps":
        from segmv3.models.mobilenetv3 import MobileNetV3Backbone

        return MobileNetV3Backbone(self, taps, bn_momentum=bn_momentum)


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(Backbone):
    """A MobileNetV2 backbone (arXiv 1801.04381), torchvision's, for the paper's comparison rows."""

    width: float = 1.0
    tail: Literal["full", "rf2"] = "full"
    output_stride: Literal[8, 16, 32] = 32
    bn_eps: float = 1e-3

    def rules(self) -> list[Rule]:
        return [_width_rule(self.width), bn_eps_rule(self.bn_eps)]

    def build(self, taps: tuple[Tap, ...], *, bn_momentum: float) -> "FeatureMaps":
        from segmv3.models.mobilenetv2 import MobileNetV2Backbone

        return MobileNetV2Backbone(self, taps, bn_momentum=bn_momentum)


@dataclass(frozen=True, kw_only=True)
class Timm(Backbone):
    """Any net of the timm library that gives feature maps (`timm.list_models`), with fresh weights."""

    name: str = "mobilenetv4_conv_small"
    """Name of the net in timm."""
    output_stride: Literal[8, 16, 32] = 32
    """Input size over deep feature size; not every net of timm takes 8 and 16."""

    @property
    def title(self) -> str:
        return f"timm's {self.name}"

    def build(self, taps: tuple[Tap, ...], *, bn_momentum: float) -> "FeatureMaps":
        """As `Backbone.build`.

        Raises:
            ModelError: timm has no such net, or the net has no such map.
        """
        from segmv3.models.timm import TimmBackbone

        return TimmBackbone(self, taps, bn_momentum=bn_momentum)


def _width_rule(width: float) -> Rule:
    return 0.1 <= width <= 4, "width", "must lie between 0.1 and 4"


def bn_eps_rule(bn_eps: float) -> Rule:
    """What batch normalisation's epsilon must keep to."""
    return 0 < bn_eps < 1, "bn-eps", "must lie between 0 and 1"
