"""Train a net: python tools/train.py configs/lraspp_large_d8.py [--run DIR] [--optim.lr 0.02 ...]"""

import sys

from segmv3.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
