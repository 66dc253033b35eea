"""The training loop. Devices, precision and processes are lightning-fabric's; this is the file that knows it."""

import json
import logging
import math
import os
import re
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from segmv3 import checkpoint
from segmv3.config import Classification, Config, Device, to_dict
from segmv3.data.loader import Batch, shard, train_batches
from segmv3.errors import CheckpointError, ConfigError, DataError, Interrupted, NumericsError, ResourceError
from segmv3.files import write_bytes
from segmv3.runtime import use_device
from segmv3.training.average import MovingAverage, same_on_all_processes
from segmv3.training.console import RunConsole, RunLog
from segmv3.training.optim import build_optimizer, lr_at
from segmv3.training.run import Run
from segmv3.training.signals import StopRequest
from segmv3.training.tasks import Net, Task, task_of
from segmv3.weights.transfer import start_from


def train(
    config: Config | Classification, folder: Path, *, device: Device = "auto", threads: int | None = None
) -> dict[str, Any]:
    """Train a net, or go on with the run in `folder` where it stopped.

    Under `torchrun` every process trains on its slice of each batch. On a CPU with equal thread count an
    interrupted run ends in the same bits as an unbroken one.

    Returns: the scores of the best weights, as in `metrics.json`.
    Raises: DataError, ConfigError, ModelError, OutputError before anything is trained; Interrupted once the
        work is saved; NumericsError when the loss is not finite, with the last good state kept.
    """
    fabric = _launch(config, use_device(device, threads))
    task = task_of(config)
    settings = to_dict(config) | {
        "train_set": task.train_set.fingerprint(),
        "val_set": task.val_set.fingerprint(),
        "processes": fabric.world_size,
    }
    run = Run(folder)
    run.check(settings)
    with RunConsole(config.schedule.steps, quiet=not fabric.is_global_zero) as console:
        if run.finished():
            best = run.metrics()
            console.say(f"{folder} is finished: {_headline(task, best)}")
            return best
        training = _Training(fabric, config, run, console, task)
        fabric.barrier()  # nobody writes before everybody has looked
        if fabric.is_global_zero:
            task.check(console.task)
            run.start(settings)
        fabric.barrier()
        return training.complete()


def _launch(config: Config | Classification, device: torch.device) -> Fabric:
    """One process, or as many as torchrun started."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise ResourceError(f"{here} processes were started here for {torch.cuda.device_count()} GPUs")
    if config.data.batch_size % processes:
        raise ConfigError(f"data.batch-size {config.data.batch_size} cannot be shared by {processes} processes")
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=processes // here,
        strategy="ddp" if processes > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


class _Training:
    """Everything the loop holds while it runs."""

    def __init__(
        self,
        fabric: Fabric,
        config: Config | Classification,
        run: Run,
        console: RunConsole,
        task: Task,
    ) -> None:
        self.fabric, self.config, self.run, self.console, self.task = fabric, config, run, console, task
        self.schedule = config.schedule
        self.log = RunLog(run.log_file)
        self.origin: dict[str, Any] = {}  # of the weights that training started from, licence included
        torch.manual_seed(config.seed)
        self.net = task.build(config.data.batch_size // fabric.world_size)
        if config.model.pretrained and not checkpoint.saved_steps(run.states):  # a state holds all its weights
            self.origin = start_from(self.net, config.model.pretrained, console.say)
        self.average = MovingAverage(self.net, self.schedule.ema, fabric.device) if self.schedule.ema else None
        trained: nn.Module = self.net.to(memory_format=torch.channels_last)
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # SyncBatchNorm does not run on a CPU
            trained = nn.SyncBatchNorm.convert_sync_batchnorm(trained)
        self.model, self.optimizer = fabric.setup(trained, build_optimizer(trained, config.optim))
        if task.entry != "forward":
            self.model.mark_forward_method(task.entry)
        self.step = 0
        self.evaluations: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.saved_step = 0

    def complete(self) -> dict[str, Any]:
        """The loop."""
        self._restore()
        self.console.begin(self.step)
        schedule, began, meter = self.schedule, time.monotonic() - self.seconds, _Meter(self.step)
        with StopRequest() as stop:
            batches = iter(self._batches())
            while True:
                self.seconds = time.monotonic() - began
                if self._evaluation_is_due():
                    self._evaluate(stop)
                    self._save()
                    meter = _Meter(self.step)
                if self.step == schedule.steps:
                    break

                with meter.waiting():
                    images, targets = self._next(batches, meter)  # uint8 N x 3 x H x W, int64 N (x H x W)
                lr = lr_at(self.step, self.config.optim.lr, schedule)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                loss = self._loss(images, targets)
                self.fabric.backward(loss)
                if schedule.clip_norm:
                    self._clip(schedule.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.average:
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
        best = self.run.metrics()
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
        except RuntimeError as error:  # all that torch says of a worker that is killed or hangs
            if not re.search(r"DataLoader (worker \(pid|timed out)", str(error)):
                raise
            what = f"a data worker died or hung before step {self.step + 1:,} ({str(error).splitlines()[0]})"
            raise ResourceError(f"{what}; {self._kept()}. Fewer --data.workers need less memory") from None

    def _kept(self) -> str:
        return f"the state of step {self.saved_step:,} is kept" if self.saved_step else "no state was saved yet"

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean over the labelled pixels, or pictures, of all processes; DDP's mean over processes is undone first."""
        self.model.train()
        # dropout, too, is a function of the step, so that a resumed run draws what an unbroken one would
        seed = np.random.SeedSequence([self.config.seed, 2, self.step, self.fabric.global_rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        total, count = self.task.loss(self.model, images.contiguous(memory_format=torch.channels_last), targets)
        everywhere = self._reduce(count, "sum")
        return total * self.fabric.world_size / everywhere.clamp(min=1)

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
        result = task.scores(self._reduce(counts, "sum").cpu())
        seconds = round(time.monotonic() - began, 3)
        entry = {"event": "eval", "step": self.step, **{key: result[key] for key in metric.logged}, "seconds": seconds}
        improved = all(result[metric.key] > before[metric.key] for before in self.evaluations)
        self.evaluations.append(entry)
        if self.fabric.is_global_zero:
            if improved or not self.run.best.is_file():
                self._keep(net, result)
            self.log.add(**entry)
        self.console.say(
            f"step {self.step:,}/{self.schedule.steps:,}  {metric.name} {result[metric.key]:.2f} % on "
            f"{result['images']:,} images of {result['split']}{' (best so far)' if improved else ''}"
        )

    def _keep(self, net: Net, result: dict[str, Any]) -> None:
        facts = {"step": self.step, "net": self.task.net_name, "config": to_dict(self.config)}
        if self.origin:
            facts["pretrained"] = self.origin
        score = {key: result[key] for key in self.task.metric.recorded}
        checkpoint.save(net, self.run.best, classes=self.task.classes, score=score, **facts)
        result = facts | {"device": _describe(self.fabric.device), "seconds": round(self.seconds)} | result
        write_bytes(self.run.metrics_file, json.dumps(result, indent=2).encode())

    def _reduce(self, value: Tensor, operation: Literal["sum", "max"]) -> Tensor:
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
        return int(self._reduce(torch.tensor(stop.signal), "max").item()) if self.step % 10 == 0 else 0

    def _clip(self, norm: float) -> None:
        # a gradient that is not finite must not raise here, where the host would wait for it: the loss tells
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=norm, error_if_nonfinite=False)

    def _write_log(self, meter: "_Meter", lr: float) -> None:
        """Log the mean loss since the last line."""
        losses = self._finite_losses(meter)
        images = len(losses) * self.config.data.batch_size
        entry = {
            "event": "train",
            "step": self.step,
            "loss": sum(losses) / len(losses),
            "lr": lr,
            "images_per_second": round(images / meter.seconds(), 2),
            "wait": round(meter.waited / meter.seconds(), 4),
        }
        if self.fabric.is_global_zero:
            self.log.add(**entry)
        left = (self.schedule.steps - self.step) * meter.seconds() / len(losses)
        self.console.train_line(entry, left)

    def _finite_losses(self, meter: "_Meter") -> list[float]:
        """The losses so far, over all processes; only here, before logs and saves, does the host wait for them."""
        if not meter.losses:
            return []
        losses: list[float] = (self._reduce(torch.stack(meter.losses), "sum") / self.fabric.world_size).tolist()
        for step, loss in enumerate(losses, meter.first_step + 1):
            if not math.isfinite(loss):
                hint = "Try --precision fp32 or a lower --optim.lr"
                raise NumericsError(f"the loss became {loss} at step {step:,}; {self._kept()}. {hint}")
        return losses

    def _save(self) -> None:
        """Write the training state; every process waits until it is safe."""
        if self.fabric.is_global_zero:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "evaluations": self.evaluations,
                "origin": self.origin,
                "model": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            if self.average:
                state["average"] = self.average.net.state_dict()
            checkpoint.save_state(self.run.states, self.step, state)
        self.saved_step = self.step
        self.fabric.barrier()

    def _restore(self) -> None:
        state = checkpoint.load_state(self.run.states, self.console.say)
        if state is not None:
            self.saved_step = state["step"]
            self.step, self.seconds, self.evaluations = state["step"], state["seconds"], state["evaluations"]
            self.net.load_state_dict(state["model"])
            self.origin = state["origin"]
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.net.load_state_dict(state["average"])
            self.console.say(f"resuming {self.run.folder} at step {self.step:,} of {self.schedule.steps:,}")
        steps = [int(self._reduce(torch.tensor(sign * self.step), "max").item()) for sign in (1, -1)]
        if steps[0] != -steps[1]:
            raise CheckpointError(f"processes see different states in {self.run.states}; they must share this folder")
        if self.fabric.is_global_zero:
            self.log.rewind(self.step, {entry["step"] for entry in self.evaluations})

    def _leave(self, meter: "_Meter", signal_number: int) -> None:
        if self.saved_step != self.step:
            self._finite_losses(meter)
            self._save()
        raise Interrupted(f"saved at step {self.step:,} in {self.run.folder}; the same command goes on", signal_number)


class _Meter:
    """Losses and times of the steps since the last log line."""

    def __init__(self, step: int) -> None:
        self.first_step = step
        self.losses: list[Tensor] = []
        self.waited = 0.0
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


def _headline(task: Task, result: dict[str, Any]) -> str:
    return f"{result[task.metric.key]:.2f} % {task.metric.name} on {result['split']} at step {result['step']:,}"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
