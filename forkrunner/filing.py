"""What becomes of files on their way: into the storage and a row, out of them into a task, and back.

One `Files` goes with the values of one call, or of one job, through `arguments.py` and `typed.py`, which ask it for the
JSON of a file (`put`) and for the file of a JSON (`take`). Web processes, the command line and children use it; molds
import it, so it loads what is heavy when there is a file.
"""

from __future__ import annotations

from .describing import describe
from .errors import FileError
from .filenames import safe_name, suffix_of
from .payload import Misfit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .storage import Storage

#: What stands for a file in JSON.
_INPUT = {"name": str, "size": int, "sha256": str}
_OUTPUT = _INPUT | {"media_type": str, "token": str}


class Files:
    """The files of a call that is made, of a job that runs, or of a result that is read."""

    __slots__ = ("_count", "_find", "_made", "_part", "_storage", "_taken", "folder", "limit", "rows")

    def __init__(self, storage: Callable[[], Storage], limit: int, folder: str | None = None) -> None:
        """Prepare; `storage` is called when there is a file.

        `limit` is that of a file, bytes. With a `folder` the files of arguments are fetched into it, as a task needs them.
        """
        self._find = storage
        self._storage: Storage | None = None
        self.limit = limit
        self.folder = folder
        #: Rows for `forkrunner_files`, without the job's id.
        self.rows: list[dict[str, Any]] = []
        #: What was stored, by what stands for it: what is taken then is the same object.
        self._made: dict[str, list[Any]] = {}
        #: Names of copies.
        self._taken: set[str] = set()
        self._part, self._count = "result", 0

    @property
    def storage(self) -> Storage:
        if self._storage is None:
            self._storage = self._find()
        return self._storage

    def begin(self, part: str) -> None:
        """Say what the next files belong to: `result`, or `arguments.` and the name of a parameter."""
        self._part, self._count = part, 0

    def put(self, file: Any) -> dict[str, Any]:
        """Store a file and return what stands for it in JSON.

        Raises: FileError, StorageError; Misfit for a file that does not belong there.
        """
        kind = file.forkrunner_file
        if (kind == "OutputFile") != (self._part == "result"):
            raise Misfit(
                "an OutputFile is for results; pass an InputFile"
                if kind == "OutputFile"
                else "an InputFile is for arguments; return OutputFile(path)"
            )
        name = file.display_name or file.name
        if kind == "InputFile" and file.sha256 is not None and self.storage.has(file.sha256):
            sha256, size = file.sha256, file.size
        else:
            try:
                with file.open_content() as stream:
                    sha256, size = self.storage.put(stream, self.limit)
            except FileError as error:
                text = str(error)
                raise FileError(
                    text if text.startswith("/") else f"{name}: {text}", file=name
                ) from error.__cause__
            file.sha256, file.size = sha256, size
        wire = {"name": name, "size": size, "sha256": sha256}
        if kind == "OutputFile":
            import secrets

            file.token = secrets.token_urlsafe(32)
            wire |= {"media_type": file.media_type, "token": file.token}
        self._note(wire)
        self._made.setdefault(f"{sha256} {name}", []).append(file)
        return wire

    def take(self, kind: Any, wire: Any) -> Any:
        """Return the file that a JSON stands for; see `put`.

        Raises: Misfit for what stands for none; FileMissing, StorageError.
        """
        what = kind.forkrunner_file
        expected = _INPUT if what == "InputFile" else _OUTPUT
        if not isinstance(wire, dict) or any(
            type(wire.get(key)) is not type_ for key, type_ in expected.items()
        ):
            raise Misfit(
                f"expected {what}, got {describe(wire)}{_advice(wire) if what == 'InputFile' else ''}"
            )
        sha256, size, name = wire["sha256"], wire["size"], wire["name"]
        if what == "OutputFile":
            return kind.stored(wire, self.storage)
        if known := self._made.get(f"{sha256} {name}"):
            return known.pop(0) if len(known) > 1 else known[0]
        if self.folder is not None:
            path = self.storage.fetch(sha256, self.folder, self._file_name(suffix_of(name)))
            return kind.stored(sha256, size, name, path)
        if not self.storage.has(sha256):
            raise Misfit(f"there is no file with this sha256 in {self.storage}; pass an InputFile")
        self._note({"name": name, "size": size, "sha256": sha256})
        return kind.stored(sha256, size, name)

    def _note(self, wire: dict[str, Any]) -> None:
        place = self._part if self._count == 0 else f"{self._part}[{self._count}]"
        if self._count == 1:
            # the first of several
            self.rows[-1]["place"] = f"{self._part}[0]"
        self._count += 1
        self.rows.append({"place": place, **wire})

    def _file_name(self, suffix: str) -> str:
        """Name a copy after its parameter, and keep the kind of file that its owner's name tells."""
        part = safe_name(self._part.removeprefix("arguments."))
        name = f"{part}{suffix}"
        while name in self._taken:
            self._count += 1
            name = f"{part}-{self._count}{suffix}"
        self._taken.add(name)
        return name

    def put_all(self, value: Any) -> Any:
        """Return a value of lists and dicts with its files stored and replaced by what stands for them."""
        if hasattr(type(value), "forkrunner_file"):
            return self.put(value)
        if isinstance(value, dict):
            return {key: self.put_all(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.put_all(item) for item in value]
        return value


class FileKind:
    """What a parameter takes that is annotated with InputFile, or a function returns with OutputFile; see `plain.Kind`."""

    has_files = True

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __str__(self) -> str:
        return str(self.kind.forkrunner_file)

    def dump(self, value: Any, files: Files | None = None) -> Any:
        if not isinstance(value, self.kind):
            raise Misfit(f"expected {self}, got {describe(value)}{_advice(value)}")
        return needed(files).put(value)

    def load(self, wire: Any, files: Files | None = None) -> Any:
        return needed(files).take(self.kind, wire)


def needed(files: Files | None) -> Files:
    """Raises: Misfit where there is no storage for a file."""
    if files is None:
        raise Misfit(
            "a file is taken only where there is a storage: in the call of a runner's task, and in its job"
        )
    return files


def is_file(kind: object) -> bool:
    """Say whether a type is InputFile or OutputFile."""
    return isinstance(kind, type) and hasattr(kind, "forkrunner_file")


def _advice(value: object) -> str:
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        return "; InputFile.from_path(…) makes one of a path"
    if isinstance(value, (bytes, bytearray)):
        return "; InputFile.from_bytes(…, name=…) makes one of bytes"
    return (
        "; InputFile.from_stream(…, name=…) makes one of a stream"
        if hasattr(value, "read") and not is_file(type(value))
        else ""
    )
