"""What a service manager wants to know: systemd's Type=notify and WatchdogSec, each a datagram. Elsewhere it does nothing.

The variables are taken out of the environment: they are for the supervisor, and no job is to speak in its name.
"""

from __future__ import annotations

import os
import socket

from . import clock


class Notifier:
    def __init__(self) -> None:
        self._given = {
            name: os.environ.pop(name)
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
            if name in os.environ
        }
        self._address = self._given.get("NOTIFY_SOCKET", "")
        usec = self._given.get("WATCHDOG_USEC", "")
        for_us = self._given.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        #: Between two signs of life, seconds; half of what is asked for, as its manual wants it.
        self._every = int(usec) / 2e6 if self._address and usec.isdigit() and for_us else 0.0
        #: When the next one is due, monotonic.
        self.due = clock.monotonic() if self._every else float("inf")

    @property
    def environment(self) -> dict[str, str]:
        """What to put back for a program that this process becomes."""
        return self._given

    def say(self, words: str) -> None:
        if not self._address:
            return
        # @ stands for the NUL of a name that is in no folder
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(words.encode(), address)
        except OSError:
            pass  # it will notice by itself

    def beat(self, now: float) -> None:
        """Give a sign of life if one is due: the loop goes round."""
        if now >= self.due:
            self.due = now + self._every
            self.say("WATCHDOG=1")
