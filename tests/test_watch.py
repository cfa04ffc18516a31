"""Who watches a job sees its progress without a question to the database, and its row where there is none."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from forkrunner import Runner
from forkrunner.errors import StoreUnavailable
from forkrunner.ids import new_id
from forkrunner.job import Next, State
from forkrunner.places import place, sink
from forkrunner.records import Ending
from forkrunner.store import Store
from tests.running import Bed
from tests.support import Cli, Process, wait_until
from tests.test_store import NOW, claim_one, ending, new, put, supervisor_row

APP = """
import os, time
from forkrunner import Runner, progress
runner = Runner()

@runner.task
def walk(path: str, fail: bool = False) -> str:
    for n in range(1, 10):
        while not os.path.exists(path + str(n)): time.sleep(0.005)
        progress(n / 10, f"Step {n} \\x1b[31m")
    if fail:
        raise ValueError("no such \\x1b[31mthing")
    return "walked"

@runner.task
def send(path: str) -> None:
    "Have it said by another process."
    pid = os.fork()
    if pid == 0:
        progress(0.25, "first")
        progress(0.5, "last")
        time.sleep(0.5)
        os._exit(0)
    os.waitpid(pid, 0)
    while not os.path.exists(path): time.sleep(0.005)
"""


@pytest.fixture
def runner(database: str, tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(database, runtime_dir=str(tmp_path / "run"))
    runner.store.migrate()
    runner.store.register(supervisor_row("a"), 60)
    Path(place(runner.settings)["folder"]).mkdir(parents=True)
    yield runner
    runner.close()


@pytest.fixture
def statements(runner: Runner) -> Iterator[list[str]]:
    """The statements that the runner's store sends from now on."""
    sent: list[str] = []
    engine = runner.store._transactions.open()

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


def say(runner: Runner, id: str, **facts: object) -> None:
    entry = {
        "fraction": 0.5,
        "message": "half",
        "detail": {},
        "attempt": 1,
        "updated_at": time.time(),
        **facts,
    }
    there = sink(place(runner.settings))
    assert there.put(id, json.dumps(entry).encode())
    there.close()


def end(store: Store, claim: object, state: State, **facts: object) -> None:
    found = ending(claim, state)  # type: ignore[arg-type]
    store.finish([Ending(found.attempt, Next(state, 1, 0), found.task, **facts)])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ the store


def test_the_place_in_the_queue(database):
    store = Store(database)
    store.migrate()
    store.register(supervisor_row("a"), 60)
    first, second = sorted(put(store, 2))
    (urgent,) = put(store, priority=5)
    (other,) = put(store, queue="other", run_at=NOW + timedelta(seconds=1))
    (later,) = put(store, now=None, delay=3600)
    found = store.standing([first, second, urgent, other, later])
    positions = {id: row.position for id, row in found.items()}
    # that supervisor takes from all queues
    assert positions == {urgent: 0, first: 1, second: 2, other: 3, later: None}
    assert {id for id, row in found.items() if row.due_at} == {later}
    assert found[later].due_at == found[later].run_at
    claim = claim_one(store)
    assert claim.id == urgent
    standing = store.standing([urgent, first, new_id()])
    assert set(standing) == {urgent, first}
    assert (standing[urgent].state, standing[urgent].position, standing[urgent].attempt) == (
        State.BUSY,
        None,
        1,
    )
    assert standing[first].position == 0
    end(store, claim, State.FAILED, error="no")
    ended = store.standing([urgent])[urgent]
    assert (ended.state, ended.error, ended.position) == (State.FAILED, "no", None)
    assert ended.finished_at is not None
    assert store.standing([]) == {}
    store.close()


def test_the_place_in_the_queue_counts_what_is_served_together(database):
    store = Store(database)
    store.migrate()
    ids = {}
    for number, queue in enumerate(("renders", "renders", "mails", "thumbs", "default")):
        (ids[queue],) = put(store, queue=queue, run_at=NOW + timedelta(seconds=number))

    def positions(*groups: str) -> dict[str, int | None]:
        """With a supervisor for each of these, whose queues they are."""
        for name in [row.id for row in store.supervisors()]:
            store.deregister(name)
        for group in groups:
            picture = json.dumps(
                {"stage": "serving", "molds": [], **({"queues": group.split()} if group else {})}
            )
            store.register(replace(supervisor_row(group or "all"), molds=picture), 60)
        found = store.standing(list(ids.values()))
        return {queue: found[id].position for queue, id in ids.items()}

    everything = {"renders": 1, "mails": 2, "thumbs": 3, "default": 4}
    assert positions() == everything, "nobody knows"
    assert positions("") == positions("renders", "") == everything
    assert positions("renders", "mails default", "thumbs") == {
        "renders": 1,
        "mails": 0,
        "thumbs": 0,
        "default": 1,
    }
    assert positions("renders default", "mails default") == {
        "renders": 1,
        "mails": 0,
        "thumbs": 3,  # nobody takes it: it waits for all
        "default": 3,
    }
    assert positions("") == everything
    store.close()


def test_the_place_in_the_queue_is_one_statement(runner, statements):
    first, second = sorted(put(runner.store, 2))
    statements.clear()
    for _ in range(3):
        assert runner.progress(first)["position"] == 0
    assert len(statements) == 3
    runner.store.deregister("a")
    picture = json.dumps({"stage": "serving", "molds": [], "queues": ["default", "it's"]})
    runner.store.register(replace(supervisor_row("b"), molds=picture), 60)
    statements.clear()
    for _ in range(3):
        assert runner.progress(second)["position"] == 1
    assert len(statements) == 4, "once more where other queues are served than before"


def test_the_place_in_the_queue_is_counted_to_1000(database):
    store = Store(database)
    store.migrate()
    store.enqueue([new() for _ in range(1200)])
    (last,) = put(store, now=None)
    assert store.standing([last])[last].position == 1000
    store.close()


# ---------------------------------------------------------------------------- the watcher


def test_while_there_is_progress_the_database_is_not_asked(runner, statements):
    ids = put(runner.store, 2)
    claim_one(runner.store)
    say(runner, ids[0], started_at="2026-01-31T10:00:00+00:00", detail={"frame": 3}, eta_seconds=2.5)
    statements.clear()
    for _ in range(10):
        view = runner.progress(ids[0].upper())
    assert statements == []
    assert (view["id"], view["state"], view["fraction"], view["message"]) == (ids[0], "busy", 0.5, "half")
    assert (view["detail"], view["attempt"], view["position"]) == ({"frame": 3}, 1, None)
    assert (view["started_at"], view["eta_seconds"]) == ("2026-01-31T10:00:00.000Z", 2.5)
    assert view["updated_at"].endswith("Z")
    assert set(runner.watcher.look(ids)) == set(ids)
    assert len(statements) == 1


def test_without_progress_it_is_the_row(runner, statements):
    (id,) = put(runner.store)
    statements.clear()
    pending = runner.progress(id)
    assert len(statements) == 1
    assert (pending["state"], pending["fraction"], pending["position"]) == ("pending", None, 0)
    claim = claim_one(runner.store)
    busy = runner.progress(id)
    assert (busy["state"], busy["fraction"], busy["position"], busy["attempt"]) == ("busy", None, None, 1)
    assert busy["started_at"] == busy["updated_at"]
    end(runner.store, claim, State.DONE)
    done = runner.progress(id)
    assert (done["state"], done["fraction"]) == ("done", 1.0)
    assert set(pending) == set(busy) == set(done)
    for nobody in (new_id(), "x", None, 3, "../../etc/passwd"):
        assert runner.progress(nobody) is None


def test_an_old_entry_is_believed_only_while_the_row_says_so(runner, statements):
    """Its host died, or memcached did not hear that it was to go."""
    (id,) = put(runner.store)
    claim = claim_one(runner.store)
    say(runner, id, updated_at=time.time() - 3600)
    statements.clear()
    assert {runner.progress(id)["fraction"] for _ in range(5)} == {0.5}
    assert len(statements) == 1, "its word is remembered for a while"
    runner.watcher._confirmed.clear()
    end(runner.store, claim, State.FAILED)
    assert runner.progress(id)["state"] == "failed"
    (id,) = put(runner.store)
    claim_one(runner.store)
    say(runner, id, updated_at=time.time() - 3600, attempt=7)
    assert runner.progress(id)["fraction"] is None


@pytest.mark.parametrize(
    "facts",
    [
        {"attempt": [1]},
        {"attempt": True},
        {"updated_at": "now"},
        {"updated_at": 10**400},
        {"updated_at": 1e300},
        {"fraction": "half"},
        {"fraction": float("nan")},
        {"fraction": 60},
        {"message": {"a": 1}},
        {"detail": [1]},
        {"started_at": 5},
        {"eta_seconds": float("inf")},
        {"eta_seconds": [3]},
    ],
)
def test_what_is_no_entry_is_none(runner, facts):
    """Whoever reaches memcached may write there."""
    (id,) = put(runner.store)
    claim_one(runner.store)
    say(runner, id, **facts)
    view = runner.progress(id)
    assert (view["state"], view["fraction"], view["message"], view["attempt"]) == ("busy", None, None, 1)
    json.dumps(view, allow_nan=False)


@pytest.mark.parametrize("detail", ['{"a": NaN}', '{"a": 1e999}', "{" * 9000])
def test_a_detail_that_is_no_json_is_not_passed_on(runner, detail):
    (id,) = put(runner.store)
    claim_one(runner.store)
    there = sink(place(runner.settings))
    now = time.time()
    text = f'{{"fraction": 0.5, "started_at": "0001-01-01T00:00:00+09:00", "updated_at": {now}, "detail": {detail}}}'
    assert there.put(id, text.encode())
    there.close()
    view = runner.progress(id)
    assert (view["fraction"], view["detail"], view["started_at"]) in (
        (0.5, {}, None),
        (None, {}, view["started_at"]),
    )
    json.dumps(view, allow_nan=False)


def test_a_look_makes_no_database(tmp_path):
    runner = Runner(f"sqlite:///{tmp_path}/none.db", runtime_dir=str(tmp_path / "run"))
    assert runner.progress(new_id()) is None
    assert runner.watcher.look([new_id(), new_id()]) == {}
    assert runner.store.file("x" * 43) is None
    assert not (tmp_path / "none.db").exists()
    (id,) = put(runner.store, now=None)
    assert set(runner.watcher.look([id])) == {id}
    runner.close()


@pytest.mark.postgresql
def test_with_the_database_away_progress_is_still_shown(postgresql_database, tmp_path, postgres):
    runner = Runner(postgresql_database, runtime_dir=str(tmp_path / "run"), store_timeout=1)
    runner.store.migrate()
    Path(place(runner.settings)["folder"]).mkdir(parents=True)
    fresh, old, none = put(runner.store, 3)
    say(runner, fresh)
    say(runner, old, updated_at=time.time() - 3600)
    runner.close()
    postgres.stop("fast")
    assert set(runner.watcher.look([fresh, old])) == {fresh, old}
    with pytest.raises(StoreUnavailable):
        runner.watcher.look([fresh, none])
    runner.close()


def test_a_watcher_survives_a_fork(runner, statements):
    (id,) = put(runner.store)
    claim_one(runner.store)
    say(runner, id)
    assert runner.progress(id)["fraction"] == 0.5
    pid = os.fork()
    if pid == 0:
        ok = runner.progress(id)["fraction"] == 0.5 and runner.watcher.look_at(new_id()) is None
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert runner.progress(id)["fraction"] == 0.5


def test_follow_ends_when_all_have_ended(runner):
    one, two = put(runner.store, 2)
    looks = runner.watcher.follow([one, two])

    def states() -> set[str]:
        views = next(looks)
        assert isinstance(views, dict)
        return {view["state"] for view in views.values()}

    assert states() == {"pending"}
    for _ in range(2):
        end(runner.store, claim_one(runner.store), State.DONE)
    assert states() == {"done"}
    assert list(looks) == []


# ------------------------------------------------------------------------ the command line


class Walk:
    """A job that takes its steps when it is told to."""

    def __init__(self, cli: Cli, bed: Bed, fail: bool = False, **more: object) -> None:
        self.cli, self.bed = cli, bed
        self.path = str(cli.folder / "step")
        self.id = bed.put("walk", {"path": self.path, "fail": fail}, **more)

    def to(self, number: int) -> None:
        for n in range(1, number + 1):
            Path(f"{self.path}{n}").touch()


@pytest.fixture
def application() -> str:
    return APP


def test_the_place_in_the_queue_is_as_the_running_supervisors_have_it(cli, bed):
    supervisors = [bed.start(slots=1, queues=queues) for queues in ("renders", "default,mails")]
    told = [row["queues"] for row in cli.run("status", "jobs:runner", "--json").json["supervisors"]]
    assert sorted(told) == [["default", "mails"], ["renders"]]
    renders, mails = ([Walk(cli, bed, queue=name) for _ in range(3)] for name in ("renders", "mails"))
    last = Walk(cli, bed)
    for first in (renders[0], mails[0]):
        bed.wait_row(first.id, lambda row: row.state is State.BUSY)
    found = bed.store.standing([job.id for job in (*renders, *mails, last)])
    assert [found[job.id].position for job in renders] == [None, 0, 1]
    assert [found[job.id].position for job in (*mails, last)] == [None, 0, 1, 2]
    last.to(9)
    bed.ended(last.id)
    bed.stop(*supervisors)


def test_a_job_that_is_not_due_yet(cli, bed):
    supervisor, walk = bed.start(), Walk(cli, bed, run_at=datetime.now(UTC) + timedelta(hours=1))
    watcher = cli.start("watch", "jobs:runner", walk.id)
    watcher.wait_log(r"walk waits until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(in (59 m|1 h)")
    bed.store.cancel(walk.id)
    assert watcher.wait(20) == 1
    assert "next" not in watcher.stdout
    assert "cancelled" in watcher.stdout
    bed.stop(supervisor)


def test_lines_until_the_end(cli, bed):
    supervisor, walk = bed.start(), Walk(cli, bed)
    watcher = cli.start("watch", "jobs:runner", walk.id)
    walk.to(1)
    watcher.wait_log(r"walk 10 % Step 1 \\x1b\[31m")
    walk.to(5)
    watcher.wait_log("walk 50 % Step 5")
    walk.to(9)
    assert watcher.wait() == 0
    assert watcher.stdout.splitlines()[-1].startswith(f"{walk.id} walk done after ")
    bed.stop(supervisor)


def test_a_failed_job_and_an_unknown_one(cli, bed):
    supervisor, walk = bed.start(), Walk(cli, bed, fail=True)
    walk.to(9)
    bed.ended(walk.id)
    done = cli.run("watch", "jobs:runner", new_id(), walk.id, status=1)
    assert r"failed: ValueError: no such \x1b[31mthing" in done.stdout
    assert "no job has the id" in done.stderr
    assert cli.run("watch", "jobs:runner", status=2).stderr.startswith("forkrunner: expected the id of a job")
    bed.stop(supervisor)


def test_json_is_a_line_for_each_change(cli, bed):
    supervisor, walk = bed.start(), Walk(cli, bed)
    watcher = cli.start("watch", "jobs:runner", walk.id[-8:], "--json")
    walk.to(3)
    watcher.wait_log('"fraction": 0.3')
    walk.to(9)
    assert watcher.wait() == 0
    views = [json.loads(line) for line in watcher.stdout.splitlines()]
    assert {view["id"] for view in views} == {walk.id}
    assert views[-1]["state"] == "done"
    assert all(one != two for one, two in itertools.pairwise(views))
    bed.stop(supervisor)


def test_int_ends_the_watching_and_not_the_job(cli, bed):
    supervisor, walk = bed.start(), Walk(cli, bed)
    watcher = cli.start("watch", "jobs:runner", walk.id)
    walk.to(1)
    watcher.wait_log("10 %")
    watcher.signal(signal.SIGINT)
    assert watcher.wait() == 130
    assert "Traceback" not in watcher.log
    walk.to(9)
    assert bed.ended(walk.id).state is State.DONE
    bed.stop(supervisor)


def test_the_list_has_bars(cli, bed):
    supervisor, walk = bed.start(), Walk(cli, bed)
    walk.to(5)
    wait_until(
        lambda: "█████····· 50 % Step 5" in cli.run("list", "jobs:runner").stdout, message="a bar in the list"
    )
    assert "██████████·········· 50 %" in cli.run("show", "jobs:runner", walk.id).stdout
    walk.to(9)
    bed.ended(walk.id)
    bed.stop(supervisor)


def test_what_only_a_forked_process_says_is_seen_and_cleared_away(cli, bed):
    supervisor = bed.start()
    id = bed.put("send", {"path": str(cli.folder / "go")})
    (folder,) = bed.runtime.glob("*/progress")
    wait_until(lambda: (folder / id).exists(), message="progress")
    wait_until(lambda: json.loads((folder / id).read_text())["message"] == "last", message="the last word")
    assert json.loads((folder / id).read_text())["fraction"] == 0.5
    (cli.folder / "go").touch()
    assert bed.ended(id).state is State.DONE
    wait_until(lambda: not list(folder.iterdir()), message="an empty folder")
    bed.stop(supervisor)


def test_bars_on_a_terminal(cli, sqlite_database):
    with Bed(cli, sqlite_database, source=APP) as bed:
        supervisor, walk = bed.start(), Walk(cli, bed)
        script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, '-m', 'forkrunner', *sys.argv[1:]])))"
        env = {"TERM": "xterm", "COLUMNS": "120"}
        watcher: Process = cli.start("watch", "jobs:runner", walk.id, python=["-c", script], env=env)
        walk.to(4)
        watcher.wait_log(r"━+.* 40 % Step 4 \\x1b")
        walk.to(9)
        assert watcher.wait() == 0
        assert f"{walk.id} walk done after" in watcher.stdout
        assert "\x1b[?25h" in watcher.stdout, "the cursor is back"
        bed.stop(supervisor)
