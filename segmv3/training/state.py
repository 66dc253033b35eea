"""All that changes while a net is trained, and its way to a file and back."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor

from segmv3 import checkpoint
from segmv3.errors import CheckpointError
from segmv3.labels import Classes
from segmv3.training.average import MovingAverage
from segmv3.training.compiling import Compilation
from segmv3.training.freezing import Freezing
from segmv3.training.optim import SGD, Schedule, build_optimizer
from segmv3.training.processes import Setup, everywhere
from segmv3.training.recompute import recompute
from segmv3.training.sync_bn import synchronise
from segmv3.training.task import Net
from segmv3.weights.transfer import start_from


@dataclass
class State:
    """What a step reads and changes.

    Attributes:
        net: what is scored and kept.
        model: the same behind Fabric, with whatever else only training has; its weights are saved.
        optimizer: over the parameters of `model`.
        scaler: of the loss, in fp16 only.
        average: follows `net` where the schedule asks for it; then it is what is scored and kept.
        compilation: of the method of the net that a step calls.
        freezing: of parts of the net.
        origin: of the weights that training started from, licence included.
        step: optimiser steps done.
        seconds: of training so far.
        evaluations: their entries in the log.
        saved_step: where the newest training state stands; 0 where there is none.
        extended_at: step at which the run was last given more steps; patience counts from there.
    """

    net: Net
    model: _FabricModule
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    average: MovingAverage[Net] | None
    compilation: Compilation
    freezing: Freezing
    origin: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    saved_step: int = 0
    extended_at: int = 0

    @property
    def scored(self) -> Net:
        """The net whose weights are scored and kept."""
        return self.average.net if self.average else self.net

    @property
    def kept(self) -> str:
        """What an error says of the work so far."""
        return f"the state of step {self.saved_step:,} is kept" if self.saved_step else "no state was saved yet"

    def evaluation_is_due(self, schedule: Schedule) -> bool:
        """A pure function of what was done, so that an interrupted evaluation is simply due again."""
        planned = self.step > 0 and (self.step % schedule.eval_every == 0 or self.step == schedule.steps)
        return planned and not any(entry["step"] == self.step for entry in self.evaluations)

    def best_step(self, key: str) -> int:
        """The step of the best score so far, the first of equal ones."""
        return max(self.evaluations, key=lambda entry: entry[key])["step"]

    def is_out_of_patience(self, key: str, patience: int) -> bool:
        """Whether so many evaluations in a row brought no better score: a function of the scores, as they are saved."""
        if not patience or not self.evaluations:
            return False
        since = max(self.best_step(key), self.extended_at)
        return sum(entry["step"] > since for entry in self.evaluations) >= patience

    def to_dict(self) -> dict[str, Any]:
        """The training state as it is saved."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "origin": self.origin,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "compiled": self.compilation.used,
        }
        if self.scaler:
            state["scaler"] = self.scaler.state_dict()
        if self.average:
            state["average"] = self.average.net.state_dict()
        return state

    def from_dict(self, state: dict[str, Any]) -> None:
        """Take over what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: where it is of another net.
        """
        self.step = self.saved_step = state["step"]
        self.seconds, self.evaluations, self.origin = state["seconds"], state["evaluations"], state["origin"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():  # torch looks at their number alone
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"{name} of a parameter of shape {list(parameter.shape)} is {list(value.shape)}")
        self.compilation.used = state["compiled"]
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.net.load_state_dict(state["average"])


def fresh(setup: Setup) -> State:
    """The state of step 0: the net of the task, with pretrained weights where the config names some."""
    fabric, config, task, say = setup.fabric, setup.config, setup.task, setup.console.say
    schedule, origin = config.schedule, {}
    torch.manual_seed(config.seed)
    net = task.build(config.data.batch_size // schedule.accumulate)
    if config.model.pretrained and not checkpoint.saved_steps(setup.run.states):  # a state holds all its weights
        names = task.classes.names if isinstance(task.classes, Classes) else task.classes
        origin = start_from(net, config.model.pretrained, say, tuple(names))
    average = MovingAverage(net, schedule.ema, fabric.device) if schedule.ema else None
    module = task.wrap(net).to(memory_format=torch.channels_last)
    if fabric.world_size > 1:
        module = synchronise(module, fabric.device)
    freezing = Freezing(net, config.freeze, shared=fabric.world_size > 1)  # synchronised BN has new modules
    if config.recompute:
        recompute(net)
    compilation = Compilation(
        module,
        task.entry,
        config.compile,
        device=fabric.device,
        everywhere=lambda value: everywhere(fabric, value, "max"),
        say=say,
    )
    scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)  # fp16 has one
    # a fused optimiser takes the scale out of the gradients itself: too late to clip them
    # and torch's fused SGD fails where some parameters of a group have no momentum yet, as those that thaw
    thaws = config.freeze.thaw_at is not None and isinstance(config.optim, SGD)
    optimizer = build_optimizer(module, config.optim, fused=not thaws and not (scaler and schedule.clip_norm))
    model, optimizer = fabric.setup(module, optimizer)
    if task.entry != "forward":
        model.mark_forward_method(task.entry)
    return State(net, model, optimizer, scaler, average, compilation, freezing, origin)


def save(state: State, setup: Setup) -> None:
    """Write the training state; every process waits until it is safe."""
    if setup.fabric.is_global_zero:
        checkpoint.save_state(setup.run.states, state.step, state.to_dict())
    state.saved_step = state.step
    setup.fabric.barrier()


def restore(state: State, setup: Setup) -> None:
    """Go on from the newest training state, where there is one.

    Raises:
        CheckpointError: it is of another net, or not the same on all processes.
    """
    run, say = setup.run, setup.console.say
    saved = checkpoint.load_state(run.states, say)
    if saved is not None:
        try:
            state.from_dict(saved)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the state of step {saved['step']:,} in {run.states} is of another net "
                f"({checkpoint.one_line(error)}); start again with another --run"
            ) from None
        say(f"resuming {run.folder} at step {state.step:,} of {setup.config.schedule.steps:,}")
    steps = [int(everywhere(setup.fabric, torch.tensor(sign * state.step), "max").item()) for sign in (1, -1)]
    if steps[0] != -steps[1]:
        raise CheckpointError(f"processes see different states in {run.states}; they must share this folder")
    if setup.fabric.is_global_zero:
        run.log.rewind(state.step, {entry["step"] for entry in state.evaluations})
