"""Nets converted for other runtimes on this machine, kept for the next start of the program."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from segmv3.checkpoint import Card, package_version, source_commit
from segmv3.convert import onnx, openvino
from segmv3.convert.metadata import describe
from segmv3.errors import OutputError
from segmv3.files import cache_folder, make_folder, write_bytes
from segmv3.models.segmenter import Segmenter
from segmv3.runtime.backends import BackendName, Size
from segmv3.runtime.machine import versions

_KEPT = 40
"""Conversions that stay, of 2 to 13 MB each."""


def converted(model: Segmenter, card: Card, backend: BackendName, size: Size | None, *, again: bool = False) -> Path:
    """The net as a file in the cache for ONNX Runtime or OpenVINO, low logits out.

    Args: size: the only (height, width) it will take; None for any. again: whatever the cache has, make a new one.
    Raises: OutputError or ResourceError when the cache cannot be written.
    """
    name = "net.xml" if backend == "openvino" else "net.onnx"
    made_by = "\n".join([package_version(), source_commit(), *(f"{k} {v}" for k, v in versions().items())])
    key = hashlib.sha256(f"{card.sha256}\n{name}\n{size}\n{made_by}".encode()).hexdigest()[:32]
    folder = cache_folder() / "converted" / key
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        _fill(folder, lambda part: _write(model, card, size, part / name))
    return folder / name


def _write(model: Segmenter, card: Card, size: Size | None, path: Path) -> None:
    metadata = describe(model, card, "low-logits", size, source="", precision="fp32")
    if path.suffix == ".xml":
        openvino.write(openvino.to_openvino(model, metadata), path)
    else:
        write_bytes(path, onnx.to_onnx(model, metadata))


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a folder that is complete or not there."""
    make_folder(folder.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
            part = Path(temporary) / "net"
            part.mkdir()
            write(part)
            part.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise OutputError(f"{folder} cannot be written ({error.strerror or error}); set SEGMV3_CACHE") from None
    _prune(folder.parent)


def _prune(cache: Path) -> None:
    """Forget the oldest conversions."""
    with suppress(OSError):  # another process may do the same
        folders = sorted((f for f in cache.iterdir() if not f.name.startswith(".")), key=lambda f: f.stat().st_mtime)
        for folder in folders[:-_KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
