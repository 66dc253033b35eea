"""`segmv3 config`: the configs that come with segmv3, and a copy of one to edit."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from segmv3.commands.options import parse, refuse_existing
from segmv3.config import config_names, find_config, load_config
from segmv3.files import write_bytes
from segmv3.training.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Copy:
    """List the configs that come with segmv3, or write one as a file of its own, to edit."""

    name: tyro.conf.Positional[str] = ""
    """Name of a config, such as lraspp_small_d8_camvid or recipes/camvid_best, or a config file. Without one, all are
    listed."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; without it the text is printed."""
    overwrite: bool = False
    """Replace the file."""


def run(arguments: list[str]) -> None:
    """Do it.

    Raises:
        ConfigError: there is no such config.
        OutputError: the file exists or cannot be written.
    """
    from segmv3.screen import print_line

    options = parse(Copy, "segmv3 config", arguments)
    if not options.name:
        for name in config_names():
            print_line(f"  {name:<34} {_purpose(find_config(name))}")
        return
    experiment: type[Any] = Experiment  # of either task
    text = standalone(load_config(options.name, kind=experiment), options.name)
    if options.output is None:
        print(text, end="")
        return
    refuse_existing(options.output, options.overwrite)
    write_bytes(options.output, text.encode())
    print_line(f"wrote {options.output}; segmv3 train {options.output} trains it")


def _purpose(path: Path) -> str:
    """The first line of a config's docstring."""
    first = path.read_text().lstrip('" \n').splitlines()[0]
    return first.removesuffix('"""')


def standalone(config: Experiment, name: str) -> str:
    """A config file with every setting that is not the default.

    Args:
        config: the experiment.
        name: for the docstring.
    """
    kinds: dict[str, set[str]] = {}
    body = _source(config, kinds)
    imports = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(kinds.items())]
    return f'"""{name}, to be edited."""\n\n' + "\n".join(imports) + f"\n\nconfig = {body}\n"


def _source(value: Any, kinds: dict[str, set[str]], indent: str = "") -> str:
    """A value as Python. Args: kinds: is told from which modules which names are needed."""
    if isinstance(value, Path):
        kinds.setdefault("pathlib", set()).add("Path")
        return f"Path({json.dumps(str(value))})"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not dataclasses.is_dataclass(value):
        return repr(value)
    kind = type(value)
    module = "segmv3.config" if kind.__module__.startswith("segmv3.") else kind.__module__
    kinds.setdefault(module, set()).add(kind.__name__)
    inner = f"{indent}    "
    lines = [
        f"{inner}{field.name}={_source(getattr(value, field.name), kinds, inner)},\n"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != _default(field)
    ]
    return f"{kind.__name__}(\n{''.join(lines)}{indent})" if lines else f"{kind.__name__}()"


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
