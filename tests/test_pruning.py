"""What is kept no longer goes, whatever else happens at the same moment; what a job may still need stays."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from forkrunner import InputFile, JobNotFound, Runner, StorageError
from forkrunner.ids import new_id
from forkrunner.job import Next, Outcome, State
from forkrunner.pruning import Pruned, prune, prune_content
from forkrunner.records import Attempt, Ending, File
from forkrunner.storage import Storage
from forkrunner.store import Store
from tests.running import LONG, Bed
from tests.support import Cli, wait_until
from tests.test_store import NEXT, claim_one, new, supervisor_row

DAY = 86_400.0
FIRST = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def runner(database: str, tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(database, storage=str(tmp_path / "storage"))
    runner.store.migrate()
    runner.store.register(supervisor_row("a"), 600)

    @runner.task
    def take(source: InputFile) -> None: ...

    yield runner
    runner.close()


def put(store: Store, count: int) -> None:
    store.enqueue([new(id=new_id()) for _ in range(count)])


def end(store: Store, state: State, now: datetime, files: tuple[tuple[str, str], ...] = ()) -> str:
    """Claim the next job, end it, and return its id."""
    claim = claim_one(store, now=None)
    outcome = Outcome.DONE if state is State.DONE else Outcome.RAISED
    attempt = Attempt(claim.id, claim.attempt, outcome, "a", finished_at=now, error_message="x")
    rows = tuple(File(claim.id, place, sha256, 1, "x") for place, sha256 in files)
    ending = Ending(attempt, NEXT.get(state, Next(state, 1, 0)), output="much", files=rows)
    assert store.finish([ending], now=now) == {(claim.id, claim.attempt): state}
    return claim.id


def rows_of(store: Store, id: str) -> int:
    """Count what is left of a job in all tables."""
    counted = 0
    with store._transactions.open().connect() as connection:
        for name, column in (
            ("jobs", "id"),
            ("attempts", "job_id"),
            ("outputs", "job_id"),
            ("files", "job_id"),
        ):
            table = sa.table(f"forkrunner_{name}", sa.column(column))
            value = sa.cast(table.c[column], sa.Text) == id
            counted += (
                connection.execute(sa.select(sa.func.count()).select_from(table).where(value)).scalar() or 0
            )
    return counted


def age(storage: Storage, seconds: float = 7200) -> None:
    """Make all that the storage has look as if it had been stored, or thrown away, so much earlier."""
    for path in Path(storage.url).rglob("*"):
        if path.parent.name == "bin":
            stamp, _, sha256 = path.name.partition("-")
            path.rename(path.with_name(f"{int(stamp) - round(seconds)}-{sha256}"))
        elif path.is_file():
            at = path.stat().st_mtime - seconds
            os.utime(path, (at, at))


def content(storage: Storage) -> tuple[list[str], list[str]]:
    """Return the hashes of what is there, and of what is in the bin."""
    root = Path(storage.url)
    there = sorted(path.name for path in root.glob("??/*"))
    return there, sorted(path.name.partition("-")[2] for path in root.glob("bin/*"))


# ------------------------------------------------------------------------------ rows


def test_what_ended_long_ago_goes_and_nothing_else(runner: Runner):
    store = runner.store
    now = datetime.now(UTC)
    old = now - timedelta(days=8)
    put(store, 6)
    gone = [end(store, State.DONE, old, (("result", "0" * 64),)), end(store, State.CANCELLED, old)]
    kept = [
        end(store, State.DONE, now - timedelta(days=6)),
        end(store, State.FAILED, old),
        claim_one(store, now=None).id,
        *[row.id for row in store.list(state=State.PENDING)],
    ]
    assert len(kept) == 4
    assert [rows_of(store, id) for id in gone] == [4, 3]
    # whose id says that it was made just now cannot have ended long ago
    assert store.count_old(7 * DAY, 30 * DAY) == 0
    made = _ids_made(store, old)
    gone, kept = [made[id] for id in gone], [made[id] for id in kept]
    assert store.count_old(7 * DAY, 30 * DAY) == 2
    assert store.delete_old(7 * DAY, 30 * DAY, after=FIRST, limit=10) == (2, None)
    assert [rows_of(store, id) for id in gone] == [0, 0]
    assert all(rows_of(store, id) for id in kept)
    assert store.count_old(5 * DAY, 30 * DAY) == 1
    assert store.count_old(7 * DAY, 7 * DAY) == 1
    assert store.delete_old(7 * DAY, 30 * DAY, after=FIRST, limit=10) == (0, None)


def _ids_made(store: Store, at: datetime, *ids: str) -> dict[str, str]:
    """Give these jobs, or all, ids as if they had been made at that time; return old id → new."""
    stamp = f"{int(at.timestamp() * 1000):012x}"
    made = {}
    with store._transactions.open().begin() as connection:
        for id in ids or [row.id for row in store.list(limit=1000)]:
            made[id] = f"{stamp[:8]}-{stamp[8:]}{id[13:]}"
            for name, column in (
                ("jobs", "id"),
                ("attempts", "job_id"),
                ("outputs", "job_id"),
                ("files", "job_id"),
            ):
                connection.exec_driver_sql(
                    f"UPDATE forkrunner_{name} SET {column} = '{made[id]}' WHERE {column} = '{id}'"
                )
    return made


def test_in_small_transactions_from_the_oldest_on(runner: Runner):
    store = runner.store
    old = datetime.now(UTC) - timedelta(days=8)
    put(store, 7)
    for number in range(7):
        # every other one is kept, and passed over
        end(store, State.FAILED if number % 2 else State.DONE, old)
    made = sorted(_ids_made(store, old).values())
    gone = [id for id in made if store.get(id).state is State.DONE]
    first = store.delete_old(7 * DAY, 30 * DAY, after=FIRST, limit=3)
    assert (first.jobs, first.after) == (3, gone[2])
    assert store.delete_old(7 * DAY, 30 * DAY, after=gone[2], limit=3) == (1, None)
    assert [row.id for row in store.list()] == sorted(set(made) - set(gone), reverse=True)


def test_a_job_that_is_made_pending_again_meanwhile_stays(runner: Runner):
    """Retry and prune at the same moment, in both orders."""
    store = runner.store
    old = datetime.now(UTC) - timedelta(days=8)
    put(store, 2)
    end(store, State.DONE, old)
    end(store, State.DONE, old)
    first, second = sorted(_ids_made(store, old).values())
    if store._database.name == "postgresql":
        # somebody is about to: the row is locked, and passed over without waiting
        with store._transactions.open().connect() as other:
            other = other.execution_options(forkrunner_bare=False)
            with other.begin():
                other.execute(store._client_sql.retry, {"job": first, "now": None})
                assert store.delete_old(7 * DAY, 7 * DAY, after=FIRST, limit=9) == (1, None)
        assert store.get(first).state is State.PENDING
    else:
        store.retry(first)
        assert store.delete_old(7 * DAY, 7 * DAY, after=FIRST, limit=9) == (1, None)
    with pytest.raises(JobNotFound):
        store.retry(second)


# ------------------------------------------------------------------------------ content


def test_content_goes_when_no_job_has_it_and_an_hour_later_from_the_disk(runner: Runner):
    store, storage = runner.store, runner.storage
    shared = [runner.tasks["take"].enqueue(InputFile.from_bytes(b"shared", name=str(n))) for n in range(2)]
    alone = runner.tasks["take"].enqueue(InputFile.from_bytes(b"alone", name="a"))
    hashes = {file.sha256 for job in (*shared, alone) for file in job.files}
    orphan, _ = storage.put(io.BytesIO(b"its transaction was rolled back"), 100)
    settings = runner.settings
    assert prune(store, storage, settings) == Pruned()
    age(storage)
    assert prune(store, storage, settings) == Pruned(thrown_away=1)
    assert content(storage) == (sorted(hashes), [orphan])
    # jobs go, one of two that share a file first
    old = datetime.now(UTC) - timedelta(days=8)
    for job in (shared[0], alone):
        job.cancel()
    _end_long_ago(store, old, shared[0].id, alone.id)
    done = prune(store, storage, settings)
    assert (done.jobs, done.thrown_away, done.deleted) == (2, 1, 0)
    assert content(storage)[0] == [shared[1].files[0].sha256]
    age(storage, 3700)
    assert prune(store, storage, settings) == Pruned(deleted=2)
    assert content(storage) == ([shared[1].files[0].sha256], [])
    assert shared[1].files[0].read() == b"shared"


def _end_long_ago(store: Store, at: datetime, *ids: str) -> None:
    moment = at.strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    with store._transactions.open().begin() as connection:
        for id in ids:
            connection.exec_driver_sql(
                f"UPDATE forkrunner_jobs SET finished_at = '{moment}' WHERE id = '{id}'"
            )
    _ids_made(store, at, *ids)


def test_a_put_and_a_deletion_of_the_same_content(runner: Runner):
    """A put finds content, which then is thrown away, and only then comes the row: nothing is lost, at no moment."""
    store, storage = runner.store, runner.storage
    sha256, _ = storage.put(io.BytesIO(b"wanted"), 100)
    age(storage)
    # what the put sees, and does nothing more
    call = runner.tasks["take"].call(InputFile.from_bytes(b"wanted", name="x"))
    prune_content(store, storage, Pruned())
    assert content(storage) == ([], [sha256])
    (job,) = runner.enqueue_many([call])
    assert job.files[0].read() == b"wanted"
    assert storage.fetch(sha256, storage.url, "copy").read_bytes() == b"wanted"
    # an hour later it comes back
    age(storage, 3700)
    prune_content(store, storage, Pruned())
    assert content(storage) == ([sha256], [])
    assert job.files[0].read() == b"wanted"
    # put anew while it is in the bin: there are two for a while
    storage.throw_away(sha256)
    runner.tasks["take"].enqueue(InputFile.from_bytes(b"wanted", name="x"))
    assert content(storage) == ([sha256], [sha256])
    age(storage, 3700)
    prune_content(store, storage, Pruned())
    assert content(storage) == ([sha256], [])


def test_puts_and_prunes_all_at_once(runner: Runner, sqlite_database: str):
    """Content that is wanted again and again is thrown away, deleted and put by five threads: each job has its file."""
    store, storage = runner.store, runner.storage
    problems: list[str] = []
    stop = threading.Event()

    def pruner() -> None:
        while not stop.is_set():
            try:
                # no grace for what was just stored; an hour in the bin is a second here
                for name, sha256 in storage.thrown_away(1):
                    (
                        storage.take_back
                        if sha256 in store.named({sha256})
                        else lambda n, s: storage.delete(n)
                    )(name, sha256)
                for hashes in storage.old(-10):
                    for sha256 in set(hashes) - store.named(hashes):
                        storage.throw_away(sha256)
            except Exception as error:  # noqa: BLE001 - told at the end
                problems.append(f"prune: {error!r}")

    def putter(number: int) -> None:
        for round in range(15):
            try:
                data = b"content %d" % (round % 3)
                job = runner.tasks["take"].enqueue(InputFile.from_bytes(data, name="x"))
                for _ in range(3):
                    if job.files[0].read() != data:
                        problems.append("other content")
                # nobody wants it now
                job.cancel()
                store.delete_old(-100 * DAY, -100 * DAY, after=FIRST, limit=1000)
            except JobNotFound:
                pass
            except Exception as error:  # noqa: BLE001 - told at the end
                problems.append(f"put: {error!r}")

    pruners = [threading.Thread(target=pruner) for _ in range(2)]
    putters = [threading.Thread(target=putter, args=(number,)) for number in range(3)]
    for thread in pruners + putters:
        thread.start()
    for thread in putters:
        thread.join()
    stop.set()
    for thread in pruners:
        thread.join()
    assert problems == []


def test_what_was_never_stored_whole_goes_after_a_day(runner: Runner):
    runner.storage.put(io.BytesIO(b"x"), 10)
    left = Path(runner.storage.url, "incoming", "half")
    left.write_bytes(b"half of it")
    prune_content(runner.store, runner.storage, Pruned())
    assert left.exists()
    age(runner.storage, 2 * DAY)
    prune_content(runner.store, runner.storage, Pruned())
    assert not left.exists()


def test_two_databases_in_one_storage_are_refused(runner: Runner, tmp_path: Path):
    """The pruning of the one would delete the files of the other."""
    runner.tasks["take"].enqueue(InputFile.from_bytes(b"mine", name="x"))
    other = Runner(f"sqlite:///{tmp_path}/other.db", storage=runner.storage.url)

    @other.task
    def take(source: InputFile) -> None: ...

    with pytest.raises(StorageError, match="has the files of another database"):
        take.enqueue(InputFile.from_bytes(b"theirs", name="x"))
    assert other.store.counts() == {}
    age(runner.storage)
    with pytest.raises(StorageError, match="each needs a `storage` of its own"):
        prune(other.store, other.storage, other.settings)
    assert len(content(runner.storage)[0]) == 1
    other.close()


# ------------------------------------------------------------------------------ who does it


APP = """
from forkrunner import InputFile, OutputFile, Runner

runner = Runner(retention="1s", retention_failed="40d")


@runner.task
def copy(source: InputFile) -> OutputFile:
    return OutputFile(source)


@runner.task
def fail() -> None:
    raise ValueError
"""


def test_a_supervisor_prunes_by_a_process_of_its_own(cli: Cli, database: str):
    with Bed(cli, database, source=APP) as bed:
        cli.env["FORKRUNNER_STORAGE"] = str(bed.folder / "storage")
        (bed.folder / "a.txt").write_text("a")
        process = bed.start(prune_interval="2s")
        ids = bed.enqueue("fail", count=2)
        runner = Runner(database, storage=str(bed.folder / "storage"))
        job = runner.enqueue("copy", {"source": InputFile.from_path(bed.folder / "a.txt")})
        wait_until(lambda: job.id not in {row.id for row in bed.store.list()}, LONG)
        process.wait_log(r"pruned 1 jobs, and 0 files", LONG)
        # what failed stays longer, as the code says
        assert {row.id for row in bed.store.list()} == set(ids)
        # it has a title and ends; a second one does not start beside it
        process.wait_ps("forkrunner: prune", LONG)
        runner.close()
        bed.stop(process)


def test_the_command(cli: Cli, sqlite_database: str):
    with Bed(cli, sqlite_database, source=APP) as bed:
        process = bed.start(prune_interval=0)
        (bed.folder / "a.txt").write_text("a")
        runner = Runner(sqlite_database)
        job = runner.enqueue("copy", {"source": InputFile.from_path(bed.folder / "a.txt")})
        job.wait(LONG)
        wait_until(lambda: cli.run("prune", "jobs:runner", "--dry-run").stdout == "1 jobs would go\n", LONG)
        assert cli.run("prune", "--json", "--dry-run", "jobs:runner", "--retention", "1h").json == {"jobs": 0}
        age(runner.storage)
        told = cli.run("prune", "jobs:runner").stdout
        assert told.startswith("deleted 1 jobs; threw away 1 files, which leave the disk in an hour")
        assert bed.store.list() == []
        age(runner.storage)
        assert cli.run("prune", "jobs:runner", "--json").json == {"jobs": 0, "files": 0, "deleted": 1}
        assert content(runner.storage) == ([], [])
        # nobody guesses how long an application wants its jobs to be kept
        refused = cli.run("prune", status=2)
        assert "name the application" in refused.stderr
        cli.run("prune", "--retention", "1h", "--retention-failed", "0")
        runner.close()
        bed.stop(process)
