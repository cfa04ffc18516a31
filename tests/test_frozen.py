"""A mold that hangs, one that grows old, and hosts of which one is frozen: who notices, how soon, what becomes of the jobs."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import pytest

from forkrunner.job import Outcome, State
from tests.running import LONG, SOURCE, Bed, check_gone, tree_of, unshared
from tests.servers import Postgres
from tests.support import Cli, alive, wait_until

# ----------------------------------------------------------------------------- a mold hangs


def test_stop_the_mold_while_jobs_run(bed: Bed) -> None:
    """It is missed, killed with its children, and replaced; its attempts are lost and count as crashes."""
    supervisor = bed.start(slots=2, mold_timeout=1)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
    bed.wait_noted("start", count=2)
    _, mold, children = tree_of(supervisor)
    stopped = time.monotonic()
    os.kill(mold, signal.SIGSTOP)
    supervisor.wait_log("mold 1 has said nothing for .* and is killed, with 2 attempts", LONG)
    supervisor.wait_log("mold 2 is up", LONG)
    assert time.monotonic() - stopped < 9, "mold_timeout is 10 s by default"
    check_gone([mold, *children])
    bed.let_go()
    for id in ids:
        row = bed.ended(id)
        assert (row.state, row.crashes) == (State.DONE, 1)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST, Outcome.DONE]
    bed.check_history(ids)
    bed.stop(supervisor)


@pytest.mark.parametrize("upgraded", [False, True])
def test_kill_a_stopped_mold_before_it_has_read_its_jobs(bed: Bed, upgraded: bool) -> None:
    """What it had not read never started: it is given back and counts as nothing, unlike what ran."""
    supervisor = bed.start(slots=4)
    runs = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", runs)
    mold = tree_of(supervisor)[1]
    os.kill(mold, signal.SIGSTOP)
    waits = [bed.put("work"), bed.put("work", options={"at_most_once": True})]
    for id in waits:
        supervisor.wait_log(f"work {id} started", LONG)
    if upgraded:
        supervisor.signal(signal.SIGUSR2)
        supervisor.wait_log("has taken over", LONG)
    os.kill(mold, signal.SIGKILL)
    for id in waits:
        row = bed.ended(id)
        assert (row.state, row.attempt, row.tries, row.crashes) == (State.DONE, 1, 1, 0)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.DONE]
    bed.wait_noted("start", runs, 2)
    bed.let_go()
    row = bed.ended(runs)
    assert (row.crashes, [attempt.outcome for attempt in row.attempts]) == (1, [Outcome.LOST, Outcome.DONE])
    bed.check_history([runs, *waits])
    bed.stop(supervisor)


def test_stop_the_mold_while_idle(sqlite_bed: Bed) -> None:
    """Found out before the next job has to wait for it."""
    bed = sqlite_bed
    supervisor = bed.start(mold_timeout=1)
    os.kill(tree_of(supervisor)[1], signal.SIGSTOP)
    supervisor.wait_log("mold 2 is up", LONG)
    assert [attempt.outcome for attempt in bed.ended(bed.put("work")).attempts] == [Outcome.DONE]
    bed.stop(supervisor)


# ------------------------------------------------------------------------- an import hangs


HANGS = """

def wait_for_ever():
    time.sleep(1000)

wait_for_ever()
"""


def test_an_import_that_hangs_at_a_reload(bed: Bed) -> None:
    """It is told where, killed in the end, and the old mold goes on; a reload of mended code is a reload as ever."""
    supervisor = bed.start(import_timeout=3)
    mended = SOURCE.read_text()
    bed.cli.write(mended + HANGS)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log(
        "mold 2 still imports the application after .*; it is at:\n(.*\n)*.*in wait_for_ever", LONG
    )
    assert bed.ended(bed.put("work")).state == State.DONE
    supervisor.wait_log("importing it took longer than import_timeout, 3 s; mold 1 goes on", LONG)
    assert bed.ended(bed.put("work")).state == State.DONE
    bed.cli.write(mended)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("mold 3 is up", LONG)
    bed.stop(supervisor)


def test_an_import_that_hangs_at_the_start(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    bed.cli.write(SOURCE.read_text() + HANGS)
    done = bed.cli.run("run", "jobs:runner", "--import-timeout", "2s", status=2)
    assert "in wait_for_ever" in done.stderr
    assert "jobs:runner: importing it took longer than import_timeout, 2 s" in done.stderr


def test_stop_a_mold_that_drains(bed: Bed) -> None:
    supervisor = bed.start(slots=2, mold_timeout=1)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    supervisor.signal(signal.SIGHUP)
    (old,) = supervisor.wait_ps(r"gen 1 \(draining\)", LONG)
    other = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", other)
    os.kill(old, signal.SIGSTOP)
    supervisor.wait_log("mold 1 died .* with 1 attempts; it was draining", LONG)
    bed.wait_noted("start", id, 2)
    bed.let_go()
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.LOST, Outcome.DONE]
    assert [attempt.outcome for attempt in bed.ended(other).attempts] == [Outcome.DONE]
    assert "mold 3" not in supervisor.log
    bed.stop(supervisor)


def test_stop_everybody_and_continue(bed: Bed) -> None:
    """A supervisor that was frozen with its molds blames none of them."""
    supervisor = bed.start(slots=2, mold_timeout=1)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    family = [found.pid for found in supervisor.ps()]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 3
    wait_until(lambda: time.monotonic() > end)
    supervisor.signal(signal.SIGCONT)
    thawed = time.monotonic()
    wait_until(lambda: time.monotonic() > thawed + 0.2)
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    bed.let_go()
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.DONE]
    bed.stop(supervisor)
    assert "died" not in supervisor.log


def test_usr2_and_then_the_mold_is_stopped(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start(mold_timeout=1)
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log("has taken over", LONG)
    os.kill(tree_of(supervisor)[1], signal.SIGSTOP)
    supervisor.wait_log("mold 2 is up", LONG)
    bed.stop(supervisor)


def test_a_stopped_mold_and_a_database_that_is_away(
    cli: Cli, postgresql_database: str, postgres: Postgres
) -> None:
    """Nobody renews the lease, and who should kill at its end cannot: the supervisor does it, before the end."""
    with Bed(cli, postgresql_database) as bed:
        # so patient that the silence alone would be noticed much later
        supervisor = bed.start(slots=1, lease=4, store_timeout=0.9, mold_timeout=60)
        id = bed.put("hold", {"path": bed.path("go")})
        (start,) = bed.wait_noted("start", id)
        lease = bed.store.supervisors()[0].lease_until
        os.kill(tree_of(supervisor)[1], signal.SIGSTOP)
        postgres.pause()
        wait_until(lambda: not alive(start.pid), LONG, "the end of the job")
        from datetime import UTC, datetime

        assert lease is not None
        # it may have been renewed once more before the pause
        assert (datetime.now(UTC) - lease).total_seconds() < 4 / 3
        supervisor.wait_log("mold 1 has not ended its jobs before the lease is over and is killed", LONG)
        postgres.resume()
        bed.let_go()
        assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.LOST, Outcome.DONE]
        bed.check_history([id])
        bed.stop(supervisor)


# ------------------------------------------------------------------------- a mold is renewed


def test_molds_are_renewed_after_so_many_jobs(bed: Bed) -> None:
    supervisor = bed.start(slots=2, mold_jobs=5)
    ids = bed.enqueue("work", {"seconds": 0.1}, count=40)
    supervisor.wait_log("mold 1 is renewed: it has had [5-9] jobs", LONG)
    bed.wait_counts(done=40)
    supervisor.wait_log("mold 3 is up", LONG)
    bed.stop(supervisor)
    bed.check_history(ids)
    assert bed.query("select distinct outcome from forkrunner_attempts") == [("done",)]


def test_molds_are_renewed_when_they_are_old(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start(mold_age=0.5)
    supervisor.wait_log(r"mold 1 is renewed: it is \d+ s old", LONG)
    supervisor.wait_log("mold 2 is up", LONG)
    bed.stop(supervisor)


GROWS = """
import threading


def grow():
    while not os.path.exists("grow"):
        time.sleep(0.01)
    growth.append(bytearray(os.urandom(1) * (40 << 20)))


growth = []
if not os.path.exists("grown"):
    open("grown", "w").close()
    threading.Thread(target=grow, daemon=True).start()
"""


def test_molds_are_renewed_when_they_grow(cli: Cli, sqlite_database: str) -> None:
    with Bed(cli, sqlite_database) as bed:
        bed.cli.write((bed.folder / "jobs.py").read_text() + GROWS)
        supervisor = bed.start("--allow-threads", mold_growth="30MB")
        # its loop has turned, and so it has looked at what the mold began with
        bed.ended(bed.put("noop"))
        (bed.folder / "grow").touch()
        supervisor.wait_log("mold 1 is renewed: it has grown by (39|4[0-9])", LONG)
        supervisor.wait_log("mold 2 is up", LONG)
        bed.stop(supervisor)


# ------------------------------------------------------------------------------- two hosts


def _another_host(bed: Bed) -> str:
    """Return what makes a supervisor believe that it runs on a host of its own: pids and runtime folder of its own."""
    return unshared(f"os.environ['FORKRUNNER_RUNTIME_DIR'] = {bed.path('other-runtime')!r}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_of_two_hosts_is_frozen_for_1_6_leases(cli: Cli, postgresql_database: str) -> None:
    """Jobs longer than the lease, many times over. The kernel's lock of each job says that none runs twice at a time."""
    lease = 3.0
    short: dict[str, Any] = {"lease": lease, "store_timeout": 0.7, "slots": 4, "grace": 0.3}
    with Bed(cli, postgresql_database) as bed:
        outer = bed.start(before=_another_host(bed), **short)
        (frozen,) = outer.pids("forkrunner: supervisor")
        other = bed.start(**short)
        ids = bed.enqueue("work", {"seconds": 1.5 * lease}, count=8, options={"max_crashes": 50})
        # and some that end while their supervisor cannot hear it
        ids += bed.enqueue("work", {"seconds": 0.4 * lease}, count=8, options={"max_crashes": 50})

        def begun() -> int:
            return len(re.findall(r"work \S+ started", outer.log))

        had = 0
        for turn in range(1, 4):
            # it has a lease again, and a job
            wait_until(lambda had=had: begun() > had)  # type: ignore[misc]
            os.kill(frozen, signal.SIGSTOP)
            since = time.monotonic()
            wait_until(lambda since=since: time.monotonic() > since + 1.6 * lease)  # type: ignore[misc]
            os.kill(frozen, signal.SIGCONT)
            wait_until(
                lambda turn=turn: len(re.findall("the lease was lost", outer.log)) >= turn,  # type: ignore[misc]
                LONG,
            )
            outer.wait_log(f"mold {turn + 1} is up", LONG)
            had = begun()
            # more than the other takes at once
            ids += bed.enqueue("work", {"seconds": 1.5 * lease}, count=2, options={"max_crashes": 50})
            ids += bed.enqueue("work", {"seconds": 0.3 * lease}, count=4, options={"max_crashes": 50})
        bed.wait_counts(done=len(ids), timeout=200)
        os.kill(frozen, signal.SIGTERM)
        assert outer.wait(LONG) == 0
        bed.stop(other)
        bed.check_history(ids)
        refused = re.findall("the row had moved on, so its outcome (\\S+) was not written", outer.log)
        assert refused, f"no late report was refused\n{outer.log}"
        assert bed.overlaps() == []
