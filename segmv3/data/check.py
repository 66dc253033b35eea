"""The problems that keep a data set from training and scoring, and the digests by which a run knows its data again.

Training looks for `problems_in` its data before the first step. The data doctor (`segmv3.doctor`) builds its tables
from the same facts (`segmv3.data.facts`). Whichever comes second reads no file again.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segmv3.data.datasets import Dataset, Pair
from segmv3.data.facts import Facts, Found, read_files, read_pairs
from segmv3.data.listing import sizes_differ
from segmv3.errors import DataError
from segmv3.files import text_sha256
from segmv3.images import NoLabelMap
from segmv3.labels import IGNORE, Classes, LabelTable
from segmv3.pipeline import Progress, on_all_cores

PairFacts = Sequence[tuple[Found, Found]]
"""What was found of each image and its label, in the order of a split."""

_NAMED = 5  # files that one line can name
_CHECKED = 1000  # files that `digest_some` decodes


@dataclass(frozen=True)
class Problem:
    """One file that training would stumble over."""

    kind: str
    """damaged, no label map, illegal ids, or sizes differ."""
    path: Path
    text: str
    """The file, what is wrong with it and what to do, without the area in front."""


def problems_in(dataset: Dataset, progress: Progress | None = None) -> list[Problem]:
    """Every problem of a split, in the order of its pairs. Files that are remembered are not read again."""
    found = read_pairs(dataset, progress)
    return [problem for pair, facts in zip(dataset.pairs, found, strict=True) for problem in problems_of(pair, *facts)]


def refuse(problems: Sequence[Problem], *splits: str) -> None:
    """Raises: DataError, one line for all problems, when there are any."""
    if not problems:
        return
    first = problems[0].text
    if len(problems) == 1:
        raise DataError(first)
    names = ", ".join(problem.path.name for problem in problems[:_NAMED])
    more = f" and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
    raise DataError(
        f"{len(problems):,} files in {' and '.join(map(repr, splits))} cannot be used: {names}{more}. "
        f"The first: {first.removesuffix('.')}. `segmv3 data check` shows them all."
    )


def problems_of(pair: Pair, image: Found, label: Found) -> list[Problem]:
    """What keeps a pair from being trained on or scored."""
    sides = ((pair.image, image), (pair.label, label))
    problems = [damage(path, found) for path, found in sides if isinstance(found, DataError)]
    if isinstance(label, Facts):
        try:
            pair.table.to_train_ids(np.array([stored for stored, _ in label.ids], np.uint8), pair.label)
        except DataError as error:
            problems.append(Problem("illegal ids", pair.label, message(error)))
    if isinstance(image, Facts) and isinstance(label, Facts) and image.size != label.size:
        turned = image.orientation > 4 and image.size == label.size[::-1]
        reason = "; EXIF data turn the image, and the label was made for the unturned one" if turned else ""
        problems.append(Problem("sizes differ", pair.image, sizes_differ(pair, image.size, label.size) + reason))
    return problems


def damage(path: Path, error: DataError) -> Problem:
    """The problem of a file that has no facts: damage, or a picture where a label map should be."""
    kind = "no label map" if isinstance(error, NoLabelMap) else "damaged"
    return Problem(kind, path, message(error))


def message(error: DataError) -> str:
    """The text of an error without its area."""
    return str(error.args[0])


def train_counts(label: Facts, table: LabelTable) -> NDArray[np.int64]:
    """Pixels of a label by train id, int64 256; illegal ids count nowhere."""
    counts = np.zeros(256, np.int64)
    train_ids = dict(table.train_ids)
    for stored, pixels in label.ids:
        if stored in train_ids:
            counts[train_ids[stored]] += pixels
    return counts


def class_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Labelled pixels of each class in each image of a split, int64 N x C; a label that cannot be read has none.

    After `check` no file is read for it.
    """
    counts = np.zeros((len(dataset), 256), np.int64)
    found = read_files([(pair.label, "label") for pair in dataset.pairs])
    for row, pair, label in zip(counts, dataset.pairs, found, strict=True):
        row += train_counts(label, pair.table) if isinstance(label, Facts) else 0
    return counts[:, : len(dataset.classes)]


def class_pixels(dataset: Dataset) -> NDArray[np.int64]:
    """Labelled pixels of each class in a split, int64 C; labels that cannot be read count nowhere."""
    return class_counts(dataset).sum(0)


def digest_some(count: int, digest: Callable[[int], bytes], progress: Progress, begin: str = "") -> str:
    """Decode up to 1,000 evenly spaced files of a split; all of a large one would take hours.

    That finds a wrong format, missing rights or a copy that broke off. A damaged file among the others ends the
    run where it is met, with the state saved.

    Args:
        count: files of the split.
        digest: of the pixels of one of them, by its place; what it raises ends the check.
        progress: called with (files done, files in all).
        begin: what else a run knows its data by.

    Returns: a digest of all.
    """
    chosen = np.linspace(0, count - 1, min(count, _CHECKED)).round().astype(int)
    whole = hashlib.sha256(begin.encode())
    with on_all_cores(digest, chosen) as digests:
        for done, each in enumerate(digests, 1):
            whole.update(each)
            progress(done, len(chosen))
    return whole.hexdigest()


def class_remark(dataset: Dataset, root: Path, found: PairFacts | None = None) -> str:
    """What to know of the classes of a split and its extra images; empty where all of them occur.

    Args:
        dataset: the split.
        root: of the data set, for the message.
        found: what `read_pairs` gave, where it was asked.

    Raises:
        DataError: the split cannot teach or test its classes.
    """
    pixels, marked = np.zeros(256, np.int64), False
    parts = [(dataset, found or read_pairs(dataset))]
    parts += [(dataset.extra, read_pairs(dataset.extra))] if dataset.extra else []
    for part, facts in parts:
        for pair, (_, label) in zip(part.pairs, facts, strict=True):
            if isinstance(label, Facts):
                pixels += train_counts(label, pair.table)
                marked |= bool(dict(label.ids).get(IGNORE))
    level, text = fault_of(dataset.split, dataset.classes, pixels[: len(dataset.classes)], marked=marked) or ("", "")
    if level == "error":
        raise DataError(f"{root}: {text}")
    return text


def fault_of(
    split: str, classes: Classes, pixels: NDArray[np.int64], *, marked: bool
) -> tuple[Literal["error", "warning"], str] | None:
    """Whether a split can teach or test its classes; None where all of them occur.

    Args:
        split: the name of the split; `train` is what is learned from.
        classes: those of the data set.
        pixels: int64 C, labelled pixels by class.
        marked: whether label files hold id 255.
    """
    absent = [name for name, count in zip(classes.names, pixels, strict=True) if not count]
    if not absent:
        return None
    hint = "; id 255 is read as ignore: where it means a class, give it another (segmv3 data import)" if marked else ""
    if len(absent) == len(classes):
        return "error", f"no pixel of '{split}' is labelled: nothing to learn or to score{hint}"
    names = ", ".join(absent)
    if split == "train" and len(classes) - len(absent) == 1:
        only = f"{classes.names[int(np.argmax(pixels))]} is the only class with a pixel in '{split}'"
        return "error", f"{only}: a net of one class is always right. Absent: {names}{hint}"
    effect = "cannot be learned" if split == "train" else "left out of the mean IoU unless predicted"
    number = "1 class is" if len(absent) == 1 else f"{len(absent)} classes are"
    # one id cannot mean two classes: then 255 stands for what a label leaves out
    return "warning", f"{number} absent ({effect}): {names}{hint if len(absent) == 1 else ''}"


def contents(dataset: Dataset, found: PairFacts | None = None) -> dict[str, Any]:
    """What a split holds, as JSON types: two that give the same are the same data.

    Args:
        dataset: a split without faults.
        found: what `read_pairs` gave, where it was asked.

    Returns: `ids`, what each stored id is read as; `images` and `labels`, digests of all pixels in the order of pairs.
    """
    images, labels = (
        text_sha256("".join(each.digest for each in files if isinstance(each, Facts)))
        for files in zip(*(found or read_pairs(dataset)), strict=True)
    )
    ids = id_names({pair.table for pair in dataset.pairs}, dataset.classes)
    result: dict[str, Any] = {"images": images, "labels": labels, "ids": ids}
    return result | ({"extra": contents(dataset.extra)} if dataset.extra else {})


def id_names(tables: Iterable[LabelTable], classes: Classes) -> dict[str, str]:
    """What every legal stored id is read as; kinds of labels that disagree are both named."""
    names: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        for stored, train in table.train_ids:
            names[str(stored)].add("ignored" if train >= len(classes) else classes.names[train])
    return {stored: " or ".join(sorted(names[stored])) for stored in sorted(names, key=int)}
