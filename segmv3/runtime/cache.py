"""Nets converted for other runtimes on this machine, kept for the next start of the program."""

import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from segmv3.convert.base import Target
from segmv3.convert.metadata import Metadata
from segmv3.errors import OutputError
from segmv3.files import cache_folder, make_folder
from segmv3.models.segmenter import Segmenter
from segmv3.runtime.machine import software

_KEPT = 40
"""Conversions that stay, of 2 to 13 MB each."""


def converted(model: Segmenter, metadata: Metadata, target: Target, *, again: bool = False) -> Path:
    """The net as a file in the cache.

    Args:
        model: the net.
        metadata: of the file.
        target: the kind of file.
        again: whatever the cache has, make a new one.

    Raises:
        OutputError, ResourceError: the cache cannot be written.
    """
    name = f"net{target.suffix}"
    facts = "\n".join([metadata.source_sha256, name, str(metadata.size), *software()])
    key = hashlib.sha256(facts.encode()).hexdigest()[:32]
    folder = cache_folder() / "converted" / key
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        return folder / name
    make_folder(folder.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
            part = Path(temporary) / "net"
            part.mkdir()
            target.write(model, metadata, part / name)
            part.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise OutputError(f"{folder} cannot be written ({error.strerror or error}); set SEGMV3_CACHE") from None
    _prune(folder.parent)
    return folder / name


def _prune(cache: Path) -> None:
    """Forget the oldest conversions."""
    with suppress(OSError):  # another process may do the same
        folders = sorted((f for f in cache.iterdir() if not f.name.startswith(".")), key=lambda f: f.stat().st_mtime)
        for folder in folders[:-_KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
