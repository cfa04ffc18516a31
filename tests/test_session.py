"""current_job().session(): committed with a task that returns, gone with every other end of its attempt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from forkrunner.job import Outcome, State
from tests.running import LONG, Bed
from tests.support import Cli, wait_until

APP = '''
import os
import signal
import time

import sqlalchemy as sa
from forkrunner import LeaveJob, Runner, UserError, current_job, safe_point

runner = Runner()
here = []

def write(text, unique=None):
    session = current_job().session()
    assert session is current_job().session()
    values = {"text": text, "job": current_job().id, "once": unique}
    session.execute(sa.text("INSERT INTO notes (text, job, once) VALUES (:text, :job, :once)"), values)
    return session

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
        safe_point("cursor")

@runner.task(max_crashes=1)
def work(how: str, path: str = "") -> object:
    if how == "waits":
        safe_point()
        print("is there", flush=True)
        while not os.path.exists(path + ".write"):
            time.sleep(0.01)
    while how == "over its CPU time" and time.process_time() < 0.55:
        pass
    write(how)
    if path:
        open(path + ".written", "w").close()
    if how == "raise":
        raise ValueError(how)
    if how == "user error":
        raise UserError(how)
    if how == "exit":
        raise SystemExit(3)
    if how == "os._exit":
        os._exit(0)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "no JSON":
        return object()
    if how == "waits":
        wait_for(path)
    if how == "deaf":
        while True:
            time.sleep(0.01)
    if how == "commits before it raises":
        current_job().session().commit()
        write("lost")
        raise ValueError(how)
    if how == "breaks at the commit":
        write("first", unique=1)
        write("second", unique=1)
    if how == "forks and returns":
        if os.fork() == 0:
            try:
                current_job().session()
            except RuntimeError as error:
                print(error, flush=True)
            else:
                print("shared", flush=True)
            return None
        os.wait()
    if how == "enqueues":
        work.using(connection=current_job().session()).enqueue("was enqueued")
    if how == "enqueues and raises":
        work.using(connection=current_job().session()).enqueue("is never there")
        raise ValueError(how)
    return None

@runner.before_exit
def say() -> None:
    if "hook" in str(current_job().arguments):
        print("hook")
'''  # fmt: skip

TABLE = """CREATE TABLE notes (
    text VARCHAR(100), job VARCHAR(40), once INTEGER{}
)"""


@pytest.fixture
def bed(cli: Cli, database: str) -> Iterator[Bed]:
    with Bed(cli, database, source=APP) as bed:
        engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
        with engine.begin() as connection:
            # PostgreSQL looks at this one when it is committed, and at no earlier moment
            deferred = " UNIQUE DEFERRABLE INITIALLY DEFERRED" if "postgresql" in database else " UNIQUE"
            connection.execute(sa.text(TABLE.format(deferred)))
        yield bed


def test_it_is_committed_when_the_task_returns_and_else_rolled_back(bed: Bed) -> None:
    supervisor = bed.start(slots=2, grace=0.3)
    raised = (Outcome.RAISED, State.FAILED)
    ends = {
        "returns": (Outcome.DONE, State.DONE),
        "raise": raised,
        "user error": raised,
        "exit": (Outcome.EXITED, State.FAILED),
        "os._exit": (Outcome.EXITED, State.FAILED),
        "crash": (Outcome.CRASHED, State.FAILED),
        "over its CPU time": (Outcome.OVER_CPU, State.FAILED),
        "no JSON": raised,
        "commits before it raises": raised,
        "breaks at the commit": raised,
        "forks and returns": (Outcome.DONE, State.DONE),
        "enqueues": (Outcome.DONE, State.DONE),
        "enqueues and raises": raised,
    }
    limits = {"over its CPU time": {"cpu_seconds": 0.5}}
    ids = {how: bed.put("work", {"how": how}, options=limits.get(how)) for how in ends}
    for how, id in ids.items():
        row = bed.ended(id)
        assert (row.attempts[-1].outcome, row.state) == ends[how], (how, row)
    broken = bed.row(ids["breaks at the commit"]).attempts[0]
    assert "IntegrityError" in (broken.error_type or "")
    forked = bed.row(ids["forks and returns"]).attempts[0].output_tail or ""
    assert forked.startswith("session(): this is not the job's own process")
    bed.wait_counts(done=4)  # with the one that was enqueued
    notes = {text for (text,) in bed.query("select text from notes")}
    assert notes == {"returns", "commits before it raises", "forks and returns", "enqueues", "was enqueued"}
    bed.stop(supervisor)


def test_what_is_ended_from_outside_leaves_nothing(bed: Bed) -> None:
    """By a cancel at a safe point, a cancel by force, and a stop of the supervisor."""
    supervisor = bed.start(slots=3, grace=30)
    if "postgresql" in bed.database:  # on SQLite nobody can ask for a cancel once it has written
        id = bed.put("work", {"how": "deaf", "path": bed.path("deaf")}, options={"grace": 0.2})
        wait_until((bed.folder / "deaf.written").exists, LONG)
        bed.store.cancel(id)
        row = bed.ended(id)
        assert (row.state, row.attempts[0].signal) == (State.CANCELLED, "SIGTERM")
    ids = {name: bed.put("work", {"how": "waits", "path": bed.path(name)}) for name in ("cancel", "stop")}
    for id in ids.values():
        bed.cli.start("log", "jobs:runner", id, "-f").wait_log("is there")
    bed.store.cancel(ids["cancel"])
    bed.let_go("cancel.write")
    row = bed.ended(ids["cancel"])
    assert (row.state, row.attempts[0].signal, row.attempts[0].exit_status) == (State.CANCELLED, None, 0)
    assert (bed.folder / "cancel.written").exists()
    supervisor.signal(15)
    supervisor.wait_log("stopping")
    bed.let_go("stop.write")
    assert supervisor.wait(LONG) == 0
    row = bed.row(ids["stop"])
    assert (row.state, [attempt.outcome for attempt in row.attempts]) == (State.PENDING, [Outcome.REQUEUED])
    assert (bed.folder / "stop.written").exists()
    assert bed.query("select text from notes") == []
    bed.let_go("stop")
    supervisor = bed.start(slots=1)
    assert bed.ended(ids["stop"]).state is State.DONE
    assert bed.query("select text from notes") == [("waits",)]
    bed.stop(supervisor)
