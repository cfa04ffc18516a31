"""Conversions as background jobs: `forkrunner run trackconvert.jobs:runner`."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

from forkrunner import InputFile, OutputFile, Runner, UserError, progress
from trackconvert import conversion
from trackconvert.model import ImageSize, TrackFileError

_SUFFIXES = {"nuke": "nk", "pftrack4": "2dt", "pftrack5": "2dt"}

# what visitors have sent is not kept longer if it was refused
runner = Runner(retention="7d", retention_failed="7d")


@runner.task(timeout="10m")
def convert(
    source: InputFile,
    target: str,
    width: int = 1920,
    height: int = 1080,
    demo_seconds: float = 0.0,
) -> dict[str, Any]:
    """Convert a file of tracks. Errors call it as its owner does.

    `demo_seconds` is for demonstrations: at least as long it takes, so that a person sees the progress of what
    would take milliseconds.
    """
    start = time.monotonic()

    def report(fraction: float, message: str) -> None:
        progress(fraction, message)
        time.sleep(max(0.0, start + demo_seconds * fraction - time.monotonic()))

    with tempfile.TemporaryDirectory() as folder:
        try:
            done = conversion.convert(
                source, target, Path(folder, "output"), ImageSize(width, height), report, source.display_name
            )
        except TrackFileError as error:
            # file, line and reason are for whoever has sent the file; and it is not better at the second try
            raise UserError(str(error)) from error
        content = done.output.read_bytes()
    return {
        "output": OutputFile(content, name=result_name(source.display_name, target), media_type="text/plain"),
        "source_format": done.source_format,
        "format": done.format,
        "trackers": done.trackers,
        "keyframes": done.keyframes,
    }


def result_name(name: str, target: str) -> str:
    """Name the result of a file: "shot.3de.txt" becomes "shot.nuke.nk"."""
    stem = re.sub(r"\.[0-9a-z]{1,5}$", "", name, flags=re.IGNORECASE)
    stem = re.sub(r"\.(3de|nuke|pftrack[45]|shake|syntheyes)$", "", stem)
    return f"{stem or 'tracks'}.{target}.{_SUFFIXES.get(target, 'txt')}"
