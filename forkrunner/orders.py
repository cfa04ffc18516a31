"""What operators order by signals, and how far a stop has got.

Used by the supervisor's loop only: `take` calls what the table names for each signal that came, `proceed` takes a
stop further. Handlers of signals queue and wake, nothing else (`Signals`).
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from . import clock, descriptors, process
from .job import Outcome
from .molds import FOREVER
from .signals import Signals
from .verdict import end_of

if TYPE_CHECKING:
    from .supervisor import Supervisor

#: Signal → (method, what operators are told). Installs, dispatches, is shown by `run --help`
#: and in the README. CAUTION: contrib/'s unit files rely on TERM and QUIT.
SIGNALS: dict[int, tuple[str, str]] = {
    signal.SIGTERM: (
        "on_stop",
        "stop: claim no more, wait up to `grace_period` for the running jobs; again: kill",
    ),
    signal.SIGINT: ("on_kill", "kill: end the running jobs now; each counts as a crash and runs again"),
    signal.SIGQUIT: ("on_give_back", "kill and give back: as kill, but the attempts count as nothing"),
    signal.SIGTSTP: ("on_quiet", "quiet: claim no more, keep running what runs"),
    signal.SIGCONT: ("on_continue", "claim again after quiet"),
    signal.SIGHUP: (
        "on_reload",
        "reload: a new mold imports the code anew and takes the new jobs; the old one finishes its own",
    ),
    signal.SIGUSR2: (
        "on_upgrade",
        "upgrade: become the forkrunner that is installed now, with the same pid, molds and running jobs",
    ),
    signal.SIGUSR1: (
        "on_nothing",
        "nothing: it logs to standard error, and has no file to open again",
    ),
    signal.SIGCHLD: ("on_child", "a mold died: its attempts are lost, a new one is started"),
}
#: What a stop that was told to kill waits at most for the last endings to be written, seconds.
_LAST_WRITES = 10.0


class Orders:
    """Quiet, stop, kill, reload, upgrade."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.log = supervisor.log
        self.attempts = supervisor.attempts
        self.signals: Signals
        # how far a stop has got
        self.finished = self.quiet = self.killed = False
        self.stop_at = FOREVER
        #: The trial of an upgrade has gone well.
        self.may_hand_over = False
        self.terminal = descriptors.has_terminal()

    def listen(self) -> Signals:
        """Have signals queued from now on."""
        # the alarm is the store's, for the time of a call; one that somebody else sends must not end us
        self.signals = Signals(SIGNALS, pass_over=[signal.SIGALRM])
        return self.signals

    def take(self) -> None:
        for number in self.signals.take():
            getattr(self, SIGNALS[number][0])(signal.Signals(number).name)

    @property
    def stage(self) -> str:
        """Say in one word whether jobs are claimed, and whether that may change."""
        if self.stop_at != FOREVER:
            return "stopping"
        return "quiet" if self.quiet else "serving"

    def show(self) -> None:
        """Have title and row say how it stands at once: whoever gave the order looks there."""
        self.supervisor.title_at = min(self.supervisor.title_at, clock.monotonic())
        self.supervisor.renewal.renew_at = 0.0

    def on_stop(self, name: str) -> None:
        if self.stop_at != FOREVER:
            self.kill(name, Outcome.LOST)
            return
        self.quiet = True
        self.stop_at = clock.monotonic() + self.supervisor.settings.grace_period
        self.log.emit(
            "supervisor.stopping",
            signal=name,
            busy=len(self.attempts.running),
            seconds=self.supervisor.settings.grace_period,
        )
        self.supervisor.foundry.tell_all({"kind": "leave", "wish": "stop"})
        self.supervisor.notifier.say("STOPPING=1")
        self.show()

    def on_kill(self, name: str) -> None:
        self.kill(name, Outcome.LOST)

    def on_give_back(self, name: str) -> None:
        self.kill(name, Outcome.REQUEUED)

    def on_quiet(self, name: str) -> None:
        self.quiet = True
        self.log.emit("supervisor.quiet", signal=name)
        self.show()

    def on_continue(self, name: str) -> None:
        if self.quiet and self.stop_at == FOREVER:
            self.quiet = False
            self.supervisor.rows.look_at = 0.0
            self.show()

    def on_reload(self, name: str) -> None:
        if self.stop_at != FOREVER:
            self.log.emit("supervisor.ignored", signal=name, why="it is stopping")
        elif self.terminal and not descriptors.has_terminal():
            # it was closed, and that is no wish for new code
            self.on_stop(name)
        else:
            self.log.emit("supervisor.reloading", signal=name)
            self.supervisor.foundry.reload()

    def on_upgrade(self, name: str) -> None:
        if self.stop_at != FOREVER or self.supervisor.store is None:
            why = "it is starting" if self.supervisor.store is None else "it is stopping"
            self.log.emit("supervisor.ignored", signal=name, why=why)
        elif self.supervisor.upgrade.pid:
            self.log.emit("supervisor.ignored", signal=name, why="an upgrade is under way")
        else:
            self.log.emit("upgrade.begun", signal=name)
            self.supervisor.upgrade.begin()

    def on_nothing(self, name: str) -> None:
        self.log.emit("supervisor.ignored", signal=name, why="there is no log file to open again")

    def on_child(self, name: str) -> None:
        for pid, status, _ in process.reap():
            self.supervisor.foundry.gone(pid)
            mold = self.supervisor.molds.with_pid(pid)
            if mold is not None:
                self.supervisor.hearing.on_dead_mold(mold, end_of(status))
            elif pid == self.supervisor.housekeeping.pid:
                self.supervisor.housekeeping.ended(status)
            elif pid == self.supervisor.upgrade.pid:
                self.may_hand_over = self.supervisor.upgrade.ended(end_of(status)) and self.stop_at == FOREVER

    def kill(self, reason: str, outcome: Outcome) -> None:
        """End all running attempts at once; `outcome` says whether that counts against them."""
        if self.killed:
            return
        self.killed = self.quiet = True
        self.stop_at = clock.monotonic()
        if self.attempts.running:
            self.log.emit("supervisor.killing", signal=reason, busy=len(self.attempts.running))
        grace = min(self.supervisor.settings.grace, 1.0)
        sentence = f"ended with its supervisor ({reason})"
        self.supervisor.foundry.tell_all(
            {"kind": "end", "outcome": outcome, "sentence": sentence, "grace": grace}
        )
        self.show()

    def stop_due(self) -> float:
        return self.stop_at + _LAST_WRITES if self.killed else self.stop_at

    def proceed(self, now: float) -> None:
        if self.stop_at == FOREVER:
            return
        if now >= self.stop_at and not self.killed:
            self.kill("the grace period is over", Outcome.REQUEUED)
        # with the database away the last endings cannot be written: their rows will be rescued
        left = self.attempts.running or self.attempts.endings or self.supervisor.rows.came_back
        if not left or (self.killed and now >= self.stop_due()):
            self.finished = True
            self.log.emit(
                "supervisor.stopped",
                done=self.attempts.ended_count,
                left=len(self.attempts.running)
                + len(self.attempts.endings)
                + len(self.supervisor.rows.came_back),
            )


def signal_table() -> str:
    """Return the signals as a Markdown table."""
    rows = [
        f"| `{signal.Signals(n).name[3:]}` | {text} |"
        for n, (_, text) in SIGNALS.items()
        if n != signal.SIGCHLD
    ]
    return "\n".join(["| signal | what the supervisor does |", "| --- | --- |", *rows])
