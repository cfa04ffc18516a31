"""What scripts/bench.py measures on: throw-away databases, a supervisor, and the kernel's accounts of processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from forkrunner.store import Store
from tests.servers import Postgres, tree

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 16

_TICK = os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------- databases


class Database:
    """Fresh copies of one kind of database, with the tables made."""

    name: str

    def fresh(self) -> str:
        """Make an empty one and return its URL."""
        raise NotImplementedError

    def drop(self, url: str) -> None:
        raise NotImplementedError

    def query(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def processes(self) -> list[int]:
        """Return the pids of the server."""
        return []


class SQLiteFiles(Database):
    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        url = f"sqlite:///{self.folder}/bench{self.count}.db"
        _make_tables(url)
        return url

    def drop(self, url: str) -> None:
        for path in self.folder.glob(Path(url).name + "*"):
            path.unlink()

    def query(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=10)) as connection:
            return connection.execute(statement).fetchall()


class PostgresDatabases(Database):
    name = "postgresql"

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.open: dict[str, Any] = {}
        url = server.create_database()
        _make_tables(url)
        self.template = url.rpartition("/")[2]

    def fresh(self) -> str:
        return self.server.create_database(template=self.template)

    def drop(self, url: str) -> None:
        if connection := self.open.pop(url, None):
            connection.close()
        self.server.drop(url)

    def query(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        if url not in self.open:
            self.open[url] = self.server.connect(url.rpartition("/")[2])
        rows: list[tuple[Any, ...]] = self.open[url].execute(statement).fetchall()
        return rows

    def processes(self) -> list[int]:
        return self.server.pids


def _make_tables(url: str) -> None:
    store = Store(url)
    try:
        store.migrate()
    finally:
        store.close()


# --------------------------------------------------------------------------- processes


@dataclass
class Cost:
    """What a process has used so far, and what those of its children have that it has reaped."""

    cpu: float = 0.0
    cpu_reaped: float = 0.0
    faults: int = 0
    faults_reaped: int = 0

    @classmethod
    def of(cls, *pids: int) -> Cost:
        total = cls()
        for pid in pids:
            with contextlib.suppress(OSError):
                # after the name, which may hold spaces and parentheses
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                numbers = [int(word) for word in words[1:16]]
                total.faults += numbers[6]
                total.faults_reaped += numbers[7]
                total.cpu += (numbers[10] + numbers[11]) / _TICK
                total.cpu_reaped += (numbers[12] + numbers[13]) / _TICK
        return total

    def __sub__(self, before: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


def memory(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def machine_seconds() -> float:
    """Return the CPU seconds that the whole machine was busy."""
    words = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(words) - words[3] - words[4]) / _TICK


class Supervisor:
    """`forkrunner run`, with its log in a file; ready when it says that it runs."""

    def __init__(self, folder: Path, url: str, slots: int = SLOTS) -> None:
        self.log = folder / "supervisor.log"
        command = [sys.executable, "-m", "forkrunner", "run", "bench_app:runner", "--slots", str(slots)]
        if setpriv := shutil.which("setpriv"):  # if this process is killed, the kernel ends that one too
            command = [setpriv, "--pdeathsig", "KILL", *command]
        paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
        settings = {"FORKRUNNER_DATABASE": url, "FORKRUNNER_RUNTIME_DIR": str(folder / "runtime")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": paths, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we then stop it
            )
        self.pid = self.process.pid
        try:
            wait_until(lambda: " runs bench_app:runner " in self.text(), self, 30, 0.002)
            self.mold = next(pid for pid in tree(self.pid)[1:] if _is_mold(pid))
        except BaseException:
            self.stop()
            raise

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End it by TERM, and if that does not help kill all of it."""
        family = tree(self.pid)
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _is_mold(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"forkrunner: mold" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def wait_until(fact: Callable[[], object], running: Supervisor, timeout: float, pause: float = 0.05) -> None:
    """Wait for a fact while a supervisor runs; with neither there is nothing to measure."""
    end = time.monotonic() + timeout
    while not fact():
        if running.process.poll() is not None or time.monotonic() > end:
            state = running.process.returncode
            tail = running.text()[-2000:]
            raise SystemExit(f"bench: the supervisor (exit status {state}) did not get there:\n{tail}")
        time.sleep(pause)
