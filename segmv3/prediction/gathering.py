"""One file for all pictures of a run, and several kinds of files as one.

A gathered file grows picture by picture beside its place, so that memory does not grow with a video, and takes its name
at the end, also when a signal or an error ends the run: it is always complete for the pictures that it holds.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from heapq import heappop, heappush
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, ClassVar

from segmv3.errors import DataError, OutputError, ResourceError
from segmv3.files import new_file_beside, write_bytes, write_error
from segmv3.labels import Classes, read_classes
from segmv3.prediction.contract import Frames, Job, Kind, Shot, Sink, VideoSink

_WAITING = 8  # more than there are threads that write

Piece = tuple[str, str]
"""What a picture adds to a gathered file, and to what stands at its end."""


class Gathered(Kind):
    """A file for all images, or `NAME_` and it for a video."""

    file: ClassVar[str]
    companions: ClassVar[tuple[str, ...]] = ()
    """Suffixes of files of the same name that `pack` writes beside it."""
    between: ClassVar[str] = ""
    """What stands between pictures, in the file and in its end."""

    @abstractmethod
    def begin(self, job: Job) -> str:
        """The start of the file."""

    @abstractmethod
    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        """What a picture adds; called from several threads.

        Args:
            shot: the picture.
            index: its number among the images, or of the frame, from 0.
            job: what the run shares.
        """

    def end(self, tails: str) -> str:
        """The end of the file, which holds the second parts of all pieces."""
        return ""

    def pack(self, written: Path, target: Path, job: Job) -> None:
        """Give the finished file its name; a kind may put it into an archive first."""
        os.replace(written, target)  # noqa: PTH105 (replaces on Windows too)

    def of_images(self, job: Job, names: Sequence[str]) -> Sink:
        places = {name: index for index, name in enumerate(names)}
        return _Gathering(self, job, job.output / self.file, places.__getitem__)

    def of_video(self, job: Job, name: str) -> VideoSink:
        return _Gathering(self, job, job.output / f"{name}_{self.file}", int)


class _Gathering(VideoSink):
    """Writes a gathered file, in the order of the pictures.

    A few pieces wait for those that other threads are still at. So the order is kept, and what is done is in the file
    when a signal ends the run.
    """

    def __init__(self, kind: Gathered, job: Job, target: Path, number: Callable[[str], int]) -> None:
        """`number` gives the number of a picture from its name."""
        self._kind, self._job, self._target, self._number = kind, job, target, number
        self.targets = [target, *(target.with_suffix(suffix) for suffix in kind.companions)]
        self._lock = Lock()
        self._waiting: list[tuple[int, Piece]] = []
        self._tails: list[str] = []
        self._file: BinaryIO | None = None
        self._part: Path | None = None
        self._failure: OutputError | ResourceError | None = None

    def write(self, shot: Shot) -> None:
        index = self._number(shot.name)
        piece = self._kind.piece(shot, index, self._job)
        with self._lock:
            heappush(self._waiting, (index, piece))
            if len(self._waiting) > _WAITING:
                self._put(heappop(self._waiting)[1])

    def finish(self) -> list[Path]:
        while self._waiting:
            self._put(heappop(self._waiting)[1])
        if self._file is None or self._part is None:
            return []
        with self._failing_for_good():
            with self._file as file:
                file.write(self._kind.end(self._kind.between.join(self._tails)).encode(errors="surrogateescape"))
            self._kind.pack(self._part, self._target, self._job)
        return [*self.targets]

    def _put(self, piece: Piece) -> None:
        text, tail = piece
        with self._failing_for_good():
            if self._file is None:
                descriptor, self._part = new_file_beside(self._target)
                self._file = os.fdopen(descriptor, "wb")
                text = self._kind.begin(self._job) + text
            else:
                text = self._kind.between + text
            self._file.write(text.encode(errors="surrogateescape"))
            self._tails += [tail] if tail else []

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """What could not be written once is not tried again, and leaves nothing half."""
        if self._failure:
            raise self._failure
        try:
            yield
        except OSError as error:
            size = self._part.stat().st_size if self._part and self._part.exists() else 0
            self._failure = write_error(error, self._target, size)
            with suppress(OSError):
                if self._file:
                    self._file.close()
            with suppress(OSError):
                if self._part:
                    self._part.unlink(missing_ok=True)
            raise self._failure from None


class Several(VideoSink):
    """Files of several kinds that are asked for by one name."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self.targets = [target for sink in sinks for target in sink.targets]

    def open(self, frames: Frames, files: ExitStack) -> None:
        for sink in self._sinks:
            if isinstance(sink, VideoSink):
                sink.open(frames, files)

    def write(self, shot: Shot) -> list[Any]:
        return [sink.write(shot) for sink in self._sinks]

    def note(self, written: list[Any]) -> list[Path]:
        return [path for sink, one in zip(self._sinks, written, strict=True) for path in sink.note(one)]

    def finish(self) -> list[Path]:
        return finish_all(self._sinks)


def finish_all(sinks: Sequence[Sink]) -> list[Path]:
    """Let every sink write what it gathered, also after one of them failed.

    Returns:
        The files that only now are there.

    Raises:
        OutputError: the first that could not be written.
        ResourceError: the disk is full.
    """
    written: list[Path] = []
    failed: OutputError | ResourceError | None = None
    for sink in sinks:
        try:
            written += sink.finish()
        except (OutputError, ResourceError) as error:
            failed = failed or error
    if failed:
        raise failed
    return written


class ClassesFile(VideoSink):
    """`classes.json` beside labels: what their ids mean."""

    def __init__(self, job: Job) -> None:
        """Raises: OutputError where the folder already names other classes."""
        self._path = job.output / "classes.json"
        self._job = job
        self._missing = job.overwrite or not os.path.lexists(self._path)
        self._begun = False
        if self._missing:
            return
        try:
            same = read_classes(job.output)[0].names == job.classes.names
        except DataError:
            same = False
        if not same:
            raise OutputError(f"{self._path} has other classes; choose another --output or add --overwrite")

    def write(self, shot: Shot) -> None:
        self._begun = True

    def finish(self) -> list[Path]:
        if self._begun and self._missing:
            write_bytes(self._path, classes_json(self._job.classes).encode())
        return []  # it belongs to its labels


def classes_json(classes: Classes) -> str:
    """The text of a `classes.json`, as a data set of folders has it."""
    named = zip(classes.names, classes.colors, strict=True)
    lines = [json.dumps({"id": i, "name": name, "rgb": rgb}, ensure_ascii=False) for i, (name, rgb) in enumerate(named)]
    return '{"classes": [\n  ' + ",\n  ".join(lines) + "\n]}\n"
