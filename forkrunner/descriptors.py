"""Descriptors and standard streams: which of them a mold keeps, which a child must not share, and what is a terminal."""

from __future__ import annotations

import ctypes
import os
import sys

from .libc import LINUX, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Reserved:
    """A block of descriptor numbers at the top that only the mold uses.

    A child must close what belongs to its siblings and keep what the
    application opened while it was imported. So every free number below `base` is
    plugged, all later descriptors get numbers from `base` up, and a child closes
    all of these with one call.
    """

    def __init__(self, fixed: int) -> None:
        """Plug the holes and reserve `fixed` numbers just below `base` for the child's own ends."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        top = max((int(name) for name in os.listdir("/dev/fd")), default=8)
        while null < top + fixed:
            null = os.dup(null)
        self.base = null + 1
        self.fixed = [null - i for i in range(fixed)]

    def move(self, fd: int) -> int:
        """Move a descriptor of the mold into the block; its old number is plugged."""
        moved = os.dup(fd)
        null = self.fixed[0]
        os.dup2(null, fd, inheritable=False)
        return moved


def sockets_and_databases() -> list[tuple[int, str]]:
    """List open descriptors that no child may share: connected sockets and SQLite files, with a name."""
    found = []
    for name in os.listdir("/proc/self/fd") if LINUX else ():
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:") or target.endswith((".db", ".sqlite", ".sqlite3", "-wal", "-shm")):
            found.append((int(name), target))
    return found


def keep_to_ourselves() -> None:
    """Let no descriptor that we were started with pass into the programs that we start, but 0, 1 and 2."""
    for name in os.listdir("/dev/fd"):
        try:
            if int(name) > 2:
                os.set_inheritable(int(name), False)
        except OSError:  # the listing's own
            pass


def shield(fds: Iterable[int]) -> None:
    """Put /dev/null over descriptors, so that nothing done to them in a child reaches the other side."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        os.dup2(null, fd, inheritable=False)
    os.close(null)


def line_buffered() -> None:
    """Make Python's and C's standard streams write each line at once: a crash then loses none."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    if LINUX:
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0)


def say(text: str) -> None:
    """Write to what is standard error for this process, whatever has become of sys.stderr."""
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:  # the job closed it
        pass


def has_terminal() -> bool:
    """Say whether we talk to a terminal; it is none any more when it was closed."""
    return any(os.isatty(fd) for fd in (0, 1, 2))
