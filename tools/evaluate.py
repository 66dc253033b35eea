"""Score weights: python tools/evaluate.py configs/lraspp_large_d8.py --weights best.safetensors"""

import sys

from segmv3.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
