"""How a supervisor learns that something was enqueued, without asking all the time.

Used by the supervisor's loop, which waits on `fileno` among others and then calls `drain`. Nothing depends on it: a
waker that cannot work has the kind "poll", and the loop asks now and then, as it does anyway.

- "listen": LISTEN on a connection of its own to PostgreSQL. Behind PgBouncer in transaction mode LISTEN succeeds and
  nothing ever arrives, so it is proven at the start, with a notification from a second connection.
- "inotify": the kernel says that the write-ahead log of the SQLite file was written to. No statement at all while
  nothing happens. Our own writes wake us too; the look that follows finds nothing and writes nothing, so it ends
  there. They are not to be ignored: a stranger's write a moment later would be ignored with them.
- "poll": anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import uuid
from typing import Any

from sqlalchemy.engine import URL, make_url

from . import clock
from .database import Silent, alarm
from .statements import CHANNEL, WISH

#: What `drain` tells, added up: there may be new jobs; somebody may want something of a running one.
JOBS, WISHES = 1, 2

_WISH = WISH.encode()

#: Seconds that opening one may take, all in all, and that the notification which proves it may be under way.
_OPENING = 5.0
_PROOF = 1.0


class Waker:
    """The kind "poll": it never wakes."""

    kind = "poll"
    #: Why it is not a better kind, for the log.
    reason = ""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def fileno(self) -> int:
        """Return what to wait on for reading, the same until `close`; -1: there is nothing."""
        return -1

    def drain(self) -> int:
        """Take what has arrived, without waiting; say what may have happened: JOBS, WISHES, both or 0."""
        return 0

    def close(self) -> None:
        """Give the descriptor back."""


def open_waker(store_url: str) -> Waker:
    """Open the best waker that works for a store; never raises because of the database."""
    url = make_url(store_url)
    if url.get_backend_name() == "postgresql":
        return _open_listener(url)
    if sys.platform.startswith("linux") and url.database:
        try:
            return Inotify(url.database)
        except OSError as error:
            return Waker(f"inotify: {error.strerror}")
    return Waker()


# ------------------------------------------------------------------------------------- PostgreSQL


class Listener(Waker):
    """LISTEN on a connection in autocommit; becomes a "poll" when the connection is lost."""

    kind = "listen"

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection
        # our own, because libpq closes its one when the connection is lost, and the number is free for a stranger
        self._fd = os.dup(connection.fileno())
        self._silence = -1

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> int:
        if self.kind == "poll":
            return 0
        import psycopg

        pgconn = self._connection.pgconn
        found = 0
        try:
            pgconn.consume_input()
            while (notify := pgconn.notifies()) is not None:
                found |= WISHES if notify.extra == _WISH else JOBS
        except psycopg.Error as error:
            self._lose(str(error).strip().partition("\n")[0])
            # nobody knows what was missed
            return JOBS | WISHES
        return found

    def _lose(self, reason: str) -> None:
        self.kind, self.reason = "poll", reason
        # it stays, but silent: a dead socket is ready for ever and would make the loop spin
        silent, self._silence = os.pipe2(os.O_CLOEXEC)
        os.dup2(silent, self._fd, inheritable=False)
        os.close(silent)

    def close(self) -> None:
        self._connection.close()
        for fd in (self._fd, self._silence):
            if fd >= 0:
                os.close(fd)
        self._fd = self._silence = -1


def _open_listener(url: URL) -> Waker:
    import psycopg

    arguments: dict[str, Any] = {
        "connect_timeout": 2,
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": "forkrunner waker",
        **url.translate_connect_args(username="user", database="dbname"),
        **url.query,
    }
    connections: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(autocommit=True, prepare_threshold=None, **arguments)
        connections.append(connection)
        return connection

    token = uuid.uuid4().hex
    try:
        with alarm(_OPENING):
            listening = connect()
            listening.execute(f"LISTEN {CHANNEL}")
            # from another connection: through a pooler one's own arrives even where others' do not
            connect().execute("SELECT pg_notify(%s, %s)", (CHANNEL, token))
            end = clock.monotonic() + _PROOF
            for notify in listening.notifies(timeout=_PROOF):
                if notify.payload == token:
                    connections.remove(listening)
                    return Listener(listening)
                if clock.monotonic() > end:
                    break
            with contextlib.suppress(psycopg.Error):
                listening.execute(f"UNLISTEN {CHANNEL}")
            return Waker("notifications do not arrive: is a pooler in between?")
    except psycopg.Error as error:
        return Waker(str(error).strip().partition("\n")[0])
    except Silent:
        return Waker(f"no answer within {_OPENING:g} s")
    finally:
        for connection in connections:
            connection.close()


# ----------------------------------------------------------------------------------------- SQLite

_MODIFY, _MOVED_TO, _CREATE = 0x2, 0x80, 0x100
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct("iIII")


class Inotify(Waker):
    """Watches the write-ahead log of an SQLite file, and its folder for a new one."""

    kind = "inotify"

    def __init__(self, path: str) -> None:
        """Watch; neither the file nor its log need be there yet. Raises: OSError."""
        super().__init__()
        self._libc = ctypes.CDLL(None, use_errno=True)
        # SQLite puts the log beside the real file
        self._log = os.path.realpath(path) + "-wal"
        self._name = os.fsencode(os.path.basename(self._log))
        self._watch = -1
        self._fd = self._call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._call(
                "inotify_add_watch", self._fd, os.fsencode(os.path.dirname(self._log)), _CREATE | _MOVED_TO
            )
            self._arm()
        except OSError:
            self.close()
            raise

    def _call(self, name: str, *arguments: int | bytes) -> int:
        found: int = getattr(self._libc, name)(*arguments)
        if found < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return found

    def _arm(self) -> None:
        try:
            self._watch = self._call("inotify_add_watch", self._fd, os.fsencode(self._log), _MODIFY)
        except FileNotFoundError:
            self._watch = -1

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> int:
        found = 0
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                if mask & _OVERFLOW or name == self._name:
                    # a new log: it was written to before we could watch it
                    self._arm()
                    found = JOBS | WISHES
                elif watch == self._watch and not mask & _IGNORED:
                    found = JOBS | WISHES

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
