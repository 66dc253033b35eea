"""The named nets, which nets.toml holds, and the one way to build a net."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch

from segmv3.errors import ModelError
from segmv3.models.backbones import MobileNetV3
from segmv3.models.classifier import ImageClassifier
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.nets import Classifier, Detector, Model, Net, net_from_dict, net_rules
from segmv3.models.segmenter import Segmenter
from segmv3.records import packaged
from segmv3.settings import mistyped

if TYPE_CHECKING:
    from segmv3.config import Config
    from segmv3.models.detector import ObjectDetector

MOST_CLASSES = 100_000
_TABLE = packaged("segmv3.models", "nets.toml")


def _nets(values: dict[str, Any]) -> Mapping[str, Model]:
    return MappingProxyType({name: cast(Model, net_from_dict(net)) for name, net in values.items()})


NETS = _nets(_TABLE["nets"])

PAPER_NETS = _nets({n: _TABLE["nets"][net] if isinstance(net, str) else net for n, net in _TABLE["paper"].items()})
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


def net_name(model: Net) -> str:
    """The name of a net with these settings, or a description where it has none."""
    plain = replace(model, pretrained=None)  # where the weights came from does not change the net
    named = next((name for name, settings in {**NETS, **PAPER_NETS}.items() if settings == plain), None)
    if named:
        return named
    backbone, head = model.backbone, type(model.head).__name__ if isinstance(model, Model) else _KINDS[type(model)]
    head += f" and {type(model.areas).__name__}" if isinstance(model, Detector) and model.areas else ""
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
    if isinstance(name_or_config, str):
        settings = net(name_or_config)
    else:
        settings = name_or_config if isinstance(name_or_config, Model) else name_or_config.model
    return cast(Segmenter, build(settings, num_classes))


def create_classifier(config: Classifier, num_classes: int = 1000) -> ImageClassifier:
    """Build a classification net with fresh weights.

    Raises: ModelError for a class count below 1.
    """
    return cast(ImageClassifier, build(config, num_classes))


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


_KINDS: dict[type, str] = {Classifier: "classifier", Detector: "SSDLite"}


def build(net: Net, num_classes: int) -> "Segmenter | ImageClassifier | ObjectDetector":
    """The net that settings describe, with fresh weights.

    Raises: ModelError for a class count below 1.
    """
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ModelError(f"num_classes is {num_classes}; it must be at least 1 and at most {MOST_CLASSES:,}")
    if isinstance(net, Model):
        return Segmenter(net, num_classes)
    if isinstance(net, Classifier):
        return ImageClassifier(net, num_classes)
    return import_module("segmv3.models.detector").ObjectDetector(net, num_classes)  # torchvision takes seconds


@lru_cache(maxsize=64)
def state_shapes(net: Net, num_classes: int) -> Mapping[str, torch.Size]:
    """The shapes of all tensors of a net by name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(net, num_classes).state_dict().items()}
