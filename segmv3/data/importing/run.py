"""Making a `folder` data set of a source: its images are linked, its labels linked or converted."""

from dataclasses import dataclass
from pathlib import Path

from segmv3.data.importing.base import Content, Reader, Tell
from segmv3.data.importing.readers import READERS
from segmv3.data.importing.settings import ImportSettings, import_rules
from segmv3.errors import ConfigError, DataError
from segmv3.settings import refuse


@dataclass(frozen=True)
class ClassCount:
    """What became of one thing that the labels of a source tell apart."""

    source: str
    name: str
    to: str | None
    id: int
    frames: int
    pixels: int
    share: float
    """Of all pixels."""


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    root: Path
    kind: str
    classes: tuple[ClassCount, ...]
    frames: dict[str, int]
    """Frames by split."""
    left_out: tuple[str, ...]
    said: tuple[str, ...]


def import_data(
    source: Path | str, output: Path | str, settings: ImportSettings | None = None, *, tell: Tell | None = None
) -> Imported:
    """Make a `folder` data set from images and labels of another kind. The source is only read.

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
    refuse(*import_rules(settings))
    reader = reader_of(source, settings)
    content = reader.read(source, settings, tell or (lambda what, done, total: None))
    return _write(content, reader, output)


def reader_of(source: Path, settings: ImportSettings) -> Reader:
    """The reader of a source.

    Raises: ConfigError for a kind that there is not, DataError for a source of no known kind.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give the folder of images and labels")
    names = ", ".join(reader.name for reader in READERS)
    chosen = [reader for reader in READERS if settings.kind in (None, reader.name)]
    if not chosen:
        raise ConfigError(f"--kind is {settings.kind}; there are {names}")
    if settings.kind:
        return chosen[0]
    found = next((reader for reader in chosen if reader.look(source, settings)), None)
    if found is None:
        looked = "; ".join(f"{reader.name} ({reader.looks_for})" for reader in READERS)
        raise DataError(f"{source} is of no kind that is known; looked for: {looked}")
    return found


def _write(content: Content, reader: Reader, output: Path) -> Imported:
    raise NotImplementedError  # comes with the next commit
