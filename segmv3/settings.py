"""What all settings have in common: types that are checked, rules, and a form for JSON."""

import dataclasses
import inspect
import math
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from segmv3.errors import ConfigError

Rule = tuple[bool, str, str]
"""(whether it holds, setting, what is wrong where it does not): values that types alone cannot refuse."""


def refuse(*rules: Rule) -> None:
    """Raises:
    ConfigError: names the first rule that does not hold.
    """
    for holds, name, wrong in rules:
        if not holds:
            raise ConfigError(f"{name}: {wrong}")


def has_type(value: Any, kind: Any) -> bool:
    """Whether a value is what the annotation of its field says."""
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return any(has_type(value, choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return isinstance(value, tuple) and all(has_type(each, kinds[0]) for each in value)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(has_type, value, kinds))
    if type(value) is int and kind in (int, float):
        return abs(value) < 2**63
    if kind is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is kind if kind in (int, bool) else isinstance(value, kind)


def mistyped(settings: Any) -> list[tuple[str, Any]]:
    """(field, its annotation) of the fields of a dataclass whose values are of another kind, nested ones included."""
    hints = get_type_hints(type(settings))
    found = []
    for name in (field.name for field in dataclasses.fields(settings)):
        value = getattr(settings, name)
        if not has_type(value, hints[name]):
            found.append((name, hints[name]))
        elif dataclasses.is_dataclass(value) and not _asks_for_methods(hints[name]):
            found += [(f"{name}.{inner}", kind) for inner, kind in mistyped(value)]
    return found


def _asks_for_methods(kind: Any) -> bool:
    """Whether a field takes any object with the right methods, whose own fields are then its own affair."""
    return any(getattr(each, "_is_protocol", False) for each in (kind, *get_args(kind)))


def written_at(kind: type[Any]) -> str:
    """Where a class is written, " (FILE, line N)"; empty for one of the config file itself, or a built-in one."""
    try:
        return f" ({inspect.getsourcefile(kind)}, line {inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError):
        return ""


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON types (tuples as lists, paths as text), each with its "kind"."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"kind": type(value).__name__} | fields
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if isinstance(value, Path):
            return str(value)
        plainly = value is None or isinstance(value, str | int | float | list | dict)
        return value if plainly else {"kind": type(value).__name__}

    return plain(settings)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names: `optim.lr`; the kind of a part stands under the part's own name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[(prefix + name).removesuffix(".kind")] = value
    return found
