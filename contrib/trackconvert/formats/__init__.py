"""The formats, and which of them a file is in."""

from __future__ import annotations

from typing import BinaryIO

from trackconvert.formats import equalizer, nuke, pftrack, shake, syntheyes
from trackconvert.formats.base import Format
from trackconvert.model import TrackFileError

#: By name; the order is that of asking which one a file is in.
FORMATS = {
    format.name: format
    for format in (
        syntheyes.FORMAT,
        pftrack.FORMAT_5,
        pftrack.FORMAT_4,
        shake.FORMAT,
        nuke.FORMAT,
        equalizer.FORMAT,
    )
}
#: Lines, and bytes of each, that the decision may look at.
_HEAD_LINES = 100
_HEAD_BYTES = 1000


def detect(stream: BinaryIO, file: str) -> Format:
    """Say which format a file is in, from its first lines; the stream is left where it was found.

    Raises:
        TrackFileError: none of them.
    """
    start = stream.tell()
    text = [stream.readline(_HEAD_BYTES).decode("utf-8-sig", "replace").strip() for _ in range(_HEAD_LINES)]
    stream.seek(start)
    head = [line for line in text if line]
    for format in FORMATS.values():
        if head and format.detect(head):
            return format
    reason = "not a file of tracks that is known here: " + ", ".join(each.title for each in FORMATS.values())
    raise TrackFileError(file, 1, reason if head else "the file is empty")


__all__ = ["FORMATS", "Format", "detect"]
