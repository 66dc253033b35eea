"""Pickles of weight files: what they may name, how much they may hold, and those of Paddle.

A pickle is a program. Each symbol that it names must be on a short list, and most of that list are stand-ins that do
nothing.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Set
from typing import Any, ClassVar

import torch
from torch import Tensor

MAX_VALUES = 100_000
"""Of what may lie beside the tensors; a full mmsegmentation state has some 5,000."""
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Before and after NumPy 2."""


class Refused(Exception):
    """The reason, as it follows the path in the user's line."""


class Inert:
    """Takes the place of any object and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def check(stream: io.BytesIO, permitted: Set[str] | None = None) -> None:
    """Refuse a pickle that holds too many values or names what is not permitted, leaving the stream behind it.

    For PyTorch, weights_only=True is what keeps code from running; it permits more than weights need (bytearray(10**9)
    is filled with zeros), and what it refuses it tells in three paragraphs.

    Args:
        stream: at the beginning of the pickle.
        permitted: dotted names; None leaves them to the reader.

    Raises:
        Refused: saying why.
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
        if permitted is not None and symbol not in permitted:
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
        if size > MAX_VALUES:
            raise Refused(f"nests tuples of more than {MAX_VALUES:,} values in each other, which weights never do")
        self.stack += [None if kind is pickletools.markobject else size for kind in opcode.stack_after]


def _symbol(module: str = "", name: str = "") -> str:
    """The dotted name; protocol 2 writes the module as Python 2 calls it."""
    return f"builtins.{name}" if module == "__builtin__" else f"{module}.{name}"


def _asks_for(symbol: str) -> Refused:
    name = ascii(symbol)[1:-1][:80]  # it may hold anything, terminal commands included
    return Refused(f"asks to run {name} while loading; it was not opened (a saved state_dict() asks for nothing)")


class _Dtype(Inert):
    """numpy.dtype: one of the plain number types, little-endian."""

    __slots__ = ("torch",)

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _DTYPES:
            raise Refused(f"holds arrays of {str(code)[:20]!a}, not of numbers")
        self.torch = _DTYPES[code]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise Refused("holds big-endian arrays, which are not supported")


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


class _Encoded(Inert):
    """`_codecs.encode(text, "latin1")`, which is how protocol 2 writes bytes; encoded when the array is built."""

    __slots__ = ("text",)

    def __init__(self, text: str = "", encoding: str = "latin1") -> None:
        if type(text) is not str or encoding != "latin1":
            raise Refused("holds bytes in an encoding that arrays never have")
        self.text = text


class Array(Inert):
    """numpy.ndarray: keeps shape and bytes, once they agree."""

    __slots__ = ("columns_first", "dtype", "raw", "shape")

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (0,), _Dtype("u1"), False, b""))

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, raw = state
        raw = raw.text if type(raw) is _Encoded else raw
        if type(dtype) is not _Dtype or type(raw) not in (bytes, str) or not all(type(n) is int for n in shape):
            raise Refused("is damaged (an array is described by other things than shape, type and bytes)")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.torch.itemsize != len(raw):
            raise Refused(f"is damaged (an array of shape {str(shape)[:60]} holds {len(raw):,} bytes); get it again")
        self.shape, self.dtype, self.columns_first, self.raw = tuple(shape), dtype.torch, bool(columns_first), raw

    def tensor(self) -> Tensor:
        if not self.raw:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = self.raw.encode("latin-1") if isinstance(self.raw, str) else self.raw
        flat = torch.frombuffer(bytearray(raw), dtype=self.dtype)
        if self.columns_first:
            return flat.reshape(self.shape[::-1]).permute(*range(len(self.shape))[::-1]).contiguous()
        return flat.reshape(self.shape)


class Paddle(pickle._Unpickler):
    """Reads what `paddle.save` writes: a dict of arrays, or of (name, array) pairs.

    The unpickler in Python rather than the one in C: its memo is a dict, not an array as long as the file says.
    """

    stack: list[Any]
    _SYMBOLS: Mapping[str, Callable[..., Any]] = {
        **{f"{module}._reconstruct": Array for module in NUMPY},
        "numpy.ndarray": Inert,
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
        if not isinstance(self.stack[-1], Inert):
            raise Refused("is damaged (it gives a state to a plain value)")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}
