"""Image files that a user names by a folder, a pattern, a numbered sequence or a list, and names for their results."""

import glob
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from segmv3.errors import DataError, Segmv3Warning, shortened
from segmv3.files import expanded, files_below
from segmv3.images import NOTES, PHONE_SUFFIXES, SUFFIXES, UInt8Array, read_file, read_image

IMAGE_SUFFIXES = SUFFIXES | {suffix for suffix, decoder in PHONE_SUFFIXES.items() if find_spec(decoder)}
VIDEO_SUFFIXES = frozenset(  # what cameras, phones and recorders write, and FFmpeg opens by itself
    {".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpv", ".m1v", ".m2v", ".vob"}
    | {".ts", ".m2t", ".m2ts", ".mts", ".trp", ".tod", ".dv", ".mxf", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2"}
    | {".ogv", ".ogm", ".nut", ".ivf", ".h264", ".h265", ".hevc", ".mjpeg", ".mjpg", ".y4m", ".gif"}
)


@dataclass(frozen=True)
class ImageSource:
    """Image files, in the order they are worked on."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    """"/" separates folders. Two files `a.jpg` and `a.png` side by side are named by their full file names."""

    def pictures(self) -> Iterator[UInt8Array | DataError]:
        """Each image, decoded when it is asked for."""
        for path in self.paths:
            try:
                yield read_image(path)
            except DataError as error:
                yield error


def in_folder(folder: Path, leave_out: Path | None) -> ImageSource:
    """All images below a folder, but for those in `leave_out`."""
    files, others = _files_below(folder, leave_out)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{folder} holds no images (looked for {listed(IMAGE_SUFFIXES)}; {_census(files)})")
    _warn_of_left_out(folder, files, others)
    return _images(images, folder)


def by_pattern(pattern: str) -> ImageSource | Path:
    """All images that a pattern matches; the path of a video, where it matches one alone."""
    matches = [Path(match) for match in sorted(_matches("", Path(pattern).parts))]
    files = [path for path in matches if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(files) == 1 and files[0].suffix.lower() in VIDEO_SUFFIXES:
        return files[0]
    if not images:
        raise DataError(f"{pattern} matches no images (looked for {listed(IMAGE_SUFFIXES)}; {_census(files)})")
    odd = sum(not (path.is_file() or path.is_dir()) for path in matches)
    _warn_of_left_out(pattern, files, Counter({"no regular file": odd}))
    return _images(images, _common_folder(images))


def _matches(done: str, parts: Sequence[str]) -> list[str]:
    """What a pattern matches: each part of it is a name first, then a pattern, then one whose brackets are no more
    than brackets."""
    if not parts:
        return glob.glob(done, recursive=True)  # noqa: PTH207 (may be absolute)
    part = parts[0]
    for choice in dict.fromkeys((glob.escape(part), part, part.replace("[", "[[]"))):
        way = os.path.join(done, choice)  # noqa: PTH118
        is_there = next(glob.iglob(way, recursive=True), None) is not None  # noqa: PTH207
        if is_there and (found := _matches(way, parts[1:])):
            return found
    return []


def inlisted(list_file: Path) -> ImageSource:
    """The images that a text file names, one a line."""
    data = read_file(list_file)
    try:  # a name that is not UTF-8 is a name; as PowerShell writes, there are two bytes a letter
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16") if wide else data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"{list_file} cannot be read as a text file of image paths ({error})") from None
    entries = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    wanted = [(number, entry) for number, entry in entries if entry and not entry.startswith("#")]
    if not wanted:
        raise DataError(f"{list_file} names no images; it should hold one image path a line")
    images = dict.fromkeys(_listed(list_file, number, entry) for number, entry in wanted)
    return _images(list(images), _common_folder(images))


def _listed(list_file: Path, number: int, entry: str) -> Path:
    """The image that one line of a list file names."""
    written, entry = expanded(entry), shortened(entry, 200)
    for path in (written, list_file.parent / written):
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                known = listed(IMAGE_SUFFIXES)
                raise DataError(f"{list_file} line {number}: {entry} is not an image ({known})")
            return path
    where = "" if written.is_absolute() else f" in {Path.cwd()} or {list_file.parent.resolve()}"
    raise DataError(f"{list_file} line {number}: {entry} does not exist{where}")


def _files_below(folder: Path, leave_out: Path | None) -> tuple[list[Path], Counter[str]]:
    """Every file below a folder, sorted, and how many others there are of a kind: hidden images, pipes and devices.

    Links to nowhere with an image's name are among the files, so that whoever reads them says so.
    """
    unwanted = None if leave_out is None else Path(os.path.realpath(leave_out))
    unwanted = None if unwanted == folder.resolve() else unwanted
    files, others, outside = list[Path](), Counter[str](), dict[Path, bool]()
    for found, what in files_below(folder):
        path = Path(found)
        if path.parent not in outside:
            real = path.parent.resolve()
            outside[path.parent] = unwanted is None or not (real == unwanted or unwanted in real.parents)
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        if not outside[path.parent] or path.name.startswith("._"):
            continue
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            others["hidden"] += is_image
        elif what == "file" or (is_image and what != "no file"):
            files.append(path)
        else:
            others["no regular file" if what == "no file" else what] += 1
    return sorted(files), others


def _images(paths: list[Path], folder: Path) -> ImageSource:
    """Name images by their way below `folder`: the shortest name that no other image could also claim."""
    root = _absolute(folder)
    full = [_absolute(path).relative_to(root).as_posix() for path in paths]
    short = [name.removesuffix(path.suffix) for name, path in zip(full, paths, strict=True)]
    # Counted without regard to case: results may land on a file system that does not tell A from a.
    claims = Counter(name.casefold() for name in short) + Counter({name.casefold() for name in full})
    names = (s if claims[s.casefold()] == 1 else f for s, f in zip(short, full, strict=True))
    return ImageSource(tuple(paths), tuple(names))


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([_absolute(path.parent) for path in paths]))


def _absolute(path: Path) -> Path:
    """Without `..`, links kept: `Path.resolve` would lead a linked image out of its folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _warn_of_left_out(where: Path | str, files: list[Path], others: Counter[str]) -> None:
    kinds = Counter(path.suffix.lower() or "without suffix" for path in files)
    left_out = Counter({kind: count for kind, count in kinds.items() if kind not in IMAGE_SUFFIXES | NOTES})
    left_out = +(left_out + others)
    if left_out:
        text = f"data: {where}: left out {_counts(left_out)}; only {listed(IMAGE_SUFFIXES)} are taken"
        alone = ", and a video must be named alone" if VIDEO_SUFFIXES & left_out.keys() else ""
        decoder = '; pip install "segmv3[heic]"' if left_out.keys() & {".heic", ".heif"} else ""
        warnings.warn(text + alone + decoder, Segmv3Warning, stacklevel=2)


def _census(files: list[Path]) -> str:
    """`found 3 .mp4, 1 .txt`."""
    return "found " + (_counts(Counter(path.suffix.lower() or "without suffix" for path in files)) or "nothing")


def _counts(kinds: Counter[str]) -> str:
    shown = [f"{count:,} {kind}" for kind, count in kinds.most_common(5)]
    return ", ".join(shown) + (", ..." if len(kinds) > 5 else "")


def surroundings(path: Path) -> str:
    """What there is in the nearest existing folder above a path that does not exist."""
    folder = next(parent for parent in _absolute(path).parents if parent.is_dir())
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}"
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return f"{folder} holds {', '.join(names[:4])}{more}"


def listed(suffixes: Iterable[str]) -> str:
    """Suffixes for a message."""
    return " ".join(sorted(suffixes))


def in_sequence(pattern: Path) -> ImageSource:
    """The files that a name with a number in it (`%04d`) stands for, by their numbers; a line counts the gaps."""
    before, _, digits, after = re.split(r"(%0?(\d*)d)", pattern.name, maxsplit=1)
    number = rf"(\d{{{digits},}})" if digits else r"(\d+)"
    form = re.compile(re.escape(before) + number + re.escape(after))
    try:
        entries = list(pattern.parent.iterdir())
    except OSError as error:
        raise DataError(f"{pattern.parent} cannot be listed ({error.strerror})") from None
    numbered = sorted((int(found[1]), entry) for entry in entries if (found := form.fullmatch(entry.name)))
    if not numbered or pattern.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{pattern} matches no images (looked for {listed(IMAGE_SUFFIXES)}; {surroundings(pattern)})")
    first, last = numbered[0][0], numbered[-1][0]
    if gaps := last - first + 1 - len(numbered):
        text = f"data: {pattern}: {gaps:,} of the numbers {first} to {last} have no file"
        warnings.warn(text, Segmv3Warning, stacklevel=4)
    return _images([path for _, path in numbered], pattern.parent)
