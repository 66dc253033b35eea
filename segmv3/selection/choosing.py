"""What `segmv3 data next` does, as a function."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segmv3.config import Config, Data, Device
from segmv3.data.datasets import find_split
from segmv3.data.sources import source_of
from segmv3.errors import DataError, ModelError, OutputError, PartialVideoError, Segmv3Warning
from segmv3.images import UInt8Array, read_image
from segmv3.pipeline import read_ahead
from segmv3.prediction import refuse_own_folder
from segmv3.prediction.listing import ImageSource
from segmv3.prediction.sources import VideoSource, find_source
from segmv3.selection.settings import Settings

if TYPE_CHECKING:
    from segmv3.selection.ranking import Look

LIST, PAGE, IMAGES = "next.txt", "next.html", "images"
Pool = ImageSource | VideoSource
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Frame:
    """A frame of a pool, and why it was chosen."""

    number: int
    """Its place in the pool, from 0."""
    name: str
    path: Path | None
    """Its file; None for a frame of a video."""
    uncertainty: float = 0
    """Mean of its most unsure cells, 0..1."""
    between: tuple[int, int] = (0, 0)
    """Train ids of the classes that the net hesitates between most often there."""
    rank: int = 0
    """1 for the most unsure frame of the pool."""
    distance: float = np.inf
    """From the nearest labelled or chosen frame, when it was chosen; infinite for the first where there was none."""
    nearest: str = ""
    """Name of that frame."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen of a pool."""

    frames: tuple[Frame, ...]
    """In the order of the choice."""
    ranked: int
    """Frames that they were chosen from."""
    labelled: int
    """Frames that they had to differ from."""
    left_out: Counter[str]
    """How many frames were left out, by the reason."""
    files: tuple[Path, ...] = ()
    """What was written: the list and the page."""


def select_frames(
    pool: str,
    weights: Path | str,
    settings: Settings | None = None,
    *,
    labelled: Config | Data | None = None,
    output: Path | None = None,
    device: Device = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Chosen:
    """Choose the frames of a pool that a net would learn most from: unsure ones that differ from each other.

    The same files and settings give the same choice.

    Args:
        pool: images or a video file, as `segmv3 predict` takes them.
        weights: weight file or published name.
        settings: how to choose; `segmv3.selection.settings.Settings`.
        labelled: the data set that exists. Its frames (the same path or the same pixels) are left out, and what is
            chosen differs from them.
        output: folder for the list next.txt and the page next.html; by default nothing is written.
        device: where to run; "auto" takes a GPU when there is one.
        threads: CPU threads; torch's own choice by default.
        progress: called with what is being done, how much of it is done, and how much there is (0: not known).

    Returns:
        The frames in the order of the choice, how many were left out and why, and the files that were written.

    Raises:
        Segmv3Error: the pool is empty or all labelled, the weights give no features, the output cannot be written.
    """
    settings, tell = settings or Settings(), progress or (lambda what, done, total: None)
    settings.refuse_odd()
    found = find_source(pool, leave_out=output)
    if not isinstance(found, Pool):
        raise DataError(f"{pool} is neither a folder or list of images nor a video file; record it to a file first")
    if output:
        refuse_own_folder(pool, output)
        _refuse_output(output, found, settings.overwrite)
    files = labelled_files(labelled) if labelled else []
    from segmv3.runtime import use_device
    from segmv3.runtime.loading import is_export
    from segmv3.selection.ranking import look_at
    from segmv3.weights.opening import open_segmenter

    if is_export(Path(weights)):
        raise ModelError(f"{weights} is an exported file, which gives no features; name the weights it was made from")
    net, card = open_segmenter(weights)
    if net.num_classes < 2:
        raise ModelError(f"{weights} tells no two classes apart, so it is never unsure")
    net = net.to(use_device(device, threads))
    chosen = _choose(found, files, settings, lambda image: look_at(net, image, settings), tell)
    if output:
        from segmv3.selection.writing import write

        about = [f"pool {pool}", f"weights {weights}"]
        chosen = write(output, chosen, about, card.classes, found, settings, lambda i: look_at(net, i, settings), tell)
    return chosen


def _refuse_output(folder: Path, pool: Pool, overwrite: bool) -> None:
    """Raises: OutputError where results would replace others, DataError for a name that no list can hold."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    if os.path.lexists(folder / IMAGES):  # of an earlier choice: they would be taken for some of this one
        raise OutputError(f"{folder / IMAGES} exists; remove it or choose another --output")
    there = [folder / name for name in (LIST, PAGE) if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists; choose another --output or add --overwrite")
    for path in pool.paths if isinstance(pool, ImageSource) else ():
        text = os.path.abspath(path)  # noqa: PTH100 (links are kept)
        if text.splitlines() != [text.strip()]:
            raise DataError(f"{path} cannot stand in a list: its name breaks the line, or ends in a space; rename it")


def labelled_files(data: Config | Data) -> list[Path]:
    """The images of all splits of a data set. Raises: DataError where there are none."""
    data = data.data if isinstance(data, Config) else data
    splits = source_of(data).splits(data.root)
    files = [path for split in splits for paths in find_split(data, split).images.values() for path in paths]
    if not files:
        raise DataError(f"{data.root} holds no frame with labels; leave --labelled out, or name another data set")
    return files


def pictures(
    pool: Pool, every: int, only: frozenset[int] | None = None
) -> Iterator[tuple[Frame, UInt8Array | DataError]]:
    """Every so many of the frames, or those of some numbers alone, with the picture or why there is none."""
    if isinstance(pool, ImageSource):
        kept = [number for number in range(0, len(pool.paths), every) if only is None or number in only]
        some = ImageSource(tuple(pool.paths[number] for number in kept), tuple(pool.names[number] for number in kept))
        yield from zip(map(Frame, kept, some.names, some.paths), some.pictures(), strict=True)
        return
    with pool.open() as reader:
        try:
            for number, image in enumerate(reader):
                if number % every == 0 and (only is None or number in only):
                    yield Frame(number, f"{pool.name}_{number:06d}", None), image
        except PartialVideoError as error:
            warnings.warn(Segmv3Warning(str(error)), stacklevel=2)


def _choose(
    pool: Pool, labelled: list[Path], settings: Settings, look: "Callable[[UInt8Array], Look]", progress: Progress
) -> Chosen:
    from segmv3.selection.ranking import k_centre

    known, centres = {os.path.realpath(path) for path in labelled}, []
    with read_ahead(map(read_image, labelled)) as waiting:
        for picture in waiting:
            known.add(_digest(picture))
            centres.append(look(picture).features)
            progress("look at what is labelled", len(centres), len(labelled))
    found, left_out = dict[str, tuple[Frame, np.ndarray]](), Counter[str]()
    total = len(range(0, len(pool.paths), settings.every)) if isinstance(pool, ImageSource) else 0
    with read_ahead(pictures(pool, settings.every)) as read:
        for done, (frame, image) in enumerate(read, 1):
            if isinstance(image, DataError):
                left_out["unreadable"] += 1
                warnings.warn(Segmv3Warning(str(image)), stacklevel=3)
            elif (key := _digest(image)) in known or (frame.path and os.path.realpath(frame.path) in known):
                left_out["labelled already"] += 1
            elif key in found:
                left_out["the same as another"] += 1
            else:
                seen = look(image)
                found[key] = replace(frame, uncertainty=seen.value, between=seen.between), seen.features
            progress("look at the pool", done, total)
    if not found:
        reasons = ", ".join(f"{count:,} frames are {what}" for what, count in left_out.items())
        raise DataError(f"nothing is left to choose from the pool: {reasons or 'it has no frame'}")
    among = sorted(found.values(), key=lambda each: (-each[0].uncertainty, each[0].number))
    among = among[: max(settings.count, round(settings.count * settings.candidates))]
    features = np.stack([each for _, each in among])
    taken = k_centre(features, np.array(centres, np.float32).reshape(-1, features.shape[1]), settings.count)
    names = [*(path.stem for path in labelled), *(among[place][0].name for place, _, _ in taken)]
    frames = (
        replace(among[place][0], rank=place + 1, distance=distance, nearest=names[nearest] if nearest >= 0 else "")
        for place, distance, nearest in taken
    )
    return Chosen(tuple(frames), len(found), len(labelled), left_out)


def _digest(image: UInt8Array) -> str:
    """The same for a file, its copy, and a lossless copy in another format."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
