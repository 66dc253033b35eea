"""Writing files so that they are complete or not there, and never half; finding all that lie in a folder."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from segmv3.errors import DataError, OutputError, ResourceError

if sys.platform != "win32":
    import fcntl


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file crash-safely: beside it, flushed to the disk, then renamed over it.

    Until this returns the old file is untouched; afterwards the new one survives a power cut.

    Args: durable: False leaves the flushing to the system, for pictures that can be made again.
    Raises: ResourceError when the disk is full, OutputError for any other reason, both naming the path.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)  # noqa: PTH105 (one place to break in the crash tests)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _why(error, path, len(data)) from None


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file.

    Raises: ResourceError when the disk is full, OutputError for any other reason, both naming the path.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _why(error, path, len(line)) from None


def _why(error: OSError, path: Path, size: int) -> OutputError | ResourceError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"{path} cannot be written ({error.strerror or error})")
    free = shutil.disk_usage(path.parent).free
    return ResourceError(
        f"the disk is full: {path} needs {size / 1e6:,.1f} MB, {path.parent} has {free / 1e6:,.1f} MB free"
    )


def _flush_folder(folder: Path) -> None:
    """Make a rename itself durable; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(path: Path) -> Path:
    """Create an output folder (and its parents) and prove that it can be written to.

    Raises: OutputError naming the path.
    """
    probe = path / ".segmv3-write-test"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another folder") from None
    return path


@contextlib.contextmanager
def alone(lock: Path, in_use: Callable[[], None]) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when it ends, however it ends.

    A POSIX lock, which data workers do not inherit: one that outlives a killed run by seconds would keep it from being
    resumed. There is none on Windows, nor on network file systems that know no locks.

    Args: in_use: called when another process is there; what it raises ends the wait.
    Raises: OutputError when the file cannot be written.
    """
    try:
        file = lock.open("ab")
    except OSError as error:
        raise OutputError(f"{lock} cannot be written ({error.strerror or error})") from None
    with file:
        if sys.platform != "win32":
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # POSIX allows both
                in_use()
                fcntl.lockf(file, fcntl.LOCK_EX)
            except OSError:
                pass
        yield


def expanded(path: str) -> Path:
    """`~` as a shell has it: of a user that does not exist it is a name like any other."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises)


def cache_folder() -> Path:
    """`$SEGMV3_CACHE`, or the folder segmv3 in the user's cache; not created here."""
    if own := os.environ.get("SEGMV3_CACHE"):
        return expanded(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segmv3"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "segmv3"


Found = Literal["file", "link to nowhere", "no file"]
"""What lies under a name; "no file" is a pipe, a socket or a device."""


def files_below(folder: Path | str) -> Iterator[tuple[str, Found]]:
    """Everything but folders below a folder, hidden or not: each path, beginning with `folder`, and what it is.

    Linked folders are followed, after those that lie in the folder itself. Each real folder is entered once, and none
    that holds the link to it: links cannot go round.

    Raises: DataError for a folder that cannot be listed.
    """
    entered: set[str] = set()
    own, linked = [os.fspath(folder)], list[str]()
    while own or linked:
        is_link = not own
        place = linked.pop(0) if is_link else own.pop()
        real = os.path.realpath(place)
        if real in entered or (is_link and Path(real) in _above(place)):
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{place} cannot be listed ({error.strerror or error})") from None
        for entry in entries:
            kind = _kind(entry)
            if kind != "folder":
                yield entry.path, kind
            elif entry.is_symlink():
                linked.append(entry.path)
            else:
                own.append(entry.path)


def _above(place: str) -> Iterator[Path]:
    """The real folders that hold a path, by the names on it and by where these lead."""
    for parent in Path(os.path.abspath(place)).parents:  # noqa: PTH100 (links are kept)
        real = parent.resolve()
        yield from (real, *real.parents)


def _kind(entry: "os.DirEntry[str]") -> Found | Literal["folder"]:
    with contextlib.suppress(OSError):  # a link that leads to itself
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    return "link to nowhere" if entry.is_symlink() else "no file"
