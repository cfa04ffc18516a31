"""`forkrunner with -- COMMAND`: a supervisor and a command beside each other, as the only process of a container has them.

    with ─┬─▶ COMMAND        in our group, with our terminal; gets TERM when we die
          └─▶ supervisor     in a session of its own; dies with us

Whichever ends first stops the other. All that falls to us is reaped, and killed at the end: nothing is left.
"""

from __future__ import annotations

import os
import signal
import sys

from . import clock, descriptors, process
from .keeper import PARENT
from .signals import Poll, Signals

FOREVER = float("inf")
#: Signal → method. What is passed on to the command alone is what gunicorn and its like understand.
SIGNALS: dict[int, str] = {
    signal.SIGTERM: "on_stop",
    signal.SIGINT: "on_stop",
    signal.SIGQUIT: "on_stop",
    signal.SIGHUP: "on_reload",
    signal.SIGUSR1: "on_other",
    signal.SIGUSR2: "on_other",
    signal.SIGWINCH: "on_other",
    signal.SIGTTIN: "on_other",
    signal.SIGTTOU: "on_other",
    signal.SIGCHLD: "on_child",
}


class Alongside:
    def __init__(self, app: str, argv: list[str], grace_period: float) -> None:
        self._app = app
        self._argv = argv
        self._grace_period = grace_period
        self.command = self.supervisor = 0
        #: What this process ends with, when it is known.
        self.status: int | None = None
        #: A signal has asked for the end.
        self.told = False
        #: So has the supervisor been: once more would kill its jobs.
        self.leaving = False
        self.terminal = descriptors.has_terminal()
        #: When the command is killed, for it does not end.
        self.kill_at = FOREVER

    def run(self) -> int:
        """Run both to their end and return the exit status.

        Raises:
            OSError: no process can be made.
        """
        self.signals = Signals(SIGNALS)
        process.adopt_orphans()
        poll = Poll()
        poll.watch(self.signals.fileno())
        environment = dict(os.environ)
        self.command = process.spawn_beside(self._argv, environment)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"):
            environment.pop(name, None)  # of the command
        argv = [sys.executable, "-m", "forkrunner", "run", self._app]
        hold = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]
        self.supervisor = process.spawn(argv, environment | {PARENT: str(os.getpid())}, [], hold=hold)
        while self.command or self.supervisor:
            poll.wait(self.kill_at - clock.monotonic())  # the only line that blocks
            for number in self.signals.take():
                getattr(self, SIGNALS[number])(number)
            if clock.monotonic() >= self.kill_at:
                self.kill_at = FOREVER
                process.kill_tree(self.command)
        process.reap_all()
        self.signals.close()
        return self.status or 0

    def on_stop(self, number: int) -> None:
        self.told = True
        # Ctrl-C in a terminal has reached the command by itself
        if self.command and not (number != signal.SIGTERM and descriptors.has_terminal()):
            process.kill(self.command, number)
        # asked for again it kills, and that is for whoever has sent us two
        self._stop_supervisor()
        self._limit()

    def on_reload(self, number: int) -> None:
        self.on_other(number)
        if self.terminal and not descriptors.has_terminal():
            # it was closed, and that is no wish for new code
            self.told = True
            self._stop_supervisor()
            self._limit()
        elif self.supervisor:
            process.kill(self.supervisor, number)

    def on_other(self, number: int) -> None:
        if self.command:
            process.kill(self.command, number)

    def on_child(self, number: int) -> None:
        for pid, status, _ in process.reap():
            if pid not in (self.command, self.supervisor):
                continue  # an orphan
            is_command = pid == self.command
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code  # as shells have it
            # a signal that ends both: whoever is faster says nothing by that
            if self.status is None or (self.told and is_command):
                self.status = code
            if is_command:
                self.command, self.kill_at = 0, FOREVER
                if not self.leaving:
                    self._stop_supervisor()
            else:
                self.supervisor = 0
                if self.command:
                    process.kill(self.command, signal.SIGTERM)
                    self._limit()

    def _stop_supervisor(self) -> None:
        self.leaving = True
        if self.supervisor:
            process.kill(self.supervisor, signal.SIGTERM)

    def _limit(self) -> None:
        if self.command and self.kill_at == FOREVER:
            self.kill_at = clock.monotonic() + self._grace_period
