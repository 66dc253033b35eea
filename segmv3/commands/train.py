"""`segmv3 train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmv3.commands.options import OnDevice, config_file, parse
from segmv3.config import Config, find_config

Settings = Annotated[Config, tyro.conf.arg(name="")]
"""A config whose fields are flags without a prefix: --optim.lr, not --config.optim.lr."""


@dataclass(frozen=True, kw_only=True)
class Train(OnDevice):
    """Train a net, or go on with a run where it stopped."""

    config: Settings
    run: Path
    """Folder of the run."""
    extend: bool = False
    """Allow more --schedule.steps than the run was started with; the rate goes on along the new schedule."""
    tensorboard: bool = False
    """Also write event files for TensorBoard into the folder (pip install "segmv3[log]")."""
    track: str = ""
    """What else follows the run, with commas between: tensorboard, trackio, or MODULE:CLASS from beside the config."""


def run(arguments: list[str]) -> None:
    path, config, rest = config_file("train", arguments)
    options = parse(Train, f"segmv3 train {path}", rest, {"config": config, "run": Path("runs") / path.stem})
    from segmv3.training.loop import train

    train(
        options.config,
        options.run,
        device=options.device,
        threads=options.threads,
        extend=options.extend,
        tensorboard=options.tensorboard,
        track=[name.strip() for name in options.track.split(",") if name.strip()],
        config_file=find_config(path),
    )
