"""`python -m optlab.lab.cli` is the command `optlab`."""

import sys

from optlab.lab import cli

if __name__ == "__main__":
    sys.exit(cli.main())
