"""What becomes of an attempt whose task has raised: judged in the child, where the error is, and put into its report."""

from __future__ import annotations

import os

from . import limits
from .current import current
from .describing import text_of
from .errors import LeaveJob, UserError
from .redaction import MARK, scrub, secrets_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Characters of a traceback and of a message in a report; what is longer would not fit into a header.
_TRACEBACK_LIMIT = _MESSAGE_LIMIT = 64 * 1024
_OURS = os.path.dirname(__file__)
_SECRET = MARK.encode()


def judge(error: BaseException, job: dict[str, Any], task: Any) -> dict[str, Any]:
    """Say how an attempt that raised has ended: left, exited, over a limit, or raised."""
    if left := leave_in(error):
        return {
            "kind": "outcome",
            "outcome": left.outcome,
            "error_message": str(left),
            "cursor": left.cursor,
        }
    bounds = job.get("limits")
    breach = spent = None
    if bounds:
        # else this report could not be made, for want of memory or files
        limits.lift()
        breach, spent = limits.reached(error, bounds), limits.cpu_spent(bounds)
    if isinstance(error, limits.CpuSpent):
        return {"kind": "outcome", "outcome": "over_cpu", "error_message": str(error)}
    report: dict[str, Any] = {
        "kind": "outcome",
        "outcome": "raised",
        "error_type": _type_name(type(error)),
        "error_message": _text_of(error),
        "retry": True,
    }
    if isinstance(error, SystemExit):
        report |= {"outcome": "exited", "exit_status": _exit_status(error), "error_type": None}
        report["error_message"] = f"the task called sys.exit({_text_of(error)})"
        breach = spent
    elif isinstance(error, MemoryError) and breach:
        report |= {"outcome": "over_memory", "error_message": breach}
    elif isinstance(error, Exception):
        report["retry"] = task.retryable(error)
        if isinstance(error, UserError):
            # its words are for users, who need not know of what it did not speak of
            report["user"] = True
        else:
            breach = breach or spent
    if breach and report["outcome"] in ("raised", "exited"):
        report["error_message"] += f" ({breach})"
    report["traceback"] = _traceback_of(error)
    if _SECRET in current.arguments:
        # before anybody has it: the row, the log, a browser
        secrets = secrets_in(current.arguments.decode())
        for name in ("error_message", "traceback"):
            report[name] = scrub(report[name], secrets)
    return report


def leave_in(error: BaseException) -> LeaveJob | None:
    """Return how a job left: `error`, or in groups the first of its kind; None if it has not left.

    An asyncio.TaskGroup wraps what its tasks raise. What leaving has cancelled may be in the group too; an error, an exit
    or a Ctrl-C may not: that has happened beside it, and is not to be lost.
    """
    found = None
    # no recursion: a group may be as deep as the stack allows
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions[::-1]
        elif isinstance(one, LeaveJob):
            found = found or one
        elif isinstance(one, (Exception, SystemExit, KeyboardInterrupt)):
            return None
    return found


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _exit_status(error: SystemExit) -> int:
    """Return the status that the interpreter would have ended with."""
    code = error.code
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _text_of(error: BaseException) -> str:
    text = text_of(error)
    left_out = len(text) - _MESSAGE_LIMIT
    return text if left_out <= 0 else f"{text[:_MESSAGE_LIMIT]} [... {left_out} characters left out]"


def _traceback_of(error: BaseException) -> str:
    """Format a traceback from the task's own frame on, 64 KiB at most."""
    import traceback

    try:
        inner = error.__traceback__
        while inner and os.path.dirname(inner.tb_frame.f_code.co_filename) == _OURS:
            inner = inner.tb_next
        text = "".join(traceback.format_exception(type(error), error, inner, limit=-100))
    except BaseException as broken:  # noqa: BLE001 - a broken __repr__, or too deep a chain
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-100))
        text = f"{frames}{_type_name(type(error))}: <not printable: {type(broken).__name__}>\n"
    if len(text) > _TRACEBACK_LIMIT:
        half = _TRACEBACK_LIMIT // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text
