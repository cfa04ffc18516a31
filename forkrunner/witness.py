"""What a supervisor knows of an attempt by itself, so that it can tell of it when its mold has died.

Its process and the nameless file that it writes to are known to its mold alone, and are gone with it. So a mold tells
of each attempt that is not over in a moment, and the supervisor holds the file open for as long as it runs. An
attempt that is lost in its first moment, or with its supervisor, has no witness: what it wrote is not known then.
"""

from __future__ import annotations

import os
import resource
from typing import Any

from . import clock, scratch

#: Descriptors from here on are for other things; the lowest free number is always taken.
_MOST = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class Witness:
    """One attempt, as its mold has told of it."""

    __slots__ = ("_fd", "told")

    def __init__(self, mold: int, told: dict[str, Any]) -> None:
        """`mold` is the pid of its mold, `told` the message."""
        self.told = told
        self._fd = _open(f"/proc/{mold}/fd/{told['output']}", tuple(told["file"]))

    def __del__(self) -> None:
        # whatever the attempt is forgotten for
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def pid(self) -> int:
        return int(self.told["pid"])

    def tell(self, usage: resource.struct_rusage | None, output_limit: int) -> tuple[dict[str, Any], bytes]:
        """Tell what a mold would of an attempt that is over, as far as it is known: the facts, and its output."""
        started = self.told["started"]
        facts: dict[str, Any] = {"pid": self.pid, "started": started, "ran": clock.wall() - started}
        if usage is not None:
            facts |= {
                "cpu_user": usage.ru_utime,
                "cpu_system": usage.ru_stime,
                "minor_faults": usage.ru_minflt,
                "major_faults": usage.ru_majflt,
                "voluntary": usage.ru_nvcsw,
                "involuntary": usage.ru_nivcsw,
            }
        body = b""
        if self._fd >= 0:
            tail, body = scratch.kept(self._fd, output_limit, scratch.was_cut(self._fd))
            facts["output_tail"] = tail.decode("utf-8", "replace")
            facts["output_bytes"] = scratch.size(self._fd)
            if body:
                facts["output"] = len(body)
        return facts, body


def _open(path: str, identity: tuple[int, ...]) -> int:
    """Open the output of an attempt; -1 if that is not possible."""
    try:
        # without waiting, whatever has that number now
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return -1
    # it may have ended meanwhile, and the number be that of another job's
    if scratch.identity(fd) == identity and fd < _MOST:
        return fd
    os.close(fd)
    return -1
