"""Every fork, wait, kill, prctl, signal and title: the system calls of the roles, and nothing else.

No decision is taken here. Linux first: what another system lacks (prctl, memfd,
/proc) is left out there, and the function says what is lost.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from types import FrameType
    from typing import Any, NoReturn

LINUX = sys.platform == "linux"

# without use_errno, which costs each forked child some thirty copied pages more
_libc = ctypes.CDLL(None)
_set_mask = _libc.pthread_sigmask
_prctl = _libc.prctl if LINUX else None
_flush_c = _libc.fflush
_copy = _libc.memcpy
# names of this module, since a look-up in another one costs each forked child two or three copied pages more
_getppid, _setsid, _close_range = os.getppid, os.setsid, os.closerange
#: signal.signal without its conversions to enums, which touched more pages in a child than all the rest
_set_handler = sys.modules["_signal"].signal
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_HIGHEST = 1 << 20

#: MAP_SHARED, MAP_ANONYMOUS, and on Linux MAP_NORESERVE.
_MAP_SHARED = 0x1 | 0x20 | 0x4000 if LINUX else 0x1 | 0x1000

# glibc's and musl's sigset_t have 128 bytes; macOS uses four of them
_SETMASK = int(signal.SIG_SETMASK)
_NO_SIGNALS, _ALL_SIGNALS = b"\0" * 128, b"\xff" * 128

#: Whoever started us may ignore some of these, which a new program would inherit.
_AS_NEW = [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE]

#: Asks a child for the stacks of its threads; a real-time signal that nobody else uses.
DUMP_SIGNAL = signal.SIGRTMIN + 5 if LINUX else signal.SIGINFO  # type: ignore[attr-defined,unused-ignore]


# ---------------------------------------------------------------------------------- family


def tie_to(parent: int) -> None:
    """Make the kernel kill this process when `parent` dies; exit if it is dead already.

    To be called first in a new process, and only where the parent has one
    thread: the tie is to the thread that forked. Where there is no prctl the
    caller notices its parent's end by end-of-file on its channel only.
    """
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:  # it died before the prctl
        os._exit(127)


def adopt_orphans() -> None:
    """Become the parent of whatever descendants leave behind when they die."""
    if _prctl:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def leave(parent: int, base: int, title: bytes) -> None:
    """Make a forked process one of its own, in this order; one function, since each call costs copied pages.

    From `base` on descriptors are the parent's own. The title is one of `title_bytes`.
    """
    # first, since from here on the parent may die at any time
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if _getppid() != parent:  # it died before the prctl
        os._exit(127)
    try:
        # a group of its own can be killed as one, and Ctrl-C in a terminal is not for jobs
        _setsid()
    except PermissionError:  # it leads one already: a mold that rehearses
        pass
    # what the job's processes leave behind falls to the job, and after it to the mold
    if _prctl:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # the mold blocks all signals and has no handlers: here they are as in any new process
    _set_mask(_SETMASK, _NO_SIGNALS, None)
    # before the application's code can run with the mold's descriptors
    _close_range(base, _HIGHEST)
    if _title_place is not None:
        _copy(_title_place, title, _TITLE_LENGTH)
    else:
        show_title(title)


#: The caller has blocked all signals, in a mold for ever: one that came between the fork and
#: the child's own set-up would be handled by the wrong process.
fork = os.fork


def unblock() -> None:
    """Unblock all signals: whoever started us may have blocked some."""
    _set_mask(_SETMASK, _NO_SIGNALS, None)


def spawn(
    argv: list[str],
    environment: dict[str, str],
    keep: Collection[int],
    output: int | None = None,
    hold: Collection[int] = (),
) -> int:
    """Start a new program in a session of its own with the descriptors `keep` open; return its pid.

    What it prints goes to the descriptor `output`, or where ours goes. The signals in `hold` wait until it unblocks them.
    """
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    if output is not None:
        actions += [(os.POSIX_SPAWN_DUP2, output, fd) for fd in (1, 2)]
    for fd in keep:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            # away from the terminal's group: Ctrl-C is for the supervisor alone
            setsid=True,
            setsigmask=list(hold),
            setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP],
        )
    finally:
        for fd in keep:
            os.set_inheritable(fd, False)


def spawn_away(argv: list[str], environment: dict[str, str], folder: str) -> None:
    """Start a program that is nobody's child, in a session of its own, with no descriptor of ours but 1 and 2.

    For a web process, which may have threads: nothing of ours runs in it between fork and exec. It returns when the program
    is under way, after a millisecond or two.

    Raises:
        OSError: no process can be made.
    """
    # in `os` gevent has put its own, which wait for its loop; during an import that may be for ever
    import posix

    actions: list[Any] = [(posix.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    # whatever is inheritable, as some servers' listening sockets are
    actions += [(posix.POSIX_SPAWN_CLOSE, int(name)) for name in os.listdir("/dev/fd") if int(name) > 2]
    # the shell is our child, and ends at once; it sets a background process to ignore INT and QUIT
    script = 'cd -- "$1" && shift && "$@" &'
    pid = posix.posix_spawn(
        "/bin/sh",
        ["sh", "-c", script, "sh", folder, *argv],
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=_AS_NEW,
    )
    try:
        posix.waitpid(pid, 0)
    except ChildProcessError:  # the server reaps all
        pass


def spawn_beside(argv: list[str], environment: dict[str, str]) -> int:
    """Start a command with our terminal, group and descriptors 0, 1 and 2, which gets TERM when we die; return its pid.

    Raises:
        OSError: no process can be made.
    """
    code = "import sys; from forkrunner.process import exec_tied; exec_tied(int(sys.argv[1]), sys.argv[2:])"
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code, str(os.getpid()), *argv],
        environment,
        setsigmask=[],
        setsigdef=_AS_NEW,
    )


def exec_tied(parent: int, argv: list[str]) -> NoReturn:
    """Become a command that gets TERM when `parent` dies; status 127 or 126 if that cannot be, as shells have it."""
    # the interpreter has changed them, and what is ignored stays so over an exec
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        say(f"forkrunner: {argv[0]}: {error.strerror}\n")
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def watch_process(pid: int) -> int:
    """Return a descriptor that is readable when the process has ended; -1 if the kernel has no such thing.

    Raises:
        ProcessLookupError: it has ended.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return -1


def become(argv: list[str], environment: dict[str, str], keep: Collection[int]) -> NoReturn:
    """Run another program in this process, with all signals blocked and the descriptors `keep` open.

    It has our pid, our children and the signals that came meanwhile, and it must unblock them.

    Raises:
        OSError: it cannot be started; then all is as before.
    """
    for fd in keep:
        os.set_inheritable(fd, True)
    # a signal between here and the handlers of the new program would end it
    _set_mask(_SETMASK, _ALL_SIGNALS, None)
    try:
        os.execve(argv[0], argv, environment)
    finally:
        unblock()
        for fd in keep:
            os.set_inheritable(fd, False)


class Inside:
    """Be in another folder for a moment.

    Raises:
        OSError: there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(self._folder)
        except OSError:
            os.close(self._here)
            raise

    def __exit__(self, *exc: object) -> None:
        os.fchdir(self._here)
        os.close(self._here)


def reap() -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Collect every dead child: (pid, wait status, what it used)."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status, usage


def reap_all(timeout_ms: int = 2000, keep: Collection[int] = ()) -> bool:
    """Kill and collect all children but `keep`, until there is none; False if some would not die."""
    for _ in range(max(timeout_ms // 5, 1)):
        left = [pid for pid in children() if pid not in keep]
        if not left:
            return True
        for pid in left:
            kill(pid, signal.SIGKILL)
        for pid in left:
            try:
                os.waitpid(pid, os.WNOHANG)  # none but these: what is kept may have died too
            except ChildProcessError:
                pass
        select.select([], [], [], 0.005)
    return not [pid for pid in children() if pid not in keep]


def children(pid: int | None = None) -> list[int]:
    """List the pids of the direct children (of the main thread of `pid`), dead ones included."""
    pid = pid or os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def kill(pid: int, number: int) -> bool:
    """Send a signal; False if there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it changed its user
        return True
    return True


def kill_group(pid: int, number: int) -> None:
    """Signal the process group that the child `pid` leads.

    Never getpgid(pid): right after a fork that is still our own group.
    """
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        kill(pid, number)


def descendants(pid: int) -> list[int]:
    """List all that a process has started and that started, parents before children, also by its other threads."""
    found = [pid]
    for one in found:
        try:
            threads = os.listdir(f"/proc/{one}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{one}/task/{thread}/children", "rb") as file:
                    found += [int(word) for word in file.read().split()]
            except OSError:
                pass
    return found[1:]


def kill_tree(pid: int) -> list[int]:
    """Kill `pid` and all that it started, also what left its process group; return the pids, `pid` first."""
    kill(pid, signal.SIGSTOP)  # so that it does not grow at the root meanwhile
    killed = [pid, *descendants(pid)]
    for one in killed[::-1]:
        kill(one, signal.SIGKILL)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    return killed


def freeze(pid: int) -> None:
    """Stop the process group that the child `pid` leads, and all that has left the group."""
    kill_group(pid, signal.SIGSTOP)
    # what ran on while we looked may have started more
    frozen: set[int] = set()
    while new := [one for one in descendants(pid) if one not in frozen]:
        for one in new:
            kill(one, signal.SIGSTOP)
        frozen.update(new)


def thaw(pid: int) -> None:
    """Let go on what `freeze` has stopped, children first: a shell must not find its programs stopped."""
    for one in reversed(descendants(pid)):
        kill(one, signal.SIGCONT)
    kill_group(pid, signal.SIGCONT)


def remove_folders(*paths: str) -> int:
    """Start removing folders with all that is in them, which may take long; return the pid of who does it.

    Raises:
        OSError: no process can be made.
    """
    return os.posix_spawn("/bin/rm", ["rm", "-rf", "--", *paths], {}, setsigmask=[])


def session_of(pid: int) -> int | None:
    """Return the session of a process, which for a job's is the job's pid unless it made one of its own.

    None if it is gone, or dead and not reaped.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name may hold spaces and brackets: count from the last one
            state, _, _, session, *_ = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in (b"Z", b"X") else int(session)


class Family:
    """The list of this process's children, dead ones included, as the kernel keeps it: one system call a look."""

    def __init__(self) -> None:
        pid = os.getpid()
        try:
            self._fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # where there is none, what a job leaves behind is found by nobody
            self._fd = -1

    def look(self) -> bytes:
        """Return their pids, each followed by a space."""
        if self._fd < 0:
            return b""
        size = 1 << 14
        while len(data := os.pread(self._fd, size, 0)) == size:
            size *= 4
        return data


# --------------------------------------------------------------------------------- signals


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wake-up pipe has the number already. No logging, no I/O, no raise."""


def has_terminal() -> bool:
    """Say whether we talk to a terminal; it is none any more when it was closed."""
    return any(os.isatty(fd) for fd in (0, 1, 2))


class Signals:
    """Queues signals into a pipe that wakes the loop. One per process, in its main thread."""

    def __init__(self, numbers: Iterable[int]) -> None:
        # whoever started us may ignore SIGCHLD, which loses exit statuses
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if LINUX else _pipe()
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self.numbers = frozenset(numbers)
        for number in self.numbers:
            signal.signal(number, _noted)
        # whoever started us may block signals; and those that came while we became another program come now
        unblock()

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        """Return the signals since the last call, in order, SIGCHLD once at most."""
        try:
            got = list(os.read(self._read, 65536))
        except BlockingIOError:
            return []
        return [
            n for i, n in enumerate(got) if n in self.numbers and (n != signal.SIGCHLD or n not in got[:i])
        ]

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in self.numbers:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


class Deaths:
    """Wakes a mold when a child has died, without a handler and with all signals blocked.

    So a child has nothing to undo but the mask, and a TERM that is meant for all of
    forkrunner ends no job through its mold: signals are for the supervisor.
    """

    def __init__(self) -> None:
        _set_handler(signal.SIGCHLD, 0)  # if it is ignored, exit statuses are lost
        _set_mask(_SETMASK, _ALL_SIGNALS, None)
        if LINUX:
            wanted = ctypes.create_string_buffer((1 << signal.SIGCHLD - 1).to_bytes(128, "little"), 128)
            self._fd: int = _libc.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC)
        else:  # a handler, and the child has a pipe more that it does not know of
            unblock()
            self._fd = Signals([signal.SIGCHLD]).fileno()

    def fileno(self) -> int:
        return self._fd

    def take(self) -> None:
        """Forget what has come; `reap` finds all the dead."""
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            pass


class Poll:
    """Waits for several descriptors at once: the one line of a role that blocks."""

    def __init__(self) -> None:
        self._poll = select.poll()

    def watch(self, fd: int, *, write: bool = False) -> None:
        self._poll.register(fd, select.POLLIN | (select.POLLOUT if write else 0))

    def forget(self, fd: int) -> None:
        self._poll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """Return the descriptors that are ready, or none after `seconds` (infinite allowed)."""
        # rounded up: waking a moment too early would spin until the deadline
        timeout = None if seconds == float("inf") else max(0, min(int(seconds * 1000 + 0.999), 3_600_000))
        return {fd for fd, _ in self._poll.poll(timeout)}


# ------------------------------------------------------------------------------------ title

_set_title = None
#: Where ps finds the title of this process and of its forks, once setproctitle has made room there.
_title_place: ctypes.c_void_p | None = None
#: Bytes of a title that is written there by hand.
_TITLE_LENGTH = 160


def load_title() -> None:
    """Get setproctitle's C module ready, without its package.

    The package imports logging and so threading, whose hooks at every fork touch
    130 pages more in each child: measured, it halves the forks per second.
    """
    global _set_title
    try:
        from importlib.machinery import PathFinder

        package = PathFinder.find_spec("setproctitle")
        places = package and package.submodule_search_locations
        # by its own name, not as a part of the package: the name decides which init function is called
        spec = places and PathFinder.find_spec("_setproctitle", list(places))
        if not spec or not spec.loader:
            raise ImportError("setproctitle._setproctitle")
        module = spec.loader.create_module(spec)
        if module is None:
            raise ImportError("setproctitle._setproctitle is no extension module")
        spec.loader.exec_module(module)
        _set_title = module.setproctitle
    except ImportError:
        from setproctitle import setproctitle

        _set_title = setproctitle


def title(text: str) -> None:
    """Show `text` in ps."""
    if _title_place is not None:
        show_title(title_bytes(text))
        return
    if _set_title is None:
        load_title()
    if _set_title is not None:
        _set_title("forkrunner: " + text)


def title_bytes(text: str) -> bytes:
    """Return a title as `leave` and `show_title` take it: a mold makes it before the fork."""
    return f"forkrunner: {text}".encode()[:_TITLE_LENGTH].ljust(_TITLE_LENGTH, b"\0")


def show_title(data: bytes) -> None:
    if _title_place is not None:
        _copy(_title_place, data, _TITLE_LENGTH)
    else:
        title(data.rstrip(b"\0").decode(errors="ignore")[12:])


def share_title() -> None:
    """Let this process and its forks write their titles by hand, to where setproctitle has put ours."""
    global _title_place
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return
    # arg_start and env_end: setproctitle has moved away what was between them
    start, end = int(fields[45]), int(fields[48])
    if end - start > _TITLE_LENGTH and ctypes.string_at(start, 12) == b"forkrunner: ":
        _title_place = ctypes.c_void_p(start)
        if _prctl:
            _prctl(_PR_SET_NAME, b"forkrunner", 0, 0, 0)


# -------------------------------------------------------------------------------- descriptors


class Reserved:
    """A block of descriptor numbers at the top that only the mold uses.

    A child must close what belongs to its siblings and keep what the
    application opened while it was imported. So every free number below `base` is
    plugged, all later descriptors get numbers from `base` up, and a child closes
    all of these with one call.
    """

    def __init__(self, fixed: int) -> None:
        """Plug the holes and reserve `fixed` numbers just below `base` for the child's own ends."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        top = max((int(name) for name in os.listdir("/dev/fd")), default=8)
        while null < top + fixed:
            null = os.dup(null)
        self.base = null + 1
        self.fixed = [null - i for i in range(fixed)]

    def move(self, fd: int) -> int:
        """Move a descriptor of the mold into the block; its old number is plugged."""
        moved = os.dup(fd)
        null = self.fixed[0]
        os.dup2(null, fd, inheritable=False)
        return moved


def sockets_and_databases() -> list[tuple[int, str]]:
    """List open descriptors that no child may share: connected sockets and SQLite files, with a name."""
    found = []
    for name in os.listdir("/proc/self/fd") if LINUX else ():
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:") or target.endswith((".db", ".sqlite", ".sqlite3", "-wal", "-shm")):
            found.append((int(name), target))
    return found


def keep_to_ourselves() -> None:
    """Let no descriptor that we were started with pass into the programs that we start, but 0, 1 and 2."""
    for name in os.listdir("/dev/fd"):
        try:
            if int(name) > 2:
                os.set_inheritable(int(name), False)
        except OSError:  # the listing's own
            pass


def shield(fds: Iterable[int]) -> None:
    """Put /dev/null over descriptors, so that nothing done to them in a child reaches the other side."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        os.dup2(null, fd, inheritable=False)
    os.close(null)


def line_buffered() -> None:
    """Make Python's and C's standard streams write each line at once: a crash then loses none."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    if LINUX:
        _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, 1, 0)


def say(text: str) -> None:
    """Write to what is standard error for this process, whatever has become of sys.stderr."""
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:  # the job closed it
        pass


def flush_all() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # the job closed one, or put something else there
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
    _flush_c(None)


# ---------------------------------------------------------------------------------- memory


def shared_memory(size: int) -> memoryview:
    """Map that many bytes of zeros that this process and its future children share; what is not touched costs nothing."""
    # by hand: the module mmap is a library more for each fork to copy the mapping of
    map_memory = _libc.mmap
    map_memory.restype = ctypes.c_void_p
    address = map_memory(None, ctypes.c_size_t(size), 3, _MAP_SHARED, -1, ctypes.c_long(0))
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"{size} bytes of shared memory are not to be had")
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def resident_peak() -> int:
    """Return the highest resident size of this process so far, bytes.

    Right after a fork this is what the child shares with the mold: the
    kernel starts a new process's high-water mark at its size at the fork.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 if LINUX else peak


def trim_memory() -> None:
    """Give free memory back to the system: what is not there need not be copied."""
    if LINUX and hasattr(_libc, "malloc_trim"):  # musl has none
        _libc.malloc_trim(0)


def shared_at_fork() -> int:
    """Fork once to see how many bytes a child shares with this process at its start."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, b"%d" % resident_peak())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return int(answer or 0)


def prefer_as_victim() -> None:
    """Let the kernel's out-of-memory killer take this process before the supervisor; forks inherit it."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"500")
    except OSError:
        pass
    finally:
        os.close(fd)


def threads() -> int:
    """Count the threads of this process, also those that Python does not know."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def exit_now(status: int) -> None:
    os._exit(status)


def end_after(seconds: float) -> None:
    """End this process then, with status 1 and the stacks of all threads on standard error, whatever it does.

    By a thread in C, which needs neither the interpreter nor a signal.
    """
    import faulthandler

    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    except RuntimeError:  # no thread is to be had: then its time limit ends it
        pass


def report_stacks_to(fd: int) -> None:
    """Let faulthandler write the stacks to `fd`: on DUMP_SIGNAL, at the end of its CPU time, and when it crashes.

    Set once in the mold; a child puts its own file at that number.
    """
    import faulthandler

    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, file=fd, all_threads=True)
    # then as without it: the process ends
    faulthandler.register(signal.SIGXCPU, file=fd, all_threads=True, chain=True)


def ask_for_stacks(pid: int) -> None:
    """Let a process write its stacks where `report_stacks_to` said, if it has said so: else the signal would end it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            caught = next(line for line in file if line.startswith(b"SigCgt:"))
    except (OSError, StopIteration):
        return
    if int(caught.split()[1], 16) >> (DUMP_SIGNAL - 1) & 1:
        kill(pid, DUMP_SIGNAL)
