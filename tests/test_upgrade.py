"""USR2 in each situation: a supervisor becomes a new release of itself, and neither mold nor job nor row notices."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

import forkrunner
from forkrunner import handover
from forkrunner.errors import HandoverError
from forkrunner.job import Outcome, State
from tests.running import LONG, Bed, tree_of
from tests.servers import Postgres
from tests.support import Cli, Process, alive, wait_until

TAKEN_OVER = r"has taken over from \S+ in (\S+) s: (\d+) running"


def upgrade(supervisor: Process, times: int = 1) -> None:
    supervisor.signal(signal.SIGUSR2)
    wait_until(lambda: len(re.findall(TAKEN_OVER, supervisor.log)) >= times, LONG, supervisor.describe())


def done_at_once(bed: Bed, ids: list[str]) -> None:
    for id in ids:
        row = bed.ended(id)
        assert (row.state, row.attempt, row.tries, row.crashes) == (State.DONE, 1, 1, 0)
        assert [attempt.outcome for attempt in row.attempts] == [Outcome.DONE]
    bed.check_history(ids)


def test_usr2_while_idle(bed: Bed) -> None:
    supervisor = bed.start()
    supervisor.wait_ps("forkrunner: spare$", LONG, count=2)
    before = tree_of(supervisor)
    lease = bed.store.supervisors()[0].id
    upgrade(supervisor)
    supervisor.wait_ps("forkrunner: supervisor", LONG)
    assert tree_of(supervisor) == before, "the same processes, the spares too"
    assert [row.id for row in bed.store.supervisors()] == [lease]
    done_at_once(bed, bed.enqueue("work", count=3))
    bed.stop(supervisor)


@pytest.mark.core
def test_usr2_while_jobs_run(bed: Bed) -> None:
    """Twice; they go on, those that were claimed before and those that are claimed after, and time limits strike."""
    supervisor = bed.start(slots=4, lease=8, store_timeout=1.9, grace=0.3)
    path = {"path": bed.path("go")}
    ids = [bed.put("hold", path)]
    limited = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 3})
    started = bed.wait_noted("start", count=2)
    upgrade(supervisor)
    ids.append(bed.put("hold", path))
    bed.wait_noted("start", count=3)
    upgrade(supervisor, 2)
    assert [attempt.outcome for attempt in bed.ended(limited).attempts] == [Outcome.TIMED_OUT]
    doomed = bed.put("hold", {"path": bed.path("never")})
    bed.wait_noted("start", doomed)
    bed.store.cancel(doomed, "no more")
    assert bed.ended(doomed).state == State.CANCELLED
    assert alive(next(line.pid for line in started if line.job == ids[0]))
    bed.let_go()
    done_at_once(bed, ids)
    bed.stop(supervisor)
    assert len(supervisor.pids("forkrunner")) == 0


def test_usr2_under_load(bed: Bed) -> None:
    """Claims, reports and endings are under way each time; none is lost, none is done twice."""
    supervisor = bed.start(slots=4, log_level="info")
    ids = bed.enqueue("work", {"seconds": 0.01}, count=400)
    for part in range(1, 5):
        bed.wait_noted("end", count=part * 60)
        upgrade(supervisor, part)
    bed.wait_counts(done=400)
    bed.stop(supervisor)
    bed.check_history(ids)
    assert bed.query("select outcome, count(*) from forkrunner_attempts group by outcome") == [("done", 400)]
    assert bed.query("select max(tries), max(crashes), max(attempt) from forkrunner_jobs") == [(1, 0, 1)]


def test_usr2_while_a_mold_drains_and_another_starts(bed: Bed) -> None:
    supervisor = bed.start(slots=3)
    path = {"path": bed.path("go")}
    old = bed.put("hold", path)
    bed.wait_noted("start", old)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("mold 2 is up", LONG)
    slow = (bed.folder / "jobs.py").read_text() + "\nwhile not os.path.exists('import'): time.sleep(0.01)\n"
    bed.cli.write(slow)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_ps("forkrunner: mold jobs:runner gen 3$", LONG)
    new = bed.put("hold", path)
    bed.wait_noted("start", new)
    upgrade(supervisor)
    bed.let_go("import")
    supervisor.wait_log("mold 3 is up", LONG)
    newest = bed.put("hold", path)
    bed.wait_noted("start", newest)
    bed.let_go()
    done_at_once(bed, [old, new, newest])
    supervisor.wait_log("mold 1 has finished", LONG)
    supervisor.wait_log("mold 2 has finished", LONG)
    bed.stop(supervisor)


def _install(folder: Path) -> dict[str, str]:
    """Copy the package to where a release is unpacked, and return the environment that uses it."""
    target = folder / "release"
    ours = Path(forkrunner.__file__).parent
    shutil.copytree(ours, target / "forkrunner", ignore=shutil.ignore_patterns("__pycache__"))
    return {"PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}


def _change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / "release/forkrunner" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.core
def test_usr2_to_a_new_release(bed: Bed) -> None:
    """The code of before ran until now; the code that is installed now takes over."""
    supervisor = bed.start(env=_install(bed.folder))
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    _change(bed.folder, "__init__.py", f'"{forkrunner.__version__}"', '"99.0"')
    upgrade(supervisor)
    assert f"forkrunner 99.0 has taken over from {forkrunner.__version__} in" in supervisor.log
    bed.let_go()
    done_at_once(bed, [id])
    bed.stop(supervisor)


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("supervisor.py", "from __future__", "def :\nfrom __future__", "SyntaxError|invalid syntax"),
        ("handover.py", "VERSION = 1\n", "VERSION = 2\n", "hands over in version 1, this one .* takes 2"),
        ("schema.py", "REVISIONS = (", 'REVISIONS = ("0000",', None),
        (
            "handover.py",
            "    lock: int\n",
            "    lock: int\n    more: int\n",
            "does not fit this release: .*`more`",
        ),
        ("cli.py", "import click\n", "import os; os.kill(os.getpid(), 11)\n", "SIGSEGV"),
    ],
)
def test_usr2_to_a_release_that_does_not_start(
    sqlite_bed: Bed, name: str, old: str, new: str, why: str | None
) -> None:
    """Nothing is lost, nothing changes but a line in the log; and a better release may follow."""
    bed = sqlite_bed
    supervisor = bed.start(env=_install(bed.folder))
    before = tree_of(supervisor)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    if why is None:  # of the tables: the one that they are at is unknown to the release
        old = next(
            line
            for line in (bed.folder / "release/forkrunner/schema.py").read_text().splitlines()
            if line.startswith("REVISIONS")
        )
        new, why = 'REVISIONS = ("9999",)', "tables|revision"
    _change(bed.folder, name, old, new)
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log(f"the new forkrunner does not start: .*({why}).*; this one goes on", LONG)
    done_at_once(bed, [bed.put("work")])
    assert tree_of(supervisor)[:2] == before[:2]
    _change(bed.folder, name, new, old)
    upgrade(supervisor)
    bed.let_go()
    done_at_once(bed, [id])
    bed.stop(supervisor)


def test_usr2_to_a_release_that_hangs(sqlite_bed: Bed) -> None:
    """A second USR2 meanwhile is ignored, and a TERM ends the trial too."""
    bed = sqlite_bed
    supervisor = bed.start(env=_install(bed.folder))
    _change(bed.folder, "cli.py", "import click\n", "import time; time.sleep(1000)\n")
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log("is tried first", LONG)
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log("SIGUSR2 is ignored: an upgrade is under way", LONG)
    done_at_once(bed, [bed.put("work")])
    bed.stop(supervisor)


def test_usr2_while_stopping(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor, id = bed.stopping("hold")
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log("SIGUSR2 is ignored: it is stopping", LONG)
    bed.let_go()
    done_at_once(bed, [id])
    assert supervisor.wait(LONG) == 0
    bed.stop()


def test_usr2_while_quiet(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    supervisor.signal(signal.SIGTSTP)
    supervisor.wait_log("quiet: no more jobs", LONG)
    id = bed.put("work")
    upgrade(supervisor)
    running = bed.put("work")
    assert {bed.row(one).state for one in (id, running)} == {State.PENDING}
    supervisor.signal(signal.SIGCONT)
    done_at_once(bed, [id, running])
    bed.stop(supervisor)


def _before_the_exec(folder: Path, code: str) -> dict[str, str]:
    """Install a forkrunner that runs this right before it becomes the next one; return the environment for it."""
    environ = _install(folder)
    _change(folder, "process.py", "        os.execve(argv[0]", f"        {code}\n        os.execve(argv[0]")
    return environ


@pytest.mark.core
def test_signals_that_come_between_two_images(bed: Bed) -> None:
    """They wait: none has its default action, which would end it, and none is forgotten."""
    # each signal is sent from within, when nobody is there to handle it
    env = _before_the_exec(bed.folder, "for n in (1, 12, 15, 17): os.kill(os.getpid(), n)")
    supervisor = bed.start(env=env)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log("has taken over", LONG)
    supervisor.wait_log(r"stopping \(SIGTERM\): 1 running", LONG)
    bed.let_go()
    done_at_once(bed, [id])
    assert supervisor.wait(LONG) == 0
    bed.stop()


def test_a_mold_dies_between_two_images(bed: Bed) -> None:
    # when the signals are blocked the mold dies, and its supervisor cannot know
    supervisor = bed.start(env=_before_the_exec(bed.folder, "os.kill(children()[0], 9)"))
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    supervisor.signal(signal.SIGUSR2)
    supervisor.wait_log(r"mold 1 died \(SIGKILL\) with 1 attempts", LONG)
    bed.wait_noted("start", id, 2)
    bed.let_go()
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.LOST, Outcome.DONE]
    bed.check_history([id])
    bed.stop(supervisor)


def test_usr2_while_the_database_is_away(cli: Cli, postgresql_database: str, postgres: Postgres) -> None:
    """Endings that could not be written yet are handed over too."""
    with Bed(cli, postgresql_database) as bed:
        supervisor = bed.start(slots=3, store_timeout=2)
        ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
        bed.wait_noted("start", count=2)
        postgres.pause()
        bed.let_go()
        bed.wait_noted("end", count=2)
        supervisor.wait_log("the database does not answer", LONG)
        upgrade(supervisor)
        postgres.resume()
        done_at_once(bed, ids)
        supervisor.wait_log("the database is back", LONG)
        done_at_once(bed, [bed.put("work")])
        bed.stop(supervisor)


def test_kill_after_usr2(bed: Bed) -> None:
    """The proof of its death is as good as before: its jobs run again at once."""
    supervisor = bed.start(lease=600)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    upgrade(supervisor)
    supervisor.signal(signal.SIGKILL)
    supervisor.wait_gone()
    bed.let_go()
    supervisor = bed.start(lease=600)
    assert [attempt.outcome for attempt in bed.ended(id).attempts] == [Outcome.LOST, Outcome.DONE]
    bed.check_history([id])
    bed.stop(supervisor)


# ------------------------------------------------------------------------------- the state


def test_a_state_that_is_damaged_is_refused() -> None:
    for data, why in (
        (b"", "expected the state"),
        (b"something else\n", "expected the state"),
        (b"forkrunner handover 1 3 00000000\nabc", "damaged"),
        (b"forkrunner handover 1 4 352441c2\nabc", "damaged"),
        (b"forkrunner handover 1 3 352441c2\nabc", "does not fit"),
        (b"forkrunner handover 7 3 352441c2\nabc", "version 7"),
    ):
        with pytest.raises(HandoverError, match=why):
            handover.unpack(data)


def test_the_variable_is_not_for_people(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    for value in ("1000", "trial:x", "0"):
        done = bed.cli.run("run", "jobs:runner", env={"FORKRUNNER_HANDOVER": value}, status=2)
        assert "forkrunner: " in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_executed_is_what_was_typed() -> None:
    assert handover._command() == [sys.executable, *sys.orig_argv[1:]]
    assert os.path.exists(sys.executable)
