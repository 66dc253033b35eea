"""`segmv3 evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segmv3.commands.options import OnDevice, Output, Trusting, config_file, parse, refuse_existing
from segmv3.config import Data, Model
from segmv3.errors import ConfigError, OutputError, PartialOutputError, Segmv3Error
from segmv3.evaluation.settings import Settings

if TYPE_CHECKING:
    from segmv3.evaluation.run import Evaluation
    from segmv3.results.result import Result
    from segmv3.screen import Screen


@dataclass(frozen=True, kw_only=True)
class Evaluate(Settings, OnDevice, Trusting):
    """Score weights on a split, at the size of its ground truth."""

    model: Model
    data: Data
    weights: Path
    """Weight file written by a run, or a file that segmv3 export wrote."""
    report: Path | None = None
    """Also write a page with the worst images and the labels in doubt into this folder."""
    output: Output = None
    """Also write the scores to this JSON file."""
    overwrite: bool = False
    """Replace the files that --output and --report name."""


def run(arguments: list[str]) -> None:
    """Score weights and print the scores; under torchrun every process takes its share of the images.

    Args:
        arguments: what follows the name of the command.

    Raises:
        Segmv3Error: data, weights or flags that cannot be used, and scores that cannot be trusted.
    """
    path, config, rest = config_file("evaluate", arguments)
    options = parse(Evaluate, f"segmv3 evaluate {path}", rest, {"model": config.model, "data": config.data})
    from segmv3.evaluation.processes import processes
    from segmv3.evaluation.run import open_evaluation
    from segmv3.files import make_folder
    from segmv3.screen import Screen

    wanted = replace(config, model=options.model, data=options.data)
    with processes(options.weights, options.device, options.threads) as group:
        console = Screen(quiet=group.rank > 0)

        def opened() -> Evaluation:
            if group.rank == 0:  # several processes that try the same files would disturb each other
                _refuse_outputs(options)
            evaluation = open_evaluation(wanted, options.weights, options, group.device, options.trust)
            if group.rank == 0 and options.output:
                make_folder(options.output.parent)
            if group.rank == 0 and options.report:
                make_folder(options.report)
            return evaluation

        evaluation = group.agree(opened)
        if remark := group.first(evaluation.remark):
            console.say(remark)
        with console.bars() as progress:
            result = replace(evaluation.run(group, progress), config=str(path))
        group.first(lambda: _finish(options, evaluation, result, console))


def _refuse_outputs(options: Evaluate) -> None:
    if options.calibration and not options.output:
        options.refuse_contradictions()
        raise ConfigError("--calibration needs --output FILE.json; its plot is written beside that file")
    if options.output:
        refuse_existing(options.output, options.overwrite)
        if options.calibration:
            refuse_existing(_plot(options.output), options.overwrite)
    page = options.report / "evaluation.html" if options.report else None
    if page and page.exists() and not options.overwrite:
        raise OutputError(f"{page} exists; choose another --report or add --overwrite")


def _plot(output: Path) -> Path:
    return output.with_name(f"{output.stem}-reliability.png")


def _finish(options: Evaluate, evaluation: Evaluation, result: Result, console: Screen) -> None:
    """Write and print.

    The result file comes first, and each output is tried whatever became of those before it: none costs another.
    """
    from segmv3.files import write_bytes
    from segmv3.images import write_png
    from segmv3.report.plots import LIGHT
    from segmv3.report.reliability import reliability

    outputs: dict[str, Callable[[], object]] = {}
    if file := options.output:
        outputs["result"] = lambda: write_bytes(file, result.to_json().encode())
    outputs["tables"] = lambda: _show(result, console)
    if file and (measured := result.calibration):
        outputs["plot"] = lambda: write_png(_plot(file), reliability(measured, LIGHT))
    if folder := options.report:
        outputs["report"] = lambda: _write_page(folder, evaluation, result, console)
    failed: dict[str, Exception] = {}
    for name, write in outputs.items():
        try:
            write()
        except Exception as error:  # drawing and printing can fail in any way
            failed[name] = error
    if "result" in failed:
        raise failed["result"]
    for name, why in failed.items():
        text = str(why) if isinstance(why, Segmv3Error) else f"{type(why).__name__}: {why}"
        where = f"the scores are in {file}" if file else "the scores are above" if name != "tables" else "add --output"
        raise PartialOutputError(f"the {name} failed ({' '.join(text.split())[:300]}); {where}") from why


def _show(result: Result, console: Screen) -> None:
    from segmv3.report.tables import categories_table, cities_table, scores_table, summary

    console.print(scores_table(result))
    if result.categories:
        console.print(categories_table(result))
    if result.cities and len(result.cities) > 1:
        console.print(cities_table(result.cities))
    for line in summary(result):
        console.say(line)
    console.say(f"weights {result.weights}, SHA-256 {result.weights_sha256}")
    if measured := result.calibration:
        console.say(
            f"ECE {measured.ece:.2f} % over {measured.pixels:,} labelled pixels: mean confidence "
            f"{measured.confidence:.2f} %, pixel accuracy {measured.accuracy:.2f} %"
        )


def _write_page(folder: Path, evaluation: Evaluation, result: Result, console: Screen) -> None:
    """Write the page; the net runs again, over the images that are shown."""
    from segmv3.report import write_evaluation_page

    with console.bars() as progress:
        samples_of = partial(evaluation.samples, progress=progress)
        page = write_evaluation_page(folder, result, evaluation.dataset.classes, samples_of)
    console.say(f"report {page}")
