"""The mmsegmentation table with our numbers beside it: counted now, or measured and kept in result files.

A result file is what `segmv3 evaluate --output` writes. It fills a row when it covers all 500 images of Cityscapes
val at 1024x2048 and its weights are those of the row: see `weights_of`.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from segmv3.config import Data
from segmv3.errors import DataError, printable
from segmv3.evaluation.run import Progress, open_evaluation
from segmv3.evaluation.settings import Settings
from segmv3.inference import MULTI_SCALES
from segmv3.models.count import NetFacts
from segmv3.models.zoo import net_name
from segmv3.results.result import Result
from segmv3.weights import names
from segmv3.weights.opening import open_segmenter

_VAL_IMAGES = 500
_SIZE = (1024, 2048)

Origin = Literal["imported", "own"]


@dataclass(frozen=True)
class Theirs:
    """What mmsegmentation publishes: memory of training, speed and scores on V100."""

    memory: float
    """GB."""
    fps: float
    miou: float
    multi_scale_flip: float


@dataclass(frozen=True)
class Row:
    """A net of the table."""

    title: str
    net: str
    recipe: str
    """File name of the config of our own training, without .py."""
    published: str | None = None
    """Name of their weights; None for a net that mmsegmentation has not."""
    theirs: Theirs | None = None


def _mmseg(title: str, size: str, name: str, numbers: Theirs) -> Row:
    scratch = "_scratch" if title.endswith("(scratch)") else ""
    return Row(
        f"LRASPP {title}", f"lraspp_{size}_d8_mmseg", f"lraspp_{size}_d8_mmseg{scratch}", f"mmseg/{name}", numbers
    )


ROWS = (
    _mmseg("M-V3-D8", "large", "lraspp_m-v3-d8", Theirs(8.9, 15.22, 69.54, 70.89)),
    _mmseg("M-V3-D8 (scratch)", "large", "lraspp_m-v3-d8_scratch", Theirs(8.9, 14.77, 67.87, 69.78)),
    _mmseg("M-V3s-D8", "small", "lraspp_m-v3s-d8", Theirs(5.3, 23.64, 64.11, 66.42)),
    _mmseg("M-V3s-D8 (scratch)", "small", "lraspp_m-v3s-d8_scratch", Theirs(5.3, 24.50, 62.74, 65.01)),
    Row("lraspp_large_d8", "lraspp_large_d8", "lraspp_large_d8"),
    Row("lraspp_small_d8", "lraspp_small_d8", "lraspp_small_d8"),
)
"""mmsegmentation 1.2.2, configs/mobilenet_v3/README.md, in its order; then the nets of the paper."""


# --- result files ---


def weights_of(result: Result) -> str | None:
    """Whose weights a result is of: a published name, the recipe of our own training, or None for neither.

    Published: evaluated by that name, or the file's SHA-256 is the published one, or its origin has that name. Own:
    the recipe that `segmv3 benchmark table --evaluate` wrote, else the file name of the config of `segmv3 evaluate`.

    Args:
        result: what was evaluated.
    """
    known = names.published()
    for name in (row.published for row in ROWS if row.published):
        genuine = name in known and (result.weights_sha256 or "").startswith(known[name].sha256)
        if genuine or name in (result.weights, (result.origin or {}).get("name")):
            return name
    recipe = result.recipe or Path(result.config or "").stem
    return recipe if recipe in {row.recipe for row in ROWS} else None


@dataclass(frozen=True)
class Results:
    """The result files of a folder."""

    folder: Path
    found: tuple[Result, ...] = ()
    left_out: tuple[str, ...] = ()
    """Why other JSON files were not used, one line each."""


def read_results(folder: Path) -> Results:
    """Every result file of a folder, checked against its own counts; a folder that is not there has none."""
    found, left_out = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            result = Result.read(path)
        except DataError as error:
            left_out.append(str(error))
            continue
        if weights_of(result) is None:
            left_out.append(f"{path} is of weights that are in no row")
        else:
            found.append(result)
    return Results(folder, tuple(found), tuple(left_out))


def _shortcoming(result: Result) -> str:
    """Why a result is no entry of the table; empty when it is one."""
    whole = len(result.names) == result.images_in_split == _VAL_IMAGES
    if (result.dataset, result.split) == ("Cityscapes", "val") and whole and result.size == _SIZE:
        return ""
    of = f" of {result.images_in_split:,}" if result.images_in_split else ""
    return f"{result.source} is of {len(result.names):,}{of} images of {result.dataset} {result.split}"


def _mode(result: Result) -> str:
    if result.sliding_window or result.input_size or result.input_scale or result.runtime:
        return "other"  # windows, another size of the input, an exported file
    known: dict[Any, str] = {((1.0,), False): "single", (MULTI_SCALES, True): "ms+flip"}
    return known.get((result.scales, result.flip), "other")


# --- the table ---


@dataclass(frozen=True)
class Line:
    """A line of the table: a net with their weights or with our own."""

    row: Row
    origin: Origin
    parameters: int
    gmacs: float
    """At 1024 x 2048."""
    single: Result | None
    multi: Result | None
    why: str
    """Why something was not measured; empty when all was."""

    def fact(self, key: str) -> Any:
        """Of the single-scale result, else of the other one; None when it was not recorded."""
        facts = (getattr(result, key) for result in (self.single, self.multi) if result)
        return next((fact for fact in facts if fact is not None), None)


def lines(results: Results, nets: Iterable[NetFacts], failures: dict[str, str]) -> list[Line]:
    """All lines: each row with their weights first, then with our own.

    Args:
        results: of a folder.
        nets: as `segmv3.models.count.describe_nets` counts them.
        failures: why weights could not be evaluated, by published name or recipe.

    Raises:
        DataError: two files fill the same place.
    """
    counted = {net.name: net for net in nets}
    result = []
    for row in ROWS:
        wanted: list[tuple[Origin, str]] = [("imported", row.published)] if row.published else []
        for origin, weights in [*wanted, ("own", row.recipe)]:
            own = [r for r in results.found if weights_of(r) == weights]
            single, multi = (_one([r for r in own if _mode(r) == mode]) for mode in ("single", "ms+flip"))
            why = _why(results, own, (single, multi), failures.get(weights, ""))
            cost = counted[row.net]
            result.append(Line(row, origin, cost.parameters, cost.gmacs, single, multi, why))
    return result


def _one(candidates: Sequence[Result]) -> Result | None:
    usable = [result for result in candidates if not _shortcoming(result)]
    if len(usable) > 1:
        raise DataError(f"{usable[0].source} and {usable[1].source} are of the same weights; keep one of them")
    return usable[0] if usable else None


def _why(results: Results, own: Sequence[Result], used: tuple[Result | None, Result | None], failure: str) -> str:
    missing = [name for name, result in zip(("single scale", "ms+flip"), used, strict=True) if result is None]
    if not missing:
        return ""
    what = "" if len(missing) == 2 else f"{missing[0]}: "
    shortcomings = [text for text in map(_shortcoming, own) if text]
    return what + (failure or "; ".join(shortcomings) or f"no Cityscapes here, and no result file in {results.folder}")


COLUMNS = (
    *("method", "their mem (GB)", "their fps", "their mIoU", "their ms+flip"),
    *("our weights", "params", "GMACs", "mIoU", "ms+flip", "mem (GB)", "fps", "device"),
)

NOTES = (
    "Theirs: mmsegmentation 1.2.2 on V100, memory of training. Ours: parameters with 19 classes and multiply-adds at "
    "1024x2048 counted now; memory and fps of labelling one 1024x2048 image, single scale."
)

MISSING = "not measured"


def cells(line: Line) -> tuple[str, ...]:
    """A line as text, one cell for each of `COLUMNS`."""
    theirs = line.row.theirs
    published = (theirs.memory, theirs.fps, theirs.miou, theirs.multi_scale_flip) if theirs else ()
    memory, fps, device = (line.fact(key) for key in ("memory_gb", "fps", "device"))
    if line.single is None:
        memory = fps = None  # six scales take other amounts
    return (
        line.row.title,
        *(f"{value:.{1 if i == 0 else 2}f}" for i, value in enumerate(published)),
        *("-" for _ in range(4 - len(published))),
        line.origin,
        f"{line.parameters:,}",
        f"{line.gmacs:.2f}",
        *(f"{result.counts.miou:.2f}" if result else MISSING for result in (line.single, line.multi)),
        *(f"{value:.2f}" if value is not None else "-" for value in (memory, fps)),
        str(line.fact("device_name") or device or "-"),
    )


def reasons(table: Sequence[Line]) -> list[str]:
    """One sentence for each reason why something was not measured, with the lines that it holds for."""
    why: dict[str, list[str]] = {}
    for line in table:
        if line.why:
            why.setdefault(line.why, []).append(f"{line.row.title}, {line.origin}")
    return [
        f"not measured: {reason} ({'all rows' if len(titles) == len(table) else '; '.join(titles)})"
        for reason, titles in why.items()
    ]


def markdown(table: Sequence[Line], results: Results) -> str:
    """The table as a page, with the reasons below."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(map(_plain, cells(line)) for line in table)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    below = map(_plain, [*reasons(table), *(f"Left out: {line}" for line in results.left_out)])
    bullets = "".join(f"- {line}\n" for line in below)
    return f"# Cityscapes val\n\n{text}\n\n{NOTES}\n" + (f"\n{bullets}" if bullets else "")


def _plain(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))


# --- measuring ---


def result_file(folder: Path, weights: str, multi_scale_flip: bool) -> Path:
    """Where the result of published weights, or of a recipe, is kept."""
    return folder / f"{weights.replace('/', '_')}{'_ms-flip' if multi_scale_flip else ''}.json"


def recipe_of(weights: Path) -> str:
    """The recipe that weights of our own are of: their net's name, with _scratch for one of mmsegmentation's nets
    that was not started from other weights.

    Raises: CheckpointError, as `open_segmenter`; DataError when the table has no such row.
    """
    model, card = open_segmenter(weights)
    name = net_name(model.config)
    scratch = name.endswith("_mmseg") and "pretrained" not in card.facts
    recipe = f"{name}_scratch" if scratch else name
    if "origin" in card.facts or recipe not in {row.recipe for row in ROWS}:
        raise DataError(f"{weights} is of {'another project' if 'origin' in card.facts else name}: it is in no row")
    return recipe


def measure(
    source: str | Path,
    data: Data,
    settings: Settings,
    device: torch.device,
    progress: Progress,
) -> Result:
    """Evaluate weights as `segmv3.evaluate` does, and measure speed and memory.

    `fps` is 1 / the median time from an image on the device to its labels, one at a time; `memory_gb` is what CUDA
    allocated at most, None on a CPU.

    Args:
        source: a weight file or a published name.
        data: the data set.
        settings: how to score.
        device: where to run.
        progress: as for `segmv3.evaluate`.

    Raises:
        CheckpointError: weights that cannot be had.
        DataError: data that cannot be scored.
    """
    evaluation = open_evaluation(data, source, settings, device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds: list[float] = []
    timed = _timed(evaluation.labels_of, seconds)
    return replace(
        replace(evaluation, labels_of=timed).run(progress=progress),
        device_name=torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        fps=1 / median(seconds),
        memory_gb=torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None,
        recipe=recipe_of(source) if isinstance(source, Path) else None,
    )


def _timed(run: Callable[[Tensor], Any], seconds: list[float]) -> Callable[[Tensor], Any]:
    """The same function, which also notes how long each call takes until its labels are there."""

    def timed(image: Tensor) -> Any:
        began = time.perf_counter()
        labels = run(image)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        seconds.append(time.perf_counter() - began)
        return labels

    return timed
