"""The mold: a warm copy of the application from which every attempt's process is forked.

A fresh interpreter, started by the supervisor. It imports the application once and then
forks, watches, kills and reaps. It knows nothing of rows, holds no connection but the
channel to its supervisor, and runs no code of the application after the import. It
stays thin: a fork costs in proportion to what this process has in memory, so nothing
is imported here that a child does not need.

Always true between two turns of the loop:
(1) every `run` that came is answered by exactly one `ended` or `refused`;
(2) this process has one thread at every fork, and no database connection ever;
(3) a child that is not in `children` is a leftover of an ended job, and is killed;
(4) the lease over, no child is alive: a mold whose supervisor is frozen or cut off kills by itself.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from . import channel, child, clock, process
from .application import load, settle
from .children import DUMP, FOREVER, TERM, Child, Children
from .errors import TargetError
from .verdict import judge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds between two looks at how much the busy children have written.
_CUT_EVERY = 0.1
#: What the pipe of a spare takes at once; a longer job gets a child that inherits it.
_PIPE_SIZE = 60_000

_SIGNALS = (signal.SIGCHLD,)
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1)
#: `ended` of an attempt without the body goes over the channel; its texts are cut to this.
_OUTPUT_TAIL = 16 * 1024


def main() -> None:
    """Entry point of the mold's interpreter: `python -c … CHANNEL PARENT`."""
    link, parent = int(sys.argv[1]), int(sys.argv[2])
    process.tie_to(parent)
    # signals are for the supervisor, which decides; a TERM to all must not end jobs through us
    process.ignore_signals(_IGNORED)
    signals = process.Signals(_SIGNALS)
    process.adopt_orphans()
    os.set_inheritable(link, False)
    boot, _ = _first_message(link)
    process.title(f"mold {boot['target']} gen {boot['generation']}")
    try:
        runner = load(boot["target"], boot["folder"], boot["preload"])
        place = settle(runner, boot, keep=link)
    except TargetError as error:
        _send_all(link, channel.pack({"kind": "broken", "error": str(error), **error.facts}))
        process.exit_now(2)
    tasks = {task.name: task.policy() for task in runner.tasks.values()}
    up = {"kind": "up", "tasks": tasks, "code": runner.code, "threads": process.threads()}
    up["shielded"] = len(place.shielded)
    _send_all(link, channel.pack(up))
    mold = Mold(link, signals, place)
    mold.configure(boot)
    mold.run()
    process.exit_now(0)


def _first_message(link: int) -> tuple[dict[str, Any], bytes]:
    inbox = channel.Inbox()
    while True:
        data = os.read(link, 65536)
        if not data:
            process.exit_now(0)
        inbox.feed(data)
        for message in inbox:
            return message


def _send_all(link: int, data: bytes) -> None:
    while data:
        data = data[os.write(link, data) :]


class Mold:
    """Bookkeeping is in `children`, system calls in `process`; this decides and talks."""

    def __init__(self, link: int, signals: process.Signals, place: child.Place) -> None:
        self.link = link
        self.signals = signals
        self.place = place
        place.signals = tuple(int(n) for n in (*_SIGNALS, *_IGNORED))
        self.children = Children()
        self.inbox = channel.Inbox()
        self.outgoing = bytearray()
        self.spares = 0
        self.ending = False
        self.lease_until = FOREVER
        self.cut_at = FOREVER
        self.spare_at = 0.0
        self.spare_deaths = 0
        self.oom_kills, _ = process.oom_kills()
        self.output_limit = 1 << 20
        self.poll = process.Poll()
        self.poll.watch(signals.fileno())
        self.poll.watch(link)
        os.set_blocking(link, False)

    def configure(self, settings: dict[str, Any]) -> None:
        """Take settings from a `boot` or `go` message."""
        self.output_limit = settings.get("output_limit", self.output_limit)
        self.place.result_limit = settings.get("result_limit", self.place.result_limit)
        self.place.progress = settings.get("progress", self.place.progress)

    def run(self) -> None:
        while not (self.ending and not self.children.busy and not self.outgoing):
            ready = self.poll.wait(self.next_due() - clock.monotonic())  # the only line that blocks
            self.signals.take()
            if self.link in ready:
                self.receive()
            self.reap()
            now = clock.monotonic()
            self.enforce_lease(now)
            self.kill_overdue(now)
            self.cut_outputs(now)
            self.send()
            self.fork_spares(now)

    def next_due(self) -> float:
        due = min(self.children.next_due(), self.cut_at)
        if self.lease_until != FOREVER:
            # the lease is counted by the clock that goes on while the host sleeps
            due = min(due, clock.monotonic() + max(0.0, self.lease_until - clock.boottime()))
        if self.wants_spares():
            due = min(due, self.spare_at)
        return due

    # ------------------------------------------------------------------- from the supervisor

    def receive(self) -> None:
        try:
            data = os.read(self.link, 1 << 18)
        except BlockingIOError:
            return
        if not data:  # the supervisor is gone: so are we, and the kernel takes our children along
            process.exit_now(0)
        self.inbox.feed(data)
        for frame in self.inbox.raw():
            message = channel.unpack(frame)
            if message is None:
                raise channel.Garbled("from the supervisor")
            header, _ = message
            if header["kind"] == "run":
                self.start(header, frame)
            else:
                getattr(self, "on_" + header["kind"])(header)

    def on_go(self, header: dict[str, Any]) -> None:
        self.configure(header)
        self.spares = header["spares"]

    def on_lease(self, header: dict[str, Any]) -> None:
        self.lease_until = header["until"]

    def on_kill(self, header: dict[str, Any]) -> None:
        victim = self.children.find(header["id"], header["attempt"])
        if victim is not None:  # else it has ended meanwhile, and its `ended` is on the way
            self.children.condemn(victim, header["outcome"], header["sentence"], clock.monotonic())

    def on_end(self, header: dict[str, Any]) -> None:
        """Take no more jobs; with an outcome given, end the running ones by the ladder as that."""
        self.ending = True
        self.spares = 0
        for spare in self.children.spares:
            process.kill(spare.pid, signal.SIGKILL)
        if header.get("outcome"):
            now = clock.monotonic()
            for victim in self.children.busy.values():
                victim.grace = header["grace"]
                self.children.condemn(victim, header["outcome"], header["sentence"], now)

    # ------------------------------------------------------------------------------ children

    def start(self, job: dict[str, Any], frame: bytes) -> None:
        """Give a job to a spare, or fork a child that has it in memory."""
        if job["task"] not in self.place.runner.tasks:
            known = ", ".join(sorted(self.place.runner.tasks)) or "none"
            sentence = f"no task {job['task']!r} is registered here; known: {known}"
            self.tell({"kind": "ended", "id": job["id"], "attempt": job["attempt"], "outcome": "raised"}
                      | {"error_type": "forkrunner.errors.TaskNotFound", "error_message": sentence, "retry": False})  # fmt: skip
            return
        runner = None
        while self.children.spares and runner is None and len(frame) <= _PIPE_SIZE:
            runner = self.children.spares.pop(0)
            try:
                os.write(runner.pipe, frame)
            except OSError:  # it died; reap() finds it among none of ours and forgets it
                self.release(runner)
                runner = None
        if runner is None:
            try:
                runner = self.fork(frame)
            except OSError as error:
                self.tell({"kind": "refused", "id": job["id"], "attempt": job["attempt"], "error": str(error)})
                return
        now = clock.monotonic()
        self.children.start(runner, job, now, clock.wall())
        self.cut_at = min(self.cut_at, now + _CUT_EVERY)

    def fork(self, frame: bytes | None) -> Child:
        """Fork one child: a spare, or one that runs `frame`.

        Raises:
            OSError: no process, memory or descriptor is to be had.
        """
        opened: list[int] = []
        try:
            output = process.scratch_file("forkrunner-output")
            opened.append(output)
            report = process.scratch_file("forkrunner-report")
            opened.append(report)
            read, write = (-1, -1) if frame is not None else os.pipe()
            opened += [read, write]
            pid = process.fork()
        except OSError:
            for fd in opened:
                if fd >= 0:
                    os.close(fd)
            raise
        if pid == 0:
            child.main(self.place, read, output, report, frame)
        if read >= 0:
            os.close(read)
        return Child(pid, write, output, report)

    def wants_spares(self) -> bool:
        return not self.ending and len(self.children.spares) < self.spares

    def fork_spares(self, now: float) -> None:
        while self.wants_spares() and now >= self.spare_at:
            try:
                self.children.spares.append(self.fork(None))
            except OSError:
                self.spare_at = now + 1.0

    def release(self, dead: Child) -> None:
        for fd in (dead.pipe, dead.output, dead.report):
            if fd >= 0:
                os.close(fd)

    def reap(self) -> None:
        """Collect the dead, kill what they left behind, and tell how each attempt ended."""
        died = 0
        for pid, status, usage in process.reap():
            died += 1
            dead = self.children.died(pid)
            if dead is None:
                continue
            if dead.job is None:
                # spares that die by themselves must not be forked as fast as they die
                self.spare_deaths += 1
                self.spare_at = clock.monotonic() + min(0.01 * 2**self.spare_deaths, 5.0)
            else:
                self.spare_deaths = 0
                self.tell(*self.ended(dead, status, usage))
            self.release(dead)
        if died:
            process.sweep(self.children.pids())

    def ended(self, dead: Child, status: int, usage: Any) -> tuple[dict[str, Any], bytes]:
        """Put together all that is known of an ended attempt."""
        job = dead.job or {}
        before, _, frame = process.contents(dead.report).partition(child.REPORT_MARK)
        shared, _, stacks = before.partition(b"\n")
        report = channel.unpack(frame) if frame else None
        header, body = judge(dead, status, report, self.oom_verdict)
        header |= {
            "kind": "ended",
            "id": job["id"],
            "attempt": job["attempt"],
            "pid": dead.pid,
            "started": dead.started_wall,
            "finished": clock.wall(),
            "cpu_user": usage.ru_utime,
            "cpu_system": usage.ru_stime,
        }
        peak = usage.ru_maxrss * (1024 if process.LINUX else 1)
        header["peak"] = max(0, peak - int(shared)) if shared.isdigit() else None
        if stacks:
            header["stacks"] = stacks[-65536:].decode("utf-8", "replace")
        if os.fstat(dead.output).st_size:
            process.cut(dead.output, self.output_limit)
            header["output_tail"] = process.contents(dead.output)[-_OUTPUT_TAIL:].decode("utf-8", "replace")
        return header, body

    def oom_verdict(self) -> str | None:
        """Look whether the kernel's out-of-memory killer has struck since we last looked."""
        kills, own = process.oom_kills()
        struck, self.oom_kills = kills > self.oom_kills, kills
        if not struck:
            return None
        if own:
            return "killed by the kernel's out-of-memory killer (counted by its control group)"
        return "probably killed by the kernel's out-of-memory killer (counted by the machine, not by process)"

    def kill_overdue(self, now: float) -> None:
        for victim, step in self.children.overdue(now):
            if step == DUMP:
                process.kill(victim.pid, process.DUMP_SIGNAL)
            elif step == TERM:
                # a stopped process sees TERM only when it goes on
                process.kill_group(victim.pid, signal.SIGTERM)
                process.kill_group(victim.pid, signal.SIGCONT)
            else:
                process.kill_tree(victim.pid)

    def enforce_lease(self, now: float) -> None:
        """Kill every child at the end of the lease: the rows may be somebody else's from then on. Keeps (4)."""
        if self.lease_until == FOREVER or clock.boottime() < self.lease_until:
            return
        self.lease_until = FOREVER
        for victim in list(self.children.busy.values()):
            self.children.condemn(victim, "lost", "its supervisor could not renew its lease", now)
            victim.stage, victim.due = TERM, now
        self.kill_overdue(now)

    def cut_outputs(self, now: float) -> None:
        """Keep head and tail of what the children write, so that a flood does not fill the memory."""
        if now < self.cut_at:
            return
        for busy in self.children.busy.values():
            process.cut(busy.output, self.output_limit)
        self.cut_at = now + _CUT_EVERY if self.children.busy else FOREVER

    # --------------------------------------------------------------------- to the supervisor

    def tell(self, header: dict[str, Any], body: bytes = b"") -> None:
        self.outgoing += channel.pack(header, body)

    def send(self) -> None:
        if not self.outgoing:
            return
        try:
            sent = os.write(self.link, self.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                process.exit_now(0)
            raise
        del self.outgoing[:sent]
        self.poll.watch(self.link, write=bool(self.outgoing))
