"""What a job may use, and who ended it when it used more: limits set by the kernel, the kernel's own kills.

Used by children, on themselves, and by the mold. No decision is taken here.
"""

from __future__ import annotations

import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def limit_memory(own: int) -> None:
    """Let this process allocate `own` bytes beside what it has now, then MemoryError.

    RLIMIT_DATA, soft: it counts private writable memory only, so a big file can
    still be mapped, and `lift_memory_limit` makes room for the report.
    """
    data = 0
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmData:"):
                data = int(line.split()[1]) * 1024
                break
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data + own, hard))


def lift_memory_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


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
