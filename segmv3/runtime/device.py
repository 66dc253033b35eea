"""Where a command runs."""

import torch

from segmv3.config import Device
from segmv3.errors import ModelError, ResourceError

_MOST_THREADS = 4096


def use_device(device: Device = "auto", threads: int | None = None) -> torch.device:
    """The device to run on, after setting the number of CPU threads of this process.

    Raises: ResourceError for a CUDA device that is not there, ModelError for a thread count that cannot be had.
    """
    if threads is not None:
        if not 1 <= threads <= _MOST_THREADS:
            raise ModelError(f"--threads is {threads}; it must be at least 1 and at most {_MOST_THREADS}")
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
