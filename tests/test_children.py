"""The mold's memory: fed with facts, asked what to do. Nothing is forked."""

from __future__ import annotations

import pytest

from forkrunner.children import AGAIN, DUMP, DUMP_TIME, FOREVER, KILL, TERM, Child, Children


@pytest.fixture
def children():
    return Children()


def busy(children, pid=10, now=100.0, **job):
    child = Child(pid, -1, -1, -1)
    children.start(child, {"id": f"job{pid}", "attempt": 1, **job}, now, now)
    return child


def test_the_ladder_goes_dump_term_kill_and_again(children):
    child = busy(children, timeout=5, grace=3)
    assert children.overdue(104.9) == []
    assert children.next_due() == 105
    assert children.overdue(105) == [(child, DUMP)]
    assert children.next_due() == 105 + DUMP_TIME
    assert children.overdue(105 + DUMP_TIME) == [(child, TERM)]
    assert children.overdue(105 + DUMP_TIME + 2.9) == []
    assert children.overdue(105 + DUMP_TIME + 3) == [(child, KILL)]
    assert children.overdue(105 + DUMP_TIME + 3 + AGAIN) == [(child, KILL)]
    assert child.why == ("timed_out", "ran longer than its timeout of 5 s")


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
