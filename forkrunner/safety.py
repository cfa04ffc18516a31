"""What a process must not take into a fork, and which import has made it.

While the application is imported, `Watch` looks after each import at the threads, the open files and the children of the
process; an import that is over when something new is there has made it. Used in the mold, and by `forkrunner check`.
"""

from __future__ import annotations

import builtins
import os
import sys

from . import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any, NamedTuple, Self

    class Finding(NamedTuple):
        kind: str
        what: str
        #: The import, the function of `preload` or the hook.
        by: str

else:
    from collections import namedtuple

    Finding = namedtuple("Finding", ("kind", "what", "by"))

#: Kind → what becomes of it in a job.
EFFECTS = {
    "thread": "jobs do not have it, and a lock that it holds at a fork stays locked in them",
    "gRPC": "it does not work in a process that was forked from one that has used it: make channels in the task",
    "socket": "jobs find it closed: connect in the task, or in an after_fork hook",
    "SQLite file": "jobs find it closed: SQLite must not be used on both sides of a fork",
    "event loop": "it is of no use in jobs, which must not share it: make it in the task",
    "process": "all jobs share it, with the pipes to it, and it ends with the mold: start it in the task, or see to it that it serves many at once",
    "GPU": "CUDA and its like do not work in a process that was forked from one that uses them: use the GPU in the task",
    "Objective-C": "macOS ends a forked process that uses it; OBJC_DISABLE_INITIALIZE_FORK_SAFETY=YES allows it at your risk",
}
_SQLITE = (".db", ".sqlite", ".sqlite3", "-wal", "-shm")
_GPU = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")
#: Beginnings of the names that gRPC's C core gives its threads.
_GRPC = ("grpc_", "event_engine", "timer_manager", "default-executo", "resolver-executo")
_FRAMEWORKS = ("objc", "AppKit", "Foundation", "CoreFoundation", "_scproxy")


def kind_of_file(target: str) -> str | None:
    """Say what an open file is, by what /proc/self/fd says of it; None: it may be shared."""
    if target.startswith("socket:"):
        return "socket"
    if target.startswith("anon_inode:[eventpoll]"):
        return "event loop"
    if target.startswith(_GPU):
        return "GPU"
    return "SQLite file" if target.endswith(_SQLITE) else None


class Watch:
    """Looks what appears in this process while it is entered, and who made it."""

    def __init__(self) -> None:
        #: Thread, open file or child → what it is; what was there before is nobody's.
        self._known: dict[object, Finding] = dict.fromkeys(_present(), Finding("", "", ""))
        self._import: Any = None

    def __enter__(self) -> Self:
        self._import = builtins.__import__
        builtins.__import__ = self._watched
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        builtins.__import__ = self._import
        if error is not None:
            error.__traceback__ = _without_us(error.__traceback__)

    def _watched(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        before = len(sys.modules)
        base = _absolute(name, globals, level)
        parts = [f"{base}.{part}" for part in fromlist or () if f"{base}.{part}" not in sys.modules]
        try:
            return self._import(name, globals, locals, fromlist, level)
        finally:
            # one that had been imported has made nothing now
            if len(sys.modules) != before:
                # `from package import module` imports the module
                self.look(", ".join(part for part in parts if part in sys.modules) or base)

    def look(self, by: str) -> None:
        """What is new now was made by `by`."""
        for key, (kind, what) in _present().items():
            if key not in self._known:
                self._known[key] = Finding(kind, what, by)

    def findings(self) -> list[Finding]:
        """Return what was made, and is still there."""
        now = _present()
        # gRPC's threads end before a fork by themselves, but what it shares over sockets and epoll does not
        users = dict.fromkeys(
            finding.by for finding in self._known.values() if finding.what.startswith(_GRPC)
        )
        found = [Finding("gRPC", "has been used", by) for by in users]
        found += [
            finding
            for key, finding in self._known.items()
            if finding.kind and key in now and not (finding.kind == "event loop" and finding.by in users)
        ]
        used = [name for name in _FRAMEWORKS if name in sys.modules]
        if sys.platform == "darwin" and used and "OBJC_DISABLE_INITIALIZE_FORK_SAFETY" not in os.environ:
            found.append(Finding("Objective-C", ", ".join(used), "the application"))
        return found


def sentence(kind: str, what: str, by: str) -> str:
    return f"{kind} {what}, made by {by}: {EFFECTS[kind]}"


def _present() -> dict[object, tuple[str, str]]:
    """Return this process's threads but the first, its children, and those of its open files that no fork may share."""
    return dict([*_threads(), *_processes(), *_files()])


def _threads() -> Iterator[tuple[object, tuple[str, str]]]:
    try:
        ids = [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return
    if len(ids) < 2:
        return
    # it may be just being imported, and then it has not got that yet
    enumerate_threads = getattr(sys.modules.get("threading"), "enumerate", None)
    names = {thread.native_id: thread.name for thread in enumerate_threads()} if enumerate_threads else {}
    for id in ids:
        if id == os.getpid():
            continue
        try:
            with open(f"/proc/self/task/{id}/comm") as file:
                own = file.read().strip()
        except OSError:
            continue
        yield ("thread", id), ("thread", names.get(id) or f"{own} (not Python's)")


def _processes() -> Iterator[tuple[object, tuple[str, str]]]:
    for pid in process.children():
        # dead and not reaped: it has been used
        if process.session_of(pid) is not None:
            yield ("process", pid), ("process", f"{_program(pid)} (pid {pid})")


def _program(pid: int) -> str:
    """Name the program that a child runs; what else is in its command line may be nobody's business."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read()
        with open("/proc/self/cmdline", "rb") as file:
            forked = file.read() == line
    except OSError:
        return "of an unknown program"
    return "forked" if forked else os.fsdecode(os.path.basename(line.split(b"\0")[0])) or "without a name"


def _files() -> Iterator[tuple[object, tuple[str, str]]]:
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        kind = kind_of_file(target)
        if kind is not None:
            yield (name, target), (kind, _peer(int(name)) or target if kind == "socket" else target)


def _peer(fd: int) -> str | None:
    """Say to where a socket leads, if the application has loaded what can tell."""
    # the one in C: the other may be just being imported
    module = sys.modules.get("_socket")
    if module is None:
        return None
    copy = module.socket(fileno=os.dup(fd))
    try:
        where = copy.getpeername()
    except OSError:  # it listens, for one
        where = copy.getsockname()
    finally:
        copy.close()
    if isinstance(where, tuple):
        return f"{where[0]}:{where[1]}"
    return os.fsdecode(where) if where else None


def _absolute(name: str, globals: Any, level: int) -> str:
    if not level:
        return name
    package: str = (globals or {}).get("__package__") or ""
    base = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{base}.{name}" if name else base


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    """Leave our own frames out of what an import has raised: it is about the application."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    if traceback is not None:
        traceback.tb_next = _without_us(traceback.tb_next)
    return traceback
