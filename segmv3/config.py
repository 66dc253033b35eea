"""Every setting of an experiment, as frozen dataclasses, and the way from a config file to one of them.

A config is a Python file that builds `config = Config(...)`. The same dataclasses become command-line flags,
so `--optim.lr 0.02` overrides the file. Sizes and scales are (height, width).
"""

import dataclasses
import math
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from segmv3.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class MobileNetV3:
    """A MobileNetV3 backbone (arXiv 1905.02244, tables 1 and 2). The defaults are the classification net."""

    size: Literal["large", "small"] = "large"
    width: float = 1.0
    """Multiplier of all channels; the result is rounded to multiples of 8. Published: 0.35, 0.5, 0.75, 1, 1.25."""
    minimal: bool = False
    """No squeeze-and-excite, no h-swish, 3x3 kernels only (TensorFlow's "minimalistic" nets)."""
    family: Literal["timm", "d-li14", "torchvision", "paddle", "rw"] = "timm"
    """Whose rules turn a width into channels, and what the squeeze and the classifier look like; see
    `segmv3.models.mobilenetv3.FAMILIES`. At width 1.0 timm and torchvision agree."""
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


@dataclass(frozen=True, kw_only=True)
class MobileNetV2:
    """A MobileNetV2 backbone (arXiv 1801.04381), torchvision's, for the paper's comparison rows."""

    width: float = 1.0
    tail: Literal["full", "rf2"] = "full"
    output_stride: Literal[8, 16, 32] = 32
    bn_eps: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class LRASPP:
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


@dataclass(frozen=True, kw_only=True)
class LRASPPDecoder:
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


@dataclass(frozen=True, kw_only=True)
class RASPP:
    """The paper's comparison head: 1x1 convolution and global pooling, concatenated and projected, at 1/16."""

    channels: int = 256
    """Filters F."""
    bn_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Model:
    """A segmentation net. `segmv3.models.zoo` names the ones that are used; parameters are counted there."""

    backbone: MobileNetV3 | MobileNetV2 = field(default_factory=MobileNetV3)
    head: LRASPP | LRASPPDecoder | RASPP = field(default_factory=LRASPP)
    bn_momentum: float = 0.1
    """Weight of the newest batch in BN's running statistics (PyTorch's sense)."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB, 0..255, subtracted inside the model (ImageNet's)."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pretrained: str | None = None
    """Weights to start from, a file or a name of `segmv3 weights list`: what fits is taken, the rest is listed."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classification net: backbone, global mean, two linear layers."""

    backbone: MobileNetV3 = field(default_factory=MobileNetV3)
    dropout: float = 0.2
    """Share of the hidden layer that training drops."""
    bn_momentum: float = 0.1
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pretrained: str | None = None
    """Weights to start from, a file or a name of `segmv3 weights list`."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images and labels come from and how a training sample is cut from them."""

    dataset: Literal["cityscapes", "camvid", "folder"]
    """Layout on disk; see data/README.md."""
    root: Path
    """The folder that holds the data set."""
    batch_size: int = 16
    """Images per step over all processes together."""
    crop_size: tuple[int, int] = (512, 1024)
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Random resize before the crop, uniform."""
    cat_max_ratio: float = 0.75
    """A crop is drawn again (up to 10 times) while one class covers more of its labelled pixels than this."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of photometric jitter (brightness, contrast, saturation, hue)."""
    workers: int = 2
    """Processes that prepare samples; the batches are the same for any number of them."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Pictures for classification, one folder a class, and how a training sample is cut from them."""

    root: Path
    """The folder that holds `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, as ImageNet is usually unpacked."""
    batch_size: int = 256
    """Images per step over all processes together."""
    crop_size: tuple[int, int] = (224, 224)
    scale_range: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a training crop covers."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of photometric jitter (brightness, contrast, saturation by up to 40 %)."""
    resize: int = 256
    """Shorter side of a validation image before its centre crop."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of that resize (timm scored its own MobileNetV3 weights with bicubic, its TensorFlow ports with bilinear)."""
    workers: int = 2
    """Processes that prepare samples; the batches are the same for any number of them."""

    def __post_init__(self) -> None:
        _refuse(
            (min(self.crop_size) >= 1, "data.crop-size", "must be at least 1 x 1"),
            (self.resize >= max(self.crop_size), "data.resize", "must be at least as large as data.crop-size"),
            (
                0 < self.scale_range[0] <= self.scale_range[1] <= 1,
                "data.scale-range",
                "must be two rising shares of the area, above 0 and at most 1",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_bn_and_bias: bool = True
    """Whether weight decay also acts on BN parameters and biases."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decay_bn_and_bias: bool = False
    """Whether weight decay also acts on BN parameters and biases."""


@dataclass(frozen=True, kw_only=True)
class RMSProp:
    """RMSProp with momentum, as TensorFlow's ImageNet recipes use it."""

    lr: float = 0.1
    alpha: float = 0.9
    """Smoothing of the squared gradients."""
    momentum: float = 0.9
    eps: float = 1e-3
    weight_decay: float = 1e-5
    decay_bn_and_bias: bool = False
    """Whether weight decay also acts on BN parameters and biases."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, how the learning rate moves, and what happens on the way."""

    steps: int
    """Optimiser steps, meant and executed."""
    policy: Literal["poly", "cosine", "step"] = "poly"
    power: float = 0.9
    """Exponent of the poly policy."""
    decay_rate: float = 0.99
    decay_every: int = 1000
    """The step policy multiplies the learning rate by `decay_rate` every so many steps."""
    min_lr: float = 1e-4
    """Learning rate that the policy falls to at the end of the run."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly; a shorter run ends while it rises."""
    warmup_from: float = 0.0
    """Learning rate that the warm-up rises from."""
    eval_every: int = 4000
    """Steps between evaluations on the validation set; the training state is saved there too."""
    save_every: int = 1000
    """Steps between saves of the training state."""
    log_every: int = 50
    """Steps between log lines."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is scored and kept; 0 keeps the weights themselves."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One segmentation experiment."""

    model: Model
    data: Data
    optim: SGD | AdamW | RMSProp = field(default_factory=SGD)
    schedule: Schedule
    precision: Precision = "fp32"
    """Arithmetic of the training step (bf16 = autocast); evaluation is always fp32."""
    seed: int = 0

    def __post_init__(self) -> None:
        data = self.data
        _refuse(
            *_common_rules(self),
            (0 < data.scale_range[0] <= data.scale_range[1], "data.scale-range", "must be two rising positive numbers"),
            (0 < data.cat_max_ratio <= 1, "data.cat-max-ratio", "must be above 0 and at most 1"),
        )


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One image classification experiment: how a backbone gets its ImageNet weights."""

    model: Classifier
    data: ImageFolder
    optim: SGD | AdamW | RMSProp = field(default_factory=SGD)
    schedule: Schedule
    label_smoothing: float = 0.0
    precision: Precision = "fp32"
    """Arithmetic of the training step (bf16 = autocast); evaluation is always fp32."""
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse(
            *_common_rules(self),
            (0 <= self.label_smoothing < 1, "label-smoothing", "must be at least 0 and below 1"),
        )


_MOST_CHANNELS = 4096

_Rule = tuple[bool, str, str]
"""(whether it holds, setting, what is wrong where it does not): values that types alone cannot refuse."""


def _refuse(*rules: _Rule) -> None:
    for holds, name, wrong in rules:
        if not holds:
            raise ConfigError(f"{name}: {wrong}")


def net_rules(net: Model | Classifier) -> list[_Rule]:
    """What the settings of a net must keep to, whoever wrote them: a config file, a flag, a weight file."""
    backbone = net.backbone
    rules = [
        (0.1 <= backbone.width <= 4, "backbone.width", "must lie between 0.1 and 4"),
        (0 < backbone.bn_eps < 1, "backbone.bn-eps", "must lie between 0 and 1"),
        (0 < net.bn_momentum <= 1, "bn-momentum", "must be above 0 and at most 1"),
        (min(net.std) > 0, "std", "must be above 0"),
    ]
    if isinstance(net, Classifier):
        return [*rules, (0 <= net.dropout < 1, "dropout", "must be at least 0 and below 1")]
    head = net.head
    rules += [
        (1 <= head.channels <= _MOST_CHANNELS, "head.channels", f"must lie between 1 and {_MOST_CHANNELS}"),
        (0 < head.bn_eps < 1, "head.bn-eps", "must lie between 0 and 1"),
    ]
    if isinstance(head, LRASPP | LRASPPDecoder):
        rules += [
            (min(head.pool_window) >= 1, "head.pool-window", "must be at least 1 x 1"),
            (min(head.pool_stride) >= 1, "head.pool-stride", "must be at least 1 x 1"),
        ]
    if isinstance(head, LRASPPDecoder):
        fine, coarse = head.skip_strides
        rules += [
            (fine < coarse and {fine, coarse} <= {2, 4, 8}, "head.skip-strides", "must be two rising ones of 2, 4, 8"),
            (
                1 <= min(head.skip_channels) <= max(head.skip_channels) <= _MOST_CHANNELS,
                "head.skip-channels",
                "are two",
            ),
            (0 <= head.dropout < 1, "head.dropout", "must be at least 0 and below 1"),
        ]
    return rules


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value is what the annotation of its field says."""
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return any(_has_type(value, choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_has_type, value, kinds))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind if kind in (int, bool) else isinstance(value, kind)


def mistyped(settings: Any) -> list[tuple[str, Any]]:
    """(field, its annotation) of the fields of a dataclass whose values are of another kind, nested ones included."""
    found = []
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _has_type(value, kind):
            found.append((name, kind))
        elif dataclasses.is_dataclass(value):
            found += [(f"{name}.{inner}", kind) for inner, kind in mistyped(value)]
    return found


def _common_rules(config: Config | Classification) -> list[_Rule]:
    model, data, schedule, optim = config.model, config.data, config.schedule, config.optim
    return [
        *((holds, f"model.{name}", wrong) for holds, name, wrong in net_rules(model)),
        (data.batch_size >= 1, "data.batch-size", "must be at least 1"),
        (min(data.crop_size) >= 1, "data.crop-size", "must be at least 1 x 1"),
        (0 <= data.flip <= 1, "data.flip", "is a probability, 0 to 1"),
        (0 <= data.jitter <= 1, "data.jitter", "is a probability, 0 to 1"),
        (data.workers >= 0, "data.workers", "must be at least 0"),
        (schedule.steps >= 1, "schedule.steps", "must be at least 1"),
        (schedule.warmup_steps >= 0, "schedule.warmup-steps", "must be at least 0"),
        (
            0 <= schedule.warmup_from <= optim.lr,
            "schedule.warmup-from",
            f"must lie between 0 and optim.lr ({optim.lr:g})",
        ),
        (schedule.eval_every >= 1, "schedule.eval-every", "must be at least 1"),
        (schedule.save_every >= 1, "schedule.save-every", "must be at least 1"),
        (schedule.log_every >= 1, "schedule.log-every", "must be at least 1"),
        (schedule.clip_norm >= 0, "schedule.clip-norm", "must be at least 0"),
        (schedule.decay_every >= 1, "schedule.decay-every", "must be at least 1"),
        (0 < schedule.decay_rate <= 1, "schedule.decay-rate", "must be above 0 and at most 1"),
        (0 <= schedule.ema < 1, "schedule.ema", "must be at least 0 and below 1"),
        (optim.lr > 0, "optim.lr", "must be above 0"),
        (
            0 <= schedule.min_lr <= optim.lr,
            "schedule.min-lr",
            f"must lie between 0 and optim.lr ({optim.lr:g})",
        ),
        (optim.weight_decay >= 0, "optim.weight-decay", "must be at least 0"),
        (all(0 <= b < 1 for b in getattr(optim, "betas", ())), "optim.betas", "must be at least 0 and below 1"),
        (0 <= getattr(optim, "momentum", 0) < 1, "optim.momentum", "must be at least 0 and below 1"),
        (0 <= getattr(optim, "alpha", 0) < 1, "optim.alpha", "must be at least 0 and below 1"),
        (0 <= config.seed < 2**63, "seed", "must be at least 0 and below 2^63"),
    ]


Experiment = TypeVar("Experiment", Config, Classification)


def load_config(path: Path | str, overrides: list[str] | None = None, kind: type[Experiment] = Config) -> Experiment:  # type: ignore[assignment]
    """Run a config file and apply command-line overrides to the `config` it builds.

    Args: overrides: flags such as `["--optim.lr", "0.02"]`; unknown or ill-typed ones end the program with a
        hint and exit code 2 (tyro's own box). kind: which experiment it must be.
    Raises: ConfigError when there is no such file, it fails, or it builds no `config` of this kind.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        known = sorted(p.name for p in folder.glob("*.py"))
        hint = f"; {folder} has {', '.join(known)}" if known else ""
        raise ConfigError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}{hint}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a config is the user's own code: whatever it raises is theirs to read
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}") from None
    if isinstance(config, Config | Classification) and not isinstance(config, kind):
        command = "segmv3 classify train" if isinstance(config, Classification) else "segmv3 train"
        raise ConfigError(f"{path} is an experiment for `{command}`")
    if not isinstance(config, kind):
        raise ConfigError(f"{path} must set `config = {kind.__name__}(...)`")
    if not overrides:
        return config
    import tyro

    return tyro.cli(kind, default=config, args=overrides, config=(tyro.conf.AvoidSubcommands,))


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON types (tuples as lists, paths as text), each with its "kind"."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"kind": type(value).__name__} | fields
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


_NETS = {kind.__name__: kind for kind in (Model, Classifier, MobileNetV3, MobileNetV2, LRASPP, LRASPPDecoder, RASPP)}


def net_from_dict(values: dict[str, Any]) -> Model | Classifier:
    """The settings of a net from what `to_dict` made of them.

    Raises: ValueError, KeyError or TypeError where it made something else, or the net is none that can be built.
    """

    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return _NETS[value["kind"]](**{name: typed(v) for name, v in value.items() if name != "kind"})
        return tuple(value) if isinstance(value, list) else value

    net = typed(values)
    if not isinstance(net, Model | Classifier):
        raise TypeError(f"{values['kind']} is no whole net")
    if wrong := mistyped(net):
        raise ValueError(f"{wrong[0][0]} cannot be {_shown(net, wrong[0][0])}")
    for holds, name, text in net_rules(net):
        if not holds:
            raise ValueError(f"{name} {text}")
    return net


def _shown(net: Model | Classifier, name: str) -> str:
    value: Any = net
    for part in name.split("."):
        value = getattr(value, part)
    return ascii(value)[:60]
