"""The command line as people use it: the real one, in a folder of its own, typed right and typed wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forkrunner import terminal, units, wording
from forkrunner.cli import main
from forkrunner.commands.enqueue import OVERRIDES
from forkrunner.config import SETTINGS
from forkrunner.ids import new_id
from forkrunner.job import Next, Outcome, State
from forkrunner.options import OF_CALLS
from forkrunner.orders import SIGNALS
from forkrunner.records import Attempt, Ending, New, SupervisorRow
from forkrunner.store import Store
from tests.servers import Memcached, free_port
from tests.support import Cli, Finished, Process, wait_until

APP = """
import os
from forkrunner import Runner, progress

runner = Runner({database!r}, poll_interval=0.05, runtime_dir={runtime!r})

@runner.task(queue="video", timeout=60, max_attempts=2, backoff=0.05)
def convert(source: str, scale: float = 1.0) -> dict[str, float]:
    print("converting", source)
    progress(1.0, "Frame 1")
    return {{"scale": scale}}

@runner.task
def boom(text: str) -> None:
    raise ValueError(text)

@runner.task(max_crashes=1)
def crash() -> None:
    os.abort()

@runner.task
def hold(path: str) -> None:
    progress(0.42, "waiting")
    with open(path) as fifo:
        fifo.read()
"""

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
HOSTILE = (
    "red \x1b[31m bell \a title \x1b]0;owned\a back \b over \r bidi \u202e zero \u200b [bold]markup[/bold]"
)


@pytest.fixture
def app(cli: Cli, database: str) -> str:
    """The target of an application in the folder of `cli`, with its tables made; returns its database."""
    _write_app(cli, database)
    Store(database).migrate()
    return database


@pytest.fixture
def sqlite_app(cli: Cli, sqlite_database: str) -> str:
    _write_app(cli, sqlite_database)
    return sqlite_database


def _write_app(cli: Cli, database: str) -> None:
    cli.env["FORKRUNNER_APP"] = "jobs:runner"
    cli.write(APP.format(database=database, runtime=str(cli.folder / "run")))


def plant(database: str, *outcomes: Attempt | None, state: State = State.DONE, **new: Any) -> str:
    """Put a job into the database that has these attempts behind it; None: it is running."""
    job = New(**{"id": new_id(), "task": "convert", "queue": "default", "arguments": "{}", **new})
    store = Store(database)
    store.register(SupervisorRow("s1", "host1", "boot", "ns", 1, 1, "jobs:runner", 2, "0.1.0"), 60)
    store.enqueue([job])
    for outcome in outcomes:
        (claim,) = store.claim("s1", 1, None)
        assert claim.id == job.id
        if outcome is not None:
            facts = {name: getattr(outcome, name) for name in Attempt.__dataclass_fields__}
            facts |= {"job_id": job.id, "attempt": claim.attempt, "supervisor": "s1"}
            last = outcome is outcomes[-1]
            then = Next(state if last else State.PENDING, 1, 0)
            error = None if outcome.outcome is Outcome.DONE else outcome.error_message
            result = '{"scale": 2.0}' if outcome.outcome is Outcome.DONE else None
            store.finish([Ending(Attempt(**facts), then, job.task, result=result, error=error)])
    store.deregister("s1")
    store.close()
    return job.id


def attempt(outcome: Outcome = Outcome.DONE, **facts: Any) -> Attempt:
    return Attempt("", 1, outcome, **facts)


Ask = Callable[..., Finished]


@pytest.fixture
def ask(cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run commands in this process, in the folder and environment of `cli`: a tenth of the time.

    The real one is for what depends on being a process: signals, descriptors, terminals, what is loaded.
    """

    def ask(*words: object, status: int | None = 0, env: Mapping[str, str] | None = None) -> Finished:
        with monkeypatch.context() as patch:
            patch.chdir(cli.folder)
            patch.setattr(os, "environ", os.environ.copy())
            patch.setattr(sys, "path", sys.path.copy())
            patch.delitem(sys.modules, "jobs", raising=False)
            for name, value in {**cli.env, **(env or {})}.items():
                patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                main([str(word) for word in words])
            sys.modules.pop("jobs", None)
        found = Finished(int(end.value.code or 0), *capsys.readouterr())
        assert status is None or found.status == status, found
        return found

    return ask


def line_of(found: Finished) -> str:
    """Return the one line on standard error with which a command has refused."""
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    # what stands beside it: where to find help, and what a supervisor logs before it comes to the database
    lines = [line for line in found.stderr.splitlines() if not re.match("Try 'forkrunner |.* INFO ", line)]
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("forkrunner: ")
    return lines[0]


def on_a_terminal(cli: Cli, *arguments: str, columns: int = 80, **env: str) -> str:
    """Run a command with a terminal for its output, and return what arrived there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "forkrunner", *arguments],
        cwd=cli.folder,
        env={**cli.env, "COLUMNS": str(columns), "TERM": "xterm", **env},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody has it open any more
        while data := os.read(ours, 65536):
            output += data
    os.close(ours)
    assert process.wait() == 0, output
    return output.decode().replace("\r\n", "\n")


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本 😀", "plain ä 日本 😀"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\rb\x00\x7f\x9b", r"a\rb\x00\x7f\x9b"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("line\u2028line\ttab\n", r"line\u2028line\ttab\n"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_a_terminal_obeys_is_shown_instead(text: str, shown: str) -> None:
    assert terminal.clean(text) == shown
    assert terminal.clean_lines("a\r\nb\tc\x1b") == "a\nb\tc\\x1b"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 ms"),
        (0.32, "320 ms"),
        (0.9999, "1.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 m 00 s"),
        (123, "2 m 03 s"),
        (3599.9, "1 h 00 m"),
        (11100, "3 h 05 m"),
        (2 * 86400 + 4 * 3600, "2 d 04 h"),
    ],
)
def test_durations_are_worded(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_960, "1.0 MB"),
        (10**13, "10.0 TB"),
    ],
)
def test_sizes_are_worded(count: int, words: str) -> None:
    assert units.show_bytes(count) == words


# --------------------------------------------------------------------------- help


def test_help_loads_neither_the_database_nor_rich(cli: Cli) -> None:
    code = (
        "import sys\nfrom forkrunner.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('LOADED', sorted({'sqlalchemy', 'psycopg', 'pymemcache', 'rich', 'msgspec'} & set(sys.modules)))"
    )
    assert "LOADED []" in cli.run(python=["-c", code]).stdout


def test_help_shows_commands_flags_and_signals(cli: Cli) -> None:
    text = cli.run("--help").stdout
    assert "Usage: forkrunner " in text
    commands = [
        "run",
        "with",
        "enqueue",
        "status",
        "list",
        "show",
        "watch",
        "retry",
        "cancel",
        "pause",
        "resume",
        "log",
        "replay",
        "files",
        "prune",
        "mail",
        "migrate",
        "check",
        "config",
    ]
    assert list(main.commands) == commands
    assert all(f"\n  {command} " in text for command in commands)
    text = cli.run("run", "-h").stdout
    assert all(setting.flag in text for setting in SETTINGS.values() if setting.flag)
    assert all(signal.Signals(number).name[3:] in text for number in SIGNALS if number != signal.SIGCHLD)


def test_version(cli: Cli) -> None:
    from forkrunner import __version__

    assert cli.run("--version").stdout == f"forkrunner {__version__}\n"


# --------------------------------------------------------------------------- the main way


@pytest.fixture
def supervisor(cli: Cli, app: str) -> Process:
    process = cli.start("run", "--slots", "2")
    process.wait_log("runs jobs:runner")
    return process


def test_a_job_from_enqueue_to_its_page(cli: Cli, supervisor: Process) -> None:
    found = cli.run("enqueue", "convert", '{"source": "shot.txt", "scale": 2}', "--wait")
    job_id = found.stdout.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", job_id)
    assert found.stderr.startswith("done after ")

    shown = cli.run("show", job_id, "--json").json
    fields = "id task queue state priority run_at created_at started_at finished_at arguments result error attempts"
    assert set(fields.split()) <= set(shown)
    assert (shown["id"], shown["task"], shown["queue"], shown["state"]) == (
        job_id,
        "convert",
        "video",
        "done",
    )
    assert shown["arguments"] == {"source": "shot.txt", "scale": 2}
    assert shown["result"] == {"scale": 2}
    assert all(ISO.fullmatch(shown[name]) for name in ("run_at", "created_at", "started_at", "finished_at"))
    (only,) = shown["attempts"]
    fields = (
        "attempt outcome supervisor host pid started_at finished_at exit_status signal error_type error_message"
        " traceback stacks output_tail cpu_user_seconds cpu_system_seconds peak_memory_bytes"
        " task waited_seconds run_seconds minor_faults major_faults voluntary_switches involuntary_switches"
        " leftover_processes output_bytes steps"
    )
    assert set(fields.split()) == set(only)
    assert (only["attempt"], only["outcome"], only["output_tail"]) == (1, "done", "converting shot.txt\n")
    assert only["peak_memory_bytes"] > 0

    page = cli.run("show", job_id).stdout
    for words in (job_id, "done", "convert", '"shot.txt"', "Attempt 1", "CPU ", "peak memory ", " ago)"):
        assert words in page
    assert cli.run("log", job_id).stdout == "converting shot.txt\n"


def test_a_call_may_have_options_of_its_own(ask: Ask, app: str) -> None:
    assert OVERRIDES.keys() == OF_CALLS
    words = "--timeout none --grace 0 --memory 2GB --cpu-seconds 1.5 --open-files 4 --file-size 1kB --nice -5"
    words += " --temporary-folder --max-attempts 3 --max-crashes 2 --backoff 1,5s,10"
    job_id = ask("enqueue", "convert", '{"source": "a"}', *words.split()).stdout.strip()
    kept = {
        "timeout": None, "grace": 0.0, "memory": 2 * 10**9, "cpu_seconds": 1.5, "open_files": 4, "file_size": 1000, "nice": -5,
        "temporary_folder": True, "max_attempts": 3, "max_crashes": 2, "backoff": [1.0, 5.0, 10.0],
    }  # fmt: skip
    assert ask("show", job_id, "--json").json["options"] == kept
    # without the application too
    unknown = ask("enqueue", "--database", app, "any", "--backoff", "2m", env={"FORKRUNNER_APP": ""}).stdout
    assert ask("show", unknown.strip(), "--json").json["options"] == {"backoff": 120.0}


def test_waiting_ends_with_the_outcome(cli: Cli, ask: Ask, supervisor: Process) -> None:
    found = ask("enqueue", "boom", '{"text": "no such file"}', "--wait", status=1)
    assert found.stderr.startswith("failed: ValueError: no such file")
    shown = ask("enqueue", "crash", "--wait", "--json", status=1).json
    assert shown["state"] == "failed"
    assert (shown["attempts"][0]["outcome"], shown["attempts"][0]["signal"]) == ("crashed", "SIGABRT")


def test_a_running_job_shows_its_progress_and_is_cancelled(cli: Cli, ask: Ask, supervisor: Process) -> None:
    fifo = cli.folder / "fifo"
    os.mkfifo(fifo)
    job_id = ask("enqueue", "hold", json.dumps({"path": str(fifo)})).stdout.strip()
    wait_until(lambda: ask("show", job_id, "--json").json["progress"], message="progress")
    progress = ask("show", job_id, "--json").json["progress"]
    assert (progress["fraction"], progress["message"]) == (0.42, "waiting")
    (listed,) = ask("list", "--json").json
    for times in (progress, listed["progress"]):
        for name in ("started_at", "updated_at"):
            assert times[name].endswith("Z")
            assert abs((datetime.fromisoformat(times[name]) - datetime.now(UTC)).total_seconds()) < 60
    assert "42 % waiting" in ask("list").stdout
    assert "42 % waiting" in ask("show", job_id).stdout
    assert "has written nothing so far" in ask("log", job_id).stderr
    (row,) = ask("status", "--json").json["supervisors"]
    assert (row["target"], row["slots"], row["pid"]) == ("jobs:runner", 2, supervisor.pid)
    assert "asked to end it" in ask("cancel", job_id, "--reason", "wrong file").stdout
    wait_until(lambda: ask("show", job_id, "--json").json["state"] == "cancelled", message="cancelled")
    assert "wrong file" in ask("show", job_id).stdout


def test_the_jobs_of_a_run_use_the_database_of_its_flags(cli: Cli, sqlite_app: str, tmp_path: Path) -> None:
    app = (cli.folder / "jobs.py").read_text()
    cli.write(app + "\n@runner.task\ndef again() -> None:\n    convert.enqueue('by a job')\n")
    other = f"sqlite:///{tmp_path}/other.db"
    cli.start("run", "--database", other).wait_log("runs jobs:runner")
    cli.run("enqueue", "again", "--wait", "--database", other)
    tasks = [row["task"] for row in cli.run("--database", other, "list", "--json").json]
    assert sorted(tasks) == ["again", "convert"]


# --------------------------------------------------------------------------- asking


def test_enqueue_takes_options_and_standard_input(
    ask: Ask, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime.now(UTC) + timedelta(hours=2)
    job_id = ask(
        "enqueue", "convert", '{"source": "a"}', "--queue", "q2", "--priority", "-3", "--run-at", at
    ).stdout
    shown = ask("show", job_id.strip(), "--json").json
    assert (shown["queue"], shown["priority"], shown["state"]) == ("q2", -3, "pending")
    assert datetime.fromisoformat(shown["run_at"]) == at
    found = ask("enqueue", "convert", '{"source": "a"}', "--delay", "10m", "--json").json
    shown = ask("show", found["id"], "--json").json
    delay = datetime.fromisoformat(shown["run_at"]) - datetime.fromisoformat(shown["created_at"])
    assert delay == timedelta(minutes=10)
    assert re.search("in (9 m 5|10 m 0)", ask("list").stdout)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('{"source": "ä"}'.encode())))
        job_id = ask("enqueue", "convert", "-").stdout.strip()
    assert ask("show", job_id, "--json").json["arguments"] == {"source": "ä"}


def test_the_target_comes_first_or_from_elsewhere(cli: Cli, ask: Ask, sqlite_app: str) -> None:
    del cli.env["FORKRUNNER_APP"]
    call = ("convert", '{"source": "a"}')
    for full in (("jobs:runner", *call), ("jobs", *call), ("jobs:runner", "crash"), ("jobs", "crash")):
        ask("enqueue", *full)
    (cli.folder / "forkrunner.toml").write_text('app = "jobs:runner"\n')
    job_id = ask("enqueue", *call).stdout.strip()
    targets: list[tuple[str, ...]] = [(), ("jobs",), ("jobs:runner",)]
    for words in targets:
        assert len(ask("list", *words, "--json").json) == 5
        assert ask("show", *words, job_id, "--json").json["id"] == job_id
    assert ask("cancel", "jobs:runner", job_id).stdout == f"{job_id} is cancelled\n"
    assert ask("retry", "jobs", job_id).stdout == f"{job_id} is pending again\n"


def test_with_a_database_named_the_application_is_not_imported(cli: Cli, ask: Ask, app: str) -> None:
    job_id = plant(app, attempt(output_tail="hello\n"))
    cli.write("raise RuntimeError('imported')")
    for env, flags in (({"FORKRUNNER_DATABASE": app}, ()), ({}, ("--database", app))):
        assert job_id in ask(*flags, "list", env=env).stdout
        for words in (
            ("status",),
            ("show", job_id),
            ("migrate",),
            ("log", job_id),
            ("retry", job_id),
            ("cancel", job_id),
        ):
            ask(*words, *flags, env=env)
    del cli.env["FORKRUNNER_APP"]
    found = ask("--database", app, "enqueue", "elsewhere", '{"any": [1]}').stdout.strip()
    assert ask("--database", app, "show", found, "--json").json["task"] == "elsewhere"


def test_list_filters_and_says_when_there_is_nothing(ask: Ask, app: str) -> None:
    assert ask("list").stdout.startswith("No jobs in ")
    assert ask("list", "--json").json == []
    assert "No jobs." in ask("status").stdout
    assert "No supervisor runs" in ask("status").stdout
    done = plant(app, attempt())
    failed = plant(
        app, attempt(Outcome.RAISED, error_message="it broke"), state=State.FAILED, task="boom", queue="q2"
    )
    waiting = plant(app, priority=4)
    rows = ask("list", "--json").json
    assert [row["id"] for row in rows] == [waiting, failed, done]
    for flags, expected in (
        (("--state", "failed"), [failed]),
        (("--queue", "q2"), [failed]),
        (("--task", "convert"), [waiting, done]),
        (("--limit", "1"), [waiting]),
        (("--task", "convert", "--state", "busy"), []),
    ):
        assert [row["id"] for row in ask("list", "--json", *flags).json] == expected
    assert ask("list", "--task", "x", "--state", "busy").stdout.startswith("No jobs (busy of task x) in ")
    text = ask("list").stdout
    assert re.search(rf"{failed} +boom +q2 +failed +1 +.* ago +it broke", text)
    status = ask("status", "--json").json
    counts = {"pending": 1, "busy": 0, "done": 1, "failed": 0, "cancelled": 0}
    assert status["queues"]["default"] == counts
    assert status["queues"]["q2"]["failed"] == 1
    assert re.search(r"default +1 +0 +1 +0 +0\n", ask("status").stdout)


@pytest.mark.parametrize(
    "molds", [None, '[{"generation": 3, "target": "jobs:runner", "pid": 9, "stage": "serving"}]']
)
def test_status_shows_a_supervisor_of_an_older_release(ask: Ask, sqlite_app: str, molds: str | None) -> None:
    store = Store(sqlite_app)
    store.register(SupervisorRow("s1", "h", "boot", "ns", 77, 1, "jobs:runner", 2, "0.0.9", molds), 60)
    store.close()
    (row,) = ask("status", "--json").json["supervisors"]
    assert (row["stage"], [mold["pid"] for mold in row["molds"]]) == ("serving", [9] if molds else [])
    assert re.search(r"h +77 +jobs:runner +serving +2 +(gen 3)? ", ask("status").stdout)


def test_ids_may_be_cut_at_either_end(ask: Ask, sqlite_app: str) -> None:
    job_id = plant(sqlite_app, attempt())
    plant(sqlite_app, attempt())
    for part in (job_id.upper(), job_id[-12:], f"…{job_id[-12:]}", job_id[:30]):
        assert ask("show", part, "--json").json["id"] == job_id
    assert "2 of the last 200 jobs begin or end with" in line_of(ask("show", job_id[:8], status=1))


def test_show_tells_how_each_attempt_ended(ask: Ask, app: str) -> None:
    end = datetime.now(UTC)
    raised = attempt(
        Outcome.RAISED, error_type="ValueError", error_message="bad\nworse", traceback="Traceback …\n  line\nValueError: bad",
        host="h1", pid=77, started_at=end - timedelta(seconds=83), finished_at=end,
        cpu_user_seconds=61.5, cpu_system_seconds=0.25, peak_memory_bytes=12_345_678,
    )  # fmt: skip
    crashed = attempt(
        Outcome.CRASHED, signal="SIGSEGV", error_message="ended by SIGSEGV", stacks="Thread 1:\n  f"
    )
    steps = [
        {"step": "timed_out", "after": 60.0, "detail": "more than 60 s"},
        {"step": "no stacks", "after": 60.2, "State": "S (sleeping)", "wchan": "hrtimer_nanosleep"},
        {"step": "KILL", "after": 65.2, "processes": 3},
    ]
    late = attempt(
        Outcome.TIMED_OUT, error_message="more than 60 s", output_tail="half a line", steps=json.dumps(steps),
        waited_seconds=1.5, minor_faults=12_345, major_faults=6, voluntary_switches=7, involuntary_switches=8_000,
        leftover_processes=2, output_bytes=11,
    )  # fmt: skip
    job_id = plant(app, raised, crashed, late, state=State.FAILED, arguments='{"path": "/x"}')
    page = ask("show", job_id).stdout
    for words in (
        "raised ValueError: bad", "took     1 m 23 s", "CPU 1 m 02 s user, 250 ms system; peak memory 12.3 MB of its own",
        "host h1, pid 77", "    Traceback …\n      line\n    ValueError: bad\n", "crashed: ended by SIGSEGV",
        "    Thread 1:\n      f\n", "timed out: more than 60 s", "    half a line", 'path  "/x"', "more than 60 s",
        "waited  1.5 s", "page faults 12,345 minor, 6 major; context switches 7 voluntary, 8,000 involuntary; output 11 B;"
        " left 2 processes behind",
        "    60.0 s  timed out: more than 60 s\n",
        "    60.2 s  got none within 200 ms: State S (sleeping), wchan hrtimer_nanosleep\n",
        "    65.2 s  KILL to it and to all that it started: processes 3\n",
    ):  # fmt: skip
        assert words in page, words
    assert ask("show", job_id, "--json").json["attempts"][2]["steps"] == steps
    assert ask("log", job_id).stdout == "half a line\n"
    assert ask("log", job_id, "--json").json == {"id": job_id, "attempt": 3, "output": "half a line"}
    assert ask("log", job_id, "--attempt", "1").stderr == "Attempt 1 wrote nothing.\n"
    assert "no such attempt (ended: 1, 2, 3;" in line_of(ask("log", job_id, "--attempt", "9", status=1))


def test_retry_and_cancel_do_what_they_can_and_say_what_they_cannot(ask: Ask, app: str) -> None:
    done, waiting = plant(app, attempt()), plant(app)
    unknown = new_id()
    found = ask("cancel", done, waiting, unknown, status=1)
    assert found.stdout == f"{waiting} is cancelled\n"
    assert len(found.stderr.splitlines()) == 2
    results = ask("retry", done, waiting, unknown, "--json", status=1).json
    assert [row.get("state") for row in results] == ["pending", "pending", None]
    assert unknown in results[2]["error"]


def test_secrets_are_hidden_unless_asked_for(ask: Ask, sqlite_app: str) -> None:
    arguments = '{"source": "a", "login": {"password": "hunter2"}, "dsn": "x://u:hunter2@h"}'
    job_id = plant(sqlite_app, attempt(), arguments=arguments)
    for words in (("show", job_id), ("show", job_id, "--json"), ("list", "--json"), ("list",)):
        assert "hunter2" not in ask(*words).stdout
    assert ask("show", job_id, "--json", "--secrets").json["arguments"] == json.loads(arguments)
    assert "hunter2" in ask("show", job_id, "--secrets").stdout


@pytest.mark.parametrize("url", ["me:hunter2@127.0.0.1:1/none", "me@127.0.0.1:1/none?password=hunter2"])
def test_a_database_is_shown_without_its_password(ask: Ask, url: str) -> None:
    for words in (("list",), ("status",), ("config",), ("config", "--json"), ("run", "jobs:runner")):
        found = ask("--database", f"postgresql://{url}", *words, status=None)
        assert "hunter2" not in found.stdout + found.stderr


def test_what_a_job_says_cannot_drive_the_terminal(cli: Cli, sqlite_app: str) -> None:
    hostile = attempt(
        Outcome.RAISED, error_type=HOSTILE, error_message=HOSTILE, traceback=HOSTILE, stacks=HOSTILE, output_tail=HOSTILE
    )  # fmt: skip
    arguments = json.dumps({HOSTILE: HOSTILE})
    job_id = plant(sqlite_app, hostile, state=State.FAILED, task=HOSTILE, queue=HOSTILE, arguments=arguments)
    commands = (
        ("list",),
        ("list", "--json"),
        ("show", job_id),
        ("show", job_id, "--json"),
        ("log", job_id),
        ("status",),
    )
    for words in commands:
        text = on_a_terminal(cli, *words, columns=500)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", text)
        if words[0] != "log" and "--json" not in words:
            assert r"\x1b[31m" in text
        if words == ("list",):
            assert "[bold]markup[/bold]" in text
    assert cli.run("log", job_id, "--raw").stdout.rstrip("\n") == HOSTILE.replace("\r", "\n")
    assert HOSTILE.split("\r")[0] in cli.processes[-1].out_path.read_bytes().decode()


# --------------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("columns", [30, 50, 80, 100, 200])
def test_tables_fit_the_terminal(cli: Cli, sqlite_app: str, columns: int) -> None:
    long = "a task with a very long name " * 4
    job_id = plant(
        sqlite_app,
        attempt(Outcome.RAISED, error_message="an error that goes on " * 9),
        state=State.FAILED,
        task=long,
    )
    text = on_a_terminal(cli, "list", columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    assert (job_id if columns >= 100 else f"…{job_id[-12:]}") in text
    assert "failed" in text
    for words in (("status",), ("config",), ("check",)):
        text = on_a_terminal(cli, *words, columns=columns)
        lines = text.splitlines()
        if columns >= 80:
            assert max(len(line) for line in lines if not line.startswith("Database")) <= columns


def test_colours_are_for_people_who_want_them(cli: Cli, sqlite_app: str) -> None:
    job_id = plant(sqlite_app, attempt())
    del cli.env["NO_COLOR"]
    for words in (("list",), ("show", job_id)):
        assert "\x1b[32m" in on_a_terminal(cli, *words) or "\x1b[1;32m" in on_a_terminal(cli, *words)
        assert "\x1b[32m" not in on_a_terminal(cli, *words, NO_COLOR="1")
        assert "\x1b" not in on_a_terminal(cli, *words, TERM="dumb")
        assert "\x1b" not in cli.run(*words).stdout


def test_a_reader_that_leaves_early_is_no_error(cli: Cli, sqlite_app: str) -> None:
    job_id = plant(sqlite_app, attempt(output_tail="line\n" * 3000))
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'forkrunner', *sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close(); print(p.stderr.read().decode()); p.wait(); p.stderr.close()"
    )
    for words in (("log", job_id), ("list",), ("show", job_id, "--json"), ("--help",)):
        assert cli.run(python=["-c", code, *words]).stdout.strip() == ""


def test_an_ascii_terminal_and_a_full_disk(cli: Cli, sqlite_app: str) -> None:
    plant(sqlite_app, attempt(), arguments='{"source": "ä"}')
    assert cli.run("list", env={"PYTHONIOENCODING": "ascii"}).stdout
    code = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); os.execv(sys.executable, [sys.executable, '-m', 'forkrunner', 'list'])"
    found = cli.run(python=["-c", code], status=2)
    assert found.stderr == "forkrunner: No space left on device\n"


# --------------------------------------------------------------------------- typed wrong


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lst"], r"lst.*list"),
        (["run"], r"which application\? .*FORKRUNNER_APP"),
        (["list"], r"which application\? .*--database"),
        (["run", "--slot", "4", "jobs:runner"], r"--slot.*--slots"),
        (["run", "jobs.py"], r"expected MODULE:RUNNER, got 'jobs\.py'; did you mean jobs:runner\?"),
        (["run", "./jobs.py:runner"], r"got '\./jobs\.py:runner'; did you mean jobs:runner\?"),
        (["run", "shop/jobs.py:queue"], r"did you mean shop\.jobs:queue\?"),
        (["list", "sqlite:///jobs.db"], r"got the URL sqlite:///jobs\.db; --database"),
        (["run", "jobs:runner", "--slots", "many"], r"slots: expected a whole number from 1 to 1000, got 'many' \(from --slots\)"),
        (["run", "jobs:"], r"app: expected MODULE:RUNNER, got 'jobs:'"),
        (["run", "job:runner"], r"No module named 'job'.*did you mean jobs\?"),
        (["check", "jobs:runer"], r"expected a forkrunner\.Runner called 'runer' in jobs, got nothing of that name; it has jobs:runner"),
        (["enqueue", "jobs:runner"], r"expected the name of a task"),
        (["enqueue", "jobs:runner", "convrt", "{}"], r"there is no task 'convrt', did you mean 'convert'\?"),
        (["enqueue", "jobs:runner", "convert", "{scale: 2}"], r"arguments: expected a JSON object.*quote it as in"),
        (["enqueue", "jobs:runner", "convert", "[1]"], r"arguments: expected a JSON object"),
        (["enqueue", "jobs:runner", "convert", '{"source": 5}'], r"convert\(\): argument 'source': expected str"),
        (["enqueue", "jobs:runner", "convert", '{"scale": 5}'], r"convert\(\): .*source"),
        (["enqueue", "jobs:runner", "convert", '{"source":', '"a"}'], r"one JSON object, quoted"),
        (["enqueue", "jobs:runner", "crash", "--delay", "soon"], r"delay: expected seconds"),
        (["enqueue", "jobs:runner", "crash", "--run-at", "tomorrow"], r"--run-at: expected a time as"),
        (["enqueue", "jobs:runner", "crash", "--priority", "high"], r"priority"),
        (["enqueue", "jobs:runner", "crash", "--timeout", "soon"], r"task crash: timeout: expected seconds .*, got 'soon'"),
        (["enqueue", "jobs:runner", "crash", "--max-attempts", "many"], r"max_attempts: expected a whole number"),
        (["enqueue", "jobs:runner", "crash", "--backoff", "1,"], r"backoff: expected seconds"),
        (["show", "jobs:runner"], r"expected the id of a job"),
        (["list", "jobs:runner", "--state", "running"], r"running"),
        (["list", "jobs:runner", "extra"], r"got 'extra' too"),
        (["--database", "mysql://h/d", "list"], r"database: expected .*postgresql.*got 'mysql://h/d' \(from --database\)"),
        (["--database", "postgresql://127.0.0.1:1/none", "list"], r"127\.0\.0\.1"),
        (["--database", "sqlite:////no/such/folder/jobs.db", "list"], r"/no/such/folder/jobs\.db: there is no folder /no/such/folder"),
    ],
)  # fmt: skip
def test_a_slip_is_answered_by_one_line_that_helps(
    cli: Cli, ask: Ask, sqlite_app: str, words: list[str], expected: str
) -> None:
    del cli.env["FORKRUNNER_APP"]
    # a supervisor installs handlers and becomes a subreaper: not in this process
    answer = cli.run if words[0] == "run" else ask
    assert re.search(expected, line_of(answer(*words, status=2)))


def test_without_a_word_it_prints_its_help_as_a_page(ask: Ask) -> None:
    found = ask(status=2)
    assert found.stdout == ""
    assert found.stderr == ask("--help").stdout


@pytest.mark.parametrize(
    "given", ["", "x", "not-an-id", "00000000-0000-7000-8000-000000000000", "abcdef12", "'; --"]
)
def test_an_id_of_no_job_is_status_1(ask: Ask, app: str, given: str) -> None:
    assert "no job" in line_of(ask("show", given, status=1))


@pytest.mark.parametrize("command", ["run", "check", "list", "enqueue"])
def test_an_application_that_does_not_import_is_one_line_with_its_place(cli: Cli, command: str) -> None:
    cli.write("import os\n\ndef f():\n    raise ValueError('one\\ntwo')\n\nf()\n")
    words = [command, "jobs:runner", *(["convert"] if command == "enqueue" else [])]
    assert re.search(
        r"jobs:runner: importing it raised ValueError: one two .*jobs\.py:4",
        line_of(cli.run(*words, status=2)),
    )
    found = cli.run(*words, "--traceback", status=2)
    assert "in f\n" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("forkrunner: ")


def test_an_application_may_end_or_print_while_it_is_imported(cli: Cli, sqlite_app: str) -> None:
    app = (cli.folder / "jobs.py").read_text()
    cli.write("import sys; sys.exit(7)")
    assert "SystemExit: 7" in line_of(cli.run("list", status=2))
    cli.write("import os\nprint('hello')\nos.system('echo hello')\n" + app)
    found = cli.run("list", "--json")
    assert found.json == []
    assert found.stderr == "hello\nhello\n"


def test_run_refuses_at_once_what_it_cannot_run(cli: Cli, sqlite_app: str) -> None:
    for words in (("--database", "postgresql://127.0.0.1:1/none"), ("--lease", "4s"), ("nothere",)):
        line_of(cli.run("run", *words, status=2))
    assert "FORKRUNNER_SLOTS" in line_of(cli.run("run", env={"FORKRUNNER_SLOTS": "0"}, status=2))
    (cli.folder / "forkrunner.toml").write_text("slots = \n")
    assert "forkrunner.toml" in line_of(cli.run("run", status=2))


@pytest.mark.postgresql
@pytest.mark.parametrize("command", ["run", "list", "status", "enqueue"])
def test_postgresql_without_tables_says_what_to_run(
    cli: Cli, ask: Ask, postgresql_database: str, command: str
) -> None:
    _write_app(cli, postgresql_database)
    words = [command, *(["crash"] if command == "enqueue" else [])]
    answer = cli.run if command == "run" else ask
    assert "forkrunner migrate" in line_of(answer(*words, status=2))


@pytest.mark.postgresql
def test_postgresql_is_migrated_by_a_command(cli: Cli, ask: Ask, postgresql_database: str) -> None:
    _write_app(cli, postgresql_database)
    found = ask("check", status=1)
    assert "forkrunner migrate" in found.stdout
    assert ask("migrate", "--json").json["from"] is None
    assert "of this release already" in ask("migrate").stdout
    assert "No problems." in ask("check").stdout


def test_check_shows_the_tasks_and_what_is_wrong(cli: Cli, ask: Ask, sqlite_app: str) -> None:
    text = ask("check").stdout
    assert "convert(source: str, scale: float = 1.0) -> dict[str, float]" in text
    assert "max_attempts 2, backoff 0.05, timeout 1m" in text
    found = ask("check", "--json").json
    assert [task["name"] for task in found["tasks"]] == ["convert", "boom", "crash", "hold"]
    assert found["problems"] == []
    threads = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    cli.write(threads + (cli.folder / "jobs.py").read_text())
    assert "has started 1 thread(s)" in ask("check", status=1).stdout
    assert "jobs do not have it" in ask("check", "--allow-threads").stdout
    cli.write("from forkrunner import Runner\nrunner = Runner('sqlite:///jobs.db')")
    assert "has no tasks" in ask("check").stdout
    assert "FORKRUNNER_SLOT is ignored" in ask("check", env={"FORKRUNNER_SLOT": "1"}).stdout


@pytest.mark.memcached
def test_check_tries_the_servers_of_progress(ask: Ask, sqlite_app: str, memcached: Memcached) -> None:
    assert "No problems." in ask("check", "--progress-url", memcached.url).stdout
    nobody = f"127.0.0.1:{free_port()}"
    found = ask("check", "--progress-url", f"{memcached.url},{nobody}").stdout
    assert "No problems." not in found
    assert f"warning: progress_url: {nobody} does not answer: [Errno 111] Connection refused" in found
    found = ask("check", "--json", "--progress-url", "memcached://no-such-host.invalid:1").json
    assert found["problems"] == []
    (warning,) = found["warnings"]
    assert warning.startswith("progress_url: no-such-host.invalid:1 does not answer: ")


def test_check_tries_the_storage_and_the_templates(cli: Cli, ask: Ask, sqlite_app: str) -> None:
    (cli.folder / "file").touch()
    for storage, words in {
        "/nope/deep": "cannot store a file in /nope: No such file or directory (setting `storage`)",
        f"{cli.folder}/file": "Not a directory",
        "nonsense://x": "Protocol not known: nonsense",
        "s3://bucket/x": "Install s3fs",
        "ftp://127.0.0.1:1/x": "Connection refused",
    }.items():
        found = ask("check", "--storage", storage, status=1).stdout
        assert words in found, storage
        assert "No problems." not in found
    assert "No problems." in ask("check", "--storage", "new").stdout
    assert not (cli.folder / "new").exists()
    # of another database
    (cli.folder / "other").mkdir()
    (cli.folder / "other/database").write_text("0" * 32)
    assert "has the files of another database" in ask("check", "--storage", "other", status=1).stdout

    folder = cli.folder / "templates"
    found = ask("check", "--mail-templates", str(folder)).stdout
    assert f"warning: mail_templates: {folder}: No such file or directory" in found
    folder.mkdir()
    (folder / "subject.txt").write_text("{{ title }}")
    assert "No problems." in ask("check", "--mail-templates", str(folder)).stdout
    (folder / "mail.txt").write_text("\n{% if %}")
    (folder / "mail.html").write_text("{{ titel }}")
    found = ask("check", "--mail-templates", str(folder)).stdout
    assert "The template mail.txt in" in found
    assert ", line 2; forkrunner's own takes its place" in found
    assert "'titel' is undefined" in found


def test_config_tells_where_each_value_comes_from(cli: Cli, ask: Ask, sqlite_app: str) -> None:
    (cli.folder / "forkrunner.toml").write_text('lease = "1m"\n')
    found = ask("config", "--slots", "3", "--json", env={"FORKRUNNER_SPARES": "1"}).json
    assert found["slots"] == {"value": "3", "from": "--slots"}
    assert found["spares"] == {"value": "1", "from": "FORKRUNNER_SPARES"}
    assert found["database"] == {"value": sqlite_app, "from": "Runner(...) in the code"}
    assert found["lease"]["from"].endswith("forkrunner.toml")
    assert found["grace"]["from"] == "default"
    assert set(found) == set(SETTINGS)
    assert re.search(r"slots +3 +--slots\n", ask("config", "--slots", "3").stdout)


def test_a_bug_of_ours_is_one_line_that_says_so(cli: Cli, sqlite_app: str) -> None:
    code = (
        "from forkrunner import cli\nfrom forkrunner.commands import look\n"
        "look.find_settings = lambda target: 1 / 0\ncli.main(['list'])"
    )
    found = cli.run(python=["-c", code], status=2)
    assert re.fullmatch(
        r"forkrunner: ZeroDivisionError: .*This is a bug in forkrunner; FORKRUNNER_TRACEBACK=1 .*\n",
        found.stderr,
    )
    found = cli.run(python=["-c", code], status=2, env={"FORKRUNNER_TRACEBACK": "1"})
    assert "Traceback (most recent call last)" in found.stderr
    assert "is ignored" not in cli.run("config", env={"FORKRUNNER_TRACEBACK": "1"}).stderr


def test_ctrl_c_while_waiting_leaves_the_job(cli: Cli, sqlite_app: str) -> None:
    process = cli.start("enqueue", "crash", "--wait")
    job_id = process.wait_log(r"^[0-9a-f-]{36}$")[0]
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.strip() == f"forkrunner: the job goes on; `forkrunner cancel {job_id}` ends it"
    assert cli.run("show", job_id, "--json").json["state"] == "pending"
