"""The command line: python -m trackconvert SOURCE FORMAT OUTPUT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from trackconvert import FORMATS, ImageSize, convert


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _Parser(
        prog="trackconvert", description="Convert 2D tracking data. The source's format is found out."
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("format", metavar="FORMAT", choices=sorted(FORMATS), help=", ".join(sorted(FORMATS)))
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--width", type=int, default=1920, help="of the image, pixels (default: 1920)")
    parser.add_argument("--height", type=int, default=1080, help="of the image, pixels (default: 1080)")
    options = parser.parse_args(arguments)
    try:
        done = convert(
            options.source, options.format, options.output, ImageSize(options.width, options.height)
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{done.output}: {done.trackers} trackers, {done.keyframes} keyframes, from {done.source_format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
