"""The database restarts, freezes, is away for longer than the lease, or answers in the most awkward moment.

Running jobs go on and their time limits strike; what they did is written when it is back. Nothing is lost, and no job
ever runs twice at the same time: the kernel's lock of each job says so, see jobs_app.py.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from forkrunner.job import Outcome, State
from tests.running import LONG, Bed, CuttingProxy, cpu_of
from tests.servers import Postgres
from tests.support import Cli, Process, alive, wait_until

#: A lease as short as a busy machine allows, seconds.
LEASE = 4.0
SHORT: dict[str, Any] = {"lease": LEASE, "store_timeout": 0.9}

AWAY = "the database does not answer"


@pytest.fixture
def bed(cli: Cli, postgresql_database: str) -> Iterator[Bed]:
    with Bed(cli, postgresql_database) as bed:
        yield bed


def _wait_gone(pid: int) -> None:
    wait_until(lambda: not alive(pid), LONG, f"the end of {pid}")


def _each_once(bed: Bed, ids: list[str]) -> None:
    """No attempt was lost on the way, and none was needed twice."""
    bed.check_history(ids)
    assert len(bed.noted("start")) == len(bed.noted("end")) == len(ids)
    assert bed.query("select count(*), min(outcome), max(outcome) from forkrunner_attempts") == [
        (len(ids), "done", "done")
    ]


def _said(process: Process, pattern: str) -> int:
    return len(re.findall(pattern, process.log))


# ----------------------------------------------------------------------------- it restarts


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_while_jobs_run(bed: Bed, postgres: Postgres, mode: str) -> None:
    supervisor = bed.start(slots=4)
    long = bed.put("hold", {"path": bed.path("go")})
    ids = bed.enqueue("work", {"seconds": 0.02}, count=150)
    bed.wait_noted("end", count=40)
    postgres.restart(mode)
    bed.let_go()
    bed.wait_counts(done=151)
    bed.stop(supervisor)
    _each_once(bed, [long, *ids])
    assert (_said(supervisor, AWAY), _said(supervisor, "the database is back")) == (1, 1)


def test_its_backends_are_terminated_while_jobs_run(bed: Bed, postgres: Postgres) -> None:
    supervisor = bed.start(slots=4, log_level="info")
    ids = bed.enqueue("work", {"seconds": 0.01}, count=150)
    terminated = 0
    with postgres.connect(bed.database.rpartition("/")[2]) as db:
        for part in range(1, 11):
            bed.wait_noted("end", count=part * 12)
            terminated += db.execute(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where application_name in ('forkrunner supervisor', 'forkrunner waker')"
            ).fetchone()[0]
    assert terminated >= 10
    bed.wait_counts(done=150)
    bed.stop(supervisor)
    _each_once(bed, ids)


def test_a_job_that_somebody_holds_locked_is_not_asked_for_all_the_time(
    cli: Cli, postgres: Postgres, postgresql_database: str
) -> None:
    """An update that somebody left open in psql, say."""
    name = postgresql_database.rpartition("/")[2]
    count = f"select xact_commit from pg_stat_database where datname = '{name}'"
    with Bed(cli, postgresql_database) as bed, postgres.connect(name) as db, postgres.connect() as other:
        held = bed.put("work")
        db.execute("begin")
        db.execute("select from forkrunner_jobs for update")
        supervisor = bed.start(poll_interval=1)
        (before,) = other.execute(count).fetchone()
        time.sleep(3)  # it is counted in a time
        (after,) = other.execute(count).fetchone()
        db.execute("rollback")
        assert bed.ended(held).state is State.DONE
        bed.stop(supervisor)
    assert after - before < 100


# ---------------------------------------------------------------------------- it is silent


def test_frozen_for_seconds_while_jobs_run(bed: Bed, postgres: Postgres) -> None:
    supervisor = bed.start(slots=3, lease=30, store_timeout=1, grace=0.3)
    limited = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 2})
    long = bed.put("hold", {"path": bed.path("go")})
    (first, second) = bed.wait_noted("start", count=2)
    pids = {first.job: first.pid, second.job: second.pid}
    assert alive(pids[limited])
    postgres.pause()
    # a look of the supervisor's own, for nobody can wake it
    supervisor.wait_log(AWAY, LONG)
    _wait_gone(pids[limited])
    bed.let_go()
    bed.wait_noted("end", long)
    _wait_gone(pids[long])
    # some more tries
    end = time.monotonic() + 2
    wait_until(lambda: time.monotonic() > end)
    assert supervisor.running
    assert "timed_out" not in supervisor.log, "what is not written is not reported"
    back = datetime.now(UTC)
    postgres.resume()
    row = bed.ended(limited)
    (attempt,) = row.attempts
    assert (row.state, attempt.outcome) == (State.FAILED, Outcome.TIMED_OUT)
    assert attempt.finished_at is not None
    assert attempt.finished_at < back
    due, *_, ended = json.loads(str(attempt.steps))
    assert due["after"] < 8, "its time limit struck when it was due"
    assert ended["after"] < due["after"] + 8
    assert bed.ended(long).state == State.DONE
    after = bed.put("work")
    assert bed.ended(after).state == State.DONE
    bed.check_history([long, after])
    assert (_said(supervisor, AWAY), _said(supervisor, "the database is back")) == (1, 1)
    bed.stop(supervisor)


# ----------------------------------------------------------------- away longer than the lease


def _away_longer_than_the_lease(bed: Bed, postgres: Postgres) -> None:
    """Stop the server and wait until the leases have run out by its clock, which is the host's."""
    last = max(row.lease_until for row in bed.store.supervisors() if row.lease_until)
    postgres.stop("fast")
    wait_until(lambda: datetime.now(UTC) > last + timedelta(seconds=LEASE / 2), LONG)


def test_away_longer_than_the_lease(bed: Bed, postgres: Postgres) -> None:
    """Each host ends its own jobs in time. When it is back all leases have run out, and nobody takes that for a death."""
    supervisors = [bed.start(**SHORT, slots=2, grace=0.3) for _ in range(2)]
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=4)
    started = bed.wait_noted("start", count=4)
    _away_longer_than_the_lease(bed, postgres)
    for line in started:
        _wait_gone(line.pid)
    postgres.start()
    bed.wait_noted("start", attempt=2, count=4)
    bed.let_go()
    for id in ids:
        row = bed.ended(id)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.REQUEUED, Outcome.DONE]
        assert "its supervisor could not renew its lease" in str(row.attempts[0].error_message)
        assert (row.tries, row.crashes) == (1, 0)
    bed.check_history(ids)
    for supervisor in supervisors:
        assert (_said(supervisor, AWAY), _said(supervisor, "the database is back")) == (1, 1)
        assert _said(supervisor, "are taken back|lease was lost") == 0
    bed.stop(*supervisors)


def test_a_supervisor_dies_while_it_is_away(bed: Bed, postgres: Postgres) -> None:
    """Its jobs are taken over when the database has been back for a lease, not before."""
    dying, other = (bed.start(**SHORT, slots=1) for _ in range(2))
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
    bed.wait_noted("start", count=2)
    _away_longer_than_the_lease(bed, postgres)
    dying.signal(signal.SIGKILL)
    dying.wait_gone()
    back = datetime.now(UTC)
    postgres.start()
    bed.let_go()
    for id in ids:
        assert bed.ended(id).state == State.DONE
    bed.check_history(ids)
    other.wait_log("1 jobs of a dead supervisor are taken back", LONG)
    ((rescued,),) = bed.query(
        "select max(finished_at) from forkrunner_attempts where error_message like 'its supervisor died%'"
    )
    assert rescued >= back + timedelta(seconds=LEASE)
    bed.stop(other)


@pytest.mark.slow
def test_term_while_it_is_away(bed: Bed, postgres: Postgres) -> None:
    """A stop does not wait for ever; what could not be written is rescued at once by the next one, and so run again."""
    supervisor = bed.start(slots=1, grace_period=2, lease=600)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    postgres.stop("immediate")
    bed.let_go()
    bed.wait_noted("end", id)
    supervisor.wait_log(AWAY, LONG)
    supervisor.signal(signal.SIGTERM)
    used = [cpu_of(supervisor.pid)]

    def over() -> bool:
        used.append(cpu_of(supervisor.pid))
        return not supervisor.running

    wait_until(over, interval=0.1)
    assert supervisor.wait(LONG) == 0
    supervisor.wait_gone()
    assert max(used) - used[0] < 2, "it has waited, for more than 10 s, and not spun"
    assert "1 left to be rescued" in supervisor.log
    postgres.start()
    assert bed.row(id).state == State.BUSY
    supervisor = bed.start(slots=1, lease=600)
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.LOST, Outcome.DONE]
    bed.check_history([id])
    bed.stop(supervisor)


# --------------------------------------------------------------- nobody knows what was committed


@pytest.fixture
def proxied(cli: Cli, postgres: Postgres, postgresql_database: str) -> Iterator[tuple[Bed, CuttingProxy]]:
    with CuttingProxy(postgres.port) as proxy, Bed(cli, postgresql_database) as bed:
        through = postgresql_database.replace(f":{postgres.port}/", f":{proxy.port}/")
        cli.env["FORKRUNNER_DATABASE"] = through
        yield bed, proxy
        cli.close()


def test_a_claim_whose_commit_is_not_answered(proxied: tuple[Bed, CuttingProxy]) -> None:
    """It is found busy under the supervisor's own name, given back uncounted, and run once."""
    bed, proxy = proxied
    supervisor = bed.start(slots=2)
    proxy.arm("this one")
    id = bed.put("echo", {"text": "this one"})
    supervisor.wait_log("1 claimed jobs that could not be started here were given back", LONG)
    row = bed.ended(id)
    assert proxy.cuts == 1
    assert (row.state, row.attempt, row.tries, row.crashes) == (State.DONE, 1, 1, 0)
    assert len(bed.noted("start", id)) == 1
    bed.check_history([id])
    bed.stop(supervisor)


def test_an_outcome_whose_commit_is_not_answered(proxied: tuple[Bed, CuttingProxy]) -> None:
    """It is written again, which changes nothing."""
    bed, proxy = proxied
    supervisor = bed.start(slots=2)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    proxy.arm(id)
    bed.let_go()
    wait_until(lambda: proxy.cuts, LONG)
    supervisor.wait_log("the database is back", LONG)
    row = bed.ended(id)
    assert (row.state, row.attempt, row.tries, row.crashes) == (State.DONE, 1, 1, 0)
    after = bed.put("work")
    assert bed.ended(after).state == State.DONE
    bed.check_history([id, after])
    bed.stop(supervisor)


# --------------------------------------------------------------------------- SQLite is locked


def test_another_process_holds_the_sqlite_file_for_seconds(cli: Cli, sqlite_database: str) -> None:
    """That is no outage: nothing is said, nothing is lost, and time limits strike meanwhile."""
    with Bed(cli, sqlite_database) as bed:
        supervisor = bed.start(slots=3, grace=0.3)
        limited = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 1})
        long = bed.put("hold", {"path": bed.path("go")})
        started = {line.job: line.pid for line in bed.wait_noted("start", count=2)}
        path = sqlite_database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as writer:
            writer.execute("begin immediate")
            end = time.monotonic() + 3
            _wait_gone(started[limited])
            bed.let_go()
            _wait_gone(started[long])
            wait_until(lambda: time.monotonic() > end)
            unlocked = datetime.now(UTC)
            writer.execute("commit")
        (attempt,) = bed.ended(limited).attempts
        assert attempt.outcome == Outcome.TIMED_OUT
        assert attempt.finished_at is not None
        assert attempt.finished_at < unlocked
        assert bed.ended(long).state == State.DONE
        ids = bed.enqueue("work", count=5)
        for id in ids:
            assert bed.ended(id).state == State.DONE
        bed.check_history([long, *ids])
        bed.stop(supervisor)
        assert _said(supervisor, AWAY) == 0


# ------------------------------------------------------------------- the supervisor is frozen


def test_a_supervisor_is_frozen_longer_than_its_lease(cli: Cli, database: str) -> None:
    """Its mold ends its jobs before the other one may start them; when it thaws it starts anew and writes nothing."""
    with Bed(cli, database) as bed:
        frozen = bed.start(**SHORT, slots=2)
        path = bed.path("go")
        jobs = [bed.put("hold", {"path": path}), bed.put("hold_against_signals", {"path": path})]
        first = bed.wait_noted("start", count=2)
        other = bed.start(**SHORT, slots=2)
        frozen.signal(signal.SIGSTOP)
        since = time.monotonic()
        second = bed.wait_noted("start", attempt=2, count=2)
        assert not any(alive(line.pid) for line in first)
        wait_until(lambda: time.monotonic() > since + 1.6 * LEASE)
        frozen.signal(signal.SIGCONT)
        frozen.wait_log("the lease was lost: . attempts were killed, starting anew as", LONG)
        assert all(alive(line.pid) for line in second), "the thawed one has no power over them"
        # It is of use again: the other one has no free slot.
        ids = bed.enqueue("work", count=4)
        for id in ids:
            assert bed.ended(id).state == State.DONE
        bed.let_go()
        for id in jobs:
            row = bed.ended(id)
            assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST, Outcome.DONE]
            assert (row.tries, row.crashes) == (1, 1)
            assert "its supervisor died or lost its lease" in str(row.attempts[0].error_message)
        bed.check_history([*jobs, *ids])
        bed.stop(frozen, other)
