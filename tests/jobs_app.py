"""The application of the process tests: a task for each way in which an attempt can end, and a ledger of what ran.

`running.Bed` copies it into the test's folder as jobs.py. A line that a test looks for in a traceback or in
stacks carries a comment `here: NAME`; `running.line_of` finds its number.

The ledger is a file that jobs only append to, one write for each line: event, job, attempt, pid, monotonic
time. What the database says is compared with it. That no job runs twice at the same time is not computed from
times: the kernel says it. A job holds a POSIX lock on one byte of a file for the life of its process; the kernel
gives it back however the process ends, and a fork does not inherit it.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NoReturn

from forkrunner import Runner, UserError, current_job, progress

runner = Runner()

# ------------------------------------------------------------------------------ ledger

_locks: list[int] = []


def note(event: str) -> None:
    """Append one line to the ledger."""
    job = current_job()
    assert job is not None
    line = f"{event} {job.id} {job.attempt} {os.getpid()} {time.monotonic_ns()}\n"
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, line.encode())
    os.close(fd)


def begin() -> None:
    """Note the start, and `overlap` if the same job runs in another process at this moment."""
    job = current_job()
    assert job is not None
    # Never closed, nor opened again: that would give the lock back.
    fd = os.open(os.environ["LEDGER"] + ".locks", os.O_RDWR | os.O_CREAT)
    _locks.append(fd)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(job.id[-12:], 16))
    except OSError:
        note("overlap")
    note("start")


@runner.task
def noop() -> None:
    pass


@runner.task
def work(seconds: float = 0.0) -> None:
    """Be in the ledger, and take some time."""
    begin()
    time.sleep(seconds)
    note("end")


@runner.task
def echo(text: str) -> str:
    begin()
    note("end")
    return text


@runner.task
def hold(path: str) -> str:
    """Run until that file is there."""
    begin()
    while not os.path.exists(path):
        time.sleep(0.01)
    note("end")
    return "let go"


@runner.task
def hold_as_somebody_else() -> None:
    """Run for ever as a user that may do nothing."""
    begin()
    os.setuid(65534)
    while True:
        time.sleep(60)


@runner.task
def hold_against_signals(path: str) -> str:
    """Run until that file is there, or SIGKILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return hold(path)


# -------------------------------------------------------------------------- it returns


@runner.task
def add(a: int, b: int = 2) -> int:
    print(f"adding {a} and {b}")
    progress(0.5, "half")
    return a + b


@runner.task
def allocate(megabytes: int) -> int:
    # Written to, and not only reserved.
    return len(b"x" * (megabytes << 20))


@runner.task
def burn(seconds: float) -> float:
    """Use that much CPU time."""
    while time.process_time() < seconds:
        pass
    return time.process_time()


@runner.task
def print_much(megabytes: int) -> str:
    print("the first line")
    line = "x" * 1023
    for _ in range(megabytes << 10):
        print(line)
    print("the last line")
    return "printed"


@runner.task
def print_and_die() -> None:
    """Write by all ways, without an end of line that anybody waited for, and crash."""
    print("by print")
    libc = ctypes.CDLL(None)
    libc.printf(b"by printf\n")
    os.write(2, b"by write\n")
    subprocess.run(["echo", "by a program"], check=True)
    os.kill(os.getpid(), signal.SIGSEGV)


@runner.task
def count(lines: int, how: str) -> None:
    if how == "program":
        code = f"for n in range({lines}): print('line', n)"
        subprocess.run([sys.executable, "-c", code], check=True)
        return
    libc = ctypes.CDLL(None)
    for n in range(lines):
        if how == "printf":
            libc.printf(b"line %d\n", n)
        else:
            print("line", n)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)


@runner.task
def talk(path: str) -> None:
    print("before")
    hold(path)
    subprocess.run(["echo", "after, by a program"], check=True)
    print("half a line", end="")


@runner.task(max_attempts=3, backoff=0.3)
def third_try_talks() -> None:
    job = current_job()
    assert job is not None
    print("try", job.attempt)
    if job.attempt < 3:
        raise ValueError(job.attempt)


@runner.task
def flood_and_hold(lines: int, path: str) -> None:
    count(lines, "print")
    # it has been cut at least once since the last line when its memory is little
    while os.fstat(1).st_blocks * 512 > 200_000:
        time.sleep(0.01)
    note("flooded")
    hold(path)


@runner.task
def close_output() -> str:
    os.close(1)
    os.close(2)
    return "closed"


@runner.task
def close_everything() -> str:
    os.closerange(0, 4096)
    return "closed"


@runner.task
def not_json() -> Any:
    return object()


@runner.task
def large(size: int) -> str:
    return "x" * size


# --------------------------------------------------------------------------- it raises


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@runner.task
def boom(text: str = "no good") -> None:
    raise ValueError(text)  # here: boom


@runner.task
def boom_broken() -> None:
    raise Broken


@runner.task
def boom_poison() -> None:
    raise ValueError("NUL \0, surrogate \ud800, end")


@runner.task
def boom_long(megabytes: int, letter: str) -> None:
    raise ValueError(letter * (megabytes << 20))


@runner.task
def boom_chained() -> None:
    try:
        boom("the cause")
    except ValueError as error:
        raise KeyError("the effect") from error


@runner.task
def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


@runner.task
def interrupt() -> None:
    raise KeyboardInterrupt


# ----------------------------------------------------------------------- it ends itself


@runner.task
def leave(status: int) -> NoReturn:
    sys.exit(status)


@runner.task
def leave_at_once(status: int) -> NoReturn:
    os._exit(status)


@runner.task
def segfault() -> None:
    ctypes.string_at(0)  # here: segfault


@runner.task
def abort() -> None:
    os.abort()  # here: abort


@runner.task
def kill_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


@runner.task
def kill_others(generations: int) -> None:
    """Kill the mold, or its supervisor, and with it this process."""
    pid = os.getppid()
    for _ in range(generations - 1):
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    time.sleep(60)


# -------------------------------------------------------------------------- it does not


@runner.task
def loop_in_sleep() -> None:
    while True:
        time.sleep(60)  # here: loop_in_sleep


@runner.task
def loop_in_regex() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # here: loop_in_regex


@runner.task
def loop_in_python() -> None:
    while True:
        pass  # here: loop_in_python


@runner.task
def loop_over_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(60)


@runner.task
def loop_over_exceptions() -> None:
    """End by nothing that Python can raise."""

    def refuse(*_: object) -> None:
        raise RuntimeError("by TERM")

    signal.signal(signal.SIGTERM, refuse)
    while True:
        try:
            time.sleep(60)
        except BaseException:  # noqa: BLE001  # that is the point
            pass


@runner.task
def return_at_term() -> str:
    """Take TERM for a wish, and return something after all."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    while not told:
        time.sleep(0.01)
    return "late"


@runner.task
def loop_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


@runner.task
def loop_with_program() -> None:
    """Wait for a program that is in a session of its own."""
    program = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(program.pid)
    program.wait()


@runner.task
def fill() -> None:
    blocks = []
    while True:
        blocks.append(b"x" * (1 << 20))  # here: fill


@runner.task
def fill_shared(megabytes: int) -> None:
    """Take memory that no limit of the kernel's for one process sees."""
    memory = mmap.mmap(-1, megabytes << 20)
    for page in range(0, megabytes << 20, 4096):
        memory[page] = 1
    time.sleep(60)


@runner.task
def fill_in_programs(megabytes: int, count: int) -> None:
    """Take memory in several processes, none of which has much."""
    code = f"import time; block = b'x' * ({megabytes} << 20); time.sleep(60)"
    for program in [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]:
        program.wait()


@runner.task
def swallow_memory_error() -> None:
    try:
        fill()
    except MemoryError:
        raise ValueError("it did not fit") from None


#: The mold has its addresses, a job its memory.
RESERVED = mmap.mmap(-1, 3 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@runner.task
def stay_full() -> str:
    """Have all that it may have, in small pieces, while the mold looks at it some times."""
    for page in range(0, len(RESERVED), 4096):
        RESERVED[page] = 1
    pieces = []
    try:
        while True:
            pieces.append(object())
    except MemoryError:
        time.sleep(1)
    return "full"


@runner.task
def burn_for_ever(deaf: bool) -> None:
    if deaf:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXCPU])
    while True:
        pass  # here: burn_for_ever


@runner.task
def burn_and_raise(seconds: float, how: str) -> None:
    burn(seconds)
    if how == "exit":
        sys.exit(3)
    raise (UserError if how == "user" else ValueError)("no good")


@runner.task
def burn_in_a_program() -> int:
    return subprocess.run([sys.executable, "-c", "while True: pass"]).returncode


@runner.task
def burn_in_programs() -> None:
    for program in [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]:
        program.wait()


@runner.task
def open_many(count: int) -> int:
    files = [open(os.devnull) for _ in range(count)]  # noqa: SIM115 - to be open all at once
    return len(files)


@runner.task
def write_much(path: str, kilobytes: int, ignore: bool = True) -> int:
    if not ignore:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with open(path, "wb") as file:
        for _ in range(kilobytes):
            file.write(b"x" * 1024)
            file.flush()
    return os.path.getsize(path)


@runner.task(temporary_folder=True)
def leave_files(then: str) -> list[str]:
    """Leave files in the temporary folder: by Python, by C code, by a program; and folders that cannot be entered."""
    folder = tempfile.gettempdir()
    with open(tempfile.mkstemp()[1], "w") as file:
        file.write("x")
    os.makedirs(os.path.join(folder, "a", "b"))
    os.symlink(os.path.dirname(os.environ["LEDGER"]), os.path.join(folder, "a", "out"))
    os.chmod(os.path.join(folder, "a", "b"), 0)
    os.chmod(os.path.join(folder, "a"), 0o555)
    name = subprocess.run(["mktemp"], capture_output=True, text=True, check=True).stdout.strip()
    print(folder)
    if then == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while then == "timeout":
        time.sleep(60)
    return [folder, os.path.dirname(name)]


@runner.task
def niceness() -> int:
    return os.nice(0) - os.getpriority(os.PRIO_PROCESS, os.getppid())


# ------------------------------------------------------------------------ it multiplies


def _daemon(write: int) -> None:
    """Leave by a second fork, as a daemon does, without another program."""
    if os.fork():
        return
    os.setsid()
    pid = os.fork()
    if pid:
        os.write(write, b"%d\n" % pid)
        os._exit(0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        time.sleep(60)


@runner.task
def spawn(how: str, then: str, path: str) -> None:
    """Start processes in one of many ways, note their pids in that file, and end in one of three."""
    pids: list[int] = []
    if how == "subprocess":
        pids = [subprocess.Popen(["sleep", "1000"]).pid]
    elif how == "pipeline":
        pids = [subprocess.Popen(["sh", "-c", "sleep 1000 | sleep 1000 & sleep 1000"]).pid]
        while len(_children(pids[0])) < 3:
            time.sleep(0.005)
        pids += _children(pids[0])
    elif how == "process_group":
        pids = [subprocess.Popen(["sleep", "1000"], process_group=0).pid]
    elif how == "session":
        pids = [subprocess.Popen(["sleep", "1000"], start_new_session=True).pid]
    elif how == "multiprocessing":
        import multiprocessing

        for method in ("fork", "spawn"):
            context: Any = multiprocessing.get_context(method)
            process = context.Process(target=time.sleep, args=(1000,))
            process.start()
            pids.append(process.pid or 0)
    else:
        assert how == "daemon"
        read, write = os.pipe()
        _daemon(write)
        pids = [int(os.read(read, 20))]
    with open(path + ".new", "w") as file:
        file.write(" ".join(map(str, pids)))
    os.rename(path + ".new", path)
    if then == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while then == "timeout":
        time.sleep(60)


@runner.task
def let_flee(count: int, silent: bool, path: str) -> None:
    """Start programs in sessions of their own, and crash or be ended when that file is there."""
    output = subprocess.DEVNULL if silent else None
    for _ in range(count):
        subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=output, stderr=output)
    note("start")
    # not a moment after the others
    while not os.path.exists(path):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


@runner.task
def shell(command: str, path: str) -> None:
    program = subprocess.Popen(["sh", "-c", command])
    while len(_children(program.pid)) < 2:
        time.sleep(0.005)
    with open(path + ".new", "w") as file:
        file.write(" ".join(map(str, [program.pid, *_children(program.pid)])))
    os.rename(path + ".new", path)
    program.wait()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


@runner.task
def fork_and_return() -> str:
    pid = os.fork()
    if not pid:
        return "the child"
    os.waitpid(pid, 0)
    return "the parent"


@runner.task
def fork_and_raise() -> str:
    pid = os.fork()
    if not pid:
        raise ValueError("the child")
    os.waitpid(pid, 0)
    return "the parent"


@runner.task
def fork_and_exit() -> str:
    pid = os.fork()
    if not pid:
        sys.exit(3)
    os.waitpid(pid, 0)
    return "the parent"


@runner.task
def fork_and_outlive() -> int:
    """Let the child come back through the task after the attempt has ended."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        while os.getppid() == parent:
            time.sleep(0.001)
    return pid


@runner.task
def leave_behind(how: str) -> int:
    """Return the pid of a process that this job leaves running."""
    if how == "program":
        return subprocess.Popen(["sleep", "1000"]).pid
    if how == "session":
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
    assert how == "daemon"
    read, write = os.pipe()
    if not os.fork():
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while True:
            time.sleep(60)
    return int(os.read(read, 20))


@runner.task
def leave_many_behind(count: int) -> list[int]:
    return [leave_behind(how) for _ in range(count) for how in ("program", "session", "daemon")]


# ----------------------------------------------------------------------- it tries again


@runner.task(max_attempts=3, backoff=[0.2, 0.4])
def third_time() -> int:
    job = current_job()
    assert job is not None
    if job.attempt < 3:
        raise ValueError(f"attempt {job.attempt}")
    return job.attempt


@runner.task(max_attempts=3, backoff=0.05, retry_for=OSError, give_up_on=FileNotFoundError)
def choosy(kind: str) -> None:
    raise {"OSError": OSError, "FileNotFoundError": FileNotFoundError, "ValueError": ValueError}[kind](kind)


@runner.task(max_attempts=5, backoff=0.05)
def strict(number: int) -> int:
    return number


@runner.task(at_most_once=True)
def once(how: str) -> None:
    begin()
    if how == "raise":
        raise ValueError("once")
    os.kill(os.getpid(), signal.SIGSEGV)


@runner.task(at_most_once=True)
def hold_once(path: str) -> str:
    return hold(path)


# ------------------------------------------------------------------------------ memory


@runner.task
def leak(megabytes: int) -> None:
    gc.disable()
    cycle: list[Any] = [b"x" * (megabytes << 20)]
    cycle.append(cycle)
