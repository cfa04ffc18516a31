"""Control groups: the kernel's own limit of memory for a job with all that it starts, where such groups can be had.

Used by the mold, which makes a group for each job that has a limit of memory and looks into it when the job has
ended; the child moves itself into it. What it had from the mold stays counted to the mold, so a group holds what
is the job's own. RLIMIT_DATA strikes first where it can, since a MemoryError has a traceback; the group stops what
that does not see: shared memory, and programs that the job has started.

The groups are made below a folder that is ours to use: the setting `cgroup`, or, with version 2, the group that
systemd has delegated to us (`Delegate=memory` with `DelegateSubgroup=`, or without and then nobody else in it).
"""

from __future__ import annotations

import os

_PREFIX = "forkrunner-job-"
#: Version → the files of a group: limit, greatest use, what holds the counter `oom_kill`.
_FILES = {
    2: ("memory.max", "memory.peak", "memory.events"),
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
}


def find(folder: str) -> tuple[str, int]:
    """Return where groups can be made, and of which version; ("", 0) for nowhere.

    Looks at `folder`, or where that is empty at what is delegated to us. For the supervisor, before the first mold.
    Raises:
        OSError: `folder` is named and cannot be used.
    """
    for place in [folder] if folder else _delegated():
        if version := _version(place):
            return place, version
    if folder:
        raise OSError(f"no group with a limit of memory can be made in {folder}")
    return "", 0


class Groups:
    """The groups of one mold, below a folder that `find` has found; without one `make` makes none."""

    def __init__(self, folder: str, version: int) -> None:
        self.folder, self.version = folder, version
        #: Groups of ended jobs in which a process is still dying.
        self.left: set[str] = set()
        if folder:
            # what a mold that was killed has left; those of others that live the kernel does not let go
            self.left.update(f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(_PREFIX))
            self.tidy()
            self.left.clear()

    def tidy(self) -> None:
        """Remove what could not be removed before."""
        self.left = {path for path in self.left if not _remove(path)}

    def make(self, job_id: str, attempt: int, memory: int) -> str | None:
        """Make a group that holds `memory` bytes at most, and return its path; None if there are none to be had."""
        if not self.folder:
            return None
        self.tidy()
        path = f"{self.folder}/{_PREFIX}{job_id}-{attempt}"
        try:
            os.mkdir(path)
            _write(f"{path}/{_FILES[self.version][0]}", memory)
        except OSError:
            _remove(path)
            return None
        for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            # else what is over the limit goes to the disk; a kernel without swap accounting has no such file
            try:
                _write(f"{path}/{name}", memory if self.version == 1 else 0)
            except OSError:
                pass
        return path

    def close(self, path: str) -> tuple[int, int]:
        """Remove a group; return its greatest use, bytes, and how many processes the kernel has killed in it."""
        _, peak, events = _FILES[self.version]
        found = _number(f"{path}/{peak}"), _counter(f"{path}/{events}")
        self.left.add(path)
        self.tidy()
        return found


def enter(path: str) -> None:
    """Move this process, and so all that it will start, into a group."""
    try:
        _write(f"{path}/cgroup.procs", 0)
    except OSError:
        pass  # the other two ways to hold the limit go without


def _delegated() -> list[str]:
    """List the groups of version 2 that are delegated to us, the likeliest first."""
    try:
        with open("/proc/self/cgroup") as file:
            own = next(line.rstrip("\n")[3:] for line in file if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    found = []
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        for group in (os.path.dirname(own), own):
            path = root + group.rstrip("/")
            if group.strip("/") and any(_has(path, name) for name in ("user.delegate", "trusted.delegate")):
                found.append(path)
    return found


def _has(path: str, attribute: str) -> bool:
    try:
        return os.getxattr(path, attribute) == b"1"
    except (OSError, AttributeError):
        return False


def _version(folder: str) -> int:
    """Return which version of groups with a limit of memory can be made in a folder; 0 for none."""
    trial = f"{folder}/{_PREFIX}trial-{os.getpid()}"
    try:
        # refused while processes are in it, and needless where it is on, or in version 1
        _write(f"{folder}/cgroup.subtree_control", "+memory")
    except OSError:
        pass
    try:
        os.mkdir(trial)
    except OSError:
        return 0
    there = set(os.listdir(trial))
    _remove(trial)
    return next(
        (version for version, files in _FILES.items() if there.issuperset({files[0], "cgroup.procs"})), 0
    )


def _write(path: str, value: object) -> None:
    # not open(…, "w"): the file must be there, and one write is one order
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _number(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return int(file.read())
    except (OSError, ValueError):  # memory.peak is there since Linux 5.19
        return 0


def _counter(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(b"oom_kill "))
    except (OSError, ValueError):
        return 0


def _remove(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
