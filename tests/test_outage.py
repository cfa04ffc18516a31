"""The database's absence, as bookkeeping."""

from __future__ import annotations

from forkrunner.outage import FIRST, LAST, LOCKED, Outage


def test_it_is_told_once_and_tried_ever_more_rarely():
    outage, now, pauses = Outage(), 100.0, []
    told = 0
    for _ in range(8):
        told += outage.failed(now)
        pauses.append(outage.retry_at - now)
        now = outage.retry_at
    assert told == 1
    assert [round(pause, 6) for pause in pauses[:3]] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert round(pauses[-1], 6) == LAST


def test_when_it_is_back_it_says_for_how_long_it_was_away():
    outage = Outage()
    assert outage.worked(5.0) is None
    outage.failed(10.0)
    assert outage.worked(13.5) == 3.5
    assert outage.worked(14.0) is None
    assert outage.retry_at == 0.0


def test_a_locked_file_is_no_outage():
    outage = Outage()
    outage.locked(10.0)
    assert outage.retry_at == 10.0 + LOCKED
    assert outage.since is None
