"""`python -m maskgil_jax` is the `maskgil` command."""

import sys

from maskgil_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
