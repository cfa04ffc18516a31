"""What applications call: a Runner, its jobs and their ids, with the real databases."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from forkrunner import (
    ArgumentError,
    ConfigError,
    EnqueueError,
    JobNotFound,
    JobStateError,
    Outcome,
    Runner,
    State,
    WaitTimeout,
    clock,
    current_job,
)
from forkrunner import ids as module
from forkrunner.current import current
from forkrunner.handle import Job
from forkrunner.ids import new_id
from forkrunner.job import Next
from forkrunner.records import Attempt, Claim, Ending, SupervisorRow
from forkrunner.store import Store


@dataclass
class Point:
    x: float
    when: datetime


@pytest.fixture
def runner(database: str) -> Iterator[Runner]:
    """A runner with some tasks on a fresh database that has its tables."""
    runner = Runner(database)

    @runner.task
    def convert(source: str, scale: float = 1.0) -> dict[str, int]:
        return {"frames": 3}

    @runner.task(queue="slow", priority=7, max_attempts=3)
    def render(points: list[Point]) -> list[Point]:
        return points

    runner.store.migrate()
    yield runner
    runner.close()


def finish(runner: Runner, result: Any = None, *, error: str | None = None) -> None:
    """Be the supervisor that claims the one due job and ends it."""
    store = runner.store
    row = SupervisorRow("s1", "host", "boot", "ns", 1, 1, "jobs:runner", 1, "0")
    store.register(row, 30)
    [claim] = store.claim("s1", 1, None)
    outcome, state = (Outcome.DONE, State.DONE) if error is None else (Outcome.RAISED, State.FAILED)
    attempt = Attempt(claim.id, claim.attempt, outcome, supervisor="s1")
    text = json.dumps(result) if error is None else None
    assert store.finish([Ending(attempt, Next(state, 1, 0), claim.task, result=text, error=error)])
    store.deregister("s1")


# --------------------------------------------------------------------------- ids


def test_an_id_is_a_uuid7_of_now():
    before = time.time_ns() // 10**6
    ids = [UUID(new_id()) for _ in range(1000)]
    after = time.time_ns() // 10**6
    assert {(id.version, id.variant) for id in ids} == {(7, "specified in RFC 4122")}
    # 1,000 ids may use up the random part of a millisecond's end, never more
    assert all(before <= id.int >> 80 <= after + 1 for id in ids)


def test_ids_of_a_process_sort_by_their_making_also_when_the_clock_goes_back(monkeypatch):
    moments = iter([5.001, 5.001, 5.0, 4.0, 5.002, 5.001, 1e9])
    monkeypatch.setattr(clock, "wall", lambda: next(moments, 1e9))
    monkeypatch.setattr(module, "_sequences", {})
    ids = [new_id() for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2000


def test_an_exhausted_millisecond_carries_into_the_next(monkeypatch):
    monkeypatch.setattr(clock, "wall", lambda: 5.0)
    sequence = module._Sequence()
    sequence.last = 5000 << 74 | (1 << 74) - 1
    monkeypatch.setattr(module, "_sequences", {os.getpid(): sequence})
    id = UUID(new_id())
    assert (id.int >> 80, id.version) == (5001, 7)


def test_ids_made_by_threads_differ_and_each_thread_sees_them_sorted():
    made: list[list[str]] = []

    def make():
        made.append([new_id() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in made)
    assert len({id for ids in made for id in ids}) == 8000


def in_child(work: Any) -> str:
    """Run `work` in a forked child and return what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os.write(write, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def test_a_child_makes_other_ids_even_when_a_thread_held_the_lock_at_the_fork():
    new_id()
    with module._sequences[os.getpid()].lock:
        ids = {in_child(new_id), in_child(new_id)}
    assert len(ids | {new_id()}) == 3


# --------------------------------------------------------------------------- a runner without a database


def test_making_a_runner_and_its_tasks_opens_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = Runner("sqlite:///jobs.db", slots=3)
    runner.task(name="work")(lambda a: None)
    assert runner.code == {"database": "sqlite:///jobs.db", "slots": 3}
    assert list(tmp_path.iterdir()) == []
    assert (runner.settings.slots, runner.settings.source("slots")) == (3, "Runner(...) in the code")
    runner.close()
    runner.close()
    assert repr(runner) == "<Runner with 1 tasks>"


def test_a_relative_file_is_in_the_folder_where_the_runner_was_made(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    runner = Runner("sqlite:///jobs.db")
    runner.task(name="work")(lambda: None)
    monkeypatch.chdir(tmp_path / "b")
    runner.enqueue("work")
    runner.close()
    assert (tmp_path / "a" / "jobs.db").exists()
    assert list((tmp_path / "b").iterdir()) == []


def test_the_environment_overrides_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("FORKRUNNER_DATABASE", f"sqlite:///{tmp_path}/other.db")
    runner = Runner(f"sqlite:///{tmp_path}/jobs.db")
    runner.enqueue("work")
    runner.close()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "jobs.db").exists()


def test_a_wrong_setting_is_said_when_it_is_first_needed():
    runner = Runner("mysql://x", slot=3)
    runner.task(name="work")(lambda: None)
    with pytest.raises(ConfigError, match="slot: expected the name of a setting"):
        _ = runner.settings
    with pytest.raises(ConfigError, match="database: expected"):
        Runner("mysql://x").enqueue("work")


def test_current_job_is_none_outside_a_job_and_tells_inside(monkeypatch):
    assert current_job() is None
    id = new_id()
    header = {"kind": "run", "id": id, "task": "convert", "queue": "default", "attempt": 2, "tries": 1}
    monkeypatch.setattr(current, "job", header)
    job = current_job()
    assert job is not None
    assert (job.id, job.task, job.queue, job.attempt, job.tries) == (id, "convert", "default", 2, 1)
    assert repr(job) == f"<CurrentJob {id} convert attempt 2>"


# --------------------------------------------------------------------------- enqueue


def test_a_call_becomes_a_pending_row(runner):
    before = datetime.now(UTC) - timedelta(seconds=5)
    task = runner.tasks["convert"]
    job = task.enqueue("a.txt", scale=2)
    assert re.fullmatch("[0-9a-f-]{36}", job.id)
    assert (job.task, job.queue, job.state, job.priority) == ("convert", "default", State.PENDING, 0)
    assert job.arguments == {"source": "a.txt", "scale": 2}
    assert before < job.created_at <= datetime.now(UTC) + timedelta(seconds=5)
    assert job.run_at == job.created_at
    assert (job.started_at, job.finished_at, job.result, job.error, job.attempts) == (
        None,
        None,
        None,
        None,
        (),
    )
    assert repr(job) == f"<Job {job.id} convert pending>"
    assert repr(Job(runner, job.id)) == f"<Job {job.id}>"
    assert runner.get(job.id) == job
    assert hash(runner.get(job.id)) == hash(job)
    assert runner.get(job.id.upper()).id == job.id
    assert runner.get(UUID(job.id)).state == "pending"


def test_using_reaches_the_row(runner):
    task = runner.tasks["render"]
    job = task.using(delay="1h", priority=-2, queue="fast", timeout=5).enqueue([])
    assert (job.queue, job.priority) == ("fast", -2)
    assert job.run_at - job.created_at == timedelta(hours=1)
    assert runner.store.get(job.id).options == '{"timeout": 5.0}'
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    assert task.using(run_at=moment).enqueue([]).run_at == moment
    plain = task.enqueue([])
    assert (plain.queue, plain.priority) == ("slow", 7)
    assert runner.store.get(plain.id).options is None


def test_nothing_is_stored_for_a_call_that_is_refused(runner):
    task = runner.tasks["convert"]
    for args, kwargs in [
        ((), {}),
        ((1,), {}),
        (("a",), {"scale": "big"}),
        (("a\0",), {}),
        (("x" * 2**20,), {}),
    ]:
        with pytest.raises(ArgumentError):
            task.enqueue(*args, **kwargs)
    with pytest.raises(ArgumentError):
        runner.enqueue_many([task.call("a"), task.call(2)])
    assert runner.list() == []


def test_the_limit_of_arguments_is_a_setting(database):
    runner = Runner(database, argument_limit=100)
    task = runner.task(name="work")(lambda text: None)
    assert len(task.call("x" * 50).arguments) == 61
    with pytest.raises(ArgumentError, match="more than the 100 of argument_limit"):
        task.call("x" * 100)
    with pytest.raises(ArgumentError, match="more than the 100 of argument_limit"):
        runner.call("other", {"text": "x" * 100})


def test_many_calls_are_one_transaction_in_order(runner):
    task = runner.tasks["convert"]
    jobs = runner.enqueue_many(task.call(f"{n}.txt") for n in range(2500))
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    assert len({job.id for job in jobs}) == 2500
    assert jobs[2499].arguments == {"source": "2499.txt"}
    assert runner.store.counts() == {"default": {"pending": 2500}}
    assert runner.enqueue_many([]) == []


def test_by_name_the_task_need_not_be_known(runner):
    stranger = Runner(runner.settings.database)
    job = stranger.enqueue("nobody.knows:it", {"a": [1, None]}, priority=3, queue="q", delay=60)
    assert (job.task, job.arguments, job.priority, job.queue) == ("nobody.knows:it", {"a": [1, None]}, 3, "q")
    assert job.run_at - job.created_at == timedelta(seconds=60)
    assert stranger.enqueue("render").queue == "default"
    stranger.close()


def test_by_name_a_call_has_the_options_that_using_takes(runner):
    @runner.task(at_most_once=True)
    def once(): ...

    given = {"timeout": "1m", "memory": None, "backoff": ["1s", 2]}
    kept = {"timeout": 60.0, "memory": None, "backoff": [1.0, 2.0]}
    for name, arguments in (("convert", {"source": "a"}), ("nobody.knows:it", {})):
        assert json.loads(runner.call(name, arguments, options=given).options) == kept
        assert runner.call(name, arguments).options is None
    # whoever rescues it may not know the task
    assert json.loads(runner.call("once").options) == {"at_most_once": True}
    for name, options, words in (
        ("once", {"max_attempts": 2}, "it is run at most once"),
        ("stranger", {"timeout": 0}, "timeout: expected more than 0 seconds"),
        (
            "stranger",
            {"queue": "fast", "lease": 1},
            "options: expected some of backoff, .*, got lease, queue",
        ),
    ):
        with pytest.raises(EnqueueError, match=words):
            runner.call(name, options=options)


def test_by_name_a_known_task_is_checked_and_gives_its_queue(runner):
    when = {"x": 1, "when": "2024-01-01T00:00:00Z"}
    job = runner.enqueue("render", {"points": [when]})
    assert (job.queue, job.priority) == ("slow", 7)
    for name, arguments, words in [
        ("render", {"points": [{"x": "1"}]}, "argument 'points': expected list[tests.test_runner.Point]"),
        ("render", {"pionts": []}, "there is no argument 'pionts', did you mean 'points'"),
        ("render", {}, "argument 'points' missing"),
        ("convert", {"source": Path("a")}, "argument 'source': expected a JSON value, got PosixPath"),
        ("other", {"at": datetime.now(UTC)}, "argument 'at': expected a JSON value, got datetime"),
    ]:
        with pytest.raises(ArgumentError) as caught:
            runner.enqueue(name, arguments)
        assert words in str(caught.value)
    for options in (
        {"delay": 1, "run_at": datetime.now(UTC)},
        {"run_at": datetime(2030, 1, 1)},  # noqa: DTZ001 - what is tested
        {"delay": -1},
        {"queue": "a b"},
        {"priority": 1.5},
    ):
        with pytest.raises(EnqueueError):
            runner.enqueue("convert", {"source": "a"}, **options)
    for wrong in ("", "a b", "x" * 201, "\x1b[31m", None, 3):
        with pytest.raises(EnqueueError, match="name: expected 1 to 200 letters"):
            runner.enqueue(wrong)
    assert len(runner.list()) == 1


# --------------------------------------------------------------------------- the caller's transaction


@pytest.fixture
def engine(runner: Runner) -> Iterator[sa.Engine]:
    engine = sa.create_engine(runner.settings.database)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("kind", ["session", "scoped session", "connection"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_job_lives_and_dies_with_the_transaction_of_the_caller(runner, engine, kind, end):
    given: Any = {
        "session": lambda: orm.Session(engine),
        "scoped session": lambda: orm.scoped_session(orm.sessionmaker(engine)),
        "connection": engine.connect,
    }[kind]()
    task = runner.tasks["convert"]
    job = task.using(connection=given).enqueue("a")
    [other] = runner.enqueue_many([task.call("b")], connection=given)
    by_name = runner.enqueue("other", connection=given)
    for made in (job, other, by_name):
        with pytest.raises(
            JobNotFound, match=f"{made.id}.* transaction of the caller's, which may not be committed"
        ):
            _ = made.state
    getattr(given, end)()
    given.close()
    if end == "commit":
        assert [made.state for made in (job, other, by_name)] == ["pending"] * 3
    else:
        assert runner.list() == []
        with pytest.raises(JobNotFound):
            job.wait(timeout=1)


def test_calls_of_different_connections_are_refused(runner):
    task = runner.tasks["convert"]
    one, two = object(), object()
    with pytest.raises(EnqueueError, match="different connections"):
        runner.enqueue_many([task.using(connection=one).call("a"), task.using(connection=two).call("b")])
    with pytest.raises(EnqueueError, match="different connections"):
        runner.enqueue_many([task.using(connection=one).call("a")], connection=two)
    with pytest.raises(EnqueueError, match="expected as connection a SQLAlchemy Session or Connection"):
        task.using(connection=one).enqueue("a")


# --------------------------------------------------------------------------- finding and following jobs


def test_what_is_no_id_or_no_job_is_not_found(runner):
    for id in ("", "x", "0198c5e1", "../jobs", None, 3, f"{uuid4()} ", f"{uuid4()}\n", "%"):
        with pytest.raises(JobNotFound, match="expected a UUID"):
            runner.get(id)
        assert runner.progress(id) is None
    job: Job[Any] = Job(runner, new_id())
    for use in (lambda: runner.get(job.id), lambda: job.state, job.refresh, job.wait, job.cancel, job.retry):
        with pytest.raises(JobNotFound):
            use()


def test_list_is_newest_first_and_filtered(runner):
    made = [runner.tasks["convert"].enqueue("a"), runner.tasks["render"].enqueue([]), runner.enqueue("other")]
    assert runner.list() == made[::-1]
    assert runner.list(limit=1) == [made[2]]
    assert runner.list(task="convert") == [made[0]]
    assert runner.list(queue="slow") == [made[1]]
    assert runner.list(state="pending", queue="slow") == runner.list(state=State.PENDING, task="render")
    assert runner.list(state="done") == []
    with pytest.raises(ValueError, match="running"):
        runner.list(state="running")


def test_a_job_tells_what_it_read_until_it_is_refreshed(runner):
    job = runner.tasks["convert"].enqueue("a")
    assert job.state == "pending"
    finish(runner, {"frames": 3})
    assert (job.state, job.result) == ("pending", None)
    assert job.refresh() is job
    assert (job.state, job.result) == ("done", {"frames": 3})
    assert job.started_at is not None
    assert job.finished_at is not None
    assert [(attempt.attempt, attempt.outcome) for attempt in job.attempts] == [(1, "done")]


def test_a_result_has_the_declared_type_where_the_task_is_known(runner):
    job = runner.tasks["render"].enqueue([])
    wire = [{"x": 1.0, "when": "2024-01-01T00:00:00Z"}]
    finish(runner, wire)
    assert job.result == [Point(1.0, datetime(2024, 1, 1, tzinfo=UTC))]
    stranger = Runner(runner.settings.database)
    assert stranger.get(job.id).result == wire
    stranger.close()


def test_wait_returns_when_the_job_has_ended(runner):
    job = runner.tasks["convert"].enqueue("a")
    timer = threading.Timer(0.2, finish, [runner], {"error": "it broke"})
    timer.start()
    assert job.wait(timeout=20) is job
    timer.join()
    assert (job.state, job.error, job.result) == ("failed", "it broke", None)
    assert job.wait(timeout=0).state == "failed"


def test_wait_gives_up_in_time(runner, monkeypatch):
    job = runner.tasks["convert"].enqueue("a")
    looks: list[float] = []
    refresh = Job.refresh

    def count(self):
        looks.append(clock.monotonic())
        return refresh(self)

    monkeypatch.setattr(Job, "refresh", count)
    with pytest.raises(WaitTimeout, match=f"job {job.id} is still pending after 0.5 s") as caught:
        job.wait(timeout="500ms")
    assert caught.value.facts == {"id": job.id, "state": "pending"}
    # from 5 ms to 250 ms, and a last look at the end
    assert 5 <= len(looks) <= 12
    assert looks[-1] - looks[0] == pytest.approx(0.5, abs=0.2)
    looks.clear()
    with pytest.raises(WaitTimeout):
        job.wait(timeout=0.1, poll=0.02)
    assert 4 <= len(looks) <= 7
    with pytest.raises(EnqueueError):
        job.wait(timeout=-1)


def test_cancel_and_retry(runner):
    job = runner.tasks["convert"].enqueue("a")
    with pytest.raises(JobStateError):
        job.retry()
    assert job.cancel("not wanted") is job
    assert (job.state, job.error) == ("cancelled", "not wanted")
    with pytest.raises(JobStateError):
        job.cancel()
    assert job.retry().state == "pending"
    assert job.error is None


def test_progress_is_what_the_job_said_last(sqlite_database, tmp_path, monkeypatch):
    monkeypatch.setenv("FORKRUNNER_RUNTIME_DIR", str(tmp_path / "run"))
    from forkrunner.places import place

    runner = Runner(sqlite_database)
    job = Job[Any](runner, new_id())
    assert runner.progress(job.id) is None
    folder = Path(place(runner.settings)["folder"])
    folder.mkdir(parents=True)
    entry = {"fraction": 0.5, "message": "half", "detail": {}, "attempt": 1, "updated_at": time.time()}
    (folder / job.id).write_text(json.dumps(entry))
    seen = job.progress
    assert seen is not None
    assert (seen["state"], seen["fraction"], seen["message"]) == ("busy", 0.5, "half")
    assert runner.progress(job.id) == seen
    runner.close()


# --------------------------------------------------------------------------- threads and forks


def test_threads_share_one_store_and_enqueue_at_the_same_time(database):
    runner = Runner(database)
    runner.store.migrate()
    runner.close()
    task = runner.task(name="work")(lambda n: None)
    stores: list[Store] = []
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        stores.append(runner.store)
        for n in range(20):
            task.enqueue(n)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, stores))) == 1
    assert runner.store.counts() == {"default": {"pending": 160}}
    runner.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_gets_a_store_of_its_own_and_the_parents_goes_on(runner):
    task = runner.tasks["convert"]
    task.enqueue("before")
    mine = runner.store

    def work():
        assert runner.store is not mine
        return task.enqueue("child").id

    # held by a thread of the parent, say, which the child does not have
    with runner._locks[os.getpid()]:
        ids = [in_child(work), in_child(work)]
    assert runner.store is mine
    task.enqueue("after")
    assert {runner.get(id).arguments["source"] for id in ids} == {"child"}
    assert len(runner.list()) == 4


def test_a_closed_runner_opens_again(runner):
    job = runner.tasks["convert"].enqueue("a")
    runner.close()
    assert runner.get(job.id).state == "pending"


def test_a_claim_holds_what_the_task_loads(runner):
    """The row as the supervisor sees it is what the child's `load` takes."""
    task = runner.tasks["render"]
    points = [Point(1.5, datetime(2024, 1, 1, tzinfo=UTC))]
    task.using(timeout=None, memory="1GB").enqueue(points)
    runner.store.register(SupervisorRow("s1", "host", "boot", "ns", 1, 1, "jobs:runner", 1, "0"), 30)
    [claim] = runner.store.claim("s1", 1, None)
    assert isinstance(claim, Claim)
    assert task.load(claim.arguments) == ([], {"points": points})
    assert json.loads(claim.options or "{}") == {"timeout": None, "memory": 10**9}
    runner.store.deregister("s1")
