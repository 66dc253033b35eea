"""The roofline of a net: the least time that its multiplications and its memory traffic take on this machine."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from segmv3.benchmark.timing import time_in_turns
from segmv3.config import Model
from segmv3.models.count import gmacs
from segmv3.models.zoo import create_model

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 2**28, "cuda": 2**30}


@dataclass(frozen=True)
class Work:
    """What one image costs."""

    gflop: float
    """Operations of all convolutions; a multiply-add counts twice."""
    values: int
    """Numbers that convolutions read and write for one image, if everything else is done on the way."""
    weights: int

    def gbytes(self, precision: str, batch: int = 1) -> float:
        """Gigabytes that a batch moves through memory at least."""
        size = 4 if precision == "fp32" else 1 if precision == "int8" else 2
        return size * (batch * self.values + self.weights) / 1e9


def work_of(net: Model, size: tuple[int, int], classes: int = 19) -> Work:
    """Count a net at (height, width); nothing is allocated."""
    with torch.device("meta"):
        model = create_model(net, classes).eval()
    gflop = 2 * gmacs(model, size)
    moved = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        moved.append(inputs[0].numel() + output.numel())

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_forward_hook(note)
    with torch.inference_mode():
        model.low_logits(torch.empty(1, 3, *size, device="meta"))
    return Work(gflop, sum(moved), sum(convolution.weight.numel() for convolution in convolutions))


@cache
def matrix_gflops(precision: str, device: str = "cpu") -> float | None:
    """Measure a large matrix product, in GFLOP/s. None for arithmetic in which torch has no product."""
    if precision not in _TYPES:
        return None
    side = _SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(_TYPES[precision]) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32  # as the convolutions of fp32 nets
    try:
        times = time_in_turns({"product": partial(_finished, torch.mm, a, b)}, 5)["product"]
    finally:
        matmul.allow_tf32 = before
    return 2 * side**3 / min(times.seconds) / 1e9


@cache
def copied_gbytes(device: str = "cpu") -> float:
    """Measure a copy of a large block of memory, in GB/s. Bytes read and bytes written both count."""
    source = torch.zeros(_COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = time_in_turns({"copy": partial(_finished, target.copy_, source)}, 5)["copy"]
    return 2 * source.numel() / min(times.seconds) / 1e9


def _finished(work: Any, *arguments: Tensor) -> None:
    result = work(*arguments)
    if result.is_cuda:
        torch.cuda.synchronize()
