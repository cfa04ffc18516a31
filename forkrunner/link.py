"""The supervisor's end of a mold: started here, talked to here, never waited for."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from . import channel, process, survivors

if TYPE_CHECKING:
    from collections.abc import Collection

_CODE = "from forkrunner.mold import main; main()"
_CHUNK = 1 << 18
_ENVIRONMENT = {"LD_BIND_NOW": "1"}


class MoldLink:
    """One mold process and the channel to it."""

    def __init__(self, boot: dict[str, Any], keep: Collection[int]) -> None:
        """Spawn a mold: a fresh interpreter, which has none of our sockets and locks but `keep`."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        self._inbox = channel.Inbox()
        self._outgoing = bytearray()
        argv = [sys.executable, "-c", _CODE, str(theirs.fileno()), str(os.getpid())]
        # else each child looks up anew each function of a library that it calls; not for the jobs' own programs
        extra = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        environment = os.environ | extra | {survivors.VARIABLE: survivors.mark()}
        self.pid = process.spawn(argv, environment, [theirs.fileno(), *keep])
        theirs.close()
        self.tell(boot | {"kind": "boot", "unset": list(extra)})

    @classmethod
    def adopt(cls, pid: int, fd: int, unread: bytes, unsent: bytes) -> MoldLink:
        """Take up the channel to a mold that the program before this one has started."""
        link = object.__new__(cls)
        link.pid = pid
        link._socket = socket.socket(fileno=fd)
        link._socket.setblocking(False)
        link._inbox = channel.Inbox()
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

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Keep a message for `send`."""
        self._outgoing += channel.pack(header, body)

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
