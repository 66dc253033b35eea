"""Every setting of an experiment, as frozen dataclasses, and the way from a config file to one of them.

A config is a Python file that builds `config = Config(...)`. The same dataclasses become command-line flags,
so `--optim.lr 0.02` overrides the file. Sizes and scales are (height, width).
"""

import math
import runpy
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Literal, TypeVar

from segmv3.data.settings import Data as Data
from segmv3.data.settings import DataSource as DataSource
from segmv3.data.settings import Layout as Layout
from segmv3.data.settings import data_rules
from segmv3.data.settings import flag_rules as flag_rules
from segmv3.errors import ConfigError
from segmv3.models.backbones import Backbone as Backbone
from segmv3.models.backbones import MobileNetV2 as MobileNetV2
from segmv3.models.backbones import MobileNetV3 as MobileNetV3
from segmv3.models.backbones import Tap as Tap
from segmv3.models.backbones import Timm as Timm
from segmv3.models.heads import LRASPP as LRASPP
from segmv3.models.heads import RASPP as RASPP
from segmv3.models.heads import Head as Head
from segmv3.models.heads import LRASPPDecoder as LRASPPDecoder
from segmv3.models.heads import LRASPPPlus as LRASPPPlus
from segmv3.models.nets import Classifier as Classifier
from segmv3.models.nets import Model as Model
from segmv3.models.nets import net_from_dict as net_from_dict
from segmv3.models.nets import net_rules as net_rules
from segmv3.settings import Rule, refuse
from segmv3.settings import has_type as has_type
from segmv3.settings import mistyped as mistyped
from segmv3.settings import to_dict as to_dict

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
TrainingPrecision = Literal["fp32", "bf16", "fp16"]
Compile = Literal["off", "auto", "on"]


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
        refuse(
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
    head_lr: float = 1.0
    """Factor of the learning rate of all that is not the backbone: a head that starts fresh on a pretrained backbone
    may go faster, by 10 in DeepLab (arXiv 1606.00915) and PSPNet. The log shows the base rate."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decay_bn_and_bias: bool = False
    """Whether weight decay also acts on BN parameters and biases."""
    head_lr: float = 1.0
    """Factor of the learning rate of all that is not the backbone, as for `SGD`."""


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
    head_lr: float = 1.0
    """Factor of the learning rate of all that is not the backbone, as for `SGD`."""


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
    accumulate: int = 1
    """Equal parts that a step's batch is worked off in, for a batch larger than the memory. The gradient is that of
    the whole batch, but BN sees each part alone, and with loss.ohem each part is mined and averaged for itself."""
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
class Loss:
    """Cross-entropy of every labelled pixel, and which pixels count how much."""

    ohem: float | None = None
    """Train only on pixels whose class has a probability below this, above 0 and at most 1: easy road and sky stop
    drowning the rest (arXiv 1604.03540; mmsegmentation, BiSeNet and PIDNet take 0.7 to 0.9)."""
    min_kept: float = 0.0
    """With ohem: share of the crop's pixels that is kept at least, the hardest, so that late in training the loss still
    sees enough of them (BiSeNet, arXiv 1808.00897: 1/16; mmsegmentation's 100,000 of 512x1024 are 0.19)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes: a net that is less sure of itself (arXiv 1512.00567)."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class's pixels, so that rare classes count: "balanced" is ENet's 1 / ln(1.02 + share of the
    training labels), 1.4 to 50 (arXiv 1606.02147), or one number a class."""
    auxiliary: float = 0.0
    """Weight of the same loss for two more heads, on the 1/8 and the deepest features, that only training has: the
    backbone gets its gradient by a shorter way (PSPNet, arXiv 1612.01105, takes 0.4; BiSeNet 1 and two heads)."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Learning from a larger net beside the labels: where in the image each class is (channel-wise knowledge
    distillation, arXiv 2011.13256)."""

    teacher: str | None = None
    """A weight file or published name as for `segmv3 evaluate`, or a folder that segmentation-models-pytorch's
    `save_pretrained` wrote (its images are normalised by ImageNet's mean and std). Its classes must be the data's."""
    weight: float = 3.0
    """Of this loss beside the cross-entropy; the paper's for logits."""
    temperature: float = 4.0
    """Above 0; the higher, the more of the image counts. The paper's."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One segmentation experiment."""

    model: Model
    data: Data
    loss: Loss = field(default_factory=Loss)
    distill: Distill = field(default_factory=Distill)
    optim: SGD | AdamW | RMSProp = field(default_factory=SGD)
    schedule: Schedule
    precision: TrainingPrecision = "fp32"
    """Arithmetic of the training step (bf16, fp16 = autocast; fp16 needs a GPU); loss and evaluation are fp32."""
    compile: Compile = "off"
    """Whether torch.compile makes the step: "auto" measures some steps each way and keeps the faster. Only with "off"
    does an interrupted run end in the same bits as an unbroken one."""
    recompute: bool = False
    """Whether the net's layers keep only their inputs and run again in the backward pass, with the same result: a
    larger batch fits, for a third more arithmetic (arXiv 1604.06174). Only with `compile` off."""
    seed: int = 0

    def __post_init__(self) -> None:
        data = self.data
        refuse(
            *_common_rules(self),
            (0 < data.scale_range[0] <= data.scale_range[1], "data.scale-range", "must be two rising positive numbers"),
            *data_rules(data),
            *_loss_rules(self.loss),
            (self.distill.weight > 0, "distill.weight", "must be above 0"),
            (self.distill.temperature > 0, "distill.temperature", "must be above 0"),
        )


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One image classification experiment: how a backbone gets its ImageNet weights."""

    model: Classifier
    data: ImageFolder
    optim: SGD | AdamW | RMSProp = field(default_factory=SGD)
    schedule: Schedule
    label_smoothing: float = 0.0
    precision: TrainingPrecision = "fp32"
    """Arithmetic of the training step (bf16, fp16 = autocast; fp16 needs a GPU); loss and evaluation are fp32."""
    compile: Compile = "off"
    """Whether torch.compile makes the step, as for segmentation."""
    recompute: bool = False
    """Whether layers run again in the backward pass to need less memory, as for segmentation."""
    seed: int = 0

    def __post_init__(self) -> None:
        refuse(
            *_common_rules(self),
            (0 <= self.label_smoothing < 1, "label-smoothing", "must be at least 0 and below 1"),
        )


def _loss_rules(loss: Loss) -> list[Rule]:
    weights = () if isinstance(loss.class_weights, str) else loss.class_weights
    return [
        (loss.ohem is None or 0 < loss.ohem <= 1, "loss.ohem", "is a probability above 0 and at most 1"),
        (0 <= loss.min_kept <= 1, "loss.min-kept", "is a share of the crop's pixels, 0 to 1"),
        (loss.ohem is not None or loss.min_kept == 0, "loss.min-kept", "needs loss.ohem"),
        (0 <= loss.label_smoothing < 1, "loss.label-smoothing", "must be at least 0 and below 1"),
        (loss.auxiliary >= 0, "loss.auxiliary", "must be at least 0"),
        (
            isinstance(loss.class_weights, str) or (max(weights, default=0) > 0 and all(map(_is_weight, weights))),
            "loss.class-weights",
            "are none, balanced, or a number for each class: at least 0, not all 0",
        ),
    ]


def _is_weight(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _common_rules(config: Config | Classification) -> list[Rule]:
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
        (schedule.accumulate >= 1, "schedule.accumulate", "must be at least 1"),
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
        (optim.head_lr > 0, "optim.head-lr", "must be above 0"),
        (
            0 <= schedule.min_lr <= optim.lr,
            "schedule.min-lr",
            f"must lie between 0 and optim.lr ({optim.lr:g})",
        ),
        (optim.weight_decay >= 0, "optim.weight-decay", "must be at least 0"),
        (all(0 <= b < 1 for b in getattr(optim, "betas", ())), "optim.betas", "must be at least 0 and below 1"),
        (0 <= getattr(optim, "momentum", 0) < 1, "optim.momentum", "must be at least 0 and below 1"),
        (0 <= getattr(optim, "alpha", 0) < 1, "optim.alpha", "must be at least 0 and below 1"),
        (
            config.compile == "off" or not config.recompute,
            "recompute",
            "needs compile off: a compiled step chooses for itself what to compute again",
        ),
        (0 <= config.seed < 2**63, "seed", "must be at least 0 and below 2^63"),
    ]


Experiment = TypeVar("Experiment", Config, Classification)


def load_config(path: Path | str, overrides: list[str] | None = None, kind: type[Experiment] = Config) -> Experiment:  # type: ignore[assignment]
    """Run a config file and apply command-line overrides to the `config` it builds.

    Args:
        path: the config file. It is Python and runs.
        overrides: flags such as `["--optim.lr", "0.02"]`. An unknown or ill-typed one ends the program with a hint and
            exit code 2.
        kind: `Config` or `Classification`.

    Raises:
        ConfigError: there is no such file, it fails, or it builds no `config` of this kind.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        known = sorted(p.name for p in folder.glob("*.py"))
        hint = f"; {folder} has {', '.join(known)}" if known else ""
        raise ConfigError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}{hint}")
    _import_from(path.parent)
    try:
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a config is the user's own code: whatever it raises is theirs to read
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}{_place(error, path)}") from None
    if isinstance(config, Config | Classification) and not isinstance(config, kind):
        command = "segmv3 classify train" if isinstance(config, Classification) else "segmv3 train"
        raise ConfigError(f"{path} is an experiment for `{command}`")
    if not isinstance(config, kind):
        raise ConfigError(f"{path} must set `config = {kind.__name__}(...)`")
    if not overrides:
        return config
    import tyro

    marks = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(kind, default=config, args=overrides, config=marks, registry=flag_rules())


def load_parts(path: Path) -> None:
    """Import a Python file that defines heads or backbones, so that weight files that name them can be opened.

    Raises:
        ConfigError: there is no such file, or it fails; the message names the line.
    """
    if not path.is_file():
        raise ConfigError(f"--parts {path} {'is a folder' if path.is_dir() else 'does not exist'}; name a Python file")
    _import_from(path.parent)
    try:
        import_module(path.stem)
    except (Exception, SystemExit) as error:  # it is the user's own code
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}{_place(error, path)}") from None


def _import_from(folder: Path) -> None:
    """Let parts of the user's own be imported from beside a file, as for a script; worker processes get it too."""
    beside = str(folder.resolve())
    if sys.path[:1] != [beside]:
        sys.path.insert(0, beside)


def _place(error: BaseException, config: Path) -> str:
    """Where in the user's own files an error began, unless it is the config itself and a line says it."""
    if isinstance(error, SyntaxError):
        return ""  # its text names file and line
    folder = config.resolve().parent
    own = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).resolve().parent == folder]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
