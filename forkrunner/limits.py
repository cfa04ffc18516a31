"""What a job may use: limits that the kernel holds, set by a child on itself before it calls the task.

Each is of one process. What a job uses together with all that it has started, the mold looks at (`measure.py`).
"""

from __future__ import annotations

import os
import resource
import sys

from . import cgroup, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


#: errno → (the limit that it speaks of, what was reached).
_ERRORS = {
    12: ("memory", "the kernel refused it more"),
    24: ("open_files", "as many were open"),
    27: ("file_size", "a file had grown to it"),
}
#: VmData and VmRSS when the limits were set, bytes.
_data_at_start = _resident_at_start = 0


def impose(limits: dict[str, Any], open_already: int) -> None:
    """Set this process's limits, all soft, so that `lift` can make room for a report.

    `open_already` is the number of descriptors that do not count. A limit that is higher than the one that this
    process was started with changes nothing.
    Raises:
        PermissionError: a negative `nice` without the privilege.
    """
    global _data_at_start, _resident_at_start
    if "temporary_folder" in limits:
        # its mold removes it; not for the application's own processes, which go on with theirs
        os.mkdir(limits["temporary_folder"], 0o700)
        os.environ["TMPDIR"] = limits["temporary_folder"]
        if "tempfile" in sys.modules:
            # it may have looked before, in the mold
            setattr(sys.modules["tempfile"], "tempdir", None)  # noqa: B010 - not imported by us
    if "group" in limits:
        cgroup.enter(limits["group"])
    if "memory" in limits:
        # RLIMIT_DATA: it counts private writable memory only, so a big file can still be mapped. What the
        # application had loaded is in it at the start, and so does not count.
        _data_at_start, _resident_at_start, _ = _sizes()
        _set(resource.RLIMIT_DATA, _data_at_start + limits["memory"])
    if "cpu_seconds" in limits:
        # whole seconds; the mold counts exactly, and what the job has started too
        _set(resource.RLIMIT_CPU, max(1, -int(-limits["cpu_seconds"] // 1)))
    if "open_files" in limits:
        _set(resource.RLIMIT_NOFILE, open_already + limits["open_files"])
    if "file_size" in limits:
        _set(resource.RLIMIT_FSIZE, limits["file_size"])
    if "nice" in limits:
        try:
            os.nice(limits["nice"])
        except PermissionError as error:
            raise PermissionError(
                f"its limit nice={limits['nice']} needs a privilege that this user lacks (CAP_SYS_NICE)"
            ) from error


class CpuSpent(BaseException):
    """A task has returned, and its CPU time is used up."""


def cpu_spent(limits: dict[str, Any]) -> str | None:
    """Say that this process, with what it has waited for, has reached its limit of CPU time; None if it has not."""
    if "cpu_seconds" not in limits:
        return None
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    if used < limits["cpu_seconds"]:
        return None
    return units.breach(
        "cpu_seconds", limits, f"it used {used:.2f} s of CPU time, with the processes that it had started"
    )


def leave_cpu_to_mold(pids: Sequence[int]) -> None:
    """Take the kernel's limit of CPU time, as far as it can be, from processes that a job has started.

    They have inherited it, and would die of it alone: of that the job may say nothing, nor does its bill, since the
    kernel counts ticks and strikes up to a tenth early. Their mold counts them with the job.
    """
    for pid in pids:
        try:
            _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
            resource.prlimit(pid, resource.RLIMIT_CPU, (hard, hard))
        except (AttributeError, OSError):  # gone, another user's, or not on this system
            pass


def lift() -> None:
    """Give this process what it may have at most: for its report, after all else is done."""
    for which in (resource.RLIMIT_DATA, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        _set(which, resource.RLIM_INFINITY)


def _set(which: int, soft: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(which, (soft, hard))


def _sizes() -> tuple[int, int, int]:
    """Return this process's private writable memory, its stack aside, what is resident, and the most that was, bytes."""
    found = {b"VmData:": 0, b"VmRSS:": 0, b"VmHWM:": 0}
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                words = line.split()
                if words and words[0] in found:
                    found[words[0]] = int(words[1]) * 1024
    except OSError:
        pass
    return found[b"VmData:"], found[b"VmRSS:"], found[b"VmHWM:"]


def _most() -> int:
    """Return how much more than at its start this process has had, bytes: some may be free again when it is asked."""
    data, _, peak = _sizes()
    return max(0, data - _data_at_start, peak - _resident_at_start)


def reached(error: BaseException, limits: dict[str, Any]) -> str | None:
    """Say which limit an exception, or one that it came from, speaks of; None if of none."""
    seen = 0
    one: BaseException | None = error
    while one is not None and seen < 20:
        if isinstance(one, MemoryError) and "memory" in limits:
            return units.breach(
                "memory", limits, f"it had {units.show_bytes(_most())} of its own and was refused more"
            )
        name, what = _ERRORS.get(getattr(one, "errno", None) or 0, ("", ""))
        if name in limits and isinstance(one, OSError):
            return units.breach(name, limits, what)
        one, seen = one.__cause__ or one.__context__, seen + 1
    return None
