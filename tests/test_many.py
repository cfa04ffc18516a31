"""Many jobs, several supervisors, and death in the middle: every job is done, none runs twice at the same time.

Two witnesses who do not know each other: the rows, and the ledger that the jobs write themselves.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from typing import Any

import pytest

from forkrunner.job import Outcome, State
from tests.running import LONG, Bed, memory_of, tree_of
from tests.support import Cli, Process, wait_until


def _each_exactly_once(bed: Bed, ids: list[str]) -> None:
    bed.check_history(ids)
    ledger = bed.ledger()
    assert Counter(line.job for line in ledger if line.event == "start") == Counter(ids)
    assert Counter(line.job for line in ledger if line.event == "end") == Counter(ids)
    outcomes = bed.query("select outcome, count(*) from forkrunner_attempts group by outcome")
    assert outcomes == [("done", len(ids))]


def _shares(bed: Bed) -> list[int]:
    """Return how many attempts each supervisor has run."""
    return [n for (n,) in bed.query("select count(*) from forkrunner_attempts group by supervisor")]


def test_three_supervisors_share_the_jobs(bed: Bed) -> None:
    supervisors = [bed.start(log_level="warning", ready=False) for _ in range(3)]
    ids = bed.enqueue("work", count=600)
    bed.wait_counts(done=600)
    bed.stop(*supervisors)
    _each_exactly_once(bed, ids)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_supervisors_and_ten_thousand_jobs(bed: Bed) -> None:
    # All are there before the first job is, and each has something to do.
    supervisors = [bed.start(log_level="info", slots=2, ready=False) for _ in range(8)]
    for supervisor in supervisors:
        supervisor.wait_log("runs jobs:runner", LONG)
    ids = bed.enqueue("work", count=10_000)
    bed.wait_counts(done=10_000, timeout=800)
    bed.stop(*supervisors)
    _each_exactly_once(bed, ids)
    assert len(_shares(bed)) == 8, _shares(bed)


# ---------------------------------------------------------------------- death in the middle


def _kill(supervisor: Process, role: str) -> None:
    if role == "supervisor":
        supervisor.signal(signal.SIGKILL)
        return
    _, mold, children = tree_of(supervisor)
    if role == "mold":
        os.kill(mold, signal.SIGKILL)
        return
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.parametrize("role", ["supervisor", "mold", "child"])
def test_kill_in_the_middle_of_500_jobs(bed: Bed, role: str) -> None:
    """Three times; whoever is killed, every job is done in the end, and crashes are counted as crashes."""
    quiet: dict[str, Any] = {"slots": 4, "log_level": "warning", "ready": False}
    options = {"max_crashes": 50, "backoff": 0.01}
    ids = bed.enqueue("work", {"seconds": 0.005}, count=500, options=options)
    supervisor = bed.start(**quiet)
    for part in (1, 2, 3):
        bed.wait_noted("end", count=part * 120)
        _kill(supervisor, role)
        if role == "supervisor":
            supervisor.wait_gone()
            assert supervisor.wait(LONG) == -signal.SIGKILL
            supervisor = bed.start(**quiet)
    bed.wait_counts(done=500)
    bed.stop(supervisor)
    bed.check_history(ids)
    outcomes = dict(bed.query("select outcome, count(*) from forkrunner_attempts group by outcome"))
    allowed = {"done", "crashed"} if role == "child" else {"done", "lost"}
    assert set(outcomes) <= allowed
    assert outcomes["done"] == 500
    again = dict(bed.query("select id, crashes from forkrunner_jobs where crashes > 0"))
    assert sum(again.values()) == sum(outcomes.values()) - 500


def test_kill_one_of_two_supervisors(bed: Bed) -> None:
    """The other one takes its jobs over without being told."""
    settings: dict[str, Any] = {"slots": 2, "lease": 4, "store_timeout": 0.9, "log_level": "warning"}
    one, other = bed.start(**settings, ready=False), bed.start(**settings, ready=False)
    ids = bed.enqueue("work", {"seconds": 0.01}, count=200)
    bed.wait_noted("end", count=60)
    one.signal(signal.SIGKILL)
    bed.wait_counts(done=200)
    assert one.wait(LONG) == -signal.SIGKILL
    bed.stop(other)
    bed.check_history(ids)


# ---------------------------------------------------------------------------- what it costs


def _defunct(supervisor: Process, seen: Counter[int]) -> None:
    """Count in how many looks each process was defunct. Between its end and its reaping each one is, for a moment."""
    now = [found.pid for found in supervisor.ps() if found.state == "Z"]
    for pid in [*seen]:
        if pid not in now:
            del seen[pid]
    seen.update(now)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_jobs_that_leak_leave_no_trace(cli: Cli, postgresql_database: str) -> None:
    """On PostgreSQL; `scripts/bench --leak` does it on SQLite."""
    with Bed(cli, postgresql_database) as bed:
        leak_a_thousand_times(bed)


def leak_a_thousand_times(bed: Bed) -> None:
    supervisor = bed.start(log_level="warning", slots=2, ready=False)

    def run(count: int, total: int) -> None:
        bed.enqueue("leak", {"megabytes": 50}, count=count)
        seen: Counter[int] = Counter()
        end = time.monotonic() + 500
        while dict(bed.store.counts()["default"]).get("done", 0) < total:
            assert time.monotonic() < end, bed.describe()
            _defunct(supervisor, seen)
            assert max(seen.values(), default=0) < 5, f"defunct: {seen}\n{supervisor.describe()}"
            time.sleep(0.1)  # a zombie is one that several looks in a row find
        supervisor.wait_ps("forkrunner: spare$", LONG, count=2)
        # idle: what the mold shares with its children is then shared with the spares only
        wait_until(lambda: len(tree_of(supervisor)[2]) == 2, LONG)

    def memory() -> dict[str, int]:
        boss, mold, _ = tree_of(supervisor)
        return {"supervisor": memory_of(boss), "mold": memory_of(mold)}

    run(10, 10)
    before = memory()
    run(990, 1000)
    after = memory()
    print(f"at job 10: {before}\nat job 1000: {after}")
    for role, size in before.items():
        assert after[role] <= size * 1.05, (role, before, after)
    peaks = bed.query("select min(peak_memory_bytes), max(peak_memory_bytes) from forkrunner_attempts")
    assert 50 << 20 <= peaks[0][0] <= peaks[0][1] < 80 << 20
    bed.stop(supervisor)


def test_no_descriptors_to_fork_with(bed: Bed) -> None:
    """A job that the mold cannot fork for is given back, uncounted; what can run runs, and it is not asked for in a loop."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))"
    supervisor = bed.start(before=limit, slots=16, spares=0)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=16)
    supervisor.wait_log("could not be started and was given back: .*Too many open files", LONG)
    pattern = r"^(\S+ \S+) .* could not be started"
    # at least three looks later: by the seconds that the lines carry
    wait_until(lambda: len(set(re.findall(pattern, supervisor.log, re.MULTILINE))) >= 3, LONG)
    by_second = Counter(re.findall(pattern, supervisor.log, re.MULTILINE))
    assert max(by_second.values()) <= 32, by_second
    assert 3 <= len(bed.noted("start")) < 16
    bed.let_go()
    for id in ids:
        row = bed.ended(id)
        assert (row.state, row.attempt, row.tries, row.crashes) == (State.DONE, 1, 1, 0)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.DONE]
    bed.check_history(ids)
    bed.stop(supervisor)
