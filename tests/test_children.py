"""The mold's memory: fed with facts, asked what to do. Nothing is forked."""

from __future__ import annotations

import pytest

from forkrunner.children import AGAIN, DUMP, DUMP_TIME, FOREVER, KILL, NEAR, TERM, Child, Children, margin


@pytest.fixture
def children():
    return Children()


def busy(children, pid=10, now=100.0, **job):
    child = Child(pid, -1, -1, -1)
    children.start(child, {"id": f"job{pid}", "attempt": 1, **job}, now, now)
    return child


def test_the_ladder_goes_dump_term_kill_and_again(children):
    child = busy(children, timeout=5, grace=3)
    assert children.next_due() == 105 - margin(5, 3)
    assert children.overdue(104.9) == [(child, NEAR)]
    assert children.overdue(104.9) == []
    assert children.next_due() == 105
    assert children.overdue(105) == [(child, DUMP)]
    assert children.next_due() == 105 + DUMP_TIME
    assert children.overdue(105 + DUMP_TIME) == [(child, TERM)]
    assert children.overdue(105 + DUMP_TIME + 2.9) == []
    assert children.overdue(105 + DUMP_TIME + 3) == [(child, KILL)]
    assert children.overdue(105 + DUMP_TIME + 3 + AGAIN) == [(child, KILL)]
    assert child.why == ("timed_out", "ran longer than its timeout of 5 s")


def test_each_decision_is_written_down_once(children):
    child = busy(children, timeout=5)
    assert child.steps is None
    children.overdue(105)
    children.condemn(child, "cancelled", "too late", 105.1)
    child.note("TERM", 105.25, processes=2)
    assert child.steps == [
        {"step": "timed_out", "after": 5, "detail": "ran longer than its timeout of 5 s"},
        {"step": "TERM", "after": 5.25, "processes": 2},
    ]


def test_those_with_a_limit_that_the_mold_enforces_are_watched(children):
    child = busy(children, limits={"memory": 5})
    busy(children, 11, limits={"nice": 5})
    busy(children, 12)
    assert children.watched == {10: child}
    children.died(10)
    assert children.watched == {}


def test_without_a_timeout_nothing_is_ever_due(children):
    busy(children)
    assert children.next_due() == FOREVER
    assert children.overdue(1e12) == []


def test_the_first_reason_for_a_killing_stays(children):
    child = busy(children, timeout=5)
    children.condemn(child, "cancelled", "by hand", 101)
    children.condemn(child, "requeued", "stop", 102)
    assert children.overdue(102) == [(child, DUMP)]
    assert children.overdue(200) == [(child, TERM)]
    assert child.why == ("cancelled", "by hand")


@pytest.mark.parametrize(
    ("timeout", "grace", "before"), [(1000, 5, 100), (20, 5, 5), (4, 5, 2), (100, 0, 10)]
)
def test_a_deadline_is_near_a_tenth_or_the_grace_before_it_but_not_in_the_first_half(timeout, grace, before):
    assert margin(timeout, grace) == before


def test_a_deadline_is_near_only_once_and_not_for_one_that_is_looked_at_too_late(children):
    child = busy(children, timeout=10, grace=1)
    assert children.overdue(200) == [(child, DUMP)]


def test_no_time_passes_in_a_pause(children):
    child = busy(children, timeout=10, grace=1)
    assert children.pause(child, 103)
    assert not children.pause(child, 104)
    assert children.next_due() == FOREVER
    assert children.overdue(1000) == []
    assert children.resume(child, 1003)
    assert not children.resume(child, 1004)
    assert child.paused_for == 900
    assert children.next_due() == 1010 - margin(10, 1)
    assert children.overdue(1009) == [(child, NEAR)]
    assert children.pause(child, 1009.5)
    assert children.resume(child, 2009.5)
    assert children.overdue(2009.9) == []
    assert children.overdue(2010) == [(child, DUMP)]
    assert not children.pause(child, 2010), "it is being ended"


def test_a_killing_may_be_put_off_but_not_beyond_the_deadline(children):
    child = busy(children, timeout=10, grace=1)
    children.condemn(child, "cancelled", "by hand", 101, wait=2)
    assert children.overdue(102.9) == []
    assert children.overdue(103) == [(child, DUMP)]
    other = busy(children, pid=11, timeout=10, grace=1)
    children.condemn(other, "cancelled", "by hand", 101, wait=19)
    assert children.overdue(110) == [(child, TERM), (other, DUMP)]
    assert other.why == ("cancelled", "by hand")


def test_a_child_is_found_by_job_and_attempt(children):
    child = busy(children)
    assert children.find("job10", 1) is child
    assert children.find("job10", 2) is None
    assert children.find("other", 1) is None


def test_the_dead_are_forgotten_once(children):
    child = busy(children)
    spare = Child(11, -1, -1, -1)
    children.spares.append(spare)
    assert children.pids() == {10, 11}
    assert (children.died(10), children.died(11)) == (child, spare)
    assert children.died(10) is None
    assert len(children) == 0


def test_a_stranger_is_not_ours(children):
    busy(children)
    assert children.died(99) is None
    assert len(children) == 1
