"""Reading JSON that another program, or someone with an editor, may have written.

`read_json` reads a file and `typed` checks a value. Both raise ValueError with a reason for people; the caller adds the
name of the file.
"""

import dataclasses
import json
import math
import os
import stat
import tomllib
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_LARGEST = 1_000_000_000
_DEEPEST = 32
_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true/false"}

Kind = TypeVar("Kind")


def read_json(path: Path, largest: int = _LARGEST) -> Any:
    """The content of a JSON file, nested at most 32 deep.

    Raises:
        ValueError: why it cannot be used, as `read_regular` or "is not JSON".
    """
    return from_json(read_regular(path, largest))


def read_regular(path: Path, largest: int = _LARGEST) -> bytes:
    """The bytes of a regular file; another kind, such as a FIFO, is not waited for.

    Raises:
        ValueError: why it cannot be used: "cannot be read (No such file or directory)".
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError("is no regular file")
            if facts.st_size > largest:
                raise ValueError(f"is larger than {largest / 1e6:,.0f} MB")
            return file.read()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None


def packaged(package: str, name: str) -> dict[str, Any]:
    """A table of our own, a TOML file in a package."""
    return tomllib.loads(files(package).joinpath(name).read_text(encoding="utf-8"))


def from_json(data: bytes | str) -> Any:
    """Parse JSON as `read_json` does, from bytes or text."""
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError:
        raise ValueError("is not JSON") from None
    level = [content]
    for _ in range(_DEEPEST):
        level = [
            each
            for outer in level
            if isinstance(outer, list | dict)
            for each in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(each, list | dict)
        ]
        if not level:
            return content
    raise ValueError("is nested too deeply")


def typed(value: Any, kind: type[Kind], where: str = "") -> Kind:
    """A JSON value as `kind` says it: a dataclass (further keys are left out), list[...], dict[str, ...],
    tuple[...], unions, Literal and plain types. Whole numbers must fit 64 bits, others must be finite.

    Args:
        where: what the value is called in messages.
    Raises:
        ValueError: "classes[3].name is a number, not text".
    """
    return _typed(value, kind, where)


def _typed(value: Any, kind: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _member(value, inner, where)
    if origin is Literal and any(value == each and type(value) is type(each) for each in inner):
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _record(value, kind, where)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(each, inner[1], f"{where}.{key}") for key, each in value.items()}
    if origin is list and isinstance(value, list):
        return [_typed(each, inner[0], f"{where}[{place}]") for place, each in enumerate(value)]
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(value) != len(kinds):
            raise ValueError(f"{where} has {len(value):,} values, not {len(kinds)}")
        return tuple(_typed(each, k, f"{where}[{i}]") for i, (each, k) in enumerate(zip(value, kinds, strict=True)))
    if kind is Any or (kind in (str, bool, dict, list, NoneType) and isinstance(value, kind)):
        return value
    if kind in (int, float) and (type(value) is int or (type(value) is float and kind is float)):
        if abs(value) < 2**63 or (type(value) is float and math.isfinite(value)):
            return value
        raise ValueError(f"{where} is {_shown(value)}, which is too large")
    raise ValueError(f"{where or 'its content'} is {_shown(value)}{_wanted(kind)}")


def _member(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """The value as the first of some kinds that it is."""
    problem = ValueError()
    for kind in sorted(kinds, key=lambda kind: kind is NoneType):
        try:
            return _typed(value, kind, where)
        except ValueError as error:
            problem = problem if problem.args else error
    raise problem


def _record(value: dict[str, Any], kind: Any, where: str) -> Any:
    kinds, found = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            found[field.name] = _typed(value[field.name], kinds[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**found)


def _shown(value: Any) -> str:
    """`a list`, `null`, or the number itself."""
    if value is None or type(value) in (bool, int, float):
        return json.dumps(value)[:24]
    return _NAMES.get(type(value), type(value).__name__)


def _wanted(kind: Any) -> str:
    """`, not text`; nothing for kinds that have no short name."""
    kind = get_origin(kind) or kind
    kind = dict if dataclasses.is_dataclass(kind) else list if kind is tuple else kind
    return f", not {_NAMES[kind]}" if kind in _NAMES else ""
