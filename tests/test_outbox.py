"""Mails in the database, on each: made with the ending, folded, capped, sealed, marked, forgotten."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from forkrunner.ids import new_id
from forkrunner.internal import LOWEST, MAIL
from forkrunner.job import Next, Outcome, State
from forkrunner.records import Attempt, Ending, New, Notice, Row, SupervisorRow
from forkrunner.store import Store

NOW = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
INTERVAL = 600.0
#: When all that has an id of today is old.
AGES = datetime(2100, 1, 1, tzinfo=UTC)
FIRST = "00000000-0000-0000-0000-000000000000"


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = Store(database)
    store.migrate()
    store.register(SupervisorRow("a", "host", "boot", "1", 1, 1, "jobs:runner", 4, "0.1"), 60)
    yield store
    store.close()


def notice(fingerprint: str = "f", *, cap: int = 30, **facts) -> Notice:
    usual: dict[str, Any] = {"id": new_id(), "kind": "failure", "task": "convert", "reason": "ValueError: x"}
    usual |= {"recipients": None, "interval": INTERVAL, "options": "{}"}
    return Notice(**{**usual, "fingerprint": fingerprint, "cap": cap, **facts})


def fail(store: Store, *notices: Notice | None, now: datetime = NOW, twice: bool = False) -> list[str]:
    """Let a job fail for each notice, all in one transaction; return their ids."""
    ids = [new_id() for _ in notices]
    store.enqueue([New(id, "convert", "default", "{}") for id in ids], now=now)
    assert len(store.claim("a", len(ids), None, now=now)) == len(ids)
    endings = [
        Ending(
            Attempt(id, 1, Outcome.RAISED, "a", started_at=now, finished_at=now),
            Next(State.FAILED, 1, 0),
            error="ValueError: x",
            notice=one,
        )
        for id, one in zip(ids, notices, strict=True)
    ]
    for _ in range(1 + twice):
        store.finish(endings, now=now)
    return ids


def jobs_of(store: Store) -> list[Row]:
    """The jobs that send mail, the first one first."""
    return store.list(queue=MAIL, limit=1000)[::-1]


def test_a_mail_is_made_with_the_ending_and_once(store):
    one = notice()
    (job,) = fail(store, one, twice=True)
    (row,) = jobs_of(store)
    assert (row.id, row.task, row.queue, row.priority, row.state) == (
        one.id,
        MAIL,
        MAIL,
        LOWEST,
        State.PENDING,
    )
    assert row.run_at == NOW
    assert json.loads(row.arguments) == {"kind": "failure", "task": "convert", "job": job, "attempt": 1}
    (mail,) = store.outbox.seal(one.id, now=NOW)
    assert (mail.job_id, mail.attempt, mail.count, mail.reason) == (job, 1, 1, "ValueError: x")


def test_no_ending_no_mail(store):
    """A row that has moved on is not ended, and nobody is told that it was."""
    (job,) = fail(store, None)
    late = Ending(Attempt(job, 1, Outcome.RAISED, "a"), Next(State.FAILED, 1, 0), error="x", notice=notice())
    assert store.finish([late], now=NOW) == {}
    assert jobs_of(store) == []


def test_no_failure_no_mail(store):
    """Whoever has cancelled a job is not told that it failed; of one that was done all the same, that it is."""
    told = []
    for kind, outcome, state in (
        ("failure", Outcome.RAISED, State.FAILED),
        ("attempt", Outcome.RAISED, State.PENDING),
        ("success", Outcome.DONE, State.DONE),
    ):
        job = new_id()
        store.enqueue([New(job, "convert", "default", "{}")], now=NOW)
        store.claim("a", 1, None, now=NOW)
        store.cancel(job, now=NOW)
        mail = notice(kind, kind=kind)
        end = Ending(Attempt(job, 1, outcome, "a"), Next(state, 1, 0), result="1", error="x", notice=mail)
        store.turn("a", [end], 1, None, now=NOW)
        told += [row.id == mail.id for row in jobs_of(store)]
    assert told == [True]


def test_a_mail_that_the_database_refuses_does_not_keep_the_ending_from_being_written(store):
    (job,) = fail(store, notice(options="\0"))
    assert store.get(job).state is State.FAILED


def test_the_turn_writes_mails_too_and_claims_no_mail(store):
    one = notice()
    fail(store, one)
    fail(store, None)
    other = str(uuid.uuid4())
    store.enqueue([New(other, "convert", "default", "{}", priority=LOWEST + 1)], now=NOW)
    written, claims = store.turn("a", [], 10, None, now=NOW)
    assert (written, [claim.id for claim in claims]) == ({}, [other])
    ending = Ending(Attempt(other, 1, Outcome.RAISED, "a"), Next(State.FAILED, 1, 0), notice=notice("g"))
    assert store.turn("a", [ending], 10, None, now=NOW) == ({(other, 1): State.FAILED}, [])
    assert len(jobs_of(store)) == 2
    assert store.next_due(None, now=NOW) is None
    assert store.claim("a", 10, [MAIL], now=NOW) == []


def test_mails_are_claimed_by_themselves_one_at_a_time(store):
    fail(store, notice("f"), notice("g"))
    fail(store, notice("h"), now=later(5))
    found = []
    for _ in range(2):
        claims, _ = store.claim_mail("a", now=NOW)
        found += [claim.id for claim in claims]
    assert sorted(found) == sorted(row.id for row in jobs_of(store)[:2])
    claims, due = store.claim_mail("a", now=NOW)
    assert claims == []
    assert due == pytest.approx(5, abs=0.01)
    assert store.claim_mail("nobody", now=later(10)) == ([], pytest.approx(0))


def test_mails_are_in_no_list_of_the_users_jobs(store):
    (job,) = fail(store, notice())
    assert [row.id for row in store.list()] == [job]
    assert len(store.list(all=True)) == 2
    assert store.counts() == {"default": {"failed": 1}}


def test_what_fails_alike_is_one_mail_until_it_is_sealed(store):
    first = notice()
    ids = fail(store, first, notice(), notice())
    ids += fail(store, notice(), now=later(3))
    (row,) = jobs_of(store)
    (mail,) = store.outbox.seal(row.id, now=later(4))
    assert (mail.id, mail.count, mail.job_id, mail.last_job_id) == (first.id, 4, ids[0], ids[3])
    assert (mail.created_at, mail.last_at) == (NOW, later(3))
    assert store.outbox.seal(row.id, now=later(9)) == [mail], "sealed it does not change any more"


def test_the_next_mail_waits_for_the_interval_and_counts(store):
    fail(store, notice())
    (first,) = jobs_of(store)
    store.outbox.seal(first.id, now=later(1))
    for second in range(2, 60):
        fail(store, notice(), now=later(second))
    _, digest = jobs_of(store)
    assert digest.run_at == later(1 + INTERVAL)
    (mail,) = store.outbox.seal(digest.id, now=digest.run_at)
    assert mail.count == 58
    # long after: at once
    fail(store, notice(), now=later(2 * INTERVAL + 2))
    assert jobs_of(store)[-1].run_at == later(2 * INTERVAL + 2)


def test_a_different_failure_in_between_is_due_at_once(store):
    fail(store, notice())
    store.outbox.seal(jobs_of(store)[0].id, now=NOW)
    fail(store, notice(), notice("other"), now=later(1))
    assert sorted(row.run_at for row in jobs_of(store)) == [NOW, later(1), later(INTERVAL)]


def test_no_more_mails_in_an_hour_than_the_cap(store):
    for number in range(10):
        fail(store, notice(f"kind {number}", cap=4), now=later(number))
    fail(store, notice("kind 9", cap=4), notice("kind 9", cap=4), now=later(11))
    rows = jobs_of(store)
    assert [row.run_at for row in rows[:4]] == [later(number) for number in range(4)]
    (digest,) = rows[4:]
    assert digest.run_at == later(3600), "when the first of them is an hour old"
    head, *others = store.outbox.seal(digest.id, now=digest.run_at)
    assert (head.id, head.kind) == (digest.id, "digest")
    assert sorted((other.fingerprint, other.count) for other in others) == [
        (f"kind {number}", 3 if number == 9 else 1) for number in range(4, 10)
    ]
    assert all(other.told_in == head.id and other.sealed_at == digest.run_at for other in others)
    # what was told in it waits for its interval like all others
    fail(store, notice("kind 9", cap=4), now=digest.run_at + timedelta(seconds=1))
    assert jobs_of(store)[-1].run_at == digest.run_at + timedelta(seconds=INTERVAL)


def test_in_no_hour_are_more_mails_due_than_the_cap(store):
    cap = 3
    for number in range(60):
        now = later(number * 100)
        fail(store, notice(f"kind {number % 20}", cap=cap, interval=50.0), now=now)
        while (claims := store.claim_mail("a", now=now)[0]) != []:
            store.outbox.seal(claims[0].id, now=now)
    due = sorted(row.run_at for row in jobs_of(store))
    for moment in due:
        within = [one for one in due if moment <= one < moment + timedelta(hours=1)]
        assert len(within) <= cap, due


def test_those_of_other_recipients_are_told_apart(store):
    theirs = ("them@example.org",)
    fail(store, notice("1", cap=1))
    fail(store, notice("2", cap=1), notice("3", cap=1, recipients=theirs), now=later(1))
    digests = jobs_of(store)[1:]
    assert len(digests) == 2
    told = [store.outbox.seal(row.id, now=row.run_at) for row in digests]
    assert sorted((mails[0].recipients, mails[1].fingerprint) for mails in told) == [
        (json.dumps(list(theirs)), "3"),
        ("[]", "2"),
    ]
    assert [row.run_at for row in digests] == [later(3600), later(3601)], (
        "one of them has to wait for more room"
    )


def test_who_has_it_is_on_record(store):
    fail(store, notice())
    id = jobs_of(store)[0].id
    store.outbox.delivered(id, ["a@example.org"], all=False, now=NOW)
    (mail,) = store.outbox.seal(id, now=NOW)
    assert (mail.delivered, mail.sent_at) == ('["a@example.org"]', None)
    store.outbox.delivered(id, ["a@example.org", "b@example.org"], all=True, now=later(1))
    (mail,) = store.outbox.seal(id, now=NOW)
    assert (mail.delivered, mail.sent_at) == ('["a@example.org", "b@example.org"]', later(1))


def test_a_mail_of_nobody_is_nothing(store):
    assert store.outbox.seal(str(uuid.uuid4()), now=NOW) == []


def test_how_the_mails_stand(store):
    fail(store, notice("f"), notice("g"), notice("h"))
    for state in (State.FAILED, State.PENDING):
        (claim,), _ = store.claim_mail("a", now=NOW)
        attempt = Attempt(claim.id, 1, Outcome.RAISED, "a")
        store.finish([Ending(attempt, Next(state, 1, 0, 60.0), error=f"no server, {state}")], now=NOW)
    (claim,), _ = store.claim_mail("a", now=NOW)
    store.outbox.delivered(claim.id, ["a@example.org"], all=True, now=NOW)
    store.finish(
        [Ending(Attempt(claim.id, 1, Outcome.DONE, "a"), Next(State.DONE, 1, 0), result="null")], now=NOW
    )
    found = store.outbox.standing(now=NOW)
    assert (found.waiting, found.since, found.undeliverable, found.sent) == (1, NOW, 1, 1)
    assert found.error is not None
    assert found.error.startswith("no server")
    assert store.outbox.again(now=NOW) == list(found.ids)
    found = store.outbox.standing(now=NOW)
    assert (found.waiting, found.undeliverable) == (2, 0)


def test_old_mails_are_forgotten(store):
    fail(store, notice("f"), notice("g"))
    first, second = jobs_of(store)
    store.outbox.seal(first.id, now=NOW)
    assert store.outbox.forget(timedelta(days=1), now=later(3600)) == 0
    assert store.outbox.forget(timedelta(days=1), now=later(86_400 * 2)) == 1
    assert store.outbox.seal(first.id, now=NOW) == []
    assert len(store.outbox.seal(second.id, now=NOW)) == 1


def give_up(store: Store, id: str, how: str) -> None:
    """Let the job of a mail end, or go, before it has sealed its mail."""
    if how == "cancelled":
        store.cancel(id, now=NOW)
        return
    (claim,), _ = store.claim_mail("a", now=NOW)
    assert claim.id == id
    ending = Ending(Attempt(id, 1, Outcome.CRASHED, "a", finished_at=NOW), Next(State.FAILED, 1, 1))
    store.finish([ending], now=NOW)
    if how == "pruned":
        assert store.delete_old(1, 1, after=FIRST, limit=10, now=AGES).jobs == 2


@pytest.mark.parametrize("how", ["cancelled", "failed", "pruned"])
def test_a_mail_that_was_given_up_before_it_was_sealed_takes_no_more_failures(store, how):
    one, two = notice(), notice()
    fail(store, one)
    give_up(store, one.id, how)
    (job,) = fail(store, two, now=later(3))
    row = jobs_of(store)[-1]
    assert (row.id, row.state, row.run_at) == (two.id, State.PENDING, later(3)), "a new one, at once"
    fail(store, notice(), now=later(4))
    assert jobs_of(store)[-1].id == two.id
    (mail,) = store.outbox.seal(two.id, now=later(5))
    assert (mail.count, mail.job_id) == (2, job)
    # the interval counts from what was sent, not from what was not
    fail(store, notice(), now=later(6))
    assert jobs_of(store)[-1].run_at == later(5 + INTERVAL)


def test_a_mail_given_up_does_not_shorten_the_interval(store):
    fail(store, notice())
    store.outbox.seal(jobs_of(store)[0].id, now=NOW)
    fail(store, notice(), now=later(1))
    store.cancel(jobs_of(store)[-1].id, now=later(2))
    fail(store, notice(), now=later(3))
    assert jobs_of(store)[-1].run_at == later(INTERVAL)


def test_what_was_over_the_cap_is_mailed_when_its_digest_was_cancelled(store):
    fail(store, notice("1", cap=1))
    fail(store, notice("2", cap=1), now=later(1))
    old = jobs_of(store)[-1].id
    store.cancel(old, now=later(2))
    fail(store, notice("2", cap=1), now=later(3))
    new = jobs_of(store)[-1]
    assert (new.id == old, new.state) == (False, State.PENDING)
    head, told = store.outbox.seal(new.id, now=new.run_at)
    assert (head.kind, told.fingerprint, told.count) == ("digest", "2", 1)


def test_a_cancelled_mail_is_undeliverable_and_can_be_sent_again(store):
    one = notice()
    fail(store, one)
    store.cancel(one.id, "wrong address", actor="somebody", now=NOW)
    found = store.outbox.standing(now=NOW)
    assert (found.waiting, found.undeliverable, found.ids) == (0, 1, (one.id,))
    assert store.outbox.again(now=NOW) == [one.id]
    found = store.outbox.standing(now=NOW)
    assert (found.waiting, found.undeliverable) == (1, 0)
    row = store.get(one.id)
    assert (row.state, row.cancel_at, row.cancel_reason) == (State.PENDING, None, None)
    # it is open again
    fail(store, notice(), now=later(1))
    assert [row.id for row in jobs_of(store)] == [one.id]


def test_what_was_given_up_and_never_sealed_is_forgotten_too(store):
    fail(store, notice("f"), notice("g"))
    first, second = jobs_of(store)
    store.cancel(first.id, now=NOW)
    assert store.outbox.forget(timedelta(days=1), now=later(86_400 * 2)) == 1
    assert store.outbox.seal(first.id, now=NOW) == []
    assert len(store.outbox.seal(second.id, now=NOW)) == 1


def test_what_a_waiting_mail_tells_of_is_not_pruned(store):
    def pruned() -> int:
        counted = store.count_old(3600, 3600, now=AGES)
        assert store.delete_old(3600, 3600, after=FIRST, limit=10, now=AGES).jobs == counted
        return counted

    # the second one of "1" is neither first nor last; "2" is told of in a digest
    first, _, last = fail(store, notice("1", cap=1), notice("1", cap=1), notice("1", cap=1))
    (over,) = fail(store, notice("2", cap=1), now=later(1))
    mail, digest = jobs_of(store)
    assert pruned() == 1
    assert {row.id for row in store.list()} == {first, last, over}
    # busy
    (claim,), _ = store.claim_mail("a", now=NOW)
    assert (claim.id, pruned()) == (mail.id, 0)
    store.outbox.seal(mail.id, now=NOW)
    sent = Ending(Attempt(mail.id, 1, Outcome.DONE, "a", finished_at=NOW), Next(State.DONE, 1, 0))
    store.finish([sent], now=NOW)
    assert pruned() == 3, "the mail's own row with them"
    assert {row.id for row in store.list(all=True)} == {digest.id, over}
    store.cancel(digest.id, now=NOW)
    assert pruned() == 2
