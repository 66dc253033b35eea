"""torch.compile for the net's part of a step: used, measured, or left when it does not work."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from segmv3.errors import is_out_of_memory
from segmv3.training.experiment import Compile

_EAGER_STEPS, _COMPILED_STEPS, _MEASURED = 6, 8, 4  # the first ones warm up, the last ones count


def now_on(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Compilation:
    """Puts a compiled form of a method in its place. Only training uses it: evaluation has images of many sizes.

    Args:
        module: the module that a training step calls.
        method: the name of the method that is called.
        everywhere: gives the largest value of all processes.

    Attributes:
        used: whether the compiled form is used; None while "auto" measures.
    """

    def __init__(
        self,
        module: nn.Module,
        method: str,
        mode: Compile,
        *,
        device: torch.device,
        everywhere: Callable[[Tensor], Tensor],
        say: Callable[[str], None],
    ) -> None:
        self.used: bool | None = {"off": False, "auto": None, "on": True}[mode]
        self._module, self._eager = module, getattr(module, method)
        self._device, self._everywhere, self._say = device, everywhere, say
        self._seconds: list[float] = []
        self._works = self._failed = False
        if mode != "off":
            torch.compiler.reset()  # else another net or crop of this process makes it one for any shape, or none
            self._compiled = torch.compile(self._eager)
            setattr(module, method, self._call)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a training step, which is measured while that is asked for."""
        if self.used is not None:
            yield
            return
        began = now_on(self._device)
        yield
        self._seconds.append(now_on(self._device) - began)
        if len(self._seconds) == _EAGER_STEPS + _COMPILED_STEPS:
            self._decide()

    def _decide(self) -> None:
        mine = [min(self._seconds[end - _MEASURED : end]) for end in (_EAGER_STEPS, len(self._seconds))]
        if self._failed:  # only here: the other processes wait for this one
            mine[1] = math.inf
        eager, compiled = self._everywhere(torch.tensor(mine)).tolist()
        self.used = compiled < eager
        kept = "compiled" if self.used else "eager"
        self._say(f"compile: {eager:.3f} s a step eager, {compiled:.3f} s compiled; {kept} from here on")

    def _call(self, *inputs: Tensor) -> Any:
        compiled = len(self._seconds) >= _EAGER_STEPS if self.used is None else self.used
        if not compiled or self._failed or not self._module.training:
            return self._eager(*inputs)
        # the backward pass is compiled with the forward one, here, where a failure can still be answered
        early = functorch.patch(force_non_lazy_backward_lowering=True) if not self._works else nullcontext()
        try:
            with early:
                outputs = self._compiled(*inputs)
        except Exception as error:  # compilers raise all there is
            if self._works or is_out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines()]
            # Dynamo begins with "backend='inductor' raised:"
            reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
            self._say(f"compile: {reason[:160]}; the run goes on without")
            self._failed = True
            if self.used:
                self.used = False
            return self._eager(*inputs)
        self._works = True
        return outputs
