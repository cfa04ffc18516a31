"""How far a job is: written by the child, read by whoever watches. May vanish without harm.

The child calls `progress`; what it says goes to memcached or, when none is set, to a small
file in the runtime folder. Never to the database. Imported in the mold: nothing heavy here.
"""

from __future__ import annotations

import json
import os

from . import clock, current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds after which a progress entry in memcached is forgotten by itself.
_EXPIRES = 24 * 3600
#: Longest message, characters.
_MESSAGE = 500


class _Sender:
    """The progress of the one job that this process runs."""

    def __init__(self, job: dict[str, Any], settings: dict[str, Any]) -> None:
        self.job = job
        self.pid = os.getpid()
        self.gap = 1.0 / settings.get("rate", 20.0)
        self.sink = _sink(settings)
        self.next_send = 0.0
        self.fraction = 0.0
        self.waiting: dict[str, Any] | None = None

    def say(self, fraction: float, message: str | None, detail: dict[str, Any]) -> None:
        # not a number, or beyond the ends: shown as the nearest thing that makes sense
        self.fraction = min(max(fraction, 0.0), 1.0) if fraction == fraction else self.fraction
        self.waiting = {
            "fraction": self.fraction,
            "message": message and str(message)[:_MESSAGE],
            "detail": detail,
        }
        if clock.monotonic() >= self.next_send:
            self.send()

    def send(self) -> None:
        if self.waiting is None or os.getpid() != self.pid:
            return
        entry = self.waiting | {"attempt": self.job["attempt"], "updated_at": clock.wall()}
        self.waiting = None
        self.sink.put(self.job["id"], json.dumps(entry, default=str).encode())
        from . import process  # loaded already in a child; the application's other processes do without

        process.title(
            f"job {self.job['id']} {self.job['task']} attempt {self.job['attempt']}, {self.fraction:.0%}"
        )
        self.next_send = clock.monotonic() + self.gap


class _Files:
    """One small file per job, replaced as a whole."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def put(self, job_id: str, data: bytes) -> None:
        path = os.path.join(self.folder, job_id)
        try:
            fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
            os.replace(path + ".new", path)
        except OSError:
            pass  # a full or missing runtime folder costs the bar, not the job

    def get(self, job_id: str) -> bytes | None:
        try:
            with open(os.path.join(self.folder, job_id), "rb") as file:
                return file.read(65536)
        except OSError:
            return None

    def drop(self, job_id: str) -> None:
        for name in (job_id, job_id + ".new"):
            try:
                os.unlink(os.path.join(self.folder, name))
            except OSError:
                pass


class _Memcached:
    """Entries in memcached, by a client of this process's own; any trouble is silence."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        from pymemcache.client.hash import HashClient

        servers = [place for place in url.removeprefix("memcached://").rstrip("/").split(",") if place]
        # the defaults wait for ever: a stopped server would stop the jobs
        self.client = HashClient(servers, connect_timeout=0.02, timeout=0.02, no_delay=True,
                                 ignore_exc=True, retry_attempts=0, dead_timeout=10)  # fmt: skip

    def _key(self, job_id: str) -> str:
        return f"{self.prefix}:{job_id}"

    def put(self, job_id: str, data: bytes) -> None:
        if len(data) < 1 << 19:  # a larger one is dropped by the server without a word
            self.client.set(self._key(job_id), data, expire=_EXPIRES, noreply=True)

    def get(self, job_id: str) -> bytes | None:
        found = self.client.get(self._key(job_id))
        return found if isinstance(found, bytes) else None

    def drop(self, job_id: str) -> None:
        self.client.delete(self._key(job_id), noreply=True)


def _sink(settings: dict[str, Any]) -> _Files | _Memcached:
    if settings.get("url"):
        return _Memcached(settings["url"], settings["prefix"])
    return _Files(settings["folder"])


_sender: _Sender | None = None


def progress(fraction: float, message: str | None = None, /, **detail: Any) -> None:
    """Say how far the running job is; outside a job it does nothing.

    `fraction` in 0…1: beyond that it is taken as the nearer end, NaN as the last
    value. Sent at most `progress_rate` times a second; the last state before the
    end always is. Never raises because nobody listens.
    """
    global _sender
    if _sender is None:
        if current.job is None or current.place is None:
            return
        _sender = _Sender(current.job, current.place)
        current.told = True
    _sender.say(float(fraction), message, detail)


def end() -> None:
    """In a child: send what is still held back."""
    if _sender is not None:
        _sender.send()


class Reader:
    """Reads, and clears away, the progress of a database's jobs."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._sink = _sink(settings)

    def get(self, job_id: str) -> dict[str, Any] | None:
        """Return {fraction, message, detail, attempt, updated_at}, or None if nothing is known."""
        data = self._sink.get(job_id)
        if data is None:
            return None
        try:
            entry = json.loads(data)
        except ValueError:
            return None
        return entry if isinstance(entry, dict) and isinstance(entry.get("fraction"), int | float) else None

    def drop(self, job_id: str) -> None:
        self._sink.drop(job_id)


def place(settings: Any) -> dict[str, Any]:
    """Say where the progress of a database's jobs goes: the same for all who have the same settings."""
    import hashlib

    database = settings.database
    if database.startswith("sqlite"):  # one file has many names
        _, _, path = database.partition(":///")
        database = f"sqlite:{os.path.realpath(path)}"
    key = hashlib.sha256(database.rpartition("@")[2].encode()).hexdigest()[:16]
    folder = os.path.join(settings.runtime_dir, key)
    return {
        "url": settings.progress_url,
        "prefix": f"forkrunner-{key}",
        "rate": settings.progress_rate,
        "folder": os.path.join(folder, "progress"),
        "runtime": folder,
    }
