"""What process tests are written with: waiting for facts, and the real CLI in a folder of its own.

Nothing here waits a fixed time; nothing here is killed by a name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.servers import tree

T = TypeVar("T")

#: How long anything is waited for, seconds: the machine may have other things to do, so only a hang is longer. A test
#: that needs another limit says why.
LONG = 60.0

#: What must be there: a test that lacks it fails instead of being skipped. Read before `conftest.py` clears the environment.
REQUIRED = set(filter(None, os.environ.get("FORKRUNNER_REQUIRE", "").replace(" ", "").split(",")))
#: Stands before the name of what was missing in the reason of a skip; they are counted at the end of a run.
MISSING = "missing here: "

NURSERY = Path(__file__).with_name("nursery.py")

#: The name under which an application given as a string is written; its target is then `jobs:runner`.
APP = "jobs.py"


def wait_until(
    predicate: Callable[[], T], timeout: float = LONG, message: str = "", *, interval: float = 0.02
) -> T:
    """Call the predicate until its value is true, and return that value.

    Raises AssertionError with the last value seen when the timeout (seconds) is over.
    """
    end = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= end:
            raise AssertionError(
                f"{message or 'waiting'}: not within {timeout} s; the last value was {value!r}"
            )
        time.sleep(interval)


def need(name: str, there: object, hint: str = "scripts/strap --servers says what to install") -> None:
    """Skip the test if the machine does not have what it needs, or fail it if FORKRUNNER_REQUIRE names that."""
    if not there:
        if name in REQUIRED:
            pytest.fail(f"{name} is required by FORKRUNNER_REQUIRE and missing here; {hint}", pytrace=False)
        pytest.skip(f"{MISSING}{name}")


@dataclass(frozen=True)
class Proc:
    """A process as ps would show it."""

    pid: int
    ppid: int
    #: R, S, D, T, Z, …
    state: str
    title: str

    def __str__(self) -> str:
        return f"{self.pid:>7} {self.ppid:>7} {self.state} {self.title}"


def proc(pid: int) -> Proc | None:
    """Return what /proc says about a process, or None if it is gone; a zombie is not gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    title = command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace") or f"[{name}]"
    return Proc(pid, int(fields[1]), fields[0], title)


def alive(pid: int) -> bool:
    """Say whether a process exists and is not a zombie."""
    found = proc(pid)
    return found is not None and found.state not in "ZX"


def descendants(pid: int) -> list[Proc]:
    """Return the processes below this one, parents before children, zombies included."""
    return [found for found in map(proc, tree(pid)[1:]) if found]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Process:
    """One command that runs, and everything below it; its output goes to files."""

    def __init__(self, command: list[str], folder: Path, environ: Mapping[str, str], name: str) -> None:
        self.command = command
        self.folder = folder
        self.out_path = folder / f"{name}.out"
        self.err_path = folder / f"{name}.err"
        self.status: int | None = None
        self._seen = 0
        self._lines = b""
        self._fd, theirs = os.pipe()
        try:
            with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
                self._nursery = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(NURSERY), str(theirs), *command],
                    cwd=folder,
                    env=dict(environ),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    pass_fds=[theirs],
                    start_new_session=True,
                )
        finally:
            os.close(theirs)
        #: Of the command itself.
        self.pid = 0
        self._read(LONG, lambda: self.pid)

    def _read(self, timeout: float, enough: Callable[[], object]) -> bool:
        """Read what the nursery says until it is enough or the nursery is gone; False: the timeout is over."""
        end = time.monotonic() + timeout
        while not enough() and self._fd >= 0:
            if not select.select([self._fd], [], [], max(0, end - time.monotonic()))[0]:
                return False
            data = os.read(self._fd, 1000)
            if not data:
                os.close(self._fd)
                self._fd = -1
                self._nursery.wait()
            *lines, self._lines = (self._lines + data).split(b"\n")
            for word, number in (line.split() for line in lines):
                if word == b"pid":
                    self.pid = int(number)
                else:
                    self.status = int(number)
        return True

    @property
    def stdout(self) -> str:
        return self.out_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err_path.read_text(errors="replace")

    @property
    def log(self) -> str:
        """What it has printed so far: standard error, then standard output."""
        return self.stderr + self.stdout

    @property
    def running(self) -> bool:
        self._read(0, lambda: self.status is not None)
        return self.status is None and self._fd >= 0

    def ps(self) -> list[Proc]:
        """Return the command and everything below it, with titles; what it left behind is there too."""
        return descendants(self._nursery.pid) if self._fd >= 0 else []

    def pids(self, pattern: str) -> list[int]:
        """Return the pids of those in `ps` whose title has this regular expression in it."""
        found = self.ps()
        titles = {one.pid: one.title for one in found}
        # a moment after its fork a child still has the title of its mold
        return [
            one.pid for one in found if re.search(pattern, one.title) and titles.get(one.ppid) != one.title
        ]

    def wait_log(self, pattern: str, timeout: float = LONG) -> re.Match[str]:
        """Wait until the output has this regular expression in it (multi-line mode).

        Raises AssertionError with the output if it ends or the timeout (seconds) is over first.
        """
        end = time.monotonic() + timeout
        while True:
            # In this order: what it printed last is read after it was seen to have ended.
            over = not self.running or time.monotonic() >= end
            if match := re.search(pattern, self.log, re.MULTILINE):
                return match
            if over:
                raise AssertionError(f"no {pattern!r} in the output within {timeout} s\n{self.describe()}")
            time.sleep(0.02)

    def wait_ps(self, pattern: str, timeout: float = LONG, *, count: int = 1) -> list[int]:
        """Wait until at least that many titles have this regular expression in them, and return their pids."""
        end = time.monotonic() + timeout
        while True:
            over = not self.running or time.monotonic() >= end
            if len(found := self.pids(pattern)) >= count:
                return found
            if over:
                raise AssertionError(f"no {count} × {pattern!r} in ps within {timeout} s\n{self.describe()}")
            time.sleep(0.02)

    def signal(self, signum: int) -> None:
        """Send a signal to the command itself, not to what is below it."""
        # Its pid cannot be anybody else's before the nursery has reaped it, which it then says; or is about to.
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def wait(self, timeout: float = LONG) -> int:
        """Return the exit status of the command; negative: the signal that killed it."""
        self._read(timeout, lambda: self.status is not None)
        if self.status is None:
            raise AssertionError(f"still running after {timeout} s\n{self.describe()}")
        return self.status

    def wait_gone(self, timeout: float = LONG) -> None:
        """Wait until nothing is left of the command and of all that it started."""
        if not self._read(timeout, lambda: False):
            raise AssertionError(f"left behind after {timeout} s\n{self.describe()}")

    def describe(self) -> str:
        shown = " ".join(self.command)
        listing = "\n".join(map(str, self.ps())) or "(no process)"
        return f"$ {shown}  → {self.status}\n{listing}\n--- its output\n{self.log[-6000:]}"

    def close(self, grace: float = LONG) -> None:
        """End it, by SIGTERM, then by SIGKILL to exactly what it started.

        Raises AssertionError if it took SIGKILL, or if something outlived the command.
        """
        complaint = ""
        try:
            if self.running:
                self.signal(signal.SIGTERM)
                try:
                    self.wait(grace)
                except AssertionError as error:
                    complaint = f"SIGTERM did not end it: {error}"
            if not complaint:
                try:
                    self.wait_gone(grace)
                except AssertionError as error:
                    complaint = str(error)
        finally:
            # A process may fork while the list is made, so again until the nursery has nobody left.
            while not self._read(0.1, lambda: False):
                kill_all([found.pid for found in self.ps()])
        if complaint:
            raise AssertionError(complaint)


class Cli:
    """Starts the real CLI, in one folder, with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir(exist_ok=True)
        #: Change it, or give `env=` for one call. Nothing of the tests' own environment is in it.
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "error",
        }
        self.processes: list[Process] = []

    def write(self, app: str, name: str = APP) -> Path:
        """Write an application's source into the folder."""
        path = self.folder / name
        path.write_text(app)
        # Python compares whole seconds and sizes only: an old cache could pass for a rewritten file.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        return path

    def start(
        self,
        *arguments: object,
        app: str | None = None,
        env: Mapping[str, str] | None = None,
        python: list[str] | None = None,
    ) -> Process:
        """Start `forkrunner ARGUMENTS…` and return while it runs; `python` replaces `-m forkrunner`."""
        if app is not None:
            self.write(app)
        command = [
            sys.executable,
            *(["-m", "forkrunner"] if python is None else python),
            *map(str, arguments),
        ]
        name = f"cli{len(self.processes) + 1}"
        process = Process(command, self.folder, {**self.env, **(env or {})}, name)
        self.processes.append(process)
        return process

    def run(
        self,
        *arguments: object,
        app: str | None = None,
        env: Mapping[str, str] | None = None,
        python: list[str] | None = None,
        timeout: float = LONG,
        status: int | None = 0,
    ) -> Finished:
        """Run `forkrunner ARGUMENTS…` to its end and return what it printed.

        Raises AssertionError if its exit status is another than `status`; None takes any.
        """
        process = self.start(*arguments, app=app, env=env, python=python)
        found = process.wait(timeout)
        process.wait_gone()
        assert status is None or found == status, f"expected status {status}\n{process.describe()}"
        return Finished(found, process.stdout, process.stderr)

    def close(self) -> None:
        """End all that runs, the last one first; complain once about all of them."""
        complaints = []
        for process in reversed(self.processes):
            try:
                process.close()
            except AssertionError as error:
                complaints.append(str(error))
        assert not complaints, "\n\n".join(complaints)
