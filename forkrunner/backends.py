"""The kinds of storage: a folder of this host, or whatever fsspec reaches. Used by storage.py only.

The only file that imports fsspec, and only for URLs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import IO, Any, Protocol

from .locating import data_folder

#: A name and when it was last written, seconds since 1970; None where the storage does not say.
Entry = tuple[str, float | None]


class Backend(Protocol):
    """What a kind of storage can do. Names are relative, with `/`; errors are OSError, or those of a library."""

    def make(self, name: str) -> IO[bytes]: ...
    def keep(self, stream: IO[bytes]) -> None: ...
    def read(self, name: str) -> IO[bytes]: ...
    def has(self, name: str) -> bool: ...
    def move(self, name: str, to: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def list(self, folder: str) -> Iterator[Entry]: ...
    def place(self, name: str) -> str: ...
    def try_out(self) -> None: ...


class Folder:
    """A folder, of this host or of a file server, by plain system calls: a move is atomic, and survives a power cut."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def make(self, name: str) -> IO[bytes]:
        path = self._at(name)
        try:
            return open(path, "xb", buffering=0)
        except FileNotFoundError:
            _make_folder(self.path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return open(path, "xb", buffering=0)

    def keep(self, stream: IO[bytes]) -> None:
        # before the row that names it is committed
        os.fsync(stream.fileno())

    def read(self, name: str) -> IO[bytes]:
        return open(self._at(name), "rb")

    def has(self, name: str) -> bool:
        try:
            os.stat(self._at(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def move(self, name: str, to: str) -> None:
        folder = os.path.dirname(self._at(to))
        try:
            os.rename(self._at(name), self._at(to))
        except FileNotFoundError:
            if os.path.isdir(folder):
                raise
            os.makedirs(folder, exist_ok=True)
            _sync_folder(self.path)
            os.rename(self._at(name), self._at(to))
        _sync_folder(folder)

    def remove(self, name: str) -> None:
        os.unlink(self._at(name))

    def list(self, folder: str) -> Iterator[Entry]:
        try:
            entries = os.scandir(self._at(folder))
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                try:
                    yield entry.name, entry.stat().st_mtime
                except FileNotFoundError:
                    continue

    def place(self, name: str) -> str:
        return self._at(name)

    def try_out(self) -> None:
        """See whether files could be kept; nothing is made, since somebody else may look than who will use it."""
        path = self.path.rstrip("/") or "/"
        # as `_make_folder` has it
        with_parents = path.startswith(data_folder())
        if not os.path.lexists(path):
            path = os.path.dirname(path) or "."
            while with_parents and path != "/" and not os.path.exists(path):
                path = os.path.dirname(path)
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


class Remote:
    """Whatever fsspec reaches: s3://…, gs://…, sftp://…, ftp://… A name appears there when all of its content has."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self.url = url.rstrip("/")
        # a listing that was read before tells nothing about what others have stored since; and an instance
        # that another process made before a fork has its connection
        self.files, self.root = url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def make(self, name: str) -> IO[bytes]:
        path = self._at(name)
        self._make_parent(path)
        made: IO[bytes] = self.files.open(path, "wb")
        return made

    def _make_parent(self, path: str) -> None:
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def keep(self, stream: IO[bytes]) -> None:
        """Nothing more: closing it is what makes the other side keep it."""

    def read(self, name: str) -> IO[bytes]:
        found: IO[bytes] = self.files.open(self._at(name), "rb")
        return found

    def has(self, name: str) -> bool:
        self.files.invalidate_cache()
        return bool(self.files.exists(self._at(name)))

    def move(self, name: str, to: str) -> None:
        path = self._at(to)
        self._make_parent(path)
        self.files.mv(self._at(name), path)

    def remove(self, name: str) -> None:
        self.files.rm_file(self._at(name))

    def list(self, folder: str) -> Iterator[Entry]:
        self.files.invalidate_cache()
        try:
            entries = self.files.ls(self._at(folder), detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry["type"] == "file":
                yield entry["name"].rpartition("/")[2], _written(entry)

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def try_out(self) -> None:
        # of `exists` fsspec makes a no, whatever went wrong
        next(self.list("incoming"), None)


def _make_folder(path: str) -> None:
    """Make the folder of a storage, for its user alone.

    Where it was named by somebody its parent must be there: else files would go to a mount that is missing.
    """
    if path.startswith(data_folder()):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _written(entry: dict[str, Any]) -> float | None:
    """Return when an entry of fsspec was written: each of its file systems has another name and type for it."""
    from datetime import UTC, datetime

    for key in ("mtime", "LastModified", "last_modified", "modified", "modify", "updated", "created"):
        value = entry.get(key)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str) and value:
            try:
                found = datetime.fromisoformat(value)
            except ValueError:
                # FTP's MLSD: 20260131100000
                digits = value.partition(".")[0]
                if not re.fullmatch("[0-9]{14}", digits):
                    continue
                found = datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None
