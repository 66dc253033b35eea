"""Label images or video: python tools/predict.py SOURCE --weights best.safetensors --output DIR"""

import sys

from segmv3.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
