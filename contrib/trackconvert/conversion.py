"""Files in, files out: what the command line, the job and other programs call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trackconvert.formats import FORMATS, Format, detect
from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Progress, Tracker


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    output: Path
    source_format: str
    format: str
    trackers: int
    keyframes: int


def parse(
    stream: BinaryIO,
    file: str,
    size: ImageSize | None = None,
    progress: Progress | None = None,
    format: Format | None = None,
) -> Iterator[Tracker]:
    """Yield the trackers of a file one by one as they are read; `file` is its name in errors.

    The format is detected unless it is given. `progress` is called after each tracker, with
    the part of the file's bytes read so far.

    Raises:
        TrackFileError: the file is of no known format, cut short or nonsense; maybe after some trackers.
    """
    format = format or detect(stream, file)
    lines = Lines(stream, file)
    found = False
    for tracker in format.read(lines, size or ImageSize()):
        found = True
        if progress:
            progress(lines.fraction, f"{tracker.name}: {len(tracker.keyframes)} keyframes")
        yield tracker
    if not found:
        raise lines.error("there are no trackers in this file")


def read(source: Path | str, size: ImageSize | None = None) -> list[Tracker]:
    """Read all trackers of a file.

    Raises:
        TrackFileError: as `parse` does.
        OSError: the file cannot be opened.
    """
    with open(source, "rb") as stream:
        return list(parse(stream, str(source), size))


def write(
    trackers: Iterable[Tracker], target: str, output: Path | str, size: ImageSize | None = None
) -> None:
    """Write trackers as a file in the format named `target`.

    The file appears whole or not at all, in place of one of the same name: it is written beside
    its place under a name of this process, and moved there at the end. A process killed on the way
    leaves that `.NAME.PID.tmp` behind.

    Raises:
        ValueError: no format has that name.
        OSError: the file cannot be written.
    """
    format = _format(target)
    output = Path(output)
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as out:
            format.write(out, trackers, size or ImageSize())
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def convert(
    source: Path | str,
    target: str,
    output: Path | str,
    size: ImageSize | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Conversion:
    """Read a file, whatever format it is in, and write it in the format named `target`.

    `output` is written as `write` does: nothing is there unless the whole source was read. Errors call the
    source `name`, or by its path.

    Raises:
        TrackFileError, ValueError, OSError: as `parse` and `write` do.
    """
    counts = [0, 0]

    def counted(trackers: Iterable[Tracker]) -> Iterator[Tracker]:
        for tracker in trackers:
            counts[0] += 1
            counts[1] += len(tracker.keyframes)
            yield tracker

    _format(target)
    file = str(source) if name is None else name
    with open(source, "rb") as stream:
        source_format = detect(stream, file)
        write(counted(parse(stream, file, size, progress, source_format)), target, output, size)
    return Conversion(Path(output), source_format.name, target, *counts)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"expected one of the formats {', '.join(sorted(FORMATS))}, got {name!r}")
    return FORMATS[name]
