"""What wakes a loop: signals, the deaths of children, and the poll that waits for these and for descriptors."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

from .libc import ALL_SIGNALS, LINUX, NO_SIGNALS, SETMASK, libc, set_mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

#: signal.signal without its conversions to enums, which touched more pages in a child than all the rest
_set_handler = sys.modules["_signal"].signal


def unblock() -> None:
    """Unblock all signals: whoever started us may have blocked some."""
    set_mask(SETMASK, NO_SIGNALS, None)


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wake-up pipe has the number already. No logging, no I/O, no raise."""


class Signals:
    """Queues signals into a pipe that wakes the loop. One per process, in its main thread."""

    def __init__(self, numbers: Iterable[int], *, pass_over: Iterable[int] = ()) -> None:
        """Install; those to be passed over are not queued, and do not end us either."""
        # whoever started us may ignore SIGCHLD, which loses exit statuses
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if LINUX else _pipe()
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self.numbers = frozenset(numbers)
        self._handled = self.numbers.union(pass_over)
        for number in self._handled:
            signal.signal(number, _noted)
        # whoever started us may block signals; and those that came while we became another program come now
        unblock()

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        """Return the signals since the last call, in order, SIGCHLD once at most."""
        try:
            got = list(os.read(self._read, 65536))
        except BlockingIOError:
            return []
        return [
            n for i, n in enumerate(got) if n in self.numbers and (n != signal.SIGCHLD or n not in got[:i])
        ]

    def close(self) -> None:
        """Stop queueing: the work is done, and a signal that asks for its end again changes nothing.

        Ignored, not reset: the interpreter's own end would give handled signals back their defaults, and one that
        came then would make a death by signal of an orderly end. SIGCHLD is ours, and ignored it loses exit statuses.
        """
        signal.set_wakeup_fd(-1)
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        os.close(self._read)
        os.close(self._write)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


class Deaths:
    """Wakes a mold when a child has died, without a handler and with all signals blocked.

    So a child has nothing to undo but the mask, and a TERM that is meant for all of
    forkrunner ends no job through its mold: signals are for the supervisor.
    """

    def __init__(self) -> None:
        _set_handler(signal.SIGCHLD, 0)  # if it is ignored, exit statuses are lost
        set_mask(SETMASK, ALL_SIGNALS, None)
        if LINUX:
            wanted = ctypes.create_string_buffer((1 << signal.SIGCHLD - 1).to_bytes(128, "little"), 128)
            self._fd: int = libc.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC)
        else:  # a handler, and the child has a pipe more that it does not know of
            unblock()
            self._fd = Signals([signal.SIGCHLD]).fileno()

    def fileno(self) -> int:
        return self._fd

    def take(self) -> None:
        """Forget what has come; `reap` finds all the dead."""
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            pass


class Interrupts:
    """Tells of the signals by which somebody ends us, in a process that blocks all signals: after `Deaths`."""

    def __init__(self) -> None:
        self.numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        if LINUX:
            bits = sum(1 << number - 1 for number in self.numbers)
            wanted = ctypes.create_string_buffer(bits.to_bytes(128, "little"), 128)
            self._fd: int = libc.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self._signals = Signals(self.numbers)
            self._fd = self._signals.fileno()

    def fileno(self) -> int:
        return self._fd

    def take(self) -> list[int]:
        """Return the signals since the last call."""
        if not LINUX:
            return self._signals.take()
        try:
            data = os.read(self._fd, 128 * 16)
        except BlockingIOError:
            return []
        # struct signalfd_siginfo: 128 bytes, the number first
        return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 128)]


class Poll:
    """Waits for several descriptors at once: the one line of a role that blocks."""

    def __init__(self) -> None:
        self._poll = select.poll()

    def watch(self, fd: int, *, write: bool = False) -> None:
        self._poll.register(fd, select.POLLIN | (select.POLLOUT if write else 0))

    def forget(self, fd: int) -> None:
        self._poll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """Return the descriptors that are ready, or none after `seconds` (infinite allowed)."""
        # rounded up: waking a moment too early would spin until the deadline
        timeout = None if seconds == float("inf") else max(0, min(int(seconds * 1000 + 0.999), 3_600_000))
        return {fd for fd, _ in self._poll.poll(timeout)}
