"""How an attempt ended, from how its process ended: one branch per way, no system call."""

from __future__ import annotations

import os
import signal

from .children import DUMP, Child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Message = tuple[dict[str, Any], bytes]


def judge(
    dead: Child,
    status: int,
    report: Message | None,
    oom_verdict: Callable[[], str | None],
) -> Message:
    """Decide the outcome of an attempt from how its process ended: one branch per way."""
    exit_status = os.waitstatus_to_exitcode(status)
    facts: dict[str, Any] = {}
    if exit_status >= 0:
        facts["exit_status"] = exit_status
    else:
        facts["signal"] = _signal_name(-exit_status)
    if dead.why is not None and dead.stage >= DUMP:
        # also if it reported meanwhile: the dump's signal ends blocking calls early
        outcome, sentence = dead.why
        return {"outcome": outcome, "error_message": sentence, **facts}, b""
    if report is not None:
        header, body = report
        if dead.why is not None and header["outcome"] == dead.why[0]:
            # it left at a safe point, and need not know why it was to
            header["error_message"] = dead.why[1]
        return {**facts, **header}, body
    if exit_status >= 0:
        sentence = f"the process ended itself with exit status {exit_status} before the task returned"
        return {"outcome": "exited", "error_message": sentence, **facts}, b""
    if -exit_status == signal.SIGKILL:
        verdict = oom_verdict()
        if verdict:
            return {"outcome": "out_of_memory", "error_message": verdict, **facts}, b""
        sentence = "killed by SIGKILL from outside forkrunner (no trace of the kernel's out-of-memory killer)"
    elif -exit_status == signal.SIGXCPU:
        return {"outcome": "over_cpu", "error_message": "used up its CPU time (SIGXCPU)", **facts}, b""
    else:
        core = " and dumped core" if os.WCOREDUMP(status) else ""
        sentence = f"the process was ended by {facts['signal']}{core}"
    return {"outcome": "crashed", "error_message": sentence, **facts}, b""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
