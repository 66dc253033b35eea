"""Weight files of other projects, read without running what they contain.

PyTorch (both formats of `torch.save`), safetensors and Paddle's `.pdparams`, told apart by content. All but
safetensors are pickles, which are programs. Each symbol that they name must be on a short list, and most of that list
are stand-ins that do nothing. No tensor is built before its size was compared with the size of the file.
"""

import hashlib
import io
import itertools
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from segmv3.checkpoint import file_bytes
from segmv3.errors import CheckpointError
from segmv3.weights.pickles import MAX_VALUES, NUMPY, Array, Inert, Paddle, Refused, check

_MAX_BYTES = 500_000_000  # the largest published file of these nets has 60 MB with its optimizer

_CONTAINERS = (
    *("state_dict", "model", "model_state_dict", "net", "network", "params", "weights", "checkpoint"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "params_ema", "ema"),
)
"""Where training states keep the weights, at any depth; the first that holds tensors counts: plain before averaged."""

_DEEPEST = 8


@dataclass(frozen=True)
class Foreign:
    """What a weight file of another project holds."""

    tensors: dict[str, Tensor]
    """Tensors on the CPU, contiguous, under the names of the file."""
    meta: dict[str, Any]
    """What lay beside the tensors, as JSON types; "container" names the entry that the tensors were taken from."""
    sha256: str


def read_foreign(path: Path | str) -> Foreign:
    """Read a PyTorch, safetensors or Paddle weight file; nothing in it is executed.

    Raises: CheckpointError when the file is missing, damaged, of another kind, or asks to run anything.
    """
    path = Path(path)
    data = file_bytes(path, _MAX_BYTES, "read here")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, for protocols it then reads or refuses
            weights, meta = _split(_content(data))
            _check_size(weights, len(data))
            tensors = {name: _tensor(weight) for name, weight in weights.items()}
    except Refused as reason:
        raise CheckpointError(f"{path} {reason}") from None
    except Exception as error:  # damage makes pickle, zipfile, torch and safetensors raise a dozen kinds
        raise CheckpointError(
            f"{path} is cut short or damaged (after {len(data):,} bytes); get it again, or compare its SHA-256"
        ) from error
    return Foreign(tensors, meta, hashlib.sha256(data).hexdigest())


def _content(data: bytes) -> Any:
    """What the file was made from, with stand-ins for everything but tensors and plain values."""
    if data.startswith(b"PK\x03\x04"):
        return _torch_zip(data)
    if data[2:15] == b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.":  # torch.serialization.MAGIC_NUMBER, pickled
        return _torch_legacy(data)
    if data[:1] == b"\x80" and data[1:2] <= b"\x04":
        check(io.BytesIO(data))
        return Paddle(io.BytesIO(data)).load()
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _safetensors(data)
    raise Refused(f"{_other_kind(data)}; a PyTorch, safetensors or Paddle .pdparams file is needed")


def _other_kind(data: bytes) -> str:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it stands for (git lfs pull gets that)"
    if start.startswith(b"<"):
        return "is a web page, not a weight file"
    if start.startswith((b"{", b"[")):
        return "is JSON, not a weight file"
    if data[257:262] == b"ustar":
        return "is a tar archive: unpack it first, or save the weights again with a PyTorch newer than 0.1"
    if start[0] == 8 and b"\x12" in start[2:4]:  # protobuf: ir_version, producer_name
        return "is an ONNX model, which holds a graph and not named weights"
    return "is text, not a weight file" if start.isascii() and b"\0" not in start else "is of an unknown kind"


# --- PyTorch

_INERT = (
    "argparse.Namespace",
    "builtins.bytes",  # protocol 2 writes b"" as a call of it
    "builtins.getattr",  # mmengine before 0.8 pickles HistoryBuffer.min as getattr(HistoryBuffer, "min")
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.{name}" for module in NUMPY for name in ("_reconstruct", "scalar")),
)
"""What training states mention beside the weights. It is dropped."""
_STORAGES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_TORCH = {
    "_codecs.encode",
    "builtins.set",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{kind}Storage" for kind in _STORAGES),
    *_INERT,
}


def _torch_zip(data: bytes) -> Any:
    """The format of torch >= 1.6: tensors as uncompressed entries with a checksum, and `data.pkl`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(e.filename.endswith("/constants.pkl") or "/code/" in e.filename for e in entries):
            raise Refused("is a TorchScript program, not weights; save the state_dict() of its model")
        program = [e for e in entries if e.filename.endswith("/data.pkl")]
        if len(program) != 1:
            raise Refused("is a zip archive, but not one that torch.save wrote; unpack it first")
        # torch's reader ignores case, Python's does not
        if len({e.filename.casefold() for e in entries}) < len(entries):
            raise Refused("holds entries whose names differ in case only, which no file of torch.save does")
        if sum(e.file_size for e in entries) > len(data):
            raise Refused("unpacks to more bytes than it has, which no file of torch.save does; it was not opened")
        if damaged := archive.testzip():  # torch.load does not look at the checksums
            raise Refused(f"is damaged ({damaged} fails its checksum); get it again")
        check(io.BytesIO(archive.read(program[0])), _TORCH)
    return _torch_load(io.BytesIO(data))


def _torch_legacy(data: bytes) -> Any:
    """The format before torch 1.6: magic number, version, system, content and keys as pickles, then the tensors."""
    stream = io.BytesIO(data)
    for _ in range(5):
        check(stream, _TORCH)
    stream.seek(0)
    content = _torch_load(stream)
    if stream.read(1):
        raise Refused("is damaged (bytes are left after its last tensor); get it again")
    return content


def _torch_load(stream: io.BytesIO) -> Any:
    standins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Inert, name) for name in _INERT]
    with torch.serialization.safe_globals(standins):
        return torch.load(stream, map_location="cpu", weights_only=True)


# --- safetensors


def _safetensors(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {}) | load_safetensors(data)


# --- What was read


def _split(content: Any) -> tuple[dict[str, Tensor | Array], dict[str, Any]]:
    """Weights by name, and what lay beside them as JSON types."""
    if not isinstance(content, Mapping):
        raise Refused("holds no dictionary of tensors; save the state_dict() of the model")
    way, others = list[str](), list[str]()
    inner, beside = content, dict[Any, Any]()
    while held := [name for name in _CONTAINERS if _holds_weights(inner.get(name))]:
        way.append(held[0])
        others += [".".join([*way[:-1], name]) for name in held[1:]]
        beside |= {name: value for name, value in inner.items() if name != held[0]}
        inner = inner[held[0]]
    weights = dict(_weights(inner))
    if not weights:
        raise Refused("holds no tensors under names; save the state_dict() of the model")
    beside |= {name: value for name, value in inner.items() if name not in weights}
    meta = _plain(beside, itertools.count())
    # of what is left out, what is no plain note: an optimiser's state, other tensors
    left = [str(name) for name, value in beside.items() if name not in (*_CONTAINERS, "meta") and _has_tensors(value)]
    return weights, meta | {
        key: value
        for key, value in (("container", ".".join(way)), ("other_weights", others), ("beside", left))
        if value
    }


def _holds_weights(value: Any, depth: int = 0) -> bool:
    """Whether there are tensors under names, in it or in one of its own containers."""
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return False
    return any(_weights(value)) or any(_holds_weights(value.get(name), depth + 1) for name in _CONTAINERS)


def _has_tensors(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return any(_has_tensors(inner, depth + 1) for inner in itertools.islice(value.values(), 100))
    return isinstance(value, Tensor | Array)


def _weights(values: Any) -> Iterator[tuple[str, Tensor | Array]]:
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # Paddle >= 2: (parameter name, array)
        if isinstance(name, str) and isinstance(value, Tensor | Array):
            yield name, value


def _plain(value: Any, count: Iterator[int]) -> Any:
    """The same in JSON types, without what is none. Shared lists are repeated, hence the limit."""
    if next(count) > MAX_VALUES:
        raise Refused(f"holds more than {MAX_VALUES:,} values beside its tensors; save the state_dict() alone")
    if isinstance(value, Mapping):
        return {str(k): _plain(v, count) for k, v in value.items() if isinstance(k, str | int) and _is_plain(v)}
    if isinstance(value, list | tuple):
        return [_plain(v, count) for v in value if _is_plain(v)]
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | Mapping | list | tuple)


def _check_size(weights: Mapping[str, Tensor | Array], size: int) -> None:
    """A view may repeat a few bytes over any shape; a name may repeat a tensor, which honest files do at most once."""
    declared = sum(math.prod(w.shape) * w.dtype.itemsize for w in weights.values())
    if declared > 2 * size:
        raise Refused(f"declares {declared / 1e6:,.1f} MB of tensors in {size / 1e6:,.1f} MB; it was not opened")


def _tensor(weight: Tensor | Array) -> Tensor:
    """Contiguous, with memory of its own size."""
    if isinstance(weight, Array):
        return weight.tensor()
    return weight.detach().clone(memory_format=torch.contiguous_format)
