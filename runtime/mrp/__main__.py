"""`python -m mrp` is `mrp`."""

import sys

from mrp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
