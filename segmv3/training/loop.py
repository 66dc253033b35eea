"""The training loop. Devices, precision and processes are lightning-fabric's; this is the file that knows it."""

import json
import logging
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from segmv3 import checkpoint
from segmv3.config import Classification, Config, Device, TrainingPrecision, to_dict
from segmv3.data.loader import (
    Batch,
    Photometric,
    kill_workers,
    refuse_workers_beyond_memory,
    shard,
    train_batches,
    waiting_advice,
)
from segmv3.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    NumericsError,
    OutOfMemoryError,
    ResourceError,
    Segmv3Error,
    is_out_of_memory,
)
from segmv3.files import write_bytes
from segmv3.runtime import use_device
from segmv3.training.average import MovingAverage, same_on_all_processes
from segmv3.training.tensorboard import Board, require_tensorboard
from segmv3.training.compiling import Compilation
from segmv3.training.progress import RunConsole, RunLog
from segmv3.training.optim import build_optimizer, lr_at, set_lr
from segmv3.training.photometric import adjust
from segmv3.training.recompute import recompute
from segmv3.training.run import Run
from segmv3.training.signals import StopRequest
from segmv3.training.sync_bn import synchronise
from segmv3.training.tasks import Net, Task, task_of
from segmv3.weights.transfer import start_from

_SMALLEST_SCALE = 2.0**-24  # of the loss in fp16; what overflows below it is no gradient that scaling could save
_HINT = "Try --precision fp32 or a lower --optim.lr"


def train(
    config: Config | Classification,
    folder: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    extend: bool = False,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a net, or go on with the run in `folder` where it stopped.

    Under `torchrun` every process trains on its slice of each batch. On a CPU with equal thread count an
    interrupted run ends in the same bits as an unbroken one.

    Args: quiet: no lines and no progress bar. tensorboard: write `tensorboard/` into the folder. extend: allow more
        steps than the run was started with; the rate goes on along the new schedule. on_evaluation: told the step and
        the score of each evaluation once the state is saved; what it raises ends the run there.
    Returns: the scores of the best weights, as in `metrics.json`.
    Raises: DataError, ConfigError, ModelError, OutputError before anything is trained; Interrupted once the
        work is saved; NumericsError when the loss is not finite, with the last good state kept.
    """
    if tensorboard:
        require_tensorboard()
    fabric = _launch(config, use_device(device, threads))
    _refuse_workers(config, fabric)
    task = task_of(config)
    settings = to_dict(config) | {
        "train_set": task.train_set.fingerprint(),
        "val_set": task.val_set.fingerprint(),
        "processes": fabric.world_size,
        **task.sources,
    }
    run = Run(folder)
    before = run.check(settings, extend=extend)
    with RunConsole(config.schedule.steps, quiet=quiet or not fabric.is_global_zero) as console:
        if run.finished() and not before:
            best = run.metrics(task.metric.key)
            console.say(f"{folder} is finished: {_headline(task, best)}")
            return best
        training = _Training(fabric, config, run, console, task, on_evaluation, tensorboard)
        fabric.barrier()  # nobody writes before everybody has looked
        if fabric.is_global_zero:
            task.check(console.task, console.say)
            settings["contents"] = task.contents()
        with run.claimed(settings, extend=extend) if fabric.is_global_zero else nullcontext():
            fabric.barrier()
            task.prepare(first=fabric.is_global_zero, everywhere=lambda value: training.reduce(value, "sum"))
            training.restore()
            if before and fabric.is_global_zero:
                run.extend(settings, before, training.step)
                training.tell_extension(before)
            return training.complete()


def _refuse_workers(config: Config | Classification, fabric: Fabric) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    mine = config.data.batch_size * here // fabric.world_size  # images of a step that this machine prepares
    refuse_workers_beyond_memory(replace(config.data, batch_size=mine), here)


def _launch(config: Config | Classification, device: torch.device) -> Fabric:
    """One process, or as many as torchrun started."""
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
    return fabric


_PRECISIONS: dict[TrainingPrecision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


class _Training:
    """Everything the loop holds while it runs."""

    def __init__(
        self,
        fabric: Fabric,
        config: Config | Classification,
        run: Run,
        console: RunConsole,
        task: Task,
        on_evaluation: Callable[[int, float], None] | None,
        tensorboard: bool,
    ) -> None:
        self.on_evaluation = on_evaluation
        self.fabric, self.config, self.run, self.console, self.task = fabric, config, run, console, task
        self.schedule = config.schedule
        self.log = RunLog(run.log_file)
        self.origin: dict[str, Any] = {}  # of the weights that training started from, licence included
        torch.manual_seed(config.seed)
        self.net = task.build(config.data.batch_size // self.schedule.accumulate)
        if config.model.pretrained and not checkpoint.saved_steps(run.states):  # a state holds all its weights
            names: tuple[str, ...] = tuple(task.classes.names if hasattr(task.classes, "names") else task.classes)
            self.origin = start_from(self.net, config.model.pretrained, console.say, names)
        self.average = MovingAverage(self.net, self.schedule.ema, fabric.device) if self.schedule.ema else None
        self.trained = task.trained(self.net).to(memory_format=torch.channels_last)
        if fabric.world_size > 1:
            self.trained = synchronise(self.trained, fabric.device)
        if config.recompute:
            recompute(self.net)
        self.compilation = Compilation(
            self.trained,
            task.entry,
            config.compile,
            device=fabric.device,
            everywhere=lambda value: self.reduce(value, "max"),
            say=console.say,
        )
        self.scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)  # fp16 has one
        # a fused optimiser takes the scale out of the gradients itself: too late to clip them
        optimizer = build_optimizer(self.trained, config.optim, fused=not (self.scaler and self.schedule.clip_norm))
        self.model, self.optimizer = fabric.setup(self.trained, optimizer)
        if task.entry != "forward":
            self.model.mark_forward_method(task.entry)
        self.step = 0
        self.evaluations: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.saved_step = self.first_step = 0
        self.advised = False
        self.tensorboard = tensorboard and fabric.is_global_zero
        self.board: Board | None = None

    def complete(self) -> dict[str, Any]:
        """The loop, from where `restore` left it."""
        self.first_step = self.step
        self.board = Board(self.run.folder / "tensorboard", self.step) if self.tensorboard else None
        self.console.begin(self.step)
        schedule, began, meter = self.schedule, time.monotonic() - self.seconds, _Meter(self.step)
        with self._failing_in_one_line(), StopRequest(kill_workers) as stop:
            batches = iter(self._batches())
            while True:
                self.seconds = time.monotonic() - began
                if self._evaluation_is_due():
                    if not self.saved_step:  # weights without a state to go on from could not be resumed
                        self._save()
                    self._evaluate(stop)
                    self._save()
                    if self.on_evaluation:
                        self.on_evaluation(self.step, self.evaluations[-1][self.task.metric.key])
                    meter = _Meter(self.step)
                if self.step == schedule.steps:
                    break

                with meter.waiting():
                    batch = self._next(batches, meter)
                lr = lr_at(self.step, self.config.optim.lr, schedule)
                set_lr(self.optimizer, lr)
                with self.compilation.step():
                    loss = self._backward(batch)
                    if schedule.clip_norm:
                        self._clip(schedule.clip_norm)
                    moved = self._update()
                    meter.skipped += not moved
                    self.optimizer.zero_grad()
                if self.average and moved:
                    self.average.update(self.net, self.step)
                self.step += 1
                meter.add(loss)

                if self.step % schedule.log_every == 0 or self._evaluation_is_due():
                    self._write_log(meter, lr)
                    meter = _Meter(self.step)
                if signal_number := self._agreed(stop):
                    self._leave(meter, signal_number)
                if self.step % schedule.save_every == 0 and not self._evaluation_is_due():
                    self._finite_losses(meter)
                    self._save()
                self.console.step(self.step)
        best = self.run.metrics(self.task.metric.key)
        if self.fabric.is_global_zero:
            with self.console.task("report") as progress:
                self.task.report(self.run, self.log.entries(), self.fabric.device, progress)
            self.console.say(f"best: {_headline(self.task, best)}; wrote {self.run.best} and {self.run.report}")
        self.fabric.barrier()
        return best

    def _batches(self) -> Iterable[Batch]:
        loader = train_batches(
            self.task.train_set,
            self.config.data,
            seed=self.config.seed,
            start=self.step,
            stop=self.schedule.steps,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            pin_memory=self.fabric.device.type == "cuda",
        )
        return cast(Iterable[Batch], self.fabric.setup_dataloaders(loader, use_distributed_sampler=False))

    def _next(self, batches: Iterator[Batch], meter: "_Meter") -> Batch:
        try:
            return next(batches)
        except DataError as error:  # a file that broke since the check, or was not looked at by it
            if self.fabric.world_size == 1 and self.step > self.saved_step:  # the others would wait at the barrier
                self._finite_losses(meter)
                self._save()
            traceback.clear_frames(error.__traceback__)  # else the workers wait 20 s for the garbage collector
            line = str(error).strip().rpartition(f"{DataError.area}: ")[2]  # torch puts a worker's traceback before it
            raise DataError(f"{line}; {self._kept()}") from None

    @contextmanager
    def _failing_in_one_line(self) -> Iterator[None]:
        """What the machine does to a run. Torch tells of a dead worker wherever in a step the main thread is."""
        try:
            yield
        except Segmv3Error:
            raise
        except Exception as error:
            died = _dead_worker(error)
            if not died and not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # as in `_next`
            where = f"in step {self.step + 1:,}; {self._kept()}"
            advice = "fewer --data.workers need less memory and less of /dev/shm"
            if died:
                raise ResourceError(f"a data worker died or hung ({died}) {where}. Try again; {advice}") from None
            raise OutOfMemoryError(f"out of memory {where}. Use a smaller batch or crop; {advice}") from None

    def _kept(self) -> str:
        return f"the state of step {self.saved_step:,} is kept" if self.saved_step else "no state was saved yet"

    def _backward(self, batch: Batch) -> Tensor:
        """The gradient of a step, part by part where the batch is accumulated; returns the loss.

        It is a mean over the labelled pixels, or pictures, of all parts and processes; DDP's mean over processes is
        undone first.
        """
        self.model.train()
        # dropout, too, is a function of the step, so that a resumed run draws what an unbroken one would
        seed = np.random.SeedSequence([self.config.seed, 2, self.step, self.fabric.global_rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        parts = self.schedule.accumulate
        known = self.task.counts(batch[1]) if parts > 1 else None
        known = None if known is None else self.reduce(known, "sum")
        losses = []
        for number, (images, targets, photometric) in enumerate(_parts(batch, parts), 1):
            images = adjust(images, photometric) if photometric else images
            with self.fabric.no_backward_sync(self.model, enabled=number < parts):
                terms = self.task.loss(self._outputs, images.contiguous(memory_format=torch.channels_last), targets)
                if known is not None:
                    counts = known
                else:  # of the only part; or of parts that nobody could count before: their means are averaged
                    counts = self.reduce(torch.stack([term.count.double() for term in terms]), "sum") * parts
                # without a labelled pixel both are 0, and so is the loss; with class weights the count may be below 1
                counts = counts.where(counts > 0, 1)
                means = [
                    term.total * self.fabric.world_size / count.to(term.total) * term.weight
                    for term, count in zip(terms, counts, strict=True)
                ]
                loss = torch.stack(means).sum()
                self.fabric.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _outputs(self, images: Tensor) -> Tensor | list[Tensor]:
        """What the net gives in a training step, float32, calculated in the precision of the config."""
        with self.fabric.autocast():  # on one device Fabric itself does so for a module's `forward` alone
            outputs = getattr(self.model, self.task.entry)(images)
        return self.fabric.strategy.precision.convert_output(outputs)

    def _update(self) -> bool:
        """Step the optimiser; whether it moved: fp16's loss scaler skips a step whose gradients overflow."""
        if not self.scaler:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()  # the host waits here, in fp16 only
        self.optimizer.step()
        scale = self.scaler.get_scale()
        if scale < _SMALLEST_SCALE:
            raise NumericsError(f"all gradients overflow in fp16 at step {self.step + 1:,}; {self._kept()}. {_HINT}")
        return scale >= before  # a skipped step, and nothing else, halves it

    def _evaluation_is_due(self) -> bool:
        """A pure function of what was done, so that an interrupted evaluation is simply due again."""
        planned = self.step > 0 and (self.step % self.schedule.eval_every == 0 or self.step == self.schedule.steps)
        return planned and not any(entry["step"] == self.step for entry in self.evaluations)

    def _evaluate(self, stop: StopRequest) -> None:
        """Score the raw net (or its average) in fp32 on unpadded shards; keep it when it is the best so far."""
        began, task, metric = time.monotonic(), self.task, self.task.metric
        net = self.average.net if self.average else self.net
        net.eval()
        if self.fabric.world_size > 1:
            same_on_all_processes(net)  # score what is saved
        with self.console.task("evaluate") as progress:

            def on_image(done: int, total: int) -> None:
                progress(done, total)
                if stop.signal and self.fabric.world_size == 1:
                    self._leave(_Meter(self.step), stop.signal)

            mine = shard(len(task.val_set), self.fabric.global_rank, self.fabric.world_size)
            counts = task.count(net, self.fabric.device, mine, on_image)
        result = task.scores(self.reduce(counts, "sum").cpu())
        seconds = round(time.monotonic() - began, 3)
        entry = {"event": "eval", "step": self.step, **{key: result[key] for key in metric.logged}, "seconds": seconds}
        improved = all(result[metric.key] > before[metric.key] for before in self.evaluations)
        self.evaluations.append(entry)
        if self.fabric.is_global_zero:
            if improved or not self.run.best.is_file():
                self._keep(net, result)
            self.log.add(**entry)
        if self.board:
            self.board.add_classes(result.get("classes", []), self.step)
            panel = task.samples(net, self.fabric.device)
            if panel is not None:
                self.board.add_samples(panel, self.step)
            self.board.add(entry)
        self.console.say(
            f"step {self.step:,}/{self.schedule.steps:,}  {metric.name} {result[metric.key]:.2f} % on "
            f"{result['images']:,} images of {result['split']}{_without(result)}{' (best so far)' if improved else ''}"
        )

    def _keep(self, net: Net, result: dict[str, Any]) -> None:
        facts = {"step": self.step, "net": self.task.net_name, "config": to_dict(self.config)}
        if self.origin:
            facts["pretrained"] = self.origin
        score = {key: result[key] for key in self.task.metric.recorded}
        checkpoint.save(net, self.run.best, classes=self.task.classes, score=score, **facts)
        result = facts | {"device": _describe(self.fabric.device), "seconds": round(self.seconds)} | result
        write_bytes(self.run.metrics_file, json.dumps(result, indent=2).encode())

    def reduce(self, value: Tensor, operation: Literal["sum", "max"]) -> Tensor:
        """The sum or max over all processes. Fabric's own makes everybody wait at a barrier first."""
        value = value.to(self.fabric.device)
        if self.fabric.world_size > 1:
            how = torch.distributed.ReduceOp.SUM if operation == "sum" else torch.distributed.ReduceOp.MAX
            torch.distributed.all_reduce(value, how)
        return value

    def _agreed(self, stop: StopRequest) -> int:
        """The signal to obey now, the same on all processes; several of them ask each other every tenth step."""
        if self.fabric.world_size == 1:
            return stop.signal
        return int(self.reduce(torch.tensor(stop.signal), "max").item()) if self.step % 10 == 0 else 0

    def _clip(self, norm: float) -> None:
        # a gradient that is not finite must not raise here, where the host would wait for it: the loss tells
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=norm, error_if_nonfinite=False)

    def _write_log(self, meter: "_Meter", lr: float) -> None:
        """Log the mean loss since the last line."""
        losses = self._finite_losses(meter)
        images = len(losses) * self.config.data.batch_size
        wait = meter.waited / meter.seconds()
        entry = {
            "event": "train",
            "step": self.step,
            "loss": sum(losses) / len(losses),
            "lr": lr,
            "images_per_second": round(images / meter.seconds(), 2),
            "wait": round(wait, 4),
        }
        if self.scaler:
            entry["skipped"] = meter.skipped
        if self.fabric.is_global_zero:
            self.log.add(**entry)
        if self.board:
            self.board.add(entry)
        left = (self.schedule.steps - self.step) * meter.seconds() / len(losses)
        self.console.train_line(entry, left)
        # once, and not for the first line, which waits for the workers to start
        if not self.advised and meter.first_step > self.first_step:
            advice = waiting_advice(wait, self.config.data)
            self.advised = bool(advice)
            if advice:
                self.console.say(advice)

    def _finite_losses(self, meter: "_Meter") -> list[float]:
        """The losses so far, over all processes; only here, before logs and saves, does the host wait for them."""
        if not meter.losses:
            return []
        losses: list[float] = (self.reduce(torch.stack(meter.losses), "sum") / self.fabric.world_size).tolist()
        for step, loss in enumerate(losses, meter.first_step + 1):
            if not math.isfinite(loss):
                raise NumericsError(f"the loss became {loss} at step {step:,}; {self._kept()}. {_HINT}")
        return losses

    def _save(self) -> None:
        """Write the training state; every process waits until it is safe."""
        if self.fabric.is_global_zero:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "evaluations": self.evaluations,
                "origin": self.origin,
                "model": self.trained.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "compiled": self.compilation.used,
            }
            if self.scaler:
                state["scaler"] = self.scaler.state_dict()
            if self.average:
                state["average"] = self.average.net.state_dict()
            checkpoint.save_state(self.run.states, self.step, state)
        self.saved_step = self.step
        self.fabric.barrier()

    def restore(self) -> None:
        """Go on from the newest training state, where there is one."""
        state = checkpoint.load_state(self.run.states, self.console.say)
        if state is not None:
            try:
                self._take(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"the state of step {state['step']:,} in {self.run.states} is of another net "
                    f"({checkpoint.one_line(error)}); start again with another --run"
                ) from None
            self.console.say(f"resuming {self.run.folder} at step {self.step:,} of {self.schedule.steps:,}")
        steps = [int(self.reduce(torch.tensor(sign * self.step), "max").item()) for sign in (1, -1)]
        if steps[0] != -steps[1]:
            raise CheckpointError(f"processes see different states in {self.run.states}; they must share this folder")
        if self.fabric.is_global_zero:
            self.log.rewind(self.step, {entry["step"] for entry in self.evaluations})

    def _take(self, state: dict[str, Any]) -> None:
        self.saved_step = state["step"]
        self.step, self.seconds, self.evaluations = state["step"], state["seconds"], state["evaluations"]
        self.trained.load_state_dict(state["model"])
        self.origin = state["origin"]
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

    def tell_extension(self, before: int) -> None:
        """What more steps do to the rate, in the log and on the screen."""
        schedules = replace(self.schedule, steps=before), self.schedule
        old, new = (lr_at(min(self.step, each.steps - 1), self.config.optim.lr, each) for each in schedules)
        self.log.add(event="extend", step=self.step, **{"from": before, "to": self.schedule.steps})
        self.console.say(
            f"extending {self.run.folder} from {before:,} to {self.schedule.steps:,} steps at step {self.step:,}: "
            f"the rate goes on along the new schedule ({old:.2e} -> {new:.2e})"
        )

    def _leave(self, meter: "_Meter", signal_number: int) -> None:
        if self.saved_step != self.step:
            self._finite_losses(meter)
            self._save()
        raise Interrupted(f"saved at step {self.step:,} in {self.run.folder}; the same command goes on", signal_number)


def _dead_worker(error: Exception) -> str:
    """What is known of the end of a data worker; empty for any other error."""
    if found := re.search(r"DataLoader (worker \(pid.*|timed out.*)", str(error)):
        return found[0].partition(". ")[0].rstrip(". ")
    lost = isinstance(error, ConnectionError | EOFError | BlockingIOError)  # on the way from it, or it cannot start
    return f"{type(error).__name__}: {error}" if lost else ""


class _Meter:
    """Losses and times of the steps since the last log line."""

    def __init__(self, step: int) -> None:
        self.first_step = step
        self.losses: list[Tensor] = []
        self.waited = 0.0
        self.skipped = 0
        """Steps whose gradients overflowed in fp16."""
        self._began = time.monotonic()

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())  # not .item(): that would make the device wait

    @contextmanager
    def waiting(self) -> Iterator[None]:
        since = time.monotonic()
        yield
        self.waited += time.monotonic() - since

    def seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._began)


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """A batch in equal parts."""
    images, targets, photometric = batch
    columns = [[None] * count if each is None else each.chunk(count) for each in photometric or ()]
    colors: list[Any] = list(zip(*columns, strict=True)) or [None] * count
    for some, theirs, change in zip(images.chunk(count), targets.chunk(count), colors, strict=True):
        yield some, theirs, Photometric(*change) if change else None


def _headline(task: Task, result: dict[str, Any]) -> str:
    score = f"{result[task.metric.key]:.2f} % {task.metric.name}"
    return f"{score} on {result['split']}{_without(result)} at step {result['step']:,}"


def _without(result: dict[str, Any]) -> str:
    """` without road, sky (absent)`, where a mean leaves classes out."""
    absent = result.get("absent") or []
    return f" without {', '.join(absent)} (absent)" if absent else ""


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
