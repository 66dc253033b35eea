"""What the data doctor looks for in the splits of a data set, beyond what keeps it from being trained on."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from segmv3.data.check import Problem, damage, fault_of, message, problems_of, train_counts
from segmv3.data.facts import Facts, File, Found, read_files
from segmv3.data.listing import Pair, Split, count_of
from segmv3.errors import DataError
from segmv3.labels import IGNORE, Classes, LabelTable

Level = Literal["error", "warning", "note"]

_TINY = 64  # pixels; the deepest features of such an image are 4 x 4
_WORDS = json.loads(Path(__file__).with_suffix(".json").read_bytes())  # level, and what to say of one file and of more
_FAULTS = ("damaged", "no label map", "illegal ids", "sizes differ")  # in the order they are told


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
        """As the result holds it."""
        files = [
            {"path": str(item.path), "text": item.text, "partner": item.partner and str(item.partner)}
            for item in self.items
        ]
        return {"level": self.level, "kind": self.kind, "split": self.split, "text": self.text, "files": files}


@dataclass(frozen=True)
class Seen:
    """A split and what its files hold."""

    found: Split
    facts: dict[Path, Found]

    @property
    def split(self) -> str:
        return self.found.name

    @cached_property
    def images(self) -> dict[Path, Facts]:
        """Images that could be read, with and without a label."""
        return self._read([*(pair.image for pair in self.found.pairs), *self.found.lone_images])

    @cached_property
    def labels(self) -> dict[Path, Facts]:
        """Labels that could be read, with and without an image."""
        return self._read(self.tables)

    def _read(self, paths: Iterable[Path]) -> dict[Path, Facts]:
        return {path: facts for path in paths if isinstance(facts := self.facts[path], Facts)}

    @cached_property
    def tables(self) -> dict[Path, LabelTable]:
        """The table of every label file."""
        return {pair.label: pair.table for pair in self.found.pairs} | dict(self.found.lone_labels)

    @cached_property
    def partners(self) -> dict[Path, Path]:
        """The label of each image and the image of each label."""
        pairs = self.found.pairs
        return {pair.image: pair.label for pair in pairs} | {pair.label: pair.image for pair in pairs}

    @cached_property
    def problems(self) -> list[Problem]:
        """Problems of single files, those of pairs first."""
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


def see(found: Split, progress: Callable[[str, int, int], None] | None) -> Seen:
    """Read the files of a split; `progress` is told (split, files done, files to read)."""
    files: list[File] = [(image, "image") for image in found.lone_images]
    files += [(label, "label") for label, _ in found.lone_labels]
    for pair in found.pairs:
        files += [(pair.image, "image"), (pair.label, "label")]
    facts = read_files(files, progress and partial(progress, found.name))
    return Seen(found, {path: each for (path, _), each in zip(files, facts, strict=True)})


def findings_of(seen: Sequence[Seen], described: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Everything to know of the splits, errors first.

    Args:
        seen: the splits.
        described: what `describe` says of each.
    """
    findings: list[Finding] = []
    for each in seen:
        findings += [*_listing_findings(each.found), *_fault_findings(each), *_look_findings(each)]
    findings += [*_class_findings(described, seen[0].found.classes), *_duplicate_findings(seen)]
    return sorted(findings, key=lambda finding: get_args(Level).index(finding.level))  # stable: by split within


def _listing_findings(found: Split) -> list[Finding]:
    """What does not fit together, and what is left out."""
    findings: list[Finding] = []
    if found.fault:
        findings += _pairing_findings(found)
        if found.misplaced:
            findings.append(_finding("wrong city", found.name, map(Item, found.misplaced)))
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
        for what, lone in (("no label", found.lone_images), ("no image", [path for path, _ in found.lone_labels])):
            if lone:
                yield replace(_finding(what, split, map(Item, lone)), kind="unpaired")
    for side in (images, labels):
        same = [paths for _, paths in sorted(side.items()) if len(paths) > 1]
        if same:
            items = [Item(path, partner=paths[0]) for paths in same for path in paths[1:]]
            yield replace(_finding("same name", split, items), text=_told("same name", len(same)))


def _fault_findings(seen: Seen) -> Iterator[Finding]:
    for kind in _FAULTS:
        problems = [problem for problem in seen.problems if problem.kind == kind]
        if problems:
            items = (Item(problem.path, problem.text, seen.partners.get(problem.path)) for problem in problems)
            yield _finding(kind, seen.split, items)


def _look_findings(seen: Seen) -> Iterator[Finding]:
    """What can be read, and is still seldom meant."""
    images, labels = seen.images, seen.labels

    def warn(kind: str, paths: Iterable[Path], **values: str) -> Iterator[Finding]:
        if items := [Item(path, partner=seen.partners.get(path)) for path in paths]:
            yield _finding(kind, seen.split, items, **values)

    deep = {path for path, facts in images.items() if facts.mode.startswith(("I", "F"))}
    yield from warn("tiny", (path for path, facts in images.items() if min(facts.size) < _TINY))
    yield from warn("EXIF", (path for path, facts in images.items() if facts.orientation != 1))
    yield from warn("16-bit", filter(deep.__contains__, images))
    for mode in sorted({facts.mode for facts in images.values()} - {"RGB"}):
        odd = (path for path, facts in images.items() if facts.mode == mode and path not in deep)
        yield from warn("mode", odd, mode=mode)
    yield from warn("palette", (path for path, facts in labels.items() if facts.mode == "P"))
    sizes = Counter(facts.size for facts in images.values())
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        others = {path: facts.size for path, facts in images.items() if facts.size != usual}
        items = [Item(path, f"{path} is {_size(size)}") for path, size in others.items()]
        yield _finding("mixed sizes", seen.split, items, usual=_size(usual), sizes=str(len(sizes)))
    classes = len(seen.found.classes)
    void = [path for path, facts in labels.items() if not train_counts(facts, seen.tables[path])[:classes].any()]
    if len(void) < len(labels):
        yield from warn("void", void)
    elif void and seen.split == "test":
        text = "no pixel is labelled: a test split whose labels are kept back; it can be predicted, not scored"
        yield Finding("note", "test split", seen.split, text)


def _finding(kind: str, split: str, items: Iterable[Item], **values: str) -> Finding:
    items = tuple(items)
    return Finding(_WORDS[kind][0], kind, split, _told(kind, len(items), **values), items)


def _told(kind: str, number: int, **values: str) -> str:
    return count_of(number, *_WORDS[kind][1:]).format(**values)


def _class_findings(described: Mapping[str, dict[str, Any]], classes: Classes) -> Iterator[Finding]:
    for split, each in described.items():
        pixels = np.array([row["pixels"] for row in each["classes"]])
        fault = fault_of(split, classes, pixels, marked=bool(each["ids"].get(str(IGNORE))))
        if each["pixels"] and fault and (split != "test" or pixels.any()):
            level, text = fault
            yield Finding(level, "absent" if pixels.any() else "void", split, text)


def _duplicate_findings(splits: Sequence[Seen]) -> Iterator[Finding]:
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
        kind = "duplicate" if split == other else "leak"
        yield _finding(kind, split, same, other=other)


def describe(seen: Seen) -> dict[str, Any]:
    """The numbers of a split, as JSON types."""
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
    """Mean and standard deviation of R, G, B over all pixels, 0..255."""
    facts = list(images)
    if not facts:
        return {"mean": None, "std": None}
    weights = np.array([each.size[0] * each.size[1] for each in facts], np.float64)
    means, stds = np.array([each.mean for each in facts]), np.array([each.std for each in facts])
    mean = np.average(means, axis=0, weights=weights)
    variance = np.average(stds**2 + (means - mean) ** 2, axis=0, weights=weights)
    return {"mean": mean.round(3).tolist(), "std": np.sqrt(variance).round(3).tolist()}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _size(size: tuple[int, int]) -> str:
    """Width x height, as image viewers say it."""
    return f"{size[1]}x{size[0]}"
