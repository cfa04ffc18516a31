"""What the tests of whole supervisors are written with: an application, its jobs, its ledger, and what must be left.

1. Rows are made and read through a `Store` of the test's own, so that also a row that no client would make can be made.
2. Facts are waited for: a row, a line of the ledger, a line of the log, a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from forkrunner.errors import StoreUnavailable
from forkrunner.ids import new_id
from forkrunner.job import ENDED, State
from forkrunner.records import New, Row
from forkrunner.store import Store
from tests.support import APP, Cli, Process, alive, need, wait_until
from tests.support import LONG as LONG

SOURCE = Path(__file__).with_name("jobs_app.py")


def line_of(mark: str) -> int:
    """Return the number of the line of the application that has `here: MARK` in it."""
    lines = SOURCE.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# here: {mark}"))


@dataclass(frozen=True)
class Noted:
    """One line of the ledger."""

    event: str
    job: str
    attempt: int
    pid: int
    #: Monotonic, seconds.
    at: float


class Bed:
    """One database, one folder with the application in it, and the supervisors that are started there."""

    def __init__(self, cli: Cli, database: str, *, source: str | None = None) -> None:
        self.cli = cli
        self.folder = cli.folder
        self.database = database
        self.runtime = self.folder / "runtime"
        self.ledger_path = self.folder / "ledger"
        cli.env |= {
            "FORKRUNNER_DATABASE": database,
            "FORKRUNNER_RUNTIME_DIR": str(self.runtime),
            "LEDGER": str(self.ledger_path),
        }
        cli.write(SOURCE.read_text() if source is None else source, APP)
        self.store = Store(database)
        self.store.migrate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.store.close()

    # -- supervisors

    def start(
        self,
        *flags: object,
        before: str = "",
        env: dict[str, str] | None = None,
        ready: bool = True,
        **settings: object,
    ) -> Process:
        """Start `forkrunner run jobs:runner` with these settings, and wait until it is ready for jobs.

        `before` is Python that runs in the process first, which then becomes the CLI by exec.
        """
        pairs = {"slots": 2, "grace_period": LONG / 2, "log_level": "debug", **settings}
        for name, value in pairs.items():
            flags += (f"--{name.replace('_', '-')}", value)
        python = None
        if before:
            python = [
                "-c",
                f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, '-m', 'forkrunner', *sys.argv[1:]])",
            ]
        process = self.cli.start("run", "jobs:runner", *flags, python=python, env=env)
        if ready:
            process.wait_log("forkrunner .* runs jobs:runner", LONG)
        return process

    def stop(self, *processes: Process, status: int = 0, signum: int = 15) -> None:
        """Stop supervisors and check what they leave: their exit status, no process, no file, no row."""
        for process in processes:
            process.signal(signum)
        for process in processes:
            assert process.wait(LONG) == status, process.describe()
            process.wait_gone()
        self.nothing_left()

    def stopping(self, task: str) -> tuple[Process, str]:
        """Return a supervisor that was told to stop, and its one job, of a task that runs until `let_go`."""
        supervisor = self.start(grace_period=LONG)
        id = self.put(task, {"path": self.path("go")})
        self.wait_noted("start", id)
        supervisor.signal(signal.SIGTERM)
        supervisor.wait_log(r"stopping \(SIGTERM\)")
        return supervisor, id

    def nothing_left(self) -> None:
        """Check that no file of a supervisor, no lease and no busy row is left."""
        assert [path for path in self.runtime.rglob("*") if not path.is_dir()] == []
        assert self.store.supervisors() == []
        assert [row.id for row in self.store.list(state=State.BUSY)] == []
        assert self.overlaps() == []

    # -- jobs

    def enqueue(
        self,
        task: str,
        arguments: dict[str, Any] | str | None = None,
        *,
        count: int = 1,
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> list[str]:
        """Make that many rows and return their ids."""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        rows = [
            New(
                id=new_id(),
                task=task,
                arguments=text,
                options=json.dumps(options) if options else None,
                **{"queue": "default", **fields},
            )
            for _ in range(count)
        ]
        self.store.enqueue(rows)
        return [row.id for row in rows]

    def put(self, task: str, arguments: dict[str, Any] | str | None = None, **more: Any) -> str:
        """Make one row and return its id."""
        return self.enqueue(task, arguments, **more)[0]

    def row(self, id: str) -> Row:
        return self.store.get(id)

    def ended(self, id: str, timeout: float = LONG) -> Row:
        """Wait until a job is done, failed or cancelled."""
        return self.wait_row(id, lambda row: row.state in ENDED, timeout)

    def wait_row(self, id: str, predicate: Callable[[Row], bool], timeout: float = LONG) -> Row:
        """Wait until a row is as the predicate says; the database may be away meanwhile."""
        end = time.monotonic() + timeout
        row: Row | None = None
        while time.monotonic() < end:
            with contextlib.suppress(StoreUnavailable):
                row = self.store.get(id)
                if predicate(row):
                    return row
            time.sleep(0.02)
        raise AssertionError(f"not within {timeout} s; the row is {row}\n{self.describe()}")

    def wait_counts(self, timeout: float = LONG, **counts: int) -> None:
        """Wait until that many rows are in each of these states."""

        def reached() -> bool:
            with contextlib.suppress(StoreUnavailable):
                found = Counter[str]()
                for states in self.store.counts().values():
                    found.update(states)
                return all(found[state] == number for state, number in counts.items())
            return False

        try:
            wait_until(reached, timeout, interval=0.1)
        except AssertionError:
            raise AssertionError(f"not within {timeout} s: {counts}\n{self.describe()}") from None

    def describe(self) -> str:
        with contextlib.suppress(StoreUnavailable):
            counts = self.store.counts()
            return f"{counts}\n" + "\n".join(process.describe() for process in self.cli.processes)
        return "\n".join(process.describe() for process in self.cli.processes)

    # -- files

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def let_go(self, name: str = "go") -> None:
        """Make the file that a job of the task `hold` waits for."""
        (self.folder / name).touch()

    def ledger(self) -> list[Noted]:
        """Return what the jobs have written, in that order."""
        try:
            lines = self.ledger_path.read_text().splitlines()
        except FileNotFoundError:
            return []
        fields = (line.split() for line in lines)
        return [Noted(e, j, int(a), int(p), int(t) / 1e9) for e, j, a, p, t in fields]

    def noted(self, event: str, job: str | None = None, attempt: int | None = None) -> list[Noted]:
        return [
            line
            for line in self.ledger()
            if line.event == event and job in (None, line.job) and attempt in (None, line.attempt)
        ]

    def wait_noted(
        self,
        event: str,
        job: str | None = None,
        attempt: int | None = None,
        *,
        count: int = 1,
        timeout: float = LONG,
    ) -> list[Noted]:
        """Wait for that many such lines of the ledger."""
        try:
            wait_until(lambda: len(self.noted(event, job, attempt)) >= count, timeout)
        except AssertionError:
            raise AssertionError(f"no {count} × {event!r} within {timeout} s\n{self.describe()}") from None
        return self.noted(event, job, attempt)

    def overlaps(self) -> list[Noted]:
        """Return where the kernel saw a job run twice at the same time."""
        return self.noted("overlap")

    def check_history(self, ids: Iterable[str]) -> None:
        """Compare what the jobs wrote with what the database says; all of them are done.

        Each was ended by exactly one attempt, its last; no attempt was started twice, and no job ran twice at a time.
        """
        ids = set(ids)
        ledger = [line for line in self.ledger() if line.job in ids]
        assert self.overlaps() == []
        starts = Counter((line.job, line.attempt) for line in ledger if line.event == "start")
        assert [key for key, number in starts.items() if number > 1] == [], "an attempt was started twice"
        ends = {line.job for line in ledger if line.event == "end"}
        rows = {row[0]: row[1:] for row in self.query("select id, state, attempt from forkrunner_jobs")}
        attempts: dict[str, dict[int, str]] = {}
        for id, number, outcome in self.query("select job_id, attempt, outcome from forkrunner_attempts"):
            attempts.setdefault(id, {})[number] = outcome
        for id in ids:
            state, last = rows[id]
            story = f"{id}: {state}, {attempts[id]}\n{[line for line in ledger if line.job == id]}"
            assert state == State.DONE, story
            assert [number for number, outcome in attempts[id].items() if outcome == "done"] == [last], story
            assert max(attempts[id]) == last, story
            # an attempt that wrote its end may be killed before its report is read: then there are more
            assert (id, last) in starts, story
            assert id in ends, story

    def execute(self, statement: str) -> None:
        """Change the database behind the store's back."""
        if self.database.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self.database.removeprefix("sqlite:///"))) as connection:
                connection.execute(statement)
                connection.commit()
            return
        import psycopg

        with psycopg.connect(self.database.replace("+psycopg", "")) as db:
            db.execute(statement)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database behind the store's back; ids come as text."""
        if self.database.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self.database.removeprefix("sqlite:///"))) as connection:
                return connection.execute(statement).fetchall()
        import psycopg

        with psycopg.connect(self.database.replace("+psycopg", "")) as db:
            rows = db.execute(statement).fetchall()
        return [tuple(str(value) if isinstance(value, UUID) else value for value in row) for row in rows]


def check_gone(pids: Sequence[int]) -> None:
    """Check that none of these processes is left, or not for long."""
    wait_until(lambda: not any(alive(pid) for pid in pids), message=f"the end of {pids}")


def unshared(*setup: str) -> str:
    """Return the `before` of a supervisor that is process 1 of a pid namespace of its own, as in a container.

    `setup` is Python that runs first.
    """
    command = ["unshare", "-Urpf", "--mount-proc"]
    works = (
        shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    )
    need("namespaces", works, f"{' '.join(command)} does not work")
    words = f"[*{command}, sys.executable, '-m', 'forkrunner', *sys.argv[1:]]"
    return "; ".join([*setup, f"os.execvp('unshare', {words})"])


#: The `before` of a supervisor that may not pass over the modes of files, also if it is root's.
UNPRIVILEGED = """
import ctypes
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: it is gone after the exec
"""


def tree_of(process: Process) -> tuple[int, int, list[int]]:
    """Return the pids of a supervisor, its mold and the mold's children."""
    mold = process.wait_ps(r"forkrunner: mold jobs:runner gen \d+$")[0]
    return process.pid, mold, [found.pid for found in process.ps() if found.ppid == mold]


def memory_of(pid: int) -> int:
    """Return how much memory a process has made its own, bytes.

    Not its Pss, of which more is its share when others who map the same files end.
    """
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def cpu_of(pid: int) -> float:
    """Return how much CPU time a process has used, seconds; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def cgroup_folder() -> Iterator[Path | None]:
    """Make a control group below which others with a limit of memory can be made; None if this machine does not let us."""
    name = f"forkrunner-test-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    there = (v1 / "memory.limit_in_bytes").exists()
    folder: Path | None = (v1 if there else v2) / name
    try:
        if not there and "memory" not in (v2 / "cgroup.subtree_control").read_text().split():
            folder = None
        else:
            assert folder is not None
            folder.mkdir()
    except OSError:
        folder = None
    try:
        yield folder
    finally:
        if folder:
            folder.rmdir()  # fails while a group is left in it


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[str | None]:
    """Make a control group whose processes get that many bytes; None if this machine does not let us.

    Yields the path of the file that takes the pid of a process that joins.
    """
    name = f"forkrunner-test-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    try:
        if (v1 / "memory.limit_in_bytes").exists():
            group = v1 / name
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(limit))
        elif "memory" in (v2 / "cgroup.subtree_control").read_text().split():
            group = v2 / name
            group.mkdir()
            (group / "memory.max").write_text(str(limit))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
        else:
            group = None
    except OSError:
        group = None
    try:
        yield str(group / "cgroup.procs") if group else None
    finally:
        if group and group.is_dir():
            # The kernel needs a moment after the last process has gone.
            wait_until(lambda: _removed(group), message=f"removing {group}")


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


class CuttingProxy:
    """Stands between a supervisor and PostgreSQL; cuts one connection in the most awkward moment.

    After `arm(TEXT)`: when TEXT has passed, in either direction, the next COMMIT on that connection, or the statement
    with TEXT that is a transaction by itself, is passed on, its answer is not, and both sides are closed. The client
    cannot know what became of its transaction.
    """

    def __init__(self, port: int) -> None:
        self.upstream = ("127.0.0.1", port)
        self.pattern = b""
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def arm(self, text: str) -> None:
        self.pattern = text.encode()

    def _run(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.upstream)
            except OSError:
                client.close()
                continue
            link = _Link(self, client, server)
            self._links.append(link)
            self._run(link.upwards)
            self._run(link.downwards)

    def close(self) -> None:
        # before the close, which would not wake a thread that waits in accept
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._links:
            link.cut()
        for thread in self._threads:
            thread.join(5)
        for link in self._links:
            link.client.close()
            link.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        #: The text has passed; and then what commits it.
        self.seen = self.committed = False
        self.in_transaction = False

    def upwards(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(1 << 20):
                self._look(data)
                commits = b"COMMIT" in data
                self.in_transaction = (self.in_transaction or b"BEGIN" in data) and not commits
                # a statement outside of a transaction is one
                alone = bool(self.proxy.pattern) and self.proxy.pattern in data and not self.in_transaction
                self.committed = self.seen and (commits or alone)
                self.server.sendall(data)
                if self.committed:
                    return  # the rest is for downwards, when the answer shows that it was done
        self.cut()

    def downwards(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.server.recv(1 << 20):
                if self.committed:
                    self.proxy.pattern = b""
                    self.proxy.cuts += 1
                    break
                self._look(data)
                self.client.sendall(data)
        self.cut()

    def _look(self, data: bytes) -> None:
        pattern = self.proxy.pattern
        self.seen = self.seen or bool(pattern and pattern in data)

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
