"""How long training takes here, measured over a few real steps and a few scored images."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch

from segmv3.config import Config, Device
from segmv3.data.listing import count_of
from segmv3.runtime import use_device
from segmv3.training.compiling import now_on
from segmv3.training.loop import step, train_batches
from segmv3.training.processes import Setup, class_pixels_of, launch
from segmv3.training.progress import RunConsole
from segmv3.training.run import Run
from segmv3.training.state import fresh

_WARM_UP, _SECONDS, _LEAST, _MOST = 2, 4.0, 3, 20  # steps before those that count; how many and how long these are
_IMAGES = 4


@dataclass(frozen=True)
class Pace:
    """What training costs on this machine, in seconds."""

    step: float
    """Of one step, its batch included."""
    image: float
    """Of scoring one image of val."""
    device: str
    """That ran it, for people."""
    steps: int
    """That were measured."""


def rehearse(config: Config, run: Path, *, device: Device = "auto", threads: int | None = None) -> Pace:
    """Train a few steps as the run would, with new weights, and forget them. Nothing is written.

    Args:
        config: the experiment; its start weights are not read, they change no time.
        run: folder of the run to come.
        device: as for `train`.
        threads: as for `train`.

    Raises:
        DataError: the data set cannot be trained on, as `train` would say.
    """
    schedule = replace(config.schedule, steps=_WARM_UP + _MOST)
    config = replace(config, model=replace(config.model, pretrained=None), schedule=schedule)
    fabric = launch(config, use_device(device, threads))
    task = config.task()
    with RunConsole(1, quiet=True) as console:
        task.check(console.task, lambda text: None)
        task.prepare(fabric.device, partial(class_pixels_of, fabric))
        setup = Setup(config, task, fabric, Run(run), console)
        state = fresh(setup)
        stream = iter(train_batches(state, setup))
        for number in count(1 - _WARM_UP):
            if number == 1:
                began = now_on(fabric.device)
            step(state, next(stream), setup)
            taken = now_on(fabric.device) - began if number >= _LEAST else 0.0
            if number >= _LEAST and (taken >= _SECONDS or number == _MOST):
                break
        net = state.scored.eval()
        images = min(_IMAGES, len(task.val_set))
        task.count(net, fabric.device, range(1), lambda done, total: None)
        before = now_on(fabric.device)
        task.count(net, fabric.device, range(images), lambda done, total: None)
        scoring = (now_on(fabric.device) - before) / images
    on_gpu = fabric.device.type == "cuda"
    name = torch.cuda.get_device_name(fabric.device) if on_gpu else count_of(torch.get_num_threads(), "CPU thread")
    return Pace(taken / number, scoring, name, number)
