"""What a running job writes, read while it runs: on its own host, out of the file in memory that is its output.

Used by the command line. Neither job, mold nor supervisor is asked, or kept from anything.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import identity
from .errors import ForkrunnerError
from .scratch import LEFT_OUT, OUTPUT

if TYPE_CHECKING:
    from .records import SupervisorRow

_CHUNK = 1 << 16


class NotHere(ForkrunnerError):
    """The output of a running job cannot be read from here."""


class Live:
    """The output of one running attempt; it can be read to its end also when the process is gone."""

    def __init__(self, job_id: str, attempt: int, supervisor: SupervisorRow | None) -> None:
        """Find it.

        Raises NotHere, with where to look.
        """
        if supervisor is None:
            raise NotHere("its supervisor is gone, and whoever takes its jobs back has not done so yet")
        here = (identity.HOST, identity.boot_id(), identity.pid_namespace())
        if (supervisor.host, supervisor.boot_id, supervisor.pid_namespace) != here:
            where = f"host {supervisor.host}"
            if supervisor.host == identity.HOST:
                where = "another container, or another boot, of this host"
            raise NotHere(f"it runs on {where}; there `forkrunner log -f` shows its output while it runs")
        self.pid = _find(job_id, attempt)
        self._ticks = identity.start_ticks(self.pid)
        self._fd = _open_output(self.pid)
        self._at = 0
        #: Bytes that were given up before there, and not named yet.
        self._lost = 0

    def read(self) -> bytes:
        """Return what it has written since the last time, nothing if that is nothing; what was given up is named."""
        size = os.fstat(self._fd).st_size
        while self._at < size:
            try:
                start = os.lseek(self._fd, self._at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
            data = os.pread(self._fd, min(_CHUNK, end - start), start)
            self._lost += start - self._at
            self._at = start + len(data)
            # a hole is made of whole pages; in the pages at both of its ends there are NULs instead
            kept = data.lstrip(b"\0") if self._lost else data
            kept = kept.rstrip(b"\0") if self._at == end < size else kept
            if not kept:
                self._lost += len(data)
                continue
            before = LEFT_OUT % (self._lost + data.index(kept)) if self._lost else b""
            self._lost = len(data) - len(kept) - data.index(kept)
            return before + kept
        return b""

    def is_alive(self) -> bool:
        """Say whether it may write any more."""
        return self._ticks is not None and identity.start_ticks(self.pid) == self._ticks

    def close(self) -> None:
        os.close(self._fd)


def _find(job_id: str, attempt: int) -> int:
    """Return the pid of a job of this host by its title."""
    start, end = f"forkrunner: job {job_id} ".encode(), f" attempt {attempt}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                title = file.read()
        except OSError:
            continue
        # what the job has forked has the same title
        if title.startswith(start) and end in title and os.getpgid(int(name)) == int(name):
            return int(name)
    raise NotHere("its process is not to be seen: it has just ended, or has changed its title")


def _open_output(pid: int) -> int:
    """Open the file that was its standard output when it started.

    Raises NotHere.
    """
    try:
        fds = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
        for fd in fds:
            path = f"/proc/{pid}/fd/{fd}"
            if os.readlink(path).startswith("/memfd:" + OUTPUT):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise NotHere(
            "it runs as another user: only that one and root may read its output while it runs"
        ) from None
    except OSError:
        raise NotHere("it has just ended") from None
    raise NotHere("it has closed its output")
