"""Each signal in each situation, sent to the real command.

Every case ends by asking what is left: rows, exit status, processes, files.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from forkrunner.job import ENDED, Outcome, State
from tests.running import LONG, Bed, check_gone, cpu_of, tree_of, unshared
from tests.support import Cli, alive, need, wait_until

# ---------------------------------------------------------------------------------- titles


def test_ps_shows_who_does_what(sqlite_bed: Bed) -> None:
    """The same words as in the picture of the architecture page."""
    bed = sqlite_bed
    supervisor = bed.start(slots=3, spares=1)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    supervisor.wait_ps("forkrunner: spare$")
    supervisor.wait_ps(r"forkrunner: supervisor jobs:runner \[1 busy, \d+ done/s\]$")
    picture = {found.pid: found for found in supervisor.ps()}
    shape = [
        (found.title, picture[found.ppid].title if found.ppid in picture else None)
        for found in picture.values()
    ]
    boss, mold = "forkrunner: supervisor jobs:runner [1 busy, ", "forkrunner: mold jobs:runner gen 1"
    assert any(title.startswith(boss) and parent is None for title, parent in shape), shape
    rest = sorted((title, parent) for title, parent in shape if not title.startswith(boss))
    assert [title for title, _ in rest] == [
        f"forkrunner: job {id} hold attempt 1",
        mold,
        "forkrunner: spare",
    ]
    assert [parent for _, parent in rest][0::2] == [mold, mold]
    assert str(rest[1][1]).startswith(boss)
    bed.let_go()
    assert bed.ended(id).state == State.DONE
    bed.stop(supervisor)


# ------------------------------------------------------------------------------------ TERM


def test_term_while_idle(bed: Bed) -> None:
    supervisor = bed.start()
    bed.stop(supervisor)
    assert re.search("stopped: 0 attempts ended here, 0 left", supervisor.log)


def test_term_while_the_application_is_imported(cli: Cli, sqlite_database: str) -> None:
    source = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(1000)\n"
    with Bed(cli, sqlite_database, source=source) as bed:
        supervisor = bed.start(ready=False)
        wait_until((bed.folder / "importing").exists, LONG)
        bed.stop(supervisor)


def test_term_while_a_job_runs_and_finishes(bed: Bed) -> None:
    supervisor = bed.start()
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    supervisor.signal(signal.SIGTERM)
    supervisor.wait_log(r"stopping \(SIGTERM\): 1 running, waiting up to 30 s", LONG)
    late = bed.put("work")
    bed.let_go()
    assert supervisor.wait(LONG) == 0
    bed.stop()
    row = bed.row(id)
    assert (row.state, row.result) == (State.DONE, '"let go"')
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.DONE]
    assert bed.row(late).state == State.PENDING, "nothing is claimed any more"
    assert bed.noted("start", late) == []
    bed.check_history([id])


@pytest.mark.parametrize("task", ["hold", "hold_against_signals"])
def test_term_while_a_job_runs_past_the_grace_period(bed: Bed, task: str) -> None:
    """It is given back and counts as nothing."""
    supervisor = bed.start(grace_period=0.3, grace=0.3)
    id = bed.put(task, {"path": bed.path("never")})
    (start,) = bed.wait_noted("start", id)
    bed.stop(supervisor)
    row = bed.row(id)
    assert (row.state, row.attempt, row.tries, row.crashes) == (State.PENDING, 1, 0, 0)
    (attempt,) = row.attempts
    assert (attempt.outcome, attempt.pid) == (Outcome.REQUEUED, start.pid)
    assert attempt.signal == ("SIGTERM" if task == "hold" else "SIGKILL")
    assert "ended with its supervisor (the grace period is over)" in str(attempt.error_message)
    # and it is run again by whoever comes
    bed.let_go("never")
    supervisor = bed.start()
    assert bed.ended(id).tries == 1
    bed.check_history([id])
    bed.stop(supervisor)


def test_term_five_times(bed: Bed) -> None:
    """The second one kills; no more is needed, and no more harms."""
    supervisor = bed.start(grace_period=1000, grace=0.5)
    id = bed.put("hold", {"path": bed.path("never")})
    bed.wait_noted("start", id)
    supervisor.signal(signal.SIGTERM)
    supervisor.wait_log("stopping", LONG)
    for _ in range(4):
        supervisor.signal(signal.SIGTERM)
    bed.stop(supervisor)
    row = bed.row(id)
    assert (row.state, row.tries, row.crashes) == (State.PENDING, 0, 1)
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST]


def test_term_until_it_is_gone(sqlite_bed: Bed) -> None:
    """An orderly end stays one, also for a signal that comes while the interpreter itself ends."""
    bed = sqlite_bed
    supervisor = bed.start()
    while supervisor.running:
        supervisor.signal(signal.SIGTERM)
    bed.stop(supervisor)


# -------------------------------------------------------------------------------- INT, QUIT


@pytest.mark.parametrize("group", [False, True])
def test_int_while_jobs_run(bed: Bed, group: bool) -> None:
    """The running ones are ended now and counted; Ctrl-C in a terminal, which is for the group, does the same."""
    supervisor = bed.start(slots=3, grace_period=1000, grace=0.5)
    id = bed.put("hold", {"path": bed.path("never")})
    stubborn = bed.put("hold_against_signals", {"path": bed.path("never")})
    once = bed.put("hold_once", {"path": bed.path("never")})
    bed.wait_noted("start", count=3)
    if group:
        os.killpg(supervisor.pid, signal.SIGINT)
        assert supervisor.wait(LONG) == 0
        bed.stop()
    else:
        bed.stop(supervisor, signum=signal.SIGINT)
    for job in (id, stubborn):
        row = bed.row(job)
        assert (row.state, row.tries, row.crashes) == (State.PENDING, 0, 1)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST]
    assert bed.row(once).state == State.FAILED
    assert "ended with its supervisor (SIGINT)" in str(bed.row(once).error)


def test_quit_while_jobs_run(bed: Bed) -> None:
    """The running ones are ended now and given back, which counts as nothing."""
    supervisor = bed.start(slots=2, grace_period=1000, grace=0.5)
    id = bed.put("hold", {"path": bed.path("never")})
    once = bed.put("hold_once", {"path": bed.path("never")})
    bed.wait_noted("start", count=2)
    waiting = bed.put("work")
    bed.stop(supervisor, signum=signal.SIGQUIT)
    row = bed.row(id)
    assert (row.state, row.attempt, row.tries, row.crashes) == (State.PENDING, 1, 0, 0)
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.REQUEUED]
    assert bed.row(once).state == State.FAILED, "it has run, and may not again"
    assert bed.row(waiting).attempt == 0


# -------------------------------------------------------------------------------- TSTP, CONT


def shown(bed: Bed) -> str:
    """Return what `status` says of the only supervisor, to people and to programs."""
    text, page = bed.cli.run("status", "jobs:runner").stdout, bed.cli.run("status", "jobs:runner", "--json")
    stage = str(page.json["supervisors"][0]["stage"])
    # it may change in between
    return stage if re.search(rf" jobs:runner +{stage} ", text) else text


def test_tstp_and_cont(bed: Bed) -> None:
    supervisor = bed.start(slots=2)
    first = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", first)
    assert shown(bed) == "serving"
    supervisor.signal(signal.SIGTSTP)
    supervisor.wait_log("quiet", LONG)
    supervisor.wait_ps(r"forkrunner: supervisor jobs:runner \[quiet, 1 busy, \d+ done/s\]$")
    wait_until(lambda: shown(bed) == "quiet")
    second = bed.put("work")
    # what writes this ending would claim the other job too: a slot was free all the time
    bed.let_go()
    assert bed.ended(first).state == State.DONE
    assert bed.row(second).state == State.PENDING
    supervisor.signal(signal.SIGCONT)
    assert bed.ended(second).state == State.DONE
    supervisor.wait_ps(r"forkrunner: supervisor jobs:runner \[\d busy, \d+ done/s\]$")
    wait_until(lambda: shown(bed) == "serving")
    bed.check_history([first, second])
    bed.stop(supervisor)


def test_tstp_while_idle_and_term_while_quiet_are_shown(sqlite_bed: Bed) -> None:
    """Nothing else makes it look at its title or renew its lease."""
    bed = sqlite_bed
    supervisor = bed.start(lease=600)
    supervisor.signal(signal.SIGTSTP)
    supervisor.wait_ps(r"forkrunner: supervisor jobs:runner \[quiet, 0 busy, 0 done/s\]$")
    wait_until(lambda: shown(bed) == "quiet")
    _, mold, _ = tree_of(supervisor)
    os.kill(mold, signal.SIGKILL)
    supervisor.wait_log("mold 1 died", LONG)
    assert shown(bed) == "quiet", "without a mold too"
    supervisor.signal(signal.SIGCONT)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    wait_until(lambda: shown(bed) == "serving")
    supervisor.signal(signal.SIGTERM)
    supervisor.wait_ps(r"forkrunner: supervisor jobs:runner \[stopping, 1 busy, \d+ done/s\]$")
    wait_until(lambda: shown(bed) == "stopping")
    bed.let_go()
    assert supervisor.wait(LONG) == 0
    bed.stop()


# ------------------------------------------------------------------- what orders nothing


def test_usr1_and_alarms_while_jobs_run(bed: Bed) -> None:
    """By default they would end it as KILL does. All the time, so that they meet calls of the store too."""
    supervisor = bed.start(slots=2)
    supervisor.signal(signal.SIGUSR1)
    supervisor.wait_log("SIGUSR1 is ignored: there is no log file to open again")
    ids = bed.enqueue("work", {"seconds": 0.01}, count=60)
    while bed.row(ids[-1]).state not in ENDED:
        for _ in range(20):
            supervisor.signal(signal.SIGALRM)
    assert {bed.ended(id).state for id in ids} == {State.DONE}
    assert "SIGALRM" not in supervisor.log
    assert "database" not in re.sub("runs jobs:runner on .*", "", supervisor.log)
    bed.check_history(ids)
    bed.stop(supervisor)


def test_alarms_until_it_is_gone(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    supervisor.signal(signal.SIGTERM)
    while supervisor.running:
        supervisor.signal(signal.SIGALRM)
    bed.stop(supervisor)


# ------------------------------------------------------------------------------------- KILL


def test_kill_the_supervisor_while_jobs_run(bed: Bed) -> None:
    """Nothing of it is left running, so whoever comes on this host takes its jobs back at once."""
    supervisor = bed.start(slots=3, lease=600)
    path = bed.path("go")
    ids = [bed.put("hold", {"path": path}), bed.put("hold_against_signals", {"path": path})]
    once = bed.put("hold_once", {"path": path})
    bed.wait_noted("start", count=3)
    family = [found.pid for found in supervisor.ps()]
    supervisor.signal(signal.SIGKILL)
    assert supervisor.wait(LONG) == -signal.SIGKILL
    supervisor.wait_gone()
    check_gone(family)
    assert {bed.row(id).state for id in [*ids, once]} == {State.BUSY}
    bed.let_go()
    supervisor = bed.start(slots=3, lease=600)
    for id in ids:
        row = bed.ended(id)
        assert (row.state, row.tries, row.crashes) == (State.DONE, 1, 1)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST, Outcome.DONE]
        assert row.attempts[0].supervisor != row.attempts[1].supervisor
    row = bed.ended(once)
    assert (row.state, len(row.attempts)) == (State.FAILED, 1)
    assert "its supervisor died" in str(row.error)
    supervisor.wait_log("3 jobs of a dead supervisor are taken back", LONG)
    bed.check_history(ids)
    bed.stop(supervisor)


def test_kill_the_supervisor_of_a_job_that_has_changed_its_user(sqlite_bed: Bed) -> None:
    """The kernel forgets the tie to its mold then: it lives on, until the next supervisor of this host is started."""
    need("root", os.geteuid() == 0, "only root may change its user")
    bed = sqlite_bed
    first = bed.start()
    id = bed.put("hold_as_somebody_else", options={"max_crashes": 1})
    (start,) = bed.wait_noted("start", id)
    wait_until(lambda: "Uid:\t65534" in Path(f"/proc/{start.pid}/status").read_text())
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    wait_until(lambda: [found.pid for found in first.ps()] == [start.pid], message="only it is left")
    second = bed.start()
    check_gone([start.pid])
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.LOST]
    bed.stop(second)


def test_kill_a_supervisor_that_is_not_registered_yet(sqlite_bed: Bed) -> None:
    """Nobody but the next one of the same database would ever remove its life file."""
    bed = sqlite_bed
    with contextlib.closing(sqlite3.connect(bed.database[10:], isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        killed = bed.start(ready=False)
        (left,) = wait_until(lambda: [*bed.runtime.glob("*.life")])
        wait_until(left.read_text)
        killed.signal(signal.SIGKILL)
        killed.wait_gone()
    assert bed.store.supervisors() == []
    (bed.runtime / "of-another-database.life").write_text("forkrunner-0123456789abcdef")
    process = bed.start()
    wait_until(lambda: not left.exists(), message=f"{left} to be removed")
    assert len([*bed.runtime.glob("*.life")]) == 2
    (bed.runtime / "of-another-database.life").unlink()
    bed.stop(process)


def test_kill_the_mold_while_jobs_run(bed: Bed) -> None:
    supervisor = bed.start(slots=2)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
    bed.wait_noted("start", count=2)
    _, mold, children = tree_of(supervisor)
    os.kill(mold, signal.SIGKILL)
    supervisor.wait_log(r"mold 1 died \(SIGKILL\) with 2 attempts", LONG)
    wait_until(lambda: not any(alive(pid) for pid in [mold, *children]), LONG)
    supervisor.wait_ps("forkrunner: mold jobs:runner gen 2$", LONG)
    bed.let_go()
    for id in ids:
        row = bed.ended(id)
        assert (row.state, row.tries, row.crashes) == (State.DONE, 1, 1)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST, Outcome.DONE]
        assert "its mold died (SIGKILL)" in str(row.attempts[0].error_message)
    bed.check_history(ids)
    bed.stop(supervisor)


def test_jobs_that_kill_their_mold_again_and_again(sqlite_bed: Bed) -> None:
    """Each as often as its cap allows; a new mold is there at once each time, so that others do not wait for that."""
    bed = sqlite_bed
    poison = bed.enqueue("kill_others", {"generations": 1}, count=2, priority=1)
    others = bed.enqueue("work", count=3)
    start = time.monotonic()
    supervisor = bed.start(slots=1)
    for id in others:
        assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.DONE]
    # with pauses it would be 1 + 2 + 4 + 8 + 16
    assert time.monotonic() - start < 25
    for id in poison:
        row = bed.row(id)
        assert (row.state, row.crashes) == (State.FAILED, 3)
    said = re.findall(r"mold \d died \(SIGKILL\) with 1 attempts; (.*)", supervisor.log)
    assert said == ["a new one is started"] * 6
    bed.stop(supervisor)


def test_kill_molds_before_they_have_a_job(sqlite_bed: Bed) -> None:
    """The second is not replaced at once, and the log says when: one that cannot live must not make the loop spin."""
    bed = sqlite_bed
    supervisor = bed.start()
    for generation, pause in ((1, ""), (2, " in 1 s")):
        (mold,) = supervisor.wait_ps(f"forkrunner: mold jobs:runner gen {generation}$")
        if generation > 1:
            supervisor.wait_log(f"mold {generation} is up", LONG)
        os.kill(mold, signal.SIGKILL)
        supervisor.wait_log(f"mold {generation} died .* a new one is started{pause}$", LONG)
    supervisor.wait_log("mold 3 is up", LONG)
    bed.stop(supervisor)


def test_kill_the_mold_of_a_quiet_supervisor(sqlite_bed: Bed) -> None:
    """Nothing is to be started, so no new mold is, and waiting for CONT costs nothing."""
    bed = sqlite_bed
    supervisor = bed.start()
    supervisor.signal(signal.SIGTSTP)
    supervisor.wait_log("quiet", LONG)
    _, mold, _ = tree_of(supervisor)
    os.kill(mold, signal.SIGKILL)
    supervisor.wait_log("mold 1 died", LONG)
    id = bed.put("work")
    before, end = cpu_of(supervisor.pid), time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > end)
    assert cpu_of(supervisor.pid) - before < 0.5
    assert bed.row(id).state == State.PENDING
    supervisor.signal(signal.SIGCONT)
    assert bed.ended(id).state == State.DONE
    bed.stop(supervisor)


def test_kill_a_child_while_it_runs(bed: Bed) -> None:
    supervisor = bed.start(slots=2)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2, options={"backoff": 0.05})
    (start, _) = bed.wait_noted("start", count=2)
    os.kill(start.pid, signal.SIGKILL)
    bed.wait_noted("start", start.job, 2)
    bed.let_go()
    row = bed.ended(start.job)
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.CRASHED, Outcome.DONE]
    assert row.attempts[0].signal == "SIGKILL"
    (other,) = set(ids) - {start.job}
    assert len(bed.ended(other).attempts) == 1  # which of the two sees the file first is anybody's guess
    bed.check_history(ids)
    bed.stop(supervisor)


def test_kill_the_spares(sqlite_bed: Bed) -> None:
    """They are replaced, and no job notices."""
    bed = sqlite_bed
    supervisor = bed.start(spares=2)
    spares = supervisor.wait_ps("forkrunner: spare$", LONG, count=2)
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
    ids = bed.enqueue("work", count=3)
    for id in ids:
        assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.DONE]
    wait_until(lambda: set(supervisor.pids("forkrunner: spare$")).isdisjoint(spares), LONG)
    supervisor.wait_ps("forkrunner: spare$", LONG, count=2)
    bed.stop(supervisor)


def test_kill_everybody_at_once(bed: Bed) -> None:
    supervisor = bed.start(slots=2, lease=600)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
    bed.wait_noted("start", count=2)
    for found in reversed(supervisor.ps()):
        os.kill(found.pid, signal.SIGKILL)
    supervisor.wait_gone()
    bed.let_go()
    supervisor = bed.start(slots=2, lease=600)
    for id in ids:
        assert bed.ended(id).state == State.DONE
    bed.check_history(ids)
    bed.stop(supervisor)


def test_kill_a_stopped_child(bed: Bed) -> None:
    """A stop by signal does not reach the ladder: TERM waits, KILL does not."""
    supervisor = bed.start(grace=0.3)
    id = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 0.5, "max_attempts": 1})
    (start,) = bed.wait_noted("start", id)
    os.kill(start.pid, signal.SIGSTOP)
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.TIMED_OUT]
    bed.stop(supervisor)


# --------------------------------------------------------------------- what the starter did


STARTERS = {
    "SIGCHLD ignored": "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "all signals ignored": "import signal\n"
    "for n in signal.valid_signals():\n"
    "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)",
    "all signals blocked": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "no descriptors": "os.closerange(3, 256); os.close(0)",
}


@pytest.mark.core
@pytest.mark.parametrize("starter", STARTERS)
def test_the_starter_left_things_odd(sqlite_bed: Bed, starter: str) -> None:
    """Exit statuses are right, time limits strike, children die when they are told to, TERM ends it all."""
    bed = sqlite_bed
    supervisor = bed.start(before=STARTERS[starter], grace=5)
    good = bed.enqueue("work", count=5)
    bad = bed.put("leave_at_once", {"status": 9})
    late = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 0.3})
    for id in good:
        assert bed.ended(id).state == State.DONE
    assert bed.ended(bad).attempts[0].exit_status == 9
    (attempt,) = bed.ended(late).attempts
    assert (attempt.outcome, attempt.signal) == (Outcome.TIMED_OUT, "SIGTERM")
    running = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", running)
    bed.let_go()
    bed.stop(supervisor)
    bed.check_history([*good, running])


def test_as_the_init_of_a_container(bed: Bed) -> None:
    """As PID 1 it must reap what falls to it, and no signal has a default action there."""
    outer = bed.start(before=unshared())
    assert "(pid 1, " in outer.log
    (inner,) = outer.pids("forkrunner: supervisor")
    ids = bed.enqueue("work", count=3)
    daemons = bed.put("leave_many_behind", {"count": 2})
    for id in [*ids, daemons]:
        assert bed.ended(id).state == State.DONE
    late = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 0.3})
    assert bed.ended(late).attempts[0].outcome == Outcome.TIMED_OUT
    assert [found for found in outer.ps() if found.state == "Z"] == []
    running = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", running)
    os.kill(inner, signal.SIGTERM)
    outer.wait_log("stopping", LONG)
    bed.let_go()
    assert outer.wait(LONG) == 0
    bed.stop()
    bed.check_history([*ids, running])


def test_kill_as_the_init_of_a_container(sqlite_bed: Bed) -> None:
    """Its namespace dies with it. Another container's pids prove nothing: its jobs wait for the end of the lease."""
    bed = sqlite_bed
    short: dict[str, Any] = {"lease": 4, "store_timeout": 0.9}
    outer = bed.start(before=unshared(), **short)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    (inner,) = outer.pids("forkrunner: supervisor")
    os.kill(inner, signal.SIGKILL)
    outer.wait_gone(LONG)
    (dead,) = bed.store.supervisors()
    supervisor = bed.start(**short)
    bed.let_go()
    row = bed.ended(id)
    assert [attempt.outcome for attempt in row.attempts] == [Outcome.LOST, Outcome.DONE]
    assert row.attempts[1].started_at is not None
    assert dead.lease_until is not None
    assert row.attempts[1].started_at >= dead.lease_until
    bed.stop(supervisor)
