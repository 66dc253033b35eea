"""Making a `folder` data set of a source: its images are linked, its labels are written as PNG files of train ids."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from segmv3.data.facts import Facts, read_files
from segmv3.data.importing.base import SPLITS, Frame, Legend, Reader, SourceClass, Tell
from segmv3.data.importing.readers import READERS
from segmv3.data.importing.settings import ImportSettings, import_rules
from segmv3.data.importing.splits import share_out
from segmv3.data.importing.write import Counts, refuse_bad, staging, write_frames
from segmv3.data.listing import count_of
from segmv3.errors import ConfigError, DataError, OutputError
from segmv3.files import write_json
from segmv3.labels import IGNORE
from segmv3.settings import refuse


@dataclass(frozen=True)
class ClassCount:
    """What became of one thing that the labels of a source tell apart."""

    source: str
    """How the source stores it: `3`, `#804080`, `24 regions`."""
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

    Images become links; labels are written as PNG files of train ids. A stopped import leaves no output.

    Args:
        source: folder or file.
        output: folder to create.
        settings: how to read it and share it out.
        tell: is told (what is done, how much, of how much).

    Returns:
        What was made, as `import.json` in the output says it.

    Raises:
        ConfigError: a setting that cannot be, or that this kind of source has no use for.
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
    sizes = _sizes(frames, tell)
    shared = share_out(frames, settings)
    todo = [(split, frame, sizes[frame.image]) for split, own in shared.splits.items() for frame in own]
    with staging(output) as place:
        counts, ways = write_frames(place, content.legend, todo, copy=settings.copy, tell=tell)
        result = Imported(
            source=str(source),
            root=str(output),
            kind=reader.name,
            classes=_class_counts(content.legend, counts),
            splits={split: len(own) for split, own in shared.splits.items()},
            said=(f"{reader.name}: {found}", *content.said, *shared.said, f"images are {' and '.join(sorted(ways))}"),
            left_out=(*content.left_out, *left_out, *shared.left_out),
        )
        named = zip(content.legend.classes.names, content.legend.classes.colors, strict=True)
        classes = [{"id": id_, "name": name, "rgb": rgb} for id_, (name, rgb) in enumerate(named)]
        write_json(place / "classes.json", {"classes": classes}, indent=1)
        write_json(place / "import.json", asdict(result), indent=1)
    return result


def reader_of(source: Path, settings: ImportSettings) -> tuple[Reader, str]:
    """The reader of a source, and what it found.

    Raises: ConfigError for settings that do not fit the kind of source, DataError for a source of no known kind.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give the folder of images and labels")
    chosen = [reader for reader in READERS if settings.kind in (None, reader.name)]
    if not chosen:
        raise ConfigError(f"--kind is {settings.kind}; there are {', '.join(reader.name for reader in READERS)}")
    for reader in chosen:
        if found := reader.look(source, settings):
            for name in {name for other in READERS for name in other.uses} - {*reader.uses}:
                if getattr(settings, name) != getattr(ImportSettings, name):
                    raise ConfigError(f"{source} is read as {reader.name}, which has no use for --{name}; leave it out")
            return reader, found
    for file in sorted(source.iterdir()) if source.is_dir() else ():  # as predict leaves it
        if file.is_file() and (fits := [each.name for each in chosen if each.look(file, settings)]):
            raise DataError(f"{source} is a folder; the {fits[0]} file in it is {file}: import that one")
    looked = "; ".join(f"{reader.name} ({reader.looks_for})" for reader in chosen)
    raise DataError(f"{source} is of no kind that is known; looked for {looked}")


def _refuse_output(source: Path, output: Path) -> None:
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
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


def _sizes(frames: Sequence[Frame], tell: Tell) -> dict[Path, tuple[int, int]]:
    """Height and width of each image. Raises: DataError for images that cannot be read."""
    paths = [frame.image for frame in frames]
    found = read_files([(path, "image") for path in paths], lambda *far: tell("images", *far))
    refuse_bad([each for each in found if isinstance(each, DataError)])
    return {path: each.size for path, each in zip(paths, found, strict=True) if isinstance(each, Facts)}


def _class_counts(legend: Legend, counts: Counts) -> tuple[ClassCount, ...]:
    pixels, frames = counts.sum(0), (counts > 0).sum(0)
    sources, ids = legend.sources, legend.ids
    if pixels[IGNORE] and IGNORE not in ids:
        sources = (*sources, SourceClass(IGNORE, "nothing", None, shown="-"))
    return tuple(
        ClassCount(
            source=each.shown or str(each.value),
            name=each.name,
            to=each.to,
            id=ids.get(each.value, IGNORE),
            frames=int(frames[each.value]),
            share=float(pixels[each.value] / pixels.sum()),
        )
        for each in sources
    )
