"""Writing files so that they are complete or not there, and never half; finding all that lie in a folder."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from segmv3.errors import DataError, OutputError, ResourceError, Segmv3Error

if sys.platform != "win32":
    import fcntl

_TEMPORARY = ".segmv3-"


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file crash-safely: beside it, flushed to the disk, then renamed over it.

    Until this returns the old file is untouched; afterwards the new one survives a power cut.

    Args:
        durable: False leaves the flushing to the system, for pictures that can be made again.

    Raises:
        ResourceError: the disk is full; the path is named.
        OutputError: the file cannot be written for any other reason; the path is named.
    """
    part: Path | None = None
    try:
        descriptor, part = new_file_beside(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)  # noqa: PTH105 (one place to break in the crash tests)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        if part:
            part.unlink(missing_ok=True)
        raise write_error(error, path, len(data)) from None


def new_file_beside(path: Path) -> tuple[int, Path]:
    """Create a file in the folder of `path`, under a name that nobody can have taken or planted a link at.

    Returns:
        A descriptor to write to, and the path of the file.

    Raises:
        OSError: the file cannot be created.
    """
    part = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.part")
    return no_link(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), part


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a write was ended in the middle of, of this version or an earlier one."""
    return path.name.startswith((_TEMPORARY, ".config.json.part", ".segmv3-write-test"))


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of their writes. Younger files than an hour may be some other's at work."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if is_temporary(path) and not path.is_dir() and path.lstat().st_mtime < time.time() - 3600:
                path.unlink(missing_ok=True)


def no_link(path: Path | str, flags: int) -> int:
    """As `os.open`, and as `open(..., opener=no_link)`: for files to write. A link fails, and so does a pipe."""
    safe = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))
    return os.open(path, flags | safe, 0o666)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file.

    Raises: ResourceError when the disk is full, OutputError for any other reason, both naming the path.
    """
    try:
        with open(path, "ab", opener=no_link) as file:
            file.write(data)
    except OSError as error:
        raise write_error(error, path, len(data)) from None


def append_line(path: Path, line: str) -> None:
    """Append a line of text, as `append` does."""
    append(path, f"{line}\n".encode())


def write_error(error: OSError, path: Path, size: int) -> OutputError | ResourceError:
    """What to raise where `size` bytes could not be written to `path`."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"{path} cannot be written ({_reason(error)})")
    free = shutil.disk_usage(path.parent).free
    return ResourceError(
        f"the disk is full: {path} needs {size / 1e6:,.1f} MB, {path.parent} has {free / 1e6:,.1f} MB free"
    )


def _reason(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENXIO):  # what no_link refuses
        return "a link or a pipe is in its place: remove it"
    return error.strerror or str(error)


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
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor, probe = new_file_beside(path / "probe")
        os.close(descriptor)
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another folder") from None
    return path


@contextlib.contextmanager
def alone(lock: Path, in_use: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when it ends, however it ends.

    A POSIX lock, which data workers do not inherit: one that outlives a killed run by seconds would keep it from being
    resumed. There is none on Windows, nor on network file systems that know no locks.

    Args:
        in_use: the line for when another process is there.
        say: is told that line, and then this waits. Without `say` the line is raised.

    Raises:
        OutputError: the file cannot be written, or another process is there.
    """
    try:
        file = open(lock, "ab", opener=no_link)  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"{lock} cannot be written ({_reason(error)})") from None
    with file:
        if sys.platform != "win32":
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # POSIX allows both
                if not say:
                    raise OutputError(in_use) from None
                say(in_use)
                fcntl.lockf(file, fcntl.LOCK_EX)
            except OSError:
                pass
        yield


def sha256(path: Path, error_of: type[Segmv3Error] = DataError) -> str:
    """Of the bytes of a file, in hexadecimal. Raises: `error_of` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise error_of(f"{path} cannot be read ({error.strerror or error})") from None


def text_sha256(text: str) -> str:
    """Of a text, in hexadecimal. File names in it need not be UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def write_json(path: Path, content: object, *, indent: int | None = None) -> None:
    """Write JSON crash-safely, as `write_bytes` does."""
    write_bytes(path, json.dumps(content, indent=indent).encode())


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
    return "no file" if os.path.exists(entry.path) else "link to nowhere"  # noqa: PTH110 (a million of these)
