"""Where progress is kept: in memcached or, when none is set, in small files in the runtime folder; never in the database.

Written by jobs, through `sender.py`; read by whoever watches, through `Reader`. Imported in the mold: nothing heavy here.

Memcached is read through pymemcache. The one command by which it is written, and the one by which an
entry is cleared away, are spoken here: the library and what it imports (ssl, logging, pickle) would cost
each job that says a word 25 to 45 ms, more than many a job takes.
"""

from __future__ import annotations

import json
import os
from errno import EBADF

from . import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Entry = dict[str, Any]

#: In seconds; datetime ends with the year 9999.
_END_OF_TIME = 250_000_000_000
#: Seconds after which a progress entry in memcached is forgotten by itself.
_EXPIRES = 24 * 3600
#: Seconds that one call to memcached may take: a job's, and a reader's.
_PATIENCE, _READING_PATIENCE = 0.02, 0.1
#: Seconds for which a server that did not answer is left alone: at first, and at most.
_REST, _LONGEST_REST = 0.5, 5.0


class ProgressFiles:
    """One small file per job, replaced as a whole."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        #: How the half of a file is called; helpers that the job forks write too, and need names of their own.
        self.suffix = ".new"

    def put(self, job_id: str, data: bytes) -> bool:
        path = os.path.join(self.folder, job_id)
        new = path + self.suffix
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
            os.replace(new, path)
        except OSError:
            return False  # a full or missing runtime folder costs the bar, not the job
        return True

    def get(self, job_id: str) -> bytes | None:
        try:
            fd = os.open(os.path.join(self.folder, job_id), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.read(fd, 65536)
        finally:
            os.close(fd)

    def get_many(self, job_ids: Iterable[str]) -> dict[str, bytes]:
        return {job_id: data for job_id in job_ids if (data := self.get(job_id)) is not None}

    def drop(self, job_id: str) -> None:
        for name in (job_id, job_id + ".new"):
            try:
                os.unlink(os.path.join(self.folder, name))
            except OSError:
                pass

    def close(self) -> None:
        pass

    def sweep(self, older_than: float) -> None:
        """Remove what nobody will: of jobs whose supervisor was killed, of a writer that was killed while it wrote."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for name in names:
            path = os.path.join(self.folder, name)
            try:
                if os.stat(path).st_mtime < older_than:
                    os.unlink(path)
            except OSError:
                pass


class _Server:
    """One memcached, and when it may be asked again after it did not answer."""

    def __init__(self, place: str) -> None:
        self.place = place
        host, _, port = place.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)
        self.away_until = 0.0
        self.rest = _REST
        #: A socket to write to, and a pymemcache client to read from.
        self.link: Any = None
        self.client: Any = None
        #: Of the socket: a job that closes all that it has may have opened something else under its number.
        self.inode = 0

    def failed(self) -> None:
        self.close()
        self.away_until = clock.monotonic() + self.rest
        self.rest = min(2 * self.rest, _LONGEST_REST)

    def close(self) -> None:
        for opened in (self.link, self.client):
            if opened is not None:
                try:
                    opened.close()
                except OSError:
                    pass
        self.link = self.client = None


def _mixed(data: bytes) -> int:
    """Return a number that is another one for other data, and says nothing of theirs.

    CRC-32 alone is linear: of three servers one had half of the keys. What follows it is the end of MurmurHash3; hashlib would
    be a library more for each job to load.
    """
    from zlib import crc32

    mixed = crc32(data)
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return mixed ^ mixed >> 16


class _Memcached:
    """Entries in memcached, by connections of this object's own; any trouble is silence. One thread at a time.

    With several servers each key has an order of its own among them (rendezvous hashing: when one comes or
    goes, only its own keys move) and lives on the first that answers.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        places = url.removeprefix("memcached://").rstrip("/").split(",")
        self.servers = [_Server(place) for place in places if place]

    def _key(self, job_id: str) -> str:
        return f"{self.prefix}:{job_id}"

    def _in_order(self, key: str) -> list[_Server]:
        """Return the servers that may be asked, the key's own first."""
        servers = self.servers
        if len(servers) > 1:
            servers = sorted(servers, key=lambda server: _mixed(f"{server.place} {key}".encode()))
        now = clock.monotonic()
        return [server for server in servers if now >= server.away_until]

    # -- writing

    def put(self, job_id: str, data: bytes) -> bool:
        key = self._key(job_id)
        head = b"set %b 0 %d %d noreply\r\n" % (key.encode(), _EXPIRES, len(data))
        return self._tell(key, head + data + b"\r\n")

    def drop(self, job_id: str) -> None:
        key = self._key(job_id)
        self._tell(key, b"delete %b noreply\r\n" % key.encode())

    def _tell(self, key: str, command: bytes) -> bool:
        from _socket import MSG_NOSIGNAL  # SIGPIPE may end a job

        for server in self._in_order(key):
            try:
                if server.link is None or self._is_over(server):
                    server.close()
                    self._connect(server)
                server.link.sendall(command, MSG_NOSIGNAL)
                server.rest = _REST
                return True
            except OSError:
                server.failed()
        return False

    def _connect(self, server: _Server) -> None:
        import _socket  # the C module alone: `socket` brings enum and selectors along

        found = _socket.getaddrinfo(server.host, server.port, 0, _socket.SOCK_STREAM)
        # a name may stand for several addresses: `localhost` for ::1 too, where a memcached seldom listens
        for left, (family, kind, protocol, _, address) in enumerate(found, 1 - len(found)):
            server.link = link = _socket.socket(family, kind | _socket.SOCK_CLOEXEC, protocol)
            link.settimeout(_PATIENCE)
            try:
                link.connect(address)
                break
            except OSError:
                server.close()
                if left == 0:
                    raise
        link.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        # from here on nothing waits: what a server that hangs leaves in the full buffers is the end of the connection
        link.setblocking(False)
        server.inode = os.fstat(link.fileno()).st_ino

    @staticmethod
    def _is_over(server: _Server) -> bool:
        """Say whether the other side has gone: without a look the next command would vanish without an error."""
        try:
            if os.fstat(server.link.fileno()).st_ino == server.inode:
                return not server.link.recv(4096)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != EBADF:
                return True
        server.link.detach()  # the number is somebody else's now, or nobody's: not ours to close
        server.link = None
        return True

    # -- reading

    def get(self, job_id: str) -> bytes | None:
        return self.get_many([job_id]).get(job_id)

    def get_many(self, job_ids: Iterable[str]) -> dict[str, bytes]:
        by_server: dict[_Server, list[str]] = {}
        for job_id in job_ids:
            for server in self._in_order(self._key(job_id))[:1]:
                by_server.setdefault(server, []).append(job_id)
        found: dict[str, bytes] = {}
        for server, ids in by_server.items():
            try:
                values = self._client(server).get_many([self._key(job_id) for job_id in ids])
                server.rest = _REST
            except Exception:  # noqa: BLE001 - whatever it is, the reader has the row to fall back on
                server.failed()
                continue
            for job_id in ids:
                value = values.get(self._key(job_id))
                if isinstance(value, bytes):
                    found[job_id] = value
        return found

    def silent(self) -> dict[str, str]:
        """Ask each server whether it is there; return those that do not answer, and why."""
        found = {}
        for server in self.servers:
            try:
                self._client(server).version()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
                found[server.place] = str(error) or type(error).__name__
                server.close()
        return found

    def _client(self, server: _Server) -> Any:
        if server.client is None:
            import socket

            from pymemcache.client.base import Client

            # the same address as the writer takes: pymemcache by itself would try the first alone
            found = socket.getaddrinfo(server.host, server.port, 0, socket.SOCK_STREAM)
            for left, (*_, address) in enumerate(found, 1 - len(found)):
                # the defaults wait for ever: a stopped server would stop the web server
                client = Client(
                    address[:2],
                    connect_timeout=_READING_PATIENCE,
                    timeout=_READING_PATIENCE,
                    no_delay=True,
                )
                if left < 0:
                    try:
                        client.version()
                    except Exception:  # noqa: BLE001 - the next may answer
                        client.close()
                        continue
                server.client = client
                break
        return server.client

    def close(self) -> None:
        for server in self.servers:
            server.close()


def sink(settings: dict[str, Any]) -> ProgressFiles | _Memcached:
    """Open, without connecting, the place where progress is kept."""
    if settings.get("url"):
        return _Memcached(settings["url"], settings["prefix"])
    return ProgressFiles(settings["folder"])


def entry_of(data: bytes | None) -> Entry | None:
    """Read an entry; None for what is none. Whoever reaches memcached may have written it: no field is of another kind."""
    try:
        entry = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not _is_sound(entry):
        return None
    try:
        json.dumps(entry.get("detail"), allow_nan=False)  # Python reads NaN, and what is sent on must be JSON
    except (ValueError, RecursionError):
        entry["detail"] = {}
    return entry


def _is_sound(entry: Entry) -> bool:
    return (
        "fraction" in entry
        and _is_number(entry["fraction"], 1)
        and isinstance(entry.get("message"), str | None)
        and isinstance(entry.get("detail", {}), dict)
        and type(entry.get("attempt", 1)) is int
        and isinstance(entry.get("started_at"), str | None)
        and _is_number(entry.get("updated_at"), _END_OF_TIME)
        and _is_number(entry.get("eta_seconds"), _END_OF_TIME)
    )


def _is_number(value: object, most: float) -> bool:
    # written so that NaN is none
    return value is None or (type(value) in (int, float) and 0 <= value <= most)  # type: ignore[operator]


class Reader:
    """Reads, and clears away, the progress of a database's jobs. May be shared by threads and inherited by forks.

    Its connections are taken from a list and put back, so each is used by one thread at a time.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._idle: list[ProgressFiles | _Memcached] = []
        self._pid = 0

    def get(self, job_id: str) -> Entry | None:
        """Return {fraction, message, detail, attempt, started_at, updated_at, eta_seconds}, or None if nothing is known."""
        return self.get_many([job_id]).get(job_id)

    def get_many(self, job_ids: Iterable[str]) -> dict[str, Entry]:
        """Return what is known of these jobs, with one question to each server."""
        place = self._take()
        found = place.get_many(job_ids)
        self._idle.append(place)
        return {job_id: entry for job_id, data in found.items() if (entry := entry_of(data)) is not None}

    def drop(self, job_id: str) -> None:
        place = self._take()
        place.drop(job_id)
        self._idle.append(place)

    def _take(self) -> ProgressFiles | _Memcached:
        if self._pid != os.getpid():  # after a fork the connections are the parent's
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return sink(self._settings)

    def silent(self) -> dict[str, str]:
        """Return the servers that do not answer, and why; none where progress goes to files."""
        place = self._take()
        found = {} if isinstance(place, ProgressFiles) else place.silent()
        self._idle.append(place)
        return found

    def sweep(self) -> None:
        """Remove entries as old as those that memcached forgets."""
        place = self._take()
        if isinstance(place, ProgressFiles):
            place.sweep(clock.wall() - _EXPIRES)
        self._idle.append(place)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def place(settings: Any, database: str | None = None) -> dict[str, Any]:
    """Say where the progress of a database's jobs goes: the same for all who have the same settings."""
    import hashlib

    database = database or settings.database
    if database.startswith("sqlite"):  # one file has many names
        _, _, path = database.partition(":///")
        database = f"sqlite:{os.path.realpath(path)}"
    # a folder may have any bytes in its name
    name = database.rpartition("@")[2].encode("utf-8", "surrogateescape")
    key = hashlib.sha256(name).hexdigest()[:16]
    folder = os.path.join(settings.runtime_dir, key)
    return {
        "url": settings.progress_url,
        "prefix": f"forkrunner-{key}",
        "rate": settings.progress_rate,
        "folder": os.path.join(folder, "progress"),
        "runtime": folder,
    }
