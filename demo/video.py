"""Label a drive, frame by frame. Needs the package av: pip install "segmv3[video]".

python demo/video.py best.safetensors drive.mp4 out.webm
"""

import argparse
import sys
from pathlib import Path

import segmv3
from segmv3.errors import Segmv3Error
from segmv3.media.encoding import VideoWriter
from segmv3.media.video import VideoReader


def label_video(weights: str, source: Path, target: Path) -> None:
    """Write `target`, .webm or .mp4: the video, its classes painted over it. Ctrl-C keeps what is done."""
    predict = segmv3.load(weights)
    with VideoReader(source) as frames, VideoWriter(target, frames.fps, frames.size) as video:
        for frame, time in frames.timed():  # uint8 H x W x 3, RGB, and seconds since the first
            labels = predict(frame)  # uint8 H x W, the index of each pixel's class
            video.write(segmv3.overlay(frame, labels, predict.classes), time)
            print(f"\r{video.frames_written} frames", end="", file=sys.stderr)
    print(file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Label a video.")
    parser.add_argument("weights", help="a weight file, for example best.safetensors")
    parser.add_argument("source", type=Path, help="the video")
    parser.add_argument("target", type=Path, help="the video to write, .webm or .mp4")
    try:
        label_video(**vars(parser.parse_args()))
    except Segmv3Error as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
