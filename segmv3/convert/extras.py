"""The packages of the extra `[export]` that report their use to their makers, imported so that they do not."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from segmv3.errors import ModelError

_REPORTER = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """OpenVINO.

    Raises: ModelError when it is not installed.
    """
    return _imported("openvino")


def import_nncf() -> ModuleType:
    """NNCF, OpenVINO's quantiser.

    Raises: ModelError when it is not installed.
    """
    return _imported("nncf")


def _imported(package: str) -> ModuleType:
    with _unreported():
        try:
            return import_module(package)
        except ImportError:
            raise ModelError(f'{package} is not installed; pip install "segmv3[export]"') from None


@contextmanager
def _unreported() -> Iterator[None]:
    """Both send every import and conversion to a server, unless the package that does so is missing."""
    present = sys.modules.pop(_REPORTER, None)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_REPORTER]
        if present:
            sys.modules[_REPORTER] = present
