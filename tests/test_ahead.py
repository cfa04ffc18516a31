"""Jobs claimed ahead: the bookkeeping by itself, and what becomes of them when they cannot start."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from forkrunner.ahead import FOREVER, PATIENCE, Pace, Queue
from forkrunner.attempts import Attempts
from forkrunner.children import Child, Children
from forkrunner.job import State

from .running import LONG, Bed
from .support import wait_until

if TYPE_CHECKING:
    from forkrunner.attempts import Running
    from forkrunner.molds import Mold
    from forkrunner.supervisor import Supervisor

# ------------------------------------------------------------------------------ bookkeeping


def test_without_any_that_have_ended_nothing_is_claimed_ahead():
    assert Pace().ahead(16, 100.0) == 0


@pytest.mark.parametrize(
    ("each", "most"), [(0.0, 48), (0.001, 48), (0.005, 48), (0.01, 32), (0.1, 3), (1.0, 0), (3600, 0)]
)
def test_as_many_are_claimed_ahead_as_end_until_the_next_claim(each, most):
    pace = Pace()
    pace.see([each, each], 100.0)
    assert pace.ahead(16, 100.0) == most


def test_a_long_one_among_the_short_counts():
    pace = Pace()
    pace.see([0.001] * 15 + [10.0], 100.0)
    assert pace.ahead(16, 100.0) == 0


def test_a_turn_in_which_none_has_ended_changes_nothing_and_time_makes_it_forget():
    pace = Pace()
    pace.see([0.001], 100.0)
    pace.see([], 100.05)
    assert pace.ahead(2, 100.05) > 0
    assert pace.ahead(2, 100.2) == 0


def test_it_stops_when_what_was_claimed_ahead_has_not_started():
    pace = Pace()
    pace.see([0.001], 100.0)
    pace.stop()
    assert pace.ahead(2, 100.0) == 0


def test_it_may_be_stopped_for_a_while():
    pace = Pace()
    pace.stop(105.0)
    pace.see([0.001], 104.9)
    assert pace.ahead(2, 104.9) == 0
    pace.see([0.001], 105.0)
    assert pace.ahead(2, 105.0) == 6


def jobs(*names):
    return [({"id": name, "attempt": 1, "ahead": 4}, b"{}") for name in names]


@pytest.fixture
def queue():
    return Queue()


def test_an_empty_queue_is_never_due(queue):
    assert not queue
    assert queue.due(0) == FOREVER
    assert queue.take(0, 100.0) == [] == queue.give_up(100.0)


def test_they_start_in_their_order_when_half_of_the_slots_are_free(queue):
    a, b, c = jobs("a", "b", "c")
    queue.put([a, b, c], 100.0)
    assert queue.due(2) == 0.0
    assert queue.take(2, 100.0) == [a, b]
    assert queue.take(4, 100.0) == []
    assert queue.take(0, 100.0) == [c]
    assert not queue


def test_where_fewer_are_free_one_waits_a_moment_for_company(queue):
    (a,) = jobs("a")
    queue.put([a], 100.0)
    assert queue.take(3, 100.0) == []
    due = queue.due(3)
    assert 100.0 < due < 100.0 + PATIENCE
    assert queue.take(3, due) == [a]


def test_what_waits_too_long_is_given_up_and_what_came_later_is_not(queue):
    a, b = jobs("a", "b")
    queue.put([a], 100.0)
    queue.put([b], 100.02)
    assert queue.due(4) == 100.0 + PATIENCE
    assert queue.give_up(100.0 + PATIENCE / 2) == []
    assert queue.give_up(100.0 + PATIENCE) == [a]
    assert queue.clear() == [b]
    assert not queue


def test_one_that_waits_is_found_and_removed(queue):
    a, b = jobs("a", "b")
    queue.put([a, b], 100.0)
    assert queue.find("b", 2) is None
    assert queue.find("b", 1) is b[0]
    queue.remove(b[0])
    assert queue.clear() == [a]


# ------------------------------------------------------------------------------ processes


def most_at_once(bed: Bed, last: int = 1_000_000) -> int:
    """Return how many attempts ran at the same time, by their rows: of all, or of those that began last."""
    spans = bed.query("select started_at, finished_at from forkrunner_attempts order by started_at")[-last:]
    # where one begins in the very moment in which another ends they do not overlap
    steps = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def claimed_ahead(bed: Bed, slots: int) -> bool:
    """Wait until more jobs are claimed than there are slots."""
    query = "select count(*) from forkrunner_jobs where state = 'busy'"
    return wait_until(lambda: bed.query(query)[0][0] > slots, LONG, interval=0.002)


def test_never_more_run_than_there_are_slots(bed: Bed) -> None:
    bed.enqueue("noop", count=1500)
    supervisor = bed.start(slots=4, log_level="info")
    assert claimed_ahead(bed, 4)
    bed.wait_counts(done=1500)
    assert most_at_once(bed) <= 4
    assert bed.query("select count(*), max(attempt) from forkrunner_attempts") == [(1500, 1)]
    bed.stop(supervisor)


def test_what_was_claimed_ahead_of_long_jobs_is_given_back(bed: Bed) -> None:
    """Two slots, and behind many short jobs two that hold them: the others are pending again, and count as nothing."""
    bed.enqueue("noop", count=300)
    held = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
    behind = bed.enqueue("noop", count=50)
    supervisor = bed.start(slots=2, log_level="debug")
    for id in held:
        bed.wait_noted("start", id)
    bed.wait_counts(busy=2, pending=50, done=300)
    supervisor.wait_log("jobs that were claimed ahead of a free slot were given back")
    rows = [bed.row(id) for id in behind]
    assert {(row.state, row.attempt, row.tries, row.crashes, row.started_at) for row in rows} == {
        (State.PENDING, 0, 0, 0, None)
    }
    bed.let_go()
    bed.wait_counts(done=352)
    assert bed.query("select count(*), max(attempt) from forkrunner_attempts") == [(352, 1)]
    assert most_at_once(bed) <= 2
    bed.stop(supervisor)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_a_supervisor_ends_while_jobs_wait_ahead(bed: Bed, signum: int) -> None:
    """Nothing is lost, and TERM and QUIT count as nothing for what has not started."""
    bed.enqueue("noop", count=1500)
    supervisor = bed.start(slots=4, log_level="info")
    assert claimed_ahead(bed, 4)
    supervisor.signal(signum)
    supervisor.wait(LONG)
    supervisor.wait_gone()
    if signum != signal.SIGKILL:
        bed.nothing_left()
        ((lost,),) = bed.query(
            "select count(*) from forkrunner_attempts where outcome not in ('done', 'requeued')"
        )
        assert lost == 0
    second = bed.start(slots=4, log_level="info")
    bed.wait_counts(done=1500)
    bed.stop(second)


def test_none_starts_when_the_lease_is_over(sqlite_bed: Bed) -> None:
    """Mold and supervisor stand still until after the lease; then the mold goes on alone, with jobs in its queue."""
    bed = sqlite_bed
    bed.enqueue("work", count=1500)
    supervisor = bed.start(slots=4, lease=2, store_timeout=0.4, log_level="info")
    assert claimed_ahead(bed, 4)
    mold = supervisor.wait_ps(r"forkrunner: mold jobs:runner gen \d+$")[0]
    for pid in (supervisor.pid, mold):
        os.kill(pid, signal.SIGSTOP)
    lease = bed.store.supervisors()[0].lease_until
    assert lease is not None
    wait_until(lambda: lease < datetime.now(UTC), LONG)
    before = len(bed.noted("start"))
    os.kill(mold, signal.SIGCONT)
    # it has seen that the lease is over when it lets nothing run
    wait_until(lambda: not [one for one in supervisor.ps() if "forkrunner: job" in one.title], LONG)
    # those at most that it was just forking: at its next look at the clock it kills them, and gives back the others
    assert len(bed.noted("start")) <= before + 4
    os.kill(supervisor.pid, signal.SIGCONT)
    bed.wait_counts(done=1500)
    assert bed.overlaps() == []
    bed.stop(supervisor)


def test_what_may_run_once_only_does_not_wait(bed: Bed) -> None:
    """Killed with its supervisor while it waits, it would be failed though it has never begun.

    What was claimed ahead all the same is given back before a mold has it, and then none is for some seconds.
    """
    bed.enqueue("noop", count=400, options={"at_most_once": True})
    supervisor = bed.start(slots=4, log_level="debug")
    began = time.monotonic()
    bed.wait_counts(done=400)
    passed = time.monotonic() - began
    given_back = supervisor.log.count("jobs that were claimed ahead of a free slot were given back")
    assert 1 <= given_back <= 1 + passed / 5
    assert bed.query("select count(*), max(attempt) from forkrunner_attempts") == [(400, 1)]
    assert most_at_once(bed) <= 4
    bed.stop(supervisor)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_mail_that_hangs_takes_no_place_from_those_that_wait(slots: int) -> None:
    children = Children()
    mail = Child(10, -1, -1, -1)
    children.start(mail, {"id": "mail", "attempt": 1, "beside": True}, 100.0, 100.0)
    assert (len(children.busy), children.in_slots) == (1, 0)
    queue = Queue()
    queue.put([({"id": "a", "attempt": 1, "ahead": slots}, b"{}")], 100.0)
    assert len(queue.take(children.in_slots, 100.0)) == 1
    children.died(10)
    assert children.in_slots == 0


def test_a_mail_that_is_given_back_is_being_sent_no_more() -> None:
    """After its lease a mold gives back all that it is told to start, mails too; the next mail is not to wait for that one."""
    said: list[tuple[str, int]] = []
    attempts = Attempts(
        cast("Supervisor", SimpleNamespace(log=None, rows=SimpleNamespace(returned=said.append)))
    )
    mold = SimpleNamespace(busy=1, jobs=1)
    attempts.mails.add(("mail", 1))
    attempts.running["mail", 1] = cast("Running", SimpleNamespace())
    attempts.returned(cast("Mold", mold), {"id": "mail", "attempt": 1})
    assert (attempts.mails, attempts.busy, mold.busy, mold.jobs) == (set(), 0, 0, 0)
    assert said == [("mail", 1)]


def test_a_reload_while_jobs_wait_ahead(bed: Bed) -> None:
    bed.enqueue("noop", count=2500)
    supervisor = bed.start(slots=4, log_level="info")
    assert claimed_ahead(bed, 4)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log(r"mold .* \(generation 2|gen(eration)? 2|mold 2")
    bed.wait_counts(done=2500)
    assert bed.query("select count(*) from forkrunner_attempts where outcome <> 'done'") == [(0,)]
    bed.stop(supervisor)


@pytest.mark.parametrize("slots", [1, 6])
def test_usr2_to_other_slots_while_jobs_wait_ahead(bed: Bed, slots: int) -> None:
    """Those that wait were claimed by the old one for its slots; soon there are no more than the new one has."""
    settings = bed.folder / "forkrunner.toml"
    settings.write_text("slots = 4\n")
    bed.enqueue("noop", count=2500)
    supervisor = bed.cli.start("run", "jobs:runner")
    assert claimed_ahead(bed, 4)
    settings.write_text(f"slots = {slots}\n")
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log("has taken over")
    ((before,),) = bed.query("select count(*) from forkrunner_attempts")
    bed.wait_counts(done=2500)
    assert bed.query("select count(*), max(attempt) from forkrunner_attempts") == [(2500, 1)]
    assert most_at_once(bed) <= max(4, slots)
    assert before < 2400, "too few were left to see it"
    assert most_at_once(bed, (2500 - before) // 2) <= slots
    bed.stop(supervisor)


def test_one_that_waits_is_cancelled_without_a_process(sqlite_bed: Bed) -> None:
    """Its supervisor is told while it is in the queue of the mold: the mold is stopped meanwhile."""
    bed = sqlite_bed
    bed.enqueue("noop", count=2000)
    supervisor = bed.start(slots=2, log_level="info")
    assert claimed_ahead(bed, 2)
    mold = supervisor.wait_ps(r"forkrunner: mold jobs:runner gen \d+$")[0]
    # what is busy now is told to the mold, which takes it up when it goes on, with the cancel behind it
    os.kill(mold, signal.SIGSTOP)
    time.sleep(0.1)
    busy = [row.id for row in bed.store.list(state=State.BUSY, limit=1000)]
    for id in busy:
        bed.store.cancel(id, reason="not any more", actor=None)
    time.sleep(2)
    os.kill(mold, signal.SIGCONT)
    wait_until(lambda: not any(bed.row(id).state is State.BUSY for id in busy), LONG)
    bed.wait_counts(pending=0, busy=0)
    ended = [bed.row(id) for id in busy]
    assert {row.state for row in ended} <= {State.DONE, State.CANCELLED}
    without = bed.query(
        "select count(*) from forkrunner_attempts where outcome = 'cancelled' and pid is null"
    )
    assert without[0][0] > 0, ended
    bed.stop(supervisor)
