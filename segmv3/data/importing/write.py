"""Writing the data set of an import: links, label files, and a folder that is there whole or not at all."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segmv3.data.importing.base import Frame, Legend, Tell
from segmv3.data.importing.splits import Shared
from segmv3.data.listing import count_of
from segmv3.errors import DataError, OutputError
from segmv3.files import alone, make_folder, write_error
from segmv3.images import read_ids, write_png
from segmv3.labels import IGNORE, ILLEGAL

Item = TypeVar("Item")
Result = TypeVar("Result")
Counts = NDArray[np.int64]
"""Pixels of one label by the value that the source has there, 256 of them."""


def sizes_differ(image: Path, label: object, size: tuple[int, ...], other: tuple[int, ...]) -> str:
    """What to say of an image and its label of these (height, width)."""
    label = f" {label}" if isinstance(label, Path) else ""
    return f"{image} is {size[1]}x{size[0]} but its label{label} is {other[1]}x{other[0]}; they must have the same size"


def refuse_bad(bad: Sequence[str]) -> None:
    """Raises: DataError that counts the files that cannot be used and names the first."""
    if bad:
        raise DataError(f"{count_of(len(bad), 'file cannot be used', 'files cannot be used; the first')}: {bad[0]}")


def over_all(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, tell: Tell
) -> Generator[tuple[Item, Result]]:
    """Each item with what was made of it, in order; several are worked on at once. Close it when it is left early.

    Raises: DataError once all are done, if the work on some raised it.
    """

    def caught(item: Item) -> Result | DataError:
        try:
            return work(item)
        except DataError as error:
            return error

    bad = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for number, (item, result) in enumerate(zip(items, pool.map(caught, items), strict=True), 1):
                if isinstance(result, DataError):
                    bad.append(str(result.args[0]))
                else:
                    yield item, result
                tell(what, number, len(items))
        finally:
            pool.shutdown(cancel_futures=True)
    refuse_bad(bad)


def refuse_values(legend: Legend, counts: Mapping[str, Counts]) -> None:
    """Raises: DataError for values that the legend has not, counted."""
    known = [*(each.value for each in legend.sources), IGNORE]
    table = np.array([*counts.values()]).reshape(-1, 256)
    table[:, known] = 0
    if table.any():
        frames, pixels = (table > 0).sum(0), table.sum(0)
        shown = np.flatnonzero(pixels)[:8]
        values = ", ".join(f"{i} ({count_of(int(frames[i]), 'frame', 'frames')}, {pixels[i]:,} pixels)" for i in shown)
        first = list(counts)[int(np.flatnonzero(table.any(1))[0])]
        raise DataError(f"labels hold values that no class has: {values} (first: {first}); name their classes")


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A hidden folder beside the output that takes its name when all is done, and is removed when it is not.

    What a killed import left is removed by the next one to the same output.
    """
    place = make_folder(output.absolute().parent) / f".segmv3-import-{output.name}"
    try:
        place.mkdir(exist_ok=True)
        if place.is_symlink():
            raise OutputError(f"{place} is a link; remove it")
    except OSError as error:
        raise write_error(error, place, 0) from None
    lock = place / ".lock"

    def in_use() -> None:
        raise OutputError(f"another import is writing {output}; wait for its end")

    with alone(lock, in_use):
        try:
            for left in place.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                elif left != lock:
                    left.unlink()
            yield place
            if os.path.lexists(output):
                raise OutputError(f"{output} has come into being meanwhile; name a new folder")
            lock.unlink()
            place.rename(output)
        except OSError as error:
            raise write_error(error, output, 0) from None
        finally:
            shutil.rmtree(place, ignore_errors=True)


class Writer:
    """Writes the frames of the splits into a folder."""

    def __init__(self, place: Path, legend: Legend, *, linked: bool, copy: bool) -> None:
        self.place, self.legend, self.linked, self.copy = place, legend, linked, copy
        self.ways: set[str] = set()
        order = {name: i for i, name in enumerate(legend.classes.names)}
        self.lookup = np.full(256, ILLEGAL, np.uint8)
        self.lookup[[IGNORE, *(each.value for each in legend.sources)]] = [
            IGNORE,
            *(IGNORE if each.to is None else order[each.to] for each in legend.sources),
        ]

    def write(self, shared: Shared, sizes: Mapping[Path, tuple[int, int]], tell: Tell) -> list[Counts]:
        """Every frame; the counts are in their order."""
        todo = [(split, frame) for split, frames in shared.splits.items() for frame in frames]
        with closing(over_all(lambda each: self._frame(*each, sizes[each[1].image]), todo, "frames", tell)) as done:
            found = {str(frame.image): counts for (_, frame), counts in done}
        refuse_values(self.legend, found)
        return [*found.values()]

    def _frame(self, split: str, frame: Frame, size: tuple[int, int]) -> Counts:
        """Write one frame and count its label. Raises: DataError for a label that cannot be used."""
        image = self.place / "images" / split / f"{frame.name}{frame.image.suffix}"
        label = self.place / "labels" / split / f"{frame.name}.png"
        assert frame.label is not None
        values = read_ids(frame.label) if isinstance(frame.label, Path) else frame.label()
        if values.shape != size:
            raise DataError(sizes_differ(frame.image, frame.label, size, values.shape))
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._link(frame.image, image)
        if self.linked and isinstance(frame.label, Path):
            self._link(frame.label, label.with_name(f"{label.name[:-4]}{frame.label.suffix}"))
        else:
            write_png(label, self.lookup[values])
        return np.bincount(values.ravel(), minlength=256)

    def _link(self, file: Path, link: Path) -> None:
        """A relative link; a hard link where the file system has none, a copy where the user wants it."""
        real = os.path.realpath(file)
        try:
            if self.copy:
                shutil.copyfile(real, link)
                self.ways.add("copies")
                return
            try:
                link.symlink_to(os.path.relpath(real, os.path.realpath(link.parent)))
                self.ways.add("relative links into the source, which must stay where it is")
            except (OSError, ValueError, NotImplementedError):
                os.link(real, link)
                self.ways.add("hard links to the files of the source")
        except OSError as error:
            if self.copy:
                raise write_error(error, link, 0) from None
            raise OutputError(f"{link.parent} takes no links ({error.strerror}); --copy copies the images") from None
