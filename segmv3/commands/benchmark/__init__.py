"""`segmv3 benchmark`: one module for each of its commands."""

from importlib import import_module

from segmv3.errors import ConfigError

_COMMANDS = {
    "latency": "from an image file to the picture of its labels, stage by stage",
    "peers": "from an image to its labels, beside other projects, in the same run",
    "throughput": "images per second: batches, a folder, a video",
    "decode": "from low-resolution logits to labels, beside torch",
    "paper": "the MobileNetV3 paper's claims about speed",
    "loader": "training samples per second: from files, from a cache, by mmsegmentation's steps",
    "training": "whole training steps, beside the plain loops of other projects",
    "table": "the mmsegmentation table with our numbers beside it",
    "metrics": "how long scoring takes, beside other projects",
}


def run(arguments: list[str]) -> None:
    """Do `segmv3 benchmark COMMAND`."""
    if arguments[:1] and arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<12}{what}" for name, what in _COMMANDS.items()]
        print("usage: segmv3 benchmark COMMAND ...", "", *lines, "", sep="\n")
        print("segmv3 benchmark COMMAND --help lists the flags of a command.")
        return
    if not arguments or arguments[0] not in _COMMANDS:
        found = f"no benchmark command {arguments[0]!r}" if arguments else "nothing to do for benchmark alone"
        raise ConfigError(f"there is {found}; there are {', '.join(_COMMANDS)}")
    import_module(f"segmv3.commands.benchmark.{arguments[0]}").run(arguments[1:])
