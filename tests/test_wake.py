"""A waker wakes for what others enqueue, and does not make the loop spin."""

from __future__ import annotations

import os
import select
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkrunner.records import New, SupervisorRow
from forkrunner.store import Store
from forkrunner.wake import Waker, open_waker
from tests.servers import Postgres


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = Store(database)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def waker(database: str, store: Store) -> Iterator[Waker]:
    waker = open_waker(database)
    yield waker
    waker.close()


def put(store: Store, **facts) -> str:
    row = New(str(uuid.uuid4()), "t", "default", "{}", **facts)
    store.enqueue([row])
    return row.id


def ready(waker: Waker, seconds: float = 5) -> bool:
    """As the loop waits: by poll(2)."""
    poll = select.poll()
    poll.register(waker.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_an_enqueue_wakes(waker, store):
    assert waker.kind in ("listen", "inotify")
    waker.drain()
    assert not ready(waker, 0.05)
    assert not waker.drain()
    for _ in range(3):
        put(store)
        assert ready(waker)
        assert waker.drain()
        while ready(waker, 0.05):
            waker.drain()
        assert not waker.drain()


def test_a_request_to_cancel_wakes_too(waker, store):
    job = put(store)
    store.register(SupervisorRow("a", "h", "b", "n", 1, 1, "t", 1, "v"), 60)
    store.claim("a", 1, None)
    while ready(waker, 0.05):
        waker.drain()
    store.cancel(job, None)
    assert ready(waker)
    assert waker.drain()


def test_to_look_in_vain_does_not_wake(waker, store, database):
    """Else the look that follows our own write would be followed by another one, for ever."""
    supervisor = Store(database, role="supervisor")
    supervisor.register(SupervisorRow("a", "h", "b", "n", 1, 1, "t", 1, "v"), 60)
    while ready(waker, 0.05):
        waker.drain()
    for _ in range(5):
        assert supervisor.turn("a", [], 4, None) == ({}, [])
        supervisor.next_due(None)
        assert not ready(waker, 0.02)
    supervisor.close()


def test_without_notify_a_server_stays_silent(postgresql_database):
    store = Store(postgresql_database, notify=False)
    store.migrate()
    waker = open_waker(postgresql_database)
    put(store)
    assert not ready(waker, 0.2)
    waker.close()
    store.close()


def test_close_twice(waker):
    waker.close()
    waker.close()
    assert waker.fileno() == -1


def test_the_descriptor_is_not_inherited_by_programs(waker):
    assert not os.get_inheritable(waker.fileno())


# ------------------------------------------------------------------------------------- PostgreSQL


def test_a_lost_connection_wakes_once_and_then_is_silent(postgres: Postgres, postgresql_database: str):
    waker = open_waker(postgresql_database)
    fd = waker.fileno()
    postgres.restart("fast")
    woken = 0
    while waker.kind == "listen":  # first its farewell is read, then the end
        assert ready(waker)
        woken = waker.drain()
    assert woken
    assert waker.reason
    # a dead socket would be ready for ever, and its number might become somebody else's
    assert waker.fileno() == fd
    assert not ready(waker, 0.05)
    assert not waker.drain()
    waker.close()
    again = open_waker(postgresql_database)
    assert again.kind == "listen"
    again.close()


def test_behind_a_pooler_that_swallows_notifications_it_is_polling(pgbouncer, postgresql_database):
    waker = open_waker(pgbouncer.url(postgresql_database.rpartition("/")[2]))
    assert waker.kind == "poll"
    assert "pooler" in waker.reason
    assert waker.fileno() == -1
    assert not waker.drain()
    waker.close()


def test_an_absent_server_is_polling():
    waker = open_waker("postgresql://nobody@127.0.0.1:1/none")
    assert (waker.kind, waker.fileno()) == ("poll", -1)
    assert waker.reason


def test_a_silent_server_is_polling(postgres: Postgres, postgresql_database: str):
    postgres.pause()
    waker = open_waker(postgresql_database)
    assert waker.kind == "poll"
    assert waker.reason


# ----------------------------------------------------------------------------------------- SQLite


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
def test_a_file_that_is_not_there_yet(sqlite_database: str):
    waker = open_waker(sqlite_database)
    assert waker.kind == "inotify"
    store = Store(sqlite_database)
    for _ in range(3):  # each close of the last connection deletes the log, each use makes a new one
        put(store)
        assert ready(waker)
        assert waker.drain()
        put(store)
        assert ready(waker)
        assert waker.drain()
        store.close()
        while ready(waker, 0.05):
            waker.drain()
    waker.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
def test_other_files_in_the_folder_mean_nothing(sqlite_database: str, tmp_path: Path):
    store = Store(sqlite_database)
    store.counts()
    waker = open_waker(sqlite_database)
    waker.drain()
    for name in ("x", "jobs.db-journal", "jobs.db-wal.bak"):
        (tmp_path / name).write_text("x")
    assert not waker.drain()
    waker.close()
    store.close()


def test_a_folder_that_is_not_there_is_polling(tmp_path: Path):
    waker = open_waker(f"sqlite:///{tmp_path}/none/jobs.db")
    assert waker.kind == "poll"
    assert waker.reason
