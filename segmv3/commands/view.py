"""`segmv3 view`."""

import webbrowser
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from segmv3.commands.options import OnDevice, OwnParts, Trusting, parse
from segmv3.config import load_config
from segmv3.errors import ConfigError

if TYPE_CHECKING:
    from segmv3.images import UInt8Array
    from segmv3.runtime import Predictor
    from segmv3.view.views import Gallery, Live


@dataclass(frozen=True, kw_only=True)
class View(OnDevice, Trusting, OwnParts):
    """Look at a camera or video while a net labels it, at results, at a data set or at a run, in a local page."""

    what: tyro.conf.Positional[str]
    """A source as `segmv3 predict` takes it, a folder that it wrote, a data set, a config or a run."""
    weights: str | None = None
    """Net for a source. By default the best published net for streets, downloaded once."""
    port: int = 0
    """Port on this machine; 0 takes a free one."""
    browser: bool = True
    """Open the page in the browser."""


def run(arguments: list[str]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        Segmv3Error: there is nothing to look at, or the port is in use.
    """
    options = parse(View, "segmv3 view", arguments)
    options.import_parts()
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port is {options.port}; it must be 0 (a free one) to 65535")
    from segmv3.screen import print_line
    from segmv3.view.server import Server

    with ExitStack() as files:
        shown = _shown(options, files)
        with Server(shown, options.port) as server:
            print_line(f"{shown.title}: {server.url} (Ctrl-C ends it; nobody else can open it)")
            if options.browser:
                webbrowser.open(server.url)
            server.serve_forever()


def _shown(options: View, files: ExitStack) -> "Gallery | Live":
    from segmv3.images import read_image
    from segmv3.prediction.sources import FrameSource, HeldImage, find_source
    from segmv3.view.views import Live, NetGallery, gallery_of

    path = Path(options.what)
    config = load_config(path) if path.suffix == ".py" and path.is_file() else None
    if found := gallery_of(path, config, lambda weights: _net(str(weights), options)):
        return found
    source = find_source(options.what)
    if isinstance(source, FrameSource):
        frames = files.enter_context(source.open())
        return Live(source.name, frames.timed(), _net(options.weights, options))
    reads: list[Callable[[], UInt8Array]] = [partial(read_image, file) for file in source.paths]
    if isinstance(source, HeldImage):
        (picture,) = source.pictures()
        reads = [lambda: picture]
    return NetGallery(path.name, source.names, reads, _net(options.weights, options))


def _net(weights: str | None, options: View) -> "Predictor":
    from segmv3.runtime import load
    from segmv3.screen import print_line
    from segmv3.weights.names import default_net

    return load(weights or default_net(print_line), threads=options.threads, device=options.device, trust=options.trust)
