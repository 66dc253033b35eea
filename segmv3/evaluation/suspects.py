"""What `segmv3 data suspects` does, as a function: a list of the labels that look wrong, and a page of them."""

import csv
import io
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segmv3.config import Config, Data, Device
from segmv3.errors import ConfigError, OutputError, Segmv3Warning
from segmv3.evaluation.settings import Settings
from segmv3.files import make_folder, write_bytes
from segmv3.results.ranking import Suspect, label_suspects

if TYPE_CHECKING:
    from segmv3.evaluation.run import Evaluation, Progress
    from segmv3.results.result import Result

LIST, TABLE, PAGE = "suspects.txt", "suspects.csv", "suspects.html"


def find_suspects(
    data: Config | Data,
    weights: Path | str,
    *,
    split: str = "train",
    count: int = 50,
    output: Path | None = None,
    overwrite: bool = False,
    device: Device = "auto",
    threads: int | None = None,
    trust: bool = False,
    progress: "Progress | None" = None,
) -> list[Suspect]:
    """Find the labels that a net denies, though it knows their class everywhere else (`label_suspects`).

    Args:
        data: a data set, or a config whose net the weights must hold.
        weights: as for `segmv3.evaluate`.
        split: part of the data set.
        count: suspects at most, the largest (in pixels) first.
        output: folder for suspects.txt, suspects.csv and suspects.html; by default nothing is written.
        overwrite: replace an earlier list there.
        device: where to run; "auto" takes a GPU when there is one.
        threads: CPU threads; torch's own choice by default.
        trust: open an exported file that can do harm, as for `segmv3.load`.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        The suspects. Each has the name of its image, the class of the label, and the class that the net predicts.

    Raises:
        Segmv3Error: settings, data or weights that cannot be used, or an output that cannot be written.
    """
    if count < 1:
        raise ConfigError(f"--count is {count}; it must be at least 1")
    if output and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; name a folder")
    there = [output / name for name in (LIST, TABLE, PAGE) if os.path.lexists(output / name)] if output else []
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists; choose another --output or add --overwrite")
    from segmv3.evaluation.run import open_evaluation
    from segmv3.runtime import use_device

    evaluation = open_evaluation(data, weights, Settings(split=split), use_device(device, threads), trust)
    if remark := evaluation.remark():
        warnings.warn(Segmv3Warning(remark), stacklevel=2)
    result = evaluation.run(progress=progress)
    suspects = label_suspects(result, count=count)
    if output:
        _write(output, suspects, result, evaluation, progress)
    return suspects


def _write(
    folder: Path, suspects: Sequence[Suspect], result: "Result", evaluation: "Evaluation", progress: "Progress | None"
) -> None:
    """Write the page, for which the net runs again over the images shown, and the lists."""
    from segmv3.report.ranking import write_suspects_page

    pairs = {pair.name: pair for pair in evaluation.dataset.pairs}
    samples_of = partial(evaluation.samples, progress=progress)
    write_suspects_page(make_folder(folder) / PAGE, result, suspects, evaluation.dataset.classes, samples_of)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "label", "labelled", "predicted", "pixels", "percent_of_class", "percent_elsewhere"])
    for each in suspects:
        numbers = [each.pixels, f"{each.share:.2f}", f"{each.elsewhere:.2f}"]
        table.writerow([pairs[each.name].image, pairs[each.name].label, each.truth, each.predicted, *numbers])
    write_bytes(folder / TABLE, os.fsencode(text.getvalue()))
    images = dict.fromkeys(os.path.abspath(pairs[each.name].image) for each in suspects)  # noqa: PTH100
    write_bytes(folder / LIST, os.fsencode("".join(f"{image}\n" for image in images)))
