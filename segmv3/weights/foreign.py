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
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from segmv3.errors import CheckpointError

_MAX_BYTES = 500_000_000  # the largest published file of these nets has 60 MB with its optimizer
_MAX_VALUES = 100_000  # beside the tensors; a full mmsegmentation state has some 5,000

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
    bytes: int


class _Refused(Exception):
    """The reason, as it follows the path in the user's line."""


def read_foreign(path: Path | str) -> Foreign:
    """Read a PyTorch, safetensors or Paddle weight file; nothing in it is executed.

    Raises: CheckpointError when the file is missing, damaged, of another kind, or asks to run anything.
    """
    path = Path(path)
    data = _read(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, for protocols it then reads or refuses
            weights, meta = _split(_content(data))
            _check_size(weights, len(data))
            tensors = {name: _tensor(weight) for name, weight in weights.items()}
    except _Refused as reason:
        raise CheckpointError(f"{path} {reason}") from None
    except Exception as error:  # damage makes pickle, zipfile, torch and safetensors raise a dozen kinds
        raise CheckpointError(
            f"{path} is cut short or damaged (after {len(data):,} bytes); get it again, or compare its SHA-256"
        ) from error
    return Foreign(tensors, meta, hashlib.sha256(data).hexdigest(), len(data))


def _read(path: Path) -> bytes:
    """The whole file at once, so that what is parsed is what was hashed."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_BYTES // 10**6} MB: no weight file read here is")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None


def _content(data: bytes) -> Any:
    """What the file was made from, with stand-ins for everything but tensors and plain values."""
    if data.startswith(b"PK\x03\x04"):
        return _torch_zip(data)
    if data[2:15] == b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.":  # torch.serialization.MAGIC_NUMBER, pickled
        return _torch_legacy(data)
    if data[:1] == b"\x80" and data[1:2] <= b"\x04":
        _check_sizes(io.BytesIO(data))
        return _Paddle(io.BytesIO(data)).load()
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _safetensors(data)
    raise _Refused(f"{_other_kind(data)}; a PyTorch, safetensors or Paddle .pdparams file is needed")


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

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and after NumPy 2
_INERT = (
    "argparse.Namespace",
    "builtins.bytes",  # protocol 2 writes b"" as a call of it
    "builtins.getattr",  # mmengine before 0.8 pickles HistoryBuffer.min as getattr(HistoryBuffer, "min")
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.{name}" for module in _NUMPY for name in ("_reconstruct", "scalar")),
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


class _Inert:
    """Takes the place of any object and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _torch_zip(data: bytes) -> Any:
    """The format of torch >= 1.6: tensors as uncompressed entries with a checksum, and `data.pkl`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(e.filename.endswith("/constants.pkl") or "/code/" in e.filename for e in entries):
            raise _Refused("is a TorchScript program, not weights; save the state_dict() of its model")
        program = [e for e in entries if e.filename.endswith("/data.pkl")]
        if len(program) != 1:
            raise _Refused("is a zip archive, but not one that torch.save wrote; unpack it first")
        if len({e.filename.casefold() for e in entries}) < len(
            entries
        ):  # torch's reader ignores case, Python's does not
            raise _Refused("holds entries whose names differ in case only, which no file of torch.save does")
        if sum(e.file_size for e in entries) > len(data):
            raise _Refused("unpacks to more bytes than it has, which no file of torch.save does; it was not opened")
        if damaged := archive.testzip():  # torch.load does not look at the checksums
            raise _Refused(f"is damaged ({damaged} fails its checksum); get it again")
        _check_symbols(io.BytesIO(archive.read(program[0])))
    return _torch_load(io.BytesIO(data))


def _torch_legacy(data: bytes) -> Any:
    """The format before torch 1.6: magic number, version, system, content and keys as pickles, then the tensors."""
    stream = io.BytesIO(data)
    for _ in range(5):
        _check_symbols(stream)
    stream.seek(0)
    content = _torch_load(stream)
    if stream.read(1):
        raise _Refused("is damaged (bytes are left after its last tensor); get it again")
    return content


def _torch_load(stream: io.BytesIO) -> Any:
    standins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(_Inert, name) for name in _INERT]
    with torch.serialization.safe_globals(standins):
        return torch.load(stream, map_location="cpu", weights_only=True)


def _check_symbols(stream: io.BytesIO) -> None:
    """Refuse a pickle that names anything but `_TORCH`, leaving the stream behind it.

    weights_only=True is what keeps code from running; it permits more than weights need (bytearray(10**9) is filled
    with zeros), and what it refuses it tells in three paragraphs.
    """
    texts: deque[str] = deque(maxlen=2)
    sizes = _Sizes()
    for opcode, argument, _ in pickletools.genops(stream):
        sizes.follow(opcode, argument)
        if opcode.name in ("GLOBAL", "INST"):
            texts.extend(str(argument).split(" ", 1))
        elif opcode.name != "STACK_GLOBAL":
            if isinstance(argument, str):
                texts.append(argument)
            continue
        symbol = _symbol(*texts)
        if symbol not in _TORCH:
            raise _asks_for(symbol)


class _Sizes:
    """Counts the values in the tuples of a pickle without building them.

    Sharing lets a hundred bytes describe a tuple of 2^45 leaves, and a tuple that becomes the key of a dictionary is
    hashed leaf by leaf.
    """

    def __init__(self) -> None:
        self.stack: list[int | None] = []  # sizes; None is a mark
        self.memo: dict[int, int] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do to the sizes what an opcode does to the stack."""
        name, top = opcode.name, (self.stack[-1] if self.stack else None) or 1
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = top
            return
        taken = 0
        if pickletools.markobject in opcode.stack_before:
            while self.stack and (size := self.stack.pop()) is not None:
                taken += size
        for kind in opcode.stack_before:
            if kind not in (pickletools.markobject, pickletools.stackslice) and self.stack:
                taken += self.stack.pop() or 0
        size = 1
        if "TUPLE" in name:
            size += taken
        elif name == "DUP":
            size = top
        elif "GET" in name:
            size = self.memo.get(argument, 1)
        if size > _MAX_VALUES:
            raise _Refused(f"nests tuples of more than {_MAX_VALUES:,} values in each other, which weights never do")
        self.stack += [None if kind is pickletools.markobject else size for kind in opcode.stack_after]


def _check_sizes(stream: io.BytesIO) -> None:
    sizes = _Sizes()
    for opcode, argument, _ in pickletools.genops(stream):
        sizes.follow(opcode, argument)


def _symbol(module: str = "", name: str = "") -> str:
    """The dotted name; protocol 2 writes the module as Python 2 calls it."""
    return f"builtins.{name}" if module == "__builtin__" else f"{module}.{name}"


def _asks_for(symbol: str) -> _Refused:
    name = ascii(symbol)[1:-1][:80]  # it may hold anything, terminal commands included
    return _Refused(f"asks to run {name} while loading; it was not opened (a saved state_dict() asks for nothing)")


# --- Paddle


class _Dtype(_Inert):
    """numpy.dtype: one of the plain number types, little-endian."""

    __slots__ = ("torch",)

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _DTYPES:
            raise _Refused(f"holds arrays of {str(code)[:20]!a}, not of numbers")
        self.torch = _DTYPES[code]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise _Refused("holds big-endian arrays, which are not supported")


_DTYPES = {
    "b1": torch.bool,
    "u1": torch.uint8,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}


class _Encoded(_Inert):
    """`_codecs.encode(text, "latin1")`, which is how protocol 2 writes bytes; encoded when the array is built."""

    __slots__ = ("text",)

    def __init__(self, text: str = "", encoding: str = "latin1") -> None:
        if type(text) is not str or encoding != "latin1":
            raise _Refused("holds bytes in an encoding that arrays never have")
        self.text = text


class _Array(_Inert):
    """numpy.ndarray: keeps shape and bytes, once they agree."""

    __slots__ = ("columns_first", "dtype", "raw", "shape")

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (0,), _Dtype("u1"), False, b""))

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, raw = state
        raw = raw.text if type(raw) is _Encoded else raw
        if type(dtype) is not _Dtype or type(raw) not in (bytes, str) or not all(type(n) is int for n in shape):
            raise _Refused("is damaged (an array is described by other things than shape, type and bytes)")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.torch.itemsize != len(raw):
            raise _Refused(f"is damaged (an array of shape {str(shape)[:60]} holds {len(raw):,} bytes); get it again")
        self.shape, self.dtype, self.columns_first, self.raw = tuple(shape), dtype.torch, bool(columns_first), raw

    def tensor(self) -> Tensor:
        if not self.raw:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = self.raw.encode("latin-1") if isinstance(self.raw, str) else self.raw
        flat = torch.frombuffer(bytearray(raw), dtype=self.dtype)
        if self.columns_first:
            return flat.reshape(self.shape[::-1]).permute(*range(len(self.shape))[::-1]).contiguous()
        return flat.reshape(self.shape)


class _Paddle(pickle._Unpickler):
    """Reads what `paddle.save` writes: a dict of arrays, or of (name, array) pairs.

    The unpickler in Python rather than the one in C: its memo is a dict, not an array as long as the file says.
    """

    stack: list[Any]
    _SYMBOLS: Mapping[str, Callable[..., Any]] = {
        **{f"{module}._reconstruct": _Array for module in _NUMPY},
        "numpy.ndarray": _Inert,
        "numpy.dtype": _Dtype,
        "_codecs.encode": _Encoded,
        "builtins.bytes": _Encoded,  # of b"", in protocol 2
        "builtins.tuple": tuple,
        "collections.OrderedDict": OrderedDict,
    }

    def find_class(self, module: str, name: str) -> Any:
        symbol = _symbol(module, name)
        if symbol not in self._SYMBOLS:
            raise _asks_for(symbol)
        return self._SYMBOLS[symbol]

    def load_build(self) -> None:
        """Refuse a state for anything but a stand-in: this opcode sets attributes."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Inert):
            raise _Refused("is damaged (it gives a state to a plain value)")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


# --- safetensors


def _safetensors(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {}) | load_safetensors(data)


# --- What was read


def _split(content: Any) -> tuple[dict[str, Tensor | _Array], dict[str, Any]]:
    """Weights by name, and what lay beside them as JSON types."""
    if not isinstance(content, Mapping):
        raise _Refused("holds no dictionary of tensors; save the state_dict() of the model")
    way, others = list[str](), list[str]()
    inner, beside = content, dict[Any, Any]()
    while held := [name for name in _CONTAINERS if _holds_weights(inner.get(name))]:
        way.append(held[0])
        others += [".".join([*way[:-1], name]) for name in held[1:]]
        beside |= {name: value for name, value in inner.items() if name != held[0]}
        inner = inner[held[0]]
    weights = dict(_weights(inner))
    if not weights:
        raise _Refused("holds no tensors under names; save the state_dict() of the model")
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
    return isinstance(value, Tensor | _Array)


def _weights(values: Any) -> Iterator[tuple[str, Tensor | _Array]]:
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # Paddle >= 2: (parameter name, array)
        if isinstance(name, str) and isinstance(value, Tensor | _Array):
            yield name, value


def _plain(value: Any, count: Iterator[int]) -> Any:
    """The same in JSON types, without what is none. Shared lists are repeated, hence the limit."""
    if next(count) > _MAX_VALUES:
        raise _Refused(f"holds more than {_MAX_VALUES:,} values beside its tensors; save the state_dict() alone")
    if isinstance(value, Mapping):
        return {str(k): _plain(v, count) for k, v in value.items() if isinstance(k, str | int) and _is_plain(v)}
    if isinstance(value, list | tuple):
        return [_plain(v, count) for v in value if _is_plain(v)]
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | Mapping | list | tuple)


def _check_size(weights: Mapping[str, Tensor | _Array], size: int) -> None:
    """A view may repeat a few bytes over any shape; a name may repeat a tensor, which honest files do at most once."""
    declared = sum(math.prod(w.shape) * w.dtype.itemsize for w in weights.values())
    if declared > 2 * size:
        raise _Refused(f"declares {declared / 1e6:,.1f} MB of tensors in {size / 1e6:,.1f} MB; it was not opened")


def _tensor(weight: Tensor | _Array) -> Tensor:
    """Contiguous, with memory of its own size."""
    if isinstance(weight, _Array):
        return weight.tensor()
    return weight.detach().clone(memory_format=torch.contiguous_format)
