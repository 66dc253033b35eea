"""What all annotation files have in common: they name pictures, and regions of classes in them."""

import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path, PurePosixPath

from segmv3.data.importing.base import Content, Frame, Reader, SourceClass, Tell, legend_of, split_named
from segmv3.data.importing.names import names_given
from segmv3.data.importing.regions import Drawing, Region, Size
from segmv3.data.importing.settings import ImportSettings
from segmv3.data.listing import images_below
from segmv3.errors import DataError, printable, shortened
from segmv3.labels import IGNORE, Color
from segmv3.records import read_regular


@dataclass
class Picture:
    """One picture that a file names."""

    file: str
    """Its path or name as the file has it."""
    size: Size | None
    """None where the file does not say it."""
    where: Path
    """The file."""
    regions: list[tuple[str, Region]] = field(default_factory=list)
    """Class and place, the lowest first."""
    split: str = ""


@dataclass
class Annotations:
    """What annotation files hold."""

    colors: dict[str, Color | None] = field(default_factory=dict)
    """Every class that is named, in order."""
    pictures: list[Picture] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """What is not taken, counted: `shapes of the type point`."""
    said: Counter[str] = field(default_factory=Counter)
    """What was decided, counted."""


class AnnotationReader(Reader):
    """A reader of files that name pictures."""

    uses = ("classes", "images", "background")

    @abstractmethod
    def files(self, source: Path) -> list[Path]:
        """Those of this kind, in a folder or the source itself."""

    @abstractmethod
    def add(self, found: Annotations, path: Path, source: Path) -> None:
        """Read one of them. Raises: ValueError saying what is wrong with it."""

    def look(self, source: Path, settings: ImportSettings) -> str | None:
        files = self.files(source)
        return f"{files[0].name}{f' and {len(files) - 1:,} more' if files[1:] else ''}" if files else None

    def read(self, source: Path, settings: ImportSettings, tell: Tell) -> Content:
        found, files = Annotations(), self.files(source)
        for number, path in enumerate(files, 1):
            try:
                self.add(found, path, source)
            except ValueError as error:
                raise DataError(f"{path}: {error}") from None
            tell("annotations", number, len(files))
        if not found.pictures:
            raise DataError(f"{source} names no image; looked for {self.looks_for}")
        return _content(found, source, settings)


def _content(found: Annotations, source: Path, settings: ImportSettings) -> Content:
    """Legend and frames.

    Raises:
        DataError: pictures are not there, lie elsewhere or cannot be told apart; a class is not among those named.
    """
    used = Counter(name for picture in found.pictures for name, _ in picture.regions)
    left_out, said = _lines(found.skipped), _lines(found.said)
    if not used:
        raise DataError(f"{source} holds no region of a class" + (f", but {'; '.join(left_out)}" if left_out else ""))
    colors = _chosen(found.colors, used, source, settings)
    values = {name: value for value, name in enumerate(colors)}
    if len(values) > IGNORE - 1:
        raise DataError(f"{source} names {len(values):,} classes; at most {IGNORE - 1} are possible")
    rest = values[settings.background] if settings.background else IGNORE
    sources = (SourceClass(values[name], name, name, rgb, f"{used[name]:,} regions") for name, rgb in colors.items())
    legend = legend_of(sources, settings, source)
    folder = settings.images or (source if source.is_dir() else source.parent)
    album = Album(folder)
    placed = [(picture, album.find(picture.file, picture.where)) for picture in found.pictures]
    missing = [picture for picture, path in placed if path is None]
    if len(missing) == len(placed):
        raise DataError(
            f"{source} names {len(placed):,} images and none of them lies below {folder} (first: "
            f"{printable(missing[0].file)}); name their folder with --images"
        )
    there = [(picture, path) for picture, path in placed if path is not None]
    base = Path(commonpath([path.parent for _, path in there]))
    frames = tuple(_frame(picture, path, base, values, rest) for picture, path in there)
    if missing:
        left_out.append(f"{len(missing):,} images that are not below {folder} (first: {printable(missing[0].file)})")
    if others := sorted(set(album.paths) - {path for _, path in there}):
        left_out.append(f"{len(others):,} images that no annotation names (first: {others[0]})")
    return Content(legend, frames, tuple(left_out), tuple(said))


def _lines(counts: Counter[str]) -> list[str]:
    return [f"{count:,} {printable(shortened(what, 120))}" for what, count in sorted(counts.items())]


def _frame(picture: Picture, path: Path, base: Path, values: Mapping[str, int], rest: int) -> Frame:
    where = f"{picture.where}: {printable(picture.file)}"
    drawing = Drawing(where, picture.size or path, [(values[name], region) for name, region in picture.regions], rest)
    name = path.relative_to(base).with_suffix("").as_posix()
    return Frame(path, name, drawing if picture.regions or rest != IGNORE else None, split=picture.split)


def _chosen(
    listed: Mapping[str, Color | None], used: Mapping[str, int], source: Path, settings: ImportSettings
) -> dict[str, Color | None]:
    """The classes in their order, with colours."""
    colors = {**dict.fromkeys((*listed, *used)), **listed}
    if settings.classes:
        names = [each.name for each in names_given(source if source.is_dir() else source.parent, settings)[0]]
        ignored = {name.casefold() for name in settings.ignore}
        extra = {name: count for name, count in used.items() if name not in names and name.casefold() not in ignored}
        if extra:
            told = ", ".join(f"{printable(name)} ({count:,} regions)" for name, count in extra.items())
            raise DataError(f"{source} holds classes that --classes does not name: {shortened(told, 200)}; add them")
        colors = {name: colors.get(name) for name in (*names, *(name for name in used if name not in names))}
    if settings.background:
        colors.setdefault(settings.background, None)
    return colors


class Album:
    """The pictures below a folder, by the ways and names that annotation files have for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = [Path(path) for path in images_below(folder).paths]
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._named[path.name].append(path)
            self._named[path.stem].append(path)

    def find(self, name: str, where: Path) -> Path | None:
        """The picture that a file names: by its way below the folder, or the only one that ends alike.

        Raises: DataError for a way that leads out of the folder, and for a name that several pictures have.
        """
        way = PurePosixPath(name.replace("\\", "/"))
        if way.is_absolute() or ".." in way.parts or re.match("[A-Za-z]:", name):
            raise DataError(f"{where} names the image {printable(name)}, which leads out of {self.folder}; mend it")
        folders = way.parts[:-1]
        upload = re.sub("^[0-9a-f]{8}-", "", way.name)  # what Label Studio puts before the name of a file
        for last in (way.name, way.name.removeprefix("frame_"), upload):
            ways = {path: path.relative_to(self.folder).parts[:-1] for path in self._named.get(last, ())}
            alike = {  # the same way is best, then the longest one in common
                path: (parts == folders, len(shared))
                for path, parts in ways.items()
                if (shared := _end(parts, folders)) is not None
            }
            best = [path for path, likeness in alike.items() if likeness == max(alike.values())]
            if len(best) > 1:
                raise DataError(f"{where} names the image {printable(name)}: is it {best[0]} or {best[1]}?")
            if best:
                return best[0]
        return None


def _end(parts: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...] | None:
    """The shorter of two ways where the longer ends with it."""
    short, long = sorted((parts, others), key=len)
    return short if long[len(long) - len(short) :] == short else None


def split_in(name: str) -> str:
    """The split that a file's name holds: `instances_train2017` is train's."""
    return next(filter(None, (split_named(word) for word in re.split(r"[^A-Za-z]+", name))), "")


def json_files(source: Path, *patterns: str) -> list[Path]:
    """The JSON files that may hold a whole data set: a file itself, or of a folder those that fit a pattern.

    There are none in a folder of many: these are files of one picture each.
    """
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" else []
    files = [path for pattern in patterns for path in sorted(source.glob(pattern)) if path.is_file()]
    return files if len(files) <= 50 else []


def has_keys(path: Path, *keys: str) -> bool:
    """Whether a JSON file holds these keys, by a look at its text."""
    try:
        text = read_regular(path)
    except ValueError:
        return False
    return all(re.search(rf'"{key}"\s*:'.encode(), text) for key in keys)
