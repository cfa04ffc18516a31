"""Every fork, wait and kill: processes are started, become others, are collected and ended here and nowhere else.

No decision is taken here. Where there is no prctl or /proc, the function says what is lost.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys

from .descriptors import say
from .libc import ALL_SIGNALS, PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, SETMASK, prctl, set_mask
from .memory import resident_peak
from .signals import unblock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any, NoReturn

#: Whoever started us may ignore some of these, which a new program would inherit.
_AS_NEW = [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE]


def tie_to(parent: int) -> None:
    """Make the kernel kill this process when `parent` dies; exit if it is dead already.

    To be called first in a new process, and only where the parent has one
    thread: the tie is to the thread that forked. Where there is no prctl the
    caller notices its parent's end by end-of-file on its channel only.
    """
    if prctl:
        prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:  # it died before the prctl
        os._exit(127)


def adopt_orphans() -> None:
    """Become the parent of whatever descendants leave behind when they die."""
    if prctl:
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


#: The caller has blocked all signals, in a mold for ever: one that came between the fork and
#: the child's own set-up would be handled by the wrong process.
fork = os.fork


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
    if prctl:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
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
    set_mask(SETMASK, ALL_SIGNALS, None)
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


def reap_all(
    timeout_ms: int = 2000,
    keep: Collection[int] = (),
    usages: dict[int, resource.struct_rusage] | None = None,
) -> bool:
    """Kill and collect all children but `keep`, until there is none; False if some would not die.

    What they had used is put into `usages`.
    """
    for _ in range(max(timeout_ms // 5, 1)):
        left = [pid for pid in children() if pid not in keep]
        if not left:
            return True
        for pid in left:
            kill(pid, signal.SIGKILL)
        for pid in left:
            try:
                # none but these: what is kept may have died too
                dead, _, usage = os.wait4(pid, os.WNOHANG)
                if dead and usages is not None:
                    usages[dead] = usage
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


def feed(argv: list[str], data: bytes, timeout: float) -> tuple[int, bytes]:
    """Run a program with something on its standard input; return its exit status and what it printed.

    Raises TimeoutError when it takes longer, seconds; it is killed then.
    """
    import subprocess

    try:
        done = subprocess.run(
            argv, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return done.returncode, done.stdout


def remove_folders(*paths: str) -> int:
    """Start removing folders with all that is in them, which may take long; return the pid of who does it.

    Its exit status is 0 if nothing is left.
    Raises:
        OSError: no process can be made.
    """
    # what `rm` cannot remove is rare, and Python takes twenty times as long to start
    code = "from forkrunner.temporary import main; main()"
    script = f'/bin/rm -rf -- "$@" || exec "$0" -c "{code}" "$@"'
    # 1 and 2 are a job's output in a mold
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    argv = ["sh", "-c", script, sys.executable, *paths]
    return os.posix_spawn("/bin/sh", argv, os.environ, file_actions=actions, setsigmask=[])


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


def threads() -> int:
    """Count the threads of this process, also those that Python does not know."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def exit_now(status: int) -> None:
    os._exit(status)
