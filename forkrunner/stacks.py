"""The stacks of a process, by faulthandler: on demand, at the end of its CPU time, when it crashes or does not end."""

from __future__ import annotations

import signal

from .libc import LINUX
from .process import kill

#: Asks a child for the stacks of its threads; a real-time signal that nobody else uses.
DUMP_SIGNAL = signal.SIGRTMIN + 5 if LINUX else signal.SIGINFO  # type: ignore[attr-defined,unused-ignore]


def report_stacks_to(fd: int) -> None:
    """Let faulthandler write the stacks to `fd`: on DUMP_SIGNAL, at the end of its CPU time, and when it crashes.

    Set once in the mold; a child puts its own file at that number.
    """
    import faulthandler

    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, file=fd, all_threads=True)
    # then as without it: the process ends
    faulthandler.register(signal.SIGXCPU, file=fd, all_threads=True, chain=True)


def ask_for_stacks(pid: int) -> None:
    """Let a process write its stacks where `report_stacks_to` said, if it has said so: else the signal would end it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            caught = next(line for line in file if line.startswith(b"SigCgt:"))
    except (OSError, StopIteration):
        return
    if int(caught.split()[1], 16) >> (DUMP_SIGNAL - 1) & 1:
        kill(pid, DUMP_SIGNAL)


def end_after(seconds: float) -> None:
    """End this process then, with status 1 and the stacks of all threads on standard error, whatever it does.

    By a thread in C, which needs neither the interpreter nor a signal.
    """
    import faulthandler

    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    except RuntimeError:  # no thread is to be had: then its time limit ends it
        pass


def end_never() -> None:
    """Take back what `end_after` has said."""
    import faulthandler

    faulthandler.cancel_dump_traceback_later()
