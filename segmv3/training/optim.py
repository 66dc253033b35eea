"""Optimisers from their settings, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from segmv3.config import SGD, AdamW, RMSProp, Schedule


def build_optimizer(model: nn.Module, config: SGD | AdamW | RMSProp, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimiser over two groups, weights of convolutions, and BN parameters with biases; and the same two for all
    that is not the backbone where that has a learning rate of its own.

    Args: fused: update all tensors at once. TensorFlow's RMSProp cannot, and no optimiser whose gradients are clipped
        after a loss scaler.
    """
    how = True if fused else None  # None leaves torch the choice, False would be one tensor after the other
    decay = config.weight_decay if config.decay_bn_and_bias else 0.0
    groups: list[dict[str, Any]] = []
    for factor in dict.fromkeys((1.0, config.head_lr)):
        own = [
            parameter
            for name, parameter in model.named_parameters()
            if factor == (1.0 if "backbone" in name.split(".") else config.head_lr)
        ]
        groups.append({"params": [p for p in own if p.ndim > 1], "lr_factor": factor})
        groups.append({"params": [p for p in own if p.ndim <= 1], "lr_factor": factor, "weight_decay": decay})
    if isinstance(config, SGD):
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=how)
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
    return torch.optim.AdamW(groups, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=how)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
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
