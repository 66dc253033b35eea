"""`segmv3 sweep`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import OnDevice, config_file, parse
from segmv3.commands.train import Settings
from segmv3.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sweep(OnDevice):
    """Search settings with many runs, or go on with a sweep where it stopped."""

    space: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SPACE.toml")]
    """TOML file that names the settings and their values; see docs/sweeps.md."""
    config: Settings
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the sweep."""
    trials: int | None = None
    """Runs altogether; by default what the file says, or 20."""
    hours: float | None = None
    """No run starts after so many hours; the running one ends."""


def run(arguments: list[str]) -> None:
    path, config, rest = config_file("sweep", arguments)
    options = parse(Sweep, f"segmv3 sweep {path}", rest, {"config": config})
    from segmv3.sweep.space import read_space

    if options.trials is not None and options.trials < 1:
        raise ConfigError(f"--trials is {options.trials}; it must be at least 1")
    if options.hours is not None and not options.hours > 0:
        raise ConfigError(f"--hours is {options.hours:g}; it must be above 0")
    space = read_space(options.space, options.config)
    space = replace(space, trials=options.trials or space.trials, hours=options.hours or space.hours)
    from segmv3.report.sweep import PAGE, best_table
    from segmv3.screen import Screen
    from segmv3.sweep.search import sweep

    result = sweep(
        options.config,
        space,
        options.output,
        file=path,
        base=config,
        device=options.device,
        threads=options.threads,
    )
    console = Screen()
    best = result["best"]
    if best:
        console.print(best_table(result))
        lines = [f"best: trial {best['trial']}, weights {best['weights']}", best["command"]]
    else:
        lines = ["no trial was scored"]
    for line in (*lines, f"wrote {options.output / PAGE}"):
        console.say(line)
