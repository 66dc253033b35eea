"""Making a `folder` data set of a source: its images are linked, its labels linked or converted."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from segmv3.data.facts import Facts, read_files
from segmv3.data.importing.base import SPLITS, Frame, Legend, Reader, Tell
from segmv3.data.importing.readers import READERS
from segmv3.data.importing.settings import ImportSettings, import_rules
from segmv3.data.importing.splits import share_out
from segmv3.data.importing.write import Counts, Writer, refuse_bad, refuse_values, sizes_differ, staging
from segmv3.data.listing import count_of
from segmv3.errors import ConfigError, DataError, OutputError
from segmv3.files import write_bytes
from segmv3.labels import IGNORE, class_name
from segmv3.settings import refuse


@dataclass(frozen=True)
class ClassCount:
    """What became of one thing that the labels of a source tell apart."""

    source: str
    """How the source stores it: `3`, `#804080`, `polygons`."""
    name: str
    """What the source calls it."""
    to: str | None
    """The class that it is now; None for ignored."""
    id: int
    """In the label files of the output."""
    frames: int
    share: float
    """Of the pixels of all frames."""


@dataclass(frozen=True)
class Imported:
    """What an import made; `import.json` in the output holds the same."""

    source: str
    root: str
    kind: str
    classes: tuple[ClassCount, ...]
    splits: dict[str, int]
    """Frames by split."""
    said: tuple[str, ...]
    """What was found and decided, a line each."""
    left_out: tuple[str, ...]
    """What is in the source and not in the output, a line each."""


def import_data(
    source: Path | str, output: Path | str, settings: ImportSettings | None = None, *, tell: Tell | None = None
) -> Imported:
    """Make a `folder` data set from images and labels of another kind. The source is only read.

    Images become links, and so do labels that hold fitting ids already; other labels are written as PNG files of train
    ids. A stopped import leaves no output, and the next one starts anew.

    Args:
        source: folder or file.
        output: folder to create.
        settings: how to read it and share it out.
        tell: is told (what is done, how much, of how much).

    Raises:
        ConfigError: a setting that cannot be.
        DataError: a source that is not understood, or that cannot be trained on.
        OutputError: the output exists, lies in the source, or cannot be written.
    """
    source, output, settings = Path(source), Path(output), settings or ImportSettings()
    tell = tell or (lambda what, done, total: None)
    refuse(*import_rules(settings))
    for folder in filter(None, (source, settings.images, settings.masks)):
        _refuse_output(folder, output)
    reader, found = reader_of(source, settings)
    content = reader.read(source, settings, tell)
    frames, left_out = _labelled(content.frames, source)
    facts = _facts(frames, tell)
    shared = share_out(frames, settings)
    stored = {image: label for image, (_, label) in facts.items() if label}
    refuse_values(content.legend, {str(i): _counts_of(label) for i, label in stored.items()})
    linked = len(stored) == len(frames) and _is_plain(content.legend)
    with staging(output) as place:
        writer = Writer(place, content.legend, linked=linked, copy=settings.copy)
        counts = writer.write(shared, {image: each.size for image, (each, _) in facts.items()}, tell)
        labels = "linked, too: their ids stay" if linked else "written anew as PNG"
        ways = f"images are {' and '.join(sorted(writer.ways))}; labels are {labels}"
        said = (f"{reader.name}: {found}", *content.said, *shared.said, ways)
        classes = _class_counts(content.legend, linked, counts)
        splits = {split: len(own) for split, own in shared.splits.items()}
        outs = (*content.left_out, *left_out, *shared.left_out)
        result = Imported(str(source), str(output), reader.name, classes, splits, said, outs)
        write_bytes(place / "classes.json", json.dumps(_classes_json(content.legend, linked), indent=1).encode())
        write_bytes(place / "import.json", json.dumps(asdict(result), indent=1).encode())
    return result


def reader_of(source: Path, settings: ImportSettings) -> tuple[Reader, str]:
    """The reader of a source, and what it found.

    Raises: ConfigError for a kind that there is not, DataError for a source of no known kind.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give the folder of images and labels")
    chosen = [reader for reader in READERS if settings.kind in (None, reader.name)]
    if not chosen:
        raise ConfigError(f"--kind is {settings.kind}; there are {', '.join(reader.name for reader in READERS)}")
    for reader in chosen:
        if found := reader.look(source, settings):
            return reader, found
    looked = "; ".join(f"{reader.name} ({reader.looks_for})" for reader in chosen)
    raise DataError(f"{source} is of no kind that is known; looked for {looked}")


def _refuse_output(source: Path, output: Path) -> None:
    if source.is_dir() and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise OutputError(f"{output} lies in {source}, which is only read; choose another folder")
    if os.path.lexists(output):
        raise OutputError(f"{output} exists; name a new folder")


def _labelled(frames: Sequence[Frame], source: Path) -> tuple[list[Frame], list[str]]:
    """The frames with a label, and what to say of the others."""
    kept = [frame for frame in frames if frame.label is not None]
    lone = [frame.name for frame in frames if frame.label is None]
    if not kept:
        raise DataError(f"{source}: none of {count_of(len(frames), 'image', 'images')} has a label: nothing to import")
    for frame in kept:  # a name may come out of a file of annotations
        if frame.split not in ("", *SPLITS) or not Path(frame.name).name or {"..", "/"} & {*Path(frame.name).parts}:
            raise DataError(f"{source}: a frame is called {frame.name!r}, which no file of the data set can be called")
    twice, times = Counter((frame.split, frame.name) for frame in kept).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: {times:,} frames are called {twice[1]}; keep one of them")
    return kept, [f"{count_of(len(lone), 'image', 'images')} without a label (first: {lone[0]})"] if lone else []


def _facts(frames: Sequence[Frame], tell: Tell) -> dict[Path, tuple[Facts, Facts | None]]:
    """What was found of each image, and of its label where that is a file of ids.

    Raises: DataError for files that cannot be read, and labels of another size.
    """
    files = [(frame.image, frame.label if isinstance(frame.label, Path) else None) for frame in frames]
    found = read_files(files, lambda done, total: tell("images", done, total))
    bad = [str(each.args[0]) for pair in found for each in pair if isinstance(each, DataError)]
    facts: dict[Path, tuple[Facts, Facts | None]] = {}
    for (path, label), (image, ids) in zip(files, found, strict=True):
        if isinstance(image, Facts) and not isinstance(ids, DataError):
            facts[path] = image, ids
            if label and ids and image.size != ids.size:
                bad.append(sizes_differ(path, label, image.size, ids.size))
    refuse_bad(bad)
    return facts


def _counts_of(label: Facts) -> Counts:
    counts = np.zeros(256, np.int64)
    for value, pixels in label.ids:
        counts[value] = pixels
    return counts


def _is_plain(legend: Legend) -> bool:
    """Whether label files can stay as they are: each class has one id, and none has 255."""
    kept = [each for each in legend.sources if each.to is not None]
    return len({each.to for each in kept}) == len(kept) and all(each.value != IGNORE for each in kept)


def _classes_json(legend: Legend, linked: bool) -> dict[str, list[dict[str, object]]]:
    order = {name: i for i, name in enumerate(legend.classes.names)}
    ids = {each.to: each.value for each in legend.sources if each.to} if linked else order
    free = iter(sorted({*range(IGNORE)} - {each.value for each in legend.sources}))
    entries: list[dict[str, object]] = [
        {"id": ids[name] if name in ids else next(free), "name": name, "rgb": list(color)}
        for name, color in zip(legend.classes.names, legend.classes.colors, strict=True)
    ]
    for each in legend.sources if linked else ():
        if each.to is None:
            try:
                name = class_name(each.name)
            except ValueError:
                name = "ignored"
            entries.append({"id": each.value, "name": name, "ignore": True})
    return {"classes": entries}


def _class_counts(legend: Legend, linked: bool, counts: Sequence[Counts]) -> tuple[ClassCount, ...]:
    table = np.array(counts)
    pixels, frames, order = table.sum(0), (table > 0).sum(0), {n: i for i, n in enumerate(legend.classes.names)}
    rows = [
        ClassCount(
            each.shown or str(each.value),
            each.name,
            each.to,
            each.value if linked else IGNORE if each.to is None else order[each.to],
            int(frames[each.value]),
            float(pixels[each.value] / pixels.sum()),
        )
        for each in legend.sources
    ]
    if pixels[IGNORE] and all(each.value != IGNORE for each in legend.sources):
        share = float(pixels[IGNORE] / pixels.sum())
        rows.append(ClassCount("-", "nothing", None, IGNORE, int(frames[IGNORE]), share))
    return tuple(rows)
