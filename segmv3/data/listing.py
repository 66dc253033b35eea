"""What lies on the disk: the image files of a folder, and those of a split with their labels.

Opening, checking, scoring and submission all read one `Split`. Nothing is left out without a word.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from segmv3.errors import DataError, Segmv3Warning
from segmv3.files import files_below
from segmv3.images import NOTES, SUFFIXES
from segmv3.labels import Classes, LabelTable


@dataclass(frozen=True)
class Pair:
    """One image with its label file."""

    name: str
    """The stem they share, or where stems repeat the way below their folders; unique in its split."""
    image: Path
    label: Path
    table: LabelTable


def sizes_differ(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> str:
    """What to say of a pair whose files have these (height, width)."""
    return (
        f"{pair.image} is {image[1]}x{image[0]} but its label {pair.label} is {label[1]}x{label[0]}; "
        "they must have the same size"
    )


@dataclass(frozen=True)
class Split:
    """What lies on the disk for one split, whether it fits together or not."""

    title: str
    name: str
    root: Path
    classes: Classes
    image_root: Path
    label_root: Path
    images: dict[str, list[Path]]
    """Paths by the name that an image shares with its label; several where names repeat."""
    labels: dict[str, list[tuple[Path, LabelTable]]]
    left_out: tuple[str, ...] = ()
    """What lies there and is not taken: a line each."""
    misplaced: tuple[Path, ...] = ()
    """Images in the folder of another city."""
    label_files: str = "images"
    """What a message says is missing where there are no labels."""

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Images and labels of the same name."""
        names = sorted(self.images.keys() & self.labels.keys())
        return tuple(Pair(name, self.images[name][0], *self.labels[name][0]) for name in names)

    @cached_property
    def lone_images(self) -> tuple[Path, ...]:
        """Images without a label."""
        return tuple(self.images[name][0] for name in sorted(self.images.keys() - self.labels.keys()))

    @cached_property
    def lone_labels(self) -> tuple[tuple[Path, LabelTable], ...]:
        """Labels without an image."""
        return tuple(self.labels[name][0] for name in sorted(self.labels.keys() - self.images.keys()))

    @cached_property
    def fault(self) -> DataError | None:
        """The first thing that keeps it from being opened."""
        if not self.images:
            return self.no_images
        if not self.labels:
            return DataError(_nothing_in(self.label_root, self.root, self.name, self.label_files))
        try:
            only(self.images)
            only({name: [path for path, _ in each] for name, each in self.labels.items()})
        except DataError as error:
            return error
        unlabelled, unseen = self.images.keys() - self.labels, self.labels.keys() - self.images
        if unlabelled or unseen:
            parts = [count_of(len(unlabelled), "image has no label", "images have no label")] if unlabelled else []
            parts += [count_of(len(unseen), "label has no image", "labels have no image")] if unseen else []
            first = ", ".join([*sorted(unlabelled), *sorted(unseen)][:5])
            return DataError(f"{' and '.join(parts)} in '{self.name}' (first: {first}). Nothing was done.")
        if self.misplaced:
            path = self.misplaced[0]
            return DataError(f"{path} lies in the folder of another city; move it to {city_of(path.name)}/")
        return None

    @property
    def no_images(self) -> DataError:
        """What to say where there are none, with the likeliest reason."""
        return DataError(_nothing_in(self.image_root, self.root, self.name))


def city_of(name: str) -> str:
    """The city of an image of Cityscapes, which begins its name."""
    return name.partition("_")[0]


def count_of(number: int, one: str, many: str = "") -> str:
    """`1 file is`, `3 files are`. `many`: by default `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def first_existing_parent(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def _nothing_in(looked: Path, root: Path, split: str, files: str = "images") -> str:
    """An empty place, and the likeliest reason: a root too high or too deep, a packed zip, another split name."""
    text = f"found 0 {files} under {looked}"
    if looked == root:  # a data source of your own knows better where it looks
        return f"{text} (split '{split}')"
    inside = looked.relative_to(root)
    folders = islice((p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.is_dir()), 1000)
    for other in (root.parent, root.parent.parent, *sorted(folders)):
        try:
            count = len(images_below(other / inside).paths)
        except DataError:  # no place to advise
            continue
        if count:
            doubled = other == root / inside.parts[0]  # leftImg8bit/leftImg8bit, as some unpackers leave it
            remedy = "Move it up one folder." if doubled else f"Use --data.root {other}."
            return f"{text}; did you mean {other / inside} ({count:,} images)? {remedy}"
    archives = sorted(p.name for p in root.glob("*.zip"))
    if archives:
        return f"{text}; {root} holds {', '.join(archives[:3])} still packed: unzip it there"
    parent = next(p for p in looked.parents if p.is_dir())
    there = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))[:6]
    text += f"; {parent} has {', '.join(there) or 'nothing'} (split '{split}')"
    places = (root, root / "images", root / "leftImg8bit")
    if splits := [name for name in ("train", "val", "test") if any((place / name).is_dir() for place in places)]:
        return f"{text}; it has the splits {', '.join(splits)}"
    return f"{text}; {importing(root)}" if images_below(root).paths else f"{text}; see data/README.md for the layout"


def importing(root: Path | str) -> str:
    """How a folder of another layout becomes a data set."""
    return f"segmv3 data import {root} NEW makes a data set of images and labels in other folders"


@dataclass(frozen=True)
class Images:
    """What lies in and below a folder."""

    paths: tuple[str, ...]
    """Image files, sorted; links to nowhere among them, so that whoever reads them says so."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What could be an image and is not taken, by kind: a suffix that is not read, "hidden", "no regular file"."""


def images_below(folder: Path | str) -> Images:
    """List a folder; one that does not exist holds nothing. Names with a leading dot (.cache/) are not data.

    Raises: DataError for a folder that cannot be listed, and a linked one that leads nowhere.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 (a million of these are listed at once)
        return Images(())
    paths: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    start = len(os.fspath(folder).rstrip(os.sep)) + 1
    for path, what in files_below(folder):
        name = os.path.basename(path)  # noqa: PTH119
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if name.startswith("._") or name == ".DS_Store":  # macOS's own
            continue
        if path.startswith(".", start) or f"{os.sep}." in path[start:]:
            if suffix in SUFFIXES:
                left_out["hidden"].append(path)
        elif what == "no file":
            left_out["no regular file"].append(path)
        elif suffix in SUFFIXES:
            paths.append(path)
        elif what == "link to nowhere":
            raise DataError(f"{path} is a link to nowhere; mend or remove it")
        elif suffix not in NOTES:
            left_out[suffix or "without suffix"].append(path)
    paths.sort()
    return Images(tuple(paths), {what: tuple(found) for what, found in left_out.items()})


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image that is read."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def visible_files(folder: Path) -> list[Path]:
    """Image files below a folder, sorted; warns of what is left out."""
    found = images_below(folder)
    warn_of(told(folder, found.left_out))
    return sorted(map(Path, found.paths))


def told(folder: Path | str, left_out: Mapping[str, Iterable[str]]) -> list[str]:
    """`FOLDER: left out 3 .gif, 1 hidden (first: a.gif)`, as a list of that one line or none."""
    kinds = {what: sorted(paths) for what, paths in left_out.items()}
    if not any(kinds.values()):
        return []
    counts = ", ".join(
        f"{len(kinds[what]):,} {what}" for what in sorted(kinds, key=lambda what: (-len(kinds[what]), what))
    )
    first = os.path.relpath(min(paths[0] for paths in kinds.values()), folder)
    return [f"{folder}: left out {counts} (first: {first}); read are {' '.join(sorted(SUFFIXES))}"]


def warn_of(texts: Iterable[str]) -> None:
    """One line on standard error for each."""
    for text in texts:
        warnings.warn(Segmv3Warning(f"data: {text}"), stacklevel=3)


def grouped(files: Iterable[Path], suffix: str, below: Path | None) -> dict[str, list[Path]]:
    """Files whose name without its ending ends in `suffix`, by what stands before it.

    Args:
        files: any paths.
        suffix: such as `_leftImg8bit`.
        below: names are the ways from this folder; where there is none, the last parts of the paths alone.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        name = path.relative_to(below).with_suffix("").as_posix() if below else path.stem
        if name.endswith(suffix):
            found[name.removesuffix(suffix)].append(path)
    return dict(found)


def only(found: Mapping[str, list[Path]]) -> dict[str, Path]:
    """Raises: DataError when two files share a name."""
    for name, paths in found.items():
        if len(paths) > 1:
            raise DataError(f"{paths[0]} and {paths[1]} share the name {name}; keep one of them")
    return {name: path for name, (path,) in found.items()}
