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
from os import getpid, write

from . import channel, limits
from .current import current
from .descriptors import Reserved
from .errors import LeaveJob, UserError
from .hooks import run_before_exit
from .internal import MAIL
from .leaving import flush_all, leave, show_title, title_bytes
from .progress import end as end_progress
from .redaction import MARK, scrub, secrets_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from .filing import Files
    from .runner import Runner

    Message = tuple[dict[str, Any], bytes]
    #: What a child finds when it is forked: its job with the arguments (None in a spare, which waits for them on its
    #: pipe), its title, and the function itself if calling that is all that the job asks for.
    Start = tuple[Message | None, bytes, Callable[[], Any] | None]

#: Stands before and behind the frame in the report file, since faulthandler may write there before it and after it. No
#: stack holds a NUL: so half a frame does not become whole by what is written behind it.
REPORT_MARK = b"\0"
_DONE = json.dumps({"kind": "outcome", "outcome": "done"}).encode()
_DONE_AND_TOLD = json.dumps({"kind": "outcome", "outcome": "done", "progress": True}).encode()
#: The commonest report of all, of a task that said and returned nothing; made before the fork.
DONE_WITH_NULL = REPORT_MARK + channel.pack_raw(_DONE, b"null") + REPORT_MARK
#: Characters of a traceback and of a message in a report; what is longer would not fit into a header.
_TRACEBACK_LIMIT = _MESSAGE_LIMIT = 64 * 1024
#: Fields of a job's header that ask for something to be done before the task is called.
_WISHES = frozenset({"limits"})
_OURS = os.path.dirname(__file__)
_SECRET = MARK.encode()


class Place:
    """What every child of a mold needs to know; made once, before the forks."""

    __slots__ = (
        "after_fork",
        "base",
        "before_exit",
        "exit",
        "exit_timeout",
        "files",
        "job_fd",
        "mold",
        "reconnect",
        "report_fd",
        "reserved",
        "result_limit",
        "tasks",
        "unsafe",
    )

    def __init__(self, runner: Runner, reserved: Reserved) -> None:
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
        #: Where files come from and go to; None in a rehearsal only.
        self.files: Files | None = None
        self.after_fork = tuple(runner.hooks.after_fork)
        self.before_exit = tuple(runner.hooks.before_exit)
        #: For all of them together, seconds.
        self.exit_timeout = 5.0
        #: What the application has made that jobs must not share, to be told once.
        self.unsafe: Sequence[Any] = ()
        #: How a child ends, whatever happens; it returns in a rehearsal only.
        self.exit: Callable[[int], Any] = os._exit


def main(place: Place, start: Start) -> None:
    """Leave the mold, run one job, report, and end the process: it returns in a rehearsal only.

    Output, report and pipe are at the child's own numbers already: the mold put them there before the fork.
    """
    status = 70
    message, title, bare = start
    try:
        leave(place.mold, place.base, title)
        if place.reconnect:
            # databases: never close (that would say goodbye for the mold), never use
            for step in place.reconnect:
                step()
        if message is None:
            message = _wait_for_a_job(place.job_fd)
            if message is not None:
                _, title, bare = start_of(place, message)
                show_title(title)
        if message is not None:
            attempt(place, message[0], message[1], bare)
        status = 0
    except BaseException:  # noqa: BLE001 - the last resort: no exception may unwind into the mold's frames
        try:
            sys.excepthook(*sys.exc_info())
            flush_all()
        except BaseException:  # noqa: BLE001 - as above
            pass
    finally:
        end = place.exit
        end(status)


def start_of(place: Place, message: Message | None) -> Start:
    """Do for a child, in the mold, what can be done before the fork."""
    if message is None:
        return None, title_bytes("spare"), None
    job, arguments = message
    title = title_bytes(f"job {job['id']} {job['task']} attempt {job['attempt']}")
    plain = arguments == b"{}" and not place.after_fork and job.keys().isdisjoint(_WISHES)
    return message, title, place.tasks[job["task"]].bare if plain else None


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


def attempt(place: Place, job: dict[str, Any], arguments: bytes, bare: Callable[[], Any] | None) -> None:
    """Load the arguments, call the task, judge how it went, report."""
    me = getpid()
    current.job, current.arguments = job, arguments
    report = DONE_WITH_NULL
    try:
        value = _call(place, place.tasks[job["task"]], job, arguments) if bare is None else bare()
        if value is not None or current.told:
            result = place.tasks[job["task"]].dump_result(value, place.result_limit, place.files)
            # other words than DONE_WITH_NULL, by which the mold knows that no progress is to be cleared away
            header = _DONE_AND_TOLD if current.told else _DONE
            if place.files is not None and place.files.rows:
                header = _with_files(header, place.files.rows)
            report = REPORT_MARK + channel.pack_raw(header, result.encode()) + REPORT_MARK
        if current.work is not None:
            current.work.commit()
    except BaseException as error:  # noqa: BLE001 - how an attempt ends is judged here, and nowhere else
        frame = channel.pack(_judge(error, job, place.tasks[job["task"]]))
        report = REPORT_MARK + frame + REPORT_MARK
        error.__traceback__ = None
    if bare is None and "limits" in job:
        limits.lift()
    flush_all()
    if getpid() != me:
        # the job forked and this is its child coming back through the task: it is not the attempt
        os._exit(0)
    # of a pool the job itself may have said nothing, and who leaves it by its `with` kills it in the middle of a word
    if current.told or "multiprocessing.util" in sys.modules:
        end_progress()
    if report is DONE_WITH_NULL:
        write(place.report_fd, report)
    else:
        while report:
            report = report[write(place.report_fd, report) :]
    if current.work is not None:
        # after the report, which must not wait for a database; before the hooks, which may want the same rows
        current.work.drop()
    if place.before_exit and job["task"] != MAIL:
        run_before_exit(place.before_exit, place.exit_timeout)
        flush_all()


def _call(place: Place, task: Any, job: dict[str, Any], arguments: bytes) -> Any:
    if "limits" in job:
        limits.impose(job["limits"], place.base)
    # not while it is a spare: so an error is that of a job, and its time limit holds
    # the application's hooks are not for what is ours: its database may be away when there is mail about that
    for hook in place.after_fork if job["task"] != MAIL else ():
        hook()
    if task.takes_files:
        assert place.files is not None
        # its mold removes it, with what is in it
        place.files.folder = job["limits"]["temporary_folder"]
        args, kwargs = task.load(arguments, place.files)
        place.files.begin("result")
    else:
        args, kwargs = task.load(arguments)
    value = task.run(*args, **kwargs)
    if "limits" in job and (spent := limits.cpu_spent(job["limits"])):
        # here, since what it did in its session is not to be committed
        raise limits.CpuSpent(spent)
    return value


def _with_files(header: bytes, rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(json.loads(header) | {"files": rows}).encode()


def rehearse(place: Place) -> None:
    """Do in the mold, many times, what each child does once; on a stage where it has no effect.

    The interpreter fills caches in the code that it runs often: filled before the fork
    they need not be filled, in pages copied for that, by each child.
    """
    stage = object.__new__(Place)
    for name in Place.__slots__:
        setattr(stage, name, getattr(place, name))
    stage.mold, stage.base, stage.reconnect = os.getppid(), 1 << 20, []
    stage.report_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    stage.after_fork = stage.before_exit = ()
    stage.exit = _no_exit
    start = ({"id": "", "task": "rehearsal", "attempt": 0}, b"{}"), title_bytes("rehearsal"), _nothing
    for _ in range(30):
        main(stage, start)
    os.close(stage.report_fd)
    current.job = None


def _no_exit(status: int) -> None:
    if status:
        raise AssertionError("the rehearsal failed")


def _nothing() -> None:
    """Be a task."""


def _judge(error: BaseException, job: dict[str, Any], task: Any) -> dict[str, Any]:
    """Say how an attempt ended that raised: one line per way."""
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
