"""The data doctor: what a data set holds, and everything that is wrong with it, before a net is trained on it.

`examine` returns one JSON dict, as `segmv3.evaluation.scores.scores` does for scores; the table and the page are made
from it. Findings come in three levels: an *error* makes the data unusable, a *warning* should be known, a *note*
explains. Files are only ever read.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import segmv3
from segmv3.config import Data
from segmv3.data.check import id_names
from segmv3.data.datasets import Dataset, find_split
from segmv3.data.findings import describe, findings_of, see
from segmv3.data.sources import name_of
from segmv3.errors import DataError
from segmv3.files import make_folder, write_json
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import ILLEGAL, Classes, LabelTable
from segmv3.media.draw import WRONG, colorize
from segmv3.report.doctor import LabelledImage, write_check_page


@dataclass(frozen=True)
class Examination:
    """The result, and what it takes to show pictures of it."""

    result: dict[str, Any]
    """All that was found, as JSON types."""
    classes: Classes
    datasets: tuple[Dataset, ...]
    """The pairs of each split that can be read."""
    tables: dict[Path, LabelTable]
    """Tables by label file."""

    def picture(self, path: Path) -> UInt8Array | None:
        """An image, or a label in class colours (grey, with illegal ids in red): uint8 H x W x 3; None for damage."""
        with suppress(DataError):
            if table := self.tables.get(path):
                return _painted(read_ids(path), table, self.classes)
        with suppress(DataError):
            return read_image(path)  # perhaps a label that is no label map: show what it is
        return None

    def samples(self, count: int = 4) -> list[LabelledImage]:
        """Evenly spaced readable pairs of each split."""
        shown = []
        for dataset in self.datasets:
            few = min(count, len(dataset))
            for number in range(few):
                index = (2 * number + 1) * len(dataset) // (2 * few)
                shown.append(LabelledImage(dataset.split, dataset.pairs[index].name, *dataset.read(index)))
        return shown


def write_examination(examination: Examination, folder: Path) -> Path:
    """Write `check.json`, `check.html` and `figures/`; returns the path of the page.

    Raises: OutputError when a file cannot be written.
    """
    make_folder(folder)
    write_json(folder / "check.json", examination.result, indent=2)
    samples, classes, labels = examination.samples(), examination.classes, examination.tables
    return write_check_page(folder, examination.result, classes, samples, examination.picture, labels)


def examine(data: Data, splits: Sequence[str], progress: Callable[[str, int, int], None] | None = None) -> Examination:
    """Read every file of the splits and collect what is wrong, all of it.

    Args:
        data: the data set.
        splits: their names.
        progress: called with (split, files done, files to read); what is remembered is not read.

    Raises:
        DataError: none of the splits holds anything to look at.
    """
    listed = [find_split(data, split) for split in splits]
    if (fault := listed[0].fault) and not any(found.images or found.labels for found in listed):
        raise fault
    seen = [see(found, progress) for found in listed]
    classes = seen[0].found.classes
    described = {each.split: describe(each) for each in seen}
    findings = findings_of(seen, described)
    counts = Counter(finding.level for finding in findings)
    result = {
        "dataset": next((each.found.title for each in seen if not each.found.fault), data.root.resolve().name),
        "root": str(data.root),
        "layout": name_of(data),
        "usable": not counts["error"],
        "errors": counts["error"],
        "warnings": counts["warning"],
        "splits": {
            split: {key: value for key, value in each.items() if key != "classes"} for split, each in described.items()
        },
        "classes": [
            {
                "name": name,
                "train_id": i,
                "rgb": list(classes.colors[i]),
                "splits": {split: each["classes"][i] for split, each in described.items()},
            }
            for i, name in enumerate(classes.names)
        ],
        "ids": id_names({table for each in seen for table in each.tables.values()}, classes),
        "findings": [finding.as_json() for finding in findings],
        "segmv3": segmv3.__version__,
    }
    datasets = (Dataset(each.found.title, each.split, classes, each.readable) for each in seen)
    tables = {path: table for each in seen for path, table in each.tables.items()}
    return Examination(result, classes, tuple(filter(len, datasets)), tables)


def _painted(ids: UInt8Array, table: LabelTable, classes: Classes) -> UInt8Array:
    labels = table.lookup[ids]
    painted = colorize(labels, classes)
    illegal = (labels == ILLEGAL).astype(np.uint8)
    if illegal.any():
        grey = cv2.cvtColor(painted, cv2.COLOR_RGB2GRAY) // 2 + 50  # some class is red wherever red could mark a fault
        painted = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        reach = max(ids.shape) // 120  # a single pixel must be seen in a thumbnail
        painted[cv2.dilate(illegal, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0] = WRONG
    return painted
