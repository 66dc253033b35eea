"""The trials of a sweep: ordinary runs, whose settings Optuna chooses, and which it may stop early.

sweep.json        what was searched and what came of it, for programs; sweep.html for people
settings.json     the config and the space, written first
study.journal     Optuna's own record
trial_0000, ...   the runs; states to resume from are deleted when a trial ends
"""

import json
import os
import shlex
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segmv3.checkpoint import saved_steps
from segmv3.config import Config, Device, to_dict
from segmv3.data.loader import refuse_workers_beyond_memory
from segmv3.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    ModelError,
    NumericsError,
    OutOfMemoryError,
    ResourceError,
    is_out_of_memory,
)
from segmv3.files import write_bytes
from segmv3.report.sweep import PAGE, headline, write_sweep_page
from segmv3.sweep.space import Space, as_text, flags, with_values
from segmv3.sweep.study import FrozenTrial, Trial, TrialPruned, TrialState, next_trial, open_study, values_of
from segmv3.training.claim import Claim
from segmv3.training.loop import train
from segmv3.training.progress import RunConsole
from segmv3.training.run import FREE, Run, Trained

_MOST_FAILURES = 3
"""So many failed trials in a row end the command: what they have in common is not the values."""
_PAGE_SECONDS = 60.0
"""Pause between two versions of the page while trials run."""


def sweep(
    config: Config,
    space: Space,
    folder: Path,
    *,
    file: Path,
    base: Config,
    device: Device = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Search a space, or go on with the sweep in `folder` where it stopped.

    What a trial tries is a function of the seed, its number and the trials before it: a sweep that was killed ends
    like an unbroken one, where training itself does.

    Args:
        config: what every trial begins with.
        space: what to choose, and how.
        folder: of the sweep.
        file: the config file, for the command that repeats the best trial.
        base: what it holds without flags.
        device: where to train.
        threads: of the CPU, for training; None leaves the choice to PyTorch.

    Returns:
        The content of sweep.json.

    Raises:
        ConfigError, OutputError, DataError: before anything is trained.
        ConfigError: three trials in a row failed.
        Interrupted: the running trial is saved.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("a sweep runs in one process; start it without torchrun")
    refuse_workers_beyond_memory(config.data)  # else every trial would fail by it
    task = config.task()
    settings = _settings(config, space, task)
    claim = Claim(folder / "settings.json", "sweep", "sweeps", [f"config.{name}" for name in FREE], "--output")
    claim.check(settings)
    with claim.held(), RunConsole(space.trials) as console:
        task.check(console.task, console.say)  # what is remembered of it starts every trial at once
        settings["contents"] = task.contents()
        claim.check(settings)
        claim.write(settings)
        facts = {"net": task.net_name, "dataset": task.val_set.title, "split": task.val_set.split}
        facts |= {"metric": task.metric.key, "metric_name": task.metric.name}
        facts |= {name: settings[name] for name in ("space", "pruner", "seed")}
        quietly = partial(train, device=device, threads=threads, quiet=True)
        try:
            return _Search(config, space, folder, facts, console, quietly, partial(_command, file, base)).complete()
        except KeyboardInterrupt:  # between two trials; inside one the run saves itself
            raise Interrupted(f"{folder} keeps what was finished; the same command goes on", signal.SIGINT) from None
        except OSError as error:  # of Optuna's record; our own files have errors of their own
            reason = error.strerror or error
            raise ResourceError(f"{folder} cannot be written ({reason}); the same command goes on") from None


def _settings(config: Config, space: Space, task: Any) -> dict[str, Any]:
    """What may not change between two pieces of a sweep."""
    searched = {name: asdict(setting) for name, setting in space.settings.items()}
    return {
        "config": to_dict(config),
        "space": json.loads(as_text(searched)),
        "pruner": space.pruner,
        "prune-after": space.prune_after,
        "seed": space.seed,
        "train_set": task.train_set.fingerprint(),
        "val_set": task.val_set.fingerprint(),
        **task.sources,
    }


@dataclass
class _Search:
    """Everything a sweep holds while it runs."""

    config: Config
    space: Space
    folder: Path
    facts: dict[str, Any]
    console: RunConsole
    train: Callable[..., Trained]
    command: Callable[[Config, Path], str]

    def __post_init__(self) -> None:
        self.study = open_study(self.folder, self.space)
        self.page_at = time.monotonic()

    def complete(self) -> dict[str, Any]:
        """Run trials until there are enough, or the hours are over.

        Returns:
            The content of sweep.json.

        Raises:
            ConfigError: three trials in a row failed.
        """
        began, failures = time.monotonic(), 0
        self._delete_states()
        self.console.begin(0, "sweep")
        while self._wants_more(began):
            problem = self._run(next_trial(self.study, self.space))
            self._delete_states()
            self._write(page=time.monotonic() - self.page_at > _PAGE_SECONDS)
            failures = failures + 1 if problem else 0
            if failures == _MOST_FAILURES:
                self._write(page=True)
                raise ConfigError(
                    f"{failures} trials in a row failed, the last one with: {problem}; see {self.folder / PAGE}"
                )
        return self._write(page=True)

    def _wants_more(self, began: float) -> bool:
        """Whether a trial is to be run: one that was stopped in any case."""
        states = [trial.state for trial in self._trials()]
        ended = sum(state.is_finished() for state in states)
        self.console.step(ended)
        if TrialState.RUNNING in states:
            return True
        if ended >= self.space.trials:
            return False
        over = self.space.hours is not None and time.monotonic() - began >= 3600 * self.space.hours
        if over:
            self.console.say(
                f"the {self.space.hours:g} hours are over after {ended} of {self.space.trials} trials; "
                "the same command goes on"
            )
        return not over

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _run(self, trial: Trial) -> str:
        """Train a trial to its end; returns what went wrong with it, or nothing."""
        run = Run(self.folder / f"trial_{trial.number:04}")
        if run.folder.exists() and not run.finished() and not saved_steps(run.states):
            shutil.rmtree(run.folder)  # killed before there was a state to go on from
        if not run.folder.exists() and self._copy_twin(trial):
            return ""
        self.console.status(f"trial {trial.number}  {self._best_text()}")
        problem = ""
        try:
            config = with_values(self.config, values_of(self.space, trial.params))
            watch = self._watch(trial, config)
            for entry in run.log.entries():  # what the pruner was not told before a kill
                if entry["event"] == "eval":
                    watch(entry["step"], entry[self.facts["metric"]])
            self.study.tell(trial, self.train(config, run.folder, on_evaluation=watch).score)
        except TrialPruned as pruned:
            traceback.clear_frames(pruned.__traceback__)  # else the workers live on until the garbage collector comes
            self.study.tell(trial, state=TrialState.PRUNED)
        except (ConfigError, ModelError, NumericsError, CheckpointError, OutOfMemoryError) as error:
            problem = str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = "environment: out of memory"
        if problem:
            trial.set_user_attr("problem", problem)
            self.study.tell(trial, state=TrialState.FAIL)
        self._say(trial.number)
        return problem

    def _watch(self, trial: Trial, config: Config) -> Callable[[int, float], None]:
        """Tells the pruner of an evaluation and obeys it; telling twice does no harm."""
        told = dict(self._trials()[trial.number].intermediate_values)

        def watch(step: int, score: float) -> None:
            if step not in told:
                trial.report(score, step)
                told[step] = score
            self.console.status(f"trial {trial.number} step {step:,} {score:.2f} %  {self._best_text()}")
            if len(told) > self.space.prune_after and step < config.schedule.steps and trial.should_prune():
                raise TrialPruned

        return watch

    def _copy_twin(self, trial: Trial) -> bool:
        """End a trial as an earlier one with the same values did: training would repeat it to the bit."""
        for other in self._trials()[: trial.number]:
            if other.params == trial.params and other.state in (TrialState.COMPLETE, TrialState.PRUNED):
                for step, score in other.intermediate_values.items():
                    trial.report(score, step)
                trial.set_user_attr("same_as", other.user_attrs.get("same_as", other.number))
                pruned = other.state == TrialState.PRUNED
                self.study.tell(trial, None if pruned else other.value, other.state)
                self._say(trial.number)
                return True
        return False

    def _delete_states(self) -> None:
        for trial in self._trials():
            if trial.state.is_finished():
                shutil.rmtree(Run(self.folder / f"trial_{trial.number:04}").states, ignore_errors=True)

    def _results(self) -> list[dict[str, Any]]:
        return [_result_of(trial, self.space) for trial in self._trials()]

    def _say(self, number: int) -> None:
        self.console.say(headline(self._results()[number]))

    def _best_text(self) -> str:
        best = _best(self._results())
        return f"best {best['score']:.2f} % (trial {best['trial']})" if best else ""

    def _write(self, *, page: bool) -> dict[str, Any]:
        """Write sweep.json, and the page when it is time."""
        trials = self._results()
        best = _best(trials)
        if best:
            number = best["trial"] if best["same_as"] is None else best["same_as"]
            config = with_values(self.config, values_of(self.space, self._trials()[number].params))
            weights = Run(self.folder / f"trial_{number:04}").best
            best = best | {"weights": str(weights), "command": self.command(config, self.folder / "best")}
        result = {**self.facts, "wanted": self.space.trials, "best": best, "trials": trials}
        write_bytes(self.folder / "sweep.json", as_text(result, indent=2).encode())
        if page:
            write_sweep_page(self.folder, result)
            self.page_at = time.monotonic()
        return result


def _result_of(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """A trial as JSON types."""
    evaluations = sorted(trial.intermediate_values.items())
    top = max(evaluations, key=lambda pair: pair[1], default=(None, None))
    return {
        "trial": trial.number,
        "state": {"FAIL": "failed", "PRUNED": "pruned", "COMPLETE": "complete"}.get(trial.state.name, "running"),
        "score": top[1],
        "step": top[0],
        "values": json.loads(as_text(values_of(space, trial.params))),
        "evaluations": evaluations,
        "same_as": trial.user_attrs.get("same_as"),
        "problem": trial.user_attrs.get("problem"),
    }


def _best(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the highest score, the first of equal ones; a pruned one only where nothing is complete."""
    scored = [each for each in trials if each["score"] is not None and each["state"] in ("complete", "pruned")]
    return max(scored, key=lambda each: (each["state"] == "complete", each["score"]), default=None)


def _command(file: Path, base: Config, best: Config, run: Path) -> str:
    """What trains the best trial again."""
    return shlex.join(["segmv3", "train", str(file), *flags(best, base), "--run", str(run)])
