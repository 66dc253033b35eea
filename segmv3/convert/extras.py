"""OpenVINO and NNCF, imported so that they do not disturb the process.

OpenVINO and NNCF report their use to their makers. OpenVINO's CPU plugin also moves the stack that signals arrive on:
each Core gives the thread that first compiles by it a new one and unmaps it when the Core ends, even while the thread
still uses it (when two Cores end in the order in which they began, or one ends on another thread). The next signal with
a Python handler, such as Ctrl-C, then ends the process with a segmentation fault.
"""

import errno
import logging
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import rich

from segmv3.errors import ModelError, ResourceError

if TYPE_CHECKING:
    import openvino

_REPORTER = "openvino_telemetry"
_LEAST_ROOM = 1_000_000
"""When fewer bytes are free and a C++ library fails to write, the disk counts as full: it gives no reason."""
_one_core: list["openvino.Core"] = []
_one_core_lock = threading.Lock()


def import_openvino() -> ModuleType:
    """OpenVINO.

    Raises: ModelError when it is not installed.
    """
    return _imported("openvino")


def openvino_core() -> "openvino.Core":
    """The one Core of this process, which never ends.

    Raises: ModelError when OpenVINO is not installed.
    """
    with _one_core_lock:
        if not _one_core:
            _one_core.append(import_openvino().Core())
        return _one_core[0]


def import_nncf() -> ModuleType:
    """NNCF, OpenVINO's quantiser.

    Raises: ModelError when it is not installed.
    """
    return _imported("nncf")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, for packages that write to paths only.

    Raises: ResourceError when there is no room for it.
    """
    place = tempfile.gettempdir()
    try:
        with tempfile.TemporaryDirectory(prefix="segmv3-", ignore_cleanup_errors=True) as folder:
            try:
                yield Path(folder)
            except RuntimeError:
                if shutil.disk_usage(folder).free >= _LEAST_ROOM:
                    raise
                raise OSError(errno.ENOSPC, "No space left on device") from None
    except OSError as error:
        raise ResourceError(
            f"{place} cannot hold temporary files ({error.strerror or error}); free space there, or set TMPDIR"
        ) from None


@contextmanager
def silence() -> Iterator[None]:
    """No warnings, log lines or progress bars of a conversion: all are about its own workings."""
    console, disabled = rich.get_console(), logging.root.manager.disable
    quiet, console.quiet = console.quiet, True
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console.quiet = quiet
        logging.disable(disabled)


def _imported(package: str) -> ModuleType:
    """Both packages report every import and conversion to a server. Without their reporter they report nothing."""
    present = sys.modules.pop(_REPORTER, None)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        return import_module(package)
    except ImportError:
        raise ModelError(f'{package} is not installed; pip install "segmv3[export]"') from None
    finally:
        del sys.modules[_REPORTER]
        if present:
            sys.modules[_REPORTER] = present
