"""Classification: python tools/classify.py train configs/imagenet/large_dli14.py [--run DIR] [--optim.lr 0.2 ...]"""

import sys

from segmv3.cli import main

if __name__ == "__main__":
    sys.exit(main(["classify", *sys.argv[1:]]))
