"""Training a net: `step` computes, `_fit` repeats it and looks after the run, `train` prepares both."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from segmv3.config import Device, find_config, load_config
from segmv3.data.loader import Batch, Photometric, batches, kill_workers
from segmv3.errors import NumericsError
from segmv3.runtime import use_device
from segmv3.settings import to_dict
from segmv3.training.experiment import Experiment
from segmv3.training.failures import in_one_line, leave, next_batch
from segmv3.training.journal import HINT, Journal, Stepped
from segmv3.training.losses import Seen
from segmv3.training.optim import lr_at, set_lr
from segmv3.training.photometric import adjust
from segmv3.training.processes import Setup, agreed, class_pixels_of, everywhere, launch
from segmv3.training.progress import RunConsole
from segmv3.training.run import Run, Trained
from segmv3.training.signals import StopRequest
from segmv3.training.state import State, fresh, restore, save
from segmv3.training.trackers import Tracker, open_trackers
from segmv3.training.validation import evaluate, headline

_SMALLEST_SCALE = 2.0**-24  # of the loss in fp16; what overflows below it is no gradient that scaling could save


def step(state: State, batch: Batch, setup: Setup) -> Stepped:
    """One step of the optimiser: forward and backward for each part of the batch, then the update.

    The loss is a sum of means over the labelled pixels, or pictures, of all parts and processes.
    """
    fabric, config, task = setup.fabric, setup.config, setup.task
    model, optimizer, parts = state.model, state.optimizer, config.schedule.accumulate
    lr = lr_at(state.step, config.optim.lr, config.schedule) * config.optim.scale(config.data.batch_size)
    set_lr(optimizer, lr)
    model.train()
    state.freezing.apply(state.step)
    # dropout, too, is a function of the step, so that a resumed run draws what an unbroken one would
    seed = np.random.SeedSequence([config.seed, 2, state.step, fabric.global_rank])
    torch.manual_seed(int(seed.generate_state(1)[0]))
    losses = []
    with state.compilation.step():
        whole = _denominators(setup, batch[1]) if parts > 1 else None
        for number, (images, targets, photometric) in enumerate(_parts(batch, parts), 1):
            images = adjust(images, photometric) if photometric else images
            images = images.contiguous(memory_format=torch.channels_last)
            with fabric.no_backward_sync(model, enabled=number < parts):
                # forward, in the precision of the config; on one device Fabric itself does so for `forward` alone
                with fabric.autocast():
                    outputs = getattr(model, task.entry)(images)
                outputs = fabric.strategy.precision.convert_output(outputs)
                logits, *auxiliary = outputs if isinstance(outputs, list) else [outputs]

                # the loss, float32
                sums = [term.sums(Seen(images, targets, logits, auxiliary)) for term in task.terms]
                counts = whole
                if counts is None:  # of the only part; or the means of parts that nobody can count before are averaged
                    counts = everywhere(fabric, torch.stack([count.double() for _, count in sums])) * parts
                # without a labelled pixel both are 0, and so is the loss; with class weights the count may be below 1
                counts = counts.where(counts > 0, 1)
                means = [
                    total * fabric.world_size / count.to(total) * term.weight  # DDP's mean over processes is undone
                    for term, (total, _), count in zip(task.terms, sums, counts, strict=True)
                ]
                loss = torch.stack(means).sum()

                # backward
                fabric.backward(loss)
            losses.append(loss.detach())

        # update
        state.freezing.drop_gradients()
        if norm := config.schedule.clip_norm:
            # a gradient that is not finite must not raise here, where the host would wait for it: the loss tells
            fabric.clip_gradients(model, optimizer, max_norm=norm, error_if_nonfinite=False)
        moved = _update(state)
        optimizer.zero_grad()
    if state.average and moved:
        state.average.update(state.net, state.step)
    state.step += 1
    return Stepped(torch.stack(losses).sum(), lr, moved)


def _denominators(setup: Setup, targets: torch.Tensor) -> torch.Tensor | None:
    """What each term of the loss is divided by, for the whole batch; None where only the net can tell."""
    counts = [term.denominator(targets).double() for term in setup.task.terms if term.denominator]
    return everywhere(setup.fabric, torch.stack(counts)) if len(counts) == len(setup.task.terms) else None


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """A batch in equal parts."""
    images, targets, photometric = batch
    columns = [[None] * count if each is None else each.chunk(count) for each in photometric or ()]
    colors: list[Any] = list(zip(*columns, strict=True)) or [None] * count
    for some, theirs, change in zip(images.chunk(count), targets.chunk(count), colors, strict=True):
        yield some, theirs, Photometric(*change) if change else None


def _update(state: State) -> bool:
    """Step the optimiser; whether it moved: fp16's loss scaler skips a step whose gradients overflow."""
    if not state.scaler:
        state.optimizer.step()
        return True
    before = state.scaler.get_scale()  # the host waits here, in fp16 only
    state.optimizer.step()
    scale = state.scaler.get_scale()
    if scale < _SMALLEST_SCALE:
        raise NumericsError(f"all gradients overflow in fp16 at step {state.step + 1:,}; {state.kept}. {HINT}")
    return scale >= before  # a skipped step, and nothing else, halves it


def _fit(
    state: State, setup: Setup, journal: Journal, on_evaluation: Callable[[int, float], None] | None = None
) -> None:
    """Train to the last step, from where the state stands."""
    schedule, began = setup.config.schedule, time.monotonic() - state.seconds
    with in_one_line(state), StopRequest(kill_workers) as stop:

        def on_image() -> None:
            if stop.signal and setup.fabric.world_size == 1:
                leave(state, setup, journal, stop.signal)

        stream = iter(train_batches(state, setup))
        while True:
            state.seconds = time.monotonic() - began
            if state.evaluation_is_due(schedule):
                if not state.saved_step:  # weights without a state to go on from could not be resumed
                    save(state, setup)
                score = evaluate(state, setup, journal, on_image)
                save(state, setup)
                if on_evaluation:
                    on_evaluation(state.step, score)
                journal.restart()
            if state.step == schedule.steps or _ends_early(state, setup):
                return
            _tell_thaw(state, setup)

            done = step(state, next_batch(stream, state, setup, journal), setup)
            journal.add(done)

            due = state.evaluation_is_due(schedule)
            if due or state.step % schedule.log_every == 0:
                journal.write_steps(done.lr)
            if signal_number := agreed(setup.fabric, stop, state.step):
                leave(state, setup, journal, signal_number)
            if state.step % schedule.save_every == 0 and not due:
                journal.losses()
                save(state, setup)
            setup.console.step(state.step)


def _ends_early(state: State, setup: Setup) -> bool:
    """Whether the patience is over; then the log and the terminal say so."""
    key, patience, log = setup.task.metric.key, setup.config.schedule.patience, setup.run.log
    if not state.is_out_of_patience(key, patience):
        return False
    if setup.fabric.is_global_zero and setup.run.stopped() != state.step:  # ended before its report was written
        log.add(event="stop", step=state.step, best_step=state.best_step(key), patience=patience)
    setup.console.say(
        f"stopped early at step {state.step:,} of {setup.config.schedule.steps:,}: {patience} "
        f"evaluation{'s' * (patience > 1)} without a better score (schedule.patience)"
    )
    return True


def _tell_thaw(state: State, setup: Setup) -> None:
    if text := state.freezing.thawed(state.step):
        coming = state.step + 1  # the first step that trains more
        if setup.fabric.is_global_zero:
            setup.run.log.add(event="thaw", step=coming, text=text)
        setup.console.say(f"step {coming:,}: {text}")


def train_batches(state: State, setup: Setup) -> Iterable[Batch]:
    """The batches of the run from where the state stands."""
    loader = batches(
        setup.task.samples(setup.config.seed),
        setup.config.data,
        start=state.step,
        stop=setup.config.schedule.steps,
        rank=setup.fabric.global_rank,
        world_size=setup.fabric.world_size,
        pin_memory=setup.fabric.device.type == "cuda",
    )
    return cast(Iterable[Batch], setup.fabric.setup_dataloaders(loader, use_distributed_sampler=False))


def train(
    config: Experiment | Path | str,
    run: Path | str,
    *,
    device: Device = "auto",
    threads: int | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    track: Sequence[Tracker | str] = (),
    extend: bool = False,
    config_file: Path | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train a net, or go on with a run where it stopped.

    Under `torchrun` every process trains on its slice of each batch. On a CPU with equal thread count an
    interrupted run ends in the same bits as an unbroken one.

    Args:
        config: the experiment, or the file that holds it.
        run: folder of the run; a new one, or that of a run with the same settings.
        device: where to train; "auto" takes a GPU when there is one.
        threads: of the CPU; torch's own choice by default.
        quiet: no lines and no progress bar.
        tensorboard: also write event files for TensorBoard into the folder: the same as "tensorboard" in `track`.
        track: what follows the run: "tensorboard", "trackio", `MODULE:CLASS`, or trackers of your own.
        extend: allow more steps than the run was started with; the rate goes on along the new schedule.
        config_file: the file that `config` was read from, for the manifest; known where `config` is a file.
        on_evaluation: called with the step and the score of each evaluation, once the state is saved. What it raises
            ends the training there.

    Returns:
        The best score, and where the files are.

    Raises:
        DataError, ConfigError, ModelError, OutputError: before anything is trained.
        Interrupted: a signal arrived; the work is saved.
        NumericsError: the loss is not finite; the last good state is kept.
    """
    if not isinstance(config, Experiment):
        config_file = find_config(config)
        config = load_config(config_file)
    trackers = open_trackers([*track, *(["tensorboard"] if tensorboard else [])])
    fabric = launch(config, use_device(device, threads))
    task, place = config.task(), Run(Path(run))
    with RunConsole(config.schedule.steps, quiet=quiet or not fabric.is_global_zero) as console:
        if not config.data.batch_size:
            from segmv3.training.sizing import sized  # which takes steps itself

            config = sized(config, task, fabric, place, console)
        sets = {"train_set": task.train_set.fingerprint(), "val_set": task.val_set.fingerprint()}
        settings = to_dict(config) | sets | {"processes": fabric.world_size, **task.sources}
        before = place.check(settings, extend=extend)
        if place.finished() and not before:
            console.say(f"{place.folder} is finished: {headline(task, place.metrics(task.metric.key))}")
        else:
            setup = Setup(config, task, fabric, place, console)
            _run(setup, settings, before, trackers, config_file, on_evaluation)
        return place.trained(task.metric.key)


def _run(
    setup: Setup,
    settings: dict[str, Any],
    before: int | None,
    trackers: Sequence[Tracker],
    config_file: Path | None,
    on_evaluation: Callable[[int, float], None] | None,
) -> None:
    """Hold the folder and train; `before` is the number of steps of a run that gets more of them."""
    fabric, task, console, first = setup.fabric, setup.task, setup.console, setup.fabric.is_global_zero
    state = fresh(setup)
    fabric.barrier()  # nobody writes before everybody has looked
    if first:
        task.check(console.task, console.say)
        settings["contents"] = task.contents()
    with setup.run.claimed(settings, extend=before is not None) if first else nullcontext():
        fabric.barrier()
        task.prepare(fabric.device, partial(class_pixels_of, fabric))
        restore(state, setup)
        if before and first:
            _extend(state, setup, settings, before)
        extended = [entry["at_step"] for entry in setup.run.extensions()] if first else []
        state.extended_at = int(everywhere(fabric, torch.tensor(max(extended, default=0)), "max").item())
        if text := state.freezing.told(state.step):
            console.say(f"frozen: {text}")
        journal = Journal(state, setup, trackers, config_file)
        console.begin(state.step)
        with journal.open():
            _fit(state, setup, journal, on_evaluation)
        if first:
            with console.task("report") as progress:
                task.report(setup.run, setup.run.log.entries(), fabric.device, progress)
            best = headline(task, setup.run.metrics(task.metric.key))
            console.say(f"best: {best}; wrote {setup.run.best} and {setup.run.report}")
        fabric.barrier()


def _extend(state: State, setup: Setup, settings: dict[str, Any], before: int) -> None:
    """Write down that a run of `before` steps gets more, and tell what that does to the rate."""
    run, config = setup.run, setup.config
    run.extend(settings, before, state.step)
    schedules = replace(config.schedule, steps=before), config.schedule
    factor = config.optim.scale(config.data.batch_size)
    old, new = (lr_at(min(state.step, each.steps - 1), config.optim.lr, each) * factor for each in schedules)
    run.log.add(event="extend", step=state.step, **{"from": before, "to": config.schedule.steps})
    setup.console.say(
        f"extending {run.folder} from {before:,} to {config.schedule.steps:,} steps at step {state.step:,}: "
        f"the rate goes on along the new schedule ({old:.2e} -> {new:.2e})"
    )
