"""Images and frames per second: batches, a folder on disk, and a video with reading, drawing and encoding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmv3.benchmark.pictures import drive
from segmv3.benchmark.roofline import Work, copied_gbytes
from segmv3.benchmark.timing import Progress, Times, time_in_turns
from segmv3.images import UInt8Array, read_image, write_png
from segmv3.media.encoding import VideoWriter
from segmv3.media.video import VideoReader
from segmv3.prediction import predict_source
from segmv3.runtime import Predictor

_FPS = 25


@dataclass(frozen=True)
class Rate:
    """The rate of one kind of work."""

    name: str
    images: int
    """Images of one timed pass."""
    times: Times
    of: str = ""
    """The rate that this one is a share of."""
    memory: float | None = None
    """MiB of GPU memory at the peak."""
    floor: float | None = None
    """Seconds that the bytes of one pass take at the speed of a copy. Known for a GPU only."""

    @property
    def per_second(self) -> float:
        return self.images / self.times.median

    def facts(self) -> dict[str, Any]:
        """What a receipt holds of it."""
        known = {
            "share_of": self.of or None,
            "gpu_memory_mib": self.memory and round(self.memory),
            "bandwidth_floor_ms": self.floor and round(1000 * self.floor, 3),
        }
        facts = {"name": self.name, "images": self.images, "per_second": round(self.per_second, 3)}
        return facts | self.times.facts() | {key: value for key, value in known.items() if value is not None}


def time_batches(
    predict: Predictor,
    picture: UInt8Array,
    batches: Sequence[int],
    repeat: int,
    *,
    work: Work | None = None,
    progress: Progress | None = None,
) -> list[Rate]:
    """Time `predict` on batches of one picture, by turns.

    Args:
        work: the work of the net, for the floor on a GPU.

    Raises:
        ModelError: the net takes one image at a time.
    """
    calls = {batch: partial(predict, np.ascontiguousarray(np.stack([picture] * batch))) for batch in batches}
    on_gpu = predict.device == "cuda"
    memory = {batch: _gpu_memory(call) for batch, call in calls.items()} if on_gpu else {}
    times = time_in_turns(calls, repeat, progress=progress)
    rates = []
    for batch in batches:
        floor = work.gbytes(predict.precision, batch) / copied_gbytes("cuda") if on_gpu and work else None
        of = "" if batch == batches[0] else f"batch of {batches[0]}"
        rates.append(Rate(f"batch of {batch}", batch, times[batch], of, memory.get(batch), floor))
    return rates


def _gpu_memory(call: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**20


def time_folder(
    predict: Predictor,
    picture: UInt8Array,
    folder: Path,
    repeat: int,
    images: int = 16,
    *,
    progress: Progress | None = None,
) -> list[Rate]:
    """Time `segmv3 predict` on a folder of PNGs, against bare inference on the same images in memory.

    Args:
        folder: an empty folder, to be filled.

    Raises:
        OutputError: the folder cannot be written.
        ResourceError: the disk is full.
    """
    source = folder / "images"
    source.mkdir(parents=True)
    for number, frame in enumerate(drive(picture, images)):
        write_png(source / f"{number:03d}.png", frame)
    frames = [read_image(path) for path in sorted(source.iterdir())]
    measures = {"images in memory": partial(_bare, predict, frames)} | {
        f"folder, {kind} written": partial(_source, str(source), predict, folder / kind, kind)
        for kind in ("labels", "overlay")
    }
    return _shares(measures, images, repeat, progress)


def time_video(
    predict: Predictor,
    picture: UInt8Array,
    folder: Path,
    repeat: int,
    frames: int = 48,
    *,
    progress: Progress | None = None,
) -> list[Rate]:
    """Time `segmv3 predict` on a video, with reading, drawing and encoding, against bare inference on its frames.

    Args:
        picture: uint8 H x W x 3, H and W even.
        folder: an empty folder, for the video and the result.

    Raises:
        ResourceError: the package av is missing, or the disk is full.
        OutputError: the folder cannot be written.
    """
    path = folder / "street.webm"
    folder.mkdir(parents=True)
    with VideoWriter(path, _FPS, picture.shape[:2]) as video:
        for frame in drive(picture, frames):
            video.write(frame)
    with VideoReader(path) as read:
        kept = list(read)
    measures = {
        "frames in memory": partial(_bare, predict, kept),
        "video, overlay written": partial(_source, str(path), predict, folder / "out", "overlay"),
    }
    return _shares(measures, frames, repeat, progress)


def _bare(predict: Predictor, images: Sequence[UInt8Array]) -> None:
    for image in images:
        predict(image)


def _source(source: str, predict: Predictor, output: Path, kind: str) -> None:
    predict_source(source, predict, predict.classes, output, save=(kind,), overwrite=True)


def _shares(
    measures: Mapping[str, Callable[[], None]], images: int, repeat: int, progress: Progress | None
) -> list[Rate]:
    """The first of them is what the others are a share of."""
    times = time_in_turns(measures, repeat, progress=progress)
    bare = next(iter(measures))
    return [Rate(name, images, one, "" if name == bare else bare) for name, one in times.items()]
