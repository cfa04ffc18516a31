"""Conversions as background jobs: `forkrunner run trackconvert.jobs:runner`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from forkrunner import Runner, UserError, progress
from trackconvert import conversion
from trackconvert.model import ImageSize, TrackFileError

runner = Runner()


@runner.task
def convert(
    source: Path,
    target: str,
    output: Path,
    width: int = 1920,
    height: int = 1080,
    name: str | None = None,
    demo_seconds: float = 0.0,
) -> dict[str, Any]:
    """Convert a file of tracks; the output appears whole or not at all, so a repeated run does no harm.

    `name` is what errors call the source, as its owner does: an upload is stored under another name.
    `demo_seconds` is for demonstrations: at least as long it takes, so that a person sees the progress of what
    would take milliseconds.
    """
    start = time.monotonic()

    def report(fraction: float, message: str) -> None:
        progress(fraction, message)
        time.sleep(max(0.0, start + demo_seconds * fraction - time.monotonic()))

    try:
        done = conversion.convert(source, target, output, ImageSize(width, height), report, name)
    except TrackFileError as error:
        # file, line and reason are for whoever has sent the file; and it is not better at the second try
        raise UserError(str(error)) from error
    return {
        "output": str(done.output),
        "source_format": done.source_format,
        "format": done.format,
        "trackers": done.trackers,
        "keyframes": done.keyframes,
    }
