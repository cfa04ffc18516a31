"""When and how the progress of a running job is sent. Loaded in a child at the job's first word.

A word costs the job a few microseconds. It is sent by a thread that lives for that one sending, at most `progress_rate` times
a second: so what is held back needs no further word to follow, and no server can keep the job waiting.
What always holds:

1. The job's own thread never talks to memcached. Where a word is due it waits for the thread, because a
   long call into C may follow that lets no thread run: 10 ms at most, and all such waits that were in vain take
   30 ms of a job's time together, then it waits no more. The last state, at the end, has 15 ms.
2. No such thread is there at a fork of the job's: it is called back before. It blocks all signals: they are for the job.
3. A process that the job forks has a connection of its own, and shares the rate and the bar (`_Shared`).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not `signal`, which brings enum along
import json
import os
import sys
from _thread import allocate_lock, get_ident, get_native_id, stack_size, start_new_thread

from . import clock
from .leaving import title
from .places import ProgressFiles, sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .steps import Share

    Detail = dict[str, Any] | Callable[[], dict[str, Any]]

#: Seconds: one wait for a word that is due, all waits that were in vain, the wait at the end, the one before a fork.
_PATIENCE, _ALL_PATIENCE, _LAST_PATIENCE, _FORK_PATIENCE = 0.01, 0.03, 0.015, 0.2
#: A wait of this many seconds is what a healthy server takes on a busy machine.
_HEALTHY = 0.002
#: Seconds until the next try, where nobody took it.
_AGAIN = 0.5
#: Longest message, characters; largest detail, bytes.
_MESSAGE, _DETAIL = 500, 16 << 10
#: Bytes of stack, instead of 8 MiB that would count against the job's memory limit.
_STACK = 256 << 10
#: Seconds of progress before it says anything about the time left.
_SOON = 0.5


class _Shared:
    """What the processes of one job have in common, in memory that a fork does not copy."""

    def __init__(self) -> None:
        from mmap import mmap

        self.memory = memoryview(mmap(-1, 4096)).cast("d")
        #: Indexes: when the next word is due, and how far the bar is.
        self.due, self.fraction = 0, 1

    def reached(self, fraction: float) -> None:
        self.memory[self.fraction] = max(self.memory[self.fraction], fraction)


class Sender:
    """The progress of the one job that this process runs."""

    def __init__(self, job: dict[str, Any], settings: dict[str, Any]) -> None:
        self.job = job
        self.settings = settings
        self.gap = 1.0 / settings.get("rate", 20.0)
        self.sink = sink(settings)
        #: How far the job is; None while it has not said so.
        self.fraction: float | None = None
        #: The part of the bar that 0…1 stands for now, how much of that finished steps have used, and what
        #: is written before a message: set by `steps.py`.
        self.low, self.span, self.used = 0.0, 1.0, 0.0
        self.label: object = None
        self.share: Share | None = None
        #: Said and not sent: label, message, detail.
        self.waiting: tuple[object, object, Detail] | None = None
        self.due = 0.0
        self.patience = _ALL_PATIENCE
        #: The last word found nobody to take it.
        self.trouble = False
        self.begun: tuple[float, float] | None = None
        #: The kernel's number of the last thread that sent.
        self.thread = 0
        self.shared: _Shared | None = None
        self.is_helper = self.is_registered = False
        self._make_locks()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_helper
        )

    def _make_locks(self) -> None:
        #: Held by the thread that sends, as long as there is one.
        self.sending = allocate_lock()
        #: Released by it when the first word has gone.
        self.sent = allocate_lock()
        #: Held; released to end its sleep.
        self.alarm = allocate_lock()
        self.alarm.acquire()
        self.halted = self.ending = False
        #: Threads that are about to fork, and whether they hold `sending`.
        self.forking: dict[int, bool] = {}

    # ------------------------------------------------------------------------ the job's side

    def say(self, fraction: object, message: object, detail: Detail) -> None:
        try:
            value = float(fraction)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - whatever it is, it is no reason to fail the job
            value = float("nan")
        if value == value:
            value = 0.0 if value < 0.0 else 1.0 if value > 1.0 else value
            if self.share is not None:
                value = self.share.put(value)
            value = self.low + self.span * value
            if self.fraction is None or value > self.fraction:
                self.fraction = value
                if self.shared is not None:
                    self.shared.reached(value)
        self.waiting = (self.label, message, detail)
        # if it is held, who holds it looks for what is waiting before it leaves
        if self.sending.acquire(False):
            self._start(self.due - clock.monotonic())

    def restart(self) -> None:
        """Let the bar begin anew: the next thing that is said may be less."""
        self.fraction = self.begun = None
        if self.shared is not None:
            self.shared.memory[self.shared.fraction] = 0.0

    def end(self) -> None:
        """Send what is held back, unless nobody takes it."""
        if self.trouble:
            return
        self.due, self.ending = 0.0, True
        if self._has_word() and self.sending.acquire(False):
            self.patience = max(self.patience, _LAST_PATIENCE)
            self._start(0.0)
        else:  # it is on its way, or there is none
            self._ring()
        if self.sending.acquire(True, _LAST_PATIENCE):
            self.sending.release()

    def _start(self, pause: float) -> None:
        """Start the thread; `sending` is held for it. If a word is due, wait for it a little."""
        if self.is_helper and not self.is_registered:
            self._send_at_exit()
        self.sent.acquire(False)
        old = stack_size(_STACK)
        try:
            start_new_thread(self._run, (pause,))
        except RuntimeError:  # no memory, or too many processes
            self.due = clock.monotonic() + _AGAIN
            self.sending.release()
            return
        finally:
            stack_size(old)
        if pause <= 0 and self.patience > 0:
            start = clock.monotonic()
            self.sent.acquire(True, min(_PATIENCE, self.patience))
            waited = clock.monotonic() - start
            if waited > _HEALTHY:
                self.patience -= waited

    def _ring(self) -> None:
        try:
            self.alarm.release()
        except RuntimeError:
            pass  # it was ringing already

    # -------------------------------------------------------------------- the thread's side

    def _run(self, pause: float) -> None:
        """Send what is waiting when it is due, and end when nothing is."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        self.thread = get_native_id()
        try:
            while True:
                if pause > 0:
                    self.alarm.acquire(True, pause)
                if self.halted:
                    break
                self._send()
                if self.sent.locked():
                    self.sent.release()
                if not self._has_word():
                    self.sending.release()
                    # said since we looked, by somebody who found it held
                    if not self._has_word() or not self.sending.acquire(False):
                        return
                pause = self.due - clock.monotonic()
        except BaseException:  # noqa: BLE001 - nothing of the application: not even the end of the interpreter is told
            pass
        self.sending.release()

    def _has_word(self) -> bool:
        return self.waiting is not None

    def _send(self) -> None:
        now = clock.monotonic()
        if self.shared is not None:
            memory, shared = self.shared.memory, self.shared
            if self.fraction is not None:
                self.fraction = max(self.fraction, memory[shared.fraction])
            if now < memory[shared.due] <= now + self.gap and not self.ending:
                self.due = memory[shared.due]  # another process of the job was first
                return
            memory[shared.due] = now + self.gap
        said, self.waiting = self.waiting, None
        if said is None:
            return
        if self.sink.put(self.job["id"], self._entry(now, *said)):
            self.trouble = False
            self.due = now + self.gap
        else:
            self.trouble = True
            if not self._has_word():
                self.waiting = said
            self.due = now + max(_AGAIN, self.gap)
        if not self.is_helper:
            far = "" if self.fraction is None else f", {self.fraction:.0%}"
            title(f"job {self.job['id']} {self.job['task']} attempt {self.job['attempt']}{far}")

    def _entry(self, now: float, label: object, message: object, detail: Detail) -> bytes:
        entry: dict[str, Any] = {
            "fraction": None if self.fraction is None else round(self.fraction, 6),
            "message": None,
            "detail": {},
            "attempt": self.job["attempt"],
            "started_at": self.job.get("started_at"),
            "updated_at": clock.wall(),
            "eta_seconds": self._time_left(now),
        }
        try:  # the application's objects may do anything in their __str__
            words = [str(part) for part in (label, message) if part is not None]
            entry["message"] = ": ".join(filter(None, words))[:_MESSAGE] or None
            facts = detail() if callable(detail) else detail
            if facts and len(json.dumps(facts, default=str, allow_nan=False)) <= _DETAIL:
                entry["detail"] = facts
            return json.dumps(entry, default=str, allow_nan=False).encode()
        except Exception:  # noqa: BLE001 - as above
            return json.dumps(entry | {"detail": {}}, default=repr).encode()

    def _time_left(self, now: float) -> float | None:
        if self.fraction is None:
            return None
        if self.begun is None:
            self.begun = (now, self.fraction)
        start, first = self.begun
        if self.fraction <= first or now - start < _SOON:
            return None
        return round((now - start) * (1.0 - self.fraction) / (self.fraction - first), 1)

    # ------------------------------------------------------------------------------- forks

    def _before_fork(self) -> None:
        self.halted = True
        self._ring()
        self.forking[get_ident()] = self.sending.acquire(True, _FORK_PATIENCE)
        # it has let go of the lock; the last of it goes in a moment, and from Python 3.12 on a fork before that is warned of
        moment, tries = allocate_lock(), 0
        moment.acquire()
        while self.thread and tries < 100 and os.path.exists(f"/proc/self/task/{self.thread}"):
            moment.acquire(True, 0.0005)
            tries += 1
        self.thread = 0
        if self.shared is None:
            self.shared = _Shared()
            self.shared.memory[self.shared.fraction] = self.fraction or 0.0
            self.shared.memory[self.shared.due] = self.due

    def _after_fork(self) -> None:
        held = self.forking.pop(get_ident(), False)
        self.halted = False
        self.alarm.acquire(False)
        if not held:
            return
        if self.waiting is None:
            self.sending.release()
        else:
            self._start(max(self.due - clock.monotonic(), self.gap))

    def _in_helper(self) -> None:
        # the connection is the parent's, and so is what it has not sent
        self.sink.close()
        self.sink = sink(self.settings)
        if isinstance(self.sink, ProgressFiles):
            self.sink.suffix = f".{os.getpid()}"
        self.waiting = None
        self.is_helper, self.is_registered = True, False
        self._make_locks()

    def _send_at_exit(self) -> None:
        """Have the last state of a multiprocessing worker sent; it clears what was registered before its start."""
        self.is_registered = True
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(None, self.end, exitpriority=100)
