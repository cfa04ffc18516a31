"""What is told of an ended attempt: its outcome, its bill and its output, put together in the mold as one frame."""

from __future__ import annotations

import json
import os

from . import channel, child, clock, process, scratch
from .libc import LINUX
from .oom import OomKiller
from .verdict import end_of, judge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .children import Child

#: Bytes of a report that are read at once; few are longer.
_REPORT_SIZE = 64 * 1024
#: What is told of every ended attempt, formatted by hand: for most it is all, and this process's
#: pages are copied too when it works between two forks.
_FACTS = (
    '{"id":"%s","attempt":%d,"pid":%d,"started":%r,"finished":%r,"ran":%r,"cpu_user":%r,"cpu_system":%r,'
    '"peak":%d,"minor_faults":%d,"major_faults":%d,"voluntary":%d,"involuntary":%d,"leftover":%d,'
)
_DONE = '"kind":"ended","outcome":"done","exit_status":0,"progress":false}'


class Account:
    """Knows what is needed beside the attempt itself to tell how it ended."""

    def __init__(self) -> None:
        #: Pages that a child shares with us are not its own.
        self._shared = process.shared_at_fork()
        self._oom_killer = OomKiller()

    def ended(self, dead: Child, status: int, usage: Any, now: float, output_limit: int, told: bool) -> bytes:
        """Put together all that is known of an ended attempt, as a frame for the supervisor.

        `output_limit`: bytes of its output that are told beside the tail. `told`: there is progress of it.
        """
        job = dead.job
        assert job is not None
        dead.ran = now - dead.started
        dead.cpu = usage.ru_utime + usage.ru_stime
        # the greatest of the job and what it has waited for
        own = usage.ru_maxrss * (1024 if LINUX else 1) - self._shared
        dead.peak = max(0, own, dead.peak)
        words, body = _DONE, b"null"
        data = os.pread(dead.report, _REPORT_SIZE, 0)
        written = scratch.size(dead.output)
        if data != child.DONE_WITH_NULL or written or status or dead.why or told:
            if len(data) == _REPORT_SIZE:
                data = scratch.contents(dead.report)
            stacks, report, end = read_report(data)
            dead.answered = report is not None and end <= dead.said
            header, body = judge(dead, status, report, self._oom_killer.judge)
            header["kind"] = "ended"
            if stacks:
                header["stacks"] = stacks[-_REPORT_SIZE:].decode("utf-8", "replace")
            header["output_bytes"] = written
            if written:
                tail, whole = scratch.kept(dead.output, output_limit, dead.cut)
                header["output_tail"] = tail.decode("utf-8", "replace")
                if whole:
                    # behind the result; it gets a row of its own
                    header["output"] = len(whole)
                    body += whole
            # a hook was, or has ended the process
            cut_short = dead.answered and status != 0
            if dead.steps is not None or cut_short:
                how = str(header.get("signal") or f"exit status {header['exit_status']}")
                if cut_short:
                    # not the status that sys.exit was given in the task
                    how = f"{end_of(status)}, when its outcome was on record"
                dead.note("ended", now, detail=how)
                header["steps"] = dead.steps
            words = json.dumps(header, separators=(",", ":"))[1:]
        facts = _FACTS % (
            job["id"],
            job["attempt"],
            dead.pid,
            dead.started_wall,
            clock.wall(),
            dead.ran,
            usage.ru_utime,
            usage.ru_stime,
            dead.peak,
            usage.ru_minflt,
            usage.ru_majflt,
            usage.ru_nvcsw,
            usage.ru_nivcsw,
            dead.leftover,
        )
        return channel.pack_raw((facts + words).encode(), body)


def read_report(data: bytes) -> tuple[bytes, child.Message | None, int]:
    """Read a report file: the stacks in it, what the child has reported, and where that ends.

    No report if the child did not finish it, or a job has written into it; then only what stands before it is shown.
    """
    mark = child.REPORT_MARK
    stacks, _, rest = data.partition(mark)
    try:
        length = channel.length(rest)
        if length and rest[length : length + 1] == mark:
            report = channel.unpack(rest[:length])
            return stacks + rest[length + 1 :], report, len(stacks) + length + 2
    except channel.Garbled:
        pass
    return stacks, None, 0
