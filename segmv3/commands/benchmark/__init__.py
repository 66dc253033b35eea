"""`segmv3 benchmark`: one module for each of its commands.

The commands that race other projects are not in the wheel. They live in the folder `benchmarks/` of a clone.
"""

import sys
from importlib import import_module
from pathlib import Path

from segmv3.errors import ConfigError

_COMMANDS = {
    "latency": "from an image file to the picture of its labels, stage by stage",
    "peers": "from an image to its labels, beside other projects, in the same run",
    "throughput": "images per second: batches, a folder, a video",
    "video": "a video with reading, drawing and encoding, beside the net alone and Ultralytics' predict",
    "decode": "from low-resolution logits to labels, beside torch",
    "paper": "the MobileNetV3 paper's claims about speed",
    "loader": "training samples per second: from files, from a cache, by mmsegmentation's steps",
    "training": "whole training steps, beside the plain loops of other projects",
    "table": "the mmsegmentation table with our numbers beside it",
    "metrics": "how long scoring takes, beside other projects",
}

_INSTALLED = ("latency", "throughput")
"""These are in the wheel. The others need a clone."""

_CLONE = Path(__file__).parents[3]


def run(arguments: list[str]) -> None:
    """Do `segmv3 benchmark COMMAND`.

    Args:
        arguments: those after `benchmark`.

    Raises:
        ConfigError: there is no such command, or it needs a clone and this is none.
    """
    if arguments[:1] and arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<12}{what}" for name, what in _COMMANDS.items()]
        print("usage: segmv3 benchmark COMMAND ...", "", *lines, "", sep="\n")
        print(f"All but {', '.join(_INSTALLED)} need a clone of the project.")
        print("segmv3 benchmark COMMAND --help lists the flags of a command.")
        return
    if not arguments or arguments[0] not in _COMMANDS:
        found = f"no benchmark command {arguments[0]!r}" if arguments else "nothing to do for benchmark alone"
        raise ConfigError(f"there is {found}; there are {', '.join(_COMMANDS)}")
    name, rest = arguments[0], arguments[1:]
    if name in _INSTALLED:
        import_module(f"segmv3.commands.benchmark.{name}").run(rest)
        return
    if not (_CLONE / "benchmarks" / "commands" / f"{name}.py").is_file():
        raise ConfigError(
            f"benchmark {name} is not in the installed package: its folder benchmarks/ is missing in {_CLONE}; get it "
            "with git clone of the project's repository, and install the clone with pip install -e ."
        )
    if str(_CLONE) not in sys.path:
        sys.path.insert(0, str(_CLONE))
    import_module(f"benchmarks.commands.{name}").run(rest)
