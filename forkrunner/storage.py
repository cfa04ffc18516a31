"""The storage of files: content under its SHA-256, in a folder or, through fsspec, wherever else.

Used by web processes and the command line (which put the files of arguments), by children (which fetch these, and put
those of results) and by `prune`; never by a supervisor or a mold. What it stands on is in backends.py, where it is in
locating.py.

    ab/abcdef…             content, by the first two digits of its hash and its hash; it never changes
    incoming/…             what is being stored; nobody else reads it, and what was left there by a death is pruned
    database               the id of the database whose files these are, where somebody has chosen the storage
    bin/<seconds>-<hash>   what was to be deleted at that time, since 1970

What always holds:

1. Content stands under its hash whole or not at all: it is written to `incoming`, and moved when it is there.
2. Nothing is deleted but from the bin, an hour after it was thrown there, and only if no row names it then. A put that finds
   content there does nothing more, and its row comes later: whoever throws that content away in between finds the row
   when the hour is over, and puts the content back. Meanwhile it is read from the bin.
3. A name of a client is never a path: names here are hashes and numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import clock
from .backends import Backend, Folder, Remote
from .errors import FileError, FileMissing, StorageError
from .filenames import safe_name
from .locating import local_path, locate
from .units import mask, show_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Settings

#: How much is read at once, bytes.
_PIECE = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")
#: The file that says whose storage it is.
_OWNER = "database"
_BINNED = re.compile("([0-9]{1,12})-([0-9a-f]{64})")


class Storage:
    """The files of one database. Threads may share it; after a fork each process makes its own."""

    def __init__(self, url: str, owner: Callable[[], str] | None = None) -> None:
        """Name a folder, or a URL of fsspec; nothing is connected or made before the first use.

        `owner` tells the database's id: then nothing is put where another database has its files.
        """
        self.url = url
        self._owner = owner
        self._backend: Backend | None = None

    def __repr__(self) -> str:
        return f"<Storage {self}>"

    def __str__(self) -> str:
        return mask(self.url)

    def put(self, stream: IO[bytes], limit: int) -> tuple[str, int]:
        """Store what a stream has, from where it stands; return its hash and its length.

        It is read once and never held in memory; what is there already is not stored again.
        Raises:
            FileError: there are more than `limit` bytes; nothing of them is kept.
            StorageError: they cannot be stored.
        """
        self.claim()
        try:
            with self._telling("store a file"):
                backend = self._open()
                return self._known(backend, stream, limit) or self._store(backend, stream, limit)
        except SourceError as error:
            raise error.__cause__ or error from None

    def _store(self, backend: Backend, stream: IO[bytes], limit: int) -> tuple[str, int]:
        incoming = f"incoming/{os.urandom(16).hex()}"
        try:
            with backend.make(incoming) as out:
                sha256, size = _copy(stream, out.write, limit)
                backend.keep(out)
            if backend.has(_final(sha256)):
                backend.remove(incoming)
            else:
                backend.move(incoming, _final(sha256))
        except BaseException:
            _try(backend.remove, incoming)
            raise
        return sha256, size

    def _known(self, backend: Backend, stream: IO[bytes], limit: int) -> tuple[str, int] | None:
        """Say what is in a stream if a network may be spared it: reading it twice costs less than sending it."""
        if isinstance(backend, Folder) or not (hasattr(stream, "seekable") and stream.seekable()):
            return None
        start = stream.tell()
        sha256, size = _copy(stream, lambda piece: None, limit)
        if backend.has(_final(sha256)):
            return sha256, size
        stream.seek(start)
        return None

    def has(self, sha256: str) -> bool:
        """Say whether there is content with this hash. Raises StorageError."""
        with self._telling("look for a file"):
            return self._find(sha256) is not None

    def open(self, sha256: str) -> IO[bytes]:
        """Open content to be read; it can be sought in.

        Raises:
            FileMissing: there is none with this hash.
            StorageError: it cannot be read.
        """
        with self._telling("read a file"):
            # between a look and the opening it may go to the bin, or come from it
            for _ in range(3):
                name = self._find(sha256)
                if name is None:
                    break
                try:
                    return self._open().read(name)
                except FileNotFoundError:
                    continue
        raise FileMissing(
            f"{self.place(sha256)}: there is no such file; it was deleted, or it was stored elsewhere, by a process with"
            " another `storage`, or on another host: all hosts need one that they share",
            place=str(self),
            sha256=sha256,
        )

    def fetch(self, sha256: str, folder: str | os.PathLike[str], name: str) -> Path:
        """Copy content into a folder, checking its hash, and return the copy's path; `name` is made safe for it.

        Raises:
            FileMissing: there is none with this hash.
            StorageError: it cannot be read, or is damaged.
            OSError: it cannot be written.
        """
        path = Path(folder, safe_name(name))
        with self.open(sha256) as content, open(path, "xb", buffering=0) as copy:
            try:
                found, size = _copy(content, copy.write, None)
            except SourceError as error:
                with self._telling("read a file"):
                    raise error.__cause__ or error from None
        if found != sha256:
            path.unlink()
            raise StorageError(
                f"{self.place(sha256)} is damaged: its {size:,} bytes have the hash {found}", place=str(self)
            )
        return path

    def place(self, sha256: str) -> str:
        """Say where content lies, for people; without passwords."""
        try:
            return mask(self._open().place(_final(sha256)))
        except Exception:  # noqa: BLE001 - words for an error that is under way
            return f"{self}/{_final(sha256)}"

    def claim(self) -> None:
        """See once that this is no other database's storage, whose pruning would delete our files; make it ours if it is new.

        Raises StorageError.
        """
        if self._owner is None:
            return
        own = self._owner()
        with self._telling("store a file"):
            backend = self._open()
            if not backend.has(_OWNER):
                incoming = f"incoming/{os.urandom(16).hex()}"
                with backend.make(incoming) as out:
                    out.write(own.encode())
                    backend.keep(out)
                backend.move(incoming, _OWNER)
        self._compare(own)
        self._owner = None

    def try_out(self) -> None:
        """See whether files could be put here, as far as that is to be seen without putting one.

        Raises StorageError.
        """
        with self._telling("store a file"):
            self._open().try_out()
            is_owned = self._owner is not None and self._open().has(_OWNER)
        if is_owned and self._owner is not None:
            self._compare(self._owner())

    def _compare(self, own: str) -> None:
        with self._telling("store a file"), self._open().read(_OWNER) as stream:
            found = stream.read(100).decode("ascii", "replace")
        if found != own:
            raise StorageError(
                f"{self} has the files of another database ({found[:40]!r} in {self._open().place(_OWNER)}, expected {own!r}):"
                " each needs a `storage` of its own. If that database is gone, delete that file.",
                place=str(self),
            )

    # -- for prune: what another one has deleted meanwhile is deleted

    def is_there(self) -> bool:
        """Say whether anything was ever put here. Raises StorageError."""
        backend = self._open()
        return not isinstance(backend, Folder) or os.path.isdir(backend.path)

    def old(self, seconds: float) -> Iterator[list[str]]:
        """Yield hashes of content that was stored longer ago than that, by the hundred."""
        before = clock.wall() - seconds
        for first in range(256):
            with self._telling("list files"):
                found = [
                    name
                    for name, written in self._open().list(f"{first:02x}")
                    if _SHA256.fullmatch(name) and (written is None or written < before)
                ]
            for i in range(0, len(found), 100):
                yield found[i : i + 100]

    def throw_away(self, sha256: str) -> None:
        """Put content into the bin, from where it is deleted, or comes back, after an hour."""
        with self._telling("delete a file"), contextlib.suppress(FileNotFoundError):
            self._open().move(_final(sha256), f"bin/{clock.wall():.0f}-{sha256}")

    def thrown_away(self, seconds: float) -> list[tuple[str, str]]:
        """Return what has been in the bin for longer: the name there and the hash."""
        before = clock.wall() - seconds
        with self._telling("list files"):
            found = [(name, _BINNED.fullmatch(name)) for name, _ in self._open().list("bin")]
        return [(f"bin/{name}", match[2]) for name, match in found if match and int(match[1]) < before]

    def take_back(self, name: str, sha256: str) -> None:
        """Put content from the bin where it was."""
        with self._telling("restore a file"), contextlib.suppress(FileNotFoundError):
            if self._open().has(_final(sha256)):
                self._open().remove(name)
            else:
                self._open().move(name, _final(sha256))

    def delete(self, name: str) -> None:
        """Delete content from the bin, for good."""
        with self._telling("delete a file"), contextlib.suppress(FileNotFoundError):
            self._open().remove(name)

    def tidy(self, seconds: float) -> int:
        """Delete what was begun to be stored longer ago, and was not finished; return how many that were."""
        before, count = clock.wall() - seconds, 0
        with self._telling("list files"):
            for name, written in list(self._open().list("incoming")):
                if written is not None and written < before:
                    with contextlib.suppress(FileNotFoundError):
                        self._open().remove(f"incoming/{name}")
                    count += 1
        return count

    # -- within

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Turn whatever goes wrong in the block into a StorageError that says where, and what it was to do."""
        try:
            yield
        except (StorageError, FileError, SourceError):
            raise
        except Exception as error:
            words = (
                (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            )
            where = getattr(error, "filename", None)
            raise StorageError(
                f"cannot {what} in {where if isinstance(where, str) else self}: {mask(words)} (setting `storage`)",
                place=str(self),
            ) from error

    def _open(self) -> Backend:
        if self._backend is None:
            path = local_path(self.url)
            self._backend = Remote(self.url) if path is None else Folder(path)
        return self._backend

    def _find(self, sha256: str) -> str | None:
        if not _SHA256.fullmatch(sha256):
            return None
        backend = self._open()
        for _ in range(2):
            if backend.has(_final(sha256)):
                return _final(sha256)
            for name, _ in backend.list("bin"):
                if name.endswith(sha256):
                    return f"bin/{name}"
        return None


class SourceError(Exception):
    """Not the storage but what was to be stored cannot be read; `__cause__` says why."""


def _copy(stream: IO[bytes], write: Callable[[Any], Any], limit: int | None) -> tuple[str, int]:
    """Copy a stream to its end; return the hash and the length of what was copied."""
    digest, size = hashlib.sha256(), 0
    # of a file, without a copy; what else calls itself a stream has at least `read`
    buffer = memoryview(bytearray(_PIECE)) if isinstance(stream, io.FileIO | io.BufferedReader) else None
    while True:
        try:
            if buffer is not None and isinstance(stream, io.FileIO | io.BufferedReader):
                piece = buffer[: stream.readinto(buffer)]
            else:
                piece = memoryview(stream.read(_PIECE) or b"")
        except (StorageError, FileError):
            raise
        except Exception as error:
            raise SourceError from error
        if not piece:
            return digest.hexdigest(), size
        size += len(piece)
        if limit is not None and size > limit:
            raise FileError(f"it has more than the {show_size(limit)} of file_limit")
        digest.update(piece)
        while piece:
            # a bare file may take less than all
            piece = piece[write(piece) or len(piece) :]


def _final(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _try(action: Callable[[str], None], name: str) -> None:
    try:
        action(name)
    except Exception:  # noqa: BLE001 - to tidy up after another error, which says more; `tidy` does the rest
        pass


def open_storage(settings: Settings, folder: str, owner: Callable[[], str] | None = None) -> Storage:
    """Return the storage of a database, as settings say; see `locate`.

    Where nobody has named it, it lies where its database says, and cannot be another's.
    """
    url = locate(settings.storage, settings.database, folder)
    return Storage(url, owner if settings.storage else None)
