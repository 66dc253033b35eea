"""What the commands share in reading their flags."""

import io
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo, UnsupportedTypeAnnotationError

from segmv3.commands.help import Flag, asked_for_help, flags, metavar_of, show_help
from segmv3.config import (
    Config,
    Data,
    Device,
    Experiment,
    Model,
    Schedule,
    flag_rules,
    load_config,
    load_parts,
    mistyped,
)
from segmv3.errors import ConfigError, OutputError

Options = TypeVar("Options")
Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
"""A result that need not be written."""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A command that runs a net."""

    device: Device = "auto"
    """Where to run; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""


@dataclass(frozen=True, kw_only=True)
class Trusting:
    """A command that opens exported files."""

    trust: bool = False
    """Open an exported file that can do harm: a .pt2, which can run code, or one without its receipt."""


@dataclass(frozen=True, kw_only=True)
class OwnParts:
    """A command that opens weights without the config that they were trained with."""

    parts: Path | None = None
    """Python file that defines the net's head or backbone, where it is not segmv3's own. It is run."""

    def import_parts(self) -> None:
        """Run the file of `--parts`. Raises: ConfigError where that fails."""
        if self.parts:
            load_parts(self.parts)


def parse(
    options: type[Options], program: str, arguments: list[str], defaults: dict[str, Any] | None = None
) -> Options:
    """Read the flags of a command.

    The program ends with the help text where the arguments ask for it.

    Args:
        options: dataclass of the command's flags.
        program: what the user types in front of them.
        arguments: flags and their values.
        defaults: values of fields that have none in the dataclass.

    Raises:
        ConfigError: a flag or value is missing, unknown or of another kind, or a number is not finite or too large.
    """
    filled: dict[str, Any] = {}
    if defaults:
        required = {f.name: tyro.MISSING for f in fields(options) if f.default is MISSING}  # type: ignore[arg-type]
        filled = {"default": options(**required | defaults)}
    show_help(options, program, arguments, filled.get("default"))
    marks, box = (tyro.conf.AvoidSubcommands,), io.StringIO()
    try:
        with redirect_stderr(box):
            chosen = tyro.cli(options, prog=program, args=arguments, config=marks, registry=_registry(), **filled)
    except SystemExit as ended:
        if not ended.code:
            raise
        needed = [flag for flag in flags(options, filled.get("default")) if flag.required]
        raise ConfigError(f"{_reason(box.getvalue(), program, needed)}; {program} --help shows the flags") from None
    for name, _ in mistyped(chosen):  # numbers alone can be: tyro knows no bounds
        raise ConfigError(f"--{name.removeprefix('config.').replace('_', '-')} is not finite, or too large a number")
    return chosen


def _reason(box: str, program: str, needed: list[Flag]) -> str:
    """What tyro says in its box, on one line.

    Args:
        box: text in a frame; lines part it into the reason, flags with like names, and where help is.
        program: what the user types in front of the flags.
        needed: what the command does not run without.
    """
    plain = "\n".join(line[2:].rstrip(" │") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:])
    reason, *more = (part for part in re.split(r"^[─-]{4,}[╯]?$", plain, flags=re.MULTILINE) if part.strip())
    named = re.findall(r"^ {4}(\S.*)", reason, re.MULTILINE)  # their texts stand further to the right
    if not reason.lstrip().startswith("Missing from"):
        reason = " ".join(reason.strip().partition("\n\n")[0].split()).removesuffix(".")
        near = re.findall(r"^ {4}(-.*)", more[0], re.MULTILINE)
        hint = "did you mean" if more[0].lstrip().startswith("Perhaps") else "write"
        return f"{reason[:1].lower()}{reason[1:]}" + (f", {hint} {' or '.join(near[:3])}" if near else "")
    places = [flag for flag in needed if not flag.option.startswith("-")]
    missing = places[len(places) - sum(not name.startswith("-") for name in named) :]
    missing += [flag for flag in needed if any(f"--{flag.name}" in name.split() for name in named)]
    names = ", ".join(flag.option.split(", ")[-1] for flag in missing)
    whole = " ".join([program, *(flag.example for flag in needed)])
    return f"{names} {'is' if len(missing) == 1 else 'are'} missing; write {whole}"


def _registry() -> ConstructorRegistry:
    """How tyro's messages name the value of a flag that may be left out: `FLOAT`, not `{None}|FLOAT`."""
    registry = flag_rules()
    inside = False  # the rule of tyro that this one asks for would ask this one again

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> Any:
        nonlocal inside
        if inside or type(None) not in get_args(info.type):
            return None
        inside = True
        try:
            spec = ConstructorRegistry.get_primitive_spec(info)
        finally:
            inside = False
        if isinstance(spec, UnsupportedTypeAnnotationError):
            return spec
        return replace(spec, metavar=metavar_of(info.type))

    return registry


def run_one_of(
    command: str, commands: Mapping[str, Callable[[list[str]], None]], usage: str, arguments: list[str]
) -> None:
    """Run one of the commands below a command, such as `segmv3 data check`.

    Args:
        command: the one above them.
        commands: what each does with the arguments after its name.
        usage: all of them, for people.
        arguments: those after the command.

    Raises:
        ConfigError: there is no such command.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("-h", "--help"):
        print(f"usage: segmv3 {command} {usage}")
    elif name in commands:
        commands[name](rest)
    else:
        found = f"no {command} command {name!r}" if name else f"nothing to do for {command} alone"
        raise ConfigError(f"there is {found}; there is segmv3 {command} {usage}")


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raises: OutputError when a result would replace something that the user did not give up."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder; name a file in it")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; choose another --output or add --overwrite")


def refuse_limit(limit: int | None) -> None:
    """Raises: ConfigError for a limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")


def refuse_itself(output: Path, source: Path | str, what: str) -> None:
    """Raises: OutputError when a result would replace what it is made of: `what`, for people."""
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise OutputError(f"{output} is {what}; choose another --output")


def spread(count: int, limit: int | None) -> list[int]:
    """Places in so many things, evenly spaced where there is a limit, so that no class is left out."""
    some = min(limit or count, count)
    return [place * count // some for place in range(some)]


def given(options: Any, *names: str) -> dict[str, Any]:
    """Some flags of a command, as arguments of the function that does it."""
    return {name: getattr(options, name) for name in names}


def settings_among(options: Any, kind: type[Options]) -> Options:
    """The settings of one kind that a command has among its flags."""
    return kind(**given(options, *(field.name for field in fields(kind))))  # type: ignore[arg-type]


_STREETS = Config(
    model=Model(),
    data=Data(dataset="cityscapes", root=Path("data/cityscapes")),
    schedule=Schedule(steps=320_000),
)


def config_file(
    command: str, arguments: list[str], plain: Experiment = _STREETS, example: str = "configs/lraspp_small_d8.py"
) -> tuple[Path, Any, list[str]]:
    """The config file of a command, what is in it, and the flags after it.

    Args:
        command: what the user types before the file.
        arguments: those of the command.
        plain: an experiment of the right kind, which is taken when only help is asked for.
        example: a config, for who forgot it.

    Raises:
        ConfigError: there is no file, or it holds no experiment of this kind.
    """
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments[0])
        return path, load_config(path, kind=type(plain)), arguments[1:]
    if word := asked_for_help(arguments):
        return Path("CONFIG"), plain, [word]
    raise ConfigError(f"segmv3 {command} needs a config file first, such as {example}")
