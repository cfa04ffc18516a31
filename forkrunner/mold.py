"""The mold: a warm copy of the application from which every attempt's process is forked.

A fresh interpreter, started by the supervisor. It imports the application once (boot.py) and then
forks, watches, kills and reaps. It knows nothing of rows, holds no connection but the
channel to its supervisor, and runs no code of the application after the import. It
stays thin: a fork costs in proportion to what this process has in memory, so nothing
is imported here that a child does not need.

Always true between two turns of the loop:
(1) every `run` that came is answered by exactly one `ended`, `refused` or `returned`;
(2) this process has one thread at every fork, and no database connection ever;
(3) a child that is neither in `children` nor the application's own, which it has started when it was imported, is a
    leftover of an ended job, and is killed;
(4) the lease over, no job runs: a mold whose supervisor is frozen or cut off kills by itself.
"""

from __future__ import annotations

import errno
import os

from . import cgroup, channel, child, clock, process, safepoint, scratch, titles
from .account import Account
from .ahead import Queue
from .children import FOREVER, TERM, Child, Children
from .common import SIZE_OF_ALL, Commons
from .current import current
from .filing import Files
from .internal import MAIL
from .ladder import Ladder
from .leftovers import Leftovers
from .memory import shared_memory
from .observer import Observer
from .signals import Deaths, Poll
from .wanted import Wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: A child that was reaped, its wait status, and what it used.
    Death = tuple[Child, int, Any]

#: What the pipe of a spare takes at once; a longer job gets a child that inherits it.
_PIPE_SIZE = 60_000

#: No spare is forked while jobs come faster than this, seconds: a child that is forked with its
#: job in memory costs less than one that has to be told.
_LULL = 0.02


def _storage_at(url: str) -> Any:
    # in a child, which has a file
    from .storage import Storage

    return Storage(url)


class Mold:
    """Bookkeeping is in `children`, system calls in `process`; this decides and talks."""

    LEFTOVERS: type[Leftovers] = Leftovers

    def __init__(self, link: int, place: child.Place, title: str) -> None:
        """Block all signals and move what is the mold's own to where children close it."""
        self.title = title
        self.place = place
        self.link = place.reserved.move(link)
        os.set_blocking(self.link, False)
        #: 1 and 2 are the next child's output: see `fork`.
        self.stderr = os.dup(2)
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.deaths = Deaths()
        self.poll = Poll()
        self.poll.watch(self.deaths.fileno())
        self.poll.watch(self.link)
        self.children = Children()
        self.queue = Queue()
        self.inbox = channel.Inbox()
        self.outgoing = bytearray()
        # one mapping, since each fork copies what the kernel knows of each
        memory = shared_memory(safepoint.BOARD_SIZE + SIZE_OF_ALL)
        self.wanted = Wanted(self.children, place.tasks, memory[: safepoint.BOARD_SIZE])
        self.commons = Commons(memory[safepoint.BOARD_SIZE :])
        self.account = Account()
        self.leftovers = self.LEFTOVERS(self.children)
        self.ladder = Ladder(self.children, self.wanted, self.leftovers)
        self.groups = cgroup.Groups("", 0)
        self.observer = Observer(self.children, self.tell)
        self.ending = False
        self.spares = 0
        self.spare_deaths = 0
        self.spare_at = 0.0
        self.lease_until = FOREVER
        self.lease_over = False

    def run(self) -> None:
        while not (self.ending and not self.children.busy and not self.outgoing):
            ready = self.poll.wait(self.next_due() - clock.monotonic())  # the only line that blocks
            # before anything is started: we may have stood still
            self.enforce_lease(clock.monotonic())
            if self.link in ready:
                self.receive()
            now = clock.monotonic()
            self.reap(now)
            self.start_waiting(now)
            self.observer.look(now)
            self.ladder.climb(now)
            self.send()
            self.fork_a_spare(now)

    def next_due(self) -> float:
        due = min(self.children.next_due(), self.observer.due, self.queue.due(self.children.in_slots))
        if self.lease_until != FOREVER:
            # the lease is counted by the clock that goes on while the host sleeps
            due = min(due, clock.monotonic() + max(0.0, self.lease_until - clock.boottime()))
        if self.wants_spares():
            due = min(due, self.spare_at)
        return due

    # ------------------------------------------------------------------- from the supervisor

    def receive(self) -> None:
        try:
            data = os.read(self.link, 1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:  # as the end, with something of ours unread
            data = b""
        if not data:  # the supervisor is gone: so are we, and the kernel takes our children along
            process.exit_now(0)
        self.inbox.feed(data)
        jobs: list[child.Message] = []
        for message in self.inbox:
            if message[0]["kind"] == "run":
                jobs.append(message)
                continue
            if jobs:  # what comes after a job may be about it
                self.take(jobs, clock.monotonic())
                jobs = []
            getattr(self, "on_" + message[0]["kind"])(message[0])
        if jobs:
            self.take(jobs, clock.monotonic())

    def on_go(self, header: dict[str, Any]) -> None:
        self.spares = header["spares"]
        self.observer.output_limit = header["output_limit"]
        self.place.result_limit = header["result_limit"]
        self.place.exit_timeout = header["exit_timeout"]
        storage, limit = header["storage"]
        self.place.files = Files(lambda: _storage_at(storage), limit)
        self.groups = cgroup.Groups(*header["cgroup"])
        current.place = header["progress"]

    def on_lease(self, header: dict[str, Any]) -> None:
        self.lease_until, self.lease_over = header["until"], False

    def on_kill(self, header: dict[str, Any]) -> None:
        victim = self.children.find(header["id"], header["attempt"])
        if victim is None:
            if waiting := self.queue.find(header["id"], header["attempt"]):
                self.queue.remove(waiting)
                self.ended_before(waiting, outcome=header["outcome"], error_message=header["sentence"])
            # else it has ended meanwhile, and that is on the way
            return
        now = clock.monotonic()
        self.wanted.resume(victim, now)
        if header["outcome"] == "cancelled":
            self.wanted.ask(victim, safepoint.CANCEL)
        # one that passes safe points gets the time to reach the next
        wait = victim.grace if self.wanted.is_at_safe_points(victim) else 0.0
        self.children.condemn(victim, header["outcome"], header["sentence"], now, wait)

    def on_leave(self, header: dict[str, Any]) -> None:
        """Ask what runs, and what will start, to leave at its next safe point."""
        self.give_back(self.queue.clear())
        self.wanted.of_all = max(self.wanted.of_all, safepoint.WANTED[header["wish"]])
        self.wanted.ask_all(clock.monotonic())

    def on_pause(self, header: dict[str, Any]) -> None:
        busy = self.children.find(header["id"], header["attempt"])
        if busy is not None:
            self.wanted.pause(busy, clock.monotonic())
        elif waiting := self.queue.find(header["id"], header["attempt"]):
            waiting["paused"] = True

    def on_resume(self, header: dict[str, Any]) -> None:
        busy = self.children.find(header["id"], header["attempt"])
        if busy is not None:
            self.wanted.resume(busy, clock.monotonic())
        elif waiting := self.queue.find(header["id"], header["attempt"]):
            waiting.pop("paused", None)

    def on_ask(self, header: dict[str, Any]) -> None:
        """Show that this loop turns."""
        self.tell({"kind": "alive"})

    def on_end(self, header: dict[str, Any]) -> None:
        """Take no more jobs; with an outcome given, end the running ones by the ladder as that."""
        self.ending = True
        self.give_back(self.queue.clear())
        titles.show(self.title + " (draining)")
        # not by a signal: jobs that came with this message must not be given to the dying
        for spare in self.children.spares:
            self.leftovers.expect(spare.pid)
            self.release(spare)
        self.children.spares.clear()
        if header.get("outcome"):
            now = clock.monotonic()
            for victim in self.children.busy.values():
                self.wanted.resume(victim, now)
                victim.grace = header["grace"]
                self.children.condemn(victim, header["outcome"], header["sentence"], now)

    # ------------------------------------------------------------------------------ children

    def take(self, jobs: list[child.Message], now: float) -> None:
        """Start jobs; those that were claimed ahead wait until others have ended."""
        if self.lease_over:  # they may be somebody else's
            self.give_back(jobs)
            return
        self.queue.put([job for job in jobs if "ahead" in job[0]], now)
        if at_once := [job for job in jobs if "ahead" not in job[0]]:
            self.start(at_once, now)

    def start_waiting(self, now: float) -> None:
        """Start of those that wait as many as slots have become free, and give back who waits too long. Keeps (1)."""
        if not self.queue:
            return
        self.give_back(self.queue.give_up(now))
        if jobs := self.queue.take(self.children.in_slots, now):
            self.start(jobs, now)
            for job, _ in jobs:
                if "paused" in job:
                    self.on_pause(job)

    def give_back(self, jobs: list[child.Message]) -> None:
        """Give back what has not started."""
        for job, _ in jobs:
            self.tell({"kind": "returned", "id": job["id"], "attempt": job["attempt"]})

    def start(self, jobs: list[child.Message], now: float) -> None:
        """Give jobs to spares, and fork a child that has it in memory for each that is left. Keeps (1)."""
        self.spare_at = max(self.spare_at, now + _LULL)
        self.observer.expect(now)
        left = []
        for job, arguments in jobs:
            if "timeout" in job:
                job["deadline"] = now + job["timeout"]
            if job["task"] not in self.place.tasks:
                self.refuse(job)
                continue
            if "limits" in job and "memory" in job["limits"]:
                group = self.groups.make(job["id"], job["attempt"], job["limits"]["memory"])
                if group:
                    job["limits"]["group"] = group
            if (
                len(arguments) > _PIPE_SIZE
                or "cursor" in job
                or not self.give_to_a_spare(job, arguments, now)
            ):
                left.append((job, arguments))
        # In three passes: after each fork the pages that we write to are copied once, so what
        # we do between two forks is to be little.
        prepared = [one for message in left if (one := self.prepare(message))]
        for ((message, _, _), output, report), pid in zip(prepared, self.fork(prepared), strict=False):
            assert message is not None
            self.children.start(Child(pid, -1, output, report), message[0], now, clock.wall())
        if self.wanted.of_all:
            self.wanted.ask_all(now)

    def give_to_a_spare(self, job: dict[str, Any], arguments: bytes, now: float) -> bool:
        while self.children.spares:
            spare = self.children.spares.pop(0)
            job["common"] = spare.output
            try:
                os.write(spare.pipe, channel.pack(job, arguments))
            except OSError:  # it has died; `reap` will not know it any more
                self.leftovers.expect(spare.pid)
                self.release(spare)
                continue
            self.children.start(spare, job, now, clock.wall())
            return True
        return False

    def refuse(self, job: dict[str, Any]) -> None:
        """End an attempt that cannot begin: another try would find no task of that name either."""
        known = ", ".join(sorted(name for name in self.place.tasks if name != MAIL)) or "none"
        self.ended_before(
            job,
            outcome="raised",
            error_type="forkrunner.errors.TaskNotFound",
            error_message=f"no task {job['task']!r} is registered here; known: {known}",
            retry=False,
        )

    def ended_before(self, job: dict[str, Any], **facts: Any) -> None:
        """Tell how an attempt ended that has had no process."""
        self.tell({"kind": "ended", "id": job["id"], "attempt": job["attempt"], **facts})

    def prepare(self, message: child.Message | None) -> child.Prepared | None:
        """Make all that a child finds when it is forked; without files for it its job is given back, uncounted."""
        output = -1
        try:
            output = scratch.scratch_file(scratch.OUTPUT)
            report = scratch.scratch_file("forkrunner-report")
        except OSError as error:
            self.cannot_start(message, error, output)
            return None
        if message is not None:
            message[0]["common"] = output
        return child.start_of(self.place, message), output, report

    def fork(self, prepared: list[child.Prepared]) -> list[int]:
        """Fork a child for each; fewer pids than asked for if no process is to be had: the others are given back."""
        pids: list[int] = []
        try:
            child.fork_each(self.place, prepared, pids, process.fork, os.dup2)
        except OSError as error:
            for start, output, report in prepared[len(pids) :]:
                self.cannot_start(start[0], error, output, report)
        return pids

    def cannot_start(self, message: child.Message | None, error: OSError, *opened: int) -> None:
        for fd in opened:
            if fd >= 0:
                os.close(fd)
        if message is not None:
            job = message[0]
            if group := job.get("limits", {}).pop("group", None):
                self.groups.close(group)  # it may come again, under the same name
            self.tell({"kind": "refused", "id": job["id"], "attempt": job["attempt"], "error": str(error)})
        self.spare_at = clock.monotonic() + 1.0

    def wants_spares(self) -> bool:
        return not self.ending and len(self.children.spares) < self.spares

    def fork_a_spare(self, now: float) -> None:
        """Fork a child ahead of need: it waits for its job on a pipe."""
        if now < self.spare_at or not self.wants_spares() or (prepared := self.prepare(None)) is None:
            return
        try:
            read, write = os.pipe()
        except OSError as error:
            self.cannot_start(None, error, *prepared[1:])
            return
        os.dup2(read, self.place.job_fd, inheritable=False)
        pids = self.fork([prepared])
        # with a reader left, writing to a dead spare would be no error
        os.dup2(self.null, self.place.job_fd, inheritable=False)
        os.close(read)
        if pids:
            self.children.spares.append(Child(pids[0], write, *prepared[1:]))
        else:
            os.close(write)

    def release(self, dead: Child) -> None:
        for fd in (dead.pipe, dead.output, dead.report):
            if fd >= 0:
                os.close(fd)

    def reap(self, now: float) -> None:
        """Collect the dead and tell how each attempt ended. Keeps (1)."""
        self.deaths.take()
        ended: list[Death] = []
        strangers = False
        for pid, status, usage in process.reap():
            dead = self.children.died(pid)
            if dead is None:
                strangers = True
                left = self.leftovers.reaped(pid, status)
                if left is not None:
                    self.tell({"kind": "left", "path": left})
            elif dead.job is None:
                # spares that die by themselves must not be forked as fast as they die
                self.spare_deaths += 1
                self.spare_at = now + min(0.01 * 2**self.spare_deaths, 5.0)
                self.release(dead)
            else:
                self.spare_deaths = 0
                ended.append((dead, status, usage))
        if ended or strangers:
            self.leftovers.sweep([dead for dead, _, _ in ended])
        for dead, status, usage in ended:
            limits = dead.job.get("limits") if dead.job else None
            if limits:
                self.close_group(dead, limits)
            # also if it was said by a process that the job has forked, of which its report knows nothing
            told = self.commons.forget(dead.output)
            self.outgoing += self.account.ended(dead, status, usage, now, self.observer.output_limit, told)
            self.wanted.forget(dead)
            if limits:
                self.leftovers.remove_folder(limits.get("temporary_folder"))
            self.release(dead)

    def close_group(self, dead: Child, limits: dict[str, Any]) -> None:
        """Remove the control group of an ended job, and keep what the kernel says of its memory."""
        if "group" in limits:
            most, kills = self.groups.close(limits["group"])
            dead.group_killed = kills and most

    def enforce_lease(self, now: float) -> None:
        """Kill what runs at the end of the lease: the rows may be somebody else's from then on. Keeps (4)."""
        if self.lease_until == FOREVER or clock.boottime() < self.lease_until:
            return
        self.lease_until, self.lease_over = FOREVER, True
        self.give_back(self.queue.clear())
        for victim in list(self.children.busy.values()):
            self.children.condemn(victim, "requeued", "its supervisor could not renew its lease", now)
            victim.stage, victim.due = TERM, now
        self.ladder.climb(now)

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
