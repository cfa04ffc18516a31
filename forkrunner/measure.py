"""What can be seen of a process from outside, through /proc: what it has, what it used, where it is blocked.

Used by the mold for its children, and by the supervisor for its molds. Where there is no /proc nothing is seen, and nothing is made up.
"""

from __future__ import annotations

import os

from .process import descendants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_TICK = os.sysconf("SC_CLK_TCK")
#: Characters of a kernel stack that are kept.
_STACK_LIMIT = 2000


def own_memory() -> int:
    """Return how much memory this process has that is in no file, bytes: what a child of it begins with."""
    return _quick(os.getpid())[0]


def memory_of(pid: int) -> int:
    """Return how much memory a process has that is in no file, bytes; 0 if it is gone."""
    return _quick(pid)[0]


def tree(pid: int, started: Sequence[int], inherited: int) -> tuple[int, float]:
    """Return what a job and the processes that it `started` have and used: (memory, bytes; CPU time, seconds).

    Memory is what is in no file, swapped out or not, beyond the `inherited` bytes, and its share of shared memory.
    What a fork of the job still shares with it is counted once.
    """
    family = (pid, *started)
    memory = 0
    for one in family:
        # the exact figures cost milliseconds, and are needed only where memory is shared
        anonymous, private, shared = _exact(one) if started else _quick(one)
        memory += shared + (max(0, anonymous - inherited) if one == pid else min(anonymous, private))
    return memory, sum(map(_cpu, family))


def programs(pid: int) -> int:
    """Return the most that each program which a job runs has had in memory so far, added up, bytes.

    A program has begun with nothing. A fork of this process has begun with all of it: it is left out, and counts
    for what the kernel says at its end.
    """
    started = descendants(pid)
    if not started:
        return 0
    ours = _image(pid)
    most: dict[bytes, int] = {}
    for one in started:
        # forks of one program share memory, and count once
        image = _image(one)
        if image != ours:
            most[image] = max(most.get(image, 0), _sizes(f"/proc/{one}/status", (b"VmHWM:",))[0])
    return sum(most.values())


def _image(pid: int) -> bytes:
    """Return what forks have in common and programs have not: where the stack begins, which the kernel draws by lot."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[25]
    except (OSError, IndexError):
        return b""


def _quick(pid: int) -> tuple[int, int, int]:
    """Return (anonymous, anonymous again, shared memory), bytes; zeros if it is gone."""
    found = _sizes(f"/proc/{pid}/status", (b"RssAnon:", b"VmSwap:", b"RssShmem:"))
    return found[0] + found[1], found[0] + found[1], found[2]


def _exact(pid: int) -> tuple[int, int, int]:
    """Return (anonymous, private and written to, share of shared memory), bytes; zeros if it is gone."""
    found = _sizes(f"/proc/{pid}/smaps_rollup", (b"Anonymous:", b"Swap:", b"Private_Dirty:", b"Pss_Shmem:"))
    return found[0] + found[1], found[1] + found[2], found[3]


def _sizes(path: str, names: tuple[bytes, ...]) -> list[int]:
    found = dict.fromkeys(names, 0)
    try:
        with open(path, "rb") as file:
            for line in file:
                words = line.split()
                if words[0] in found:
                    found[words[0]] = int(words[1]) * 1024
    except (OSError, ValueError):  # it is gone, or is becoming another program
        pass
    return list(found.values())


def _cpu(pid: int) -> float:
    """Return the CPU time of a process and of those that it has waited for, seconds."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICK


def blocked_in(pid: int) -> dict[str, str]:
    """Say what a process does that shows no stacks of its own: its state, the kernel function and call it waits in.

    `stack` is there for root only. Signals are masks of the kernel's, in which bit 0 is signal 1.
    """
    found = {}
    for line in _read(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(":")
        if name in ("State", "Threads", "SigBlk", "SigIgn", "SigCgt"):
            found[name] = value.strip()
    for name in ("wchan", "syscall", "stack"):
        text = _read(f"/proc/{pid}/{name}")
        if text and text != "0":
            # of a stack a line for each function, the innermost first
            found[name] = text.replace("[<0>] ", "").replace("\n", " < ")[:_STACK_LIMIT]
    return found


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
