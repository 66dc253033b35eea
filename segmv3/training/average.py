"""Exponential moving average of a net's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Net = TypeVar("Net", bound=nn.Module)


class MovingAverage(Generic[Net]):
    """A second net that follows the one being trained: parameters and BN statistics alike.

    The decay warms up as in TensorFlow, min(decay, (1 + step) / (10 + step)), so that the average soon forgets the
    first weights. torch's `AveragedModel` knows no such warm-up and asks the device for a count at every step.

    Attributes: net: the averaged net, in eval mode.
    """

    def __init__(self, net: Net, decay: float, device: torch.device) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)
        self.decay = decay

    def update(self, net: Net, step: int) -> None:
        """Move towards `net` as it is after step `step`, counted from 0."""
        mine, theirs = self.net.state_dict(), net.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average([mine[name] for name in floats], [theirs[name] for name in floats], 0)
        counts = [name for name in mine if not mine[name].is_floating_point()]  # of batches, BN's
        torch._foreach_copy_([mine[name] for name in counts], [theirs[name] for name in counts])


def same_on_all_processes(net: nn.Module) -> None:
    """Give every process the buffers of the first: plain BN keeps its own statistics on each."""
    for buffer in net.buffers():
        torch.distributed.broadcast(buffer, src=0)
