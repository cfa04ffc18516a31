"""How an attempt ended, judged from facts: no process is made."""

from __future__ import annotations

import signal

import pytest

from forkrunner.children import DUMP, RUNNING, TERM, Child
from forkrunner.job import Outcome
from forkrunner.verdict import judge

DONE = ({"kind": "outcome", "outcome": "done"}, b"7")


def dead(why=None, stage=RUNNING):
    child = Child(1, -1, -1, -1)
    child.job = {"id": "x", "attempt": 1}
    child.why, child.stage = why, stage
    return child


def exited(status):
    return status << 8


def no_oom():
    return None


def never():
    raise AssertionError("asked for an out-of-memory kill without need")


@pytest.mark.parametrize(
    ("status", "report", "outcome"),
    [
        (exited(0), DONE, "done"),
        (exited(0), None, "exited"),
        (exited(3), None, "exited"),
        (signal.SIGSEGV, None, "crashed"),
        (signal.SIGABRT | 0x80, None, "crashed"),
        (signal.SIGXCPU, None, "over_cpu"),
        # the report is the last thing that a child says
        (signal.SIGSEGV, DONE, "done"),
    ],
)
def test_each_way_to_die_has_a_word(status, report, outcome):
    header, _ = judge(dead(), status, report, never)
    assert header["outcome"] == outcome
    assert Outcome(outcome)


def test_a_kill_from_outside_is_told_from_the_kernels():
    assert judge(dead(), signal.SIGKILL, None, no_oom)[0]["outcome"] == "crashed"
    header, _ = judge(dead(), signal.SIGKILL, None, lambda: "by the kernel")
    assert (header["outcome"], header["error_message"]) == ("out_of_memory", "by the kernel")


def test_a_report_that_came_after_the_killing_began_changes_nothing():
    why = ("timed_out", "ran longer than its timeout of 1 s")
    for stage in (DUMP, TERM):
        assert judge(dead(why, stage), exited(0), DONE, never)[0]["outcome"] == "timed_out"
    assert judge(dead(why, RUNNING), exited(0), DONE, never)[0]["outcome"] == "done"


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
