"""The data doctor: what a data set holds, and everything that is wrong with it, before a net is trained on it.

`examine` returns one JSON dict, as `segmv3.evaluation.scores.scores` does for scores; the table and the page are made
from it. Findings come in three levels: an *error* makes the data unusable, a *warning* should be known, a *note*
explains. Files are only ever read.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

import segmv3
from segmv3.config import Data
from segmv3.data.check import Problem, damage, fault_of, id_names, message, problems_of, train_counts
from segmv3.data.datasets import Dataset, Pair, find_split
from segmv3.data.facts import Facts, Files, Found, read_files
from segmv3.data.listing import Split, count_of
from segmv3.data.sources import name_of
from segmv3.errors import DataError
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import IGNORE, Classes, LabelTable
from segmv3.media.draw import WRONG, colorize
from segmv3.report.doctor import LabelledImage, Pictures, write_check_page

Level = Literal["error", "warning", "note"]

_TINY = 64  # pixels; the deepest features of such an image are 4 x 4
_ILLEGAL = 254  # in pictures only; no class has it


@dataclass(frozen=True)
class Item:
    """One file of a finding."""

    path: Path
    text: str = ""
    """What is wrong with this one; empty where the finding says it all."""
    partner: Path | None = None
    """The file it does not fit, or the same picture elsewhere."""


@dataclass(frozen=True)
class Finding:
    """One thing to know about a split, with all its files."""

    level: Level
    kind: str
    split: str
    text: str
    items: tuple[Item, ...] = ()

    def as_json(self) -> dict[str, Any]:
        files = [
            {"path": str(item.path), "text": item.text, "partner": str(item.partner) if item.partner else None}
            for item in self.items
        ]
        return {"level": self.level, "kind": self.kind, "split": self.split, "text": self.text, "files": files}


@dataclass(frozen=True)
class Examination:
    """The result, and what it takes to show pictures of it."""

    result: dict[str, Any]
    """All that was found, as JSON types."""
    classes: Classes
    datasets: tuple[Dataset, ...]
    """The pairs of each split that can be read."""
    tables: dict[Path, LabelTable]
    """By label file."""

    def picture(self, path: Path) -> UInt8Array | None:
        """An image, or a label in class colours (grey, with illegal ids in red): uint8 H x W x 3; None for damage."""
        table = self.tables.get(path)
        try:
            if table is None:
                return read_image(path)
            return _painted(read_ids(path), table, self.classes)
        except DataError:
            pass
        try:
            return read_image(path)  # a label that is no label map: show what it is
        except DataError:
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
    write_bytes(folder / "check.json", json.dumps(examination.result, indent=2).encode())
    pictures = Pictures(examination.picture, frozenset(examination.tables))
    return write_check_page(folder, examination.result, examination.classes, examination.samples(), pictures)


def examine(data: Data, splits: Sequence[str], progress: Callable[[str, int, int], None] | None = None) -> Examination:
    """Read every file of the splits and collect what is wrong, all of it.

    Args:
        data: the data set.
        splits: their names.
        progress: called with (split, pairs done, pairs to read); what is remembered is not read.

    Raises:
        DataError: none of the splits holds anything to look at.
    """
    seen = [_see(found, progress) for found in _list_splits(data, splits)]
    classes = seen[0].found.classes
    described = {each.split: _describe(each) for each in seen}
    findings: list[Finding] = []
    for each in seen:
        findings += [*_listing_findings(each.found), *_fault_findings(each), *_look_findings(each)]
    findings += [*_class_findings(described, classes), *_duplicate_findings(seen)]
    order: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.level])  # stable: by split within
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


@dataclass(frozen=True)
class _Seen:
    """A split and what its files hold."""

    found: Split
    facts: dict[Path, Found]

    @property
    def split(self) -> str:
        return self.found.name

    @cached_property
    def images(self) -> dict[Path, Facts]:
        """Those that could be read, with and without partner."""
        return self._read([*(pair.image for pair in self.found.pairs), *self.found.lone_images])

    @cached_property
    def labels(self) -> dict[Path, Facts]:
        """Those that could be read, with and without partner."""
        return self._read(self.tables)

    def _read(self, paths: Iterable[Path]) -> dict[Path, Facts]:
        return {path: facts for path in paths if isinstance(facts := self.facts[path], Facts)}

    @cached_property
    def tables(self) -> dict[Path, LabelTable]:
        """Of every label file."""
        return {pair.label: pair.table for pair in self.found.pairs} | dict(self.found.lone_labels)

    @cached_property
    def partners(self) -> dict[Path, Path]:
        """The label of each image and the image of each label."""
        pairs = self.found.pairs
        return {pair.image: pair.label for pair in pairs} | {pair.label: pair.image for pair in pairs}

    @cached_property
    def problems(self) -> list[Problem]:
        """Of the files one by one, pairs first."""
        problems: list[Problem] = []
        for pair in self.found.pairs:
            problems += problems_of(pair, self.facts[pair.image], self.facts[pair.label])
        for path in (*self.found.lone_images, *(label for label, _ in self.found.lone_labels)):
            if isinstance(error := self.facts[path], DataError):
                problems.append(damage(path, error))
        return problems

    @cached_property
    def readable(self) -> tuple[Pair, ...]:
        """The pairs that training could use."""
        bad = {problem.path for problem in self.problems}
        return tuple(pair for pair in self.found.pairs if not bad & {pair.image, pair.label})


def _see(found: Split, progress: Callable[[str, int, int], None] | None) -> _Seen:
    def show(done: int, total: int) -> None:
        if progress:
            progress(found.name, done, total)

    files: list[Files] = [
        *((pair.image, pair.label) for pair in found.pairs),
        *((image, None) for image in found.lone_images),
        *((None, label) for label, _ in found.lone_labels),
    ]
    facts = chain.from_iterable(read_files(files, show))
    return _Seen(
        found, {path: each for path, each in zip(chain.from_iterable(files), facts, strict=True) if path and each}
    )


# --- what lies there ---


def _list_splits(data: Data, splits: Sequence[str]) -> list[Split]:
    listed = [find_split(data, split) for split in splits]
    if (fault := listed[0].fault) and not any(found.images or found.labels for found in listed):
        raise fault
    return listed


def _listing_findings(found: Split) -> list[Finding]:
    """What does not fit together, and what is left out."""
    findings: list[Finding] = []
    if found.fault:
        findings += _pairing_findings(found)
        if found.misplaced:
            text = f"{count_of(len(found.misplaced), 'file lies', 'files lie')} in the folder of another city"
            items = tuple(Item(path) for path in found.misplaced)
            findings.append(Finding("error", "wrong city", found.name, text, items))
        if not any(finding.level == "error" for finding in findings) and not (found.images and found.name == "test"):
            findings.append(Finding("error", "layout", found.name, message(found.fault)))
    return findings + [Finding("warning", "left out", found.name, text) for text in found.left_out]


def _pairing_findings(found: Split) -> Iterator[Finding]:
    split, images = found.name, found.images
    labels = {name: [path for path, _ in each] for name, each in found.labels.items()}
    if images and not labels and split == "test":
        text = f"none of the {len(images):,} images has a label: a test split; it can be predicted, not scored"
        yield Finding("note", "test split", split, text)
    elif images and labels:  # with one side empty the place is wrong, and the refusal says so
        for what, kind, lone in (
            ("image", "no label", found.lone_images),
            ("label", "no image", [path for path, _ in found.lone_labels]),
        ):
            if lone:
                text = count_of(len(lone), f"{what} has {kind}", f"{what}s have {kind}")
                yield Finding("error", "unpaired", split, text, tuple(map(Item, lone)))
    for side in (images, labels):
        same = [paths for _, paths in sorted(side.items()) if len(paths) > 1]
        if same:
            items = tuple(Item(path, partner=paths[0]) for paths in same for path in paths[1:])
            text = f"{count_of(len(same), 'name is', 'names are')} shared by two files or more; keep one of each"
            yield Finding("error", "same name", split, text, items)


# --- what is wrong with files ---

_FAULTS = {  # in the order they are told: one, many, and the rest of the sentence
    "damaged": ("file cannot", "files cannot", "be decoded"),
    "no label map": ("label is", "labels are", "no map of ids (8-bit, one channel)"),
    "illegal ids": ("label holds", "labels hold", "illegal ids"),
    "sizes differ": ("image has", "images have", "another size than the label"),
}


def _fault_findings(seen: _Seen) -> Iterable[Finding]:
    for kind, (one, many, rest) in _FAULTS.items():
        problems = [problem for problem in seen.problems if problem.kind == kind]
        if problems:
            items = tuple(Item(problem.path, problem.text, seen.partners.get(problem.path)) for problem in problems)
            yield Finding("error", kind, seen.split, f"{count_of(len(items), one, many)} {rest}", items)


def _look_findings(seen: _Seen) -> Iterable[Finding]:
    """What can be read, and is still seldom meant."""
    for kind, paths, one, many in (*_image_looks(seen.images), *_label_looks(seen.labels)):
        if paths:
            items = tuple(Item(path, partner=seen.partners.get(path)) for path in paths)
            yield Finding("warning", kind, seen.split, count_of(len(paths), one, many), items)
    yield from _size_findings(seen)
    yield from _void_findings(seen)


Look = tuple[str, list[Path], str, str]
"""A kind of warning, its files, and what to say of one and of many."""


def _image_looks(images: dict[Path, Facts]) -> Iterable[Look]:
    tiny = [path for path, facts in images.items() if min(facts.size) < _TINY]
    narrow = f"less than {_TINY} pixels wide or high"
    yield "tiny", tiny, f"image is {narrow}", f"images are {narrow}"
    turned = [path for path, facts in images.items() if facts.orientation != 1]
    one = "image is turned by its EXIF data; its label must match the turned one"
    yield "EXIF", turned, one, "images are turned by their EXIF data; their labels must match the turned ones"
    deep = [path for path, facts in images.items() if facts.mode.startswith(("I", "F"))]
    yield (
        "16-bit",
        deep,
        "image has 16 bits or more; it is read as 8",
        "images have 16 bits or more; they are read as 8",
    )
    for mode in sorted({facts.mode for facts in images.values()} - {"RGB"}):
        odd = [path for path, facts in images.items() if facts.mode == mode and path not in deep]
        yield "mode", odd, f"image is stored as {mode}; it is read as RGB", f"images are stored as {mode}; read as RGB"


def _label_looks(labels: dict[Path, Facts]) -> Iterable[Look]:
    palettes = [path for path, facts in labels.items() if facts.mode == "P"]
    one = "label has a palette; its indices are read as ids"
    yield "palette", palettes, one, "labels have a palette; their indices are read as ids"


def _size_findings(seen: _Seen) -> Iterable[Finding]:
    sizes = Counter(facts.size for facts in seen.images.values())
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        items = tuple(
            Item(path, f"{path} is {_size(facts.size)}") for path, facts in seen.images.items() if facts.size != usual
        )
        text = (
            f"{count_of(len(items), 'image is', 'images are')} not {_size(usual)} like most; {len(sizes)} sizes in all"
        )
        yield Finding("warning", "mixed sizes", seen.split, text, items)


def _void_findings(seen: _Seen) -> Iterable[Finding]:
    classes = len(seen.found.classes)
    void = [path for path, facts in seen.labels.items() if not train_counts(facts, seen.tables[path])[:classes].any()]
    if not void:
        return
    if len(void) < len(seen.labels):
        text = count_of(len(void), "label has no labelled pixel", "labels have no labelled pixel")
        items = tuple(Item(path, partner=seen.partners.get(path)) for path in void)
        yield Finding("warning", "void", seen.split, text, items)
    elif seen.split == "test":
        text = "no pixel is labelled: a test split whose labels are kept back; it can be predicted, not scored"
        yield Finding("note", "test split", seen.split, text)


def _class_findings(described: dict[str, dict[str, Any]], classes: Classes) -> Iterable[Finding]:
    for split, each in described.items():
        pixels = np.array([row["pixels"] for row in each["classes"]])
        fault = fault_of(split, classes, pixels, marked=bool(each["ids"].get(str(IGNORE))))
        if each["pixels"] and fault and (split != "test" or pixels.any()):
            level, text = fault
            yield Finding(level, "absent" if pixels.any() else "void", split, text)


def _duplicate_findings(splits: Sequence[_Seen]) -> Iterable[Finding]:
    """Images with the same pixels, by the split of the later one."""
    first: dict[str, tuple[str, Path]] = {}
    items: dict[tuple[str, str], list[Item]] = defaultdict(list)
    labels = {image: each.labels.get(label) for each in splits for image, label in each.partners.items()}
    for each in splits:
        for path, facts in each.images.items():
            split, original = first.setdefault(facts.digest, (each.split, path))
            if path == original:
                continue
            mine, its = labels.get(path), labels.get(original)
            differ = mine and its and mine.digest != its.digest
            text = f"{path} is the same picture as {original}" + (", but their labels differ" if differ else "")
            items[each.split, split].append(Item(path, text, original))
    for (split, other), same in items.items():
        if split == other:
            text = f"{count_of(len(same), 'image repeats', 'images repeat')} another one of the split"
            yield Finding("warning", "duplicate", split, text, tuple(same))
        else:
            text = f"{count_of(len(same), 'image is', 'images are')} also in {other}: splits must not share images"
            yield Finding("warning", "leak", split, text, tuple(same))


# --- numbers ---


def _describe(seen: _Seen) -> dict[str, Any]:
    classes = len(seen.found.classes)
    stored: Counter[int] = Counter()
    pixels, images_with = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for path, facts in seen.labels.items():
        stored.update(dict(facts.ids))
        counts = train_counts(facts, seen.tables[path])[:classes]
        pixels += counts
        images_with += counts > 0
    total, labelled = sum(stored.values()), int(pixels.sum())
    return {
        "images": len(seen.found.pairs) + len(seen.found.lone_images),
        "labels": len(seen.tables),
        "usable_pairs": len(seen.readable),
        "sizes": _counted(_size(facts.size) for facts in seen.images.values()),
        "image_modes": _counted(f"{facts.format} {facts.mode}" for facts in seen.images.values()),
        "label_modes": _counted(f"{facts.format} {facts.mode}" for facts in seen.labels.values()),
        "label_kinds": _counted(table.kind for table in seen.tables.values()),
        "pixels": total,
        "labelled_pixels": labelled,
        "labelled_share": 100 * labelled / total if total else None,
        "ids": {str(i): stored[i] for i in sorted(stored)},
        **_mean_and_std(seen.images.values()),
        "classes": [
            {"pixels": int(n), "share": 100 * int(n) / labelled if labelled else None, "images": int(k)}
            for n, k in zip(pixels, images_with, strict=True)
        ],
    }


def _mean_and_std(images: Iterable[Facts]) -> dict[str, list[float] | None]:
    """Of R, G, B over all pixels, 0..255."""
    facts = list(images)
    if not facts:
        return {"mean": None, "std": None}
    weights = np.array([each.size[0] * each.size[1] for each in facts], np.float64)
    means, stds = np.array([each.mean for each in facts]), np.array([each.std for each in facts])
    mean = np.average(means, axis=0, weights=weights)
    variance = np.average(stds**2 + (means - mean) ** 2, axis=0, weights=weights)
    return {"mean": mean.round(3).tolist(), "std": np.sqrt(variance).round(3).tolist()}


def _painted(ids: UInt8Array, table: LabelTable, classes: Classes) -> UInt8Array:
    train_ids = np.full(256, _ILLEGAL, np.uint8)
    for stored, train in table.train_ids:
        train_ids[stored] = train
    labels = train_ids[ids]
    painted = colorize(labels, classes)
    illegal = (labels == _ILLEGAL).astype(np.uint8)
    if illegal.any():
        grey = cv2.cvtColor(painted, cv2.COLOR_RGB2GRAY) // 2 + 50  # some class is red wherever red could mark a fault
        painted = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        reach = max(ids.shape) // 120  # a single pixel must be seen in a thumbnail
        painted[cv2.dilate(illegal, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0] = WRONG
    return painted


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _size(size: tuple[int, int]) -> str:
    """Width x height, as image viewers say it."""
    return f"{size[1]}x{size[0]}"
