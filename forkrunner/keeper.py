"""The keeper: keeps one supervisor running for as long as a web server lives. One per database and host.

    web server ──"I am there"──▶ keeper ──starts, signals, starts again──▶ supervisor ─▶ mold ─▶ jobs

Started by a web process (`lifeline.py`) as a new interpreter that is nobody's child. It imports neither the
application nor the database, so there is little that could end it; when it is killed all below it is, by the kernel,
and the next request or enqueue starts it again.

Always true between two lines of the loop:
(1) it holds the lock, so there is no second one;
(2) there is at most one supervisor that is not stopping;
(3) whoever keeps it alive is known by pid and start time, and watched by a pidfd: a reused pid or an inherited
    descriptor prolongs nothing (webservers.py);
(4) what the supervisor runs, and in which surroundings, is what one living web server wants, its owner. Of the others
    only new code is taken, until the owner has ended: then what the newest of them wants.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from . import clock, identity, process, surroundings, titles
from .changes import Changes
from .events import Log
from .lifeline import VARIABLE, names, send
from .places import place
from .signals import Poll, Signals
from .surroundings import Surroundings
from .verdict import end_of
from .webservers import Servers, Who

if TYPE_CHECKING:
    from .config import Settings

FOREVER = float("inf")
#: Tells a supervisor whose child it is.
PARENT = "FORKRUNNER_KEEPER"
#: A supervisor that died younger is started again after a pause, doubled up to the last one, seconds.
_YOUNG, _FIRST_PAUSE, _LAST_PAUSE = 5.0, 0.5, 30.0
#: The web server is gone for so long before the supervisor is stopped: one without a master may renew its process.
_LINGER = 0.3
#: A master without any process of the application's: it serves something else now, seconds.
_IDLE = 60.0
#: A fork of who has called `start`, whose parent ends sooner, has become a daemon and had no master, seconds.
_DAEMON = 1.0
#: Words that come within this time are one new generation, seconds.
_GATHER = 0.1
#: How long another keeper is spoken to before this one gives up, seconds.
_INSIST = 10.0
#: Where pidfds are not to be had, between two looks, seconds.
_LOOK = 0.5

SIGNALS: dict[int, str] = {
    signal.SIGTERM: "on_stop",
    signal.SIGINT: "on_stop",
    signal.SIGQUIT: "on_stop",
    signal.SIGHUP: "on_reload",
    signal.SIGCHLD: "on_child",
}


class Want:
    """What one web server wants to be run, and in which surroundings."""

    def __init__(self, command: dict[str, Any], form: list[str], variables: Any, output: list[int]) -> None:
        self.command = command
        #: Level and format of the log.
        self.form = form
        #: None: it has not told.
        self.variables: dict[str, str] | None = variables
        #: Its standard output and standard error, ours to close.
        self.output = output

    def close(self) -> None:
        for fd in self.output:
            os.close(fd)


class Keeper:
    def __init__(self, home: str, lock: int) -> None:
        self.home = home
        self._lock = lock
        self._paths = names(home)
        self.log = Log()
        self.poll = Poll()
        self.signals = Signals(SIGNALS)
        self.poll.watch(self.signals.fileno())
        self.servers = Servers(self.poll)
        self.surroundings = Surroundings()
        self.command: dict[str, Any] | None = None
        #: By what tells one start of a web server from another; the newest last.
        self.wants: dict[str, Want] = {}
        #: Whose it is that we have run.
        self.owner = ""
        self.changes: Changes | None = None
        self.generation = 0
        self.supervisor = 0
        #: Supervisors that were told to stop.
        self.leaving: set[int] = set()
        self.started = 0.0
        self.young_deaths = 0
        self.start_at = self.stop_at = self.idle_at = FOREVER
        #: At once: who has called us may be gone already.
        self.renew_at = 0.0
        self.why = ""
        self.finished = self.stopping = False
        self._bind()

    # ------------------------------------------------------------------------------- life

    def run(self, words: bytes) -> None:
        process.adopt_orphans()
        self.hear(words, [], clock.monotonic())
        while not self.finished:
            ready = self.poll.wait(self.next_due() - clock.monotonic())  # the only line that blocks
            now = clock.monotonic()
            for number in self.signals.take():
                getattr(self, SIGNALS[number])(number, now)
            self.look(ready, now)  # before who comes next: is it the only one?
            self.listen(now)
            self.renew(now)
            self.stop(now)
            self.start(now)
            self.end()
            self.log.flush()

    def next_due(self) -> float:
        look = clock.monotonic() + _LOOK if self.servers.blind else FOREVER
        return min(self.start_at, self.renew_at, self.stop_at, self.idle_at, look)

    def _bind(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        path = self._paths[1]
        _unlink(path)
        folder = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.close(folder)
        self.poll.watch(self._socket.fileno())

    def end(self) -> None:
        """End when nothing is left to do; a web server that speaks up at the last moment is still heard."""
        if self.supervisor or self.leaving or (self.servers.serving and not self.stopping):
            return
        _unlink(self._paths[1])
        if self.listen(clock.monotonic()) and not self.stopping:
            self.poll.forget(self._socket.fileno())
            self._socket.close()
            self._bind()
            return
        for path in (self._paths[2], self._paths[0]):  # the lock at the end
            _unlink(path)
        self._socket.close()
        self.finished = True

    def note(self) -> None:
        """Write down how things are, for `forkrunner status`."""
        facts = {
            "pid": os.getpid(),
            "ticks": identity.start_ticks(os.getpid()),
            "generation": self.generation,
            "supervisor": self.supervisor,
            "clients": sorted(who.pid for who in self.servers.clients),
        }
        new = self._paths[2] + ".new"
        try:
            with open(new, "w") as file:
                json.dump(facts, file)
            os.replace(new, self._paths[2])
        except OSError:  # a full disk is no reason to end
            pass

    # ---------------------------------------------------------------------------- signals

    def on_stop(self, number: int, now: float) -> None:
        self.stopping = True
        self.start_at = FOREVER
        if self.supervisor:
            process.kill(self.supervisor, number)
            self.leaving.add(self.supervisor)
            self.supervisor = 0
        else:
            for pid in self.leaving:  # again: at once
                process.kill(pid, number)

    def on_reload(self, number: int, now: float) -> None:
        self.why = "HUP"
        self.renew_at = now

    def on_child(self, number: int, now: float) -> None:
        for pid, status, _ in process.reap():
            self.leaving.discard(pid)
            if pid != self.supervisor:
                continue
            self.supervisor = 0
            young = now - self.started < _YOUNG
            self.young_deaths = self.young_deaths + 1 if young else 0
            pause = 0.0
            if self.young_deaths > 1:
                pause = min(_FIRST_PAUSE * 2 ** (self.young_deaths - 2), _LAST_PAUSE)
            if not self.stopping and self.servers.serving:
                self.start_at = now + pause
                self.log.emit("keeper.again", how=end_of(status), seconds=pause)

    # ------------------------------------------------------------------------ web processes

    def listen(self, now: float) -> bool:
        """Hear all that was said; False if it was nothing."""
        heard = False
        while True:
            try:
                words, output = surroundings.receive(self._socket)
            except OSError:
                return heard
            heard = True
            try:
                self.hear(words, output, now)
            finally:
                for fd in output:
                    os.close(fd)

    def hear(self, words: bytes, output: list[int], now: float) -> None:
        """Take note of a web process, and of whether it is of a new generation; `output`: its own, if it sent that."""
        try:
            hello = json.loads(words)
            who = Who(*hello["process"])
            master = Who(*hello["master"]) if hello["master"] else None
            command, files, server = hello["command"], hello["files"], hello["server"]
            form, daemon_until = hello["log"], now + _DAEMON if hello["forked"] else 0.0
            variables = hello.get("variables")
        except (ValueError, KeyError, TypeError):
            return  # another release's, which will speak to its own keeper when this one is gone
        before = self.servers.server_of(who, master)
        is_new = server not in self.wants
        # uWSGI's master keeps its pid when it becomes itself anew: it is the same web server, of new code
        anew = is_new and before is not None
        # of a pool in which each is a program of its own: FastCGI, Passenger
        pooled = before is None and master is None and self.servers.has_lone()
        if anew and before is not None:
            self.servers.rename(before, server)
            self.wants[server] = self.wants.pop(before)
            self.owner, is_new = server if self.owner == before else self.owner, False
        if not self.servers.add(who, master, server, daemon_until) and not anew:
            return
        self.stop_at = self.idle_at = FOREVER
        if is_new:
            self.wants[server] = Want(command, form, variables, [*output])
            output.clear()
        else:
            self.wants[server].command = command
        if self.changes is None:
            self.changes = Changes(command["folder"], limit=_MOST)
        self.changes.add(files)
        changed = command != self.command or not self.supervisor
        if not self.servers.has(self.owner) or (server == self.owner and changed):
            self.adopt(server, now)
        elif command == self.command and (anew or (is_new and not pooled)):
            self.why, self.renew_at = "a web server has started", min(self.renew_at, now + _GATHER)
        elif command == self.command:  # a worker: of new code, if the files say so
            self.renew_at = min(self.renew_at, now + _GATHER)
        elif is_new:
            assert self.command is not None
            event = "keeper.other" if command["target"] != self.command["target"] else "keeper.differs"
            self.log.emit(event, other=command["target"], target=self.command["target"], pid=who.pid)
        self.note()

    def adopt(self, server: str, now: float) -> None:
        """Run what this web server wants from now on. Keeps (4)."""
        want, before = self.wants[server], self.command
        self.owner, self.command = server, want.command
        moved = want.variables is not None and self.surroundings.differ(want.variables, want.output)
        if moved and want.variables is not None:
            self.surroundings.take(want.variables, want.output)
        if moved or before != want.command:
            self.log = Log(*want.form)
        if not self.supervisor:
            self.young_deaths = 0
            if not self.stopping:
                self.start_at = now
        elif moved or before != want.command:
            # nothing that a new mold could take over
            self.log.emit("keeper.replaced")
            self.leave()
            self.start_at = now
        else:
            self.why, self.renew_at = "a web server has started", min(self.renew_at, now + _GATHER)

    def look(self, ready: set[int], now: float) -> None:
        """See who has ended, and whose turn it is then."""
        if self.servers.bury(ready, now):
            self.forget()
            if self.wants and not self.servers.has(self.owner):
                self.adopt([*self.wants][-1], now)
            self.note()
        if not self.servers.serving and (self.supervisor or self.start_at != FOREVER):
            self.stop_at = min(self.stop_at, now + _LINGER)
        elif not self.servers.clients:
            self.idle_at = min(self.idle_at, now + _IDLE)

    def forget(self) -> None:
        for server in [one for one in self.wants if not self.servers.has(one)]:
            self.wants.pop(server).close()

    def renew(self, now: float) -> None:
        """Tell the supervisor of a new generation of web processes, if it is one."""
        if now < self.renew_at:
            return
        self.renew_at = FOREVER
        changed = self.changes.differ() if self.changes is not None else None
        why, self.why = self.why, ""
        if changed is not None:
            why = f"{os.path.basename(changed)} has changed"
        if not why or not self.supervisor:
            return
        self.generation += 1
        self.log.emit("keeper.renewed", generation=self.generation, why=why)
        process.kill(self.supervisor, signal.SIGHUP)
        self.note()

    def stop(self, now: float) -> None:
        """Stop the supervisor gracefully when no web process is left."""
        if now >= self.idle_at:
            self.idle_at = FOREVER
            self.servers.drop_masters()
            self.forget()
            self.stop_at = now
        if now < self.stop_at:
            return
        self.stop_at = self.start_at = FOREVER
        if self.supervisor:
            self.log.emit("keeper.alone")
            self.leave()

    def leave(self) -> None:
        """Let the supervisor stop: its jobs have the grace period, whatever comes after it."""
        process.kill(self.supervisor, signal.SIGTERM)
        self.leaving.add(self.supervisor)
        self.supervisor = 0

    # -------------------------------------------------------------------------- supervisor

    def start(self, now: float) -> None:
        if now < self.start_at or self.command is None:
            return
        self.start_at = FOREVER
        environment = self.surroundings.variables | self.command["settings"]
        if self.command["path"]:
            environment["PYTHONPATH"] = self.command["path"]
        environment |= {PARENT: str(os.getpid()), "PWD": self.command["folder"]}
        argv = [self.command["python"], "-m", "forkrunner", "run", self.command["target"]]
        try:
            with process.Inside(self.command["folder"]):
                # what we tell it before it has its handlers waits, and does not end it
                self.supervisor = process.spawn(
                    argv, environment, [], hold=[signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]
                )
        except OSError as error:
            self.young_deaths += 1
            self.start_at = now + min(_FIRST_PAUSE * 2**self.young_deaths, _LAST_PAUSE)
            self.log.emit("keeper.again", how=f"it cannot be started: {error}", seconds=self.start_at - now)
            return
        self.started = now
        self.generation += 1
        if self.changes is not None:
            self.changes.differ()
        titles.show(f"keeper {self.command['target']}")
        self.note()


#: Files that are looked at to tell a new generation; an application has fewer, a whole disk has more.
_MOST = 20_000


def at_work(settings: Settings) -> dict[str, Any] | None:
    """Return what the keeper of this host has noted (pid, generation, supervisor, clients); None if there is none."""
    try:
        with open(names(str(place(settings)["runtime"]))[2]) as file:
            facts: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return None
    return facts if Who(facts["pid"], facts["ticks"]).alive else None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _lock(path: str) -> int | None:
    """Lock the file at `path`; None if somebody else has it."""
    import fcntl

    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass  # whoever had it has just ended, and removed it: what we hold is nothing
        except OSError:
            os.close(fd)
            return None
        os.close(fd)


def main() -> None:
    """Become the keeper, or tell the one that there is what we were given."""
    home, words = sys.argv[1], os.environ.pop(VARIABLE, "{}")
    # what the web server has left open to us
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 65536)
    try:
        identity.private_folder(os.path.dirname(home))
        identity.private_folder(home)
        end = clock.monotonic() + _INSIST
        while (lock := _lock(names(home)[0])) is None:
            if send(home, json.loads(words)) or clock.monotonic() >= end:
                return
            Poll().wait(0.02)
    except OSError as error:
        print(f"forkrunner is not started with the web server: {error}", file=sys.stderr)  # noqa: T201
        return
    titles.show("keeper")
    Keeper(home, lock).run(words.encode())
