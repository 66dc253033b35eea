"""Where a command runs."""

import os
import warnings

import torch

from segmv3.config import Device
from segmv3.errors import ModelError, ResourceError, Segmv3Warning

_MOST_THREADS = 4096
_FORKED = "this process was forked from one that ran nets, and PyTorch's threads do not survive that: it has 1 thread"

_began = False  # nets may have run here, on threads of PyTorch
_forked = False  # they ran in the process that this one was forked from


def _after_fork() -> None:
    """PyTorch would wait for ever for the threads that the parent had; with one, it asks for none."""
    global _forked
    if _began:
        _forked = True
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def use_device(device: Device = "auto", threads: int | None = None) -> torch.device:
    """The device to run on, after setting the number of CPU threads of this process.

    Raises: ResourceError for a CUDA device that is not there, ModelError for a thread count that cannot be had.
    Warns: Segmv3Warning in a forked process, which has one thread.
    """
    global _began
    _began = True
    if threads is not None:
        if not 1 <= threads <= _MOST_THREADS:
            raise ModelError(f"--threads is {threads}; it must be at least 1 and at most {_MOST_THREADS}")
        torch.set_num_threads(1 if _forked else threads)
    if _forked and threads != 1:
        warnings.warn(Segmv3Warning(f"{_FORKED}; processes that are spawned have more"), stacklevel=3)
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    place = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    if place.type == "cuda":
        refuse_forked_gpu()
    return place


def is_forked() -> bool:
    """Whether this process was forked from one that ran nets."""
    return _forked


def refuse_forked_gpu() -> None:
    """Raises: ModelError in a forked process, where CUDA cannot begin again."""
    if _forked:
        raise ModelError(
            'CUDA does not survive a fork; start processes with multiprocessing.get_context("spawn"), or use the CPU'
        )
