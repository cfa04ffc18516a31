"""Every way in which an attempt can end: each costs that attempt only, and its outcome says what happened.

All cases run in one supervisor for each database, several at a time, so that every one of them shows that it
does nothing to its neighbours. The tests then ask what was recorded.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forkrunner.job import Outcome, State
from forkrunner.records import Attempt, Row
from tests.running import LONG, Bed, check_gone, line_of, memory_cgroup
from tests.support import Cli, need

MB = 1_000_000


@dataclass(frozen=True)
class Case:
    task: str
    arguments: Any = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


#: For what must be ended by force.
SHORT = {"timeout": 0.5, "grace": 0.3}
#: For what crashes: once is enough.
CRASH = {"max_crashes": 1}

CASES = {
    "done": Case("add", {"a": 1}),
    "nothing": Case("noop"),
    "allocate 100 MB": Case("allocate", {"megabytes": 100}),
    "burn": Case("burn", {"seconds": 0.4}),
    "print 50 MB": Case("print_much", {"megabytes": 50}),
    "output, then a crash": Case("print_and_die", {}, CRASH),
    "close 1 and 2": Case("close_output"),
    "close everything": Case("close_everything"),
    "not JSON": Case("not_json"),
    "too large": Case("large", {"size": 2 << 20}),
    "raises": Case("boom"),
    "broken": Case("boom_broken"),
    "poison": Case("boom_poison"),
    "5 MB": Case("boom_long", {"megabytes": 5, "letter": "x"}),
    "20 MB": Case("boom_long", {"megabytes": 20, "letter": "é"}),
    "chained": Case("boom_chained"),
    "recursion": Case("recurse"),
    "interrupt": Case("interrupt"),
    "sys.exit(3)": Case("leave", {"status": 3}),
    "sys.exit(0)": Case("leave", {"status": 0}),
    "os._exit(0)": Case("leave_at_once", {"status": 0}),
    "os._exit(9)": Case("leave_at_once", {"status": 9}),
    "segfault": Case("segfault", {}, CRASH),
    "abort": Case("abort", {}, CRASH),
    **{name: Case("kill_itself", {"number": getattr(signal, name)}, CRASH) for name in ("SIGFPE", "SIGBUS", "SIGILL")},
    "SIGKILL": Case("kill_itself", {"number": signal.SIGKILL}, CRASH),
    "SIGTERM": Case("kill_itself", {"number": signal.SIGTERM}, CRASH),
    "real-time signal": Case("kill_itself", {"number": signal.SIGRTMIN + 3}, CRASH),
    "sleep": Case("loop_in_sleep", {}, SHORT),
    "regex": Case("loop_in_regex", {}, SHORT),
    "busy loop": Case("loop_in_python", {}, SHORT),
    "signals blocked": Case("loop_over_signals", {}, SHORT),
    "signals refused": Case("loop_over_exceptions", {}, SHORT),
    "returns at TERM": Case("return_at_term", {}, SHORT),
    "stopped": Case("loop_stopped", {}, SHORT),
    "program": Case("loop_with_program", {}, SHORT),
    "fills memory": Case("fill", {}, {"memory": 100 * MB}),
    "fits into memory": Case("allocate", {"megabytes": 80}, {"memory": 100 * MB}),
    "fills shared memory": Case("fill_shared", {"megabytes": 150}, {"memory": 100 * MB}),
    "fills memory in programs": Case("fill_in_programs", {"megabytes": 50, "count": 3}, {"memory": 100 * MB}),
    "swallows MemoryError": Case("swallow_memory_error", {}, {"memory": 100 * MB}),
    "stays full": Case("stay_full", {}, {"memory": 10 * MB}),
    "burns": Case("burn_for_ever", {"deaf": False}, {"cpu_seconds": 1}),
    "burns, deaf": Case("burn_for_ever", {"deaf": True}, {"cpu_seconds": 0.5, "grace": 0.3}),
    "burns and returns": Case("burn", {"seconds": 0.55}, {"cpu_seconds": 0.5, "grace": 0.3}),
    "burns less": Case("burn", {"seconds": 0.3}, {"cpu_seconds": 0.5}),
    **{f"burns, {how}": Case("burn_and_raise", {"seconds": 1.51, "how": how}, {"cpu_seconds": 1.5})
       for how in ("raise", "exit", "user")},
    "burns in a program": Case("burn_in_a_program", {}, {"cpu_seconds": 1, "grace": 0.3}),
    "burns in programs": Case("burn_in_programs", {}, {"cpu_seconds": 0.6, "grace": 0.3}),
    "opens 20 files": Case("open_many", {"count": 20}, {"open_files": 25}),
    "opens 30 files": Case("open_many", {"count": 30}, {"open_files": 25}),
    "writes 100 kB": Case("write_much", {"path": "written1", "kilobytes": 100}, {"file_size": 200_000}),
    "writes 300 kB": Case("write_much", {"path": "written2", "kilobytes": 300}, {"file_size": 200_000}),
    "writes and dies": Case("write_much", {"path": "written3", "kilobytes": 300, "ignore": False},
                            {"file_size": 200_000, "max_crashes": 1}),
    "prints more than a file may have": Case("print_much", {"megabytes": 1}, {"file_size": 500_000}),
    "large, under file_size": Case("large", {"size": 500_000}, {"file_size": 1000}),
    "nice": Case("niceness", {}, {"nice": 7}),
    "forks and returns": Case("fork_and_return"),
    "forks and raises": Case("fork_and_raise"),
    "forks and exits": Case("fork_and_exit"),
    "forks and outlives": Case("fork_and_outlive"),
    "leaves a program": Case("leave_behind", {"how": "program"}),
    "leaves a session": Case("leave_behind", {"how": "session"}),
    "leaves a daemon": Case("leave_behind", {"how": "daemon"}),
    "leaves many": Case("leave_many_behind", {"count": 5}),
    "unknown task": Case("nobody_knows_it", {}, {"max_attempts": 5}),
    "unknown argument": Case("strict", {"number": 1, "more": 2}),
    "missing argument": Case("strict"),
    "wrong type": Case("strict", {"number": "one"}),
    "not an object": Case("strict", "[1]"),
    "not JSON at all": Case("strict", "{"),
    "third time": Case("third_time"),
    "choosy OSError": Case("choosy", {"kind": "OSError"}),
    "choosy ValueError": Case("choosy", {"kind": "ValueError"}),
    "choosy FileNotFoundError": Case("choosy", {"kind": "FileNotFoundError"}),
    "crash cap": Case("segfault", {}, {"max_crashes": 3, "backoff": 0.05, "max_attempts": 1}),
    "crashes are no tries": Case("kill_itself", {"number": 9}, {"max_crashes": 2, "backoff": 0.05, "max_attempts": 9}),
    "once, raises": Case("once", {"how": "raise"}),
    "once, crashes": Case("once", {"how": "crash"}),
}  # fmt: skip


@dataclass
class Endings:
    """What became of all cases."""

    rows: dict[str, Row]
    log: str

    def __getitem__(self, name: str) -> Attempt:
        """Return the last attempt."""
        return self.rows[name].attempts[-1]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def endings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endings]:
    folder = tmp_path_factory.mktemp("endings")
    if request.param == "sqlite":
        yield _run_all(folder, f"sqlite:///{folder}/jobs.db")
        return
    postgres = request.getfixturevalue("postgres")
    database = postgres.create_database()
    try:
        yield _run_all(folder, database)
    finally:
        postgres.drop(database)


def _run_all(folder: Path, database: str) -> Endings:
    cli = Cli(folder)
    try:
        with Bed(cli, database) as bed:
            supervisor = bed.start(slots=6)
            ids = {
                name: bed.put(case.task, case.arguments, options=case.options) for name, case in CASES.items()
            }
            rows = {name: bed.ended(id) for name, id in ids.items()}
            # before the stop, which takes all with it
            for name in (name for name in CASES if name.startswith("leaves ")):
                left = json.loads(str(rows[name].result))
                check_gone([left] if isinstance(left, int) else left)
            assert supervisor.pids("forkrunner: mold jobs:runner gen 1$"), supervisor.describe()
            bed.stop(supervisor)
            return Endings(rows, supervisor.log)
    finally:
        cli.close()


# ---------------------------------------------------------------------------- it returns


def test_done(endings: Endings) -> None:
    row, attempt = endings.rows["done"], endings["done"]
    assert (row.state, row.attempt, row.tries, row.crashes) == (State.DONE, 1, 1, 0)
    assert row.result is not None
    assert json.loads(row.result) == 3
    assert row.error is None
    assert attempt.outcome == Outcome.DONE
    assert (attempt.exit_status, attempt.signal) == (0, None)
    assert attempt.error_type is attempt.error_message is attempt.traceback is attempt.stacks is None
    assert attempt.output_tail == "adding 1 and 2\n"
    assert attempt.started_at is not None
    assert attempt.finished_at is not None
    assert row.created_at <= attempt.started_at <= attempt.finished_at
    assert attempt.pid is not None


def test_the_bill(endings: Endings) -> None:
    peak = {name: endings[name].peak_memory_bytes or -1 for name in ("nothing", "allocate 100 MB")}
    assert 0 <= peak["nothing"] < 20 * MB
    assert 90 * MB < peak["allocate 100 MB"] < 130 * MB
    burnt, nothing = endings["burn"], endings["nothing"]
    assert burnt.cpu_user_seconds is not None
    assert burnt.cpu_system_seconds is not None
    assert 0.39 < burnt.cpu_user_seconds + burnt.cpu_system_seconds < 1
    assert nothing.cpu_user_seconds is not None
    assert nothing.cpu_user_seconds < 0.2


def test_prints_50_mb(endings: Endings) -> None:
    attempt = endings["print 50 MB"]
    assert attempt.outcome == Outcome.DONE
    assert attempt.output_tail is not None
    assert attempt.output_tail.endswith("x\nthe last line\n")
    assert len(attempt.output_tail) <= 64 << 10


def test_output_before_a_crash_is_kept(endings: Endings) -> None:
    attempt = endings["output, then a crash"]
    assert (attempt.outcome, attempt.signal) == (Outcome.CRASHED, "SIGSEGV")
    assert attempt.output_tail == "by print\nby printf\nby write\nby a program\n"


def test_closes_its_output(endings: Endings) -> None:
    assert endings.rows["close 1 and 2"].result == '"closed"'


def test_closes_everything(endings: Endings) -> None:
    """Its report too is lost then: that is said, and nothing is made up."""
    row, attempt = endings.rows["close everything"], endings["close everything"]
    assert (row.state, attempt.outcome) == (State.FAILED, Outcome.EXITED)
    assert "before the task returned" in str(attempt.error_message)


def test_a_result_that_is_no_json(endings: Endings) -> None:
    row, attempt = endings.rows["not JSON"], endings["not JSON"]
    assert (row.state, row.result, attempt.outcome) == (State.FAILED, None, Outcome.RAISED)
    assert "not_json() returned" in str(row.error)
    assert "cannot be stored as JSON" in str(row.error)


def test_a_result_that_is_too_large(endings: Endings) -> None:
    row = endings.rows["too large"]
    assert (row.state, row.result) == (State.FAILED, None)
    assert "2,097,154 bytes of JSON, more than the 1,048,576 of result_limit" in str(row.error)


# ----------------------------------------------------------------------------- it raises


def test_raises(endings: Endings) -> None:
    row, attempt = endings.rows["raises"], endings["raises"]
    assert (row.state, row.tries, row.crashes) == (State.FAILED, 1, 0)
    assert row.error == "ValueError: no good"
    assert (attempt.outcome, attempt.exit_status, attempt.signal) == (Outcome.RAISED, 0, None)
    assert (attempt.error_type, attempt.error_message) == ("ValueError", "no good")
    lines = str(attempt.traceback).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    # the first frame is the task's own, none is forkrunner's
    assert lines[1].endswith(f'jobs.py", line {line_of("boom")}, in boom')
    assert lines[-1] == "ValueError: no good"
    assert attempt.stacks is None


def test_raises_what_cannot_be_printed(endings: Endings) -> None:
    row, attempt = endings.rows["broken"], endings["broken"]
    assert (row.state, attempt.outcome, attempt.error_type) == (State.FAILED, Outcome.RAISED, "jobs.Broken")
    assert "Broken.__str__ raised RuntimeError" in str(row.error)
    assert "in boom_broken" in str(attempt.traceback)


def test_raises_poison(endings: Endings) -> None:
    """No database takes these characters; they are shown as what they are."""
    row, attempt = endings.rows["poison"], endings["poison"]
    assert (row.state, attempt.outcome) == (State.FAILED, Outcome.RAISED)
    text = "NUL \\u0000, surrogate \\ud800, end"
    assert (row.error, attempt.error_message) == (f"ValueError: {text}", text)
    assert text in str(attempt.traceback)


@pytest.mark.parametrize(("name", "letter"), [("5 MB", "x"), ("20 MB", "é")])
def test_raises_a_long_message(endings: Endings, name: str, letter: str) -> None:
    row, attempt = endings.rows[name], endings[name]
    assert (row.state, attempt.outcome, attempt.error_type) == (State.FAILED, Outcome.RAISED, "ValueError")
    for text, limit in (
        (row.error, 3 << 10),
        (attempt.error_message, 17 << 10),
        (attempt.traceback, 65 << 10),
    ):
        assert text
        assert letter * 500 in text
        assert len(text.encode()) < limit


def test_raises_from_another(endings: Endings) -> None:
    attempt = endings["chained"]
    assert (attempt.error_type, attempt.error_message) == ("KeyError", "'the effect'")
    assert "ValueError: the cause" in str(attempt.traceback)
    assert "direct cause" in str(attempt.traceback)
    assert "forkrunner" not in str(attempt.traceback).replace("forkrunner/tasks.py", "")


def test_raises_recursion_error(endings: Endings) -> None:
    row, attempt = endings.rows["recursion"], endings["recursion"]
    assert (row.state, attempt.outcome, attempt.error_type) == (
        State.FAILED,
        Outcome.RAISED,
        "RecursionError",
    )
    assert "in recurse" in str(attempt.traceback)


def test_raises_keyboard_interrupt(endings: Endings) -> None:
    row, attempt = endings.rows["interrupt"], endings["interrupt"]
    assert (row.state, attempt.outcome, attempt.error_type) == (
        State.FAILED,
        Outcome.RAISED,
        "KeyboardInterrupt",
    )


# ------------------------------------------------------------------------- it ends itself


@pytest.mark.parametrize("status", [3, 0])
def test_sys_exit(endings: Endings, status: int) -> None:
    row, attempt = endings.rows[f"sys.exit({status})"], endings[f"sys.exit({status})"]
    assert (row.state, row.tries, row.crashes) == (State.FAILED, 1, 0)
    assert (attempt.outcome, attempt.exit_status, attempt.signal) == (Outcome.EXITED, status, None)
    assert row.error == f"exited: the task called sys.exit({status})"
    assert "in leave" in str(attempt.traceback).splitlines()[1]


@pytest.mark.parametrize("status", [0, 9])
def test_os_exit(endings: Endings, status: int) -> None:
    row, attempt = endings.rows[f"os._exit({status})"], endings[f"os._exit({status})"]
    assert (row.state, row.tries, row.result) == (State.FAILED, 1, None)
    assert (attempt.outcome, attempt.exit_status, attempt.signal) == (Outcome.EXITED, status, None)
    assert f"exit status {status} before the task returned" in str(row.error)


@pytest.mark.parametrize(("name", "signum"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT")])
def test_crashes(endings: Endings, name: str, signum: str) -> None:
    row, attempt = endings.rows[name], endings[name]
    assert (row.state, row.tries, row.crashes) == (State.FAILED, 0, 1)
    assert (attempt.outcome, attempt.exit_status, attempt.signal) == (Outcome.CRASHED, None, signum)
    assert str(row.error).startswith(f"crashed: the process was ended by {signum}")
    assert f'jobs.py", line {line_of(name)} in {name}' in str(attempt.stacks)


@pytest.mark.parametrize(
    ("name", "signum"), [("SIGTERM", "SIGTERM"), ("real-time signal", f"signal {signal.SIGRTMIN + 3}")]
)
def test_is_ended_by_a_signal(endings: Endings, name: str, signum: str) -> None:
    attempt = endings[name]
    assert (attempt.outcome, attempt.signal) == (Outcome.CRASHED, signum)


@pytest.mark.parametrize("name", ["SIGFPE", "SIGBUS", "SIGILL"])
def test_crashes_by_the_rarer_signals(endings: Endings, name: str) -> None:
    attempt = endings[name]
    assert (attempt.outcome, attempt.signal) == (Outcome.CRASHED, name)
    assert "in kill_itself" in str(attempt.stacks)


def test_is_killed_from_outside(endings: Endings) -> None:
    """The kernel's out-of-memory killer does it in the same way: which of them it was is said."""
    row, attempt = endings.rows["SIGKILL"], endings["SIGKILL"]
    assert (attempt.outcome, attempt.signal, row.crashes) == (Outcome.CRASHED, "SIGKILL", 1)
    words = "killed by SIGKILL from outside forkrunner, not by the kernel's out-of-memory killer (so "
    assert words in str(row.error)


# ---------------------------------------------------------------------------- it does not


@pytest.mark.parametrize(
    ("name", "mark"),
    [("sleep", "loop_in_sleep"), ("regex", "loop_in_regex"), ("busy loop", "loop_in_python")],
)
def test_times_out(endings: Endings, name: str, mark: str) -> None:
    """The stacks name the line, also while C code holds the interpreter."""
    row, attempt = endings.rows[name], endings[name]
    assert (row.state, row.tries, row.crashes) == (State.FAILED, 1, 0)
    assert (attempt.outcome, attempt.signal) == (Outcome.TIMED_OUT, "SIGTERM")
    pattern = r"timed out: ran longer than its timeout of 0.5 s \(ended after (0\.[5-9]|\d\.)\d+ s\)"
    assert re.fullmatch(pattern, str(row.error)), row.error
    # of two lines of a loop either may run
    numbers = (line_of(mark), line_of(mark) - 1)
    assert any(f'jobs.py", line {number} in {mark}' in str(attempt.stacks) for number in numbers), (
        attempt.stacks
    )
    assert attempt.started_at is not None
    assert attempt.finished_at is not None
    assert (attempt.finished_at - attempt.started_at).total_seconds() >= 0.5


@pytest.mark.parametrize("name", ["signals blocked", "signals refused"])
def test_times_out_and_refuses_to_end(endings: Endings, name: str) -> None:
    attempt = endings[name]
    assert (attempt.outcome, attempt.signal) == (Outcome.TIMED_OUT, "SIGKILL")


def test_times_out_and_returns_then(endings: Endings) -> None:
    """What it says after the killing has begun changes nothing, though it ends in peace."""
    row, attempt = endings.rows["returns at TERM"], endings["returns at TERM"]
    assert (row.state, row.result, attempt.outcome) == (State.FAILED, None, Outcome.TIMED_OUT)
    assert (attempt.exit_status, attempt.signal) == (0, None)
    assert "in return_at_term" in str(attempt.stacks)
    assert steps(attempt)[-1]["detail"] == "exit status 0"


def test_times_out_while_it_is_stopped(endings: Endings) -> None:
    assert endings["stopped"].outcome == Outcome.TIMED_OUT


def test_times_out_and_its_program_goes_with_it(endings: Endings) -> None:
    attempt = endings["program"]
    assert attempt.outcome == Outcome.TIMED_OUT
    check_gone([int(str(attempt.output_tail))])


def test_fills_its_memory(endings: Endings) -> None:
    row, attempt = endings.rows["fills memory"], endings["fills memory"]
    assert (row.state, attempt.outcome) == (State.FAILED, Outcome.OVER_MEMORY)
    # The kernel refuses more, or the mold has looked just before that: whichever comes first.
    refused = r"its limit memory is 100.0 MB: it had ([\d.]+) MB of its own and was refused more"
    seen = r"more than its memory limit of 100.0 MB: ([\d.]+) MB of its own"
    had = re.fullmatch(f"over memory: (?:{refused}|{seen})", str(row.error))
    assert had, row.error
    # what the interpreter itself takes between two looks is in it
    assert 80 < float(had[1] or had[2]) < 105
    assert attempt.peak_memory_bytes is not None
    assert 80 * MB < attempt.peak_memory_bytes < 130 * MB
    told = attempt.traceback if had[1] else attempt.stacks
    assert f'jobs.py", line {line_of("fill")}' in str(told)


def test_fits_into_its_memory(endings: Endings) -> None:
    assert endings.rows["fits into memory"].state == State.DONE


@pytest.mark.parametrize(
    ("name", "count"), [("fills shared memory", ""), ("fills memory in programs", " by 4 processes")]
)
def test_fills_memory_that_no_limit_of_one_process_sees(endings: Endings, name: str, count: str) -> None:
    row, attempt = endings.rows[name], endings[name]
    assert (row.state, attempt.outcome) == (State.FAILED, Outcome.OVER_MEMORY)
    pattern = rf"over memory: more than its memory limit of 100.0 MB: (1\d\d\.\d) MB of its own{count}"
    assert re.fullmatch(pattern, str(row.error)), row.error
    assert attempt.peak_memory_bytes is not None
    assert 100 * MB < attempt.peak_memory_bytes < 250 * MB
    assert [step["step"] for step in steps(attempt)][:3] == ["over_memory", "stacks", "TERM"]


def test_hides_that_it_had_no_memory(endings: Endings) -> None:
    """What it raised is what counts; the limit is named all the same."""
    attempt = endings["swallows MemoryError"]
    assert (attempt.outcome, attempt.error_type) == (Outcome.RAISED, "ValueError")
    assert str(attempt.error_message).startswith("it did not fit (its limit memory is 100.0 MB: it had ")


def test_lives_on_with_all_that_it_may_have(endings: Endings) -> None:
    """What the kernel has not refused is not too much for the mold, which had pages that it did not use itself."""
    row, attempt = endings.rows["stays full"], endings["stays full"]
    assert (row.state, row.result, attempt.outcome) == (State.DONE, '"full"', Outcome.DONE), attempt


def test_uses_up_its_cpu_time(endings: Endings) -> None:
    row, attempt = endings.rows["burns"], endings["burns"]
    assert (row.state, attempt.outcome, attempt.signal) == (State.FAILED, Outcome.OVER_CPU, "SIGXCPU")
    pattern = r"over cpu: its limit cpu_seconds is 1 s: it used [01]\.\d\d s of CPU time \(SIGXCPU\)"
    assert re.fullmatch(pattern, str(row.error)), row.error
    numbers = (line_of("burn_for_ever"), line_of("burn_for_ever") - 1)
    assert any(f'jobs.py", line {number} in burn_for_ever' in str(attempt.stacks) for number in numbers)


@pytest.mark.parametrize(("name", "count"), [("burns, deaf", ""), ("burns in programs", " by 3 processes")])
def test_uses_up_cpu_time_that_no_limit_of_one_process_sees(endings: Endings, name: str, count: str) -> None:
    row, attempt = endings.rows[name], endings[name]
    assert (row.state, attempt.outcome) == (State.FAILED, Outcome.OVER_CPU)
    pattern = rf"over cpu: more than its limit of 0\.[56] s of CPU time \(cpu_seconds\): \d\.\d\d s{count}"
    assert re.fullmatch(pattern, str(row.error)), row.error


def test_uses_up_its_cpu_time_in_a_program(endings: Endings) -> None:
    """The program does not die of it alone, by a limit of the kernel's that it has inherited."""
    row, attempt = endings.rows["burns in a program"], endings["burns in a program"]
    assert (row.state, row.result, attempt.outcome) == (State.FAILED, None, Outcome.OVER_CPU)
    assert re.fullmatch(r"over cpu: more than its limit of 1 s .*: 1\.\d\d s by 2 processes", str(row.error))


def test_has_used_up_its_cpu_time_when_it_returns(endings: Endings) -> None:
    """Who is not seen above the limit by then is no better than who is."""
    row, attempt = endings.rows["burns and returns"], endings["burns and returns"]
    assert (row.state, row.result, attempt.outcome) == (State.FAILED, None, Outcome.OVER_CPU)
    assert re.fullmatch(
        r"over cpu: (its limit cpu_seconds is 0\.5 s: it used|more than its limit) .*", str(row.error)
    )
    if attempt.steps is None:
        assert re.search(r"0\.5\d s of CPU time, with the processes that it had started$", str(row.error))
    assert endings.rows["burns less"].state == State.DONE


def test_has_used_up_its_cpu_time_when_it_raises(endings: Endings) -> None:
    """What it raised counts, and the limit is named all the same, but not to users."""
    words = {"raise": "no good", "exit": "the task called sys.exit(3)", "user": "no good"}
    for how, text in words.items():
        attempt = endings[f"burns, {how}"]
        if attempt.outcome == Outcome.OVER_CPU:  # it was seen in the moment between
            continue
        assert attempt.outcome == (Outcome.EXITED if how == "exit" else Outcome.RAISED)
        message = str(attempt.error_message)
        assert message.startswith(text)
        named = re.search(r" \(its limit cpu_seconds is 1\.5 s: it used 1\.\d\d s of CPU time", message)
        assert bool(named) is (how != "user"), message


def test_opens_as_many_files_as_it_may(endings: Endings) -> None:
    assert endings.rows["opens 20 files"].result == "20"


def test_opens_too_many_files(endings: Endings) -> None:
    attempt = endings["opens 30 files"]
    assert (attempt.outcome, attempt.error_type) == (Outcome.RAISED, "OSError")
    assert "Too many open files" in str(attempt.error_message)
    assert str(attempt.error_message).endswith(" (its limit open_files is 25: as many were open)")
    # for which a file had to be opened
    assert "files = [open(os.devnull)" in str(attempt.traceback)


def test_writes_too_much_into_a_file(endings: Endings) -> None:
    assert endings.rows["writes 100 kB"].result == "102400"
    attempt = endings["writes 300 kB"]
    assert (attempt.outcome, attempt.error_type) == (Outcome.RAISED, "OSError")
    assert str(attempt.error_message).endswith(
        "File too large (its limit file_size is 200.0 kB: a file had grown to it)"
    )
    row, attempt = endings.rows["writes and dies"], endings["writes and dies"]
    assert (row.state, attempt.outcome, attempt.signal) == (State.FAILED, Outcome.CRASHED, "SIGXFSZ")
    assert row.error == "crashed: its limit file_size is 200.0 kB: a file was to grow beyond it (SIGXFSZ)"


def test_the_limit_of_its_files_is_none_of_its_report(endings: Endings) -> None:
    assert endings.rows["large, under file_size"].state == State.DONE
    attempt = endings["prints more than a file may have"]
    assert (attempt.outcome, attempt.error_type) == (Outcome.RAISED, "OSError")
    assert "its limit file_size is 500.0 kB" in str(attempt.error_message)


def test_is_nice(endings: Endings) -> None:
    assert endings.rows["nice"].result == "7"


# ----------------------------------------------------------------------- what is written down


def steps(attempt: Attempt) -> list[dict[str, Any]]:
    found = json.loads(attempt.steps or "[]")
    assert [step["after"] for step in found] == sorted(step["after"] for step in found)
    return list(found)


def test_each_step_of_an_ending_by_force_is_written_down(endings: Endings) -> None:
    assert [step["step"] for step in steps(endings["sleep"])] == ["timed_out", "stacks", "TERM", "ended"]
    first, asked, term, ended = steps(endings["sleep"])
    assert 0.5 <= first["after"] <= asked["after"] <= term["after"] - 0.199
    assert ended["detail"] == "SIGTERM"
    found = steps(endings["signals refused"])
    assert [step["step"] for step in found] == ["timed_out", "stacks", "TERM", "KILL", "ended"]
    assert found[3]["after"] >= found[2]["after"] + 0.299
    assert endings["done"].steps is None


def test_whoever_shows_no_stacks_is_looked_at_from_outside(endings: Endings) -> None:
    attempt = endings["signals blocked"]
    assert attempt.stacks is None
    found = {step["step"]: step for step in steps(attempt)}
    seen = found["no stacks"]
    assert seen["State"].startswith("S")
    assert "sleep" in seen["wchan"]
    assert int(seen["SigBlk"], 16) & 1 << signal.SIGTERM - 1
    assert {step["step"]: step for step in steps(endings["stopped"])}["no stacks"]["State"].startswith("T")


def test_the_whole_bill(endings: Endings) -> None:
    """Of every attempt, whatever its ending."""
    for name, row in endings.rows.items():
        for attempt in row.attempts:
            if attempt.pid is None:  # no task of that name: nothing ran
                continue
            assert attempt.task == row.task
            for column in ("waited_seconds", "run_seconds", "minor_faults", "major_faults", "voluntary_switches",
                          "involuntary_switches", "leftover_processes", "peak_memory_bytes"):  # fmt: skip
                value = getattr(attempt, column)
                assert value is not None, (name, column)
                assert 0 <= value < 1e9, (name, column)
            assert attempt.minor_faults, name
    allocated = endings["allocate 100 MB"]
    assert (allocated.minor_faults or 0) - (endings["nothing"].minor_faults or 0) > 20_000
    assert (endings["burn"].run_seconds or 0) >= 0.4
    assert (endings["sleep"].voluntary_switches or 0) > 0
    left = sum(attempt.leftover_processes or 0 for row in endings.rows.values() for attempt in row.attempts)
    # a daemon's first child may not be gone yet
    assert 18 <= left <= 60
    assert endings["forks and returns"].leftover_processes == 0
    assert endings["print 50 MB"].output_bytes == len("the first line\nthe last line\n") + (50 << 20)


# -------------------------------------------------------------------------- it multiplies


@pytest.mark.parametrize("name", ["forks and returns", "forks and raises", "forks and exits"])
def test_forks(endings: Endings, name: str) -> None:
    """Exactly one outcome, the one of the process that was the attempt."""
    row = endings.rows[name]
    assert (row.state, row.result, row.error) == (State.DONE, '"the parent"', None)
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.DONE]


def test_forks_and_the_child_outlives_it(endings: Endings) -> None:
    row = endings.rows["forks and outlives"]
    assert row.state == State.DONE
    assert len(row.attempts) == 1
    check_gone([int(str(row.result))])


@pytest.mark.parametrize("how", ["program", "session", "daemon"])
def test_leaves_a_process_behind(endings: Endings, how: str) -> None:
    """It is gone a moment after the outcome is recorded; `Bed.stop` has looked for the rest."""
    row = endings.rows[f"leaves a {how}"]
    assert row.state == State.DONE
    check_gone([int(str(row.result))])


def test_leaves_many_processes_behind(endings: Endings) -> None:
    row = endings.rows["leaves many"]
    assert row.result is not None
    pids = json.loads(row.result)
    assert len(set(pids)) == 15
    check_gone(pids)


# ------------------------------------------------------------------- it was never possible


def test_an_unknown_task(endings: Endings) -> None:
    """Parked as failed, with the reason; not tried again, however many tries it has."""
    row, attempt = endings.rows["unknown task"], endings["unknown task"]
    assert (row.state, row.attempt, len(row.attempts)) == (State.FAILED, 1, 1)
    assert attempt.error_type == "forkrunner.errors.TaskNotFound"
    assert "no task 'nobody_knows_it' is registered here; known: " in str(row.error)
    assert "noop" in str(row.error)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown argument", "more"),
        ("missing argument", "number"),
        ("wrong type", "expected int"),
        ("not an object", "strict()"),
        ("not JSON at all", "strict()"),
    ],
)
def test_arguments_that_do_not_fit(endings: Endings, name: str, words: str) -> None:
    row, attempt = endings.rows[name], endings[name]
    assert (row.state, len(row.attempts)) == (State.FAILED, 1), "it will not fit next time either"
    assert attempt.error_type == "forkrunner.errors.ArgumentError"
    assert words in str(row.error)


# -------------------------------------------------------------------------- it tries again


def test_tries_again_with_backoff(endings: Endings) -> None:
    row = endings.rows["third time"]
    assert (row.state, row.result, row.tries, row.crashes) == (State.DONE, "3", 3, 0)
    assert [a.outcome for a in row.attempts] == [Outcome.RAISED, Outcome.RAISED, Outcome.DONE]
    assert [a.error_message for a in row.attempts] == ["attempt 1", "attempt 2", None]
    for before, after, backoff in zip(row.attempts, row.attempts[1:], (0.2, 0.4), strict=False):
        assert before.finished_at is not None
        assert after.started_at is not None
        # the jitter takes a quarter of it at most
        assert (after.started_at - before.finished_at).total_seconds() >= 0.75 * backoff


@pytest.mark.parametrize(("kind", "tries"), [("OSError", 3), ("FileNotFoundError", 1), ("ValueError", 1)])
def test_tries_again_for_some_exceptions(endings: Endings, kind: str, tries: int) -> None:
    row = endings.rows[f"choosy {kind}"]
    assert (row.state, row.tries, len(row.attempts)) == (State.FAILED, tries, tries)
    assert row.error == f"{kind}: {kind}"


def test_stops_crashing_at_the_cap(endings: Endings) -> None:
    """Crashes have a cap of their own, apart from `max_attempts`."""
    row = endings.rows["crash cap"]
    assert (row.state, row.tries, row.crashes, len(row.attempts)) == (State.FAILED, 0, 3, 3)
    row = endings.rows["crashes are no tries"]
    assert (row.state, row.tries, row.crashes, len(row.attempts)) == (State.FAILED, 0, 2, 2)


@pytest.mark.parametrize(("how", "outcome"), [("raises", Outcome.RAISED), ("crashes", Outcome.CRASHED)])
def test_at_most_once(endings: Endings, how: str, outcome: Outcome) -> None:
    row = endings.rows[f"once, {how}"]
    assert (row.state, [attempt.outcome for attempt in row.attempts]) == (State.FAILED, [outcome])


def test_the_log_has_one_line_for_each_attempt(endings: Endings) -> None:
    """And nothing else: no traceback, no word of a killed mold."""
    assert "Traceback" not in endings.log
    assert "died" not in endings.log
    ended = [line for line in endings.log.splitlines() if " s, attempt " in line]
    assert len(ended) == sum(len(row.attempts) for row in endings.rows.values())
    assert all(len(line) < 1000 for line in endings.log.splitlines())


# ---------------------------------------------------------------- cases of their own making


def test_is_cancelled_while_it_runs(bed: Bed) -> None:
    supervisor = bed.start(grace=1)
    id = bed.put("hold", {"path": bed.path("never")})
    bed.wait_noted("start", id)
    assert bed.store.cancel(id, "not needed any more") == State.BUSY
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert (row.state, row.tries, attempt.outcome) == (State.CANCELLED, 0, Outcome.CANCELLED)
    assert "not needed any more" in str(row.error)
    assert bed.noted("end") == []
    bed.stop(supervisor)


def test_kills_its_mold(bed: Bed) -> None:
    """Its neighbours are run again; it itself is, up to the cap."""
    supervisor = bed.start(log_level="warning", ready=False)
    neighbour = bed.put("hold", {"path": bed.path("go")}, options={"max_crashes": 100})
    bed.wait_noted("start", neighbour)
    id = bed.put("kill_others", {"generations": 1}, options={"max_crashes": 2})
    row = bed.ended(id)
    assert (row.state, row.tries, row.crashes) == (State.FAILED, 0, 2)
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST, Outcome.LOST]
    bed.let_go()
    bed.ended(neighbour)
    bed.check_history([neighbour])
    bed.stop(supervisor)


def test_kills_its_supervisor(bed: Bed) -> None:
    """Whoever restarts it is not kept busy with that for ever."""
    id = bed.put("kill_others", {"generations": 2}, options={"max_crashes": 2})
    for _ in range(2):
        supervisor = bed.start(log_level="warning", ready=False)
        assert supervisor.wait(LONG) == -signal.SIGKILL
        supervisor.wait_gone()
    supervisor = bed.start(log_level="warning", ready=False)
    row = bed.ended(id)
    assert (row.state, row.crashes, len(row.attempts)) == (State.FAILED, 2, 2)
    bed.stop(supervisor)


@pytest.mark.alone
def test_is_killed_by_the_kernel_for_want_of_memory(cli: Cli, database: str) -> None:
    with memory_cgroup(150 << 20) as join, Bed(cli, database) as bed:
        need("cgroups", join, "no control group with a limit of memory can be made")
        assert join is not None
        supervisor = bed.start(before=f"open({join!r}, 'w').write(str(os.getpid()))")
        ids = [bed.put("fill", options={"max_crashes": 1}), *bed.enqueue("work", count=3)]
        rows = [bed.ended(id) for id in ids]
        (attempt,) = rows[0].attempts
        assert (rows[0].state, rows[0].crashes) == (State.FAILED, 1)
        assert (attempt.outcome, attempt.signal) == (Outcome.OUT_OF_MEMORY, "SIGKILL")
        # the log of the kernel is for root, in the first pid namespace
        log = rf"the kernel's log: .*Killed process {attempt.pid} .*anon-rss:1\d{{5}}kB"
        proof = rf"killed by the kernel's out-of-memory killer \(({log}|counted by its control group)"
        assert re.search(proof, str(rows[0].error)), rows[0].error
        # a kill of another kind afterwards is not taken for one
        row = bed.ended(bed.put("kill_itself", {"number": 9}, options={"max_crashes": 1}))
        assert row.attempts[0].outcome == Outcome.CRASHED
        bed.check_history(ids[1:])
        assert len(supervisor.pids("forkrunner: mold")) == 1
        bed.stop(supervisor)


ENGINE = '''
import gc, os
from sqlalchemy import create_engine, text
from forkrunner import Runner

runner = Runner()
engine = create_engine(os.environ["FORKRUNNER_DATABASE"])
with engine.begin() as c:
    c.execute(text("create table if not exists things (n integer, backend integer)"))
BACKEND = "select pg_backend_pid()" if engine.dialect.name == "postgresql" else "select 0"
# One in the middle of a transaction, one in the pool.
open_connection = engine.connect()
open_connection.execute(text("insert into things values (-1, 0)"))
backend = open_connection.execute(text(BACKEND)).scalar()
engine.connect().close()

@runner.task
def insert(n: int) -> int:
    """Use the engine as if there were no fork, in a connection of its own."""
    with engine.begin() as c:
        own = c.execute(text(BACKEND)).scalar()
        c.execute(text("insert into things values (:n, :own)"), {"n": n, "own": own})
    return own

@runner.task
def misuse() -> None:
    """Do all that would end the mold's session: close, roll back, dispose, collect."""
    global open_connection
    for act in (open_connection.rollback, open_connection.close, engine.dispose):
        try:
            act()
        except Exception as error:
            print(type(error).__name__)
    open_connection = None
    gc.collect()

@runner.task
def mold_backend() -> int:
    return backend
'''


@pytest.mark.postgresql
def test_an_engine_of_the_application_is_not_harmed(
    cli: Cli, postgres: Any, postgresql_database: str
) -> None:
    """The mold's session lives on, in its transaction, whatever its children do to their copies of it."""
    name = postgresql_database.rpartition("/")[2]
    with Bed(cli, postgresql_database, source=ENGINE) as bed, postgres.connect(name) as db:
        supervisor = bed.start(slots=4)
        backend = json.loads(str(bed.ended(bed.put("mold_backend")).result))

        def session() -> Any:
            query = "select state, backend_start, xact_start from pg_stat_activity where pid = %s"
            return db.execute(query, [backend]).fetchone()

        before = session()
        assert before[0] == "idle in transaction"
        misuses = bed.enqueue("misuse", count=5)
        inserts = [bed.put("insert", {"n": n}) for n in range(20)]
        assert all(bed.ended(id).state == State.DONE for id in misuses)
        own = {json.loads(str(bed.ended(id).result)) for id in inserts}
        assert len(own) == 20, "each child has a session of its own"
        assert backend not in own
        assert session() == before
        assert db.execute("select count(*) from things").fetchone() == (20,), "and nothing of the mold's"
        # its last session goes with the mold, at once: no child keeps the socket
        os.kill(supervisor.pid, signal.SIGTERM)
        assert supervisor.wait(LONG) == 0
        bed.stop()
