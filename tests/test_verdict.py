"""How an attempt ended, judged from facts: no process is made."""

from __future__ import annotations

import signal

import pytest

from forkrunner import channel
from forkrunner.account import read_report
from forkrunner.children import DUMP, RUNNING, TERM, Child
from forkrunner.job import Outcome
from forkrunner.verdict import UNREPORTED, judge

DONE = ({"kind": "outcome", "outcome": "done"}, b"7")


def dead(why=None, stage=RUNNING):
    child = Child(1, -1, -1, -1)
    child.job = {"id": "x", "attempt": 1}
    child.why, child.stage = why, stage
    return child


def exited(status):
    return status << 8


def somebody(pid):
    return "crashed", f"somebody killed {pid}"


def never(pid):
    raise AssertionError("asked for an out-of-memory kill without need")


@pytest.mark.parametrize(
    ("status", "report", "outcome"),
    [
        (exited(0), DONE, "done"),
        (exited(0), None, "exited"),
        (exited(3), None, "exited"),
        (signal.SIGSEGV, None, "crashed"),
        (signal.SIGABRT | 0x80, None, "crashed"),
        # nobody set a limit, and it has used no time: somebody sent it by hand
        (signal.SIGXCPU, None, "crashed"),
        # the report is the last thing that a child says
        (signal.SIGSEGV, DONE, "done"),
    ],
)
def test_each_way_to_die_has_a_word(status, report, outcome):
    header, _ = judge(dead(), status, report, never)
    assert header["outcome"] == outcome
    assert Outcome(outcome)


def test_who_has_closed_the_file_of_its_report_is_told_so():
    assert "closerange" in judge(dead(), exited(UNREPORTED), None, never)[0]["error_message"]
    assert "closerange" not in judge(dead(), exited(3), None, never)[0]["error_message"]


def test_a_kill_from_outside_is_told_from_the_kernels():
    header, _ = judge(dead(), signal.SIGKILL, None, somebody)
    assert (header["outcome"], header["error_message"]) == ("crashed", "somebody killed 1")
    header, _ = judge(dead(), signal.SIGKILL, None, lambda pid: ("out_of_memory", "by the kernel"))
    assert (header["outcome"], header["error_message"]) == ("out_of_memory", "by the kernel")


def test_a_report_that_came_after_the_killing_began_changes_nothing():
    why = ("timed_out", "ran longer than its timeout of 1 s")
    for stage in (DUMP, TERM):
        assert judge(dead(why, stage), exited(0), DONE, never)[0]["outcome"] == "timed_out"
    assert judge(dead(why, RUNNING), exited(0), DONE, never)[0]["outcome"] == "done"


@pytest.mark.parametrize("status", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, exited(1)])
def test_a_report_that_was_there_before_the_killing_began_stays(status):
    child = dead(("over_memory", "it had too much"), TERM)
    child.answered = True
    assert judge(child, status, DONE, never)[0]["outcome"] == "done"
    report = ({"kind": "outcome", "outcome": "over_memory", "error_message": "its own"}, b"")
    assert judge(child, status, report, never)[0]["error_message"] == "its own"


def test_a_report_is_found_between_stacks_and_half_of_one_is_none():
    report = ({"kind": "outcome", "outcome": "done"}, b'"' + b"x" * 1000 + b'"')
    file = b"\0" + channel.pack(*report) + b"\0"
    assert read_report(file) == (b"", report, len(file))
    assert read_report(b"before\n" + file + b"behind\n") == (b"before\nbehind\n", report, 7 + len(file))
    for length in range(len(file)):
        # also if what stands behind makes it as long as the whole
        for behind in (b"", b"s" * (len(file) - length), b"s" * 2000):
            assert read_report(b"before\n" + file[:length] + behind)[1] is None
    assert read_report(b"\0something that a job has written\n" + file) == (b"", None, 0)
    assert read_report(b"only stacks") == (b"only stacks", None, 0)


@pytest.mark.parametrize(
    ("status", "limits", "words"),
    [
        (
            signal.SIGXCPU,
            {"cpu_seconds": 2},
            "its limit cpu_seconds is 2 s: it used 2.10 s of CPU time (SIGXCPU)",
        ),
        (
            signal.SIGXCPU,
            {},
            "it used 2.10 s of CPU time, the limit that the supervisor was started with (SIGXCPU)",
        ),
        (
            signal.SIGXFSZ,
            {"file_size": 10**6},
            "its limit file_size is 1.0 MB: a file was to grow beyond it (SIGXFSZ)",
        ),
        (
            signal.SIGABRT,
            {"memory": 10**8},
            "the process was ended by SIGABRT; its limit memory is 100.0 MB: it had 99.0 MB of its own",
        ),
        (signal.SIGABRT, {"memory": 10**9}, "the process was ended by SIGABRT"),
    ],
)
def test_a_limit_that_ended_it_is_named_with_its_value_and_what_was_reached(status, limits, words):
    child = dead()
    child.job["limits"], child.cpu, child.peak = limits, 2.1, 99_000_000
    assert judge(child, status, None, never)[0]["error_message"] == words


def test_a_timeout_says_when_it_ended():
    child = dead(("timed_out", "ran longer than its timeout of 1 s"), TERM)
    child.ran = 1.254
    sentence = judge(child, signal.SIGTERM, None, never)[0]["error_message"]
    assert sentence == "ran longer than its timeout of 1 s (ended after 1.25 s)"


def test_exit_status_and_signal_are_told_apart():
    assert judge(dead(), exited(3), None, never)[0]["exit_status"] == 3
    assert judge(dead(), signal.SIGSEGV, None, never)[0]["signal"] == "SIGSEGV"
    assert (
        judge(dead(), int(signal.SIGRTMIN) + 9, None, never)[0]["signal"]
        == f"signal {int(signal.SIGRTMIN) + 9}"
    )


def test_the_status_that_the_task_asked_for_is_the_one_shown():
    report = ({"kind": "outcome", "outcome": "exited", "exit_status": 3}, b"")
    assert judge(dead(), exited(0), report, never)[0]["exit_status"] == 3
