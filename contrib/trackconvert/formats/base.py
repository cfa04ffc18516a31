"""What a format is: how to recognise, read and write it. Each module beside this one holds one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Tracker


@dataclass(frozen=True)
class Format:
    """One file format. `read` and `write` work tracker by tracker where the format lets them."""

    name: str
    title: str
    #: Whether a file is of this format, from its first lines (not blank, without the space around them).
    detect: Callable[[Sequence[str]], bool]
    #: Raises TrackFileError, and nothing else, for whatever the file holds.
    read: Callable[[Lines, ImageSize], Iterator[Tracker]]
    write: Callable[[TextIO, Iterable[Tracker], ImageSize], None]
    #: The largest difference, in pixels, between a coordinate and what is read back after writing it.
    #: (Beside that of floating point itself, some 1e-16 of the coordinate or the image's side.)
    precision: Callable[[ImageSize], float]
