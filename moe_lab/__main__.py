"""`python -m moe_lab`, for an environment whose scripts folder is not on PATH."""

import sys

from moe_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
