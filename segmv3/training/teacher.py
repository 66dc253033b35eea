"""The net that another one learns from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from segmv3.config import Config, Model
from segmv3.errors import CheckpointError
from segmv3.labels import Classes, are_numbered
from segmv3.models.layers import Normalize
from segmv3.weights.opening import open_segmenter

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_DEEPEST = 32  # smp's nets take sizes that are multiples of it


class Teacher:
    """A net in eval mode that gets no gradient and is no part of the training state.

    Attributes: sha256: of the weights it was read from.
    """

    def __init__(self, net: nn.Module, logits: Callable[[Tensor], Tensor], sha256: str, precision: str) -> None:
        self.net, self._logits, self.sha256 = net.eval().requires_grad_(False), logits, sha256
        self._dtype = _DTYPES.get(precision)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, 0..255 -> logits N x classes of any size."""
        self.net.to(images.device)
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype is not None):
            return self._logits(images)


def open_teacher(config: Config, classes: Classes) -> Teacher | None:
    """The teacher that a config names, or None.

    Args: classes: of the data.
    Raises: CheckpointError when it cannot be read, is no segmentation net, is not finite, or knows other classes.
    """
    source = config.distill.teacher
    if source is None:
        return None
    try:
        net: nn.Module
        names: tuple[str, ...]
        if Path(source).is_dir():
            net, count, sha256 = _open_smp(Path(source))
            names, logits = (), net.__call__
        else:
            net, card = open_segmenter(source)
            names, count, sha256, logits = card.names, net.num_classes, card.sha256, net.low_logits
    except CheckpointError as error:
        raise CheckpointError(f"distill.teacher: {_reason(error)}") from None
    if count != len(classes):
        raise CheckpointError(f"distill.teacher: {source} has {count} classes, the data {len(classes)}")
    if names and names != classes.names and not are_numbered(names):
        theirs, ours = next((a, b) for a, b in zip(names, classes.names, strict=True) if a != b)
        raise CheckpointError(
            f"distill.teacher: {source} was trained for other classes ({theirs!r} where the data has {ours!r})"
        )
    for name, value in net.state_dict().items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"distill.teacher: {source} is not finite ({name}); use other weights")
    return Teacher(net, logits, sha256, config.precision)


class _Smp(nn.Module):
    """A net of segmentation-models-pytorch that takes the same input as segmv3's nets."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, defaults = net, Model()
        self.normalize = Normalize(defaults.mean, defaults.std)

    def forward(self, images: Tensor) -> Tensor:
        """N x 3 x H x W -> logits N x classes x H x W."""
        height, width = images.shape[2:]
        padding = (0, -width % _DEEPEST, 0, -height % _DEEPEST)
        return self.net(F.pad(self.normalize(images), padding))[..., :height, :width]


def _open_smp(folder: Path) -> tuple[nn.Module, int, str]:
    """The net in a folder of `save_pretrained`, built from its settings: none of its code runs, nothing is fetched."""
    written = "a folder that segmentation-models-pytorch's save_pretrained wrote has config.json and model.safetensors"
    try:
        text, data = (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()
        settings = json.loads(text)
        kind, classes = settings["_model_class"], int(settings.get("classes", 1))  # smp's default
        tensors = load_safetensors(data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        raise CheckpointError(f"{folder} cannot be read; {written}") from None
    if settings.get("activation") is not None or settings.get("aux_params") is not None:
        raise CheckpointError(f"{folder} does not end in logits alone (activation, aux_params); save it without")
    if settings.get("in_channels", 3) != 3:
        raise CheckpointError(f"{folder} takes {settings['in_channels']} channels; a teacher sees RGB")
    try:
        net = _build_smp(kind, {k: v for k, v in settings.items() if not k.startswith("_")})
        net.load_state_dict(tensors)
    except Exception as error:  # smp checks little: a wrong setting or tensor raises whatever it meets
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{folder} does not hold the net it names ({reason})") from None
    return _Smp(net), classes, hashlib.sha256(text + data).hexdigest()


def _build_smp(kind: str, settings: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch as smp  # takes seconds to import

    from segmv3.models.smp import register

    register()
    model = getattr(smp, kind, None)
    if not (isinstance(model, type) and issubclass(model, smp.base.SegmentationModel)):
        raise ValueError(f"{kind!r} is no net of segmentation-models-pytorch")
    return model(**settings | {"encoder_weights": None})


def _reason(error: CheckpointError) -> str:
    return str(error).removeprefix(f"{error.area}: ")
