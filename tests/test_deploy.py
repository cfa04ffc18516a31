"""What a deploy, and a database that is silent for a while, must not do: lose a job, fail one, run one twice, stop the work."""

from __future__ import annotations

import itertools
import re
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from forkrunner.job import Outcome, State
from tests.running import LONG, SOURCE, Bed
from tests.servers import Postgres
from tests.support import Cli, alive, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Jobs per second, and for how long, seconds.
RATE, LENGTH = 40, 30.0


@pytest.mark.timing
def test_three_hups_and_one_usr2_under_load(cli: Cli, postgresql_database: str) -> None:
    """30 s of steady load; one HUP finds a syntax error. 0 lost, 0 failed, no second attempt, no gap of a second."""
    with Bed(cli, postgresql_database) as bed:
        supervisor = bed.start(slots=4, log_level="info")
        source = SOURCE.read_text()
        steps = [
            (5.0, signal.SIGHUP, source + "\n# two\n", "mold 2 is up"),
            (11.0, signal.SIGHUP, "def :\n", "SyntaxError.*; mold 2 goes on"),
            (17.0, signal.SIGUSR2, None, "has taken over"),
            (23.0, signal.SIGHUP, source + "\n# four\n", "mold 4 is up"),
        ]
        ids: list[str] = []
        words: list[str] = []
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < LENGTH:
            if steps and now >= steps[0][0]:
                _, signum, code, word = steps.pop(0)
                words.append(word)
                if code is not None:
                    cli.write(code)
                supervisor.signal(signum)
            due = int(now * RATE) - len(ids)
            if due > 0:
                ids += bed.enqueue("work", {"seconds": 0.02}, count=due)
            time.sleep(0.01)  # jobs come at a rate: it is time that passes here, and nothing is waited for
        assert steps == []
        bed.wait_counts(done=len(ids), timeout=LONG)
        for word in words:
            assert re.search(word, supervisor.log), word
        assert len(re.findall(r"reloading \(SIGHUP\)", supervisor.log)) == 3
        bed.stop(supervisor)
        bed.check_history(ids)
        assert bed.query("select outcome, count(*) from forkrunner_attempts group by outcome") == [
            ("done", len(ids))
        ]
        assert bed.query("select max(attempt), max(tries), max(crashes) from forkrunner_jobs") == [(1, 1, 0)]
        claims = sorted(moment for (moment,) in bed.query("select started_at from forkrunner_jobs"))
        gap = max(after - before for before, after in itertools.pairwise(claims))
        print(f"{len(ids)} jobs, longest gap between two claims {gap.total_seconds():.3f} s")
        assert gap < timedelta(seconds=1)


def test_postgresql_is_stopped_for_20_seconds_while_jobs_run(
    cli: Cli, postgresql_database: str, postgres: Postgres
) -> None:
    """Time limits strike when they are due, outcomes are written when it is back, nothing is lost or run twice."""
    with Bed(cli, postgresql_database) as bed:
        supervisor = bed.start(slots=6, lease=60, store_timeout=2, grace=1)
        limits = [4.0, 9.0, 15.0]
        limited = [
            bed.put("hold", {"path": bed.path("never")}, options={"timeout": limit}) for limit in limits
        ]
        short = bed.enqueue("work", {"seconds": 6.0}, count=1)
        long = bed.enqueue("work", {"seconds": 25.0}, count=1)
        queued = bed.enqueue("work", count=10)
        bed.wait_noted("end", count=10)
        bed.wait_counts(done=10)
        started = {line.job: line for line in bed.noted("start")}
        postgres.pause()
        paused = time.monotonic()
        for id, limit in zip(limited, limits, strict=True):
            wait_until(lambda id=id: not alive(started[id].pid), LONG, interval=0.01)  # type: ignore[misc]
            late = time.monotonic() - started[id].at - limit
            # the stacks get 0.2 s before TERM
            assert -0.1 < late < 0.5, f"{limit:g} s: {late:+.3f} s"
        assert time.monotonic() - paused < 20
        wait_until(lambda: time.monotonic() > paused + 20, LONG)
        back = datetime.now(UTC)
        assert "timed_out" not in supervisor.log
        postgres.resume()
        for id in limited:
            row = bed.ended(id)
            assert (row.state, [attempt.outcome for attempt in row.attempts]) == (
                State.FAILED,
                [Outcome.TIMED_OUT],
            )
            assert row.attempts[0].finished_at is not None
            assert row.attempts[0].finished_at < back
        for id in [*short, *long]:
            assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.DONE]
        after = bed.enqueue("work", count=5)
        bed.wait_counts(done=17)
        bed.check_history([*short, *long, *queued, *after])
        assert len(bed.noted("start")) == 20, "none was started twice"
        bed.stop(supervisor)
