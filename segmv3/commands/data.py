"""`segmv3 data`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from segmv3.commands.options import parse
from segmv3.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MiniCity:
    """Draw synthetic street scenes in Cityscapes layout, to train and test without Cityscapes."""

    root: tyro.conf.Positional[Path]
    """Folder to create."""
    train: int = 48
    """Training images."""
    val: int = 12
    """Validation images."""
    size: tuple[int, int] = (256, 512)
    """Image height and width."""
    seed: int = 0
    """Same seed, same pixels."""


def run(arguments: list[str]) -> None:
    if arguments[:1] and arguments[0] in ("-h", "--help"):
        arguments = ["mini-city", "--help"]  # the only one so far
    if arguments[:1] != ["mini-city"]:
        raise ConfigError(f"there is no data command {' '.join(arguments[:1])!r}; there is segmv3 data mini-city DIR")
    options = parse(MiniCity, "segmv3 data mini-city", arguments[1:])
    from rich.console import Console
    from rich.progress import Progress

    from segmv3.data.mini_city import write_mini_city

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("mini-city", total=options.train + options.val)
        write_mini_city(
            options.root,
            train=options.train,
            val=options.val,
            size=options.size,
            seed=options.seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(
        f"{options.root}: {options.train} train and {options.val} val scenes of "
        f"{options.size[0]}x{options.size[1]}, seed {options.seed}",
        highlight=False,
        soft_wrap=True,
    )
