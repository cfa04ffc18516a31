"""What the jobs of a dead supervisor have left running: found by a mark, and killed.

Mold and jobs die with their supervisor, by the kernel. The programs that jobs have started do not: when a
supervisor is killed, they fall to init. Those that were started by exec carry its mark in their environment;
forks of a job that are no other program hold its life lock, which no program inherits.
Found by nobody: a program that was started with another environment.
"""

from __future__ import annotations

import os
import signal

from . import identity, process

#: Variable with the mark of the supervisor whose job this is: pid namespace, pid and start time.
VARIABLE = "FORKRUNNER_ATTEMPT"


def mark() -> str:
    """Return the mark of this process: what its jobs are to carry."""
    pid = os.getpid()
    return f"{identity.pid_namespace()}:{pid}:{identity.start_ticks(pid)}"


def is_dead(mark: str) -> bool:
    """Say whether it is certain that the supervisor with that mark is dead."""
    namespace, _, rest = mark.partition(":")
    pid, _, ticks = rest.partition(":")
    # another namespace has other pids: its supervisors are not ours to judge
    if namespace != identity.pid_namespace() or not (pid.isdigit() and ticks.isdigit()):
        return False
    return identity.start_ticks(int(pid)) != int(ticks)


def kill_marked() -> int:
    """Kill whatever carries the mark of a supervisor that is dead; return how many."""
    found = 0
    for pid in _pids():
        if _is_orphan(_environment(pid)):
            found += process.kill(pid, signal.SIGKILL)
    return found


def kill_holders(path: str) -> int:
    """Kill whatever has that file open, but for this process; return how many."""
    try:
        wanted = os.stat(path)
    except OSError:
        return 0
    found = 0
    for pid in _pids():
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # it is gone, or somebody else's
            continue
        if any(_is_file(f"/proc/{pid}/fd/{fd}", path, wanted) for fd in fds):
            found += process.kill(pid, signal.SIGKILL)
    return found


def _pids() -> list[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    return [int(name) for name in names if name.isdigit() and int(name) != os.getpid()]


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _is_orphan(environment: bytes) -> bool:
    start = f"{VARIABLE}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(start):
            return is_dead(variable[len(start) :].decode("ascii", "replace"))
    return False


def _is_file(link: str, path: str, wanted: os.stat_result) -> bool:
    try:
        # by its name first: to look at a file that lies on a dead network disk would hang us
        if not os.readlink(link).endswith(os.path.basename(path)):
            return False
        found = os.stat(link)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
