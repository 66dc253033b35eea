"""What `segmv3 fit` does: narrow a net step by step until it is fast enough, then train it once more.

fit.json       what was asked for
latency.json   the table of latencies as this fit uses it
step-01, ...   the proposals of a step; step.json, written last, says which one was taken
final          the last fine-tuning, an ordinary run
fit.html       the page
"""

import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segmv3 import checkpoint
from segmv3.benchmark.timing import Others, refuse_busy
from segmv3.checkpoint import Card
from segmv3.config import Classifier, Device, find_config, load_config
from segmv3.convert.targets import target_of
from segmv3.errors import CheckpointError, ConfigError, ModelError
from segmv3.files import make_folder, write_json
from segmv3.fitting.cut import Group, Widths, cut, groups_of
from segmv3.fitting.latency import Meter, Table
from segmv3.fitting.settings import Fitting, can_be_fitted
from segmv3.models.nets import Model
from segmv3.records import read_json
from segmv3.report.fitting import write_fitting_page
from segmv3.runtime import use_device
from segmv3.runtime.loading import refuse_missing_backend
from segmv3.settings import to_dict
from segmv3.training.claim import Claim
from segmv3.training.experiment import Experiment
from segmv3.training.loop import train
from segmv3.weights.averaging import origin_of
from segmv3.weights.opening import open_net

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]
_SMALLEST = 1 / 64  # of the usual saving: a step that nothing can make is tried with half of it, and so on


@dataclass(frozen=True)
class Fitted:
    """What came of a fit."""

    weights: Path
    page: Path
    score: float
    """Of the fitted net, percent: mIoU, or top-1 of a classifier."""
    score_before: float
    """Of the net at the start."""
    latency: float
    """Median milliseconds of the fitted net, measured in the runtime at the end."""
    latency_before: float
    """The same of the net at the start, measured in turns with it."""
    widths: Widths
    steps: tuple[dict[str, Any], ...]
    """What each step proposed and took, as in step.json."""
    table_error: float
    """The largest difference between the table of latencies and whole nets, percent."""


def fit(
    config: Experiment | Path | str,
    weights: Path | str,
    output: Path | str,
    settings: Fitting,
    *,
    run: Path | str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
    say: Say = lambda line: None,
) -> Fitted:
    """Narrow a trained net until it meets a latency on this machine, or go on where that stopped.

    Args:
        config: the experiment that the net is fine-tuned by, or its file; for streets or for classification.
        weights: weight file or published name of a net on a MobileNetV3.
        output: weight file to write.
        settings: the budget, and how to reach it.
        run: folder for the work; runs/fit-NAME by default.
        device: where to train; "auto" takes a GPU when there is one. Latency is measured on the CPU.
        threads: CPU threads, of the training and of what is measured; torch's own choice by default.
        progress: called with what is being done, how much of it is done, and how much there is.
        say: told what was found, one line each.

    Returns:
        The score and the latency before and after, the widths, and the paths of the weights and of the page.

    Raises:
        Segmv3Error: before anything is trained, for what cannot be used, and for a budget that no width reaches.
        BusyError: other programs use the machine, so that nothing can be measured.
    """
    if not isinstance(config, Experiment):
        config = load_config(find_config(config), kind=Experiment)  # type: ignore[type-abstract]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("fit runs in one process; start it without torchrun")
    output = Path(output)
    folder = Path(run) if run else Path("runs") / f"fit-{output.stem}"
    model, card = _open(weights, config)
    refuse_missing_backend(settings.runtime)
    place = use_device(device, threads)
    size = settings.size or (config.data.crop_size if isinstance(model.config, Classifier) else (512, 1024))
    meter = Meter(model, size, settings.runtime, torch.get_num_threads(), settings.least_share)
    how = {"device": device, "threads": threads}
    work = _Work(config, model, card, folder, settings, meter, place, how, progress, say)
    asked = to_dict(settings) | {"weights": card.sha256, "config": to_dict(config), "threads": meter.threads}
    asked.pop("force")
    claim = Claim(folder / "fit.json", "fit", "fits a net", _FREE)
    claim.check(asked)
    table = work.table()
    with claim.started(asked):
        make_folder(output.parent)
        write_json(folder / "latency.json", _plain(table), indent=1)
        return work.complete(table, Path(weights), output)


_FREE = ("long_steps", "config.data.root", "config.data.cache", "config.data.workers", "config.recompute")
# not the teacher or extra images, which a run knows again by their contents and a fit does not


def _open(weights: Path | str, config: Experiment) -> tuple[Any, Card]:
    """The net to be fitted, with its classes in the order of the data's.

    Raises: CheckpointError, ModelError for what cannot be fitted.
    """
    path = Path(weights)
    if not isinstance(config.model, Model | Classifier):
        raise ConfigError("fit takes the configs of segmv3 train and segmv3 classify train")
    if target_of(path):
        raise CheckpointError(f"{weights} is an exported file; name the weights that it was exported from")
    opened: tuple[Any, Card] = open_net(weights)
    model, card = opened
    kind: Any = Classifier if isinstance(config.model, Classifier) else Model
    if not isinstance(model.config, kind):
        theirs, ours = (
            "a classifier" if each is Classifier else "a segmentation net" for each in (type(model.config), kind)
        )
        raise CheckpointError(f"{weights} is {theirs}, the config trains {ours}")
    if text := can_be_fitted(model.config.backbone):
        raise ModelError(f"{weights}: {text}")
    classes = config.task().classes
    if kind is Classifier:
        checkpoint.check_folders(card, classes, path)
    else:
        card = checkpoint.in_order(card, model, classes, path)
        checkpoint.check_classes(card, classes, path)
    return model, card


def stored_table(file: Path, meter: Meter) -> Table:
    """The table of a fit, from its latency.json."""
    stored = read_json(file)
    names = ("parts", "levels", "times", "offset", "factor", "checks")
    return Table(meter.groups, **{name: stored[name] for name in names})


def propose(table: Table, full: Widths, widths: Widths, share: float, saving: float) -> list[tuple[Group, Widths]]:
    """For each group the widest net that saves so much; groups that cannot save it propose nothing.

    Args:
        table: of latencies.
        full: widths at the start.
        widths: present widths.
        share: of its channels that each group keeps.
        saving: milliseconds.
    """
    most, found = table.predict(widths) - saving, []
    for group in table.groups:
        nets = (group.narrowed(widths, w) for w in group.choices(full, share) if w < group.width(widths))
        if net := next((each for each in nets if table.predict(each) <= most + 1e-9), None):
            found.append((group, net))
    return found


@dataclass
class _Work:
    """One fit and its folder."""

    config: Experiment
    start: Any
    card: Card
    folder: Path
    settings: Fitting
    meter: Meter
    device: torch.device
    how: dict[str, Any]
    progress: Progress
    say: Say

    def __post_init__(self) -> None:
        self.task = self.config.task()

    def table(self) -> Table:
        """The latencies, of the folder where it has them.

        Raises: ConfigError for a budget that the net meets already, or that no width meets.
        """
        file = self.folder / "latency.json"
        if file.is_file():
            table = stored_table(file, self.meter)
        else:
            table = self.meter.table(self.progress, ready=partial(refuse_busy, force=self.settings.force))
        most, least = table.predict(self.meter.full), table.predict(self.meter.least())
        self.say(
            f"latency now {most:.2f} ms, {_described(self.meter)}; the table is off by at most {table.error:.1f} % "
            f"({len(table.checks)} whole nets)"
        )
        budget = self.settings.budget_ms
        if budget >= most:
            raise ConfigError(f"--budget-ms {budget:g}: the net takes {most:.2f} ms already; there is nothing to cut")
        if budget < least:
            raise ConfigError(
                f"--budget-ms {budget:g} is less than any width reaches; the least possible is {least:.2f} ms "
                f"(--least-share {self.settings.least_share:g})"
            )
        return table

    def complete(self, table: Table, weights: Path, output: Path) -> Fitted:
        """Step to the budget, train the net once more, measure it, write the file and the page."""
        before = self._score(self.start)
        widths, score, model, steps = self.meter.full, before, self.start, list[dict[str, Any]]()
        while table.predict(widths) > self.settings.budget_ms:
            step = self._step(table, len(steps) + 1, model, widths, score)
            steps.append(step)
            widths, score = tuple(step["widths"]), step["score"]
            model, _ = open_net(self._place(len(steps)) / "best.safetensors")
        narrow = self.folder / "narrow.safetensors"
        fitted_from = origin_of(weights, self.card)
        checkpoint.save(model, narrow, classes=self._classes, fitted_from=fitted_from)
        trained = train(
            self.settings.long(self.config, model.config, narrow), self.folder / "final", **self.how, quiet=False
        )
        final, card = open_net(trained.weights)
        self.progress("latency", 0, 1)
        others = Others()
        times = [statistics.median(each) for each in self.meter.compare([self.start, final])]
        self.progress("latency", 1, 1)
        facts: dict[str, Any] = {"score_before": before, "score": trained.score, "metric": self.task.metric.name}
        facts |= {"latency_before_ms": times[0], "latency_ms": times[1], "table_ms": table.predict(widths)}
        facts |= {"budget_ms": self.settings.budget_ms, "runtime": _described(self.meter), "error": table.error}
        facts["cores_of_others"] = others.cores()
        kept = {name: value for name, value in card.facts.items() if name != "pretrained"}
        checkpoint.save(final, output, classes=self._classes, **kept | {"fitted_from": fitted_from, "fit": facts})
        groups = [
            [group.name, group.width(self.meter.full), group.width(widths)]
            for group in groups_of(self.start.config.backbone)
        ]
        result = facts | {"net": self.task.net_name, "dataset": self.task.val_set.title, "steps": steps}
        result |= {"weights": output.name, "groups": groups, "checks": table.checks}
        result |= {"start_ms": table.predict(self.meter.full), "split": self.task.val_set.split}
        result |= {"settings": to_dict(self.settings)}
        page = write_fitting_page(self.folder, result)
        write_json(self.folder / "result.json", result, indent=1)
        return Fitted(output, page, trained.score, before, times[1], times[0], widths, tuple(steps), table.error)

    def _step(self, table: Table, number: int, model: Any, widths: Widths, score: float) -> dict[str, Any]:
        """Propose narrower nets, fine-tune the promising ones, keep the one with the best ratio."""
        place = make_folder(self._place(number))
        if (file := place / "step.json").is_file():
            step: dict[str, Any] = read_json(file)
            self._tell(step)
            return step
        now = table.predict(widths)
        usual = self.settings.step_share * table.predict(self.meter.full)
        saving, proposals = min(usual, now - self.settings.budget_ms), list[tuple[Group, Widths]]()
        while not proposals and saving >= usual * _SMALLEST:
            proposals = propose(table, self.meter.full, widths, self.settings.least_share, saving)
            saving /= 2
        if not proposals:
            raise ConfigError(f"no layer saves anything at {now:.2f} ms; use a larger --budget-ms")
        entries = self._cut(table, number, model, widths, proposals)

        def ratio(entry: dict[str, Any], key: str) -> float:
            return (entry[key] - score) / (now - entry["latency_ms"])

        ranked = sorted(range(len(entries)), key=lambda i: -ratio(entries[i], "cut_score"))
        chosen = ranked[: self.settings.shortlist or None]
        for done, i in enumerate(chosen):
            self.progress(f"step {number}: fine-tune", done, len(chosen))
            entries[i]["score"] = self._short(place, i, cut(model, proposals[i][1]))
        self.progress(f"step {number}: fine-tune", len(chosen), len(chosen))
        best = max(chosen, key=lambda i: ratio(entries[i], "score"))
        shutil.copyfile(place / f"{best:02}" / "best.safetensors", place / "best.safetensors")
        step = {"step": number, "latency_before_ms": now, "score_before": score, "proposals": entries}
        step |= {"taken": best, "group": entries[best]["group"], "widths": list(proposals[best][1])}
        step |= {name: entries[best][name] for name in ("from", "to", "latency_ms", "score")}
        write_json(file, step, indent=1)
        for i in chosen:  # what is left of the proposals is in step.json
            shutil.rmtree(place / f"{i:02}", ignore_errors=True)
            (place / f"{i:02}.safetensors").unlink(missing_ok=True)
        self._tell(step)
        return step

    def _cut(
        self, table: Table, number: int, model: Any, widths: Widths, proposals: list[tuple[Group, Widths]]
    ) -> list[dict[str, Any]]:
        """What each proposal is, with its score as it is cut; kept, so that a second start need not score again."""
        file = self._place(number) / "cut.json"
        entries: list[dict[str, Any]] = read_json(file) if file.is_file() else []
        for done, (group, net) in enumerate(proposals):
            if done < len(entries):
                continue
            self.progress(f"step {number}: cut", done, len(proposals))
            entry = {"group": group.name, "from": group.width(widths), "to": group.width(net), "score": None}
            entries.append(entry | {"latency_ms": table.predict(net), "cut_score": self._score(cut(model, net))})
            write_json(file, entries, indent=1)
        self.progress(f"step {number}: cut", len(proposals), len(proposals))
        return entries

    def _short(self, place: Path, i: int, model: Any) -> float:
        """Fine-tune a proposal; its score."""
        start = place / f"{i:02}.safetensors"
        if not start.is_file():
            checkpoint.save(model, start, classes=self._classes)
        config = self.settings.short(self.config, model.config, start)
        return train(config, place / f"{i:02}", **self.how, quiet=True).score

    def _score(self, model: Any) -> float:
        """Percent on the validation set."""
        net = model.to(self.device).eval()
        counts = self.task.count(net, self.device, range(len(self.task.val_set)), lambda done, total: None)
        net.cpu()
        return float(self.task.scores(counts.cpu())[self.task.metric.key])

    def _tell(self, step: dict[str, Any]) -> None:
        self.say(
            f"step {step['step']}: {step['group']} {step['from']} -> {step['to']}, {step['latency_ms']:.2f} ms by the "
            f"table, {step['score']:.2f} % {self.task.metric.name}"
        )

    def _place(self, number: int) -> Path:
        return self.folder / f"step-{number:02}"

    @property
    def _classes(self) -> Any:
        return self.card.classes if isinstance(self.start.config, Model) else self.card.names


def _plain(table: Table) -> dict[str, Any]:
    return {name: value for name, value in asdict(table).items() if name != "groups"} | {"error": table.error}


def _described(meter: Meter) -> str:
    clock = "CPU time" if meter.threads == 1 else "by the clock"
    threads = f"{meter.threads} thread{'s' * (meter.threads > 1)}"
    return f"{meter.runtime} fp32, {meter.size[0]}x{meter.size[1]}, {threads}, {clock}"
