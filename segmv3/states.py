"""Training states: written crash-safely, checked when read, never executed.

A training state is `step_00012000.pt` (plain types only) and, written after it, `step_00012000.json` with its SHA-256:
a state without a manifest that verifies does not exist.
"""

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segmv3.errors import CheckpointError, NumericsError, one_line
from segmv3.files import make_folder, write_bytes, write_json
from segmv3.records import read_json, read_regular

_STATES_KEPT = 2


def refuse_non_finite(content: Any, name: str = "") -> None:
    """Look at every tensor in nested mappings and lists: weights, BN statistics, moments of an optimiser.

    Raises:
        NumericsError: names the first tensor with a NaN or infinity.
    """
    if isinstance(content, Tensor):
        if content.is_floating_point() and not bool(torch.isfinite(content).all()):
            raise NumericsError(f"{name} is not finite, nothing was saved; try --precision fp32 or a lower --optim.lr")
    elif isinstance(content, Mapping | list | tuple):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            refuse_non_finite(value, f"{name}.{key}" if name else str(key))


def save_state(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write a training state: file, then manifest, then forget all but the newest two.

    Earlier states are untouched when it raises.

    Args:
        state: plain types and tensors only, so that it loads with weights_only=True.

    Raises:
        NumericsError: a number is not finite.
        OutputError: a file cannot be written.
        ResourceError: the disk is full.
    """
    refuse_non_finite(state["model"])  # by the names of the net
    refuse_non_finite({key: value for key, value in state.items() if key != "model"})
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    make_folder(folder)
    write_bytes(_state_path(folder, step), data)
    manifest = {"step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(_state_path(folder, step).with_suffix(".json"), manifest)
    for old in saved_steps(folder)[_STATES_KEPT:]:
        # manifest first: a state without one does not exist, a manifest without a state would be a complaint
        _state_path(folder, old).with_suffix(".json").unlink(missing_ok=True)
        _state_path(folder, old).unlink(missing_ok=True)


def load_state(folder: Path, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The newest training state from which a run can go on, or None when there is none.

    Raises: CheckpointError when there are states but none is good.
    """
    broken = ""
    for step in saved_steps(folder):
        path = _state_path(folder, step)
        try:
            state = _read_state(path, step)
        except ValueError as fault:
            broken = broken or f"{path.name} {fault}"
            continue
        if broken:
            say(f"checkpoint: {broken}; resuming from {path.name}")
        return state
    if broken:
        raise CheckpointError(
            f"no training state in {folder} can be gone on from ({broken}); start again with another --run"
        )
    return None


def _read_state(path: Path, step: int) -> dict[str, Any]:
    """Raises: ValueError with what is wrong, behind the name of the file."""
    data, said = read_regular(path), ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = read_json(path.with_suffix(".json"))["sha256"]
    if hashlib.sha256(data).hexdigest() != said:
        raise ValueError("fails its checksum")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a file may be anything
        raise ValueError(f"is no training state ({one_line(error)})") from None
    kinds = {"step": int, "seconds": float, "evaluations": list, "origin": dict, "model": dict, "optimizer": dict}
    if not (isinstance(state, dict) and all(isinstance(state.get(key), kind) for key, kind in kinds.items())):
        raise ValueError("is no training state")
    if state["step"] != step or not all(isinstance(each, dict) and "step" in each for each in state["evaluations"]):
        raise ValueError("is the state of another step")
    try:
        refuse_non_finite(state)
    except NumericsError as error:
        raise ValueError(f"holds a value that is not finite ({error.args[0].partition(' ')[0]})") from None
    return state


def _state_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path) -> list[int]:
    """Steps of the training states in a folder, newest first; a state counts once its manifest is written."""
    names = (re.fullmatch(r"step_(\d+)\.json", path.name) for path in folder.glob("step_*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)
