"""`python -m forkrunner` is the command `forkrunner`."""

from __future__ import annotations

from forkrunner.cli import main

if __name__ == "__main__":
    main()
