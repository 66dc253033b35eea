"""The trials of a sweep: ordinary runs, chosen and cut short by Optuna. This is the file that knows it.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from segmv3.checkpoint import saved_steps
from segmv3.config import Config, Device, has_type, to_dict
from segmv3.data.loader import refuse_workers_beyond_memory
from segmv3.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    ModelError,
    NumericsError,
    OutOfMemoryError,
    OutputError,
    ResourceError,
    is_out_of_memory,
)
from segmv3.files import alone, is_temporary, make_folder, write_bytes
from segmv3.records import typed
from segmv3.report.sweep import PAGE, headline, write_sweep_page
from segmv3.sweep.space import Choices, Range, Space, flags, with_values
from segmv3.training.console import RunConsole, RunLog
from segmv3.training.loop import train
from segmv3.training.run import FREE, Run, refuse_others
from segmv3.training.tasks import task_of

if TYPE_CHECKING:
    import optuna

_MOST_FAILURES = 3
"""So many failed trials in a row end the command: what they have in common is not the values."""
_PAGE_SECONDS = 60.0
"""Pause between two versions of the page while trials run."""


class _Pruned(Exception):
    """Leaves the run of a trial that the pruner gave up."""


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

    Args: file, base: the config file and what it holds without flags, for the command that repeats the best trial.
    Returns: the content of sweep.json.
    Raises: ConfigError, OutputError, DataError before anything is trained; ResourceError without Optuna; Interrupted
        once the running trial is saved; ConfigError after three failed trials in a row.
    """
    _import_optuna()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("a sweep runs in one process; start it without torchrun")
    refuse_workers_beyond_memory(config.data)  # else every trial would fail by it
    task = task_of(config)
    searched = {name: asdict(setting) for name, setting in space.settings.items()}
    settings = {
        "config": to_dict(config),
        "space": {name: json.loads(_text(setting)) for name, setting in searched.items()},
        "pruner": space.pruner,
        "prune-after": space.prune_after,
        "seed": space.seed,
        "train_set": task.train_set.fingerprint(),
        "val_set": task.val_set.fingerprint(),
        **task.sources,
    }
    _check(folder, settings)
    make_folder(folder)
    with alone(folder / "sweep.lock", partial(_refuse_company, folder)), RunConsole(space.trials) as console:
        task.check(console.task, console.say)  # what is remembered of it starts every trial at once
        settings["contents"] = task.contents()
        _check(folder, settings)
        if not (folder / "settings.json").is_file():
            write_bytes(folder / "settings.json", _text(settings, indent=2).encode())
        facts = {
            "net": task.net_name,
            "dataset": task.val_set.title,
            "split": task.val_set.split,
            "metric": task.metric.key,
            "metric_name": task.metric.name,
            **{name: settings[name] for name in ("space", "pruner", "seed")},
        }
        search = _Search(
            config,
            space,
            folder,
            facts,
            console,
            partial(train, device=device, threads=threads, quiet=True),
            partial(_command, file, base),
        )
        try:
            return search.complete()
        except KeyboardInterrupt:  # between two trials; inside one the run saves itself
            raise Interrupted(f"{folder} keeps what was finished; the same command goes on", signal.SIGINT) from None
        except OSError as error:  # of Optuna's record; our own files have errors of their own
            raise ResourceError(
                f"{folder} cannot be written ({error.strerror or error}); the same command goes on"
            ) from None


class _Search:
    """Everything a sweep holds while it runs."""

    def __init__(
        self,
        config: Config,
        space: Space,
        folder: Path,
        facts: dict[str, Any],
        console: RunConsole,
        train_on: Callable[..., dict[str, Any]],
        command: Callable[[Config, Path], str],
    ) -> None:
        self.config, self.space, self.folder, self.facts, self.console = config, space, folder, facts, console
        self.study = _open_study(folder, space)
        self.train, self.command = train_on, command
        self.page_at = time.monotonic()

    def complete(self) -> dict[str, Any]:
        """The trials."""
        began, failures = time.monotonic(), 0
        self._delete_states()
        self.console.begin(self._ended(), "sweep")
        while True:
            self.console.step(self._ended())
            trial = self._interrupted()
            if trial is None:
                if self._ended() >= self.space.trials:
                    break
                if self.space.hours is not None and time.monotonic() - began >= 3600 * self.space.hours:
                    self.console.say(
                        f"the {self.space.hours:g} hours are over after {self._ended()} of {self.space.trials} trials; "
                        "the same command goes on"
                    )
                    break
                trial = self._ask()
            problem = self._run(trial)
            self._delete_states()
            self._write(page=time.monotonic() - self.page_at > _PAGE_SECONDS)
            failures = failures + 1 if problem else 0
            if failures == _MOST_FAILURES:
                self._write(page=True)
                raise ConfigError(
                    f"{failures} trials in a row failed, the last one with: {problem}; see {self.folder / PAGE}"
                )
        return self._write(page=True)

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self._trials())

    def _trials(self) -> "list[optuna.trial.FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def _interrupted(self) -> "optuna.Trial | None":
        """The trial that ran when the sweep was stopped."""
        import optuna

        for trial in self._trials():
            if trial.state == optuna.trial.TrialState.RUNNING:
                self._seed(trial.number)
                return optuna.Trial(self.study, trial._trial_id)  # Optuna has no public way back to a running trial
        return None

    def _ask(self) -> "optuna.Trial":
        self._seed(len(self._trials()))
        return self.study.ask()

    def _seed(self, number: int) -> None:
        """A sampler for each trial: one that lived on would draw the same values again after a restart."""
        import optuna

        seed = np.random.SeedSequence([self.space.seed, number]).generate_state(1)[0]
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed))

    def _run(self, trial: "optuna.Trial") -> str:
        """Train a trial to its end; returns what went wrong with it, or nothing."""
        from optuna.trial import TrialState

        values = {name: _suggest(trial, name, setting) for name, setting in self.space.settings.items()}
        run = Run(self.folder / f"trial_{trial.number:04}")
        if run.folder.exists() and not run.finished() and not saved_steps(run.states):
            shutil.rmtree(run.folder)  # killed before there was a state to go on from
        if not run.folder.exists() and self._copy_twin(trial):
            return ""
        self.console.status(f"trial {trial.number}  {self._best_text()}")
        problem = ""
        try:
            config = with_values(self.config, values)
            watch = self._watch(trial, config)
            for entry in RunLog(run.log_file).entries():  # what the pruner was not told before a kill
                if entry["event"] == "eval":
                    watch(entry["step"], entry[self.facts["metric"]])
            best = self.train(config, run.folder, on_evaluation=watch)
            self.study.tell(trial, best[self.facts["metric"]])
        except _Pruned as pruned:
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

    def _watch(self, trial: "optuna.Trial", config: Config) -> Callable[[int, float], None]:
        """Tells the pruner of an evaluation and obeys it; telling twice does no harm."""
        told = dict(self._trials()[trial.number].intermediate_values)

        def watch(step: int, score: float) -> None:
            if step not in told:
                trial.report(score, step)
                told[step] = score
            self.console.status(f"trial {trial.number} step {step:,} {score:.2f} %  {self._best_text()}")
            given_up = len(told) > self.space.prune_after and step < config.schedule.steps and trial.should_prune()
            if given_up:
                raise _Pruned

        return watch

    def _copy_twin(self, trial: "optuna.Trial") -> bool:
        """End a trial as an earlier one with the same values did: training would repeat it to the bit."""
        from optuna.trial import TrialState

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

    # --- results ---

    def _say(self, number: int) -> None:
        self.console.say(headline(self._result_of(self._trials()[number])))

    def _best_text(self) -> str:
        best = _best([self._result_of(trial) for trial in self._trials()])
        return f"best {best['score']:.2f} % (trial {best['trial']})" if best else ""

    def _result_of(self, trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
        """A trial as JSON types."""
        evaluations = sorted(trial.intermediate_values.items())
        top = max(evaluations, key=lambda pair: pair[1], default=(None, None))
        state = {"FAIL": "failed", "PRUNED": "pruned", "COMPLETE": "complete"}.get(trial.state.name, "running")
        settings = self.space.settings
        values = {name: _value(settings[name], trial.params[name]) for name in settings if name in trial.params}
        return {
            "trial": trial.number,
            "state": state,
            "score": top[1],
            "step": top[0],
            "values": json.loads(_text(values)),
            "evaluations": evaluations,
            "same_as": trial.user_attrs.get("same_as"),
            "problem": trial.user_attrs.get("problem"),
        }

    def _write(self, *, page: bool) -> dict[str, Any]:
        """Write sweep.json, and the page when it is time."""
        trials = [self._result_of(trial) for trial in self._trials()]
        best = _best(trials)
        if best:
            number = best["trial"] if best["same_as"] is None else best["same_as"]
            settings, params = self.space.settings, self._trials()[number].params
            values = {name: _value(settings[name], params[name]) for name in settings}
            weights = Run(self.folder / f"trial_{number:04}").best
            command = self.command(with_values(self.config, values), self.folder / "best")
            best = best | {"weights": str(weights), "command": command}
        result = {**self.facts, "wanted": self.space.trials, "best": best, "trials": trials}
        write_bytes(self.folder / "sweep.json", _text(result, indent=2).encode())
        if page:
            write_sweep_page(self.folder, result)
            self.page_at = time.monotonic()
        return result


def _best(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the highest score, the first of equal ones; a pruned one only where nothing is complete."""
    scored = [each for each in trials if each["score"] is not None and each["state"] in ("complete", "pruned")]
    return max(scored, key=lambda each: (each["state"] == "complete", each["score"]), default=None)


def _suggest(trial: "optuna.Trial", name: str, setting: Choices | Range) -> Any:
    if isinstance(setting, Choices):
        return _value(setting, trial.suggest_categorical(name, [_text(value) for value in setting.values]))
    if isinstance(setting.low, int) and isinstance(setting.high, int):
        return trial.suggest_int(name, setting.low, setting.high, step=int(setting.step or 1), log=setting.log)
    return trial.suggest_float(name, setting.low, setting.high, step=setting.step, log=setting.log)


def _drawn_from(setting: Choices | Range | None, distribution: Any, param: Any) -> bool:
    """Whether Optuna's record of a value, and of where it came from, is one of `_suggest`."""
    if isinstance(setting, Choices):
        texts = tuple(map(_text, setting.values))
        return getattr(distribution, "choices", None) == texts and param in texts
    if setting is None or not has_type(param, float) or not setting.low <= param <= setting.high:
        return False
    return all(getattr(distribution, key, None) == getattr(setting, key) for key in ("low", "high", "log"))


def _value(setting: Choices | Range, param: Any) -> Any:
    """What the config gets for a parameter of Optuna, which knows choices by their text alone."""
    if isinstance(setting, Range):
        return param
    return next(value for value in setting.values if _text(value) == param)


def _text(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=str)


def _command(file: Path, base: Config, best: Config, run: Path) -> str:
    """What trains the best trial again."""
    return shlex.join(["segmv3", "train", str(file), *flags(best, base), "--run", str(run)])


# --- the folder ---


def _check(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, or a sweep of another config or space."""
    file = folder / "settings.json"
    if not file.is_file():
        if folder.exists() and (
            not folder.is_dir()
            or any(path.name != "sweep.lock" and not is_temporary(path) for path in folder.iterdir())
        ):
            raise OutputError(f"{folder} is not empty and holds no sweep; choose another --output")
        return
    refuse_others(file, settings, [f"config.{name}" for name in FREE], "--output")


def _refuse_company(folder: Path) -> None:
    raise OutputError(f"{folder} is in use by another sweep; wait for it or stop it")


def _import_optuna() -> None:
    try:
        import optuna
    except ImportError:
        raise ResourceError('optuna is not installed; pip install "segmv3[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _open_study(folder: Path, space: Space) -> "optuna.Study":
    """The study of the folder; to be called by the one process that uses it.

    Raises: CheckpointError when its record cannot be read.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    journal = folder / "study.journal"
    if journal.exists() and not journal.is_file():
        raise OutputError(f"{journal} is no file; choose another --output")
    if journal.is_file():
        whole = journal.read_bytes()
        if not whole.endswith(b"\n"):  # the process was killed in the middle of a line
            write_bytes(journal, whole[: whole.rfind(b"\n") + 1])
    (folder / "study.journal.lock").unlink(missing_ok=True)  # of a process killed while it held Optuna's own lock
    pruner = optuna.pruners.MedianPruner() if space.pruner == "median" else optuna.pruners.NopPruner()
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", pruner=pruner, load_if_exists=True
        )
        _refuse_others_trials(study, space)
    except OSError as error:
        raise OutputError(f"{journal} cannot be used ({error.strerror or error})") from None
    except Exception as error:  # Optuna trusts its record: a changed one raises whatever comes of it
        reason = f"{type(error).__name__}: {error}"[:120]
        raise CheckpointError(f"{journal} is damaged ({reason}); start again with another --output") from None
    return study


def _refuse_others_trials(study: "optuna.Study", space: Space) -> None:
    """Raises: ValueError for trials that this sweep cannot have made."""
    if [each.name for each in study.directions] != ["MAXIMIZE"]:
        raise ValueError("it is of another search")
    settings = space.settings
    for trial in study.get_trials(deepcopy=False):
        whole = trial.distributions.keys() == settings.keys() or trial.state.name == "RUNNING"
        drawn = ((settings.get(name), each, trial.params[name]) for name, each in trial.distributions.items())
        if not whole or not all(_drawn_from(*each) for each in drawn):
            raise ValueError(f"trial {trial.number} is of another space")
        told = trial.intermediate_values.items()
        typed([[step, score] for step, score in told], list[tuple[int, float]], f"trial {trial.number}")
        notes = typed(trial.user_attrs, _Notes, f"trial {trial.number}")
        if notes.same_as is not None and not 0 <= notes.same_as < trial.number:
            raise ValueError(f"trial {trial.number} repeats none before it")


@dataclass(frozen=True)
class _Notes:
    """What a trial is given beside its score."""

    same_as: int | None = None
    problem: str | None = None
