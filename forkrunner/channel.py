"""Messages between supervisor, mold and child: framing only, no system call.

A frame is three little-endian 32-bit numbers (length of the header, length of the
body, CRC-32 of both), the header (a JSON object with a `kind`) and the body (bytes
that are passed on unread: arguments down, results up). Who says what, in order:

supervisor → mold    `boot` once, first · `run` (body: arguments) · `kill` one attempt ·
                     `lease` (until when its children may live) · `end` (finish or kill all, then exit)
mold → supervisor    `up` or `broken` once · `ended` for every `run`, exactly once (body: result)
mold → child         `run`, the same frame, through a pipe
child → mold         `outcome`, once, into a file that the mold reads when the child is dead:
                     it never blocks, may be of any size, and half of one is as good as none
"""

from __future__ import annotations

import json
import struct
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Header = dict[str, Any]

_SIZES = struct.Struct("<III")
#: json.loads without its regular expressions for white space, of which we write none.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
#: A header longer than this is not ours.
_LONGEST_HEADER = 1 << 24


class Garbled(Exception):
    """The bytes are not a frame: the other side is not what it should be."""


def pack(header: Header, body: bytes = b"") -> bytes:
    return pack_raw(json.dumps(header, separators=(",", ":")).encode(), body)


def pack_raw(head: bytes, body: bytes) -> bytes:
    """Frame a header that is JSON already: a child's commonest words are made before the fork."""
    return _SIZES.pack(len(head), len(body), zlib.crc32(body, zlib.crc32(head))) + head + body


def unpack(data: bytes) -> tuple[Header, bytes] | None:
    """Read the one frame that `data` must be; None if it is not whole."""
    if len(data) < _SIZES.size:
        return None
    head, body, crc = _SIZES.unpack_from(data)
    if len(data) != _SIZES.size + head + body or zlib.crc32(data[_SIZES.size :]) != crc:
        return None
    header, _ = _scan(data[_SIZES.size : _SIZES.size + head].decode(), 0)
    return header, data[_SIZES.size + head :]


class Inbox:
    """Collects bytes of a stream and yields whole frames.

    Raises:
        Garbled: a checksum or length is wrong; the stream cannot be read any further.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def raw(self) -> Iterator[bytes]:
        """Yield whole frames unread, to be handed on or given to `unpack`."""
        while len(self._data) >= _SIZES.size:
            head, body, crc = _SIZES.unpack_from(self._data)
            end = _SIZES.size + head + body
            if head > _LONGEST_HEADER:
                raise Garbled(f"a header of {head} bytes")
            if len(self._data) < end:
                return
            frame = bytes(self._data[:end])
            del self._data[:end]
            if zlib.crc32(frame[_SIZES.size :]) != crc:
                raise Garbled("a checksum does not match")
            yield frame

    def __iter__(self) -> Iterator[tuple[Header, bytes]]:
        for frame in self.raw():
            message = unpack(frame)
            if message is None:
                raise Garbled("a frame does not match its sizes")
            yield message
