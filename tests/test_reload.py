"""HUP in each situation: the new code takes the new jobs, the old one finishes its own; code that does not import changes nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
from pathlib import Path

import pytest

from forkrunner.job import Outcome, State
from tests.running import LONG, SOURCE, Bed, tree_of
from tests.support import Cli, Process, wait_until

#: What an application returns tells which code it was.
CODE = """

@runner.task
def which(path: str = "") -> str:
    begin()
    while path and not os.path.exists(path):
        time.sleep(0.01)
    note("end")
    return "CODE"
"""


def source(code: str) -> str:
    return SOURCE.read_text() + CODE.replace("CODE", code)


@pytest.fixture
def application() -> str:
    return source("old")


def reload(bed: Bed, supervisor: Process, code: str, generation: int) -> None:
    bed.cli.write(code)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log(f"mold {generation} is up", LONG)


def returned(bed: Bed, id: str) -> object:
    row = bed.ended(id)
    assert (row.state, row.tries, row.crashes, len(row.attempts)) == (State.DONE, 1, 0, 1), row
    return json.loads(row.result or "")


def test_hup_while_idle(bed: Bed) -> None:
    supervisor = bed.start()
    assert returned(bed, bed.put("which")) == "old"
    reload(bed, supervisor, source("new"), 2)
    assert returned(bed, bed.put("which")) == "new"
    supervisor.wait_log("mold 1 has finished its last job", LONG)
    assert len(supervisor.pids("forkrunner: mold")) == 1
    bed.stop(supervisor)


def test_hup_while_jobs_run(bed: Bed) -> None:
    """They end on the code that they began with, however long that takes; meanwhile the new one works."""
    supervisor = bed.start(slots=4, lease=4, store_timeout=0.9)
    go = bed.path("go")
    old = bed.enqueue("which", {"path": go}, count=2)
    bed.wait_noted("start", count=2)
    reload(bed, supervisor, source("new"), 2)
    assert "mold 1 takes no more jobs and finishes 2" in supervisor.log
    supervisor.wait_ps(r"forkrunner: mold jobs:runner gen 1 \(draining\)$", LONG)
    supervisor.wait_ps("forkrunner: mold jobs:runner gen 2$", LONG)
    new = bed.enqueue("which", count=5)
    assert {returned(bed, id) for id in new} == {"new"}
    reload(bed, supervisor, source("newest"), 3)
    newest = bed.put("which", {"path": go})
    bed.wait_noted("start", newest)
    # longer than the lease: it is prolonged for those that drain too
    begun = bed.noted("start", old[0])[0].at
    wait_until(lambda: bed.put("work") and bed.ledger()[-1].at > begun + 5, LONG, interval=0.3)
    assert bed.row(old[0]).state == State.BUSY
    bed.let_go()
    assert [returned(bed, id) for id in (*old, newest)] == ["old", "old", "newest"]
    supervisor.wait_log("mold 1 has finished its last job", LONG)
    bed.stop(supervisor)
    bed.check_history([*old, *new, newest])


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("def :\n", r"SyntaxError: invalid syntax \(jobs.py, line 1\)"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: .*, at jobs.py:1"),
        ("import os; os._exit(3)\n", r"the process ended while it was imported \(exit status 3\)"),
        (
            "class E(Exception):\n    def __str__(self): raise E\nraise E\n",
            r"importing it raised E: <no message: E.__str__ raised E>",
        ),
        ("runner = 1\n", "expected a forkrunner.Runner called 'runner'"),
    ],
)
def test_hup_with_code_that_does_not_import(bed: Bed, broken: str, why: str) -> None:
    supervisor = bed.start()
    running = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", running)
    _, mold, _ = tree_of(supervisor)
    bed.cli.write(broken)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log(f"the application does not import: .*{why}.*; mold 1 goes on", LONG)
    wait_until(lambda: supervisor.pids("forkrunner: mold") == [mold], LONG)
    assert returned(bed, bed.put("which")) == "old"
    # and mended in the same way
    reload(bed, supervisor, source("new"), 3)
    assert returned(bed, bed.put("which")) == "new"
    bed.let_go()
    assert returned(bed, running) == "old"
    bed.stop(supervisor)


def test_hup_with_settings_that_do_not_fit(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    (bed.folder / "forkrunner.toml").write_text("grace = 'long'\n")
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("grace: expected a duration .*; mold 1 goes on", LONG)
    (bed.folder / "forkrunner.toml").write_text("lease = 60\nspares = 1\n")
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("lease stays 30s: another value counts from the next start on", LONG)
    supervisor.wait_log("mold 3 is up", LONG)
    assert returned(bed, bed.put("which")) == "old"
    bed.stop(supervisor)


def test_hup_many_times_under_load(bed: Bed) -> None:
    """Also while a mold starts: none is left over, no job is lost, none runs twice."""
    supervisor = bed.start(slots=4, log_level="info")
    ids = bed.enqueue("work", {"seconds": 0.01}, count=300)
    for part in range(1, 11):
        bed.wait_noted("end", count=part * 20)
        supervisor.signal(signal.SIGHUP)
    bed.wait_counts(done=300)
    wait_until(lambda: len(supervisor.pids("forkrunner: mold")) == 1, LONG)
    bed.stop(supervisor)
    bed.check_history(ids)
    assert bed.query("select distinct outcome from forkrunner_attempts") == [("done",)]
    assert bed.query("select count(*) from forkrunner_attempts") == [(300,)]


def test_hup_while_the_application_is_imported_first(cli: Cli, sqlite_database: str) -> None:
    """The code that it began to import may be old already."""
    waits = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(1000)\n"
    with Bed(cli, sqlite_database, source=waits) as bed:
        supervisor = bed.start(ready=False)
        wait_until((bed.folder / "importing").exists, LONG)
        bed.cli.write(source("new"))
        supervisor.signal(signal.SIGHUP)
        supervisor.wait_log("forkrunner .* runs jobs:runner", LONG)
        assert returned(bed, bed.put("which")) == "new"
        bed.stop(supervisor)


def test_hup_while_quiet(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    supervisor.signal(signal.SIGTSTP)
    supervisor.wait_log("quiet: no more jobs", LONG)
    id = bed.put("which")
    reload(bed, supervisor, source("new"), 2)
    assert bed.row(id).state == State.PENDING
    supervisor.signal(signal.SIGCONT)
    assert returned(bed, id) == "new"
    bed.stop(supervisor)


def test_hup_while_stopping(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor, id = bed.stopping("which")
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("SIGHUP is ignored: it is stopping", LONG)
    bed.let_go()
    assert returned(bed, id) == "old"
    assert supervisor.wait(LONG) == 0
    bed.stop()


def test_term_while_a_mold_drains(bed: Bed) -> None:
    """Its jobs are waited for, and after the grace period given back, as all others."""
    supervisor = bed.start(slots=3, grace_period=1, grace=0.3)
    old = bed.put("which", {"path": bed.path("never")})
    bed.wait_noted("start", old)
    reload(bed, supervisor, source("new"), 2)
    new = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", new)
    supervisor.signal(signal.SIGTERM)
    supervisor.wait_log("stopping .* 2 running", LONG)
    bed.let_go()
    assert returned(bed, new) == "new"
    assert supervisor.wait(LONG) == 0
    bed.stop()
    assert [attempt.outcome for attempt in bed.row(old).attempts] == [Outcome.REQUEUED]


def test_cancel_while_a_mold_drains(bed: Bed) -> None:
    supervisor = bed.start(grace=0.3)
    id = bed.put("which", {"path": bed.path("never")})
    bed.wait_noted("start", id)
    reload(bed, supervisor, source("new"), 2)
    bed.store.cancel(id, "no more")
    assert bed.ended(id).state == State.CANCELLED
    supervisor.wait_log("mold 1 has finished its last job", LONG)
    bed.stop(supervisor)


@pytest.mark.parametrize("generation", [1, 2])
def test_kill_one_of_two_molds(bed: Bed, generation: int) -> None:
    """Only its own attempts are lost; the other one, whether it drains or serves, does not notice."""
    supervisor = bed.start(slots=2)
    path = {"path": bed.path("go")}
    old = bed.put("which", path)
    bed.wait_noted("start", old)
    reload(bed, supervisor, source("new"), 2)
    new = bed.put("which", path)
    bed.wait_noted("start", new)
    (mold,) = supervisor.pids(rf"forkrunner: mold jobs:runner gen {generation}\b")
    os.kill(mold, signal.SIGKILL)
    supervisor.wait_log(rf"mold {generation} died \(SIGKILL\) with 1 attempts", LONG)
    lost, kept = (old, new) if generation == 1 else (new, old)
    bed.wait_noted("start", lost, 2)
    bed.let_go()
    assert [attempt.outcome for attempt in bed.ended(lost).attempts] == [Outcome.LOST, Outcome.DONE]
    assert [attempt.outcome for attempt in bed.ended(kept).attempts] == [Outcome.DONE]
    bed.stop(supervisor)
    bed.check_history([old, new])


def test_hup_after_a_link_in_the_path_was_changed(cli: Cli, sqlite_database: str) -> None:
    """A release in a folder of its own, `current` leading to it: the name counts, not where it led at the start."""
    with Bed(cli, sqlite_database) as bed:
        for name in ("one", "two"):
            (bed.folder / name).mkdir()
            (bed.folder / name / "jobs.py").write_text(source(name))
        (bed.folder / "jobs.py").unlink()
        current: Path = bed.folder / "current"
        current.symlink_to("one")
        enter = f"os.chdir({str(current)!r}); os.environ['PWD'] = {str(current)!r}"
        supervisor = bed.start(before=enter)
        assert returned(bed, bed.put("which")) == "one"
        (bed.folder / "next").symlink_to("two")
        os.replace(bed.folder / "next", current)
        supervisor.signal(signal.SIGHUP)
        supervisor.wait_log("mold 2 is up", LONG)
        assert returned(bed, bed.put("which")) == "two"
        bed.stop(supervisor)


def test_hup_because_the_terminal_was_closed(sqlite_bed: Bed) -> None:
    """Then nobody wants new code: it stops."""
    bed = sqlite_bed
    ours, theirs = pty.openpty()
    take = f"fd = os.open({os.ttyname(theirs)!r}, os.O_RDWR); os.dup2(fd, 0)"
    supervisor = bed.start(before=take)
    os.close(theirs)
    os.close(ours)  # from now on what it had is no terminal
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log(r"stopping \(SIGHUP\)", LONG)
    assert supervisor.wait(LONG) == 0
    supervisor.wait_gone()
    assert not re.search("reloading", supervisor.log)
    bed.nothing_left()
