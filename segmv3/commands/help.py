"""Help texts of the commands, made from the dataclasses whose fields are their flags."""

import ast
import inspect
import re
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from segmv3.config import DataSource

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
COMMON: dict[str, str] = _TABLES["common"]
"""What `--help` shows of commands that have more flags than fit on a screen, in this order."""

_ASKING = ("-h", "--help", "--help-all")
_WIDTH = 100


@dataclass(frozen=True)
class Flag:
    """One flag, or one argument without a name.

    Attributes:
        name: `optim.lr`, or `SOURCE` where the argument is positional.
        option: as it is typed: `--optim.lr`, `-o, --output`, `SOURCE`.
        value: kind of its value: `FLOAT`, `{fp32,bf16}`; empty for switches.
        default: as it is typed; empty where there is none.
        text: what its field's docstring says, on one line.
        group: settings that it belongs to: `optim`; empty for the command's own.
        required: the command does not run without it.
    """

    name: str
    option: str
    value: str
    default: str
    text: str
    group: str
    required: bool = False

    @property
    def usage(self) -> str:
        return f"{self.option} {self.value}".rstrip()

    @property
    def example(self) -> str:
        """As it is typed, by its shortest name."""
        return f"{self.option.split(', ')[0]} {self.value}".rstrip()


def first_sentence(text: str) -> str:
    """A text up to its first full stop, on one line."""
    return re.split(r"(?<=[.])\s", " ".join(text.split()), maxsplit=1)[0]


def asked_for_help(arguments: list[str]) -> str | None:
    """The argument that asks for help, if one does."""
    return next((argument for argument in arguments if argument in _ASKING), None)


def show_help(kind: type, program: str, arguments: list[str], default: Any = None) -> None:
    """Print help and end the program, if the arguments ask for it.

    Args:
        kind: dataclass of the command's flags.
        program: what the user types in front of the flags.
        default: instance with the values that a flag has when it is not given.
    """
    if word := asked_for_help(arguments):
        print(render(kind, program, default, whole=word == "--help-all"))
        sys.exit(0)


def render(kind: type, program: str, default: Any = None, *, whole: bool = False, width: int | None = None) -> str:
    """The help text of a command.

    Args:
        kind: dataclass of the command's flags.
        program: what the user types in front of the flags.
        default: instance with the values that a flag has when it is not given.
        whole: show every flag with its whole text. False: those of `COMMON`, with a sentence each.
        width: columns; by default those of the terminal, at most 100.
    """
    width = width or min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    own = {name.replace("_", "-") for name in vars(kind).get("__annotations__", {})}
    every = sorted(flags(kind, default), key=lambda flag: (flag.option.startswith("-"), flag.name not in own))
    common = next(
        (names.split() for command, names in COMMON.items() if program.startswith(f"segmv3 {command} ")), None
    )
    places = [flag.example for flag in every if flag.required or not flag.option.startswith("-")]
    about = "\n\n".join(textwrap.fill(part, width) for part in inspect.cleandoc(kind.__doc__ or "").split("\n\n"))
    lines = [f"usage: {' '.join([program, *places])} [--FLAG VALUE ...]", "", about, ""]
    if common and not whole:
        shown = sorted((flag for flag in every if flag.name in common), key=lambda flag: common.index(flag.name))
        lines += _table([(flag, first_sentence(flag.text)) for flag in shown], width)
        return "\n".join([*lines, "", f"--help-all shows all {len(every)} flags and their reasons."])
    for group in dict.fromkeys(flag.group for flag in every):
        lines += [f"{group}:"] if group else []
        lines += [*_table([(flag, flag.text) for flag in every if flag.group == group], width), ""]
    if on := next((flag.option for flag in every if flag.default == "on"), None):
        off = re.sub(r"([.]|^--)([^.]+)$", r"\1no-\2", on)
        lines.append(f"A switch that is on is turned off by no-: {off}.")
    if whole:
        lines.append("The value None clears a setting that may be empty.")
    return "\n".join(lines).rstrip()


def _table(rows: list[tuple[Flag, str]], width: int) -> list[str]:
    """Two columns: how the flag is typed, what it does. A flag too wide for the first has a line of its own."""
    left = min(max(len(flag.usage) for flag, _ in rows) + 4, 36)
    lines = []
    for flag, text in rows:
        default = f" [{flag.default}]" if flag.default else ""
        body = textwrap.wrap(f"{text}{default}", width - left) or [""]
        head = f"  {flag.usage}"
        first = [f"{head:<{left}}{body.pop(0)}"] if len(head) < left - 1 else [head]
        lines += [*first, *(f"{'':<{left}}{line}" for line in body)]
    return [line.rstrip() for line in lines]


def flags(kind: type, default: Any = None, prefix: str = "") -> Iterator[Flag]:
    """Every flag of a dataclass, those of its nested dataclasses last.

    Args:
        kind: a dataclass.
        default: an instance of it, whose values are the defaults. None: those of the fields.
        prefix: of the flags' names, such as `optim.`.
    """
    texts, hints = field_texts(kind), get_type_hints(kind, include_extras=True)
    nested = []
    for field in fields(kind):
        hint, marks = _unwrapped(hints[field.name])
        value = getattr(default, field.name) if default is not None else field.default
        if value is MISSING and field.default_factory is not MISSING:
            value = field.default_factory()
        named = next((mark for mark in marks if hasattr(mark, "aliases")), None)
        name = prefix + (field.name if named is None or named.name is None else named.name).replace("_", "-")
        nests = is_dataclass(value) and not isinstance(value, DataSource)
        inner = type(value) if nests else hint
        if is_dataclass(inner):
            nested.append((inner, value if nests else None, f"{name}." if named is None or named.name else prefix))
            continue
        required = value is MISSING or "MISSING" in repr(value)
        value = None if required else value
        metavar, text = getattr(named, "metavar", None) or metavar_of(hint), texts.get(field.name, "")
        if any(type(mark).__name__ == "_PositionalMarker" or repr(mark) == "Positional" for mark in marks):
            place = getattr(named, "metavar", None) or name.upper().replace("-", "_")
            place += " ..." if metavar.endswith("...") else ""
            yield Flag(place, place, "", _typed(value), text, "", required)
            continue
        option = ", ".join([*(getattr(named, "aliases", None) or ()), f"--{name}"])
        if hint is bool:
            yield Flag(name, option, "", "on" if value else "", text, prefix[:-1], required)
        else:
            yield Flag(name, option, metavar, _typed(value), text, prefix[:-1], required)
    for inner, value, start in nested:
        yield from flags(inner, value, start)


def metavar_of(hint: Any) -> str:
    """How the value of a flag is typed: `FLOAT FLOAT`, `{cpu,cuda}`."""
    hint, _ = _unwrapped(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin in (Union, UnionType):
        return "|".join(metavar_of(each) for each in inner if each not in (type(None), DataSource))
    if origin is tuple:
        return f"{metavar_of(inner[0])} ..." if inner[-1] is Ellipsis else " ".join(map(metavar_of, inner))
    return {Path: "PATH", str: "TEXT", bool: "{True,False}"}.get(hint) or hint.__name__.upper()


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations, and those."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _typed(value: Any) -> str:
    """A value as it is typed on the command line; empty for none."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_texts(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and its bases, each on one line."""
    texts = {field.name: _TABLES["usual"][field.name] for field in fields(kind) if field.name in _TABLES["usual"]}
    for base in reversed(kind.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # built in, or from a file that is no module
            continue
        for node, after in pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[ast.unparse(node.target)] = " ".join(str(after.value.value).split())
    return texts
