"""The data doctor: what a data set holds, and everything that is wrong with it, before a net is trained on it.

`examine` returns one JSON dict, as `segmv3.evaluation.scores.scores` does for scores; the table and the page are made
from it. Findings come in three levels: an *error* makes the data unusable, a *warning* should be known, a *note*
explains. Files are only ever read.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

import segmv3
from segmv3.config import Data
from segmv3.data.check import Problem, damage, fault_of, id_names, message, problems_of, train_counts
from segmv3.data.datasets import Dataset, Pair, Split, find_split, folders_of, paired, strays
from segmv3.data.facts import Facts, Files, Found, read_files
from segmv3.errors import DataError
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import IGNORE, Classes, LabelTable
from segmv3.media.draw import WRONG, colorize
from segmv3.report.doctor import LabelledImage, Pictures, write_check_page

Layout = Literal["cityscapes", "camvid", "folder"]
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
class Listing:
    """What lies on the disk for one split, whether it fits together or not."""

    split: str
    title: str
    """Of the data set; empty where `open_dataset` refuses it."""
    classes: Classes
    pairs: tuple[Pair, ...]
    lone_images: tuple[Path, ...]
    lone_labels: tuple[tuple[Path, LabelTable], ...]
    findings: tuple[Finding, ...]

    @property
    def files(self) -> list[Files]:
        """Everything to read: pairs, then images without labels, then labels without images."""
        return [
            *((pair.image, pair.label) for pair in self.pairs),
            *((image, None) for image in self.lone_images),
            *((None, label) for label, _ in self.lone_labels),
        ]


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


def layout_of(root: Path) -> Layout:
    """Guess the layout of a folder from what lies there.

    Raises: DataError when nothing known lies there.
    """
    if not root.exists():
        raise DataError(f"{root} does not exist; give a config file or the folder of a data set")
    if not root.is_dir():
        raise DataError(f"{root} is neither a config file (.py) nor the folder of a data set")
    if (root / "leftImg8bit").is_dir() or (root / "gtFine").is_dir():
        return "cityscapes"
    if (root / "classes.json").is_file() or (root / "classes.txt").is_file():
        return "folder"
    marks = ("*/leftImg8bit", "*/classes.json", "*/classes.txt", "../leftImg8bit", "../classes.json", "../classes.txt")
    near = next((p.parent for mark in marks for p in sorted(root.glob(mark))), None)
    hint = f"did you mean {near.resolve()}?" if near else "see data/README.md, or add --dataset"
    raise DataError(f"{root} holds neither leftImg8bit and gtFine nor classes.json or classes.txt; {hint}")


def default_splits(data: Data) -> tuple[str, ...]:
    """train and val, and test where there is one."""
    has_test = any(images.is_dir() for images, _ in folders_of(data, "test"))
    return ("train", "val", "test") if has_test else ("train", "val")


def examine(data: Data, splits: Sequence[str], progress: Callable[[str, int, int], None] | None = None) -> Examination:
    """Read every file of the splits and collect what is wrong, all of it.

    Args: progress: called with (split, pairs done, pairs to read); what is remembered is not read.
    Raises: DataError when none of the splits holds anything to look at.
    """
    seen = [_see(listing, progress) for listing in _list_splits(data, splits)]
    classes = seen[0].listing.classes
    described = {each.split: _describe(each) for each in seen}
    findings: list[Finding] = []
    for each in seen:
        findings += [*each.listing.findings, *_fault_findings(each), *_look_findings(each)]
    findings += [*_class_findings(described, classes), *_duplicate_findings(seen)]
    order: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.level])  # stable: by split within
    counts = Counter(finding.level for finding in findings)
    result = {
        "dataset": next((each.listing.title for each in seen if each.listing.title), data.root.resolve().name),
        "root": str(data.root),
        "layout": data.dataset,
        "usable": not counts["error"],
        "errors": counts["error"],
        "warnings": counts["warning"],
        "splits": described,
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
    for split in described.values():
        del split["classes"]  # they are told class by class
    datasets = (Dataset(each.listing.title, each.split, classes, each.readable) for each in seen)
    tables = {path: table for each in seen for path, table in each.tables.items()}
    return Examination(result, classes, tuple(filter(len, datasets)), tables)


@dataclass(frozen=True)
class _Seen:
    """A split and what its files hold."""

    listing: Listing
    found: list[tuple[Found | None, Found | None]]
    """For each of `listing.files`."""

    @property
    def split(self) -> str:
        return self.listing.split

    @cached_property
    def images(self) -> dict[Path, Facts]:
        """Those that could be read, with and without partner."""
        pairs = zip(self.listing.files, self.found, strict=True)
        return {image: facts for (image, _), (facts, _) in pairs if image and isinstance(facts, Facts)}

    @cached_property
    def labels(self) -> dict[Path, Facts]:
        """Those that could be read, with and without partner."""
        pairs = zip(self.listing.files, self.found, strict=True)
        return {label: facts for (_, label), (_, facts) in pairs if label and isinstance(facts, Facts)}

    @cached_property
    def tables(self) -> dict[Path, LabelTable]:
        """Of every label file."""
        return {pair.label: pair.table for pair in self.listing.pairs} | dict(self.listing.lone_labels)

    @cached_property
    def partners(self) -> dict[Path, Path]:
        """The label of each image and the image of each label."""
        pairs = self.listing.pairs
        return {pair.image: pair.label for pair in pairs} | {pair.label: pair.image for pair in pairs}

    @cached_property
    def problems(self) -> list[Problem]:
        """Of the files one by one, pairs first."""
        count = len(self.listing.pairs)
        problems: list[Problem] = []
        for pair, (image, label) in zip(self.listing.pairs, self.found[:count], strict=True):
            assert image and label
            problems += problems_of(pair, image, label)
        for files, found in zip(self.listing.files[count:], self.found[count:], strict=True):
            for path, facts in zip(files, found, strict=True):
                if path and isinstance(facts, DataError):
                    problems.append(damage(path, facts))
        return problems

    @cached_property
    def readable(self) -> tuple[Pair, ...]:
        """The pairs that training could use."""
        bad = {problem.path for problem in self.problems}
        return tuple(pair for pair in self.listing.pairs if not bad & {pair.image, pair.label})


def _see(listing: Listing, progress: Callable[[str, int, int], None] | None) -> _Seen:
    def show(done: int, total: int) -> None:
        if progress:
            progress(listing.split, done, total)

    return _Seen(listing, read_files(listing.files, show))


# --- what lies there ---


def _list_splits(data: Data, splits: Sequence[str]) -> list[Listing]:
    listings: list[Listing] = []
    first_error: DataError | None = None
    for split in splits:
        found = find_split(data, split)
        left_out = tuple(Finding("warning", "left out", split, text) for text in found.left_out)
        try:
            dataset = paired(found)
        except DataError as error:
            first_error = first_error or error
            listings.append(_salvage(found, error, left_out))
        else:
            listings.append(Listing(split, dataset.title, dataset.classes, dataset.pairs, (), (), left_out))
    if first_error and not any(listing.files for listing in listings):
        raise first_error
    return listings


def _salvage(found: Split, error: DataError, left_out: tuple[Finding, ...]) -> Listing:
    """Everything of a split that does not fit together, which `paired` refuses at its first fault."""
    split, images, labels = found.name, found.images, found.labels
    pairs = tuple(Pair(name, images[name][0], *labels[name][0]) for name in sorted(images.keys() & labels.keys()))
    lone_images = tuple(images[name][0] for name in sorted(images.keys() - labels.keys()))
    lone_labels = tuple(labels[name][0] for name in sorted(labels.keys() - images.keys()))
    findings = [*_pairing_findings(split, images, {name: [path for path, _ in labels[name]] for name in labels})]
    if found.image_root.parent.name == "leftImg8bit":
        findings += _city_findings(split, [pair.image for pair in pairs] + list(lone_images))
    if not any(finding.level == "error" for finding in findings) and not (images and split == "test"):
        findings.append(Finding("error", "layout", split, message(error)))
    return Listing(split, "", found.classes, pairs, lone_images, lone_labels, (*findings, *left_out))


def _pairing_findings(split: str, images: dict[str, list[Path]], labels: dict[str, list[Path]]) -> Iterable[Finding]:
    if images and not labels and split == "test":
        text = f"none of the {len(images):,} images has a label: a test split; it can be predicted, not scored"
        yield Finding("note", "test split", split, text)
    elif images and labels:  # with one side empty the place is wrong, and `open_dataset` has said so
        for kind, here, there in (("no label", images, labels), ("no image", labels, images)):
            lone = sorted(here.keys() - there.keys())
            if lone:
                what = "image" if here is images else "label"
                text = _count(len(lone), f"{what} has {kind}", f"{what}s have {kind}")
                yield Finding("error", "unpaired", split, text, tuple(Item(here[stem][0]) for stem in lone))
    for stem_of in (images, labels):
        same = [(stem, paths) for stem, paths in sorted(stem_of.items()) if len(paths) > 1]
        if same:
            items = tuple(Item(path, partner=paths[0]) for _, paths in same for path in paths[1:])
            text = f"{_count(len(same), 'name is', 'names are')} shared by two files or more; keep one of each"
            yield Finding("error", "same name", split, text, items)


def _city_findings(split: str, images: Iterable[Path]) -> Iterable[Finding]:
    if wrong := strays(images):
        text = f"{_count(len(wrong), 'file lies', 'files lie')} in the folder of another city"
        yield Finding("error", "wrong city", split, text, tuple(Item(path) for path in wrong))


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
            yield Finding("error", kind, seen.split, f"{_count(len(items), one, many)} {rest}", items)


def _look_findings(seen: _Seen) -> Iterable[Finding]:
    """What can be read, and is still seldom meant."""
    for kind, paths, one, many in (*_image_looks(seen.images), *_label_looks(seen.labels)):
        if paths:
            items = tuple(Item(path, partner=seen.partners.get(path)) for path in paths)
            yield Finding("warning", kind, seen.split, _count(len(paths), one, many), items)
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
        text = f"{_count(len(items), 'image is', 'images are')} not {_size(usual)} like most; {len(sizes)} sizes in all"
        yield Finding("warning", "mixed sizes", seen.split, text, items)


def _void_findings(seen: _Seen) -> Iterable[Finding]:
    classes = len(seen.listing.classes)
    void = [path for path, facts in seen.labels.items() if not train_counts(facts, seen.tables[path])[:classes].any()]
    if not void:
        return
    if len(void) < len(seen.labels):
        text = _count(len(void), "label has no labelled pixel", "labels have no labelled pixel")
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
            text = f"{_count(len(same), 'image repeats', 'images repeat')} another one of the split"
            yield Finding("warning", "duplicate", split, text, tuple(same))
        else:
            text = f"{_count(len(same), 'image is', 'images are')} also in {other}: splits must not share images"
            yield Finding("warning", "leak", split, text, tuple(same))


# --- numbers ---


def _describe(seen: _Seen) -> dict[str, Any]:
    classes = len(seen.listing.classes)
    stored: Counter[int] = Counter()
    pixels, images_with = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for path, facts in seen.labels.items():
        stored.update(dict(facts.ids))
        counts = train_counts(facts, seen.tables[path])[:classes]
        pixels += counts
        images_with += counts > 0
    total, labelled = sum(stored.values()), int(pixels.sum())
    return {
        "images": len(seen.listing.pairs) + len(seen.listing.lone_images),
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


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
