"""Label one street image.

python demo/image.py best.safetensors street.jpg out.png
"""

import argparse
import sys
from pathlib import Path

import segmv3
from segmv3.errors import OutputError, Segmv3Error
from segmv3.images import write_png


def label_image(weights: str, source: Path, target: Path) -> None:
    """Write `target`, a PNG: the image with its classes painted over it. Print which classes there are."""
    if target.exists():
        raise OutputError(f"{target} exists; choose another name")
    predict = segmv3.load(weights)
    image = segmv3.read_image(source)  # uint8 H x W x 3, RGB
    labels = predict(image)  # uint8 H x W, the index of each pixel's class
    write_png(target, segmv3.overlay(image, labels, predict.classes))
    for index, name in enumerate(predict.classes.names):
        if (labels == index).any():
            print(f"{(labels == index).mean():6.1%}  {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Label one street image.")
    parser.add_argument("weights", help="a weight file, for example best.safetensors")
    parser.add_argument("source", type=Path, help="the image")
    parser.add_argument("target", type=Path, help="the PNG to write")
    try:
        label_image(**vars(parser.parse_args()))
    except Segmv3Error as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
