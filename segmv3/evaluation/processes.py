"""Sharing an evaluation among the processes that torchrun starts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from segmv3.errors import Interrupted, ResourceError, Segmv3Error

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun started; one alone otherwise."""

    rank: int = 0
    count: int = 1

    def broadcast(self, value: Result) -> Result:
        """The first process's value."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, on the first process; an empty list on the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(value, values)
        return values or []

    def agree(self, action: Callable[[], Result]) -> Result:
        """Do something on every process.

        Raises: on the first process, the first error that any of them met; SystemExit with the same code on the
            others, so that it is printed once and nobody waits for one that has left.
        """
        outcome: Result | None = None
        error: Segmv3Error | None = None
        try:
            outcome = action()
        except Interrupted:  # the launcher stops all processes alike
            raise
        except Segmv3Error as met:
            error = met
        errors: list[Segmv3Error | None] = [error]
        if self.count > 1:
            errors = [None] * self.count
            torch.distributed.all_gather_object(errors, error)
        first = next((met for met in errors if met), None)
        if first and self.rank == 0:
            raise first
        if first:
            raise SystemExit(first.exit_code)
        return outcome  # type: ignore[return-value]


ALONE = Processes()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, over gloo; with CUDA each takes the GPU of its local rank.

    Raises: ResourceError when there are fewer GPUs than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield ALONE
        return
    if device.type == "cuda":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if here > torch.cuda.device_count():
            raise ResourceError(f"{here} processes were started here for {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("gloo")
    try:
        yield Processes(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()
