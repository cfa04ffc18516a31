"""The supervisor's end of a mold: started here, talked to here, never waited for."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from . import channel, process, survivors, titles

if TYPE_CHECKING:
    from collections.abc import Collection

_CODE = "from forkrunner.boot import main; main()"
_CHUNK = 1 << 18
_ENVIRONMENT = {"LD_BIND_NOW": "1"}


def _decode(head: bytes) -> Any:
    """Read the JSON of a header, in a third of the time."""
    try:
        return msgspec.json.decode(head)
    except msgspec.DecodeError:  # half of a character, in what an error says, is text to Python alone
        return channel.decode(head)


class MoldLink:
    """One mold process and the channel to it.

    The mold's end of the channel stays open here too: what a mold that died had not read can be told by it.
    """

    def __init__(self, boot: dict[str, Any], keep: Collection[int]) -> None:
        """Spawn a mold: a fresh interpreter, which has none of our sockets and locks but `keep`."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        self._theirs: socket.socket | None = theirs
        #: Bytes of all that it was told.
        self.told = 0
        self._inbox = channel.Inbox(_decode)
        self._outgoing = bytearray()
        argv = [sys.executable, "-c", _CODE, str(theirs.fileno()), str(os.getpid()), titles.ROOM]
        # else each child looks up anew each function of a library that it calls; not for the jobs' own programs
        extra = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        environment = os.environ | extra | {survivors.VARIABLE: survivors.mark()}
        self.pid = process.spawn(argv, environment, [theirs.fileno(), *keep])
        self.tell(boot | {"kind": "boot", "unset": list(extra)})

    @classmethod
    def adopt(cls, pid: int, fd: int, theirs: int, unread: bytes, unsent: bytes, told: int) -> MoldLink:
        """Take up the channel to a mold that the program before this one has started."""
        link = object.__new__(cls)
        link.pid = pid
        link._socket = socket.socket(fileno=fd)
        link._socket.setblocking(False)
        # -1: an earlier release, which closed it
        link._theirs = socket.socket(fileno=theirs) if theirs >= 0 else None
        link.told = told
        link._inbox = channel.Inbox(_decode)
        link._inbox.feed(unread)
        link._outgoing = bytearray(unsent)
        return link

    @property
    def unread(self) -> bytes:
        """What has come and is no whole message yet."""
        return self._inbox.rest

    @property
    def unsent(self) -> bytes:
        return bytes(self._outgoing)

    @property
    def theirs(self) -> int:
        """The descriptor of the mold's end; -1 if it is not open here."""
        return self._theirs.fileno() if self._theirs else -1

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Keep a message for `send`."""
        message = channel.pack(header, body)
        self._outgoing += message
        self.told += len(message)

    def taken(self) -> int:
        """Say how much of what it was told a dead mold has read, bytes; all, if that is not known."""
        if self._theirs is None:
            return self.told
        unread = len(self._outgoing)
        try:
            # without waiting by a flag: a mode would be the mold's too, were it alive
            while data := self._theirs.recv(_CHUNK, socket.MSG_DONTWAIT):
                unread += len(data)
        except OSError:
            pass
        return self.told - unread

    def send(self) -> bool:
        """Send what the mold takes now; True if some is left."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # it is dead; SIGCHLD says how
            self._outgoing.clear()
        return bool(self._outgoing)

    def receive(self) -> list[tuple[dict[str, Any], bytes]]:
        """Return the messages that have come, without waiting."""
        try:
            while data := self._socket.recv(_CHUNK):
                self._inbox.feed(data)
                if len(data) < _CHUNK:
                    break
        except OSError:
            pass
        return list(self._inbox)

    def close(self) -> None:
        self._socket.close()
        if self._theirs is not None:
            self._theirs.close()
