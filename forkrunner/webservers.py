"""The web servers that a keeper lives for: which of their processes there are, by pid and start time, and pidfds.

A web server lives as long as its master: whose worker has ended may be starting another. Where there is no master,
each web process counts for itself. Which server a process belongs to it says itself, by a word that is the server's own.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from . import identity, process
from .signals import Poll


class Who(NamedTuple):
    """One process, for ever."""

    pid: int
    ticks: int | None

    @property
    def alive(self) -> bool:
        return self.ticks is not None and identity.start_ticks(self.pid) == self.ticks


class Client:
    """One web process."""

    __slots__ = ("daemon_until", "master", "server")

    def __init__(self, master: Who | None, server: str, daemon_until: float) -> None:
        self.master = master
        self.server = server
        #: If its master ends before, it was none.
        self.daemon_until = daemon_until


class Servers:
    """Which web processes there are. Watches them; decides nothing."""

    def __init__(self, poll: Poll) -> None:
        self._poll = poll
        self._fds: dict[Who, int] = {}
        self.clients: dict[Who, Client] = {}
        #: With the server that each is the master of.
        self.masters: dict[Who, str] = {}

    @property
    def serving(self) -> bool:
        """Whether a web server lives."""
        return bool(self.masters) or bool(self.clients)

    @property
    def blind(self) -> bool:
        """Whether the kernel does not tell of their end."""
        return -1 in self._fds.values()

    def has(self, server: str) -> bool:
        """Say whether this web server lives."""
        return server in self.masters.values() or any(
            client.server == server for client in self.clients.values()
        )

    def add(self, who: Who, master: Who | None, server: str, daemon_until: float) -> bool:
        """Take note of a web process; False if it is known, or gone."""
        if who in self.clients or not self._watch(who):
            return False
        if master is not None and self._watch(master):
            self.masters[master] = server
        else:
            master = None
        self.clients[who] = Client(master, server, daemon_until)
        return True

    def server_of(self, who: Who, master: Who | None) -> str | None:
        """Return the server that a process, or its master, is known to belong to; None: neither is known."""
        if who in self.clients:
            return self.clients[who].server
        return self.masters.get(master) if master is not None else None

    def rename(self, old: str, new: str) -> None:
        """Take note that a server has become another program: its processes are the new one's."""
        for client in self.clients.values():
            if client.server == old:
                client.server = new
        for master, server in self.masters.items():
            if server == old:
                self.masters[master] = new

    def bury(self, ready: set[int], now: float) -> bool:
        """Forget those that have ended; False if there is none."""
        ended = [who for who, fd in self._fds.items() if (fd in ready if fd >= 0 else not who.alive)]
        for who in ended:
            self.clients.pop(who, None)
            self.masters.pop(who, None)
        for who, client in list(self.clients.items()):
            if client.master in ended:
                if now < client.daemon_until:
                    client.master = None
                else:  # a worker without its master ends soon, and nobody waits for it
                    del self.clients[who]
        self._forget()
        return bool(ended)

    def has_lone(self) -> bool:
        """Say whether a web process without a master is there."""
        return any(client.master is None for client in self.clients.values())

    def drop_masters(self) -> None:
        self.masters.clear()
        self._forget()

    def _watch(self, who: Who) -> bool:
        if who in self._fds:
            return True
        try:
            fd = process.watch_process(who.pid)
        except ProcessLookupError:
            return False
        if not who.alive:  # the pid is somebody else's now
            if fd >= 0:
                os.close(fd)
            return False
        if fd >= 0:
            self._poll.watch(fd)
        self._fds[who] = fd
        return True

    def _forget(self) -> None:
        """Watch no longer whoever does not count."""
        for who in self._fds.keys() - self.clients.keys() - self.masters.keys():
            fd = self._fds.pop(who)
            if fd >= 0:
                self._poll.forget(fd)
                os.close(fd)
