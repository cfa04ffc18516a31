"""One suite over every database that the store knows. A difference is a named capability, at the case."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from forkrunner import sqlite as sqlite_files
from forkrunner.database import Silent, alarm
from forkrunner.errors import (
    EnqueueError,
    JobNotFound,
    JobStateError,
    SchemaError,
    StoreError,
    StoreUnavailable,
)
from forkrunner.job import ENDED, TRANSITIONS, Next, Outcome, State
from forkrunner.records import Attempt, Claim, Ending, New, Row, SupervisorRow, Wish
from forkrunner.schema import attempts, jobs
from forkrunner.statements import CHANNEL
from forkrunner.store import Store
from tests.running import CuttingProxy
from tests.servers import Postgres
from tests.support import LONG, wait_until

NOW = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
NEXT = {
    State.DONE: Next(State.DONE, 1, 0),
    State.FAILED: Next(State.FAILED, 1, 0),
    State.CANCELLED: Next(State.CANCELLED, 0, 0),
    State.PENDING: Next(State.PENDING, 1, 0, 30.0),
}


class Disk:
    """What a case may need to know of the kind of database under it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_file = url.startswith("sqlite")
        self.is_server = not self.is_file


@pytest.fixture
def disk(database: str) -> Disk:
    return Disk(database)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """A client on a database with tables, and a supervisor "a" that is registered."""
    store = Store(database)
    store.migrate()
    store.register(supervisor_row("a"), 60)
    yield store
    store.close()


@pytest.fixture
def other_store(database: str, store: Store) -> Iterator[Store]:
    """The store of the supervisor "b", with a connection of its own."""
    other = Store(database, role="supervisor")
    other.register(supervisor_row("b"), 60)
    yield other
    other.close()


def supervisor_row(name: str) -> SupervisorRow:
    return SupervisorRow(name, "host", "boot", "4026531836", 1234, 98765, "jobs:runner", 4, "0.1")


def new(**facts) -> New:
    facts.setdefault("id", str(uuid.uuid4()))
    return New(**{"task": "convert", "queue": "default", "arguments": '{"a": 1}'} | facts)


def put(store: Store, count: int = 1, *, now: datetime | None = NOW, **facts) -> list[str]:
    rows = [new(**facts) for _ in range(count)]
    store.enqueue(rows, now=now)
    return [row.id for row in rows]


def ending(claim: Claim, state: State = State.DONE, **facts) -> Ending:
    outcome = {State.DONE: Outcome.DONE, State.CANCELLED: Outcome.CANCELLED}.get(state, Outcome.RAISED)
    attempt = Attempt(claim.id, claim.attempt, outcome, claim.supervisor, started_at=NOW, finished_at=NOW)
    words: dict[str, Any] = {"result": '{"ok": true}'} if state is State.DONE else {"error": "it failed"}
    whole = Ending(attempt, NEXT[state], **words)
    mine = {name: facts.pop(name) for name in tuple(facts) if name in ("next", "result", "error", "cursor")}
    return replace(whole, attempt=replace(attempt, **facts), **mine)


def claim_one(store: Store, supervisor: str = "a", now: datetime | None = NOW) -> Claim:
    (claim,) = store.claim(supervisor, 1, None, now=now)
    return claim


# ------------------------------------------------------------------------------------ the way of a job


def test_a_job_goes_from_enqueue_to_done(store):
    (job,) = put(store, priority=3, options='{"timeout": 5}')
    row = store.get(job)
    assert row == Row(
        job, "convert", "default", State.PENDING, 3, NOW, NOW, None, None, '{"a": 1}', None, None,
        '{"timeout": 5}', 0, 0, 0, None, None, None, None, None, None,
    )  # fmt: skip
    later = NOW + timedelta(seconds=1)
    claim = claim_one(store, now=later)
    assert claim == Claim(
        job, "convert", "default", 1, 0, 0, '{"a": 1}', '{"timeout": 5}', NOW, later, "a", NOW
    )
    busy = store.get(job)
    assert (busy.state, busy.supervisor, busy.started_at, busy.attempt) == (State.BUSY, "a", later, 1)
    end = later + timedelta(microseconds=999_998)
    facts: dict[str, Any] = {
        "host": "höst",
        "pid": 77,
        "started_at": later,
        "finished_at": end,
        "exit_status": 0,
        "output_tail": "Zeile\n",
        "cpu_user_seconds": 0.25,
        "cpu_system_seconds": 1e-3,
        "peak_memory_bytes": 1 << 40,
    }
    assert store.finish([ending(claim, **facts)], now=end) == {(job, 1): State.DONE}
    done = store.get(job)
    assert (done.state, done.result, done.error, done.supervisor) == (State.DONE, '{"ok": true}', None, None)
    assert (done.finished_at, done.started_at, done.tries) == (end, later, 1)
    assert done.attempts == (Attempt(job, 1, Outcome.DONE, "a", **facts),)


def test_columns_and_fields_are_in_the_same_order():
    """Rows are read by position."""
    assert [column.name for column in attempts.c] == [field.name for field in fields(Attempt)]
    assert [column.name for column in jobs.c] == [field.name for field in fields(Row)][:-1]


def test_every_fact_of_an_attempt_comes_back(store):
    put(store)
    claim = claim_one(store)
    whole = Attempt(
        claim.id, 1, Outcome.CRASHED, "a", "h", 5, NOW, NOW, 3, "SIGSEGV", "E", "m", "t", "s", "o", 0.5, 0.25, 9
    )  # fmt: skip
    store.finish([Ending(whole, NEXT[State.FAILED], error="crashed")])
    assert store.get(claim.id).attempts == (whole,)


def test_claims_come_in_order_of_priority_then_time(store):
    late = put(store, now=NOW)
    early = put(store, now=NOW - timedelta(seconds=9))
    urgent = put(store, priority=10)
    future = put(store, priority=99, delay=60)
    claims = store.claim("a", 10, None, now=NOW)
    assert [claim.id for claim in claims] == [*urgent, *early, *late]
    assert [claim.id for claim in store.claim("a", 10, None, now=NOW + timedelta(seconds=60))] == future


def test_no_more_is_claimed_than_asked_for(store):
    put(store, 20)
    assert [len(store.claim("a", n, None, now=NOW)) for n in (0, 5, 1, 100)] == [0, 5, 1, 14]


def test_only_the_queues_asked_for_are_claimed(store):
    put(store, 2, queue="slow")
    put(store, 2, queue="it's")
    assert store.claim("a", 9, ["nobody"], now=NOW) == []
    assert {claim.queue for claim in store.claim("a", 9, ["it's", "nobody"], now=NOW)} == {"it's"}
    assert store.claim("a", 9, [], now=NOW) == []
    assert len(store.claim("a", 9, None, now=NOW)) == 2


def test_a_delay_counts_from_the_enqueue_and_run_at_is_exact(store):
    moment = datetime(2028, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
    first, *_ = put(store, now=moment, delay=0.000_002)
    assert store.get(first).run_at == datetime(2028, 2, 29, 0, 0, 0, 1, tzinfo=UTC)
    second, *_ = put(store, now=moment, delay=86_400.5)
    assert store.get(second).run_at == moment + timedelta(seconds=86_400.5)
    third, *_ = put(store, run_at=moment.astimezone(tz=None), delay=5)
    assert store.get(third).run_at == moment


def test_a_naive_time_is_refused(store):
    with pytest.raises(ValueError, match="aware"):
        put(store, run_at=datetime(2026, 1, 1))  # noqa: DTZ001  # the case


def test_without_now_the_database_says_what_is_due(store):
    put(store, now=None)
    put(store, now=None, delay=60)
    claim = claim_one(store, now=None)
    assert abs(claim.started_at - datetime.now(UTC)) < timedelta(seconds=5)
    due = store.next_due(None)
    assert due is not None
    assert 50 < due <= 60


def test_next_due(store):
    assert store.next_due(None) is None
    put(store, delay=90, queue="slow")
    put(store, delay=30)
    assert store.next_due(None, now=NOW) == 30
    assert store.next_due(["slow"], now=NOW) == 90
    assert store.next_due(["none"], now=NOW) is None
    assert store.next_due(None, now=NOW + timedelta(hours=1)) == 0


def test_another_try_waits_for_its_delay(store):
    put(store)
    claim = claim_one(store)
    end = NOW + timedelta(seconds=10)
    store.finish([ending(claim, State.PENDING)], now=end)
    row = store.get(claim.id)
    assert (row.state, row.tries, row.error, row.supervisor) == (State.PENDING, 1, "it failed", None)
    assert (row.finished_at, row.started_at, row.run_at) == (None, NOW, end + timedelta(seconds=30))
    assert store.claim("a", 1, None, now=end) == []
    assert claim_one(store, now=end + timedelta(seconds=30)).attempt == 2


def test_a_turn_writes_and_claims_at_once(store):
    first, second = put(store, 1, priority=1) + put(store, 1)
    claim = claim_one(store)
    ended, claims = store.turn("a", [ending(claim)], 5, None, now=NOW)
    assert ended == {(first, 1): State.DONE}
    assert [c.id for c in claims] == [second]
    assert store.turn("a", [], 5, ["default"], now=NOW) == ({}, [])
    assert store.turn("a", [ending(claims[0])], 0, None, now=NOW) == ({(second, 1): State.DONE}, [])


def test_released_rows_are_as_if_never_claimed(store):
    put(store, 2)
    before = {row.id: row for row in store.list()}
    claims = store.claim("a", 2, None, now=NOW)
    keys = [(claim.id, claim.attempt) for claim in claims]
    assert store.release("b", keys) == 0
    assert store.release("a", [(keys[0][0], 7)]) == 0
    assert store.release("a", []) == 0
    assert store.release("a", keys) == 2
    assert store.release("a", keys) == 0
    assert {row.id: row for row in store.list()} == before


def test_a_release_after_a_try_keeps_the_start_of_that_try(store):
    put(store)
    store.finish([ending(claim_one(store), State.PENDING, started_at=NOW)], now=NOW)
    claim = claim_one(store, now=NOW + timedelta(hours=1))
    store.release("a", [(claim.id, 2)])
    row = store.get(claim.id)
    assert (row.attempt, row.started_at, len(row.attempts)) == (1, NOW, 1)


# -------------------------------------------------------------------------------------------- fences


def test_a_late_or_double_ending_changes_nothing(store):
    put(store, 2)
    claim, untouched = store.claim("a", 2, None, now=NOW)
    assert store.finish([ending(claim), ending(claim, State.FAILED)][:1]) == {(claim.id, 1): State.DONE}
    ended = store.get(claim.id)
    for late in (
        ending(claim),
        ending(claim, State.FAILED),
        ending(replace(untouched, attempt=2)),
        ending(replace(untouched, supervisor="b")),
        ending(replace(untouched, id=str(uuid.uuid4()))),
    ):
        assert store.finish([late]) == {}
    assert store.get(claim.id) == ended
    assert store.get(untouched.id).attempts == ()
    assert store.finish([ending(claim), ending(untouched)]) == {(untouched.id, 1): State.DONE}


def test_an_ending_after_the_rescue_changes_nothing(store, other_store):
    put(store)
    claim = claim_one(store)
    assert store.expire(["a"]) == ["a"]
    (orphan,) = other_store.orphans(10)
    assert orphan == claim
    lost = ending(orphan, State.PENDING, outcome=Outcome.LOST, next=Next(State.PENDING, 0, 1))
    assert other_store.finish([lost], now=NOW) == {(claim.id, 1): State.PENDING}
    assert store.finish([ending(claim)]) == {}
    again = claim_one(other_store, "b")
    assert (again.attempt, again.crashes) == (2, 1)
    assert store.finish([ending(claim)]) == {}
    assert [attempt.outcome for attempt in store.get(claim.id).attempts] == [Outcome.LOST]


def test_two_rescuers_end_a_row_once(store, other_store):
    put(store, 5)
    store.claim("a", 5, None, now=NOW)
    store.expire(["a"])
    mine, theirs = store.orphans(5), other_store.orphans(5)
    assert len(mine) == len(theirs) == 5
    ended = [store.finish([ending(c, State.FAILED) for c in found]) for found in (mine, theirs)]
    assert [len(e) for e in ended] == [5, 0]


def test_whoever_is_not_registered_claims_nothing(store):
    put(store)
    assert store.claim("nobody", 1, None, now=NOW) == []
    store.deregister("a")
    assert store.claim("a", 1, None, now=NOW) == []


def test_supervisors_claim_disjoint_rows(store, database, disk):
    ids = set(put(store, 300))
    taken: dict[str, list[str]] = {}

    def work(name: str) -> None:
        mine = Store(database, role="supervisor")
        mine.register(supervisor_row(name), 60)
        found = taken[name] = []
        while len(found) < 300:
            try:
                claims = mine.claim(name, 7, None, now=NOW)
            except StoreUnavailable as error:
                assert disk.is_file
                assert error.facts["busy"]  # noqa: PT017  # the loop goes on
                continue
            if not claims and not mine.counts()["default"].get("pending"):
                break
            found += [claim.id for claim in claims]
        mine.close()

    def patiently(name: str) -> None:
        while True:
            try:
                return work(name)
            except StoreUnavailable:
                assert disk.is_file

    threads = [threading.Thread(target=patiently, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    everything = [job for found in taken.values() for job in found]
    assert len(everything) == 300
    assert set(everything) == ids
    for name, found in taken.items():
        assert {job for job, _ in store.busy(name)} == set(found)


# ------------------------------------------------------------------------------- transitions, as drawn


@pytest.mark.parametrize("start", State)
def test_the_arrows_of_the_diagram_and_no_others(store, start):
    """Each function leads from each state where job.py draws an arrow, and changes nothing elsewhere."""

    def make() -> Claim:
        put(store)
        claim = claim_one(store)
        if start is State.PENDING:
            store.release("a", [(claim.id, 1)])
        elif start is not State.BUSY:
            store.finish([ending(claim, start)], now=NOW)
        assert store.get(claim.id).state is start
        return claim

    def quietly(function, *arguments) -> None:
        try:
            function(*arguments, now=NOW)
        except JobStateError as error:
            assert error.facts["state"] is start  # noqa: PT017  # or it raises nothing

    moves = {
        "b": lambda c: store.claim("a", 1, None, now=NOW),
        "c": lambda c: store.finish([ending(c)]),
        "d": lambda c: store.finish([ending(c, State.FAILED)]),
        "e": lambda c: store.release("a", [(c.id, c.attempt)]),
        "f": lambda c: quietly(store.cancel, c.id, "why"),
        "g": lambda c: store.finish([ending(c, State.CANCELLED)]),
        "h": lambda c: quietly(store.retry, c.id),
    }
    assert set(moves) == set(TRANSITIONS) - {"a"}
    for arrow, move in moves.items():
        claim = make()
        before = store.get(claim.id)
        move(claim)
        after = store.get(claim.id)
        _, sources, targets = TRANSITIONS[arrow]
        if start in sources:
            assert after.state in targets, arrow
        elif start is State.BUSY and arrow == "f":
            # the request only
            assert after == replace(before, cancel_at=NOW, cancel_reason="why")
        else:
            assert after == before, arrow
        check_row(after)
        clear(store)


def check_row(row: Row) -> None:
    """What job.py says of each state."""
    assert (row.supervisor is not None) == (row.state is State.BUSY)
    assert (row.finished_at is not None) == (row.state in ENDED)
    if row.state is State.BUSY:
        assert row.started_at is not None
    if row.state is State.DONE:
        assert row.result is not None
        assert row.error is None
    if row.state in (State.FAILED, State.CANCELLED):
        assert row.error


def clear(store: Store) -> None:
    with store._transactions.open().begin() as connection:
        connection.execute(sa.delete(jobs))
        connection.execute(sa.delete(attempts))


# ------------------------------------------------------------------------------------- cancel and retry


def test_a_pending_job_is_cancelled_at_once(store):
    (job,) = put(store)
    assert store.cancel(job, "no need", now=NOW) is State.CANCELLED
    row = store.get(job)
    assert (row.state, row.error, row.finished_at, row.attempts) == (State.CANCELLED, "no need", NOW, ())
    with pytest.raises(JobStateError, match="pending or busy"):
        store.cancel(job, "again")
    (other,) = put(store)
    store.cancel(other, None)
    assert store.get(other).error == "cancelled"


def test_a_busy_job_is_asked_for(store):
    put(store, 2)
    claim, _ = store.claim("a", 2, None, now=NOW)
    assert store.wishes("a") == []
    assert store.cancel(claim.id, None, actor="me@here", now=NOW) is State.BUSY
    store.cancel(claim.id, "me too", actor="you@there", now=NOW + timedelta(seconds=1))
    assert store.wishes("a") == [Wish(claim.id, 1, True, None, "me@here", False)]
    assert store.wishes("b") == []
    row = store.get(claim.id)
    assert (row.cancel_at, row.cancel_reason, row.cancel_actor) == (NOW, None, "me@here")
    store.finish([ending(claim, State.CANCELLED)])
    row = store.get(claim.id)
    assert (row.state, row.cancel_actor) == (State.CANCELLED, "me@here")
    assert store.wishes("a") == []


def test_only_a_busy_job_is_paused_and_the_pause_ends_with_its_attempt(store):
    (job,) = put(store)
    for call in (store.pause, store.resume):
        with pytest.raises(JobStateError, match="expected it busy, it is pending"):
            call(job)
    claim = claim_one(store)
    store.resume(job)
    store.pause(job, now=NOW)
    store.pause(job, now=NOW + timedelta(seconds=1))
    assert store.get(job).paused_at == NOW
    assert store.wishes("a") == [Wish(job, 1, False, None, None, True)]
    store.resume(job)
    assert (store.get(job).paused_at, store.wishes("a")) == (None, [])
    store.pause(job)
    assert store.release("a", [(job, 1)]) == 1
    assert store.get(job).paused_at is None
    claim = claim_one(store)
    store.pause(job)
    store.finish([ending(claim, State.PENDING)])
    assert store.get(job).paused_at is None


def test_a_cursor_stays_until_the_job_is_done(store):
    (job,) = put(store)
    for text, state, left in (
        (None, State.PENDING, None),
        ("[1]", State.PENDING, "[1]"),
        (None, State.PENDING, "[1]"),
        ("2", State.CANCELLED, "2"),
        (None, State.FAILED, "2"),
        ("3", State.DONE, None),
    ):
        claim = claim_one(store, now=NOW + timedelta(days=1))
        store.finish([ending(claim, state, cursor=text)], now=NOW)
        assert store.get(job).cursor == left
        if state is not State.PENDING:
            store.retry(job, now=NOW)
            assert store.get(job).cursor == left


@pytest.mark.parametrize("state", [State.PENDING, State.FAILED])
def test_a_cancel_while_the_attempt_ends_wins_over_another_try_and_over_the_last(store, other_store, state):
    """By a statement of its own, and by that of a whole turn; and who has written it is told so."""
    put(store, 3)
    claims = other_store.claim("b", 3, None, now=NOW)
    for claim, reason in zip(claims, ("stop it", "stop it", None), strict=True):
        store.cancel(claim.id, reason, actor="me@here")
        end = ending(claim, state)
        if claim is claims[0]:
            written = other_store.finish([end], now=NOW)
        else:
            written, _ = other_store.turn("b", [end], 1, None, now=NOW)
        assert written == {(claim.id, 1): State.CANCELLED}
        row = store.get(claim.id)
        assert (row.state, row.error, row.finished_at) == (State.CANCELLED, reason or "it failed", NOW)
        assert (row.cancel_reason, row.cancel_actor, row.tries) == (reason, "me@here", 1)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.RAISED]
        check_row(row)


def test_but_not_over_success(store):
    """Nor over one whose result could not be stored: it has run, and that must be seen."""
    put(store, 2)
    good, unstored = store.claim("a", 2, None, now=NOW)
    for claim in (good, unstored):
        store.cancel(claim.id, "stop it")
    ends = [ending(good), ending(unstored, State.FAILED, outcome=Outcome.DONE)]
    assert store.finish(ends) == {(good.id, 1): State.DONE, (unstored.id, 1): State.FAILED}
    assert store.get(good.id).state is State.DONE
    assert store.get(unstored.id).error == "it failed"


def test_retry_begins_anew_with_the_next_number(store):
    put(store)
    claim = claim_one(store)
    store.cancel(claim.id, "stop")
    store.finish([ending(claim, State.FAILED)])
    later = NOW + timedelta(hours=1)
    store.retry(claim.id, now=later)
    row = store.get(claim.id)
    assert (row.state, row.tries, row.crashes, row.error, row.cancel_at) == (State.PENDING, 0, 0, None, None)
    assert row.run_at == later
    assert claim_one(store, now=later).attempt == 2
    with pytest.raises(JobStateError) as caught:
        store.retry(claim.id)
    assert caught.value.facts["state"] is State.BUSY


@pytest.mark.parametrize("id", [str(uuid.UUID(int=0)), "nonsense", "", "x' OR 1=1 --", "\0"])
def test_no_such_job(store, id):
    for call in (store.get, store.retry, lambda id: store.cancel(id, None)):
        with pytest.raises(JobNotFound):
            call(id)


def test_an_id_may_be_written_in_capitals(store):
    (job,) = put(store)
    assert store.get(job.upper()).id == job


# ------------------------------------------------------------------------------------- lists and leases


def test_list_and_counts(store):
    ids = [str(uuid.UUID(int=(n << 80) | 1)) for n in range(1, 7)]
    store.enqueue(
        [new(id=id, queue="q" if n % 2 else "p", task=f"t{n}") for n, id in enumerate(ids)], now=NOW
    )
    assert [row.id for row in store.list()] == ids[::-1]
    assert [row.id for row in store.list(limit=2)] == ids[:3:-1]
    assert [row.id for row in store.list(queue="q")] == ids[5::-2]
    assert [row.id for row in store.list(task="t2")] == [ids[2]]
    claim = claim_one(store)
    assert [row.id for row in store.list(state=State.BUSY)] == [claim.id]
    assert store.counts() == {"p": {"busy": 1, "pending": 2}, "q": {"pending": 3}}


def test_a_lease_is_kept_and_ends(store):
    store.register(supervisor_row("c"), 0.05)
    assert [row.id for row in store.supervisors()] == ["a", "c"]
    row = store.supervisors()[1]
    assert replace(row, started_at=None, lease_until=None) == supervisor_row("c")
    assert row.lease_until is not None
    assert row.started_at is not None
    assert timedelta(0) < row.lease_until - row.started_at <= timedelta(seconds=0.06)
    assert store.renew("c", 60)
    assert store.expire([]) == []
    assert store.renew("c", 0)
    assert wait_until(lambda: store.expire([])) == ["c"]
    assert not store.renew("c", 60)
    assert not store.renew("nobody", 60)
    assert store.expire([], now=datetime.now(UTC) + timedelta(days=1)) == ["a"]


def test_to_register_again_prolongs(store):
    store.register(supervisor_row("a"), 1000)
    (row,) = store.supervisors()
    assert row.lease_until is not None
    assert row.lease_until > datetime.now(UTC) + timedelta(seconds=900)


def test_rows_of_the_living_are_no_orphans(store, other_store):
    put(store, 3)
    store.claim("a", 2, None, now=NOW)
    other_store.claim("b", 1, None, now=NOW)
    assert store.orphans(10) == []
    store.deregister("a")
    assert len(store.orphans(10)) == 2
    assert len(store.orphans(1)) == 1
    assert {claim.supervisor for claim in store.orphans(10)} == {"a"}


# ------------------------------------------------------------------------------ enqueue, and the caller


def test_enqueue_twice_is_once(store):
    row = new()
    store.enqueue([row])
    claim = claim_one(store, now=datetime.now(UTC))
    store.enqueue([row])
    assert store.get(claim.id).state is State.BUSY


def test_enqueue_many_is_all_or_nothing(store):
    assert store.enqueue([]) is None
    put(store, 2500)
    assert store.counts() == {"default": {"pending": 2500}}
    broken = [new() for _ in range(1500)] + [new(id="no uuid" * 10)]
    # a database without a type for ids takes this one: then all are there
    try:
        store.enqueue(broken)
    except StoreError:
        assert store.counts() == {"default": {"pending": 2500}}
    else:
        assert store.counts() == {"default": {"pending": 4001}}


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_database_takes_is_refused(store, text):
    for name in ("task", "queue", "arguments"):
        with pytest.raises(EnqueueError):
            put(store, 1, **{name: text})
    assert store.counts() == {}


def test_any_other_text_comes_back(store):
    text = '"ä\u2028\U0001f600 \\u0000 \\ud800 \x01 \' %s :x"'
    (job,) = put(store, arguments=text)
    assert store.get(job).arguments == text
    assert claim_one(store).arguments == text


@pytest.mark.parametrize("kind", ["connection", "session", "scoped_session"])
@pytest.mark.parametrize("commit", [True, False])
def test_a_row_lives_and_dies_with_the_callers_transaction(store, database, kind, commit):
    engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    kinds: dict[str, Any] = {
        "connection": engine.connect,
        "session": lambda: Session(engine),
        "scoped_session": lambda: scoped_session(sessionmaker(engine)),
    }
    given = kinds[kind]()
    given.execute(sa.text("CREATE TABLE mine (n INTEGER)"))
    given.commit()
    given.execute(sa.text("INSERT INTO mine VALUES (1)"))
    (row,) = rows = [new()]
    store.enqueue(rows, connection=given)
    with pytest.raises(JobNotFound):
        store.get(row.id)
    (given.commit if commit else given.rollback)()
    assert len(store.list()) == commit
    assert given.execute(sa.text("SELECT count(*) FROM mine")).scalar() == commit
    given.rollback()
    given.close()
    engine.dispose()


def test_the_callers_first_enqueue_makes_an_embedded_database(disk, database):
    engine = sa.create_engine(database)
    store = Store(database)
    with engine.begin() as connection:
        if disk.is_file:
            store.enqueue([new()], connection=connection)
        else:
            with pytest.raises(SchemaError, match="forkrunner migrate"):
                store.enqueue([new()], connection=connection)
            connection.rollback()
    engine.dispose()
    store.close()


def test_what_is_no_connection_to_this_database_is_refused(store, tmp_path):
    elsewhere = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    with elsewhere.connect() as connection, pytest.raises(EnqueueError, match="database of the jobs"):
        store.enqueue([new()], connection=connection)
    elsewhere.dispose()
    with pytest.raises(EnqueueError, match="run_sync"):
        store.enqueue([new()], connection=type("AsyncSession", (), {})())
    with pytest.raises(EnqueueError, match="Session or Connection, got Engine"):
        store.enqueue([new()], connection=elsewhere)


# ------------------------------------------------------------------------------------- poison outcomes


def test_poison_in_an_outcome_is_stored_visibly(store):
    put(store, 3)
    first, second, third = store.claim("a", 3, None, now=NOW)
    bad = "a\0b\ud800c"
    poison = ending(
        second, State.FAILED, error=bad, error_message=bad, traceback=bad, output_tail=bad, signal=bad
    )
    ends = [ending(first), poison, ending(third, result='"a\ud800"')]
    assert len(store.finish(ends)) == 3
    row = store.get(second.id)
    assert row.error == row.attempts[0].traceback == row.attempts[0].output_tail == r"a\u0000b\ud800c"
    assert store.get(third.id).result == r'"a\ud800"'


def test_what_is_too_long_is_cut(store):
    put(store)
    claim = claim_one(store)
    long = "ä" * 100_000
    tail = "x" * 100_000 + "the end"
    store.finish(
        [ending(claim, State.FAILED, error=long, error_message=long, output_tail=tail, traceback=tail)]
    )
    row = store.get(claim.id)
    (attempt,) = row.attempts
    assert row.error is not None
    assert row.error.startswith("ää")
    assert len(row.error.encode()) < 2100
    assert "bytes cut" in row.error
    for text, size in (
        (attempt.error_message, 16 << 10),
        (attempt.output_tail, 64 << 10),
        (attempt.traceback, 64 << 10),
    ):
        assert text is not None
        assert size - 10 < len(text.encode()) < size + 50
    assert attempt.output_tail is not None
    assert attempt.output_tail.endswith("the end")


def test_one_bad_ending_does_not_keep_the_others_from_being_stored(store, disk):
    put(store, 8)
    claims = store.claim("a", 8, None, now=NOW)
    if disk.is_file:
        refuse = (
            "CREATE TRIGGER refuse BEFORE INSERT ON forkrunner_attempts WHEN NEW.exit_status = 1099511627776 "
            "BEGIN SELECT RAISE(ABORT, 'out of range'); END"
        )
        with store._transactions.open().connect() as connection:
            connection.exec_driver_sql(refuse)
            connection.commit()
    ends = [ending(claim, exit_status=1 << 40 if n == 4 else 0) for n, claim in enumerate(claims)]
    put(store, 1)
    ended, claimed = store.turn("a", ends, 1, None, now=NOW)
    assert len(ended) == 8
    assert len(claimed) == 1
    rows = [store.get(claim.id) for claim in claims]
    assert [row.state is State.DONE for row in rows] == [n != 4 for n in range(8)]
    bad = rows[4]
    assert bad.state is State.FAILED
    assert bad.error is not None
    assert bad.error.startswith("outcome could not be stored: ")
    assert "out of range" in bad.error
    assert bad.attempts[0].outcome is Outcome.DONE
    check_row(bad)


def test_a_result_of_fifty_megabytes_is_survived(store):
    put(store, 2)
    first, second = store.claim("a", 2, None, now=NOW)
    huge = '"' + "x" * 50_000_000 + '"'
    assert len(store.finish([ending(first, result=huge), ending(second)])) == 2
    assert store.get(first.id).result == huge


def test_a_batch_is_as_large_as_one_call_can_write(store):
    put(store)
    claim = claim_one(store)
    small, large = ending(claim), ending(claim, result="x" * (3 << 20))
    assert len(store.batch([small] * 2000)) == 500
    assert len(store.batch(iter([small, large, large, small]))) == 2
    assert len(store.batch([ending(claim, result="x" * (30 << 20)), small])) == 1
    assert store.batch([]) == []


# -------------------------------------------------------------------------------------------- the price


def statements_of(store: Store) -> list[str]:
    seen: list[str] = []
    event.listen(
        store._transactions.open(),
        "before_cursor_execute",
        lambda c, cur, sql, *rest: seen.append(sql.split(None, 1)[0]),
    )
    return seen


def test_statements_per_call(other_store, disk):
    """A statement more on the hot path is a decision, to be made here."""
    store = other_store
    put(store, 40)
    seen = statements_of(store)

    def price(call) -> int:
        seen.clear()
        call()
        return len(seen)

    claims = store.claim("b", 20, None, now=NOW)
    many = [ending(claim) for claim in claims]
    # BEGIN counts, COMMIT does not
    # where the session is ours one statement is a whole turn
    assert price(lambda: store.turn("b", many[:10], 10, None)) == (4 if disk.is_file else 1)
    assert price(lambda: store.turn("b", many[10:], 10, ["default"])) == (4 if disk.is_file else 1)
    assert price(lambda: store.claim("b", 10, None)) == 2
    assert price(lambda: store.next_due(None)) == 1
    assert price(lambda: store.renew("b", 60)) == 2
    assert price(lambda: store.get(claims[0].id)) == 1
    assert price(lambda: put(store)) == 1
    assert price(lambda: put(store, 1000)) == 1
    assert price(lambda: put(store, 2001)) == 4


def plan(store: Store, call) -> str:
    """How the database goes about the last statement that `call` sends."""
    engine = store._transactions.open()
    sent: list[tuple] = []

    def note(connection, cursor, sql, parameters, *rest) -> None:
        sent.append((sql, parameters, connection.get_execution_options()))

    event.listen(engine, "before_cursor_execute", note)
    call()
    event.remove(engine, "before_cursor_execute", note)
    sql, parameters, options = sent[-1]
    with engine.connect() as connection:
        # with the settings of the planner that the call had
        connection.execution_options(**options)
        if engine.dialect.name == "sqlite":
            return "\n".join(
                row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
            )
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {sql}", parameters))


def test_the_index_of_live_rows_serves_the_queue(store):
    """Freshly filled, so that the statistics know nothing, and with a history that must not be read."""
    put(store, 3000)
    for _ in range(2):
        claims = store.claim("a", 1000, None, now=NOW)
        store.finish([ending(claim) for claim in claims])
    claims = store.claim("a", 5, None, now=NOW)
    plans = {
        "claim": plan(store, lambda: store.claim("a", 10, None, now=NOW)),
        "claim of queues": plan(store, lambda: store.claim("a", 10, ["x", "y"], now=NOW)),
        "due": plan(store, lambda: store.next_due(None)),
        "busy": plan(store, lambda: store.busy("a")),
        "orphans": plan(store, lambda: store.orphans(10)),
    }
    finish = plan(store, lambda: store.finish([ending(claim) for claim in claims]))
    assert "Seq Scan on forkrunner_jobs" not in finish, finish
    assert "SCAN forkrunner_jobs" not in finish, finish
    for name, text in plans.items():
        assert "forkrunner_jobs_live" in text, f"{name}:\n{text}"
    for name in ("claim", "claim of queues"):
        # in the order of the index
        assert "Sort" not in plans[name], plans[name]
        assert "TEMP B-TREE" not in plans[name], plans[name]


# ---------------------------------------------------------------------------------- a model of the whole


class Model(RuleBasedStateMachine):
    """The store beside a dict; time is a number of seconds that only grows."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        clear(self.store)
        self.rows: dict[str, dict] = {}
        self.claims: list[Claim] = []
        self.seconds = 0

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def pick(self, number: int) -> Claim:
        return self.claims[number % len(self.claims)]

    def held(self, claim: Claim) -> dict | None:
        """The model's row, if this claim still holds it."""
        row = self.rows[claim.id]
        mine = (row["state"], row["attempt"], row["supervisor"]) == (
            State.BUSY,
            claim.attempt,
            claim.supervisor,
        )
        return row if mine else None

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds):
        self.seconds += seconds

    @rule(count=st.integers(1, 3), priority=st.integers(-1, 1), delay=st.sampled_from([0, 0, 20]))
    def enqueue(self, count, priority, delay):
        for job in put(self.store, count, now=self.now, priority=priority, delay=delay):
            self.rows[job] = {
                "state": State.PENDING, "priority": priority, "due": self.seconds + delay,
                "attempt": 0, "supervisor": None, "tries": 0, "cancel": False, "attempts": 0,
            }  # fmt: skip

    @rule(supervisor=st.sampled_from("ab"), limit=st.integers(1, 4))
    def claim(self, supervisor, limit):
        due = sorted(
            (-row["priority"], row["due"], job)
            for job, row in self.rows.items()
            if row["state"] is State.PENDING and row["due"] <= self.seconds
        )
        claims = self.store.claim(supervisor, limit, None, now=self.now)
        assert [claim.id for claim in claims] == [job for *_, job in due[:limit]]
        for claim in claims:
            row = self.rows[claim.id]
            row.update(state=State.BUSY, supervisor=supervisor, attempt=row["attempt"] + 1)
            assert (claim.attempt, claim.tries) == (row["attempt"], row["tries"])
        self.claims += claims

    @precondition(lambda self: self.claims)
    @rule(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=4), state=st.sampled_from(list(NEXT)))
    def finish(self, numbers, state):
        claims = list({claim.id: claim for claim in map(self.pick, numbers)}.values())
        expected = {}
        for claim in claims:
            row = self.held(claim)
            if row:
                to = State.CANCELLED if state is not State.DONE and row["cancel"] else state
                expected[claim.id, claim.attempt] = to
                row.update(state=to, supervisor=None, tries=NEXT[state].tries, attempts=row["attempts"] + 1)
                if state is State.PENDING:
                    row["due"] = self.seconds + 30
        assert self.store.finish([ending(claim, state) for claim in claims], now=self.now) == expected

    @precondition(lambda self: self.claims)
    @rule(number=st.integers(0, 99))
    def release(self, number):
        claim = self.pick(number)
        row = self.held(claim)
        if row:
            row.update(state=State.PENDING, supervisor=None, attempt=row["attempt"] - 1)
            # a number given back is given out again: who held it must not come back with it
            self.claims = [c for c in self.claims if (c.id, c.attempt) != (claim.id, claim.attempt)]
        assert self.store.release(claim.supervisor, [(claim.id, claim.attempt)]) == bool(row)

    @precondition(lambda self: self.rows)
    @rule(number=st.integers(0, 99))
    def cancel(self, number):
        job = list(self.rows)[number % len(self.rows)]
        row = self.rows[job]
        if row["state"] in ENDED:
            with pytest.raises(JobStateError):
                self.store.cancel(job, None, now=self.now)
            return
        if row["state"] is State.PENDING:
            row["state"] = State.CANCELLED
        row["cancel"] = True
        assert self.store.cancel(job, None, now=self.now) is row["state"]

    @precondition(lambda self: self.rows)
    @rule(number=st.integers(0, 99))
    def retry(self, number):
        job = list(self.rows)[number % len(self.rows)]
        row = self.rows[job]
        if row["state"] not in ENDED:
            with pytest.raises(JobStateError):
                self.store.retry(job, now=self.now)
            return
        row.update(state=State.PENDING, due=self.seconds, tries=0, cancel=False)
        self.store.retry(job, now=self.now)

    @invariant()
    def same(self):
        rows = {row.id: row for row in self.store.list(limit=1000)}
        assert rows.keys() == self.rows.keys()
        for job, row in rows.items():
            model = self.rows[job]
            assert {
                name: getattr(row, name) for name in ("state", "priority", "attempt", "supervisor", "tries")
            } == {name: model[name] for name in ("state", "priority", "attempt", "supervisor", "tries")}
            assert row.run_at == NOW + timedelta(seconds=model["due"]) or row.state in ENDED
            check_row(row)
        noted = [row["attempts"] for row in self.rows.values()]
        assert sum(noted) == sum(len(self.store.get(job).attempts) for job in self.rows)


def test_any_order_of_calls_agrees_with_a_model(store, other_store):
    machine = type("Machine", (Model,), {"store": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


# -------------------------------------------------------------------------------------------- forks


def in_child(work) -> None:
    """Run `work` in a fork of this process and assert that it raised nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001  # to be told by the parent
            os.write(writer, repr(error).encode()[:4000])
        finally:
            os._exit(status)
    os.close(writer)
    said = os.read(reader, 4000)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert status == 0, said.decode()


def test_a_forked_child_gets_connections_of_its_own(store):
    before = put(store)

    def work() -> None:
        import gc

        assert [row.id for row in store.list()] == before
        put(store, 5)
        store.close()
        gc.collect()

    in_child(work)
    put(store, 3)
    assert store.counts() == {"default": {"pending": 9}}


def test_inherited_connections_are_never_closed_by_a_child(store, disk):
    """SQLite: closing one takes the parent's log away. PostgreSQL: the session must end with the parent."""
    put(store)
    name = "jobs.db" if disk.is_file else "socket:"
    theirs = {fd: target for fd, target in descriptors().items() if name in target}
    if disk.is_server:
        mine = {connection.fileno() for connection, _ in store._database.opened}
        theirs = {fd: target for fd, target in theirs.items() if fd in mine}
    assert theirs

    def work() -> None:
        import gc

        store.list()
        store.close()
        store.list()
        gc.collect()
        expected = theirs if disk.is_file else dict.fromkeys(theirs, "/dev/null")
        assert {fd: descriptors().get(fd) for fd in theirs} == expected

    in_child(work)


def descriptors() -> dict[int, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the one that listed
    return found


def test_a_child_that_never_uses_the_store_harms_nothing(store):
    engine = store._transactions.open()
    with engine.begin() as connection:
        connection.execute(sa.update(jobs).values(priority=1))

        def work() -> None:
            import gc

            store.close()
            gc.collect()

        in_child(work)
        connection.execute(sa.select(sa.func.count()).select_from(jobs)).scalar()
    put(store)
    in_child(lambda: None)
    assert len(store.list()) == 1


# ---------------------------------------------------------------------------- the database in trouble


def test_an_unreachable_database_is_unavailable(tmp_path):
    for url in ("postgresql://u:secret@127.0.0.1:1/x", f"sqlite:///{tmp_path}/none/jobs.db"):
        store = Store(url)
        with pytest.raises(StoreUnavailable) as caught:
            store.counts()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense"])
def test_a_url_of_nothing_that_can_hold_jobs(url):
    with pytest.raises(StoreError, match="expected"):
        Store(url)


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_after_a_restart_a_client_notices_nothing_and_a_supervisor_little(
    postgres: Postgres, postgresql_database: str, mode: str
):
    store, supervisor = Store(postgresql_database), Store(postgresql_database, role="supervisor")
    store.migrate()
    supervisor.register(supervisor_row("a"), 60)
    put(store, 2)
    postgres.restart(mode)
    put(store, 1)
    assert len(supervisor.claim("a", 5, None, now=NOW)) == 3
    postgres.stop()
    for each in (store, supervisor):
        with pytest.raises(StoreUnavailable):
            each.counts()
    postgres.start()
    assert store.counts() == supervisor.counts() == {"default": {"busy": 3}}
    store.close()
    supervisor.close()


def test_an_alarm_of_somebody_else_is_no_silent_server():
    with alarm(LONG):
        os.kill(os.getpid(), signal.SIGALRM)
    with pytest.raises(Silent), alarm(0.05):
        threading.Event().wait(LONG)


def test_a_silent_server_is_left_in_time(postgres: Postgres, postgresql_database: str):
    store = Store(postgresql_database, role="supervisor", timeout=1.0)
    store.migrate()
    store.register(supervisor_row("a"), 60)
    put(store, 3)
    before = signal.getsignal(signal.SIGALRM)
    postgres.pause()
    for _ in range(2):  # on a connection that is there, and on a new one
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.claim("a", 5, None, now=NOW)
        assert 0.5 < time.monotonic() - began < 2.5
    postgres.resume()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    # what the server made of the statement when it woke is known by asking
    wait_until(lambda: len(store.busy("a")) + len(store.claim("a", 5, None, now=NOW)) == 3)
    store.close()


def test_somebody_elses_lock_is_waited_for_a_while_only(postgres: Postgres, postgresql_database: str):
    store = Store(postgresql_database, role="supervisor", timeout=1.0)
    store.migrate()
    store.register(supervisor_row("a"), 60)
    name = postgresql_database.rpartition("/")[2]
    with postgres.connect(name) as connection, connection.transaction():
        connection.execute("LOCK TABLE forkrunner_jobs")
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.claim("a", 1, None)
    assert store.claim("a", 1, None) == []
    store.close()


def test_a_terminated_backend_is_replaced(postgres: Postgres, postgresql_database: str):
    store = Store(postgresql_database, role="supervisor")
    store.migrate()
    store.register(supervisor_row("a"), 60)
    for _ in range(3):
        with postgres.connect() as connection:
            name = postgresql_database.rpartition("/")[2]
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
        assert store.renew("a", 60)
    store.close()


@pytest.fixture
def proxied(postgres: Postgres, postgresql_database: str) -> Iterator[tuple[CuttingProxy, Store]]:
    parts = urlsplit(postgresql_database)
    proxy = CuttingProxy(parts.port or 0)
    store = Store(postgresql_database.replace(f":{parts.port}/", f":{proxy.port}/"), role="supervisor")
    store.migrate()
    store.register(supervisor_row("a"), 60)
    yield proxy, store
    store.close()
    proxy.close()


def test_a_commit_whose_answer_is_lost_may_be_repeated(proxied):
    proxy, store = proxied
    put(store, 2)
    # the claim: rows are busy that we know nothing of
    proxy.arm("COMMIT\0")
    with pytest.raises(StoreUnavailable):
        store.claim("a", 1, None, now=NOW)
    assert proxy.cuts == 1
    ((job, attempt),) = store.busy("a")
    assert store.release("a", [(job, attempt)]) == 1
    # the outcome
    (claim,) = store.claim("a", 1, None, now=NOW)
    proxy.arm("COMMIT\0")
    with pytest.raises(StoreUnavailable):
        store.finish([ending(claim)])
    assert store.finish([ending(claim)]) == {}
    row = store.get(claim.id)
    assert (row.state, len(row.attempts)) == (State.DONE, 1)
    # an enqueue repeats by itself
    before = sum(store.counts()["default"].values())
    proxy.arm("INSERT INTO forkrunner_jobs")
    put(store)
    assert proxy.cuts == 3
    assert sum(store.counts()["default"].values()) == before + 1


def threshold_of(connection) -> int | None:
    return connection.connection.dbapi_connection.prepare_threshold


def test_statements_are_prepared_where_the_backend_is_ours(postgresql_database):
    for role, threshold in (("supervisor", 1), ("client", None)):
        store = Store(postgresql_database, role=role)
        store.migrate()
        with store._transactions.open().connect() as connection:
            assert threshold_of(connection) == threshold
        store.close()


def test_what_is_given_back_wakes_the_others(postgresql_database):
    """They may have found nothing while it was claimed, and sleep until somebody tells them of a job."""
    store = Store(postgresql_database, role="supervisor")
    store.migrate()
    store.register(supervisor_row("a"), 60)
    put(store, 2)
    claims = store.claim("a", 2, None, now=NOW)
    with psycopg.connect(postgresql_database.replace("+psycopg", ""), autocommit=True) as other:
        other.execute(f"LISTEN {CHANNEL}")
        assert store.release("a", [(claim.id, claim.attempt) for claim in claims]) == 2
        assert [told.channel for told in other.notifies(timeout=LONG, stop_after=1)] == [CHANNEL]
    store.close()


def test_through_pgbouncer_in_transaction_mode(pgbouncer, postgresql_database):
    url = pgbouncer.url(postgresql_database.rpartition("/")[2])
    store, supervisor = Store(url), Store(url, role="supervisor")
    store.migrate()
    supervisor.register(supervisor_row("a"), 60)
    put(store, 200)
    done = 0
    again: list[Claim] = []
    while claims := supervisor.claim("a", 16, None, now=NOW):
        done += len(supervisor.finish([ending(claim) for claim in claims]))
        ended, again = supervisor.turn("a", [ending(claim) for claim in again], 16, None, now=NOW)
        done += len(ended)
    done += len(supervisor.finish([ending(claim) for claim in again]))
    assert done == 200
    with supervisor._transactions.open().connect() as connection:
        # its backends change under us: nothing may be prepared in one of them
        assert threshold_of(connection) is None
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "4500ms"
    store.close()
    supervisor.close()


# ------------------------------------------------------------------------------------------ SQLite


def test_a_locked_file_is_said_to_be_busy_at_once(sqlite_database: str, tmp_path: Path):
    supervisor = Store(sqlite_database, role="supervisor")
    supervisor.register(supervisor_row("a"), 60)
    holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        supervisor.claim("a", 1, None)
    assert caught.value.facts["busy"]
    assert time.monotonic() - began < 2.5
    # reading needs no lock
    assert supervisor.counts() == {}
    client = Store(sqlite_database)
    threading.Timer(0.3, lambda: holder.interrupt()).start()
    thread = threading.Thread(target=put, args=(client,))
    thread.start()
    time.sleep(0.3)  # it must not give up in that time
    assert thread.is_alive()
    holder.execute("COMMIT")
    thread.join(LONG)
    assert len(client.list()) == 1
    holder.close()
    client.close()
    supervisor.close()


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_a_file_that_goes_away_is_noticed(sqlite_database: str, tmp_path: Path, fate: str):
    store = Store(sqlite_database)
    put(store)
    path = tmp_path / "jobs.db"
    os.rename(path, tmp_path / "gone.db")
    if fate == "replaced":
        path.touch()
    with pytest.raises(StoreError, match=f"was {fate}") as caught:
        put(store)
    assert not isinstance(caught.value, StoreUnavailable)
    # said once: then the file that is there now is used
    for name in ("gone.db-wal", "jobs.db-wal", "jobs.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    put(store)
    assert len(store.list()) == 1
    store.close()


@pytest.mark.parametrize("kind", sorted(sqlite_files._NETWORK.values()))
def test_a_network_file_system_is_refused(sqlite_database: str, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(sqlite_files, "_network_filesystem", lambda folder: kind)
    with pytest.raises(StoreError, match=kind):
        Store(sqlite_database).counts()


def test_a_local_file_system_is_not(tmp_path: Path):
    assert sqlite_files._network_filesystem(str(tmp_path)) is None


def test_durability_by_role(sqlite_database: str):
    for role, level in (("client", 2), ("supervisor", 1)):
        store = Store(sqlite_database, role=role)
        store.check_schema()
        with store._transactions.open().connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        store.close()


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = Store("sqlite:///jobs.db")
    monkeypatch.chdir("/")
    put(store)
    assert (tmp_path / "jobs.db").exists()
    store.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(sqlite_database: str):
    store = Store(sqlite_database)
    put(store, 10)
    with store._transactions.open().connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="full"):
        put(store, 1000)
    assert store.counts() == {"default": {"pending": 10}}
    with store._transactions.open().connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    put(store, 1000)
    assert store.counts() == {"default": {"pending": 1010}}
    store.close()
