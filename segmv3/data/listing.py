"""The image files of a folder, and what else lies there: nothing is left out without a word."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segmv3.errors import DataError, Segmv3Warning
from segmv3.files import files_below
from segmv3.images import NOTES, SUFFIXES


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


def by_stem(files: Iterable[Path], suffix: str = "") -> dict[str, Path]:
    """Files whose stem ends in `suffix`, by the stem before it.

    Raises: DataError when two files share a stem: pairing would be a guess.
    """
    return only(grouped(files, suffix))


def grouped(files: Iterable[Path], suffix: str = "", below: Path | None = None) -> dict[str, list[Path]]:
    """Files whose name without its ending ends in `suffix`, by what stands before it.

    Args:
        files: any paths.
        suffix: such as `_leftImg8bit`.
        below: names are the ways from this folder; by default the last parts of the paths alone.
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
