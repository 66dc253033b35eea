"""Sharing an evaluation among the processes that torchrun starts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from segmv3.config import Device
from segmv3.errors import Interrupted, ResourceError, Segmv3Error
from segmv3.runtime import use_device
from segmv3.runtime.loading import is_export

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun started; one alone otherwise."""

    device: torch.device
    rank: int = 0
    count: int = 1

    def share(self, value: Value) -> list[Value]:
        """Every process's value, on every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, action: Callable[[], Value]) -> Value:
        """Do something on every process, and stop all of them where one fails.

        Args:
            action: what to do.

        Raises:
            Segmv3Error: on the first process: the first error that any of them met.
            SystemExit: on the others, with its code. The error is printed once, and nobody waits for one that left.
        """
        outcome: Value | None = None
        error: Segmv3Error | None = None
        try:
            outcome = action()
        except Interrupted:  # the launcher stops all processes alike
            raise
        except Segmv3Error as met:
            error = met
        first = next((met for met in self.share(error) if met), None)
        if first and self.rank == 0:
            raise first
        if first:
            raise SystemExit(first.exit_code)
        return outcome  # type: ignore[return-value]

    def first(self, action: Callable[[], Value]) -> Value | None:
        """Do something on the first process alone; the others get None, and stop where it fails."""
        return self.agree(lambda: action() if self.rank == 0 else None)


ALONE = Processes(torch.device("cpu"))


@contextmanager
def processes(weights: Path | str, device: Device, threads: int | None) -> Iterator[Processes]:
    """Join the processes that torchrun started, over gloo; with CUDA each takes the GPU of its local rank.

    Args:
        weights: what will run.
        device: the one asked for; "auto" is the CPU for an exported file.
        threads: CPU threads of this process.

    Raises:
        ResourceError: a device is not there, or there are fewer GPUs than processes.
    """
    place = use_device("cpu" if is_export(Path(weights)) and device == "auto" else device, threads)
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(place)
        return
    if place.type == "cuda":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if here > torch.cuda.device_count():
            raise ResourceError(f"{here} processes were started here for {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("gloo")
    try:
        yield Processes(place, torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()
