"""What `segmv3 predict` does: a net over images or a video, results as files.

Reading, prediction and writing overlap: the net runs in the caller's thread, the rest in others.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from segmv3.errors import ConfigError, DataError, OutputError, Segmv3Error
from segmv3.files import expanded, make_folder
from segmv3.images import UInt8Array, read_image, write_png
from segmv3.labels import Classes
from segmv3.media.draw import colorize, legend, overlay, with_legend
from segmv3.media.encoding import VideoWriter
from segmv3.prediction.sources import ImageSource, VideoSource, find_source
from segmv3.media.video import VideoReader
from segmv3.pipeline import read_ahead, work_behind

KINDS = ("overlay", "labels", "color")
"""What can be saved: colours over the image with a legend, raw train ids, colours alone."""

Predict = Callable[[UInt8Array], UInt8Array]
"""uint8 H x W x 3, RGB -> labels, uint8 H x W, an array of its own. Called from one thread, in order."""

Progress = Callable[[int, int | None], None]
"""Called with (images or frames done, how many there are or None); a video's total is only announced."""

_Labelled = tuple[UInt8Array, UInt8Array]  # an image and its labels
_Failure = DataError | OutputError

_PNG_THREADS = 2  # compressing a PNG can take as long as labelling it

_FRAME_FILE = re.compile(r"\d{6,}\.png")


class PartialResultError(Segmv3Error):
    """Some of the images could not be read, or their results not written; the others are done."""

    exit_code = 3
    area = "predict"


def predict_source(
    source: str,
    predict: Predict,
    classes: Classes,
    output: Path,
    *,
    save: Sequence[str] = ("overlay",),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Predict every image of a source, or every frame of a video, and write the results.

    An image `a.jpg` gives `a_overlay.png`, `a_labels.png` (8-bit train ids) and `a_color.png`; a video
    `d.mp4` gives `d_overlay.webm`, `d_color.webm` and the folder `d_labels`, one PNG of train ids per frame.
    Images from different folders keep their folders below `output`; when a folder is searched for images,
    `output` is left out.

    Args:
        source: an image, folder, glob pattern, .txt list or video; see `segmv3.prediction.sources.find_source`.
        predict: from an image, uint8 H x W x 3 RGB, to its labels, uint8 H x W.
        save: some of `KINDS`.
        overwrite: whether results of a former run may be replaced. Inputs never are.
        progress: called after each image or frame is written, in order.

    Returns: the files written, and the folder for the labels of a video.
    Raises, before anything is predicted or written: ConfigError for a kind that does not exist; DataError or
        VideoError when the source cannot be used; OutputError when results exist or cannot be written.
    Raises, with all that could be done on disk: PartialResultError when some images cannot be read or written
        (DataError or OutputError when none can), PartialVideoError when a video is cut or damaged.
    Raises, with what was predicted by then on disk and every file complete: whatever `predict`, a signal handler or
        writing raises; of several errors the one of the earliest image or frame.
    """
    job = _Job(predict, classes, Path(output), _kinds(save), overwrite, progress or _silent)
    _refuse_own_folder(source, job.output)
    found = find_source(source, leave_out=job.output)
    return _predict_video(found, job) if isinstance(found, VideoSource) else _predict_images(found, job)


@dataclass(frozen=True)
class _Job:
    predict: Predict
    classes: Classes
    output: Path
    kinds: tuple[str, ...]
    overwrite: bool
    progress: Progress


def _kinds(save: Sequence[str]) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(save.split(",") if isinstance(save, str) else save))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        said = f"cannot save {', '.join(map(repr, wrong))}" if wrong else "nothing to save"
        raise ConfigError(f"{said}; choose from {', '.join(KINDS)}")
    return kinds


def _silent(done: int, total: int | None) -> None:
    pass


def _refuse_own_folder(source: str, output: Path) -> None:
    folder = expanded(source)
    if source.strip() and folder.is_dir() and os.path.realpath(folder) == os.path.realpath(output):
        raise OutputError(
            f"{output} is the folder the images are read from, and the next run would read the results as "
            "images; choose another --output"
        )


def _refuse_conflicts(inputs: Sequence[Path], targets: Sequence[Path], overwrite: bool) -> None:
    """Nothing of the user's is overwritten: inputs never, other files only when allowed."""
    originals = {os.path.realpath(path) for path in inputs}  # unlike resolve, of links that go round, too
    for target in targets:
        if os.path.realpath(target) in originals:
            raise OutputError(f"{target} is one of the inputs; choose another --output")
    # a name too long for the file system is not there
    existing = [] if overwrite else [target for target in targets if os.path.exists(target)]  # noqa: PTH110
    if existing:
        exist = "exists" if len(existing) == 1 else f"and {len(existing) - 1:,} more exist"
        raise OutputError(f"{existing[0]} {exist}; choose another --output or add --overwrite")


# ---- images ----


def _predict_images(images: ImageSource, job: _Job) -> list[Path]:
    targets = [{kind: job.output / f"{name}_{kind}.png" for kind in job.kinds} for name in images.names]
    every = [target for kinds in targets for target in kinds.values()]
    _refuse_conflicts(images.paths, every, job.overwrite)
    for folder in sorted({job.output, *(target.parent for target in every)}):
        make_folder(folder)

    written: list[Path] = []
    failures: list[_Failure] = []

    def finish(step: tuple[dict[str, Path], _Labelled | DataError]) -> list[Path] | _Failure:
        kinds, labelled = step
        try:
            return labelled if isinstance(labelled, DataError) else _write_results(*labelled, kinds, job.classes)
        except OutputError as error:  # of this file; a full disk is a ResourceError
            return error

    with (
        read_ahead(map(_read, images.paths)) as read,
        work_behind(
            finish, zip(targets, _label(read, job.predict), strict=True), threads=_PNG_THREADS, waiting=0
        ) as finished,
    ):
        for done, outcome in enumerate(finished, 1):
            if isinstance(outcome, Segmv3Error):
                failures.append(outcome)
            else:
                written += outcome
            job.progress(done, len(targets))
    if failures:
        raise _image_error(failures, len(targets), job.output)
    return written


def _read(path: Path) -> UInt8Array | DataError:
    """An image, or why there is none: the others are still to be read."""
    try:
        return read_image(path)
    except DataError as error:
        return error


def _label(images: Iterable[UInt8Array | DataError], predict: Predict) -> Iterator[_Labelled | DataError]:
    for image in images:
        yield image if isinstance(image, DataError) else (image, predict(image))


def _write_results(image: UInt8Array, labels: UInt8Array, targets: dict[str, Path], classes: Classes) -> list[Path]:
    for kind, target in targets.items():
        picture = _picture(kind, image, labels, classes)
        write_png(target, with_legend(picture, classes, labels) if kind == "overlay" else picture)
    return list(targets.values())


def _picture(kind: str, image: UInt8Array, labels: UInt8Array, classes: Classes) -> UInt8Array:
    if kind == "labels":
        return labels
    return colorize(labels, classes) if kind == "color" else overlay(image, labels, classes)


def _image_error(failures: Sequence[_Failure], total: int, output: Path) -> Segmv3Error:
    if total == 1:
        return failures[0]
    first = failures[0].args[0]
    kinds = {type(failure) for failure in failures}
    done = "read" if kinds == {DataError} else "written" if kinds == {OutputError} else "read or written"
    if len(failures) == total:
        return type(failures[0])(f"none of the {total:,} images could be {done} (first: {first})")
    return PartialResultError(
        f"{len(failures):,} of {total:,} images could not be {done} (first: {first}); "
        f"the results of the others are in {output}"
    )


# ---- video ----

_Sink = Callable[[UInt8Array, UInt8Array, Fraction], None]
"""Takes a frame, its labels and its time; called from one thread, in order."""


@dataclass
class _LabelFolder:
    """Train ids of a video, one PNG per frame: 000000.png, 000001.png, ..."""

    folder: Path
    count: int = 0

    def __post_init__(self) -> None:
        make_folder(self.folder)
        for old in self.folder.iterdir():  # a longer former run must not leave frames behind the new ones
            if _FRAME_FILE.fullmatch(old.name):
                old.unlink()

    def __call__(self, frame: UInt8Array, labels: UInt8Array, time: Fraction) -> None:
        write_png(self.folder / f"{self.count:06d}.png", labels)
        self.count += 1


def _predict_video(video: VideoSource, job: _Job) -> list[Path]:
    suffixes = {"overlay": ".webm", "color": ".webm", "labels": ""}
    targets = {kind: job.output / f"{video.name}_{kind}{suffixes[kind]}" for kind in job.kinds}
    _refuse_conflicts([video.path], list(targets.values()), job.overwrite)
    with VideoReader(video.path) as frames, ExitStack() as open_files:
        make_folder(job.output)
        sinks = [_sink(kind, target, frames, job, open_files) for kind, target in targets.items()]

        def finish(labelled: tuple[UInt8Array, UInt8Array, Fraction]) -> None:
            for sink in sinks:
                sink(*labelled)

        announced = frames.announced_frames
        with (
            read_ahead(frames.timed()) as read,
            work_behind(finish, ((frame, job.predict(frame), time) for frame, time in read)) as finished,
        ):
            for done, _ in enumerate(finished, 1):
                job.progress(done, announced)
    return list(targets.values())


def _sink(kind: str, target: Path, frames: VideoReader, job: _Job, open_files: ExitStack) -> _Sink:
    """Where one kind of result goes, frame by frame."""
    if kind == "labels":
        return _LabelFolder(target)
    height, width = frames.size
    # The size of a video is constant, so the legend shows all classes, not those of one frame.
    strip = legend(job.classes, width) if kind == "overlay" else np.zeros((0, width, 3), np.uint8)
    canvas = np.vstack([np.zeros((height, width, 3), np.uint8), strip])
    writer = open_files.enter_context(VideoWriter(target, frames.fps, canvas.shape[:2], overwrite=job.overwrite))

    def write(frame: UInt8Array, labels: UInt8Array, time: Fraction) -> None:
        canvas[:height] = _picture(kind, frame, labels, job.classes)
        writer.write(canvas, time)

    return write
