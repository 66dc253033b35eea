"""Label what a camera sees, in a page of this machine. Needs the package av: pip install "segmv3[video]".

python demo/webcam.py best.safetensors 0
"""

import argparse
import sys
import webbrowser

import segmv3
from segmv3.errors import Segmv3Error
from segmv3.prediction.sources import FrameSource, find_source
from segmv3.view.server import Server
from segmv3.view.views import Live


def show(weights: str, camera: str) -> None:
    """Serve the page until Ctrl-C. `camera` is a number, or anything else with frames, such as an rtsp:// address."""
    source = find_source(camera)
    if not isinstance(source, FrameSource):
        raise SystemExit(f"{camera} is no camera, stream or video")
    predict = segmv3.load(weights)
    with source.open() as frames, Server(Live(source.name, frames.timed(), predict)) as server:
        print(server.url, flush=True)
        webbrowser.open(server.url)
        server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Label what a camera sees.")
    parser.add_argument("weights", help="a weight file, for example best.safetensors")
    parser.add_argument("camera", nargs="?", default="0", help="number or address of the camera")
    try:
        show(**vars(parser.parse_args()))
    except Segmv3Error as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
