"""Parameters and multiply-adds of a net, counted by PyTorch on tensors without storage."""

from dataclasses import dataclass

import torch
from torch import nn

from segmv3.models.zoo import NETS, create_model

_SIZE = (1024, 2048)  # Cityscapes images


@dataclass(frozen=True)
class NetFacts:
    """What `segmv3 models` says of a net with 19 classes."""

    name: str
    parameters: int
    gmacs: float
    """Multiply-adds at 1024 x 2048, in billions."""
    output_stride: int
    taps: str
    """Channels and strides of the feature maps that the head fuses."""


def parameters(model: nn.Module) -> int:
    """Number of trained values (BN statistics and normalisation constants excluded)."""
    return sum(p.numel() for p in model.parameters())


def gmacs(model: nn.Module, size: tuple[int, int]) -> float:
    """Multiply-adds of all convolutions for one image of (height, width), in units of 1e9.

    One multiply-add counts once, as in the paper. The model must be on the "meta" device, where counting
    takes no memory and no time.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which prints lines when Python ends

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() / 2e9


def describe_nets() -> list[NetFacts]:
    """Facts of every named net, counted now."""
    facts = []
    for name, settings in NETS.items():
        with torch.device("meta"):
            model = create_model(settings)
        strides = [*(tap.stride for tap in settings.head.taps()), settings.backbone.output_stride]
        fused = ", ".join(f"{c} at 1/{s}" for c, s in zip(model.backbone.channels, strides, strict=True))
        facts.append(NetFacts(name, parameters(model), gmacs(model, _SIZE), settings.backbone.output_stride, fused))
    return facts
