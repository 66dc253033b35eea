"""The export targets of segmv3 by name, and the one that a file belongs to. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from segmv3.errors import ModelError

if TYPE_CHECKING:
    from segmv3.convert.base import Target

_CLASSES = {
    "onnx": "segmv3.convert.onnx.Onnx",
    "openvino": "segmv3.convert.openvino.OpenVino",
    "onnx-int8": "segmv3.convert.int8.OnnxInt8",
    "openvino-int8": "segmv3.convert.int8.OpenVinoInt8",
    "torch-export": "segmv3.convert.torch_export.TorchExport",
}

NAMES = tuple(_CLASSES)


def find_target(target: str | Target) -> Target:
    """A target by its name, or a target itself, checked.

    Raises:
        ModelError: there is none of this name, or it lacks something.
    """
    if not isinstance(target, str):
        from segmv3.convert.base import check_target

        return check_target(target)
    if target not in _CLASSES:
        raise ModelError(f"there is no export target {target!r}; choose from {', '.join(NAMES)}")
    module, _, name = _CLASSES[target].rpartition(".")
    found: Target = getattr(import_module(module), name)()
    return found


def target_of(path: Path, own: Sequence[Target] = ()) -> Target | None:
    """The target that wrote a file, by its suffix. None for a file of no target.

    Args:
        path: the file; it is not opened.
        own: the user's targets, which are asked first.

    Raises:
        ModelError: one of the user's targets lacks something, or two have one suffix.
    """
    suffix = path.suffix.lower()
    mine = [each for each in map(find_target, own) if each.suffix.lower() == suffix]
    if len(mine) > 1:
        raise ModelError(f"{type(mine[0]).__name__} and {type(mine[1]).__name__} both write {suffix}; name one of them")
    if mine:
        return mine[0]
    return next((each for each in map(find_target, NAMES) if each.suffix == suffix), None)
