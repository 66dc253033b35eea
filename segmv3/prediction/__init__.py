"""What `segmv3 predict` does: a net over images or a video, results as files.

Reading, prediction and writing overlap: the net runs in the caller's thread, the rest in others. Several frames of a
video may be labelled at a time.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from segmv3.errors import ConfigError, DataError, OutputError, Segmv3Error
from segmv3.files import expanded, make_folder
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.media.draw import STYLE, Style
from segmv3.media.encoding import FORMATS
from segmv3.media.live import LiveReader
from segmv3.pipeline import AT_ONCE, read_ahead, work_behind, work_together
from segmv3.prediction.contract import Found, Frames, Job, Kind, Objects, Shot, Sink
from segmv3.prediction.gathering import finish_all
from segmv3.prediction.listing import ImageSource
from segmv3.prediction.results import KINDS
from segmv3.prediction.sources import FrameSource, PictureSource, Source, find_source

Predict = Callable[[UInt8Array], Found | Objects]
"""uint8 H x W x 3, RGB -> labels, uint8 H x W, or boxes; arrays of their own. Called in order, from one thread but for
`at_once`."""

Progress = Callable[[int, int | None], None]
"""Called with (images or frames done, how many there are or None); a video's total is only announced."""

Item = TypeVar("Item")
Label = TypeVar("Label")
Result = TypeVar("Result")
_Failure = DataError | OutputError

_PNG_THREADS = 2  # compressing a PNG can take as long as labelling it
_PIXELS = 16_000_000  # of all frames that are labelled at a time


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
    style: Style = STYLE,
    only: Sequence[str] = (),
    polygons: bool = False,
    every: int = 1,
    at_once: int | Callable[[Frames], int] = 1,
    progress: Progress | None = None,
) -> list[Path]:
    """Predict every image of a source, or every frame of a video, and write the results.

    An image `a.jpg` gives `a_overlay.png`, `a_labels.png` (8-bit train ids) and so on; a video `d.mp4` gives
    `d_overlay.webm`, and the folder `d_labels`, one PNG of train ids per frame. Tables and annotations are one file for
    all images, or one for a video. docs/how-to/label-images-and-videos.md lists them all.
    Images from different folders keep their folders below `output`, which is itself not searched for images.

    Args:
        source: what `segmv3.prediction.sources.find_source` takes or gives, or an object of your own like the latter.
        predict: from an image, uint8 H x W x 3 RGB, to its labels, uint8 H x W, or to them and how sure it is of each
            pixel, the probability as uint8 0..255.
        classes: the net's classes, or how to get them once nothing is left to refuse.
        save: names of `KINDS`, or kinds of your own.
        overwrite: whether results of a former run may be replaced. Inputs never are.
        video: how videos are written: "webm" (VP9), "mp4" (H.264) or "av1" (in MP4).
        style: how pictures are drawn, and what is blurred in them.
        only: the classes that masks and annotations are made of, all by default.
        polygons: whether annotations are polygons instead of masks.
        every: of images or frames every so many are labelled, beginning with the first.
        at_once: how many frames of a video `predict` is given at a time, or a function that says it of the open video.
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
    if every < 1:
        raise ConfigError(f"--every is {every}; it must be at least 1")
    kinds = chosen_kinds(save)
    job = Job(classes, Path(output), overwrite, video, style, tuple(only), polygons, every)
    if isinstance(source, str):
        refuse_own_folder(source, job.output)
        source = find_source(source, leave_out=job.output)
    if isinstance(source, FrameSource):
        return _predict_video(source, predict, kinds, job, at_once, progress or _silent)
    if isinstance(source, ImageSource):
        source = replace(source, paths=source.paths[::every], names=source.names[::every])
    return _predict_images(source, predict, kinds, job, progress or _silent)


def chosen_kinds(save: Sequence[str | Kind]) -> list[Kind]:
    """Kinds by their names. Raises: ConfigError for one that does not exist."""
    chosen = list(dict.fromkeys(save.split(",") if isinstance(save, str) else save))
    wrong = [kind for kind in chosen if isinstance(kind, str) and kind not in KINDS]
    if wrong or not chosen:
        said = f"cannot save {', '.join(map(repr, wrong))}" if wrong else "nothing to save"
        raise ConfigError(f"{said}; choose from {', '.join(KINDS)}")
    return [KINDS[kind] if isinstance(kind, str) else kind for kind in chosen]


def _silent(done: int, total: int | None) -> None:
    pass


def refuse_own_folder(source: str, output: Path) -> None:
    """Raises: OutputError where results would go into the folder that is searched for images."""
    folder = expanded(source)
    if source.strip() and folder.is_dir() and os.path.realpath(folder) == os.path.realpath(output):
        raise OutputError(
            f"{output} is the folder the images are read from, and the next run would read the results as "
            "images; choose another --output"
        )


def _refuse_conflicts(inputs: Sequence[Path], sinks: Sequence[Sink], overwrite: bool) -> list[Path]:
    """Nothing of the user's is overwritten: inputs never, other files only when allowed. Returns: what is written."""
    targets = [target for sink in sinks for target in sink.targets]
    originals = {os.path.realpath(path) for path in inputs}  # unlike resolve, of links that go round, too
    for target in targets:
        if os.path.realpath(target) in originals:
            raise OutputError(f"{target} is one of the inputs; choose another --output")
    # a name too long for the file system is not there
    existing = [] if overwrite else [target for target in targets if os.path.exists(target)]  # noqa: PTH110
    if existing:
        exist = "exists" if len(existing) == 1 else f"and {len(existing) - 1:,} more exist"
        raise OutputError(f"{existing[0]} {exist}; choose another --output or add --overwrite")
    return targets


def _open_net(job: Job) -> None:
    """Where there is no net, or it does not know a class, nothing is written either."""
    _ = job.classes, job.chosen, job.hidden


@contextmanager
def _working(
    reading: AbstractContextManager[Iterator[Item]],
    label: Callable[[Iterator[Item]], AbstractContextManager[Iterator[Label]]],
    finish: Callable[[Label], Result],
    sinks: Sequence[Sink],
    written: list[Path],
    threads: int = 1,
    waiting: int = 2,
) -> Iterator[Iterator[tuple[int, Result]]]:
    """Read, label and finish pictures at the same time. However the block is left, what was finished is kept.

    Args:
        reading: opens the pictures.
        label: puts a net to work on them.
        finish: gives each to the sinks, in threads.
        sinks: what is to be written.
        written: gets the files that are there only at the end.
        threads: that finish pictures.
        waiting: pictures that may wait for a thread.

    Yields:
        The number of pictures done, and what `finish` made of the last one, for each in order.
    """
    try:
        with (
            reading as read,
            label(read) as shots,
            work_behind(finish, shots, threads=threads, waiting=waiting) as done,
        ):
            yield enumerate(done, 1)
    finally:
        written += finish_all(sinks)


# ---- images ----


def _predict_images(
    images: PictureSource, predict: Predict, kinds: Sequence[Kind], job: Job, progress: Progress
) -> list[Path]:
    sinks = [kind.of_images(job, images.names) for kind in kinds]
    targets = _refuse_conflicts(images.paths, sinks, job.overwrite)
    _open_net(job)
    for folder in sorted({job.output, *(target.parent for target in targets)}):
        make_folder(folder)

    written: list[Path] = []
    failures: list[_Failure] = []

    def finish(shot: Shot | DataError) -> list[Any] | DataError:
        return shot if isinstance(shot, DataError) else [_tried(sink, shot) for sink in sinks]

    def label(read: Iterator[UInt8Array | DataError]) -> AbstractContextManager[Iterator[Shot | DataError]]:
        return nullcontext(_label(images, predict, job, read))

    with _working(read_ahead(images.pictures()), label, finish, sinks, written, _PNG_THREADS, waiting=0) as finished:
        for done, outcome in finished:
            wrong = [outcome] if isinstance(outcome, DataError) else _noted(sinks, outcome, written)
            failures += wrong[:1]  # one of each image
            progress(done, len(images.names))
    if failures:
        raise _image_error(failures, len(images.names), job.output)
    return written


def _tried(sink: Sink, shot: Shot) -> Any:
    """What a sink made of a picture, or why it could not be written: the other kinds still can."""
    try:
        return sink.write(shot)
    except OutputError as error:  # of this file; a full disk is a ResourceError
        return error


def _noted(sinks: Sequence[Sink], outcome: Sequence[Any], written: list[Path]) -> list[OutputError]:
    """Add the files that were written for a picture to `written`. Returns: why others were not."""
    for sink, made in zip(sinks, outcome, strict=True):
        written += [] if isinstance(made, OutputError) else sink.note(made)
    return [made for made in outcome if isinstance(made, OutputError)]


def _label(
    images: PictureSource, predict: Predict, job: Job, read: Iterable[UInt8Array | DataError]
) -> Iterator[Shot | DataError]:
    files = images.paths or [Path(name) for name in images.names]  # one from elsewhere has no path
    for name, path, image in zip(images.names, files, read, strict=True):
        if isinstance(image, DataError):
            yield image
            continue
        file = name if name.endswith(path.suffix) else name + path.suffix
        try:
            yield job.shot(name, image, predict(image), file=file)
        except DataError as error:  # such as a crop outside of this one
            yield DataError(f"{path}: {error.args[0]}")


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


def frames_at_once(frames: Frames, threads: int) -> int:
    """How many frames of a video are best labelled at a time.

    With a thread each, no thread waits for another while frames are read and written besides. Live ones come one at a
    time, so that none grows old, and large ones few, for the memory.

    Args:
        frames: an open video.
        threads: CPU threads of all of them; each frame gets this number divided by the result.
    """
    height, width = frames.size
    most = 1 if isinstance(frames, LiveReader) else min(AT_ONCE, max(1, _PIXELS // (height * width)))
    return max(count for count in range(1, most + 1) if threads % count == 0)


def _predict_video(
    video: FrameSource,
    predict: Predict,
    kinds: Sequence[Kind],
    job: Job,
    at_once: int | Callable[[Frames], int],
    progress: Progress,
) -> list[Path]:
    sinks = [kind.of_video(job, video.name) for kind in kinds]
    targets = _refuse_conflicts(video.paths, sinks, job.overwrite)
    with video.open() as frames, ExitStack() as files:
        together = at_once(frames) if callable(at_once) else at_once
        _open_net(job)
        make_folder(job.output)
        for sink in sinks:
            sink.open(frames, files)

        def finish(shot: Shot) -> None:
            for sink in sinks:
                sink.note(sink.write(shot))

        file = video.paths[0].name if video.paths else video.name

        def shot(read: tuple[int, tuple[UInt8Array, Fraction]]) -> Shot:
            number, (frame, time) = read
            return job.shot(f"{number * job.every:06d}", frame, predict(frame), time=time, file=file)

        def label(read: Iterator[tuple[UInt8Array, Fraction]]) -> AbstractContextManager[Iterator[Shot]]:
            return work_together(shot, enumerate(read), threads=together)

        announced = frames.announced_frames and -(-frames.announced_frames // job.every)
        with _working(_read(frames, job.every), label, finish, sinks, []) as finished:
            for done, _ in finished:
                progress(done, announced)
    return targets


def _read(frames: Any, every: int) -> AbstractContextManager[Iterator[tuple[UInt8Array, Fraction]]]:
    """Frames of a file ahead of the net; live ones when they are asked for, so that none waits and grows old."""
    timed = islice(frames.timed(), 0, None, every)
    return nullcontext(timed) if isinstance(frames, LiveReader) else read_ahead(timed)
