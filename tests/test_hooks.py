"""What is called around jobs, and what must not be there when they are forked: against the real command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from forkrunner import ConfigError, Runner
from forkrunner.job import Outcome, State
from forkrunner.records import Attempt
from forkrunner.safety import EFFECTS, kind_of_file
from tests.running import LONG, SOURCE, Bed, check_gone, line_of
from tests.support import Cli, alive, wait_until

HOOKS = """
# ------------------------------------------------------------------------------ test_hooks.py

calls = []
limitless = []


@runner.before_fork
def warm_up() -> None:
    calls.append(f"before_fork in {os.getpid()}")
    with open(os.environ["LEDGER"] + ".warm", "a") as file:
        file.write("x")


@runner.after_fork
def first() -> None:
    calls.append("after_fork 1")
    if os.environ.get("AFTER_FORK") == "raise":
        raise ConnectionError("no server")
    if os.environ.get("AFTER_FORK") == "hang":
        time.sleep(1000)


@runner.after_fork
def second() -> None:
    calls.append(f"after_fork 2 of {current_job().task}")


@runner.before_exit
def flush() -> None:
    note("exit1")
    print("flushed", len(calls))
    how = os.environ.get("BEFORE_EXIT")
    if how == "raise":
        raise RuntimeError("cannot flush")
    if how == "exit":
        sys.exit(3)
    if how == "hang":
        time.sleep(1000)
    if how == "hang in C":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if how == "segfault":
        segfault()
    if how == "abort":
        abort()
    if how == "kill":
        kill_itself(signal.SIGKILL)
    if how == "fill":
        limitless.append(b"x" * (150 << 20))
        time.sleep(1000)


@runner.before_exit
def flush_more() -> None:
    note("exit2")


@runner.task
def tell() -> list[str]:
    begin()
    return [*calls, os.getppid()]
"""


def source_with(text: str) -> str:
    return SOURCE.read_text() + text


@pytest.fixture
def application() -> str:
    return source_with(HOOKS)


# ----------------------------------------------------------------------------------- hooks


def test_hooks_are_called_in_their_order(bed: Bed) -> None:
    supervisor = bed.start()
    ids = [bed.put("tell") for _ in range(3)]
    for id in ids:
        row = bed.ended(id)
        (mold,) = supervisor.pids("forkrunner: mold")
        expected = [f"before_fork in {mold}", "after_fork 1", "after_fork 2 of tell", mold]
        assert row.result == str(expected).replace("'", '"').replace(", ", ",")
        assert row.attempts[0].output_tail == "flushed 3\n"
        assert [line.event for line in bed.ledger() if line.job == id] == ["start", "exit1", "exit2"]
    assert Path(f"{bed.ledger_path}.warm").read_text() == "x", "once, in the mold"
    bed.stop(supervisor)


@pytest.mark.parametrize(
    ("task", "outcome"), [("boom", Outcome.RAISED), ("not_json", Outcome.RAISED), ("leave", Outcome.EXITED)]
)
def test_before_exit_when_the_task_does_not_return(sqlite_bed: Bed, task: str, outcome: Outcome) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    id = bed.put(task, {"status": 4} if task == "leave" else {})
    (attempt,) = bed.ended(id).attempts
    assert attempt.outcome == outcome
    assert [line.event for line in bed.ledger() if line.job == id] == ["exit1", "exit2"]
    bed.stop(supervisor)


@pytest.mark.parametrize("how", ["raise", "exit"])
def test_a_before_exit_hook_that_raises_changes_nothing(sqlite_bed: Bed, how: str) -> None:
    bed = sqlite_bed
    supervisor = bed.start(env={"BEFORE_EXIT": how})
    id = bed.put("tell")
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert (row.state, attempt.outcome, attempt.exit_status) == (State.DONE, Outcome.DONE, 0)
    assert [line.event for line in bed.ledger()] == ["start", "exit1", "exit2"]
    output = str(attempt.output_tail)
    assert "the before_exit hook jobs.flush raised\nTraceback" in output
    assert ("RuntimeError: cannot flush" if how == "raise" else "SystemExit: 3") in output
    bed.stop(supervisor)


@pytest.mark.parametrize("how", ["hang", "hang in C"])
def test_a_before_exit_hook_that_hangs_is_ended_and_changes_nothing(sqlite_bed: Bed, how: str) -> None:
    bed = sqlite_bed
    supervisor = bed.start(env={"BEFORE_EXIT": how}, exit_timeout=0.3)
    id = bed.put("tell")
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert (row.state, attempt.outcome, attempt.exit_status) == (State.DONE, Outcome.DONE, 1)
    output = str(attempt.output_tail)
    assert "Timeout (0:00:00.3" in output
    assert "in flush\n" in output
    assert bed.noted("exit2") == []
    bed.stop(supervisor)


def steps_of(attempt: Attempt) -> list[str]:
    return [step["step"] for step in json.loads(attempt.steps or "[]")]


@pytest.mark.parametrize(
    ("how", "signum"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("kill", "SIGKILL")]
)
def test_a_before_exit_hook_that_crashes_changes_nothing_and_is_shown(
    sqlite_bed: Bed, how: str, signum: str
) -> None:
    bed = sqlite_bed
    supervisor = bed.start(env={"BEFORE_EXIT": how})
    id = bed.put("tell", options={"backoff": 0.05})
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert (row.state, attempt.outcome, attempt.signal) == (State.DONE, Outcome.DONE, signum)
    assert (row.crashes, bool(row.result)) == (0, True)
    assert [line.event for line in bed.ledger()] == ["start", "exit1"]
    if how != "kill":
        assert f'jobs.py", line {line_of(how)} in {how}' in str(attempt.stacks)
    assert steps_of(attempt) == ["ended"]
    shown = bed.cli.run("show", "jobs:runner", id).stdout
    assert re.search(rf"cut short\n +\S+ s  ended: {signum}, when its outcome was on record", shown), shown
    bed.stop(supervisor)


@pytest.mark.parametrize("limit", ["timeout", "memory", "cancel"])
def test_a_before_exit_hook_that_is_ended_by_force_changes_nothing(bed: Bed, limit: str) -> None:
    supervisor = bed.start(env={"BEFORE_EXIT": "fill" if limit == "memory" else "hang"}, exit_timeout=600)
    options = {"timeout": {"timeout": 1}, "memory": {"memory": 50_000_000}}.get(limit, {})
    id = bed.put("tell", options={"grace": 0.3, "backoff": 0.05, "max_attempts": 2} | options)
    if limit == "cancel":
        bed.wait_noted("exit1", id)
        bed.store.cancel(id)
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert (row.state, attempt.outcome, attempt.signal) == (State.DONE, Outcome.DONE, "SIGTERM")
    assert (attempt.error_message, bool(row.result)) == (None, True)
    reason = {"timeout": "timed_out", "memory": "over_memory", "cancel": "cancelled"}[limit]
    assert steps_of(attempt) == [reason, "stacks", "TERM", "ended"]
    assert "in flush\n" in str(attempt.stacks)
    shown = bed.cli.run("show", "jobs:runner", id).stdout
    assert "ended by force\n" in shown
    assert "SIGTERM, when its outcome was on record\n" in shown
    bed.stop(supervisor)


def test_a_hook_that_hangs_after_a_task_that_raised_changes_nothing(sqlite_bed: Bed) -> None:
    supervisor = sqlite_bed.start(env={"BEFORE_EXIT": "hang"}, exit_timeout=600)
    row = sqlite_bed.ended(sqlite_bed.put("boom", options={"timeout": 1, "grace": 0.3}))
    (attempt,) = row.attempts
    assert (row.state, row.error, attempt.outcome) == (State.FAILED, "ValueError: no good", Outcome.RAISED)
    assert "in boom" in str(attempt.traceback)
    assert "in flush\n" in str(attempt.stacks)
    sqlite_bed.stop(supervisor)


def test_an_after_fork_hook_that_raises_is_the_attempts_error(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start(env={"AFTER_FORK": "raise"})
    row = bed.ended(bed.put("tell", options={"max_attempts": 2, "backoff": 0.05}))
    assert (row.state, row.tries, row.error) == (State.FAILED, 2, "ConnectionError: no server")
    assert "in first" in str(row.attempts[0].traceback)
    assert bed.noted("start") == []
    bed.stop(supervisor)


def test_an_after_fork_hook_that_hangs_is_ended_by_the_timeout(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start(env={"AFTER_FORK": "hang"})
    row = bed.ended(bed.put("tell", options={"timeout": 0.5, "grace": 0.2}))
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.TIMED_OUT]
    assert "in first" in str(row.attempts[0].stacks)
    bed.stop(supervisor)


def test_a_before_fork_hook_that_raises_keeps_the_mold_from_coming_up(cli: Cli, sqlite_database: str) -> None:
    source = source_with("\n@runner.before_fork\ndef warm_up() -> None:\n    raise OSError('no model')\n")
    with Bed(cli, sqlite_database, source=source) as bed:
        supervisor = bed.start(ready=False)
        assert supervisor.wait(LONG) == 2
        assert "the before_fork hook jobs.warm_up raised OSError: no model" in supervisor.stderr
        assert cli.run("check", "jobs:runner", status=2).stderr.startswith(
            "forkrunner: jobs:runner: the before_fork"
        )


def test_term_while_a_before_fork_hook_hangs(cli: Cli, sqlite_database: str) -> None:
    source = source_with(
        "\n@runner.before_fork\ndef warm_up() -> None:\n    open('hanging', 'w')\n    time.sleep(1000)\n"
    )
    with Bed(cli, sqlite_database, source=source) as bed:
        supervisor = bed.start(ready=False)
        wait_until((bed.folder / "hanging").exists, LONG)
        bed.stop(supervisor)


def test_what_is_no_hook_is_refused() -> None:
    runner = Runner()

    async def later() -> None: ...

    def needs(one: int) -> None: ...

    wrongs: list[Any] = [3, later, needs]
    for wrong, words in zip(wrongs, ("got int 3", "got the async", "without arguments, got"), strict=True):
        with pytest.raises(ConfigError, match=f"before_exit: expected .*{words}"):
            runner.before_exit(wrong)

    class Exporter:
        def flush(self) -> None: ...

    # two of one class are two
    exporters = Exporter(), Exporter()
    for exporter in (*exporters, exporters[0]):
        runner.after_fork(exporter.flush)
    assert runner.hooks.after_fork == [exporter.flush for exporter in exporters]

    @runner.before_exit
    def fine(one: int = 1, *, two: int = 2) -> None: ...

    assert runner.hooks.before_exit == [fine]


# --------------------------------------------------------------------------------- engines


def test_engines_of_the_application_are_fit_for_use_in_a_job(cli: Cli, postgresql_database: str) -> None:
    """Each job has a connection of its own, and what it does to the mold's reaches nobody."""
    source = source_with("""
import sqlalchemy
engine = sqlalchemy.create_engine(os.environ["FORKRUNNER_DATABASE"])

def backend() -> int:
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text("select pg_backend_pid()")).scalar()

at_import = backend()

@runner.task
def backends() -> list[int]:
    found = [at_import, backend()]
    engine.dispose()
    return found
""")
    with Bed(cli, postgresql_database, source=source) as bed:
        supervisor = bed.start()
        found = [str(bed.ended(bed.put("backends")).result) for _ in range(4)]
        pairs = [eval(text) for text in found]
        molds = {pair[0] for pair in pairs}
        assert (len(molds), len({pair[1] for pair in pairs} - molds)) == (1, 4)
        alive = bed.query("select pid from pg_stat_activity where datname = current_database()")
        assert molds.pop() in {pid for (pid,) in alive}, "the mold's own was closed by a job"
        supervisor.wait_log("socket .*, made by jobs: jobs find it closed")
        bed.stop(supervisor)


# ------------------------------------------------------------------------------ fork safety

MAKERS = {
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), name='ticker', daemon=True).start()\n",
    "socket": "import os, socket\nconnection = socket.create_connection(('127.0.0.1', int(os.environ['PORT'])))\n",
    "SQLite file": "import sqlite3\ndb = sqlite3.connect('own.db')\ndb.execute('create table if not exists t (x)')\n",
    "process": "import subprocess\nprogram = subprocess.Popen(['cat'], stdin=subprocess.PIPE)\n",
    "event loop": "import asyncio\nloop = asyncio.new_event_loop()\n",
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("how", ["import", "preload", "function", "hook"])
def test_check_names_what_no_fork_may_take_along_and_who_made_it(
    cli: Cli, sqlite_database: str, kind: str, how: str
) -> None:
    package = cli.folder / "library"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(MAKERS[kind])
    body = "".join(f"    {line}\n" for line in MAKERS[kind].splitlines())
    (package / "warm.py").write_text(f"kept = []\ndef up():\n{body}    kept.append(locals())\n")
    source, by, preload = {
        "import": ("from library import inner\n", "library.inner", ""),
        "preload": ("", "library.inner", "library.inner"),
        "function": ("", r"library.warm:up\(\)", "library.warm:up"),
        "hook": ("import library.warm\n@runner.before_fork\ndef hook():\n    library.warm.up()\n", "the before_fork hook jobs.hook", ""),
    }[how]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as server:
        cli.env |= {"PORT": str(server.getsockname()[1]), "FORKRUNNER_DATABASE": sqlite_database}
        if preload:
            cli.env["FORKRUNNER_PRELOAD"] = preload
        cli.env["FORKRUNNER_RUNTIME_DIR"] = str(cli.folder / "runtime")
        cli.write(
            "from forkrunner import Runner\nrunner = Runner()\n@runner.task\ndef noop(): pass\n" + source
        )
        bad = int(kind == "thread")
        found = cli.run("check", "jobs:runner", status=bad)
        assert f"made by {by}".replace("\\", "") in found.stdout, found.stdout
        assert kind in found.stdout
        (first, *_) = cli.run("check", "jobs:runner", "--json", status=bad).json["unsafe"]
        assert first["by"] == by.replace("\\", "")
        # and a run says the same, or refuses
        process = cli.start("run", "jobs:runner", *(["--allow-threads"] if bad else []))
        process.wait_log(f"{kind} .*, made by {by}: {EFFECTS[kind][:20]}", LONG)
        process.signal(15)
        assert process.wait(LONG) == 0
        if bad:
            refused = cli.run("run", "jobs:runner", status=2)
            assert f"started 1 thread(s) (ticker, made by {by}".replace("\\", "") in refused.stderr


def test_what_was_made_and_given_back_is_no_trouble(cli: Cli, sqlite_database: str) -> None:
    source = "import threading\nthread = threading.Thread(target=print)\nthread.start()\nthread.join()\n"
    source += "import sqlite3\nsqlite3.connect('own.db').close()\n"
    source += "import subprocess\nsubprocess.run(['true'])\nended = subprocess.Popen(['true'])\nended.stdin = None\n"
    source += "import os\nos.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)\n"
    cli.env["FORKRUNNER_DATABASE"] = sqlite_database
    cli.write("from forkrunner import Runner\nrunner = Runner()\n@runner.task\ndef noop(): pass\n" + source)
    assert cli.run("check", "jobs:runner", "--json").json["unsafe"] == []


HELPERS = """
import multiprocessing, os, subprocess, sys, time
from multiprocessing.managers import SyncManager
from forkrunner import Runner

runner = Runner()
echo = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
# one that leaves its session, and one with a program below it that it does not wait for
fled = subprocess.Popen(["sleep", "1000"], start_new_session=True)
shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; sleep 1000"], stdout=subprocess.PIPE)
below = int(shell.stdout.readline())
manager = SyncManager(ctx=multiprocessing.get_context("fork"))


@runner.before_fork
def start():
    manager.start()
    global shared
    shared = manager.list()


@runner.task
def pids() -> list[int]:
    return [echo.pid, fled.pid, shell.pid, below, manager._process.pid]


@runner.task
def ask(text: str) -> str:
    os.write(echo.stdin.fileno(), text.encode())
    return os.read(echo.stdout.fileno(), 100).decode()


@runner.task
def share(n: int) -> int:
    shared.append(n)
    return len(shared)


@runner.task
def leave_behind(silent: bool) -> int:
    output = subprocess.DEVNULL if silent else None
    return subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=output, stderr=output).pid
"""


def test_what_the_application_has_started_serves_all_jobs_and_goes_with_its_mold(
    cli: Cli, sqlite_database: str
) -> None:
    with Bed(cli, sqlite_database, source=HELPERS) as bed:
        supervisor = bed.start()

        def result(task: str, arguments: dict[str, Any] | None = None, left: int = 0) -> Any:
            (attempt,) = (row := bed.ended(bed.put(task, arguments))).attempts
            assert (attempt.outcome, attempt.leftover_processes) == (Outcome.DONE, left), attempt
            return json.loads(str(row.result))

        helpers = result("pids")
        for n in range(3):
            assert result("ask", {"text": f"word {n}"}) == f"word {n}"
            assert result("share", {"n": n}) == n + 1
        check_gone([result("leave_behind", {"silent": False}, left=1)])
        # it writes to nobody's output, and might be the application's too: killed, and counted to nobody
        check_gone([result("leave_behind", {"silent": True})])
        # what one of them leaves is the application's as well
        os.kill(helpers[2], signal.SIGKILL)
        check_gone([helpers.pop(2)])
        for _ in range(3):
            result("ask", {"text": "still"})
        assert all(map(alive, helpers))
        supervisor.signal(signal.SIGHUP)
        supervisor.wait_log("mold 1 has finished", LONG)
        check_gone(helpers)
        helpers = result("pids")
        assert all(map(alive, helpers))
        (mold,) = supervisor.wait_ps("forkrunner: mold")
        os.kill(mold, signal.SIGKILL)
        supervisor.wait_log("mold 3 is up", LONG)
        check_gone(helpers)
        assert result("ask", {"text": "again"}) == "again"
        bed.stop(supervisor)


def test_what_the_code_names_is_preloaded_too(cli: Cli, sqlite_database: str) -> None:
    source = """from forkrunner import Runner
runner = Runner(preload=["colorsys", "warm:up"])
@runner.task
def tell() -> list[bool]:
    import sys
    return ["colorsys" in sys.modules, bool(sys.modules["warm"].kept)]
"""
    (cli.folder / "warm.py").write_text("kept = []\ndef up():\n    kept.append(1)\n")
    with Bed(cli, sqlite_database, source=source) as bed:
        supervisor = bed.start()
        assert bed.ended(bed.put("tell")).result == "[true,true]"
        bed.stop(supervisor)


def test_a_preloaded_function_that_is_not_there(cli: Cli, sqlite_database: str) -> None:
    cli.env["FORKRUNNER_DATABASE"] = sqlite_database
    cli.write("from forkrunner import Runner\nrunner = Runner()\n")
    found = cli.run("check", "jobs:runner", "--preload", "os:no_such", status=2)
    assert "module 'os' has no attribute 'no_such'" in found.stderr
    found = cli.run("check", "jobs:runner", "--preload", "os:", status=2)
    assert "expected names of modules" in found.stderr


def test_files_that_no_fork_may_share() -> None:
    assert kind_of_file("/dev/nvidia0") == kind_of_file("/dev/nvidiactl") == kind_of_file("/dev/kfd") == "GPU"
    assert kind_of_file("/srv/jobs.db-wal") == "SQLite file"
    assert [
        kind_of_file(name) for name in ("/dev/null", "/srv/model.bin", "pipe:[1]", "anon_inode:[pidfd]")
    ] == [None] * 4
