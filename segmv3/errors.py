"""What can go wrong, as exceptions that carry one line for the user and an exit code for the shell.

The line names the area, what is wrong, which file, and what to do; the command line prints it without a
traceback. Codes: 2 data or usage, 3 partial output, 4 environment or numerics, 130 / 143 interrupted with the
work saved.
"""

import errno
import re


class Segmv3Error(Exception):
    """Base of every error a user can cause or must act on."""

    exit_code = 2
    area = "segmv3"

    def __str__(self) -> str:
        return f"{self.area}: {super().__str__()}"


class ConfigError(Segmv3Error):
    """A setting, flag or config file that cannot be used."""

    area = "config"


class DataError(Segmv3Error):
    """A data set, image or label file that cannot be used."""

    area = "data"


class ModelError(Segmv3Error):
    """A net that does not exist, or an input it cannot take."""

    area = "model"


class CheckpointError(Segmv3Error):
    """A weight file or training state that cannot be used."""

    area = "checkpoint"


class OutputError(Segmv3Error):
    """A folder or file that cannot be written."""

    area = "output"


class PartialOutputError(OutputError):
    """One output could not be made; the others are there."""

    exit_code = 3


class VideoError(Segmv3Error):
    """A video that cannot be opened, read or written."""

    area = "video"


class PartialVideoError(VideoError):
    """A video of which only a part could be read; the part is written."""

    exit_code = 3


class ResourceError(Segmv3Error):
    """The machine lacks something: disk space, memory, a device, an optional package."""

    exit_code = 4
    area = "environment"


class OutOfMemoryError(ResourceError):
    """Memory of the machine or of a device ran out."""


class NumericsError(Segmv3Error):
    """A loss or weight that is not finite."""

    exit_code = 4
    area = "train"


class EvaluationError(NumericsError):
    """The counts of several processes do not make one evaluation."""

    area = "evaluate"


class OfficialError(NumericsError):
    """Our scores and those of the Cityscapes script differ."""

    area = "official"


class Interrupted(BaseException):
    """SIGINT or SIGTERM was obeyed: the work is saved.

    It is a `BaseException`, like KeyboardInterrupt, so that code that handles errors does not catch it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"interrupted: {super().__str__()}"


_NO_MEMORY = (
    r"out of memory|[Cc]an(no|')t allocate memory|MemoryError|bad_alloc|[Uu]nable to allocate|[Ii]nsufficient memory|"
    r"Failed to allocate|unable to (mmap|write to file </torch_|resize file </torch_)|_ALLOC_FAILED"
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, of the machine or of a device, ran out: every library and allocator has words of its own.

    A worker's error arrives with its traceback as the text.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    of_library = isinstance(error, RuntimeError) or type(error).__module__ in ("cv2", "safetensors_rust")
    return of_library and bool(re.search(_NO_MEMORY, str(error)))


def printable(text: object) -> str:
    """A text as one line that a terminal cannot obey: control and bidi characters, line breaks, invisible spaces and
    bytes that are no UTF-8 are shown as Python writes them (`\\x1b`)."""
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def shortened(text: object, length: int = 60) -> str:
    """A text for a message: the end of a long one is left out."""
    line = str(text)
    return line if len(line) <= length else f"{line[: length - 1]}…"


def one_line(error: BaseException, length: int = 160) -> str:
    """What a library says of an error, as a part of a line; the kind of the error where it says nothing."""
    return " ".join(str(error).split())[:length] or type(error).__name__


class Segmv3Warning(UserWarning):
    """Something a user should know that does not stop the work."""
