"""Optimisers and schedules: their settings, and what is built from them. Importing this module imports no torch."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from segmv3.errors import ModelError
from segmv3.settings import Rule
from segmv3.training.freezing import layers_by_stride

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimisers have."""

    lr: float
    weight_decay: float
    decay_bn_and_bias: bool = False
    """Whether weight decay also acts on BN parameters and biases."""
    head_lr: float = 1.0
    """Factor of the learning rate of all that is not the backbone: a head that starts fresh on a pretrained backbone
    may go faster, by 10 in DeepLab (arXiv 1606.00915) and PSPNet. The log shows the base rate."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each stage of the backbone to the one before it: layers near the image keep more
    of what they know (ULMFiT, arXiv 1801.06146; BEiT, arXiv 2106.08254). The deepest stage has the base rate."""
    reference_batch: int = 0
    """Batch that `lr` is meant for: the whole curve of the rate is multiplied by data.batch-size / this (the linear
    rule, Goyal et al., arXiv 1706.02677, whose reference is 256; warm up with it). 0 takes `lr` as it is."""

    def rules(self) -> list[Rule]:
        """What the settings must keep to."""
        return [
            (self.lr > 0, "lr", "must be above 0"),
            (self.head_lr > 0, "head-lr", "must be above 0"),
            (0 < self.layer_decay <= 1, "layer-decay", "must be above 0 and at most 1"),
            (self.reference_batch >= 0, "reference-batch", "must be at least 0"),
            (self.weight_decay >= 0, "weight-decay", "must be at least 0"),
        ]

    def scale(self, batch: int) -> float:
        """Factor of the rate by the linear rule, for a batch of `batch` images."""
        return batch / self.reference_batch if self.reference_batch else 1.0

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], *, fused: bool | None) -> "torch.optim.Optimizer":
        """The optimiser over groups of parameters; `fused` is torch's flag, None leaves it the choice."""


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_bn_and_bias: bool = True

    def rules(self) -> list[Rule]:
        return [*super().rules(), _share("momentum", self.momentum)]

    def build(self, groups: list[dict[str, Any]], *, fused: bool | None) -> "torch.optim.Optimizer":
        from torch.optim import SGD as Built

        return Built(groups, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01

    def rules(self) -> list[Rule]:
        return [*super().rules(), *(_share("betas", beta) for beta in self.betas)]

    def build(self, groups: list[dict[str, Any]], *, fused: bool | None) -> "torch.optim.Optimizer":
        from torch.optim import AdamW as Built

        return Built(groups, self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """RMSProp with momentum, as TensorFlow's ImageNet recipes use it."""

    lr: float = 0.1
    alpha: float = 0.9
    """Smoothing of the squared gradients."""
    momentum: float = 0.9
    eps: float = 1e-3
    weight_decay: float = 1e-5

    def rules(self) -> list[Rule]:
        return [*super().rules(), _share("momentum", self.momentum), _share("alpha", self.alpha)]

    def build(self, groups: list[dict[str, Any]], *, fused: bool | None) -> "torch.optim.Optimizer":
        # TensorFlow's: epsilon inside the root, mean square starting at one; it knows no fused form
        from timm.optim.rmsprop_tf import RMSpropTF as Built

        decay = self.weight_decay
        return Built(groups, self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum, weight_decay=decay)


def _share(name: str, value: float) -> Rule:
    return 0 <= value < 1, name, "must be at least 0 and below 1"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, how the learning rate falls, and when to evaluate, save and log."""

    steps: int
    """Optimiser steps of the run."""
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
    """Equal parts in which a step computes its batch, for a batch larger than the memory. The gradient is that of
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
    patience: int = 0
    """Evaluations in a row without a better score after which the run ends early, finished; 0 never ends it early."""

    def rules(self, lr: float) -> list[Rule]:
        """What the settings must keep to; `lr` is the optimiser's."""
        counts = ("steps", "accumulate", "eval_every", "save_every", "log_every", "decay_every")
        between = f"must lie between 0 and optim.lr ({lr:g})"
        return [
            *((getattr(self, name) >= 1, name.replace("_", "-"), "must be at least 1") for name in counts),
            (self.warmup_steps >= 0, "warmup-steps", "must be at least 0"),
            (0 <= self.warmup_from <= lr, "warmup-from", between),
            (self.clip_norm >= 0, "clip-norm", "must be at least 0"),
            (self.patience >= 0, "patience", "must be at least 0"),
            (0 < self.decay_rate <= 1, "decay-rate", "must be above 0 and at most 1"),
            (0 <= self.ema < 1, "ema", "must be at least 0 and below 1"),
            (0 <= self.min_lr <= lr, "min-lr", between),
        ]


def build_optimizer(model: "nn.Module", config: Optimizer, *, fused: bool = True) -> "torch.optim.Optimizer":
    """The optimiser over two groups, weights of convolutions, and BN parameters with biases; and the same two for each
    part that has a learning rate of its own: all that is not the backbone, and the backbone's stages.

    Args:
        model: what is trained.
        config: which optimiser.
        fused: update all tensors at once, which no optimiser can whose gradients are clipped after a loss scaler.
    """
    decay = config.weight_decay if config.decay_bn_and_bias else 0.0
    groups: list[dict[str, Any]] = []
    factors = _stage_factors(model, config.layer_decay)
    for factor in dict.fromkeys((1.0, config.head_lr, *factors.values())):
        own = [
            parameter
            for name, parameter in model.named_parameters()
            if factor == (factors.get(parameter, 1.0) if "backbone" in name.split(".") else config.head_lr)
        ]
        groups.append({"params": [p for p in own if p.ndim > 1], "lr_factor": factor})
        groups.append({"params": [p for p in own if p.ndim <= 1], "lr_factor": factor, "weight_decay": decay})
    return config.build(groups, fused=True if fused else None)  # False would be one tensor after the other


def _stage_factors(model: "nn.Module", decay: float) -> "dict[nn.Parameter, float]":
    """What each parameter of the backbone multiplies the rate by, where the stages differ.

    Raises:
        ModelError: the backbone does not tell its stages.
    """
    if decay == 1:
        return {}
    net: Any = next(part for part in model.modules() if hasattr(part, "backbone"))  # a loss may have wrapped it
    layers = layers_by_stride(net.backbone)
    if len(layers) == 1:
        raise ModelError(f"{net.config.backbone.title} does not tell its stages; leave optim.layer-decay at 1")
    return {
        parameter: decay**above
        for above, stride in enumerate(sorted(layers, reverse=True))
        for layer in layers[stride]
        for parameter in layer.parameters()
    }


def set_lr(optimizer: "torch.optim.Optimizer", lr: float) -> None:
    """Give every group its share of the base learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def lr_at(step: int, peak: float, schedule: Schedule) -> float:
    """Learning rate of optimiser step `step`, from 0: linear warm-up, then poly, cosine or steps down to `min_lr`."""
    if step < schedule.warmup_steps:
        return schedule.warmup_from + (peak - schedule.warmup_from) * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    if schedule.policy == "step":
        return max(
            schedule.min_lr, peak * schedule.decay_rate ** ((step - schedule.warmup_steps) // schedule.decay_every)
        )
    share = (1 - done) ** schedule.power if schedule.policy == "poly" else (1 + math.cos(math.pi * done)) / 2
    return schedule.min_lr + (peak - schedule.min_lr) * share
