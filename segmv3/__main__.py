"""`python -m segmv3`."""

import sys

from segmv3.cli import main

if __name__ == "__main__":
    sys.exit(main())
