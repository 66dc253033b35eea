"""Segmentation nets of other libraries, from the folders that their `save_pretrained` writes or the Hub holds.

They label frames and teach smaller nets. None of a folder's code runs: the library builds the net that the settings
name, and reads tensors.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from segmv3.checkpoint import Card, no_file, package_version
from segmv3.errors import CheckpointError, ModelError, one_line
from segmv3.files import sha256
from segmv3.labels import class_name, numbered_classes
from segmv3.models.layers import Normalize
from segmv3.models.nets import Model
from segmv3.weights.importing import colored
from segmv3.weights.opening import open_segmenter

_DEEPEST = 32  # smp's nets take sizes that are multiples of it
_SEMANTIC, _UNIVERSAL = "ForSemanticSegmentation", "ForUniversalSegmentation"
_SQUARE = ("beit", "data2vec-vision", "eomt", "eomt_dinov3")
"""Kinds of transformers whose nets see squares of one size."""
_STRIDE = 4  # of the logits that are put together from squares
_LEAST = 1e-6  # a probability below it is taken for it before the logarithm

Logits = Callable[[Tensor], Tensor]


class LibraryNet(nn.Module):
    """A net of another library that takes the pixels that segmv3's nets take.

    Attributes:
        num_classes: channels of the logits.
    """

    backbone = None
    """Its layers are not known here."""

    def __init__(
        self, net: nn.Module, logits: Logits, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """Put the normalisation before it.

        Args:
            net: the module.
            logits: normalised images, float N x 3 x H x W -> logits N x classes x h x w.
            num_classes: channels of the logits.
            mean: of R, G and B, 0..255.
            std: the same.
        """
        super().__init__()
        self.net, self._logits, self.num_classes = net, logits, num_classes
        self.normalize = Normalize((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    def low_logits(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255 -> logits N x classes x h x w."""
        return self._logits(self.normalize(image))

    forward = low_logits


def open_any_net(source: Path | str) -> tuple[Any, Card]:
    """A net in eval mode that has `low_logits`, whoever made it, and what its file says of itself.

    Args:
        source: a weight file, a published name, or the folder of another library's net.

    Raises:
        CheckpointError, ModelError: as `open_segmenter` and `open_library_net`.
    """
    return open_library_net(Path(source)) if Path(source).is_dir() else open_segmenter(source)


def open_library_net(folder: Path) -> tuple[LibraryNet, Card]:
    """Open a net that segmentation-models-pytorch or transformers saved.

    Args:
        folder: with `config.json` and the weights. smp's images are normalised by ImageNet's mean and std, those of
            transformers as its `preprocessor_config.json` says.

    Returns:
        The net in eval mode on the CPU, and what the folder says of it: names, where it has them, and a digest.

    Raises:
        CheckpointError: the folder cannot be read, or holds no net that gives a class for each pixel.
        ModelError: transformers is not installed.
    """
    if (folder / "best.safetensors").is_file():
        raise no_file(folder)
    try:
        text = (folder / "config.json").read_bytes()
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise TypeError
        if settings.get("architectures"):
            net, names = _of_transformers(folder, settings)
            weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        else:
            net, names = _of_smp(folder, settings)
            weights = [folder / "model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        raise CheckpointError(
            f"{folder} cannot be read; a folder that save_pretrained of segmentation-models-pytorch or transformers "
            "wrote has config.json and model.safetensors"
        ) from None
    digest = hashlib.sha256(text)
    for file in weights:
        digest.update(bytes.fromhex(sha256(file, CheckpointError)))
    classes = colored(names) if names else numbered_classes(net.num_classes)
    facts = {"version": package_version(), "commit": "", "origin": {"name": folder.name}}
    return net.eval().requires_grad_(False), Card(classes.names, classes.colors, facts, digest.hexdigest())


# --- segmentation-models-pytorch


def _of_smp(folder: Path, settings: dict[str, Any]) -> tuple[LibraryNet, tuple[str, ...]]:
    kind, classes = settings["_model_class"], int(settings.get("classes", 1))  # smp's default
    tensors = load_safetensors((folder / "model.safetensors").read_bytes())
    if settings.get("activation") is not None or settings.get("aux_params") is not None:
        raise CheckpointError(f"{folder} does not end in logits alone (activation, aux_params); save it without")
    if settings.get("in_channels", 3) != 3:
        raise CheckpointError(f"{folder} takes {settings['in_channels']} channels; a net for streets sees RGB")
    try:
        net = _build_smp(kind, {k: v for k, v in settings.items() if not k.startswith("_")})
        net.load_state_dict(tensors)
    except Exception as error:  # smp checks little: a wrong setting or tensor raises whatever it meets
        raise _does_not_fit(folder, error) from None

    def logits(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % _DEEPEST, 0, -height % _DEEPEST))
        return net(padded)[..., :height, :width]

    return LibraryNet(net, logits, classes, Model().mean, Model().std), ()


def _build_smp(kind: str, settings: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch as smp  # takes seconds to import

    from segmv3.models.smp import register

    register()
    model = getattr(smp, kind, None)
    if not (isinstance(model, type) and issubclass(model, smp.base.SegmentationModel)):
        raise ValueError(f"{kind!r} is no net of segmentation-models-pytorch")
    return model(**settings | {"encoder_weights": None})


# --- transformers


def _of_transformers(folder: Path, settings: dict[str, Any]) -> tuple[LibraryNet, tuple[str, ...]]:
    kind = str(settings["architectures"][0])
    if not kind.endswith((_SEMANTIC, _UNIVERSAL)) or not kind.isidentifier():
        raise CheckpointError(
            f"{folder} holds {ascii(kind)[:80]}, which gives no class for each pixel; a net *{_SEMANTIC} or "
            f"*{_UNIVERSAL} does"
        )
    if not find_spec("transformers"):
        raise ModelError(f"{folder} is a net of transformers, which is not here; pip install 'segmv3[teachers]'")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        net: Any = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # as above
        raise _does_not_fit(folder, error) from None
    classes = net.config.num_labels
    side = int(net.config.image_size) if net.config.model_type in _SQUARE else None
    whole = _logits_of(net, universal=kind.endswith(_UNIVERSAL))
    logits = (lambda x: _in_squares(whole, x, side)) if side else whole
    mean, std = _normalisation(folder)
    names = tuple(class_name(net.config.id2label[index]) for index in range(classes))
    numbered = names == tuple(f"LABEL_{index}" for index in range(classes))
    return LibraryNet(net, logits, classes, mean, std), () if numbered else names


def _logits_of(net: nn.Module, *, universal: bool) -> Logits:
    """How a net of transformers gives one number for each class and place.

    Args:
        net: the module.
        universal: whether it gives masks and the class of each, as MaskFormer does. The probability of a class is then
            the sum over the masks of both probabilities (arXiv 2107.06278, section 3.4); its logarithm is returned.
    """

    def masks(x: Tensor) -> Tensor:
        found = net(pixel_values=x)
        classes = found.class_queries_logits.float().softmax(2)[..., :-1]  # the last one is "no object"
        places = found.masks_queries_logits.float().sigmoid()
        return torch.einsum("nqc,nqhw->nchw", classes, places).clamp_min(_LEAST).log()

    return masks if universal else lambda x: net(pixel_values=x).logits


def _in_squares(logits: Logits, x: Tensor, side: int) -> Tensor:
    """Logits of an image by a net that sees squares: its shorter side becomes theirs, and they overlap along the other.

    Args:
        logits: float N x 3 x side x side -> N x C x h x w.
        x: float N x 3 x H x W.
        side: of the squares.

    Returns:
        Logits N x C at a quarter of the resized image; the mean where squares overlap.
    """
    scale = side / min(x.shape[2:])
    size = tuple(max(side, round(each * scale / _STRIDE) * _STRIDE) for each in x.shape[2:])
    x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=scale < 1)
    low, total, seen = side // _STRIDE, None, x.new_zeros(size[0] // _STRIDE, size[1] // _STRIDE)
    for top in _starts(size[0], side):
        for left in _starts(size[1], side):
            found = logits(x[..., top : top + side, left : left + side])
            found = F.interpolate(found, (low, low), mode="bilinear", align_corners=False)
            if total is None:
                total = found.new_zeros(*found.shape[:2], *seen.shape)
            row, column = top // _STRIDE, left // _STRIDE
            total[..., row : row + low, column : column + low] += found
            seen[row : row + low, column : column + low] += 1
    assert total is not None
    return total / seen


def _starts(length: int, side: int) -> list[int]:
    """Where squares begin that cover a length, evenly, at multiples of `_STRIDE`."""
    last, count = length - side, -(-length // side)
    return [round(last * i / max(1, count - 1) / _STRIDE) * _STRIDE for i in range(count)]


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of R, G and B, 0..255; ImageNet's where the folder has none."""
    file = folder / "preprocessor_config.json"
    stored = json.loads(file.read_bytes()) if file.is_file() else {}
    if not (stored.get("image_mean") and stored.get("image_std")):
        return Model().mean, Model().std
    mean, std = (tuple(255 * float(each) for each in stored[key]) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError("no normalisation of RGB")
    return mean, std


def _does_not_fit(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder} does not hold the net it names ({one_line(error)})")
