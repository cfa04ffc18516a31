"""Messages between supervisor, mold and child: framing only, no system call.

A frame is the lengths of header and body (two numbers of eight hexadecimal digits, a line
end), the header (a JSON object with a `kind`) and the body (bytes that are passed on unread:
arguments down, results up). No checksum and no struct: neither a socket nor a file in memory
flips bits, and each module here is in the memory that every fork copies. Who says what, in order:

supervisor → mold    `boot` once, first · `go` (settings, after `up`) · `run` (body: arguments) · `kill` one attempt ·
                     `pause` and `resume` one attempt · `leave` (all, at their next safe points) ·
                     `lease` (until when its children may live) · `ask` (whether it lives) ·
                     `end` (finish or kill all, then exit)
mold → supervisor    `up` or `broken` once · `ended` (body: result, output) or `refused` for every `run`,
                     or `returned` (it was claimed ahead and did not start), exactly once · `runs` (which process it is), of each that is not over in a moment ·
                     `left` (a folder that it could not remove) · `alive`
mold → child         `run`, the same frame, through a pipe
child → mold         `outcome`, once, into a file that the mold reads when the child is dead:
                     it never blocks, may be of any size, and half of one is as good as none;
                     stacks may stand before it and behind it
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Header = dict[str, Any]

#: Length of what stands before the header.
_START = 18
#: json.loads without its regular expressions for white space, of which we write none.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
#: json.dumps makes one of these at each call.
_encode = json.JSONEncoder(separators=(",", ":")).encode
#: A header longer than this is not ours.
_LONGEST_HEADER = 1 << 24


class Garbled(Exception):
    """The bytes are not a frame: the other side is not what it should be."""


def pack(header: Header, body: bytes = b"") -> bytes:
    return pack_raw(_encode(header).encode(), body)


def pack_raw(head: bytes, body: bytes) -> bytes:
    """Frame a header that is JSON already: a child's commonest words are made before the fork."""
    return b"%08x %08x\n%b%b" % (len(head), len(body), head, body)


def _sizes(data: bytes | bytearray) -> tuple[int, int]:
    """Return where the header of a frame ends, and where its body does."""
    try:
        head, body = int(data[:8], 16), int(data[9:17], 16)
    except ValueError:
        head = _LONGEST_HEADER
    if head >= _LONGEST_HEADER or data[8:9] != b" " or data[17:18] != b"\n":
        raise Garbled(f"expected the sizes of a frame, got {bytes(data[:_START])!r}")
    return _START + head, _START + head + body


def unpack(data: bytes) -> tuple[Header, bytes] | None:
    """Read the one frame that `data` must be; None if it is not whole.

    Raises:
        Garbled: it is no frame.
    """
    if len(data) < _START:
        return None
    head, end = _sizes(data)
    return None if len(data) != end else (_read(data[_START:head]), data[head:])


def length(data: bytes) -> int:
    """Return how long the frame is that `data` begins with; 0 if not even its sizes are there.

    Raises:
        Garbled: it is no frame.
    """
    return 0 if len(data) < _START else _sizes(data)[1]


def decode(head: bytes) -> Any:
    """Read the JSON of a header; ValueError or StopIteration if it is none."""
    return _scan(head.decode(), 0)[0]


def _read(head: bytes, decode: Callable[[bytes], Any] = decode) -> Header:
    try:
        header = decode(head)
    except (ValueError, StopIteration):
        header = None
    if not isinstance(header, dict):
        raise Garbled("a header is no JSON object")
    return header


class Inbox:
    """Collects bytes of a stream and yields whole messages.

    Raises:
        Garbled: what came is no frame; the stream cannot be read any further.
    """

    def __init__(self, decode: Callable[[bytes], Any] = decode) -> None:
        """`decode` reads the JSON of a header, and raises as `decode` does if it is none."""
        self._data = bytearray()
        self._decode = decode

    def feed(self, data: bytes) -> None:
        self._data += data

    @property
    def rest(self) -> bytes:
        return bytes(self._data)

    def __iter__(self) -> Iterator[tuple[Header, bytes]]:
        while len(self._data) >= _START:
            head, end = _sizes(self._data)
            if len(self._data) < end:
                return
            message = _read(bytes(self._data[_START:head]), self._decode), bytes(self._data[head:end])
            del self._data[:end]
            yield message
