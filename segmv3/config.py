"""Every setting of an experiment, as frozen dataclasses, and the way from a config file to one of them.

A config is a Python file that builds `config = Config(...)`. The same dataclasses become command-line flags,
so `--optim.lr 0.02` overrides the file. Sizes and scales are (height, width).
"""

import dataclasses
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segmv3.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The net. `segmv3.models.zoo` names the ones that are used; parameters are counted there."""

    size: Literal["large", "small"] = "large"
    """MobileNetV3-Large or -Small (arXiv 1905.02244, tables 1 and 2)."""
    tail: Literal["full", "rf2"] = "rf2"
    """Last block of the backbone: as for classification, or with half the filters (the paper's RF2)."""
    output_stride: Literal[8, 16, 32] = 16
    """Input size over deep feature size; strides beyond it become dilation."""
    head_channels: int = 128
    """Filters F of the LR-ASPP head."""
    pool: Literal["global", "window"] = "global"
    """Pooling of the head's gate: the whole map, or windows of `pool_window` cells every `pool_stride`."""
    pool_window: tuple[int, int] = (49, 49)
    pool_stride: tuple[int, int] = (16, 20)
    backbone_bn_eps: float = 1e-3
    head_bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    """Weight of the newest batch in BN's running statistics (PyTorch's sense)."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB, 0..255, subtracted inside the model (ImageNet's)."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


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
class Schedule:
    """How long to train, how the learning rate moves, and what happens on the way."""

    steps: int
    """Optimiser steps, meant and executed."""
    policy: Literal["poly", "cosine"] = "poly"
    power: float = 0.9
    """Exponent of the poly policy."""
    min_lr: float = 1e-4
    """Learning rate that the policy falls to at the end of the run."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from near zero; a shorter run ends while it rises."""
    eval_every: int = 4000
    """Steps between evaluations on the validation set; the training state is saved there too."""
    save_every: int = 1000
    """Steps between saves of the training state."""
    log_every: int = 50
    """Steps between log lines."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    model: Model
    data: Data
    optim: SGD | AdamW = field(default_factory=SGD)
    schedule: Schedule
    precision: Precision = "fp32"
    """Arithmetic of the training step (bf16 = autocast); evaluation is always fp32."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, wrong in _impossible(self):
            raise ConfigError(f"{name}: {wrong}")


def _impossible(config: Config) -> list[tuple[str, str]]:
    """(setting, what is wrong with it) for values that types alone cannot refuse."""
    data, schedule, optim = config.data, config.schedule, config.optim
    rules = [
        (data.batch_size >= 1, "data.batch-size", "must be at least 1"),
        (min(data.crop_size) >= 1, "data.crop-size", "must be at least 1 x 1"),
        (
            0 < data.scale_range[0] <= data.scale_range[1],
            "data.scale-range",
            "must be two rising positive numbers",
        ),
        (0 < data.cat_max_ratio <= 1, "data.cat-max-ratio", "must be above 0 and at most 1"),
        (0 <= data.flip <= 1, "data.flip", "is a probability, 0 to 1"),
        (0 <= data.jitter <= 1, "data.jitter", "is a probability, 0 to 1"),
        (data.workers >= 0, "data.workers", "must be at least 0"),
        (schedule.steps >= 1, "schedule.steps", "must be at least 1"),
        (schedule.warmup_steps >= 0, "schedule.warmup-steps", "must be at least 0"),
        (schedule.eval_every >= 1, "schedule.eval-every", "must be at least 1"),
        (schedule.save_every >= 1, "schedule.save-every", "must be at least 1"),
        (schedule.log_every >= 1, "schedule.log-every", "must be at least 1"),
        (schedule.clip_norm >= 0, "schedule.clip-norm", "must be at least 0"),
        (optim.lr > 0, "optim.lr", "must be above 0"),
        (
            0 <= schedule.min_lr <= optim.lr,
            "schedule.min-lr",
            f"must lie between 0 and optim.lr ({optim.lr:g})",
        ),
        (optim.weight_decay >= 0, "optim.weight-decay", "must be at least 0"),
        (config.model.head_channels >= 1, "model.head-channels", "must be at least 1"),
        (min(config.model.pool_window) >= 1, "model.pool-window", "must be at least 1 x 1"),
        (min(config.model.pool_stride) >= 1, "model.pool-stride", "must be at least 1 x 1"),
        (min(config.model.std) > 0, "model.std", "must be above 0"),
        (all(0 <= b < 1 for b in getattr(optim, "betas", ())), "optim.betas", "must be at least 0 and below 1"),
        (0 <= getattr(optim, "momentum", 0) < 1, "optim.momentum", "must be at least 0 and below 1"),
        (0 <= config.seed < 2**63, "seed", "must be at least 0 and below 2^63"),
    ]
    return [(name, wrong) for holds, name, wrong in rules if not holds]


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Run a config file and apply command-line overrides to the `config` it builds.

    Args: overrides: flags such as `["--optim.lr", "0.02"]`; unknown or ill-typed ones end the program with a
        hint and exit code 2 (tyro's own box).
    Raises: ConfigError when there is no such file, it fails, or it builds no `config`.
    """
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
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must set `config = Config(...)`")
    if not overrides:
        return config
    import tyro

    return tyro.cli(tyro.conf.AvoidSubcommands[Config], default=config, args=overrides)


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON types (tuples as lists, paths as text)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)
