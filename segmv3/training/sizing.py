"""The largest batch that fits into memory, by trial steps: what `data.batch_size` 0 asks for."""

import gc
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from segmv3.data.loader import Photometric, collate, free_memory, refuse_workers_beyond_memory
from segmv3.errors import ConfigError, OutOfMemoryError, is_out_of_memory
from segmv3.training.experiment import Experiment
from segmv3.training.freezing import Freeze
from segmv3.training.loop import step
from segmv3.training.processes import Setup, class_pixels_of
from segmv3.training.progress import RunConsole
from segmv3.training.run import Run
from segmv3.training.state import fresh
from segmv3.training.task import Task

GPU_SHARE = 0.9
"""Of the GPU's memory, that training may take."""
CPU_SHARE = 0.5
"""Of the memory that is free once what training loads is loaded."""
_SMALL = 4  # images of the smaller of two trial batches on a CPU
_STEPS = 2  # the optimiser's moments exist from the second one on
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux tells a process's peak


def sized(config: Experiment, task: Task, fabric: Fabric, run: Run, console: RunConsole) -> Experiment:
    """The experiment with a number for its batch: the run's own where it has begun, else the largest that fits.

    It is at most the training set, and a multiple of schedule.accumulate.

    Raises:
        OutputError: the folder holds something else.
        ConfigError: nothing tells the memory of this machine, or several processes train.
        OutOfMemoryError: the smallest batch does not fit.
    """
    number, parts = run.batch_size(), config.schedule.accumulate
    if not number:
        run.check({})
        if fabric.world_size > 1:
            raise ConfigError("data.batch-size 0 is found by one process alone; give a number for several")
        task.prepare(fabric.device, partial(class_pixels_of, fabric))
        most = max(1, len(task.samples(config.seed)) // parts)
        with console.task("batch size") as progress, RunConsole(1, quiet=True) as silent:
            trial = _Trial(Setup(config, task, fabric, run, silent))
            find = _on_gpu if fabric.device.type == "cuda" else _on_cpu
            units, why = find(trial, most, parts, lambda done: progress(done, most))
        if units < 1:
            raise OutOfMemoryError(f"no batch of {parts} fits into memory ({why}); use a smaller crop")
        number = units * parts
        limit = "all that the training set has" if units == most else why
        console.say(f"data.batch-size: {number:,}, {limit}; the run keeps it")
    config = replace(config, data=replace(config.data, batch_size=number))
    refuse_workers_beyond_memory(config.data)
    return config


class _Trial:
    """Steps of a training that is thrown away: nothing is frozen, compiled or loaded for it."""

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        self._setup, self._sample = setup, setup.task.samples(config.seed)[0, 0]
        net = replace(config.model, pretrained=None)
        self._config = replace(config, model=net, freeze=Freeze(), compile="off")
        self.device = setup.fabric.device

    def __call__(self, batch: int) -> None:
        """Take some steps.

        Raises:
            Exception: whatever torch raises without memory.
        """
        setup = replace(self._setup, config=replace(self._config, data=replace(self._config.data, batch_size=batch)))
        state = fresh(setup)
        images, targets, colors = collate([self._sample] * batch)
        if colors:
            moved: list[Any] = [None if each is None else each.to(self.device) for each in colors]
            colors = Photometric(*moved)
        for _ in range(_STEPS):
            step(state, (images.to(self.device), targets.to(self.device), colors), setup)

    def fits(self, batch: int) -> bool:
        """Whether a GPU has the memory for it."""
        try:
            self(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the net
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return True

    def peak(self, batch: int) -> int:
        """Bytes that this process had at most, all that it holds counted."""
        _FORGET.write_text("5")
        self(batch)
        return _status("VmHWM")


def _on_gpu(trial: _Trial, most: int, parts: int, tell: Callable[[int], None]) -> tuple[int, str]:
    """By doubling until it does not fit, and halving the gap: (batch in units of `parts`, what limits it)."""
    before = torch.cuda.get_per_process_memory_fraction(trial.device)
    torch.cuda.set_per_process_memory_fraction(min(before, GPU_SHARE), trial.device)
    good, bad = 0, most + 1
    try:
        while bad - good > 1:
            tried = min(most, 2 * good or 1) if bad > most else (good + bad) // 2
            good, bad = (tried, bad) if trial.fits(tried * parts) else (good, tried)
            tell(good)
    finally:
        torch.cuda.set_per_process_memory_fraction(before, trial.device)
    memory = torch.cuda.get_device_properties(trial.device).total_memory
    return good, f"what fits into {GPU_SHARE:.0%} of the GPU's {memory / 1e9:.1f} GB"


def _on_cpu(trial: _Trial, most: int, parts: int, tell: Callable[[int], None]) -> tuple[int, str]:
    """By what two small batches take: (batch in units of `parts`, what limits it)."""
    if not _FORGET.exists():
        raise ConfigError("data.batch-size 0 needs a GPU, or Linux, to see what a step takes; give a number")
    small = min(most, -(-_SMALL // parts)) * parts
    trial(small)  # what is loaded and compiled once is no part of a step
    free, base, peak = free_memory(), _status("VmRSS"), trial.peak(small)
    tell(small // parts)
    each = (peak - base) / small
    if most * parts >= 2 * small:
        each = (trial.peak(2 * small) - peak) / small
    room = CPU_SHARE * free - (peak - base)
    units = int((small + room / max(1.0, each)) / parts)
    return min(most, units), f"what fits into half of the {free / 1e9:.1f} GB free, at {each / 1e6:.0f} MB an image"


def _status(name: str) -> int:
    """Bytes, of a line of the process's status."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
