"""When and how the progress of a running job is sent. Loaded in a child at the job's first word.

A word costs the job a few microseconds. It is sent by a thread that lives for that one sending, at most `progress_rate` times
a second: so what is held back needs no further word to follow, and no server can keep the job waiting.
What always holds:

1. The job's own thread never talks to memcached. Where a word is due it waits for the thread, because a
   long call into C may follow that lets no thread run: 10 ms at most, and all such waits that were in vain, of the job with all
   that it has forked, take 30 ms together, then there are no more. The last state, at the job's end, has 15 ms.
2. No such thread is there at a fork of the job's: it is called back before, which the same 30 ms are for. Where they
   are used up, by a name server that does not answer or by hundreds of forks, the fork does not wait, and
   what is held back has no thread: it goes with the next word or at the end.
3. A process that the job forks has a connection of its own, and shares the rate, the bar and the waits (`common.py`). Its last
   state is sent when it ends by `os._exit`; of one that is killed, and where there is no time left for that, the bar is told by
   whoever speaks next, or by the job at its end, and the message is lost.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not `signal`, which brings enum along
import json
import os
from _thread import allocate_lock, get_ident, get_native_id, stack_size, start_new_thread

from . import clock
from .common import (
    DUE,
    SENT,
    SPENT,
    TOLD,
    TROUBLE,
    begin_anew,
    farthest,
    numbers_of_this_job,
    place_of_this_process,
)
from .current import current
from .places import ProgressFiles, sink
from .titles import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .steps import Share

    Detail = dict[str, Any] | Callable[[], dict[str, Any]]

#: Seconds: one wait for a word that is due or before a fork, all waits that were in vain, the wait at the end.
_PATIENCE, _ALL_PATIENCE, _LAST_PATIENCE = 0.01, 0.03, 0.015
#: A wait of this many seconds is what a healthy server takes on a busy machine.
_HEALTHY = 0.002
#: So many words may the last one of a process that the job has forked be early; all others wait for so much longer.
_EARLY = 2
#: Seconds between two looks whether a thread is gone, which takes it a tenth of a millisecond.
_MOMENT = 0.00005
#: Seconds until the next try, where nobody took it.
_AGAIN = 0.5
#: Longest message, characters; largest detail, bytes.
_MESSAGE, _DETAIL = 500, 16 << 10
#: Bytes of stack, instead of 8 MiB that would count against the job's memory limit.
_STACK = 256 << 10
#: Seconds of progress before it says anything about the time left.
_SOON = 0.5


class Sender:
    """The progress of the one job that this process runs."""

    def __init__(self, job: dict[str, Any], settings: dict[str, Any]) -> None:
        self.job = job
        self.settings = settings
        self.gap = 1.0 / settings.get("rate", 20.0)
        #: What the processes of the job have in common.
        self.numbers = numbers_of_this_job()
        self.numbers[TOLD] = 1.0
        # a child of the mold is the job itself
        self.is_helper = bool(current.mold) and os.getppid() != current.mold
        #: How far the job is; None while it has not said so.
        self.fraction: float | None = None
        #: The part of the bar that 0…1 stands for now, how much of that finished steps have used, and what
        #: is written before a message: set by `steps.py`.
        self.low, self.span, self.used = 0.0, 1.0, 0.0
        self.label: object = None
        self.share: Share | None = None
        #: Said and not sent: label, message, detail.
        self.waiting: tuple[object, object, Detail] | None = None
        #: What was sent last.
        self.last: tuple[object, object, Detail] = None, None, {}
        #: It found nobody to take it.
        self.trouble = False
        self.begun: tuple[float, float] | None = None
        #: The kernel's number of the last thread that sent.
        self.thread = 0
        #: What is held back gets no thread: the job forks too often for that.
        self.is_forking = False
        #: `os._exit` sends the last state first.
        self.is_last_sent = False
        self._open()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_helper
        )

    def _open(self) -> None:
        """Make what each process has of its own."""
        self.sink = sink(self.settings)
        if self.is_helper and isinstance(self.sink, ProgressFiles):
            self.sink.suffix = f".{os.getpid()}"
        self.place = place_of_this_process()
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
                # it may be killed before it is sent; for the job itself there is time when it sends
                if self.is_helper and value + 1.0 > self.numbers[self.place]:
                    self.numbers[self.place] = value + 1.0
        self.waiting = (self.label, message, detail)
        # if it is held, who holds it looks for what is waiting before it leaves
        if self.sending.acquire(False):
            pause = self.numbers[DUE] - clock.monotonic()
            if pause > 0 and self.is_forking:
                self.sending.release()
            elif self._start(pause) and pause <= 0:
                self._wait_for_it()

    def restart(self) -> None:
        """Let the bar begin anew: the next thing that is said may be less."""
        self.fraction = self.begun = None
        begin_anew(self.numbers)

    def end(self) -> None:
        """Send what is held back, unless nobody takes it."""
        numbers, start, patience = self.numbers, clock.monotonic(), _LAST_PATIENCE
        if self.trouble:
            return
        if self.is_helper:
            patience = min(patience, self._patience())
            if patience <= 0 or numbers[TROUBLE] or numbers[DUE] > start + _EARLY * self.gap:
                return
        self.ending = True
        if self.sending.acquire(False):
            far = farthest(numbers) or 0.0
            if self.waiting is None and not self.is_helper and far + 1.0 > max(numbers[SENT], 1.0):
                # said by a process that was killed before it was sent
                self.waiting = self.last
            if self._has_word():
                self._start(0.0)
            else:
                self.sending.release()
        else:  # it is on its way, and the thread looks once more before it leaves
            self._ring()
        if self.sending.acquire(True, patience):
            self.sending.release()
        elif self.is_helper and patience == _LAST_PATIENCE:
            # it is not there any more to find out; else each that follows would try the same
            self._found_nobody(clock.monotonic())
        if self.is_helper:
            self._spent(clock.monotonic() - start)

    def _patience(self) -> float:
        """Return for how many seconds the job may still wait."""
        left: float = _ALL_PATIENCE - self.numbers[SPENT]
        return left

    def _spent(self, seconds: float) -> None:
        if seconds > _HEALTHY:
            self.numbers[SPENT] += seconds

    def _start(self, pause: float) -> bool:
        """Start the thread; `sending` is held for it."""
        if self.is_helper and not self.is_last_sent:
            self._send_at_exit()
        self.sent.acquire(False)
        old = stack_size(_STACK)
        try:
            start_new_thread(self._run, (pause,))
        except RuntimeError:  # no memory, or too many processes
            self.numbers[DUE] = clock.monotonic() + _AGAIN
            self.sending.release()
            return False
        finally:
            stack_size(old)
        return True

    def _wait_for_it(self) -> None:
        """Wait a little for the word that the thread sends now."""
        patience = self._patience()
        if patience > 0:
            start = clock.monotonic()
            self.sent.acquire(True, min(_PATIENCE, patience))
            self._spent(clock.monotonic() - start)

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
                pause = self.numbers[DUE] - clock.monotonic()
        except BaseException:  # noqa: BLE001 - nothing of the application: not even the end of the interpreter is told
            pass
        self.sending.release()

    def _has_word(self) -> bool:
        return self.waiting is not None

    def _send(self) -> None:
        now, numbers = clock.monotonic(), self.numbers
        if now < numbers[DUE] and not self.ending:
            return  # another process of the job was first
        # who ends is not held up; the others wait the longer
        numbers[DUE] = due = max(now, numbers[DUE]) + self.gap
        said, self.waiting = self.waiting, None
        if said is None:
            return
        if self.fraction is not None:
            numbers[self.place] = max(numbers[self.place], self.fraction + 1.0)
        self.fraction = farthest(numbers)
        entry = self._entry(now, *said)
        if numbers[DUE] != due and not self.ending:
            # two have come at once, and the other was the last to say when the next is due
            if not self._has_word():
                self.waiting = said
            return
        if self.sink.put(self.job["id"], entry):
            self.last, self.trouble = said, False
            numbers[TROUBLE] = 0.0
            numbers[SENT] = 0.0 if self.fraction is None else self.fraction + 1.0
        else:
            self.trouble = True
            self._found_nobody(now)
            if not self._has_word():
                self.waiting = said
        if not self.is_helper:
            far = "" if self.fraction is None else f", {self.fraction:.0%}"
            show(f"job {self.job['id']} {self.job['task']} attempt {self.job['attempt']}{far}")

    def _found_nobody(self, now: float) -> None:
        self.numbers[TROUBLE] = 1.0
        self.numbers[DUE] = now + max(_AGAIN, self.gap)

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
        start, patience = clock.monotonic(), min(_PATIENCE, self._patience())
        self.forking[get_ident()] = self.sending.acquire(True, max(patience, 0.0))
        # it has let go of the lock; the last of it goes in a moment, and from Python 3.12 on a fork before that is warned of
        moment = allocate_lock()
        moment.acquire()
        while self.thread and os.path.exists(f"/proc/self/task/{self.thread}"):
            if clock.monotonic() - start >= patience:
                break
            moment.acquire(True, _MOMENT)
        else:
            self.thread = 0
        waited = clock.monotonic() - start
        if waited > _MOMENT:
            self.numbers[SPENT] += waited
            self.is_forking = self._patience() <= 0

    def _after_fork(self) -> None:
        held = self.forking.pop(get_ident(), False)
        self.halted = False
        self.alarm.acquire(False)
        if not held:
            return
        if self.waiting is None or self.is_forking:
            self.sending.release()
        else:
            self._start(max(self.numbers[DUE] - clock.monotonic(), self.gap))

    def _in_helper(self) -> None:
        # the connection is the parent's, and so is what it has not sent
        self.sink.close()
        self.waiting = None
        self.is_helper, self.is_forking, self.thread = True, False, 0
        self._open()

    def _send_at_exit(self) -> None:
        """Have the last state sent where this process ends: by `os._exit`, as those of multiprocessing do too."""
        self.is_last_sent = True
        leave = os._exit

        def send_and_leave(status: int) -> NoReturn:
            try:
                self.end()
            finally:
                leave(status)

        os._exit = send_and_leave
