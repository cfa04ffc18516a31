"""The migrations make what schema.py declares, from nothing and once, on every database."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from forkrunner import schema
from forkrunner.errors import SchemaError
from forkrunner.store import Store


@pytest.fixture
def migrated(database: str) -> str:
    store = Store(database)
    assert store.migrate() == (None, schema.REVISION)
    store.close()
    return database


@pytest.fixture
def connection(migrated: str):
    engine = sa.create_engine(Store(migrated)._database.url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_the_revisions_are_those_of_the_scripts():
    config = Config()
    config.set_main_option("script_location", "forkrunner:migrations")
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    assert tuple(script.revision for script in scripts) == schema.REVISIONS


def test_the_migrations_make_what_is_declared(connection: sa.Connection):
    def ours(name: str | None, kind: str, parents: object) -> bool:
        return kind != "table" or name in schema.metadata.tables

    context = MigrationContext.configure(
        connection,
        opts={"include_name": ours, "compare_type": True, "version_table": schema.VERSION_TABLE},
    )
    assert compare_metadata(context, schema.metadata) == []


def test_and_what_a_comparison_does_not_see(connection: sa.Connection, tmp_path: Path):
    """Checks, predicates of indexes, storage: as the declared tables have them, made from nothing."""
    declared = tmp_path / "declared.db"
    engine = sa.create_engine(
        f"sqlite:///{declared}" if connection.dialect.name == "sqlite" else connection.engine.url
    )
    with engine.begin() as other:
        migrated = describe(connection)
        connection.rollback()
        if connection.dialect.name != "sqlite":
            other.execute(sa.text("CREATE SCHEMA declared"))
            other.execute(sa.text("SET LOCAL search_path = declared"))
        schema.metadata.create_all(other)
        assert describe(other) == migrated
        assert len(migrated) >= 7
    engine.dispose()


def describe(connection: sa.Connection) -> list[tuple]:
    if connection.dialect.name == "sqlite":
        query = (
            "SELECT name, sql FROM sqlite_master WHERE name LIKE '%forkrunner%' AND name NOT LIKE '%version%'"
        )
    else:
        query = """
            SELECT conname, pg_get_constraintdef(c.oid) FROM pg_constraint c
            WHERE connamespace = current_schema::regnamespace AND conname NOT LIKE '%version%'
            UNION ALL SELECT indexname, indexdef FROM pg_indexes
            WHERE schemaname = current_schema AND indexname NOT LIKE '%version%'
            UNION ALL SELECT relname, reloptions::text FROM pg_class
            WHERE relnamespace = current_schema::regnamespace AND relkind = 'r' AND relname NOT LIKE '%version%'
            """
    words = [
        # in any order: a column that a migration adds stands behind the constraints
        (name, sorted(re.split(r",\s+", re.sub(r"\s+|\w+\.(?=forkrunner)", " ", (sql or "").rstrip(" )\n")))))
        for name, sql in connection.execute(sa.text(query))
    ]
    return sorted(words)


def test_migrating_again_changes_nothing(migrated: str):
    store = Store(migrated)
    assert store.migrate() == (schema.REVISION, schema.REVISION)
    store.close()


def test_the_tables_of_the_application_are_left_alone(database: str):
    engine = sa.create_engine(Store(database)._database.url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE jobs (id INTEGER)"))
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
    store = Store(database)
    store.migrate()
    assert store.counts() == {}
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT * FROM alembic_version")).scalars().all() == ["theirs"]
        assert connection.execute(sa.text("SELECT * FROM jobs")).all() == []
    engine.dispose()
    store.close()


@pytest.mark.parametrize(
    ("revision", "words"),
    [("9999", "newer than .*: install the release"), ("0000", "expected .*: run `forkrunner migrate`")],
)
def test_a_schema_of_another_release_is_refused_in_one_line(migrated, revision, words, monkeypatch):
    monkeypatch.setattr("forkrunner.revision.REVISIONS", ("0000", *schema.REVISIONS))
    engine = sa.create_engine(Store(migrated)._database.url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE forkrunner_version SET version_num = '{revision}'"))
    engine.dispose()
    store = Store(migrated)
    for call in (store.check_schema, store.counts, lambda: store.claim("a", 1, None)):
        with pytest.raises(SchemaError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    if revision == "9999":
        with pytest.raises(SchemaError, match=words):
            store.migrate()
    store.close()


def test_an_empty_server_says_what_to_run(postgresql_database: str):
    store = Store(postgresql_database)
    with pytest.raises(SchemaError, match="run `forkrunner migrate`"):
        store.check_schema()
    store.migrate()
    store.check_schema()
    store.close()


def test_an_embedded_file_makes_itself(sqlite_database: str):
    store = Store(sqlite_database)
    assert store.counts() == {}
    store.close()


def test_it_makes_what_the_migrations_would(sqlite_database: str, tmp_path: Path):
    """Down to Alembic's own table; and without Alembic, which is large."""
    code = "import sys; from forkrunner.store import Store; Store(sys.argv[1]).counts(); print('alembic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, sqlite_database], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    Store(f"sqlite:///{tmp_path}/migrated.db").migrate()
    found = []
    for url in (sqlite_database, f"sqlite:///{tmp_path}/migrated.db"):
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            table = "SELECT sql FROM sqlite_master WHERE name = 'forkrunner_version'"
            words = re.sub(r"\s+", " ", connection.scalar(sa.text(table)) or "")
            rows = connection.execute(sa.text("SELECT * FROM forkrunner_version")).all()
            found.append((describe(connection), words, rows))
        engine.dispose()
    assert found[0] == found[1]
    store = Store(sqlite_database)
    assert store.migrate() == (schema.REVISION, schema.REVISION)
    store.close()


def test_tables_that_vanish_under_a_running_process(migrated: str):
    store = Store(migrated)
    store.counts()
    engine = sa.create_engine(store._database.url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE forkrunner_jobs"))
    engine.dispose()
    with pytest.raises(SchemaError, match="forkrunner migrate"):
        store.counts()
    store.close()


FIRST_USE = """
import sys
from forkrunner.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
store.counts() if sys.argv[1].startswith("sqlite") else store.migrate()
assert store.counts() == {}
store.close()
"""


def test_several_processes_may_come_first(database: str):
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    command = [sys.executable, "-c", FIRST_USE, database]
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60) for process in processes] == [("", "")] * 4
    assert [process.returncode for process in processes] == [0] * 4


def test_a_normal_start_does_not_import_alembic(migrated: str):
    code = f"""
import sys
from forkrunner.store import Store
store = Store({migrated!r}, role="supervisor")
store.check_schema()
store.close()
assert "alembic" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_times_as_text_sort_as_they_are():
    zone = timezone(timedelta(hours=5, minutes=30))
    moments = [
        datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 1, 1, 5, 29, 59, tzinfo=zone),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 5, 30, 0, 1, tzinfo=zone),
    ]
    texts = [schema.to_text(moment) for moment in moments]
    assert texts == sorted(texts)
    assert [datetime.fromisoformat(text) for text in texts] == moments
    assert texts[2] == "2026-01-01T00:00:00.000000Z"
    assert {len(text) for text in texts} == {27}


def test_the_tables_of_the_first_release_are_brought_to_this_one(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """With what is in them: the new columns of an attempt of then say nothing."""
    from alembic import command

    from forkrunner.records import New

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
    store = Store(database)
    store.migrate()
    monkeypatch.undo()
    engine = sa.create_engine(store._database.url)
    id = "0198c5d2-0000-7000-8000-000000000001"
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO forkrunner_attempts (job_id, attempt, outcome) VALUES (:id, 1, 'done')"),
            {"id": id},
        )
        columns = "id, task, queue, state, priority, run_at, created_at, arguments, attempt, tries, crashes"
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        connection.execute(
            sa.text(
                f"INSERT INTO forkrunner_jobs ({columns}) VALUES (:id, 't', 'q', 'done', 0, :at, :at, '{{}}', 1, 1, 0)"
            ),
            {"id": id, "at": moment if connection.dialect.name == "postgresql" else schema.to_text(moment)},
        )
    engine.dispose()
    store.close()
    with pytest.raises(SchemaError, match=r"of revision 0001, expected .*: run `forkrunner migrate`"):
        store.check_schema()
    assert store.migrate() == ("0001", schema.REVISION)
    (attempt,) = store.get(id).attempts
    assert (attempt.outcome, attempt.run_seconds, attempt.steps) == ("done", None, None)
    store.enqueue([New(id=id[:-1] + "2", task="t", queue="q", arguments="{}")])
    store.close()
