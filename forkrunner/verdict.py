"""How an attempt ended, from how its process ended: one branch per way, no system call."""

from __future__ import annotations

import os
import signal

from . import units
from .children import DUMP, Child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Message = tuple[dict[str, Any], bytes]

#: As `child.main` ends a process that could not report.
UNREPORTED = 70


def judge(
    dead: Child,
    status: int,
    report: Message | None,
    who_killed: Callable[[int], tuple[str, str]],
) -> Message:
    """Decide the outcome of an attempt from how its process ended: one branch per way."""
    exit_status = os.waitstatus_to_exitcode(status)
    facts: dict[str, Any] = {}
    if exit_status >= 0:
        facts["exit_status"] = exit_status
    else:
        facts["signal"] = _signal_name(-exit_status)
    if dead.why is not None and dead.stage >= DUMP and not dead.answered:
        # also if it reported meanwhile: the dump's signal ends blocking calls early. What was cut short is the hooks of
        # one that had reported before
        outcome, sentence = dead.why
        if outcome == "timed_out":
            sentence += f" (ended after {dead.ran - dead.paused_for:.2f} s)"
        return {"outcome": outcome, "error_message": sentence, **facts}, b""
    if report is not None:
        header, body = report
        if dead.why is not None and header["outcome"] == dead.why[0] and "cursor" in header:
            # it left at a safe point, and need not know why it was to
            header["error_message"] = dead.why[1]
        return {**facts, **header}, body
    if exit_status >= 0:
        sentence = f"the process ended itself with exit status {exit_status} before the task returned"
        if exit_status == UNREPORTED:
            sentence += (
                "; forkrunner itself ends it so when its report's file was closed, as by os.closerange"
            )
        return {"outcome": "exited", "error_message": sentence, **facts}, b""
    number, outcome = -exit_status, "crashed"
    bounds = (dead.job or {}).get("limits", {})
    if number == signal.SIGKILL and dead.group_killed:
        outcome = "over_memory"
        had = f"its control group had {units.show_bytes(dead.group_killed)} and was refused more"
        sentence = units.breach("memory", bounds, had)
    elif number == signal.SIGKILL:
        outcome, sentence = who_killed(dead.pid)
    # the kernel's limits are whole seconds by its own clock: without that much, somebody else has sent the signal
    elif number == signal.SIGXCPU and ("cpu_seconds" in bounds or dead.cpu > 0.5):
        outcome = "over_cpu"
        if "cpu_seconds" in bounds:
            sentence = units.breach("cpu_seconds", bounds, f"it used {dead.cpu:.2f} s of CPU time (SIGXCPU)")
        else:
            sentence = f"it used {dead.cpu:.2f} s of CPU time, the limit that the supervisor was started with (SIGXCPU)"
    elif number == signal.SIGXFSZ and "file_size" in bounds:
        sentence = units.breach("file_size", bounds, "a file was to grow beyond it (SIGXFSZ)")
    else:
        core = " and dumped core" if os.WCOREDUMP(status) else ""
        sentence = f"the process was ended by {facts['signal']}{core}"
        if "memory" in bounds and dead.peak > 0.8 * bounds["memory"]:
            # C code that gets no memory crashes as often as not
            sentence += "; " + units.breach(
                "memory", bounds, f"it had {units.show_bytes(dead.peak)} of its own"
            )
    return {"outcome": outcome, "error_message": sentence, **facts}, b""


def end_of(status: int) -> str:
    """Word how a process ended."""
    exit_status = os.waitstatus_to_exitcode(status)
    return f"exit status {exit_status}" if exit_status >= 0 else _signal_name(-exit_status)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
