"""The settings that a sweep may choose, as a TOML file says them, and configs with chosen ones.

A table names a field of the config by its path, as the flags do: `["optim.lr"]` with `low` and `high` (and `log` or
`step`), or with `choices`. The table `[sweep]` holds how to search.
"""

import dataclasses
import difflib
import itertools
import json
import math
import operator
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from segmv3.config import Config, has_type
from segmv3.errors import ConfigError
from segmv3.records import read_regular

_MOST_CORNERS = 4096
_LARGEST = 1_000_000


@dataclass(frozen=True)
class Choices:
    """A setting with a list of values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A setting with all numbers between two, both included; whole ones where both are."""

    low: float
    high: float
    log: bool = False
    """Evenly on a logarithmic scale."""
    step: float | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep may choose, and how it searches."""

    settings: Mapping[str, Choices | Range]
    """What to try, by field path with dots and underscores."""
    trials: int = 20
    """Runs altogether, pruned and failed ones included."""
    hours: float | None = None
    """No trial starts after so many hours of one command."""
    pruner: Literal["median", "none"] = "median"
    """Whether to stop trials whose best score so far is below the median of the others at the same step."""
    prune_after: int = 1
    """Evaluations that every trial gets before it may be stopped."""
    seed: int = 0
    """Same seed, same trials."""


def read_space(path: Path, config: Config) -> Space:
    """The space that a TOML file describes, for the fields of `config`.

    Args:
        path: the file.
        config: what every trial begins with.

    Returns:
        The space, checked.

    Raises:
        ConfigError: the file, a field or a value cannot be used, or a combination of extreme values is no valid config.
    """
    try:
        content = tomllib.loads(read_regular(path, _LARGEST).decode())
        search = _search(content.pop("sweep", {}), path)
        settings: dict[str, Choices | Range] = {}
        for name, table in _tables(content, path):
            if name in settings:
                raise ConfigError(f"{path} has two tables for {name}")
            settings[name] = _setting(f"{path}: {name}", table, _kind(config, name, path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} {error}") from None
    except (RecursionError, ArithmeticError):
        raise ConfigError(f"{path} is nested too deeply, or a number in it is too large") from None
    if not settings:
        raise ConfigError(f'{path} names no setting to search; add a table such as ["optim.lr"] with low and high')
    _check_corners(settings, config, path)
    return Space(settings=settings, **search)


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a dataclass with some fields, named by paths, replaced at once.

    Raises:
        ConfigError: the config's own rules refuse it.
    """
    inner: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        inner.setdefault(head, {})[rest] = value
    return replace(
        config,
        **{head: each[""] if "" in each else with_values(getattr(config, head), each) for head, each in inner.items()},
    )


def flags(config: Config, base: Config) -> list[str]:
    """The flags of `segmv3 train` that turn `base` into `config`."""
    found = []
    for (name, value), (_, before) in zip(_leaves(config), _leaves(base), strict=True):
        if value == before:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            found.append(f"--{head}{dot}{'' if value else 'no-'}{last}")
        else:
            found += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else (str(value),))]
    return found


def as_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON; paths as text."""
    return json.dumps(value, indent=indent, default=str)


# --- reading ---


def _tables(content: dict[str, Any], path: Path, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(field path, its table): `["optim.lr"]` and `[optim.lr]` mean the same."""
    for key, value in content.items():
        name = prefix + key.replace("-", "_")
        if not isinstance(value, dict):
            if prefix:
                raise ConfigError(f"{path}: [{prefix[:-1]}] has the unknown key {key!r}")
            raise ConfigError(
                f'{path}: {key} stands in no table; write ["{name}"] and below it low and high or choices'
            )
        if value and all(isinstance(each, dict) for each in value.values()):
            yield from _tables(value, path, f"{name}.")
        else:
            yield name, value


def _kind(config: Config, name: str, path: Path) -> Any:
    """The annotation of the field that a path names."""
    leaves = [known for known, _ in _leaves(config)]
    head, _, last = name.rpartition(".")
    if name in leaves:
        return get_type_hints(type(operator.attrgetter(head)(config) if head else config))[last]
    if example := next((known for known in leaves if known.startswith(f"{name}.")), ""):
        raise ConfigError(f"{path}: {name} is a group of fields; name one of them, such as '{example}'")
    near = difflib.get_close_matches(name, leaves, n=1, cutoff=0.5)
    near += [known for known in leaves if known.rpartition(".")[2] == last]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{path}: the config has no field {name!r}{hint}")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all fields that are no dataclasses."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, value


def _setting(where: str, table: dict[str, Any], kind: Any) -> Choices | Range:
    known = ("choices",) if "choices" in table else ("low", "high", "log", "step")
    for key in table:
        if key not in known:
            raise ConfigError(f"{where} has the key {key!r}; it takes low, high, log and step, or only choices")
    if "choices" not in table:
        for key in ("low", "high"):
            if key not in table:
                raise ConfigError(f"{where} needs {key!r}, or choices")
        return _range(where, table, kind)
    if not isinstance(table["choices"], list) or not table["choices"]:
        raise ConfigError(f"{where}: choices must be a list of values, at least one")
    values = [_typed(where, each, kind) for each in table["choices"]]
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ConfigError(f"{where}: choices has {_toml(value)} twice")
    return Choices(tuple(values))


def _typed(where: str, value: Any, kind: Any) -> Any:
    """A TOML value as the field has it: lists are tuples, "none" is None where the field can be."""
    options = _options(kind)
    if isinstance(value, list):
        value = tuple(value)
    if type(None) in options and isinstance(value, str) and value.lower() == "none":
        return None
    if Path in options and isinstance(value, str):
        return Path(value)
    if not has_type(value, kind):
        raise ConfigError(f"{where} cannot be {_toml(value)}; it takes {_named(kind)}")
    if float in options and int not in options and type(value) is int:
        return float(value)
    return value


def _range(where: str, table: dict[str, Any], kind: Any) -> Range:
    options = _options(kind)
    if float not in options and int not in options:
        raise ConfigError(f"{where} takes {_named(kind)}: give choices, not low and high")
    number = float if float in options else int
    log = table.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log is true or false, not {_toml(log)}")
    for key in ("low", "high", "step"):
        if key in table and not has_type(table[key], number):
            named = "a number" if number is float else "a whole number"
            raise ConfigError(f"{where}: {key} cannot be {_toml(table[key])}; it takes {named}")
    low, high, step = (number(table[key]) if key in table else None for key in ("low", "high", "step"))
    assert low is not None and high is not None
    if low >= high:
        raise ConfigError(f"{where}: low ({low:g}) must be below high ({high:g})")
    if log and low <= 0:
        raise ConfigError(f"{where}: log needs a low above 0, not {low:g}")
    if step is not None:
        if log:
            raise ConfigError(f"{where}: log and step exclude each other")
        if step <= 0:
            raise ConfigError(f"{where}: step is {step:g}; it must be above 0")
        if (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            raise ConfigError(f"{where}: from low ({low:g}) to high ({high:g}) is no whole number of steps of {step:g}")
    return Range(low, high, log, step)


def _search(table: Any, path: Path) -> dict[str, Any]:
    """The table [sweep], checked."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: sweep must be a table, [sweep]")
    kinds = {each.name: each.type for each in dataclasses.fields(Space) if each.name != "settings"}
    for name, value in table.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(kinds)}"
            raise ConfigError(f"{path}: [sweep] has the key {name!r}{hint}")
        _typed(f"{path}: [sweep] {name}", value, kinds[name])
    for name, least in (("trials", 1), ("prune_after", 1), ("seed", 0)):
        if table.get(name, least) < least:
            raise ConfigError(f"{path}: [sweep] {name} is {table[name]}; it must be at least {least}")
    if table.get("hours", 1) <= 0:
        raise ConfigError(f"{path}: [sweep] hours is {table['hours']:g}; it must be above 0")
    return table


def _check_corners(settings: Mapping[str, Choices | Range], config: Config, path: Path) -> None:
    """Every combination of extreme values must be a config; of very many, those that differ from the first in one."""
    values = [each.values if isinstance(each, Choices) else (each.low, each.high) for each in settings.values()]
    corners: Iterable[tuple[Any, ...]] = itertools.product(*values)
    if math.prod(map(len, values)) > _MOST_CORNERS:
        first = tuple(each[0] for each in values)
        corners = ((*first[:i], value, *first[i + 1 :]) for i, each in enumerate(values) for value in each)
    for corner in corners:
        chosen = dict(zip(settings, corner, strict=True))
        try:
            with_values(config, chosen)
        except ConfigError as error:
            text = ", ".join(f"{name} = {_toml(value)}" for name, value in chosen.items())
            raise ConfigError(f"{path}: {text} is no valid config: {error.args[0]}") from None


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _named(kind: Any) -> str:
    """An annotation for people."""
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
    if kind is type(None):
        return '"none"'
    if get_origin(kind) is Literal:
        return " or ".join(_toml(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        return f"a list of {count}{'whole ' if kinds[0] is int else ''}numbers"
    options = _options(kind)
    return " or ".join(map(_named, options)) if len(options) > 1 else names.get(kind, str(kind))


def _toml(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, str | Path):
        return f'"{value or "none"!s}"'
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, tuple | list) else str(value)[:60]
