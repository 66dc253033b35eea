"""The named nets, and the one way to build a net."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from segmv3.errors import ModelError
from segmv3.models.backbones import MobileNetV2, MobileNetV3
from segmv3.models.classifier import ImageClassifier
from segmv3.models.heads import LRASPP, RASPP, LRASPPDecoder, LRASPPPlus
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.nets import Classifier, Model, net_rules
from segmv3.models.segmenter import Segmenter
from segmv3.settings import mistyped

if TYPE_CHECKING:
    from segmv3.config import Config


def _flagship(size: Literal["large", "small"]) -> Model:
    """The paper's net: the last block halved and at stride 16, LR-ASPP with 128 filters on the 1/8 map."""
    return Model(backbone=MobileNetV3(size=size, tail="rf2", output_stride=16), head=LRASPP())


def _mmseg(size: Literal["large", "small"]) -> Model:
    """mmsegmentation's net: everything after 1/8 dilated, a decoder up to 1/2, stride-2 convolutions padded SAME."""
    return Model(backbone=MobileNetV3(size=size, output_stride=8, padding="same"), head=LRASPPDecoder())


def _plus(size: Literal["large", "small"]) -> Model:
    """The accuracy option: all blocks, none dilated, without the closing 1x1 convolution (as PaddleSeg's nets), under a
    head that gathers context and detail itself."""
    return Model(backbone=MobileNetV3(size=size, last=False), head=LRASPPPlus())


NETS: Mapping[str, Model] = MappingProxyType(
    {
        "lraspp_large_d8": _flagship("large"),  # paper, table 7 row 8: 1.51 M parameters
        "lraspp_small_d8": _flagship("small"),  # paper, table 7 row 11: 0.47 M parameters
        "lraspp_large_d8_mmseg": _mmseg("large"),
        "lraspp_small_d8_mmseg": _mmseg("small"),
        "lraspp_large_plus": _plus("large"),
        "lraspp_small_plus": _plus("small"),
    }
)


def _v2(tail: Literal["full", "rf2"] = "rf2", width: float = 1.0) -> MobileNetV2:
    return MobileNetV2(tail=tail, width=width, output_stride=16)


def _v3(tail: Literal["full", "rf2"] = "rf2") -> MobileNetV3:
    return MobileNetV3(tail=tail, output_stride=16)


_V2_LRASPP = LRASPP(tap="output")  # agrees with the paper's parameters in more rows than the expanded map

PAPER_NETS: Mapping[str, Model] = MappingProxyType(
    {
        "paper_01_v2_raspp": Model(backbone=_v2("full"), head=RASPP()),
        "paper_02_v2_rf2_raspp": Model(backbone=_v2(), head=RASPP()),
        "paper_03_v2_rf2_lraspp_f256": Model(backbone=_v2(), head=replace(_V2_LRASPP, channels=256)),
        "paper_04_v2_rf2_lraspp": Model(backbone=_v2(), head=_V2_LRASPP),
        "paper_05_large_raspp": Model(backbone=_v3("full"), head=RASPP()),
        "paper_06_large_rf2_raspp": Model(backbone=_v3(), head=RASPP()),
        "paper_07_large_rf2_lraspp_f256": Model(backbone=_v3(), head=LRASPP(channels=256)),
        "paper_08_large_rf2_lraspp": NETS["lraspp_large_d8"],
        "paper_09_v2_x0.5_rf2_lraspp": Model(backbone=_v2(width=0.5), head=_V2_LRASPP),
        "paper_10_v2_x0.35_rf2_lraspp": Model(backbone=_v2(width=0.35), head=_V2_LRASPP),
        "paper_11_small_rf2_lraspp": NETS["lraspp_small_d8"],
    }
)
"""The rows of the MobileNetV3 paper's Cityscapes table (arXiv 1905.02244, table 7), in its order."""


def net(name: str) -> Model:
    """The settings of a named net.

    Raises: ModelError naming the nearest names.
    """
    nets = {**NETS, **PAPER_NETS}
    if name in nets:
        return nets[name]
    near = difflib.get_close_matches(name, nets, n=3, cutoff=0.4) or list(NETS)
    raise ModelError(f"there is no net {name!r}; did you mean {' or '.join(near)}?")


def net_name(model: Model) -> str:
    """The name of a net with these settings, or a description where it has none."""
    plain = replace(model, pretrained=None)  # where the weights came from does not change the net
    named = next((name for name, settings in {**NETS, **PAPER_NETS}.items() if settings == plain), None)
    if named:
        return named
    backbone, head = model.backbone, type(model.head).__name__
    details = {name: getattr(backbone, name, None) for name in ("width", "tail", "output_stride")}
    shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items() if value is not None)
    return f"{head} on {backbone.title} ({shown})"


def create_model(name_or_config: "str | Model | Config", num_classes: int = 19) -> Segmenter:
    """Build a segmentation net with fresh weights.

    Args:
        name_or_config: a name from `NETS`, settings of your own, or a whole experiment with such settings.
        num_classes: classes that the net tells apart.

    Raises:
        ModelError: the name is unknown, or there are fewer than one class.
    """
    _check_classes(num_classes)
    if isinstance(name_or_config, str):
        return Segmenter(net(name_or_config), num_classes)
    return Segmenter(name_or_config if isinstance(name_or_config, Model) else name_or_config.model, num_classes)


def create_classifier(config: Classifier, num_classes: int = 1000) -> ImageClassifier:
    """Build a classification net with fresh weights.

    Raises: ModelError for a class count below 1.
    """
    _check_classes(num_classes)
    return ImageClassifier(config, num_classes)


def create_backbone(
    size: Literal["large", "small"] = "large", *, num_classes: int | None = None, **settings: Any
) -> MobileNetV3Backbone | ImageClassifier:
    """Build a MobileNetV3 with fresh weights.

    Args:
        size: "large" or "small".
        num_classes: a number builds the whole classification net (`ImageClassifier`: RGB 0..255 in, logits out). None
            builds the bare backbone (normalised image in, the deep feature map out).
        settings: fields of `segmv3.config.MobileNetV3`, such as width, minimal, family, output_stride.

    Raises:
        ModelError: a setting does not exist or has no such value.
    """
    try:
        backbone = MobileNetV3(size=size, **settings)
    except TypeError as error:
        raise ModelError(f"{error}".replace("MobileNetV3.__init__()", "create_backbone")) from None
    for name, kind in mistyped(backbone):
        raise ModelError(
            f"{name} is {getattr(backbone, name)!r}; it can be {', '.join(map(repr, get_args(kind))) or kind}"
        )
    for holds, name, wrong in net_rules(Classifier(backbone=backbone)):
        if not holds:
            raise ModelError(f"{name.removeprefix('backbone.')} {wrong}")
    if num_classes is None:
        return MobileNetV3Backbone(backbone)
    return create_classifier(Classifier(backbone=backbone), num_classes)


def build(net: Model | Classifier, num_classes: int) -> Segmenter | ImageClassifier:
    """The net that settings describe, with fresh weights.

    Raises: ModelError for a class count below 1.
    """
    return create_model(net, num_classes) if isinstance(net, Model) else create_classifier(net, num_classes)


@lru_cache(maxsize=64)
def state_shapes(net: Model | Classifier, num_classes: int) -> Mapping[str, torch.Size]:
    """The shapes of all tensors of a net by name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(net, num_classes).state_dict().items()}


_MOST_CLASSES = 100_000


def _check_classes(number: int) -> None:
    if not 1 <= number <= _MOST_CLASSES:
        raise ModelError(f"num_classes is {number}; it must be at least 1 and at most {_MOST_CLASSES:,}")
