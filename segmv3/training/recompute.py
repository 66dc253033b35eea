"""Training in less memory: parts of a net keep their inputs only and run again when their gradients are due."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from segmv3.errors import ModelError
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.segmenter import Segmenter
from segmv3.training.task import Net


class _Recomputed(nn.Module):
    """Mixed into the class of a part, so that names, copies and evaluation stay as they are."""

    def forward(self, *inputs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs)
        return checkpoint(
            super().forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _statistics_kept(self)),
        )


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """The second pass sees the same batch: BN has counted it already.

    With momentum 0 the running statistics stay, to the bit, and a counter that is thrown away counts:
    `nn.SyncBatchNorm` insists on one. Without the statistics (`track_running_stats`) the graph of the second pass would
    be another one.
    """
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros((), dtype=torch.long)
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted


def recompute(net: Net) -> None:
    """Have the backbone's layers and the head's convolutions with BN run again in the backward pass (arXiv 1604.06174).

    Losses, gradients, BN statistics and dropout are those of before; the collectives of synchronised BN run twice, in
    the same order on all processes.

    Raises:
        ModelError: the backbone has no such layers.
    """
    backbone: Any = net.backbone
    if not hasattr(backbone, "blocks"):
        raise ModelError(f"{net.config.backbone.title} has no blocks that could run again; leave recompute off")
    parts: list[nn.Module] = [backbone.stem, *backbone.blocks]
    if isinstance(backbone, MobileNetV3Backbone):
        parts.append(backbone.last)
    if isinstance(net, Segmenter):
        parts += [m for m in net.head.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
    for part in parts:
        part.__class__ = type(type(part).__name__, (_Recomputed, type(part)), {})
