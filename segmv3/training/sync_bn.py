"""Batch normalisation over the batches of all processes, where torch has none: `nn.SyncBatchNorm` needs a GPU."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class _SyncBatchNorm(nn.BatchNorm2d):
    """Mean and variance over all processes, by sums whose gradients are summed, too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        values = x if x.dtype == torch.float64 else x.float()  # also under autocast
        count = x.numel() // x.shape[1] * torch.distributed.get_world_size()  # every process has as many
        mean = all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        # of what is centred, as one process computes it; the mean of squares less the squared mean would cancel
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """A net whose BN in training sees the batches of all processes; parameters, names and evaluation stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncBatchNorm
    return net
