"""A video with reading, drawing and encoding, against its frames in memory, and beside Ultralytics' own predict."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from segmv3.benchmark.nets import Place
from segmv3.benchmark.timing import Progress, in_turns
from segmv3.errors import ResourceError
from segmv3.images import UInt8Array
from segmv3.media.encoding import FORMATS
from segmv3.media.video import VideoReader
from segmv3.pipeline import work_together
from segmv3.prediction import frames_at_once, predict_source
from segmv3.runtime import Predictor

BARE = "frames in memory"
Cost = Mapping[str, float]
"""Seconds of a whole clip: "wall", and "cpu" of all threads."""


@dataclass(frozen=True)
class Rate:
    """What one kind of work on a clip takes."""

    name: str
    frames: int
    costs: tuple[Cost, ...]

    def milliseconds(self, clock: str) -> float:
        """A frame's share of the median of all turns."""
        return 1000 * median(cost[clock] for cost in self.costs) / self.frames


def time_clip(
    clip: Path,
    opened: Callable[[Place], Predictor],
    place: Place,
    repeat: int,
    *,
    ultralytics: Path | None,
    progress: Progress,
) -> list[Rate]:
    """Time all ways through a clip, by turns. As `segmv3 predict` does, several frames are labelled at a time.

    Args:
        clip: a short video; its frames stay in memory.
        opened: opens the net, with the threads of a place.
        place: threads, and a folder for results.
        repeat: passes of each that count.
        ultralytics: the Python of an environment that has the package ultralytics.
        progress: called after each pass.

    Returns:
        The net alone on frames in memory, one at a time with all threads; then as many at a time as predict labels,
        each with a part of the threads, where that is more than one; then the others.

    Raises:
        ResourceError: the other environment cannot run its net.
    """
    with VideoReader(clip) as video:
        frames, at_once = list(video), frames_at_once(video, place.threads)
    predict = opened(place)
    measures = {BARE: _measure(place.threads, lambda: _label_all(predict, frames))}
    if at_once > 1:
        place = replace(place, threads=place.threads // at_once)
        predict_apart = opened(place)
        measures[f"{BARE}, {at_once} at a time"] = _measure(
            place.threads, lambda: _label_together(predict_apart, frames, at_once)
        )
    else:
        predict_apart = predict
    for name in FORMATS:
        output = place.folder / "out"
        measures[f"segmv3 predict, {name}"] = _measure(
            place.threads, partial(_predict, clip, predict_apart, output, name, at_once)
        )
    if not ultralytics:
        found = in_turns(measures, repeat, progress=progress)
    else:
        height, width = frames[0].shape[:2]
        sizes = map(str, (height, width, place.threads * at_once))
        command = [str(ultralytics), str(Path(__file__).with_name("ultralytics_video.py")), str(clip), *sizes]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place.folder
        ) as process:
            try:
                measures[_answer(process)] = partial(_cost_elsewhere, process)
                found = in_turns(measures, repeat, progress=progress)
            finally:
                process.kill()
    return [Rate(name, len(frames), tuple(costs)) for name, costs in found.items()]


def _label_all(predict: Predictor, frames: list[UInt8Array]) -> None:
    for frame in frames:
        predict(frame)


def _label_together(predict: Predictor, frames: list[UInt8Array], at_once: int) -> None:
    with work_together(predict, frames, threads=at_once) as labelled:
        for _ in labelled:
            pass


def _predict(clip: Path, predict: Predictor, output: Path, video: str, at_once: int) -> None:
    predict_source(str(clip), predict, predict.classes, output, overwrite=True, video=video, at_once=at_once)


def _measure(threads: int, call: Callable[[], None]) -> Callable[[], Cost]:
    def cost() -> Cost:
        torch.set_num_threads(threads)  # PyTorch's are those of the process
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    return cost


def _cost_elsewhere(process: "subprocess.Popen[str]") -> Cost:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    wall, cpu = map(float, _answer(process).split())
    return {"wall": wall, "cpu": cpu}


def _answer(process: "subprocess.Popen[str]") -> str:
    """The next line that is meant for us: the package prints its own."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("> "):
            return line[2:].strip()
        print(line, end="", file=sys.stderr)
    raise ResourceError("the environment of --ultralytics cannot run its net; what it said stands above")
