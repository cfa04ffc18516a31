"""Files as part of a job: what an application passes to a task, and what a task returns.

    convert.enqueue(InputFile.from_path("shot.txt"))        # stored, before the job is there
    def convert(source: InputFile) -> OutputFile:           # in the job a path, of a copy of its own
        ...
        return OutputFile("out.txt", name="shot.txt")       # stored, kept, downloadable

Public. Costs the import of pathlib and is loaded only where one of the two names is used.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import weakref
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol, Self, cast

from .errors import FileError
from .filenames import address, display_name, guess_type, safe_name, suffix_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .records import File
    from .storage import Storage

#: As in a Content-Type header.
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}(; ?charset=[\w-]{1,40})?", re.ASCII)
_PIECE = 1 << 20


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class InputFile(PosixPath):
    """A file that a job gets: a `pathlib.Path` that knows what its owner calls it.

    Made by `from_path`, `from_bytes` or `from_stream`. In the job it is the path of a copy on the local disk, which is the
    job's own and goes with it.
    """

    #: Bytes; None for a stream that was not read.
    size: int | None = None
    #: Of its content, hexadecimal; None before it is stored.
    sha256: str | None = None

    _shown: str = ""
    _data: bytes | None = None
    _stream: Readable | None = None
    #: Where the stream began; None: it was not read yet, or cannot go back.
    _start: int | None = None

    forkrunner_file = "InputFile"

    @property
    def display_name(self) -> str:
        """What its owner calls it: for people, never part of a path."""
        return self._shown or display_name(self.name)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, name: str | None = None) -> Self:
        """Take a file of this host; it is read when the job is made. `name` is by default that of the file.

        What is no regular file, a symbolic link too, is refused then: `Path.resolve()` says that its target is meant.
        """
        found = cls(os.path.abspath(path))
        found._shown = "" if name is None else display_name(name)
        return found

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, name: str) -> Self:
        """Take bytes."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"from_bytes: expected bytes, got {type(data).__name__}")
        found = cls._not_there_yet(name)
        found._data = bytes(data)
        found.size = len(found._data)
        return found

    @classmethod
    def from_stream(cls, stream: Readable, *, name: str) -> Self:
        """Take what a binary stream has from where it stands, of whatever length: an upload, say.

        It is read when the job is made, in pieces, and is not closed. What could not be stored is read again at the next call,
        from where it began; a stream that cannot go back is refused then.
        """
        if not hasattr(stream, "read") or isinstance(stream.read(0), str):
            raise TypeError(f"from_stream: expected a stream of bytes, got {type(stream).__name__}")
        found = cls._not_there_yet(name)
        found._stream = stream
        return found

    @classmethod
    def stored(cls, sha256: str, size: int, name: str, path: str | os.PathLike[str] | None = None) -> Self:
        """Name what is in the storage already, and where a copy of it is, if there is one."""
        found = cls(os.path.join(os.devnull, sha256) if path is None else path)
        found._shown, found.sha256, found.size = display_name(name), sha256, size
        return found

    @classmethod
    def _not_there_yet(cls, name: str) -> Self:
        import tempfile

        found = cls(os.path.join(tempfile.gettempdir(), f"forkrunner-{os.urandom(8).hex()}{suffix_of(name)}"))
        found._shown = display_name(name)
        return found

    def __fspath__(self) -> str:
        path = super().__str__()
        if self._data is not None or self._stream is not None:
            self._write_to(path)
        return path

    def __str__(self) -> str:
        return self.__fspath__()

    def __repr__(self) -> str:
        return f"InputFile({super().__str__()!r})"

    def _write_to(self, path: str) -> None:
        """Make a file of bytes or a stream, since somebody wants a path: the task is called here and now, and not as a job."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, _remove, path)
        with self.open_content() as stream, open(fd, "wb") as file:
            while piece := stream.read(_PIECE):
                file.write(piece)
        self._data = self._stream = None

    @contextlib.contextmanager
    def open_content(self) -> Iterator[IO[bytes]]:
        """Open what is to be stored.

        Raises FileError when it is no file, or when it is changed meanwhile.
        """
        if self._data is not None:
            import io

            yield io.BytesIO(self._data)
        elif self._stream is not None:
            yield self._from_its_start(self._stream)
        else:
            with open_steady(super().__str__()) as stream:
                yield stream

    def _from_its_start(self, stream: Readable) -> IO[bytes]:
        """Return the stream as it was first met: what a call that failed has left of it must not pass for all."""
        if isinstance(stream, _Once):
            if stream.begun:
                raise FileError(
                    "it was read before, and is a stream that cannot go back; make a new InputFile of it"
                )
        elif self._start is not None:
            try:
                cast("IO[bytes]", stream).seek(self._start)
            except (OSError, ValueError) as error:
                raise FileError(f"it was read before, and its stream does not go back: {error}") from error
        elif (start := _position(stream)) is None:
            self._stream = stream = _Once(stream)
        else:
            self._start = start
        return cast("IO[bytes]", stream)

    # what is derived from it, its folder say, is a plain path

    def with_segments(self, *parts: str | os.PathLike[str]) -> PosixPath:
        return PosixPath(*parts)

    if sys.version_info < (3, 12):

        @classmethod
        def _from_parsed_parts(cls, *parts: Any) -> Any:  # asked there instead
            return PosixPath._from_parsed_parts(*parts)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return PosixPath, (os.fspath(self),)


class _Once:
    """A stream that cannot go back, and whether anything of it was read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.begun = False

    def read(self, size: int = -1, /) -> bytes:
        self.begun = True
        return self._stream.read(size)


def _position(stream: Any) -> int | None:
    """Return where a stream stands, None if it cannot be brought back there."""
    try:
        position = stream.tell() if stream.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None
    return position if isinstance(position, int) else None


class Kept:
    """A file that the storage keeps, whoever has it: it can be read, copied and downloaded."""

    #: What its owner calls it: for people, never part of a path.
    display_name: str
    #: Who knows it may download the file; None for one of the arguments, and before it is stored.
    token: str | None

    def open(self) -> IO[bytes]:
        """Open the content to be read. Raises StorageError."""
        raise NotImplementedError

    @property
    def address(self) -> str | None:
        """Where it can be downloaded, below the mount of the endpoint, by whoever knows it; None for one of the arguments."""
        return None if self.token is None else address(self.token, self.display_name)

    def read(self) -> bytes:
        """Return the content. Raises StorageError."""
        with self.open() as stream:
            return stream.read()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the content to a file, or into a folder under its name made safe; return the path.

        Raises StorageError, OSError.
        """
        target = Path(path, safe_name(self.display_name)) if os.path.isdir(path) else Path(path)
        with self.open() as stream, open(target, "wb") as copy:
            while piece := stream.read(_PIECE):
                copy.write(piece)
        return target


class OutputFile(Kept):
    """A file that a task returns, alone or anywhere in its result: it is kept, and can be downloaded.

    Where the result is read its content is had by `open` and `save`.
    """

    forkrunner_file = "OutputFile"

    def __init__(
        self,
        content: str | os.PathLike[str] | bytes | bytearray | memoryview,
        *,
        name: str | None = None,
        media_type: str | None = None,
    ) -> None:
        """Name a file, which is read when the task has returned, or its content.

        `name` is what whoever downloads it gets; it is by default that of the file. `media_type` is by default told from
        the name. Raises FileError for a media type that is none.
        """
        if isinstance(content, (bytes, bytearray, memoryview)):
            self._content: str | bytes | None = bytes(content)
            if name is None:
                raise TypeError("OutputFile: bytes need a name")
        else:
            self._content = os.fspath(content)
        if media_type is not None and not _MEDIA_TYPE.fullmatch(media_type):
            raise FileError(f"expected a media type as text/plain, got {media_type!r}", file=name)
        self.display_name = display_name(os.path.basename(os.fspath(content)) if name is None else name)  # type: ignore[arg-type]
        self.media_type = media_type or guess_type(self.display_name)
        #: Bytes, the hash of the content, and who knows what may download it; None until it is stored.
        self.size: int | None = None
        self.sha256: str | None = None
        self.token: str | None = None
        self._storage: Storage | None = None

    @classmethod
    def stored(cls, wire: dict[str, Any], storage: Storage | None) -> Self:
        """Make one of what a result says of it."""
        found = object.__new__(cls)
        found._content, found._storage = None, storage
        found.display_name, found.media_type = display_name(wire["name"]), wire["media_type"]
        found.size, found.sha256, found.token = wire["size"], wire["sha256"], wire["token"]
        return found

    def __repr__(self) -> str:
        return f"<OutputFile {self.display_name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputFile) and other.token == self.token and self.token is not None

    def __hash__(self) -> int:
        return hash(self.token)

    @contextlib.contextmanager
    def open_content(self) -> Iterator[IO[bytes]]:
        """Open what is to be stored. Raises FileError when it is no file, or when it is changed meanwhile."""
        if isinstance(self._content, bytes):
            import io

            yield io.BytesIO(self._content)
        elif self._content is not None:
            with open_steady(self._content) as stream:
                yield stream
        else:
            with self.open() as stream:
                yield stream

    def open(self) -> IO[bytes]:
        """Open the content to be read.

        Raises StorageError.
        """
        if self._storage is None or self.sha256 is None:
            raise FileError(f"{self.display_name} is not stored yet", file=self.display_name)
        return self._storage.open(self.sha256)


class StoredFile(Kept):
    """A file of a job, as `Job.files` has it."""

    def __init__(self, row: File, storage: Storage) -> None:
        #: `arguments.source`, `arguments.sources[1]`, `result`, `result[0]`.
        self.place = row.place
        self.display_name = row.name
        #: Bytes.
        self.size = row.size
        self.sha256 = row.sha256
        #: Of a result only; so is the token, and who knows that may download the file.
        self.media_type, self.token = row.media_type, row.token
        self._storage = storage

    def __repr__(self) -> str:
        return f"<StoredFile {self.place} {self.display_name!r} {self.size} bytes>"

    def open(self) -> IO[bytes]:
        """Open the content to be read. Raises StorageError."""
        return self._storage.open(self.sha256)


def save_new(row: File, storage: Storage, folder: Path) -> Path:
    """Copy a file into a folder, which is made, under a name that is free there; return the path.

    Raises StorageError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = safe_name(row.name)
    stem, suffix = name.removesuffix(suffix_of(name)), suffix_of(name)
    number = 1
    while True:
        try:
            return storage.fetch(row.sha256, folder, name)
        except FileExistsError:
            number += 1
            name = f"{stem}-{number}{suffix}"


@contextlib.contextmanager
def open_steady(path: str) -> Iterator[IO[bytes]]:
    """Open a regular file by its own name, and see at the end that nobody has changed it meanwhile.

    Raises FileError.
    """
    try:
        # without waiting for whoever writes into a pipe
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        words = error.strerror
        if os.path.islink(path):
            words = "it is a symbolic link; if what it leads to is meant, pass Path(…).resolve()"
        raise FileError(f"{path}: {words}", file=path) from error
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        os.close(fd)
        kind = _KINDS.get(stat.S_IFMT(before.st_mode), "no file")
        raise FileError(f"{path}: expected a file, got {kind}", file=path)
    with open(fd, "rb", buffering=0) as stream:
        yield stream
        after = os.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (
            after.st_size,
            after.st_mtime_ns,
        ) or stream.tell() != after.st_size:
            raise FileError(f"{path} was changed while it was read; try again when it is whole", file=path)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
