"""Writing the data set of an import: links to images, label files, and a folder that is there whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segmv3.data.importing.base import Frame, Legend, Tell
from segmv3.data.listing import count_of
from segmv3.errors import DataError, OutputError
from segmv3.files import make_folder, write_error
from segmv3.images import write_png
from segmv3.labels import IGNORE
from segmv3.pipeline import on_all_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Counts = NDArray[np.int64]
"""N x 256: pixels of each label by the value that the source has there."""


def over_all(work: Callable[[Item], Result], items: Sequence[Item], what: str, tell: Tell) -> list[Result]:
    """What was made of each item, in order; several are worked on at once.

    Raises: DataError once all are done, if the work on some raised it.
    """

    def caught(item: Item) -> Result | DataError:
        try:
            return work(item)
        except DataError as error:
            return error

    results, bad = list[Result](), list[DataError]()
    with on_all_cores(caught, items) as done:
        for number, result in enumerate(done, 1):
            if isinstance(result, DataError):
                bad.append(result)
            else:
                results.append(result)
            tell(what, number, len(items))
    refuse_bad(bad)
    return results


def refuse_bad(bad: Sequence[DataError]) -> None:
    """Raises: DataError that counts the files that cannot be used and names the first."""
    if bad:
        counted = count_of(len(bad), "file cannot be used", "files cannot be used; the first")
        raise DataError(f"{counted}: {bad[0].args[0]}")


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its name when all is done, and is removed when it is not."""
    place = make_folder(output.absolute().parent) / f".segmv3-import-{token_hex(8)}"
    try:
        place.mkdir()
        yield place
        if os.path.lexists(output):
            raise OutputError(f"{output} has come into being meanwhile; name a new folder")
        place.rename(output)
    except OSError as error:
        raise write_error(error, output, 0) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_frames(
    place: Path, legend: Legend, frames: Sequence[tuple[str, Frame, tuple[int, int]]], *, copy: bool, tell: Tell
) -> tuple[Counts, set[str]]:
    """Write every frame of (split, frame, height and width of the image).

    Returns:
        The counts in the order of the frames, and in what ways images were linked, for people.

    Raises:
        DataError: a label cannot be made, has another size than its image, or values that the legend has not.
        OutputError: a file cannot be written.
    """
    ways, lookup = set[str](), np.full(256, IGNORE, np.uint8)
    for value, id_ in legend.ids.items():
        lookup[value] = id_

    def write(item: tuple[str, Frame, tuple[int, int]]) -> NDArray[np.int64]:
        split, frame, size = item
        assert frame.label is not None
        values = frame.label()
        if values.shape != size:
            sizes = f"{size[1]}x{size[0]} but its label is {values.shape[1]}x{values.shape[0]}"
            raise DataError(f"{frame.image} is {sizes}; they must have the same size")
        image = place / "images" / split / f"{frame.name}{frame.image.suffix}"
        label = place / "labels" / split / f"{frame.name}.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        ways.add(_link(frame.image, image, copy))
        write_png(label, lookup[values])
        return np.bincount(values.ravel(), minlength=256)

    counts = np.array(over_all(write, frames, "frames", tell))
    _refuse_values(legend, counts, [frame for _, frame, _ in frames])
    return counts, ways


def _refuse_values(legend: Legend, counts: Counts, frames: Sequence[Frame]) -> None:
    """Raises: DataError for values that the legend has not, counted."""
    unknown = set(range(IGNORE)) - legend.ids.keys()
    odd = {value: counts[:, value] for value in sorted(unknown) if counts[:, value].any()}
    if odd:
        shown = ", ".join(
            f"{value} ({count_of(int((pixels > 0).sum()), 'frame', 'frames')}, {pixels.sum():,} pixels)"
            for value, pixels in [*odd.items()][:8]
        )
        first = frames[int(next(iter(odd.values())).argmax())].image
        raise DataError(f"labels hold values that no class has: {shown} (first: {first}); name their classes")


def _link(file: Path, link: Path, copy: bool) -> str:
    """A relative link; a hard link where the file system has none, a copy where the user wants it."""
    real = os.path.realpath(file)
    try:
        if copy:
            shutil.copyfile(real, link)
            return "copies"
        try:
            link.symlink_to(os.path.relpath(real, os.path.realpath(link.parent)))
            return "relative links into the source, which must stay where it is"
        except (OSError, ValueError, NotImplementedError):
            os.link(real, link)
            return "hard links to the files of the source"
    except OSError as error:
        if copy:
            raise write_error(error, link, 0) from None
        raise OutputError(f"{link.parent} takes no links ({error.strerror}); --copy copies the images") from None
