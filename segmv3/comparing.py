"""Comparing runs: their curves, settings, scores with intervals, cost, and what they make of the same images."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmv3.config import Device
from segmv3.errors import ConfigError, DataError, shortened
from segmv3.evaluation.run import Evaluation, Progress, open_evaluation
from segmv3.evaluation.settings import Settings
from segmv3.records import read_json, typed
from segmv3.report.comparison import Column, Rows, write_comparison
from segmv3.report.html import NONE, percent
from segmv3.report.plots import number
from segmv3.report.sweep import shown
from segmv3.results.ranking import ranking
from segmv3.results.result import Result
from segmv3.results.uncertainty import FEWEST_IMAGES
from segmv3.results.uncertainty import compare as compare_results
from segmv3.runtime import use_device
from segmv3.settings import flat
from segmv3.training.claim import LATER
from segmv3.training.manifest import read_manifest
from segmv3.training.progress import duration
from segmv3.training.run import Run, Score, data_of, score_of
from segmv3.training.summary import start_of

if TYPE_CHECKING:
    import torch

_SILENT = (
    *("contents", "extended", "train_set", "val_set", "data.root", "data.cache", "data.workers"),
    *("schedule.eval_every", "schedule.save_every", "schedule.log_every"),
)


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        page: the page; its figures and tables lie beside it.
        tables: the tables of the page by name: runs, settings, classes, differences.
        notes: what could not be compared, and why.
    """

    page: Path
    tables: dict[str, Rows]
    notes: list[str]


@dataclass(frozen=True)
class _One:
    """A run that was read."""

    run: Run
    name: str
    settings: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def score(self) -> Score:
        return score_of(self.settings)

    @property
    def classes(self) -> list[str]:
        """Names, where they are known."""
        return [row["name"] for row in self.metrics.get("classes", [])] or self.manifest.get("classes", [])


def compare(
    runs: Sequence[Path | str],
    output: Path | str = "comparison",
    *,
    dpi: int = 300,
    images: int = 4,
    score: int = 100,
    resamples: int = 1000,
    seed: int = 0,
    data_root: Path | str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Compared:
    """Compare runs, finished or not, on one page; returns the page, its tables, and what could not be compared.

    Args:
        runs: 2 to 8 folders that `segmv3 train` wrote; the first is what the others are compared with.
        output: folder of the page, of `figures/` (PNG, SVG, PDF) and of `tables/` (CSV, LaTeX).
        dpi: of the PNG figures, and of pictures in the others.
        images: how many images are shown, those where the runs differ most.
        score: so many first images of the split are scored anew, to find these and for the intervals; 0 for neither.
        resamples: times the images are drawn anew for the intervals.
        seed: same seed, same intervals.
        data_root: of the data set, where it is not where the runs found it.
        device: where the nets run.
        threads: CPU threads.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        ConfigError: a folder holds no run, or there are too few or too many.
        DataError: the runs share no class, or were scored on other images.
        OutputError: a file cannot be written.
    """
    opened = _open([Path(each) for each in runs])
    shared = _shared(opened)
    left = list(dict.fromkeys(name for one in opened for name in one.classes if name not in shared))
    notes = _refuse_unlike(opened, shared, left)
    tables = {"runs": _runs(opened), "settings": _settings(opened)}
    scored = [each for each in opened if each.metrics.get("classes") and each.score.key == "miou"]
    pictures: dict[str, Any] = {"samples": [], "captions": [], "classes": None}
    scores = (shared, _by_class(opened, shared)) if scored else None
    if scores:
        tables["classes"] = _classes(opened, *scores)
    if len(scored) == len(opened) and score and not left:
        try:
            evaluations = _evaluations(opened, data_root, Settings(limit=score), use_device(device, threads))
        except DataError as error:
            notes.append(f"no pictures and no intervals: {shortened(error.args[0], 200)}; --data-root names its folder")
        else:
            results = [_result(each, one, progress) for each, one in zip(evaluations, opened, strict=True)]
            tables["differences"] = _differences(opened, results, resamples, seed)
            _add_speed(tables["runs"], results)
            pictures = _pictures(opened, evaluations, results, images)
    elif score:
        notes.append(f"no pictures and no intervals: {_why_none(opened[0], left)}")
    words = _words(opened) | {"notes": notes, "resamples": resamples, "fewest": FEWEST_IMAGES}
    words["columns"] = [Column(each.name, _points(each)) for each in opened]
    page = write_comparison(Path(output), dpi=dpi, tables=tables, scores=scores, **words, **pictures)
    return Compared(page, tables, notes)


def _why_none(run: _One, left: Sequence[str]) -> str:
    if run.score.key != "miou":
        return "classifiers and detectors have curves, settings and cost alone"
    return "the runs have other classes" if left else "not every run has scores yet"


def _evaluations(
    opened: list[_One], root: Path | str | None, settings: Settings, device: "torch.device"
) -> list[Evaluation]:
    data = data_of(opened[0].run, opened[0].settings, Path(root) if root else None)
    return [open_evaluation(data, one.run.best, settings, device) for one in opened]


def _open(folders: list[Path]) -> list[_One]:
    if not 2 <= len(folders) <= 8:
        raise ConfigError(f"compare takes 2 to 8 runs, not {len(folders)}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("compare: a run is named twice")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    opened = []
    for letter, folder, name in zip("ABCDEFGH", folders, names, strict=False):
        run = Run(folder)
        if not run.settings_file.is_file():
            raise ConfigError(f"{folder} holds no run; name folders of segmv3 train, or two result files")
        try:
            settings = typed(read_json(run.settings_file), dict)
        except ValueError as error:
            raise ConfigError(f"{run.settings_file} {error}") from None
        metrics = {}
        if run.metrics_file.is_file():
            metrics = run.metrics(score_of(settings).key)
        opened.append(_One(run, f"{letter} {name}", settings, run.log.entries(), metrics, read_manifest(run)))
    return opened


def _refuse_unlike(opened: list[_One], shared: list[str], left: list[str]) -> list[str]:
    """What to know of runs that can be compared. `shared` and `left`: the classes that all have, and the others.

    Raises: DataError for runs of other kinds or images, and for those that share no class.
    """
    first, notes = opened[0], []
    for other in opened[1:]:
        both = f"{first.run.folder} and {other.run.folder} cannot be compared"
        if first.score.key != other.score.key:
            raise DataError(f"{both}: one {first.score.does}, the other {other.score.does}")
        if first.classes and other.classes and not shared:
            raise DataError(f"{both}: they share no class")
        seen = [dict((each.settings.get("contents") or {}).get("val") or {}) for each in (first, other)]
        seen = [{key: each[key] for key in each if key != "ids" or not left} for each in seen]  # read as other classes
        same = seen[0] == seen[1] if all(seen) else True
        if first.settings.get("val_set") != other.settings.get("val_set") or not same:
            hint = "score both with segmv3 evaluate on one split, and compare the result files"
            raise DataError(f"{both}: they were scored on other images or labels; {hint}")
        if first.settings.get("train_set") != other.settings.get("train_set"):
            notes.append(f"{first.name} and {other.name} were trained on other images; scored on the same ones.")
    for one, other in combinations(opened, 2):
        if one.log and one.log == other.log:
            notes.append(f"{other.name} is a copy of {one.name}: both have the same log, so nothing differs")
    if left:
        notes.append(
            f"the runs have other classes: the {len(shared)} common ones are compared, {', '.join(left)} left out; "
            "each run ignored the pixels of classes that it does not have, and its best mIoU is over all that it has"
        )
    return notes


def _shared(opened: list[_One]) -> list[str]:
    """The classes that all runs have whose classes are known, in the order of the first."""
    known = [one.classes for one in opened if one.classes]
    return [name for name in known[0] if all(name in each for each in known)] if known else []


def _state(one: _One) -> str:
    steps, done = one.settings["schedule"]["steps"], one.log[-1]["step"] if one.log else 0
    if one.run.finished():
        return f"{done:,}" + (f" of {steps:,}, stopped early" if one.run.stopped() else "")
    how = one.manifest.get("status", "not finished")
    return f"{done:,} of {steps:,}, {'not finished' if how == 'finished' else how}"


def _runs(opened: list[_One]) -> Rows:
    """Score and cost of each run."""
    name = opened[0].score.name
    header = ["run", f"best {name} %", "at step", "steps", "parameters", "GMACs", "images seen", "training time"]
    top = max((one.metrics[one.score.key] for one in opened if one.metrics), default=math.nan)
    rows = []
    for one in opened:
        net, best = one.manifest.get("net", {}), one.metrics.get(one.score.key)
        points, seconds = _points(one), one.manifest.get("seconds")
        minutes, images = (points[-1]["minutes"], points[-1]["images"]) if points else (0, 0)
        cells = [_state(one), _count(net.get("parameters")), percent(net.get("gmacs"), 2), _count(images)]
        cells.append(duration(minutes * 60 if seconds is None else seconds))
        score = (percent(best, 2), best is not None and best == top)
        rows.append([(one.name, False), score, (_count(one.metrics.get("step")), False), *((c, False) for c in cells)])
    return Rows("runs", header, rows)


def _settings(opened: list[_One]) -> Rows:
    """Settings that differ, and what else of the runs does."""
    sides = [_facts(one) for one in opened]
    rows = []
    for name in dict.fromkeys(name for side in sides for name in side):
        if any(side.get(name) != sides[0].get(name) for side in sides):
            values = (shortened(shown(side.get(name, NONE)), 80) for side in sides)
            rows.append([(name, False), *((value, False) for value in values)])
    return Rows("settings", ["setting", *(one.name for one in opened)], rows)


def _facts(one: _One) -> dict[str, Any]:
    """The settings of a run by dotted names, and where it was trained."""
    manifest = one.manifest
    facts = {name: value for name, value in flat(one.settings).items() if not name.startswith(_SILENT)}
    facts |= {name: value for name, value in flat(LATER).items() if name not in facts}
    facts["training images"] = str(one.settings.get("train_set"))[:12]
    facts["model.pretrained"] = start_of(manifest) if manifest else facts.get("model.pretrained") or "from scratch"
    for part, names in (("machine", ("device", "cpu")), ("versions", ("segmv3", "commit", "torch"))):
        facts |= {f"{part}.{name}": manifest.get(part, {}).get(name, "not recorded") for name in names}
    return facts


def _by_class(opened: list[_One], names: list[str]) -> list[list[float]]:
    """The IoU of some classes, of each run."""
    found = [{row["name"]: row.get("iou") for row in one.metrics.get("classes", [])} for one in opened]
    return [[number(each.get(name)) for name in names] for each in found]


def _classes(opened: list[_One], names: list[str], scores: list[list[float]]) -> Rows:
    rows = []
    finite = [[value for value in side if math.isfinite(value)] for side in scores]
    means = (sum(side) / len(side) if side else math.nan for side in finite)
    for name, *values in [*zip(names, *scores, strict=True), ("mean", *means)]:
        top = max((value for value in values if math.isfinite(value)), default=math.nan)
        rows.append([(name, False), *((percent(value, 2), value == top) for value in values)])
    return Rows("IoU by class, percent", ["class", *(one.name for one in opened)], rows)


def _differences(opened: list[_One], results: list[Result], resamples: int, seed: int) -> Rows:
    """Differences to the first run with their intervals."""
    found = [compare_results(results[0], other, resamples=resamples, seed=seed) for other in results[1:]]
    rows = []
    for lines in zip(*([*each.classes, replace(each.miou, name="mean")] for each in found), strict=True):
        cells: list[tuple[str, bool]] = [(lines[0].name, False), (_count(lines[0].images), False)]
        for line in lines:
            known = math.isfinite(line.difference) and math.isfinite(line.low)
            text = f"{line.difference:+.1f} [{line.low:+.1f}, {line.high:+.1f}]{' *' * line.beyond_chance}"
            cells.append((text if known else NONE, line.beyond_chance))
        rows.append(cells)
    count, of = len(results[0].names), results[0].images_in_split or 0
    where = f"the first {count:,} of {of:,} images" if count < of else f"{count:,} images"
    header = ["class", "images", *(f"{one.name.split()[0]} - A" for one in opened[1:])]
    return Rows(f"IoU points to {opened[0].name}, 95 % interval, on {where}", header, rows)


def _result(evaluation: Evaluation, one: _One, progress: Progress | None) -> Result:
    """The scores of a run: those of a result file in its folder where there is a fitting one, else measured now."""
    count, digest = evaluation.count, evaluation.facts["weights_sha256"]
    for file in sorted(one.run.folder.glob("*.json")):
        with suppress(DataError):
            found = Result.read(file)
            plain = found.scales in (None, (1.0,)) and not (found.flip or found.sliding_window or found.input_size)
            if found.weights_sha256 == digest and plain and found.split == "val" and len(found.names) == count:
                return found
    tell = progress or (lambda what, done, total: None)
    return evaluation.run(progress=lambda what, done, total: tell(f"score {one.name}", done, total))


def _words(opened: list[_One]) -> dict[str, Any]:
    """What the page says of all runs."""
    names = ", ".join(each.run.folder.resolve().name for each in opened)
    return {"metric": opened[0].score.name, "title": f"Comparison of {names}", "conditions": _conditions(opened)}


def _add_speed(table: Rows, results: list[Result]) -> None:
    """Images a second, where a result file of a run holds them."""
    if any(result.fps for result in results):
        table.header.append("images/s")
        for row, result in zip(table.rows, results, strict=True):
            row.append((percent(result.fps, 2), False))


def _pictures(opened: list[_One], evaluations: list[Evaluation], results: list[Result], count: int) -> dict[str, Any]:
    """What each run makes of the images whose mIoU differs most between them, and captions with these scores."""
    scores = [{image.name: image.miou for image in ranking(result)} for result in results]
    names = [name for name in scores[0] if all(name in side for side in scores)]
    spread = {name: max(side[name] for side in scores) - min(side[name] for side in scores) for name in names}
    names = sorted(names, key=lambda name: -spread[name])[:count]
    sides = [evaluation.samples(names) for evaluation in evaluations]
    captions = [
        "mIoU " + ", ".join(f"{one.name.split()[0]} {side[name]:.1f}" for one, side in zip(opened, scores, strict=True))
        for name in names
    ]
    samples = [list(each) for each in zip(*sides, strict=True)]
    return {"samples": samples, "captions": captions, "classes": evaluations[0].dataset.classes}


def _points(one: _One) -> list[dict[str, float]]:
    """The lines of the log about training and scores, with images seen and minutes; minutes are those of both alone."""
    batch, last, seconds, points = one.settings["data"]["batch_size"], 0, 0.0, []
    for entry in one.log:
        step, point = entry["step"], dict[str, float]()
        if entry["event"] == "train":
            speed = number(entry.get("images_per_second"))
            seconds, last = seconds + ((step - last) * batch / speed if speed > 0 else 0), step
            point = {"loss": number(entry.get("loss"))}
        elif entry["event"] == "eval":
            seconds += max(number(entry.get("seconds", 0)), 0)
            point = {"score": number(entry.get(one.score.key))}
        if point:
            points.append({"step": step, "images": step * batch, "minutes": seconds / 60} | point)
    return points


def _conditions(opened: list[_One]) -> str:
    metrics = next((one.metrics for one in opened if one.metrics), None)
    if not metrics:
        return "no run has scores yet"
    parts = [
        f"{metrics['dataset']} {metrics['split']}",
        f"{metrics['images']:,} images",
        f"{len(metrics['classes'])} classes",
    ]
    if absent := metrics.get("absent"):
        parts.append(f"no pixel of {', '.join(absent)}: left out of the means")
    return " · ".join([*parts, "best weights of each run, single scale"])


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE
