"""The supervisor's memory of its molds: fed with facts, asked what to do. Nothing is started."""

from __future__ import annotations

from typing import Any

import pytest

from forkrunner.molds import FIRST_PAUSE, FOREVER, LAST_PAUSE, RENEW_AGAIN, YOUNG, Molds, Stage


class Link:
    """Stands for the channel, of which only the pid is looked at."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def chosen(shop: Shop, task: str = "work") -> Any:
    return shop.molds.choose(task)


class Shop:
    """Starts what is due, as the foundry does, without a process."""

    def __init__(self, *targets: str) -> None:
        self.molds = Molds(list(targets))
        self.now = 1000.0

    def start(self, **how: Any) -> list[Any]:
        started = []
        for place in self.molds.missing(self.now, **how):
            self.molds.generation += 1
            link: Any = Link(self.molds.generation + 100)
            started.append(self.molds.start(place, self.molds.generation, link, self.now))
        return started

    def up(self, mold: Any, task: str = "work") -> Any:
        return self.molds.up(mold, {task: {}}, self.now)

    def serve(self) -> list[Any]:
        """Bring all up."""
        started = self.start()
        for mold in started:
            self.up(mold)
        return started

    def picture(self) -> list[str]:
        return [f"{mold.generation} {mold.stage}" for mold in self.molds]


@pytest.fixture
def shop() -> Shop:
    return Shop("jobs:runner")


def test_at_first_each_place_is_empty_and_due(shop: Shop) -> None:
    assert shop.molds.next_due() == 0
    assert (shop.molds.ready(), shop.molds.take_jobs()) == (False, False)
    (mold,) = shop.start()
    assert shop.start() == []
    assert shop.molds.next_due() == FOREVER
    assert chosen(shop) is None, "it has not told its tasks yet"
    assert shop.up(mold) is None
    assert (shop.molds.ready(), shop.molds.take_jobs()) == (True, True)
    assert chosen(shop) is mold


def test_a_reload_replaces_when_the_new_one_is_up(shop: Shop) -> None:
    (old,) = shop.serve()
    assert shop.molds.reload() == []
    (new,) = shop.start()
    assert chosen(shop) is old
    assert shop.picture() == ["1 serving", "2 starting"]
    assert [shop.up(new, "other")] == [old]
    assert shop.picture() == ["1 draining", "2 serving"]
    assert chosen(shop, "other") is new
    shop.molds.died(old, shop.now)
    assert shop.picture() == ["2 serving"]
    assert shop.molds.next_due() == FOREVER
    assert shop.molds.tasks() == {"other": {}}


def test_a_reload_that_fails_changes_nothing(shop: Shop) -> None:
    (old,) = shop.serve()
    shop.molds.reload()
    (new,) = shop.start()
    shop.molds.discard(new)
    shop.molds.give_up("jobs:runner", shop.now)
    shop.molds.died(new, shop.now)
    assert shop.picture() == ["1 serving"]
    assert chosen(shop) is old
    assert shop.molds.next_due() == FOREVER


def test_an_import_that_takes_long_is_told_of_at_growing_intervals(shop: Shop) -> None:
    shop.serve()
    shop.molds.reload()
    (new,) = shop.start()
    begin = shop.now
    told = []
    while (due := shop.molds.importing_due(100.0)) < begin + 100:
        slow, dead = shop.molds.importing(due, 100.0)
        assert (slow, dead) == ([new], [])
        told.append(due - begin)
    assert told == [10, 20, 40, 80]
    assert shop.molds.importing(due, 100.0) == ([], [new])
    new.why = "it was killed"
    assert shop.molds.importing(due, 100.0) == ([], [])
    assert shop.molds.importing_due(100.0) == FOREVER


def test_a_second_reload_gives_up_the_one_that_starts(shop: Shop) -> None:
    shop.serve()
    shop.molds.reload()
    (stale,) = shop.start()
    assert shop.molds.reload() == [stale]
    assert stale.stage is Stage.DISCARDED
    assert shop.start() == [], "not before the other one is dead"
    shop.molds.died(stale, shop.now)
    (fresh,) = shop.start()
    assert fresh.generation == 3


def test_the_one_that_serves_dies_while_its_successor_starts(shop: Shop) -> None:
    (old,) = shop.serve()
    shop.molds.reload()
    (new,) = shop.start()
    shop.molds.died(old, shop.now)
    assert shop.molds.next_due() == FOREVER
    assert shop.up(new) is None
    assert chosen(shop) is new


def test_what_cannot_live_is_started_ever_more_rarely(shop: Shop) -> None:
    pauses = []
    for _ in range(9):
        (mold,) = shop.serve()
        shop.molds.died(mold, shop.now)
        pauses.append(shop.molds.next_due() - shop.now)
        shop.now = shop.molds.next_due()
    assert pauses[:4] == [0, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LAST_PAUSE
    (mold,) = shop.serve()
    shop.now += YOUNG + 1
    shop.molds.died(mold, shop.now)
    assert shop.molds.next_due() == shop.now, "it has lived"


def test_what_dies_while_it_is_imported_is_started_ever_more_rarely_however_long_that_takes(
    shop: Shop,
) -> None:
    pauses = []
    for _ in range(4):
        (mold,) = shop.start()
        shop.now += 10 * YOUNG
        shop.molds.died(mold, shop.now)
        pauses.append(shop.molds.next_due() - shop.now)
        shop.now = shop.molds.next_due()
    assert pauses == [0, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]


def test_what_has_begun_a_job_is_replaced_at_once_however_young_it_dies(shop: Shop) -> None:
    """The job that has killed it is capped by itself, and others must not wait for it."""
    for _ in range(9):
        (mold,) = shop.serve()
        mold.jobs = 1
        shop.molds.died(mold, shop.now)
        assert shop.molds.next_due() == shop.now
        assert mold.place.pause(shop.now) == 0
    for pause in (0, FIRST_PAUSE):
        (mold,) = shop.serve()
        shop.molds.died(mold, shop.now)
        assert mold.place.pause(shop.now) == pause, "and what has not is not"


def test_jobs_go_to_the_mold_with_the_fewest() -> None:
    shop = Shop("jobs:runner", "jobs:runner")
    one, two = shop.serve()
    one.busy = 2
    assert chosen(shop) is two
    two.busy = 3
    assert chosen(shop) is one


def test_several_molds_are_reloaded_one_after_the_other() -> None:
    shop = Shop("jobs:runner", "jobs:runner")
    shop.serve()
    shop.molds.reload()
    (third,) = shop.start()
    assert shop.start() == []
    assert shop.molds.next_due() == FOREVER
    shop.up(third)
    assert shop.picture() == ["1 draining", "2 serving", "3 serving"]
    (fourth,) = shop.start()
    assert fourth.place is not third.place


def test_when_one_of_several_does_not_import_the_others_are_left_in_peace() -> None:
    shop = Shop("jobs:runner", "jobs:runner")
    shop.serve()
    shop.molds.reload()
    (third,) = shop.start()
    shop.molds.discard(third)
    shop.molds.give_up("jobs:runner", shop.now)
    shop.molds.died(third, shop.now)
    assert shop.molds.next_due() == FOREVER


def test_a_job_waits_for_the_molds_of_its_own_application() -> None:
    shop = Shop("jobs:runner", "shop:runner")
    jobs, other = shop.start()
    shop.up(jobs)
    shop.up(other, "sell")
    assert chosen(shop, "sell") is other
    assert chosen(shop) is jobs
    shop.molds.died(other, shop.now)
    assert chosen(shop, "sell") is None, "others would refuse it for good"
    assert chosen(shop, "nobody's") is jobs


def test_while_quiet_only_what_serves_is_replaced(shop: Shop) -> None:
    (mold,) = shop.serve()
    shop.molds.reload()
    (new,) = shop.start(quiet=True)
    shop.up(new)
    shop.molds.died(mold, shop.now)
    shop.molds.died(new, shop.now)
    assert shop.start(quiet=True) == []
    assert shop.molds.next_due(quiet=True) == FOREVER
    assert len(shop.start()) == 1


# ------------------------------------------------------------------------------- signs of life


def look(shop: Shop, seconds: float = 0.0) -> tuple[list[int], list[int]]:
    """Let time pass, and say which are asked and which are given up."""
    shop.now += seconds
    ask, dead = shop.molds.silent(shop.now, 9.0)
    return [mold.generation for mold in ask], [mold.generation for mold in dead]


def test_a_mold_that_says_nothing_is_asked_and_then_given_up(shop: Shop) -> None:
    shop.serve()
    assert look(shop, 2.9) == ([], [])
    assert look(shop, 0.1) == ([1], [])
    assert look(shop) == ([], []), "it is asked once"
    assert shop.molds.silence_due(9.0) == shop.now + 6
    assert look(shop, 5.9) == ([], [])
    assert look(shop, 0.1) == ([], [1])


def test_a_mold_that_answers_is_left_in_peace(shop: Shop) -> None:
    (mold,) = shop.serve()
    for _ in range(5):
        assert look(shop, 3) == ([1], [])
        shop.molds.heard(mold, shop.now)
    assert look(shop, 2.9) == ([], [])


def test_a_mold_that_imports_is_not_asked(shop: Shop) -> None:
    shop.start()
    assert look(shop, 1000) == ([], [])
    assert shop.molds.silence_due(9.0) == FOREVER


def test_one_that_drains_is_asked_too(shop: Shop) -> None:
    shop.serve()
    shop.molds.reload()
    (new,) = shop.start()
    shop.up(new)
    assert look(shop, 3) == ([1, 2], [])
    shop.molds.heard(new, shop.now)
    assert look(shop, 6) == ([2], [1])


def test_who_was_frozen_itself_blames_nobody(shop: Shop) -> None:
    shop.serve()
    assert look(shop, 3) == ([1], [])
    assert look(shop, 1000) == ([], []), "perhaps both were"
    assert look(shop, 5.9) == ([], [])
    assert look(shop, 0.1) == ([], [1])


# ------------------------------------------------------------------------------------ renewal


def test_a_renewal_that_fails_is_not_tried_all_the_time(shop: Shop) -> None:
    (old,) = shop.serve()
    assert shop.molds.renew(old, shop.now)
    assert not shop.molds.renew(old, shop.now)
    (new,) = shop.start()
    assert new.place.reason == "renewal"
    assert not shop.molds.renew(old, shop.now)
    shop.molds.discard(new)
    shop.molds.give_up("jobs:runner", shop.now)
    shop.molds.died(new, shop.now)
    assert not shop.molds.renew(old, shop.now + RENEW_AGAIN - 1)
    assert shop.molds.renew(old, shop.now + RENEW_AGAIN)


def test_a_reload_overrides_a_renewal(shop: Shop) -> None:
    (old,) = shop.serve()
    shop.molds.renew(old, shop.now)
    shop.molds.reload()
    assert old.place.reason == "reload"
    assert len(shop.start()) == 1
