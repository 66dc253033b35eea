"""What `segmv3 predict` does: a net over images or a video, results as files.

Reading, prediction and writing overlap: the net runs in the caller's thread, the rest in others.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

from segmv3.errors import ConfigError, DataError, OutputError, Segmv3Error
from segmv3.files import expanded, make_folder
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.encoding import FORMATS
from segmv3.media.live import LiveReader
from segmv3.pipeline import read_ahead, work_behind
from segmv3.prediction.contract import Job, Kind, Shot, Sink
from segmv3.prediction.results import KINDS
from segmv3.prediction.sources import FrameSource, PictureSource, Source, find_source

Predict = Callable[[UInt8Array], UInt8Array]
"""uint8 H x W x 3, RGB -> labels, uint8 H x W, an array of its own. Called from one thread, in order."""

Progress = Callable[[int, int | None], None]
"""Called with (images or frames done, how many there are or None); a video's total is only announced."""

_Failure = DataError | OutputError

_PNG_THREADS = 2  # compressing a PNG can take as long as labelling it


class PartialResultError(Segmv3Error):
    """Some of the images could not be read, or their results not written; the others are done."""

    exit_code = 3
    area = "predict"


def predict_source(
    source: str | Source,
    predict: Predict,
    classes: Classes | Callable[[], Classes],
    output: Path,
    *,
    save: Sequence[str | Kind] = ("overlay",),
    overwrite: bool = False,
    video: str = "webm",
    progress: Progress | None = None,
) -> list[Path]:
    """Predict every image of a source, or every frame of a video, and write the results.

    An image `a.jpg` gives `a_overlay.png`, `a_labels.png` (8-bit train ids) and `a_color.png`; a video
    `d.mp4` gives `d_overlay.webm`, `d_color.webm` and the folder `d_labels`, one PNG of train ids per frame.
    Images from different folders keep their folders below `output`; when a folder is searched for images,
    `output` is left out.

    Args:
        source: what `segmv3.prediction.sources.find_source` takes: a file, folder, pattern, list, camera or address; or
            what it gives, or an object of your own with the same members.
        predict: from an image, uint8 H x W x 3 RGB, to its labels, uint8 H x W.
        classes: the net's classes, or how to get them once nothing is left to refuse.
        save: names of `KINDS`, or kinds of your own.
        overwrite: whether results of a former run may be replaced. Inputs never are.
        video: how videos are written: "webm" (VP9), "mp4" (H.264) or "av1" (in MP4).
        progress: called after each image or frame is written, in order.

    Returns: the files written, and the folder for the labels of a video.
    Raises, before anything is predicted or written: ConfigError for a kind that does not exist; DataError or
        VideoError when the source cannot be used; OutputError when results exist or cannot be written.
    Raises, with all that could be done on disk: PartialResultError when some images cannot be read or written
        (DataError or OutputError when none can), PartialVideoError when a video is cut or damaged.
    Raises, with what was predicted by then on disk and every file complete: whatever `predict`, a signal handler or
        writing raises; of several errors the one of the earliest image or frame.
    """
    if video not in FORMATS:
        raise ConfigError(f"cannot write videos as {video!r}; choose from {', '.join(FORMATS)}")
    kinds, job = _kinds(save), Job(classes, Path(output), overwrite, video)
    if isinstance(source, str):
        _refuse_own_folder(source, job.output)
        source = find_source(source, leave_out=job.output)
    if isinstance(source, FrameSource):
        return _predict_video(source, predict, kinds, job, progress or _silent)
    return _predict_images(source, predict, kinds, job, progress or _silent)


def _kinds(save: Sequence[str | Kind]) -> list[Kind]:
    chosen = list(dict.fromkeys(save.split(",") if isinstance(save, str) else save))
    wrong = [kind for kind in chosen if isinstance(kind, str) and kind not in KINDS]
    if wrong or not chosen:
        said = f"cannot save {', '.join(map(repr, wrong))}" if wrong else "nothing to save"
        raise ConfigError(f"{said}; choose from {', '.join(KINDS)}")
    return [KINDS[kind] if isinstance(kind, str) else kind for kind in chosen]


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


def _open_net(job: Job) -> None:
    """Where there is no net, nothing is written either."""
    _ = job.classes


# ---- images ----


def _predict_images(
    images: PictureSource, predict: Predict, kinds: Sequence[Kind], job: Job, progress: Progress
) -> list[Path]:
    sinks = [kind.of_images(job, images.names) for kind in kinds]
    targets = [target for sink in sinks for target in sink.targets]
    _refuse_conflicts(images.paths, targets, job.overwrite)
    _open_net(job)
    for folder in sorted({job.output, *(target.parent for target in targets)}):
        make_folder(folder)

    written: list[Path] = []
    failures: list[_Failure] = []

    def finish(shot: Shot | DataError) -> list[list[Path]] | _Failure:
        if isinstance(shot, DataError):
            return shot
        try:
            return [sink.write(shot) for sink in sinks]
        except OutputError as error:  # of this file; a full disk is a ResourceError
            return error

    try:
        with (
            read_ahead(images.pictures()) as read,
            work_behind(finish, _label(images.names, read, predict), threads=_PNG_THREADS, waiting=0) as finished,
        ):
            for done, outcome in enumerate(finished, 1):
                if isinstance(outcome, Segmv3Error):
                    failures.append(outcome)
                else:
                    written += _noted(sinks, outcome)
                progress(done, len(images.names))
    finally:
        written += _finished(sinks)
    if failures:
        raise _image_error(failures, len(images.names), job.output)
    return written


def _finished(sinks: Sequence[Sink]) -> list[Path]:
    """Let every kind write what it gathered. Returns: the files that only now are there."""
    return [path for sink in sinks for path in sink.finish()]


def _noted(sinks: Sequence[Sink], outcome: list[list[Path]]) -> list[Path]:
    for sink, made in zip(sinks, outcome, strict=True):
        sink.note(made)
    return [path for made in outcome for path in made]


def _label(
    names: Iterable[str], images: Iterable[UInt8Array | DataError], predict: Predict
) -> Iterator[Shot | DataError]:
    for name, image in zip(names, images, strict=True):
        yield image if isinstance(image, DataError) else Shot(name, image, predict(image))


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


def _predict_video(
    video: FrameSource, predict: Predict, kinds: Sequence[Kind], job: Job, progress: Progress
) -> list[Path]:
    sinks = [kind.of_video(job, video.name) for kind in kinds]
    targets = [target for sink in sinks for target in sink.targets]
    _refuse_conflicts(video.paths, targets, job.overwrite)
    with video.open() as frames, ExitStack() as files:
        _open_net(job)
        make_folder(job.output)
        for sink in sinks:
            sink.open(frames, files)

        def finish(shot: Shot) -> None:
            for sink in sinks:
                sink.note(sink.write(shot))

        def shots(read: Iterable[tuple[UInt8Array, Fraction]]) -> Iterator[Shot]:
            for number, (frame, time) in enumerate(read):
                yield Shot(f"{number:06d}", frame, predict(frame), time)

        announced = frames.announced_frames
        try:
            with _read(frames) as read, work_behind(finish, shots(read)) as finished:
                for done, _ in enumerate(finished, 1):
                    progress(done, announced)
        finally:
            _finished(sinks)
    return targets


def _read(frames: Any) -> AbstractContextManager[Iterator[tuple[UInt8Array, Fraction]]]:
    """Frames of a file ahead of the net; live ones when they are asked for, so that none waits and grows old."""
    return nullcontext(frames.timed()) if isinstance(frames, LiveReader) else read_ahead(frames.timed())
