"""What a classifier is shown of a picture: its shorter side resized, then the middle."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from segmv3.errors import ConfigError
from segmv3.images import UInt8Array
from segmv3.settings import mistyped, refuse


@dataclass(frozen=True, kw_only=True)
class View:
    """How a picture becomes what a classifier is scored on."""

    resize: int = 256
    """Shorter side of a validation image before its centre crop."""
    crop_size: tuple[int, int] = (224, 224)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of that resize. timm scored its MobileNetV3 weights bicubic, its TensorFlow ports bilinear."""

    def __post_init__(self) -> None:
        refuse(
            (min(self.crop_size) >= 1, "data.crop-size", "must be at least 1 x 1"),
            (self.resize >= max(self.crop_size), "data.resize", "must be at least as large as data.crop-size"),
        )


VIEW = tuple(field.name for field in fields(View))


def trained_view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `View` that a net was trained with, as far as its weight file or its export knows them."""
    config, origin = facts.get("config"), facts.get("origin")
    data = config.get("data") if isinstance(config, dict) else origin.get("view") if isinstance(origin, dict) else None
    stored = facts.get("view") or data
    stored = stored if isinstance(stored, dict) else {}
    view: dict[str, Any] = {name: stored[name] for name in VIEW if name in stored}
    view = {name: tuple(value) if isinstance(value, list) else value for name, value in view.items()}
    try:
        usable = not mistyped(View(**view))
    except (ConfigError, TypeError):
        usable = False
    return view if usable else {}


def center_crop(image: UInt8Array, view: View) -> UInt8Array:
    """What a classifier is scored on: shorter side resized, then the middle.

    Pillow's antialiased resize with torchvision's rounding, by which the published accuracies were measured.

    Args:
        image: uint8 H x W x 3, any size.

    Returns:
        uint8 crop height x crop width x 3.
    """
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as torchvision

    mode = InterpolationMode(view.interpolation)
    resized = torchvision.resize(Image.fromarray(image), [view.resize], interpolation=mode)
    return np.array(torchvision.center_crop(resized, list(view.crop_size)))
