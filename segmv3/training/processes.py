"""Devices, precision and processes of a run. They are lightning-fabric's."""

import logging
import os
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from segmv3.data.check import class_pixels
from segmv3.data.datasets import Dataset
from segmv3.data.listing import count_of
from segmv3.data.loader import refuse_workers_beyond_memory
from segmv3.errors import ConfigError, ResourceError
from segmv3.training.experiment import Experiment, TrainingPrecision
from segmv3.training.progress import RunConsole
from segmv3.training.run import Run
from segmv3.training.signals import StopRequest
from segmv3.training.task import Task

_PRECISIONS: dict[TrainingPrecision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


@dataclass(frozen=True)
class Setup:
    """All that stays as it is while a net is trained."""

    config: Experiment
    task: Task
    fabric: Fabric
    run: Run
    console: RunConsole


def launch(config: Experiment, device: torch.device) -> Fabric:
    """One process, or as many as torchrun started.

    Raises:
        ConfigError, ResourceError: the batch, the precision or the workers do not fit the machine.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise ResourceError(f"{here} processes were started here for {torch.cuda.device_count()} GPUs")
    batch, parts = config.data.batch_size, config.schedule.accumulate
    if batch % processes:
        raise ConfigError(f"data.batch-size {batch} cannot be shared by {processes} processes")
    if batch // processes % parts:
        mine = f"{batch // processes} images of a process" if processes > 1 else f"{batch} images"
        raise ConfigError(f"schedule.accumulate {parts}: a step's {mine} (data.batch-size) make no {parts} equal parts")
    if config.precision == "fp16" and device.type != "cuda":
        raise ConfigError("precision fp16 needs a GPU; use --precision bf16 or fp32")
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=processes // here,
        strategy="ddp" if processes > 1 else "auto",
        precision=_PRECISIONS[config.precision],
    )
    fabric.launch()
    refuse_workers_beyond_memory(replace(config.data, batch_size=batch * here // processes), here)
    return fabric


def everywhere(fabric: Fabric, value: Tensor, operation: Literal["sum", "max"] = "sum") -> Tensor:
    """The sum or max over all processes. Fabric's own makes everybody wait at a barrier first."""
    value = value.to(fabric.device)
    if fabric.world_size > 1:
        how = torch.distributed.ReduceOp.SUM if operation == "sum" else torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(value, how)
    return value


def class_pixels_of(fabric: Fabric, dataset: Dataset) -> Tensor:
    """Labelled pixels of each class in a data set, int64 C. The first process counted them in its check."""
    unknown = torch.zeros(len(dataset.classes), dtype=torch.int64)
    return everywhere(fabric, torch.from_numpy(class_pixels(dataset)) if fabric.is_global_zero else unknown)


def agreed(fabric: Fabric, stop: StopRequest, step: int) -> int:
    """The signal to obey now, the same on all processes; several of them ask each other every tenth step."""
    if fabric.world_size == 1:
        return stop.signal
    return int(everywhere(fabric, torch.tensor(stop.signal), "max").item()) if step % 10 == 0 else 0


def device_name(device: torch.device) -> str:
    """The GPU, or how many threads of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {count_of(torch.get_num_threads(), 'thread', 'threads')}"
