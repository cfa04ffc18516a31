"""Whether the kernel's out-of-memory killer has struck, and whom: it sends the same SIGKILL as anybody.

Proof is the kernel's log, which names the pid, or a counter of our own control group. The counter of the
whole machine makes it probable. Where there is neither, that is said.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of the first pid namespace, whose pids are those of the kernel's log.
_FIRST_NAMESPACE = 0xEFFFFFFC
_MARK = b"Killed process "


class OomKiller:
    """What the kernel has told since the last question."""

    def __init__(self) -> None:
        self.kills, _ = oom_kills()
        #: The kernel's log, from now on; -1 if we may not read it, or its pids are not ours.
        self._log = -1
        #: Pids that it has named.
        self._named: dict[int, str] = {}
        try:
            if os.stat("/proc/self/ns/pid").st_ino == _FIRST_NAMESPACE:
                self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._log, 0, os.SEEK_END)
        except OSError:
            pass

    def judge(self, pid: int) -> tuple[str, str]:
        """Say who killed a process of ours by SIGKILL that we have not killed: outcome and sentence."""
        kills, own = oom_kills()
        struck, self.kills = kills > self.kills, kills
        self._read_log()
        named = self._named.pop(pid, None)
        by = "killed by the kernel's out-of-memory killer"
        if named is not None:
            return "out_of_memory", f"{by} (the kernel's log: {named})"
        if struck and own:
            return "out_of_memory", f"{by} (counted by its control group)"
        if struck:
            return (
                "out_of_memory",
                f"probably {by}: the machine counted one; no proof that it was this process",
            )
        seen = "the counter of its control group" if own else "the counter of the machine"
        if self._log >= 0:
            seen += " and the kernel's log"
        return (
            "crashed",
            f"killed by SIGKILL from outside forkrunner, not by the kernel's out-of-memory killer (so {seen})",
        )

    def _read_log(self) -> None:
        while self._log >= 0:
            try:
                record = os.read(self._log, 8192)
            except BlockingIOError:
                return
            except BrokenPipeError:  # some were overwritten before we came
                continue
            except OSError:
                self._log = -1
                return
            # priority,number,time,flags;Memory cgroup out of memory: Killed process 812 (python) total-vm:…kB, …
            text = record.partition(b";")[2].partition(b"\n")[0]
            _, found, rest = text.partition(_MARK)
            pid = rest.split(b" ")[0]
            if found and pid.isdigit():
                self._named[int(pid)] = text.decode("utf-8", "replace").strip()[:200]


def oom_kills() -> tuple[int, bool]:
    """Count the out-of-memory kills so far: (number, True if they are of our own cgroup only).

    The counter of the whole machine makes a kill probable, that of our cgroup proves it.
    """
    for path in _cgroup_counters():
        try:
            with open(path, "rb") as file:
                for line in file:
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1]), True
        except OSError:
            continue
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1]), False
    except OSError:
        pass
    return 0, False


def _cgroup_counters() -> Iterator[str]:
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if path == "/":  # the root counts nothing of its own
            continue
        if controllers == "":
            yield f"/sys/fs/cgroup{path}/memory.events"
        elif "memory" in controllers.split(","):
            yield f"/sys/fs/cgroup/memory{path}/memory.oom_control"
