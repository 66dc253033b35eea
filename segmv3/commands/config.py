"""`segmv3 config`: the configs that come with segmv3, and a copy of one to edit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from segmv3.commands.options import parse, refuse_existing
from segmv3.config import config_names, find_config, load_config, standalone
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
    config = load_config(options.name, kind=experiment)
    text = standalone(config, options.name)
    if options.output is None:
        print(text, end="")
        return
    refuse_existing(options.output, options.overwrite)
    write_bytes(options.output, text.encode())
    print_line(f"wrote {options.output}; {config.command} {options.output} trains it")


def _purpose(path: Path) -> str:
    """The first line of a config's docstring."""
    first = path.read_text().lstrip('" \n').splitlines()[0]
    return first.removesuffix('"""')
