"""Optuna's side of a sweep: what it draws values from, and its record of the trials in `study.journal`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmv3.errors import CheckpointError, OutputError, ResourceError
from segmv3.files import write_bytes
from segmv3.records import typed
from segmv3.sweep.space import Choices, Space, as_text

try:
    import optuna
    from optuna import TrialPruned as TrialPruned
    from optuna import distributions
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial as FrozenTrial
    from optuna.trial import Trial as Trial
    from optuna.trial import TrialState as TrialState
except ImportError:
    raise ResourceError('optuna is not installed; pip install "segmv3[sweep]"') from None

optuna.logging.set_verbosity(optuna.logging.ERROR)

Distributions = Mapping[str, distributions.BaseDistribution]


def distributions_of(space: Space) -> Distributions:
    """What Optuna draws the settings from. It knows choices by their text alone."""
    made: dict[str, distributions.BaseDistribution] = {}
    for name, setting in space.settings.items():
        if isinstance(setting, Choices):
            made[name] = distributions.CategoricalDistribution([as_text(value) for value in setting.values])
        elif isinstance(setting.low, int) and isinstance(setting.high, int):
            step = int(setting.step or 1)
            made[name] = distributions.IntDistribution(setting.low, setting.high, log=setting.log, step=step)
        else:
            made[name] = distributions.FloatDistribution(setting.low, setting.high, log=setting.log, step=setting.step)
    return made


def values_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the config gets for the parameters of a trial."""
    values = {}
    for name, setting in space.settings.items():
        if name in params:
            choices = setting.values if isinstance(setting, Choices) else ()
            values[name] = next((value for value in choices if as_text(value) == params[name]), params[name])
    return values


def open_study(folder: Path, space: Space) -> optuna.Study:
    """The study of a folder with the trials so far; to be called by the one process that uses it.

    Raises:
        OutputError: its record cannot be written.
        CheckpointError: its record cannot be read, or is of another search.
    """
    journal = folder / "study.journal"
    if journal.exists() and not journal.is_file():
        raise OutputError(f"{journal} is no file; choose another --output")
    if journal.is_file():
        whole = journal.read_bytes()
        if not whole.endswith(b"\n"):  # the process was killed in the middle of a line
            write_bytes(journal, whole[: whole.rfind(b"\n") + 1])
    (folder / "study.journal.lock").unlink(missing_ok=True)  # of a process killed while it held Optuna's own lock
    try:
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            study_name="sweep",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner() if space.pruner == "median" else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        if [each.name for each in study.directions] != ["MAXIMIZE"]:
            raise ValueError("it is of another search")
        for trial in study.get_trials(deepcopy=False):
            _refuse_foreign(trial, distributions_of(space))
    except OSError as error:
        raise OutputError(f"{journal} cannot be used ({error.strerror or error})") from None
    except Exception as error:  # Optuna trusts its record: a changed one raises whatever comes of it
        reason = f"{type(error).__name__}: {error}"[:120]
        raise CheckpointError(f"{journal} is damaged ({reason}); start again with another --output") from None
    return study


@dataclass(frozen=True)
class _Notes:
    """What a trial was given beside its values."""

    told: list[tuple[int, float]]
    same_as: int | None = None
    problem: str | None = None


def _refuse_foreign(trial: FrozenTrial, known: Distributions) -> None:
    """Raises: ValueError for a trial that this sweep cannot have made."""
    trial._validate()
    own = {name: known.get(name) for name in trial.distributions} == trial.distributions
    if not own or (len(trial.distributions) < len(known) and trial.state != TrialState.RUNNING):
        raise ValueError(f"trial {trial.number} is of another space")
    told = [[step, score] for step, score in trial.intermediate_values.items()]
    notes = typed({**trial.user_attrs, "told": told}, _Notes, f"trial {trial.number}")
    if notes.same_as is not None and not 0 <= notes.same_as < trial.number:
        raise ValueError(f"trial {trial.number} repeats none before it")


def next_trial(study: optuna.Study, space: Space) -> Trial:
    """The trial that ran when the sweep was stopped, else a new one, with a value for every setting."""
    trials = study.get_trials(deepcopy=False)
    running = next((each for each in trials if each.state == TrialState.RUNNING), None)
    # a sampler that lived on would draw the same values again after a restart: each trial has its own
    number = len(trials) if running is None else running.number
    seed = np.random.SeedSequence([space.seed, number]).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(seed))
    if running is None:
        return study.ask(dict(distributions_of(space)))
    trial = Trial(study, running._trial_id)  # Optuna has no public way back to a running trial
    for name, distribution in distributions_of(space).items():
        trial._suggest(name, distribution)  # a value that it has is kept: a kill may have come between two settings
    return trial
