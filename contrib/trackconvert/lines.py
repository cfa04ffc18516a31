"""The lines of a file that may be anything: text is checked before a format sees it, numbers when it does.

Everything refused here is a TrackFileError that names the line. Bytes, digits and counts are limited
before they are believed: a file of a few bytes never makes the reader work or allocate much.
"""

from __future__ import annotations

import codecs
import os
import re
from typing import BinaryIO

from trackconvert.model import LARGEST_COORDINATE, LARGEST_FRAME, TrackFileError

#: Bytes; a Nuke curve of a hundred thousand frames is one line of some 2 MB.
_LONGEST_LINE = 16 * 1024 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_COUNT = re.compile(r"[0-9]{1,9}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
_FRAME = re.compile(r"([+-]?[0-9]{1,9})(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
#: Bytes of the shortest keyframe, "1 2 3", and less than those of the shortest tracker.
_SHORTEST_ENTRY = 5


class Lines:
    """Reads lines one by one, and knows the number of the last for what is wrong with it."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self.file = file
        #: Of the line read last; counted from 1.
        self.number = 0
        #: False once a last line without a line end was read.
        self.whole = True
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        self._done = stream.seek(0)

    @property
    def fraction(self) -> float:
        """How much of the file is read, 0.0 to 1.0."""
        return self._done / self._size if self._size else 1.0

    def error(self, reason: str) -> TrackFileError:
        return TrackFileError(self.file, max(self.number, 1), reason)

    def unexpected(self, expected: str, text: str) -> TrackFileError:
        return self.error(f"expected {expected}, got {text if len(text) <= 40 else text[:40] + '…'!r}")

    def next(self) -> str | None:
        """Return the next line without its line end and the space around it, or None at the end."""
        raw = self._stream.readline(_LONGEST_LINE)
        if not raw:
            return None
        self.number += 1
        self._done += len(raw)
        self.whole = raw.endswith(b"\n")
        if not self.whole and len(raw) == _LONGEST_LINE:
            raise self.error(f"a line of more than {_LONGEST_LINE} bytes")
        if self.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text: byte 0x{raw[error.start]:02x} at {error.start + 1}") from None
        if control := _CONTROL.search(text):
            raise self.error(
                f"not a text file: control character 0x{ord(control[0]):02x} at {control.start() + 1}"
            )
        return text.strip(" \t")

    def need(self, expected: str) -> str:
        """Return the next line that is not blank.

        Raises:
            TrackFileError: there is none, the file is cut short.
        """
        while (text := self.next()) is not None:
            if text:
                return text
        raise self.error(f"cut short: the file ends where {expected} should follow")

    def fields(self, expected: str, text: str | None = None, *, open_end: bool = False) -> list[str]:
        """Split the next line, or this one, into as many fields as `expected` has words.

        Raises:
            TrackFileError: more or fewer; or the line has no line end, unless `open_end`:
                its last number may have lost digits, and nobody could tell.
        """
        if text is None:
            text = self.need(f'"{expected}"')
        fields = text.split()
        if len(fields) != len(expected.split()):
            raise self.unexpected(f'"{expected}"', text)
        if not (self.whole or open_end):
            raise self.error("cut short: the last line has no line end")
        return fields

    def count(self, text: str, what: str) -> int:
        """Read how many entries follow, each of which takes some bytes of the file's rest."""
        if not _COUNT.fullmatch(text):
            raise self.unexpected(what, text)
        count = int(text)
        if count * _SHORTEST_ENTRY > self._size - self._done + 1:
            raise self.error(f"{what} is {count}, more than the rest of the file can hold")
        return count

    def integer(self, text: str, what: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise self.unexpected(what, text)
        return int(text)

    def frame(self, text: str, first: int) -> int:
        """Read a frame number of a format that counts from `first`; the answer counts from 1."""
        match = _FRAME.fullmatch(text)
        if match is None:
            raise self.unexpected("a whole frame number", text)
        return self.within(int(match[1]) + 1 - first)

    def within(self, frame: int) -> int:
        if abs(frame) > LARGEST_FRAME:
            raise self.error(f"frame {frame} is out of range (±{LARGEST_FRAME})")
        return frame

    def number_of(self, text: str, what: str) -> float:
        """Read a number: finite, not absurd."""
        if not _NUMBER.fullmatch(text):
            raise self.unexpected(f"{what} to be a number", text)
        number = float(text)
        if not abs(number) <= LARGEST_COORDINATE:
            raise self.error(f"{what} is {text[:40]}, out of range (±{LARGEST_COORDINATE:g})")
        return number

    def pixel(self, text: str, what: str, scale: float = 1.0, offset: float = 0.0) -> float:
        """Read a coordinate; `scale` and `offset` make pixels of it."""
        pixel = self.number_of(text, what) * scale + offset
        if abs(pixel) > LARGEST_COORDINATE:
            raise self.error(f"{what} is {pixel:g} pixels, out of range (±{LARGEST_COORDINATE:g})")
        return pixel
