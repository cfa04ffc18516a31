"""forkrunner replay: a past attempt again, in the foreground, without a trace in the database.

On real databases, with the real command, while a supervisor runs; on a real terminal where one is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from forkrunner import InputFile, Runner
from forkrunner.job import State
from tests.running import LONG, Bed
from tests.support import Cli, Finished, alive, wait_until

APP = '''
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import sqlalchemy as sa
from forkrunner import InputFile, OutputFile, Runner, Secret, UserError, current_job, progress, safe_point

runner = Runner()

@runner.task(queue="quick")
def convert(source: InputFile, password: Secret, times: int = 2) -> OutputFile:
    job = current_job()
    print("converting", source.display_name, job.attempt, os.path.dirname(source) == os.environ["TMPDIR"])
    session = job.session()
    session.execute(sa.text("INSERT INTO notes (text) VALUES (:text)"), {"text": password.reveal()})
    session.commit()
    session.execute(sa.text("INSERT INTO notes (text) VALUES ('again')"))
    progress(0.5, "half")
    return OutputFile(source.read_bytes() * times, name="../twice\\u202e.txt")

@runner.task
def fail(how: str, seconds: float = 1000.0) -> object:
    print("begins", flush=True)
    if how in ("time", "sleeps"):
        time.sleep(seconds)
    current_job().session().execute(sa.text("INSERT INTO notes (text) VALUES (:how)"), {"how": how})
    found = len(how)  # a local to look at
    if how == "raise":
        raise ValueError(f"bad {found}")
    if how == "user error":
        raise UserError("line 3: no")
    if how == "sys.exit":
        sys.exit(7)
    if how == "os._exit":
        os._exit(9)
    if how == "no JSON":
        return object()
    if how == "segfault":
        ctypes.string_at(0)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        return len(b"x" * (300 << 20))
    if how == "daemon":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if how == "stdin":
        return sys.stdin.read()
    return how

@dataclass
class Box:
    file: InputFile
    more: InputFile

@runner.task
def join(files: list[InputFile], box: Box) -> str:
    return "+".join(file.read_text() for file in (*files, box.file, box.more))

@runner.task
def open_door(password: str, pin_token: int) -> None:
    raise ValueError(f"bad {password} {pin_token}")

@runner.task
def hold(path: str) -> str:
    print("holds", os.getpid(), os.getppid(), flush=True)
    try:
        while not os.path.exists(path):
            time.sleep(0.01)
            safe_point()
    finally:
        print("leaves", flush=True)
    return "let go"

@runner.task
def where(name: str = "x") -> dict:
    print("pid", os.getpid())
    return {"pid": os.getpid(), "tmp": tempfile.gettempdir(), "token": "hunter2"}

@runner.task
def steps(path: str) -> None:
    progress(0.42, "deep in it")
    print("a line", flush=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    print("another line", flush=True)
'''  # fmt: skip

NO_LONGER = 'raise RuntimeError("never imported")'
HEX = "a" * 64


def dump(bed: Bed) -> str:
    """Return all that forkrunner's tables hold, but for the leases of supervisors."""
    tables = ("forkrunner_jobs", "forkrunner_attempts", "forkrunner_files", "notes")
    return repr([sorted(map(repr, bed.query(f"select * from {table}"))) for table in tables])


@pytest.fixture
def bed(cli: Cli, database: str) -> Iterator[Bed]:
    yield from make_bed(cli, database)


@pytest.fixture
def local(cli: Cli, sqlite_database: str) -> Iterator[Bed]:
    """For what has nothing to do with the kind of the database."""
    yield from make_bed(cli, sqlite_database)


def make_bed(cli: Cli, database: str) -> Iterator[Bed]:
    cli.env |= {"FORKRUNNER_STORAGE": str(cli.folder / "storage"), "TMPDIR": str(cli.folder / "tmp")}
    (cli.folder / "tmp").mkdir()
    with Bed(cli, database, source=APP) as bed:
        engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE notes (text VARCHAR(100))"))
        yield bed
        # nothing of a replay is left, whatever has become of it
        assert list((cli.folder / "tmp").glob("forkrunner-replay-*")) == []


def put_convert(bed: Bed, content: bytes = b"abc", queue: str = "quick") -> str:
    runner = Runner(bed.database, storage=str(bed.folder / "storage"))

    @runner.task(queue=queue)
    def convert(source: InputFile, password: dict[str, str], times: int = 2) -> None: ...

    job = convert.enqueue(InputFile.from_bytes(content, name="shot ü.txt"), {"forkrunner.secret": "hunter2"})
    runner.close()
    return job.id


def replay(bed: Bed, *words: object, status: int) -> Finished:
    return bed.cli.run("replay", "jobs:runner", *words, status=status, timeout=LONG)


def kept(found: Finished) -> Path:
    match = re.search("^kept: (.*)$", found.stderr, re.MULTILINE)
    assert match
    return Path(match[1])


def test_it_ends_as_the_attempt_did_and_leaves_no_trace(bed: Bed) -> None:
    """Each way to end, with a supervisor at work on the same database."""
    supervisor = bed.start(slots=3)
    cases: dict[str, tuple[dict[str, Any], int, str]] = {
        "raise": ({}, 1, "raised ValueError: bad 5, after"),
        "user error": ({}, 1, "raised forkrunner.errors.UserError: line 3: no, after"),
        "no JSON": ({}, 1, "cannot be stored as JSON"),
        "sys.exit": ({}, 3, "exited: the task called sys.exit(7), after"),
        "os._exit": ({}, 3, "exit status 9 before the task returned, after"),
        "segfault": ({"max_crashes": 1}, 139, "crashed: the process was ended by SIGSEGV, after"),
        "SIGKILL": ({"max_crashes": 1}, 137, "after"),
        "memory": ({"memory": 100_000_000}, 5, "over memory: its limit memory is 100.0 MB"),
        "time": ({"timeout": 2, "grace": 0.2}, 4, "timed out: ran longer than its timeout of 2 s"),
        "daemon": ({}, 0, "done, after"),
        "stdin": ({}, 0, "done, after"),
    }
    ids = {how: bed.put("fail", {"how": how}, options=options) for how, (options, _, _) in cases.items()}
    ids["convert"] = put_convert(bed)
    for id in ids.values():
        bed.ended(id)
    before = dump(bed)
    stored = sorted(path.name for path in (bed.folder / "storage").rglob("*"))
    for how, (_, status, words) in cases.items():
        if how not in ("raise", "segfault", "time") and "postgresql" in bed.database:
            continue  # what has nothing to do with the kind of the database
        found = replay(bed, ids[how], status=status)
        assert found.stdout == "begins\n", how
        assert words in found.stderr, how
        assert found.stderr.startswith(f"replay of {ids[how]} fail, attempt 1, which ended: "), how
        assert ": as attempt 1" in found.stderr, (how, found.stderr)
        assert dump(bed) == before, how
        if how in ("raise", "no JSON"):
            assert ('jobs.py", line' in found.stderr) == (how == "raise")
        if how == "segfault":
            assert "Fatal Python error: Segmentation fault" in found.stderr
            assert re.search(r'jobs.py", line \d+ in fail$', found.stderr, re.MULTILINE)
            assert "commands/replay.py" not in found.stderr
        if how == "time":
            assert re.search(r'jobs.py", line \d+ in fail$', found.stderr, re.MULTILINE)
    found = replay(bed, ids["convert"][:23], "--keep", status=0)
    assert found.stdout == "converting shot ü.txt 1 True\n"
    assert "hunter2" not in found.stderr
    folder = kept(found)
    output = re.search("^output: (.*)$", found.stderr, re.MULTILINE)
    assert output
    assert Path(output[1]).parent == folder / "results"
    assert Path(output[1]).read_bytes() == b"abcabc"
    assert sorted(path.read_bytes() for path in (folder / "tmp").iterdir()) == [b"abc"]
    subprocess.run(["rm", "-r", str(folder)], check=True)
    assert dump(bed) == before
    assert sorted(path.name for path in (bed.folder / "storage").rglob("*")) == stored
    assert {text for (text,) in bed.query("select text from notes")} == {
        "hunter2",
        "again",
        "daemon",
        "stdin",
    }
    bed.stop(supervisor)


def test_a_job_that_runs_waits_or_was_cancelled(bed: Bed) -> None:
    supervisor = bed.start(slots=1)
    running = bed.put("hold", {"path": bed.path("go")})
    bed.cli.start("log", "jobs:runner", running, "-f").wait_log("holds")
    waiting = bed.put("where", {"name": "ü"}, delay=3600)
    cancelled = bed.put("where")
    bed.store.cancel(cancelled)
    before = dump(bed)
    beside = bed.cli.start("replay", "jobs:runner", running, "--file", "x=y")
    assert beside.wait(LONG) == 2
    beside = bed.cli.start("replay", "jobs:runner", running)
    beside.wait_log("holds")
    assert f"replay of {running} hold, attempt 1, which runs at this moment and goes on" in beside.stderr
    assert dump(bed) == before
    bed.store.cancel(running)  # asks the one that is a job
    assert bed.ended(running).state is State.CANCELLED
    assert beside.running
    bed.let_go()
    assert beside.wait(LONG) == 0
    assert "leaves" in beside.stdout
    assert 'result: "let go"' in beside.stderr
    found = replay(bed, cancelled, status=0)
    assert "its first attempt; the job is cancelled and has not run yet" in found.stderr
    assert '"token": "***"' in found.stderr
    supervisor.signal(signal.SIGKILL)
    supervisor.wait()
    found = replay(bed, waiting, status=0)
    assert "its first attempt; the job is pending and has not run yet" in found.stderr
    assert bed.row(cancelled).state is State.CANCELLED


def test_what_cannot_be_run_again_says_why(local: Bed) -> None:
    bed = local
    unknown = bed.put("fial", {"how": "nothing"})
    misfit = bed.put("fail", {"how": 3})
    missing = bed.put("fail", {"who": "x"})
    broken = bed.put("fail", "{")
    gone = put_convert(bed)
    for path in (bed.folder / "storage").rglob("*"):
        if path.is_file():
            path.unlink()
    before = dump(bed)
    cases: list[tuple[tuple[object, ...], list[str]]] = [
        ((unknown,), ["there is no task 'fial', did you mean 'fail'?"]),
        ((misfit,), ["cannot be run again: fail(): argument 'how': expected str, got int 3"]),
        ((missing,), ["cannot be run again: fail(): there is no argument 'who'"]),
        ((broken,), ["cannot be run again: fail(): arguments: expected a JSON object"]),
        ((gone,), ["cannot be run again", "its input files: source (shot ü.txt)", "--file NAME=PATH"]),
        ((gone, "--file", "other=jobs.py"), ["no input file 'other'; it has: source (shot ü.txt)"]),
        ((gone, "--file", "source=nowhere"), ["expected NAME=PATH of a file that is there"]),
        (("0199-none",), ["no job"]),
        ((unknown, "--task", "fail", "--attempt", 2), ["--attempt: expected 1 to 1, got 2"]),
    ]
    for words, sentences in cases:
        found = replay(bed, *words, status=2)
        assert found.stdout == ""
        assert "Traceback" not in found.stderr
        for sentence in sentences:
            assert sentence in found.stderr, (words, found.stderr)
    # a task that was renamed, and a file that was saved from a mail, by its parameter and by its name
    found = replay(bed, unknown, "--task", "fail", status=0)
    assert found.stdout == "begins\n"
    (bed.folder / "saved=1").write_bytes(b"from the mail")
    for name in ("source", "shot ü.txt"):
        found = replay(bed, gone, "--file", f"{name}=saved=1", "--keep", status=0)
        folder = kept(found)
        (result,) = (folder / "results").iterdir()
        assert result.read_bytes() == b"from the mail" * 2
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert dump(bed) == before
    (bed.folder / "jobs.py").write_text(NO_LONGER)
    assert "importing it raised RuntimeError: never imported" in replay(bed, misfit, status=2).stderr


def test_files_of_one_name_are_told_apart_by_their_places(local: Bed) -> None:
    bed = local
    runner = Runner(bed.database, storage=str(bed.folder / "storage"))

    @runner.task
    def join(files: list[InputFile], box: dict[str, InputFile]) -> None: ...

    # two are alike in all
    one, two, three, four, five = (
        InputFile.from_bytes(text, name="shot.txt") for text in b"a b b c d".split()
    )
    id = join.enqueue([one, two, three], {"file": four, "more": five}).id
    runner.close()
    for word in "ABCD":
        (bed.folder / word).write_text(word)
    cases = {
        (): "a+b+b+c+d",
        ("files[1]=A",): "a+A+b+c+d",
        ("files[2]=A", "box[1]=B"): "a+b+A+c+B",
        ("box[0]=C", "files[0]=D"): "D+b+b+C+d",
    }
    for given, joined in cases.items():
        found = replay(bed, id, *(word for text in given for word in ("--file", text)), status=0)
        assert f'result: "{joined}"' in found.stderr, given
    for name in ("shot.txt", "files"):
        found = replay(bed, id, "--file", f"{name}=A", status=2)
        assert f"--file: '{name}' may be one of several input files" in found.stderr
        assert "files[0] (shot.txt), files[1] (shot.txt), files[2] (shot.txt)" in found.stderr
    assert "no input file 'files[3]'; it has: " in replay(bed, id, "--file", "files[3]=A", status=2).stderr


def test_what_it_says_of_the_ending_has_no_secrets(local: Bed) -> None:
    id = local.put("open_door", {"password": "hunter2", "pin_token": 4711})
    for more in ((), ("--here",)):
        found = replay(local, id, *more, status=1)
        assert "raised ValueError: bad *** ***" in found.stderr
        assert "hunter2" not in found.stderr
        assert "4711" not in found.stderr


def test_here_is_this_process(local: Bed) -> None:
    bed = local
    id = bed.put("where", options={"timeout": 0.001, "memory": 1_000_000, "temporary_folder": True})
    process = bed.cli.start("replay", "jobs:runner", id, "--here")
    assert process.wait(LONG) == 0
    assert process.stdout == f"pid {process.pid}\n"
    process.wait_gone()
    failing = bed.put("fail", {"how": "raise"})
    found = replay(bed, failing, "--here", status=1)
    assert "ValueError: bad 5" in found.stderr
    assert 'in fail\n    raise ValueError(f"bad {found}")' in found.stderr
    assert replay(bed, bed.put("fail", {"how": "sys.exit"}), "--here", status=3).stdout == "begins\n"
    # a profiler sees the task
    profiled = bed.cli.run(
        python=["-m", "cProfile", "-m", "forkrunner", "replay", "jobs:runner", failing, "--here"], status=None
    )
    assert "jobs.py" in profiled.stdout
    assert "(fail)" in profiled.stdout
    assert bed.query("select count(*) from forkrunner_attempts") == [(0,)]
    # a signal ends it as any process; where the task ends it by itself, or it is killed, the next one tidies up
    folders = lambda: list((bed.folder / "tmp").glob("*forkrunner-replay-*"))  # noqa: E731
    deaf = bed.put("fail", {"how": "sleeps"})
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        process = bed.cli.start("replay", "jobs:runner", deaf, "--here")
        process.wait_log("begins")
        assert len(folders()) == 1
        if signum == signal.SIGKILL:
            replay(bed, failing, status=1)
            assert len(folders()) == 1, "it is in use"
        process.signal(signum)
        assert process.wait(LONG) == -signum
        assert len(folders()) == (signum == signal.SIGKILL)
    replay(bed, bed.put("fail", {"how": "os._exit"}), "--here", status=9)
    assert len(folders()) == 1, "that of the one that was killed is gone"
    folder = kept(replay(bed, failing, "--keep", status=1))
    assert folders() == [folder]
    replay(bed, failing, status=1)
    assert folders() == [folder]
    subprocess.run(["rm", "-r", str(folder)], check=True)


def test_it_can_be_interrupted_and_killed(local: Bed) -> None:
    """Ctrl-C as in any program; the second one, TERM and KILL leave no process either."""
    bed = local
    id = bed.put("hold", {"path": bed.path("never")})
    deaf = bed.put("fail", {"how": "sleeps"})
    process = bed.cli.start("replay", "jobs:runner", id)
    process.wait_log("holds")
    process.signal(signal.SIGINT)
    assert process.wait(LONG) == 130
    assert "leaves" in process.stdout
    assert "KeyboardInterrupt" in process.stderr
    process.wait_gone()
    for signum, status in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        process = bed.cli.start("replay", "jobs:runner", deaf)
        process.wait_log("begins")
        process.signal(signum)
        assert process.wait(LONG) == status
        assert f"cancelled: by {signum.name}, after" in process.stderr
        process.wait_gone()
    process = bed.cli.start("replay", "jobs:runner", deaf)
    process.wait_log("begins")
    (child,) = [found.pid for found in process.ps() if "forkrunner: replay" in found.title]
    process.signal(signal.SIGKILL)
    process.wait_gone()
    wait_until(lambda: not alive(child))
    # who was killed does not tidy up
    replay(bed, bed.put("where"), status=0)
    assert bed.row(id).state is State.PENDING


# -------------------------------------------------------------------------- on a terminal


class Terminal:
    """A command on a terminal of its own, which it controls, as in a shell."""

    def __init__(self, cli: Cli, *words: str) -> None:
        self.output = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cli.folder)
            env = {**cli.env, "TERM": "xterm", "COLUMNS": "100"}
            os.execve(sys.executable, [sys.executable, "-m", "forkrunner", *words], env)

    def read_until(self, pattern: str, timeout: float = LONG) -> str:
        """Read until the output has this regular expression in it, and return what came up to there; it is then used up."""
        end = time.monotonic() + timeout
        while not (match := re.search(pattern, self.output)):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            data = b""
            with contextlib.suppress(OSError):  # nobody has it open any more
                data = os.read(self.fd, 65536) if ready else b""
            assert data, f"no {pattern!r} in {self.output!r}"
            self.output += data.decode(errors="replace")
        seen, self.output = self.output[: match.end()], self.output[match.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self) -> tuple[int, str]:
        """Return the exit status, and the rest of the output."""
        with contextlib.suppress(OSError):
            while data := os.read(self.fd, 65536):
                self.output += data.decode(errors="replace")
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.output


def test_pdb_looks_around_where_it_raised(local: Bed) -> None:
    bed = local
    # with a limit of time that would be over long before
    id = bed.put("fail", {"how": "raise"}, options={"timeout": 0.2, "cpu_seconds": 1})
    terminal = Terminal(bed.cli, "replay", "jobs:runner", id, "--pdb")
    seen = terminal.read_until(r"\(Pdb\) ")
    assert "ValueError: bad 5" in seen
    assert seen.count("Traceback") == 1
    terminal.type("p found * 100\n")
    terminal.read_until(r"\n500\r\n\(Pdb\) ")
    terminal.type("p current_job().attempt, sys.stdin.isatty()\n")
    terminal.read_until(r"\n\(1, True\)\r\n\(Pdb\) ")
    # Ctrl-C, typed: the prompt is still there
    terminal.type("\x03")
    terminal.read_until(r"\(Pdb\) ")
    terminal.type("p how\n")
    terminal.read_until(r"'raise'\r\n\(Pdb\) ")
    terminal.type("q\n")
    status, rest = terminal.wait()
    assert status == 1
    assert "raised ValueError: bad 5" in rest
    assert "Traceback" not in rest
    assert bed.query("select text from notes") == []


def test_pdb_interrupts_what_hangs(local: Bed) -> None:
    id = local.put("hold", {"path": local.path("never")})
    terminal = Terminal(local.cli, "replay", "jobs:runner", id, "--pdb")
    terminal.read_until("holds")
    terminal.type("\x03")
    assert "KeyboardInterrupt" in terminal.read_until(r"\(Pdb\) ")
    terminal.type("p path\n")
    terminal.read_until(r"never'\r\n\(Pdb\) ")
    terminal.type("q\n")
    status, _ = terminal.wait()
    assert status == 130


def test_a_terminal_shows_a_bar_and_lines_that_it_does_not_run_into(local: Bed) -> None:
    id = local.put("steps", {"path": local.path("go")})
    before = json.dumps(local.cli.run("show", "jobs:runner", id, "--json").json["progress"])
    terminal = Terminal(local.cli, "replay", "jobs:runner", id)
    terminal.read_until("a line\r\n")
    # it is drawn again below what has come
    terminal.read_until("42 % deep in it")
    # nobody else sees it
    assert json.dumps(local.cli.run("show", "jobs:runner", id, "--json").json["progress"]) == before
    local.let_go()
    seen = terminal.read_until("another line\r\n")
    assert "\r\x1b[Kanother line" in seen
    status, rest = terminal.wait()
    assert status == 0
    assert "done, after" in rest
    # Ctrl-C on a terminal
    (local.folder / "go").unlink()
    terminal = Terminal(local.cli, "replay", "jobs:runner", id)
    terminal.read_until("deep in it")
    terminal.type("\x03")
    status, rest = terminal.wait()
    assert status == 130
    assert "KeyboardInterrupt" in rest
