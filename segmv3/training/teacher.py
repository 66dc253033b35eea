"""The nets that another one learns from."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from segmv3.config import Config
from segmv3.errors import CheckpointError
from segmv3.labels import Classes, are_numbered
from segmv3.models.layers import Normalize, initialise
from segmv3.models.segmenter import Segmenter
from segmv3.weights.libraries import open_any_net

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TIMM = "timm:"


class Teacher:
    """A net in eval mode that gets no gradient and is no part of the training state.

    Attributes:
        sha256: of the weights it was read from.
    """

    def __init__(self, net: nn.Module, output: Callable[[Tensor], Tensor], sha256: str, precision: str) -> None:
        self.net, self._output, self.sha256 = net.eval().requires_grad_(False), output, sha256
        self._dtype = _DTYPES.get(precision)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, 0..255 -> its logits, or features, N x C of any size."""
        self.net.to(images.device)
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype is not None):
            return self._output(images)


def open_teacher(config: Config, classes: Classes) -> Teacher | None:
    """The teacher of logits that a config names, or None.

    Args:
        config: of the net that learns.
        classes: of the data.

    Raises:
        CheckpointError: it cannot be read, is no segmentation net, is not finite, or does not know the data's classes.
        ModelError: the library of its net is not here.
    """
    source = config.distill.teacher
    if source is None:
        return None
    try:
        net, card = open_any_net(source)
        order = _order(source, card.names, classes)
        _refuse_non_finite(source, net)
    except CheckpointError as error:
        raise CheckpointError(f"distill.teacher: {error.args[0]}") from None
    low_logits = net.low_logits
    return Teacher(
        net, lambda x: low_logits(x) if order is None else low_logits(x)[:, order], card.sha256, config.precision
    )


def _order(source: str, theirs: tuple[str, ...], classes: Classes) -> list[int] | None:
    """The channels of the data's classes; None where they are all there are, in their order."""
    if len(theirs) == len(classes) and (theirs == classes.names or are_numbered(theirs)):
        return None
    places = {_plain(name): place for place, name in enumerate(theirs)}
    if missing := [name for name in classes.names if _plain(name) not in places]:
        if len(theirs) != len(classes):
            raise CheckpointError(
                f"{source} has {len(theirs)} classes, the data {len(classes)}, and {missing[0]!r} is not among them"
            )
        other = next(a for a, b in zip(theirs, classes.names, strict=True) if a != b)
        raise CheckpointError(f"{source} was trained for other classes ({other!r}; the data has {missing[0]!r})")
    return [places[_plain(name)] for name in classes.names]


def _plain(name: str) -> str:
    """Names that mean the same in two projects: "traffic light" and "Traffic_Light"."""
    return name.lower().replace("_", " ").replace("-", " ")


def open_features(config: Config) -> tuple[Teacher, int] | None:
    """The teacher of features that a config names and the channels of its map, or None.

    Args:
        config: of the net that learns.

    Raises:
        CheckpointError: it cannot be had or read, is not finite, or gives no features.
    """
    source = config.distill.features
    if source is None:
        return None
    try:
        if source.startswith(_TIMM):
            return _of_timm(source, config.precision)
        net, card = open_any_net(source)
        backbone: Any = net.backbone
        if backbone is None:
            raise CheckpointError(f"the features of {source} are not known; use timm:NAME or weights of segmv3")
        _refuse_non_finite(source, net)
    except CheckpointError as error:
        raise CheckpointError(f"distill.features: {error.args[0]}") from None
    maps = len(net.config.head.taps())
    teacher = Teacher(net, lambda x: backbone(net.normalize(x))[maps], card.sha256, config.precision)
    return teacher, backbone.channels[maps]


def _of_timm(source: str, precision: str) -> tuple[Teacher, int]:
    """The last map of a net of timm, with the weights that timm publishes for it or those of a file."""
    import timm

    name, _, file = source.removeprefix(_TIMM).partition("@")
    weights: dict[str, Any] = {"pretrained": True, "features_only": True}
    if file:
        weights["pretrained_cfg_overlay"] = {"file": file}
    try:
        if file and not Path(file).is_file():
            raise FileNotFoundError(f"{file} does not exist")
        try:  # transformers see pictures of one size unless they are told
            net = timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **weights)
        except TypeError:
            net = timm.create_model(name, **weights)
        settings: Any = net.pretrained_cfg
    except Exception as error:  # each family of timm raises its own, and so does the download
        raise CheckpointError(f"timm cannot give {name!r} ({' '.join(str(error).split())[:160]})") from None
    mean, std = (tuple(255 * each for each in settings[key]) for key in ("mean", "std"))
    normalize = Normalize(mean, std)
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    seen = nn.ModuleDict({"net": net, "normalize": normalize})
    info: Any = net.feature_info
    return Teacher(seen, lambda x: net(normalize(x))[-1], digest.hexdigest(), precision), info.channels()[-1]


class WithProjection(nn.Module):
    """A net with a 1x1 convolution that maps its deepest features to those of a teacher (FitNets, arXiv 1412.6550).

    Only training has it.

    Attributes:
        net: what is kept in the end.
    """

    def __init__(self, wrapped: nn.Module, net: Segmenter, channels: int) -> None:
        """Look at the deep map whenever the net runs.

        Args:
            wrapped: the net with whatever else training gave it.
            net: the net in it.
            channels: of the teacher's map.
        """
        super().__init__()
        self.wrapped, self.net = wrapped, net
        place, backbone = len(net.config.head.taps()), cast(Any, net.backbone)
        self.projection = nn.Conv2d(backbone.channels[place], channels, 1)
        self.projection.apply(initialise)
        self._deep: Tensor | None = None
        backbone.register_forward_hook(lambda module, inputs, maps: setattr(self, "_deep", maps[place]))

    def low_logits(self, image: Tensor) -> list[Tensor]:
        """N x 3 x H x W -> what the wrapped net gives, then the projected features N x channels x h x w."""
        outputs = cast(Any, self.wrapped).low_logits(image)
        deep, self._deep = self._deep, None
        return [*(outputs if isinstance(outputs, list) else [outputs]), self.projection(deep)]


def _refuse_non_finite(source: str, net: nn.Module) -> None:
    for name, value in net.state_dict().items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{source} is not finite ({name}); use other weights")
