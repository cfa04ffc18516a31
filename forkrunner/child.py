"""One attempt of one job, in a process of its own.

Runs in a process that the mold has forked; never returns into the mold's frames and
ends in `os._exit` whatever happens. It may do what the application likes; of
forkrunner it holds a pipe with its job and a file for its one report. Every line here is
executed once per job, and each object that it touches is in a page that is copied for that. So what can be done in the
mold is done there, and the functions that every job passes stand side by side, in the file and thereby in memory; what
only some of them need is below, and in files of its own.
"""

from __future__ import annotations

import json
import os
import sys
from os import getpid, write

from . import channel, limits, titles
from .current import current
from .descriptors import Reserved
from .hooks import run_before_exit
from .internal import MAIL
from .libc import (
    NO_SIGNALS,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    SETMASK,
    libc,
    prctl,
    set_mask,
)
from .progress import end as end_progress
from .raising import judge

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
    #: What is made before a fork: what the child finds, its output and report files.
    Prepared = tuple[Start, int, int]

#: Stands before and behind the frame in the report file, since faulthandler may write there before it and after it. No
#: stack holds a NUL: so half a frame does not become whole by what is written behind it.
REPORT_MARK = b"\0"
_DONE = json.dumps({"kind": "outcome", "outcome": "done"}).encode()
_DONE_AND_TOLD = json.dumps({"kind": "outcome", "outcome": "done", "progress": True}).encode()
#: The commonest report of all, of a task that said and returned nothing; made before the fork.
DONE_WITH_NULL = REPORT_MARK + channel.pack_raw(_DONE, b"null") + REPORT_MARK
#: Fields of a job's header that ask for something to be done before the task is called.
_WISHES = frozenset({"limits"})
_TITLE_LENGTH = titles.LENGTH

# names of this module: a look-up in another one costs each child two or three copied pages more
_flush_c, _copy = libc.fflush, libc.memcpy
_getppid, _setsid, _close_range = os.getppid, os.setsid, os.closerange


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
        "title_place",
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
        #: Where its title is written to.
        self.title_place = titles.place()
        #: What is to be done before the application's code runs; nothing in most molds.
        self.reconnect: tuple[Callable[[], None], ...] = ()
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


def fork_each(
    place: Place,
    prepared: Sequence[Prepared],
    pids: list[int],
    fork: Callable[[], int],
    dup2: Callable[..., object],
) -> None:
    """Fork a child for each, and add its pid: all that a mold does between two forks of a burst.

    Each object that is touched here is in a page that is shared with the child before, and copied.

    Raises:
        OSError: no process is to be had, for those that are missing in `pids`.
    """
    report_fd, note = place.report_fd, pids.append
    for start, output, report in prepared:
        # here and not in the child, where each call costs copied pages
        dup2(output, 1)
        dup2(output, 2)
        dup2(report, report_fd, False)
        pid = fork()
        if pid == 0:
            main(place, start)
        note(pid)


def main(place: Place, start: Start) -> None:
    """Leave the mold, run one job, report, and end the process: it returns in a rehearsal only.

    Output, report and pipe are at the child's own numbers already: the mold put them there before the fork. What is left
    to be done is done in this order, and in one function, since each costs a copied page or two.
    """
    status = 70
    message, title, bare = start
    try:
        # first, since from here on the parent may die at any time
        if prctl:
            prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
        if _getppid() != place.mold:  # it died before the prctl
            os._exit(127)
        try:
            # a group of its own can be killed as one, and Ctrl-C in a terminal is not for jobs
            _setsid()
        except PermissionError:  # it leads one already: a mold that rehearses
            pass
        # what the job's processes leave behind falls to the job, and after it to the mold
        if prctl:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # the mold blocks all signals and has no handlers: here they are as in any new process
        set_mask(SETMASK, NO_SIGNALS, None)
        # from the mold's descriptors up, before the application's code can run with them
        _close_range(place.base, place.base << 10)
        if place.title_place is not None:
            _copy(place.title_place, title, _TITLE_LENGTH)
        else:
            titles.write(title)
        if place.reconnect:
            # databases: never close (that would say goodbye for the mold), never use
            for step in place.reconnect:
                step()
        if message is None:
            message = _wait_for_a_job(place.job_fd)
            if message is not None:
                _, title, bare = start_of(place, message)
                titles.write(title)
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
        frame = channel.pack(judge(error, job, place.tasks[job["task"]]))
        report = REPORT_MARK + frame + REPORT_MARK
        error.__traceback__ = None
    if bare is None and "limits" in job:
        limits.lift()
    if current.printed or sys.stdout is not current.stdout or sys.stderr is not current.stderr:
        _flush_streams()
    _flush_c(None)
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


def flush_all() -> None:
    """Flush what Python and C hold back of standard output and error; never fails."""
    _flush_streams()
    _flush_c(None)


def _flush_streams() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # the job closed one, or put something else there
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass


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


def start_of(place: Place, message: Message | None) -> Start:
    """Do for a child, in the mold, what can be done before the fork."""
    if message is None:
        return None, titles.to_bytes("spare"), None
    job, arguments = message
    title = titles.to_bytes(f"job {job['id']} {job['task']} attempt {job['attempt']}")
    plain = arguments == b"{}" and not place.after_fork and job.keys().isdisjoint(_WISHES)
    return message, title, place.tasks[job["task"]].bare if plain else None
