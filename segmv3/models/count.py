"""Parameters and multiply-adds of a net, counted by PyTorch on tensors without storage."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Number of trained values (BN statistics and normalisation constants excluded)."""
    return sum(p.numel() for p in model.parameters())


def gmacs(model: nn.Module, size: tuple[int, int]) -> float:
    """Multiply-adds of all convolutions for one image of (height, width), in units of 1e9.

    One multiply-add counts once, as in the paper. The model must be on the "meta" device, where counting
    takes no memory and no time.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() / 2e9
