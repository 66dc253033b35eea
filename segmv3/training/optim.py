"""Optimisers from their settings, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from segmv3.config import SGD, AdamW, RMSProp, Schedule


def build_optimizer(model: nn.Module, config: SGD | AdamW | RMSProp) -> torch.optim.Optimizer:
    """The optimiser over two groups: weights of convolutions, and BN parameters with biases."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    decay = config.weight_decay if config.decay_bn_and_bias else 0.0
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": decay}]
    if isinstance(config, SGD):
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if isinstance(config, RMSProp):
        # TensorFlow's: epsilon inside the root, mean square starting at one. Imported here, for it takes a second
        from timm.optim.rmsprop_tf import RMSpropTF

        return RMSpropTF(
            groups,
            config.lr,
            alpha=config.alpha,
            eps=config.eps,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(groups, config.lr, betas=config.betas, weight_decay=config.weight_decay)


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
