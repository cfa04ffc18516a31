"""One attempt of one job, in a process of its own.

Runs in a process that the mold has forked; never returns into the mold's frames and
ends in `os._exit` whatever happens. It may do what the application likes; of
forkrunner it holds a pipe with its job and a file for its one report. Every line here is
executed once per job in freshly copied pages, so what can be done in the mold is done there.
"""

from __future__ import annotations

import json
import os
import sys

from . import channel, current, limits, process
from .errors import LeaveJob
from .progress import end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from .runner import Runner

    Message = tuple[dict[str, Any], bytes]

#: Separates what faulthandler wrote into the report file from the frame: no stack holds a NUL.
REPORT_MARK = b"\0"
_DONE = json.dumps({"kind": "outcome", "outcome": "done"}).encode()
#: The commonest report of all, of a task that said and returned nothing; made before the fork.
DONE_WITH_NULL = REPORT_MARK + channel.pack_raw(_DONE, b"null")
#: Characters of a traceback and of a message in a report; what is longer would not fit into a header.
_TRACEBACK_LIMIT = _MESSAGE_LIMIT = 64 * 1024
_HIGHEST = 1 << 20
_OURS = os.path.dirname(__file__)


class Place:
    """What every child of a mold needs to know; made once, before the forks."""

    def __init__(self, runner: Runner, reserved: process.Reserved) -> None:
        self.tasks: Mapping[str, Any] = runner.tasks
        self.mold = os.getpid()
        self.reserved = reserved
        #: From this number on descriptors are the mold's.
        self.base = reserved.base
        #: Fixed numbers of the child's own descriptors: faulthandler was pointed at the second.
        self.job_fd, self.report_fd = reserved.fixed
        #: What is to be done before the application's code runs; empty in most molds.
        self.reconnect: list[Callable[[], None]] = []
        self.result_limit = 1 << 20


def main(place: Place, message: Message | None) -> NoReturn:
    """Leave the mold, run one job, report, and end the process.

    `message` is the job itself; None makes a spare, which waits for it on its pipe.
    """
    status = 70
    try:
        _leave_the_mold(place)
        if message is None:
            process.title("spare")
            message = _wait_for_a_job(place.job_fd)
        if message is not None:
            _attempt(place, *message)
        status = 0
    except BaseException:  # noqa: BLE001 - the last resort: no exception may unwind into the mold's frames
        try:
            sys.excepthook(*sys.exc_info())
            process.flush_all()
        except BaseException:  # noqa: BLE001 - as above
            pass
    finally:
        os._exit(status)


def _leave_the_mold(place: Place) -> None:
    """Give up what is the mold's.

    Output, report and pipe are at the child's own numbers already: the mold put them
    there before the fork, where it costs no copied pages.
    """
    process.leave(place.mold)
    # before the application's code can run with the mold's descriptors
    os.closerange(place.base, _HIGHEST)
    # databases: never close (that would say goodbye for the mold), never use
    for step in place.reconnect:
        step()


def _wait_for_a_job(fd: int) -> Message | None:
    data = os.read(fd, 65536)
    inbox = None
    while data:
        message = channel.unpack(data) if inbox is None else None
        if message is not None:
            return message  # nearly always: the frame came in one piece
        inbox = inbox or channel.Inbox()
        inbox.feed(data)
        for message in inbox:
            return message
        data = os.read(fd, 65536)
    return None  # the mold has no use for this spare


def _attempt(place: Place, job: dict[str, Any], arguments: bytes) -> None:
    """Load the arguments, call the task, judge how it went, report."""
    process.title(f"job {job['id']} {job['task']} attempt {job['attempt']}")
    me = os.getpid()
    task = place.tasks[job["task"]]
    current.job, current.arguments = job, arguments
    frame = DONE_WITH_NULL
    try:
        if "limits" in job:
            limits.impose(job["limits"], place.base)
        args, kwargs = task.load(arguments)
        value = task.run(*args, **kwargs)
        if value is not None or current.told:
            frame = REPORT_MARK + channel.pack_raw(
                _DONE, task.dump_result(value, place.result_limit).encode()
            )
    except BaseException as error:  # noqa: BLE001 - how an attempt ends is judged here, and nowhere else
        frame = REPORT_MARK + channel.pack(_judge(error, job, task))
        error.__traceback__ = None
    if "limits" in job:
        limits.lift()
    process.flush_all()
    if os.getpid() != me:
        # the job forked and this is its child coming back through the task: it is not the attempt
        process.exit_now(0)
    if current.told:
        end()
    while frame:
        frame = frame[os.write(place.report_fd, frame) :]


def rehearse(place: Place) -> None:
    """Do in the mold, many times, what each child does once; on a stage where it has no effect.

    The interpreter fills caches in the code that it runs often: filled before the fork
    they need not be filled, in pages copied for that, by each child.
    """
    stage = object.__new__(Place)
    stage.__dict__ = place.__dict__ | {
        "mold": os.getppid(),
        "base": _HIGHEST,
        "reconnect": [],
        "tasks": {"rehearsal": _Nothing()},
        "report_fd": os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC),
    }
    for _ in range(30):
        _leave_the_mold(stage)
        _attempt(stage, {"id": "", "task": "rehearsal", "attempt": 0}, b"{}")
    os.close(stage.report_fd)
    current.job = None


class _Nothing:
    """A task that does nothing."""

    def load(self, text: bytes) -> tuple[tuple[()], dict[str, Any]]:
        return (), {}

    def run(self) -> None:
        pass


def _judge(error: BaseException, job: dict[str, Any], task: Any) -> dict[str, Any]:
    """Say how an attempt ended that raised: one line per way."""
    if isinstance(error, LeaveJob):
        return {
            "kind": "outcome",
            "outcome": error.outcome,
            "error_message": str(error),
            "cursor": error.cursor,
        }
    bounds = job.get("limits")
    breach = None
    if bounds:
        # else this report could not be made, for want of memory or files
        limits.lift()
        breach = limits.reached(error, bounds)
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
    elif isinstance(error, MemoryError) and breach:
        report |= {"outcome": "over_memory", "error_message": breach}
    elif isinstance(error, Exception):
        report["retry"] = task.retryable(error)
        if breach:
            report["error_message"] += f" ({breach})"
    report["traceback"] = _traceback_of(error)
    return report


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _exit_status(error: SystemExit) -> int:
    """Return the status that the interpreter would have ended with."""
    code = error.code
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
        left_out = len(text) - _MESSAGE_LIMIT
        return text if left_out <= 0 else f"{text[:_MESSAGE_LIMIT]} [... {left_out} characters left out]"
    except BaseException as broken:  # noqa: BLE001 - the application's __str__ may do anything
        return f"<no message: {type(error).__name__}.__str__ raised {type(broken).__name__}>"


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
