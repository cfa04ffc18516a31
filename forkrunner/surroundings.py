"""What a web server's jobs have of it beside its code: its environment, and where its output goes.

A web process sends both along with its words (`lifeline.py`), the output as two descriptors; the keeper (`keeper.py`) takes
them over from the web server whose jobs it has run. So one that is started again at once, while the keeper of the one before
it is still there, has its own variables in its jobs and the log in its own terminal.
"""

from __future__ import annotations

import array
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import _socket
    import socket
    from collections.abc import Mapping

#: Standard output and standard error.
_OUTPUT = (1, 2)
#: Of the web server alone: a supervisor that had them would notify its service manager, or take its sockets.
_NOT_OURS = frozenset({
    "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
    "GUNICORN_FD", "GUNICORN_PID", "WERKZEUG_SERVER_FD", "WERKZEUG_RUN_MAIN", "RUN_MAIN",
})  # fmt: skip
#: Of whoever has started the process, or told apart from the rest: settings and paths are told with the command.
_TOLD_APART = frozenset({"PYTHONPATH", "PWD", "OLDPWD", "SHLVL", "_"})
_LARGEST = 1 << 20


def inherited() -> dict[str, str]:
    """Return the variables that a new program of ours gets from this process."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_OURS}


def own_variables() -> dict[str, str]:
    """Return those of them that say something of the application: neither forkrunner's settings nor a shell's."""
    return {
        name: value
        for name, value in inherited().items()
        if not (name.startswith("FORKRUNNER_") or name in _TOLD_APART)
    }


def send(sock: _socket.socket, path: str, words: Mapping[str, object]) -> None:
    """Send words to the socket at `path` with all of this; without it, if that is too much for a datagram.

    Raises:
        OSError: nobody is there.
    """
    import _socket

    try:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", _OUTPUT))
        sock.sendmsg([json.dumps({**words, "variables": own_variables()}).encode()], [rights], 0, path)
    except OSError:  # also where standard error is closed
        sock.sendto(json.dumps(words).encode(), path)


class Surroundings:
    """Those in which supervisors are started; at first the ones that this process was started in."""

    def __init__(self) -> None:
        self.variables = own_variables()

    def differ(self, variables: dict[str, str], output: list[int]) -> bool:
        """Say whether a web server has other ones."""
        return variables != self.variables or any(
            not os.path.samestat(os.fstat(theirs), os.fstat(ours))
            for theirs, ours in zip(output, _OUTPUT, strict=False)
        )

    def take(self, variables: dict[str, str], output: list[int]) -> None:
        """Take them over: also what this process prints from now on goes there."""
        self.variables = variables
        for theirs, ours in zip(output, _OUTPUT, strict=False):
            os.dup2(theirs, ours)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return what was sent: the words, and two descriptors or none; the caller closes them.

    Raises:
        OSError: nothing has come.
    """
    import socket

    size = socket.CMSG_SPACE(len(_OUTPUT) * array.array("i").itemsize)
    words, ancillary, _, _ = sock.recvmsg(_LARGEST, size, socket.MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            found += numbers
    return words, found
