"""How a store does its work in a transaction: the engine, its connections over forks and outages, one more try.

Used by the store only, whose methods say what is done. Nothing here knows a statement of ours.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import exc

from . import clock, revision
from .database import BARE, PATIENCE, Silent, pause
from .errors import SchemaError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sqlalchemy.engine import Connection, Engine

    from .database import Database

T = TypeVar("T")


class Transactions:
    """The connections to one database, opened at the first use. Roles, threads and errors: as `Store` says."""

    def __init__(self, database: Database, role: str) -> None:
        self.database = database
        self.role = role
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        #: Closes the engine: by `close`, when the store is collected, or at the end of the process.
        self._closing: weakref.finalize[Any, Any] | None = None
        #: The tables were seen to be of this release, through this engine.
        self.ready = False
        self._process = os.getpid()

    def close(self) -> None:
        """Close every connection; the next call opens one again."""
        with self._lock:
            self._engine, self.ready = None, False
            if self._closing is not None:
                self._closing()

    def forget(self) -> None:
        """Drop every connection without touching it: for a process that inherited them over a fork.

        To close one there would end the parent's session, or with SQLite take its locks and log away; so would
        Python's collecting it. Done by itself after a fork; may be done again.
        """
        # another thread may have held it at the fork, and that thread is not here
        self._lock = threading.RLock()
        self._engine, self.ready = None, False
        self._process = os.getpid()
        if self._closing is not None:
            self._closing.detach()
            self._closing = None
            self.database.abandon()

    def open(self) -> Engine:
        if self._process != os.getpid():
            self.forget()
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    _watch_forks(self)
                    engine = self.database.engine()
                    self._closing = weakref.finalize(self, _close, self.database, engine, os.getpid())
                    self._engine = engine
        return engine

    def read(self, work: Callable[[Connection], T]) -> T:
        return self.run(work, bare=True, repeat=True)

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        bare: bool = False,
        alone: bool = False,
        repeat: bool = False,
    ) -> T:
        """Do `work` in a transaction, or `bare`: each statement by itself.

        `alone`: the work is one statement where the session is ours, and then that is the transaction.

        A connection of the pool may have died since it was used last. That shows when the transaction begins; then,
        or if the work may be done twice anyway (`repeat`), it is tried once more on a new one.
        """
        database = self.database
        patience = clock.monotonic() + PATIENCE[self.role]
        fresh = False
        while True:
            begun = False
            try:
                database.check()
                with database.deadline():
                    engine = self.open()
                    if not self.ready:
                        revision.see(database, engine, self.role)
                        self.ready = True
                    with engine.connect() as connection:
                        if alone and database.is_ours(connection):
                            # from here on an error leaves open whether it happened
                            begun = bare = True
                        if bare:
                            connection.execution_options(**BARE)
                            return work(connection)
                        with connection.begin():
                            begun = True
                            return work(connection)
            except Silent as silence:
                self.close()
                raise database.error_of(silence) from silence
            except exc.TimeoutError as full:
                raise StoreUnavailable(f"{database}: all connections of this process are in use") from full
            except exc.DBAPIError as failed:
                error = database.error_of(failed)
                if isinstance(error, StoreUnavailable) and error.busy and clock.monotonic() < patience:
                    pause(0.01)
                elif failed.connection_invalidated and not fresh and (repeat or not begun):
                    fresh = True
                else:
                    if isinstance(error, SchemaError):
                        self.ready = False
                    raise error from failed
            except StoreError as error:
                if error.facts.get("replaced"):
                    # said once; the next call opens, or makes, the file that is there now
                    self.close()
                raise


def _close(database: Database, engine: Engine, process: int) -> None:
    if os.getpid() != process:
        return
    engine.dispose()
    database.close()


# Those with connections, to be told of a fork. A weak set: it must not keep one alive.
_all: weakref.WeakSet[Transactions] = weakref.WeakSet()
_watching = False


def _watch_forks(one: Transactions) -> None:
    global _watching
    _all.add(one)
    if not _watching:
        # at the first connection and not at import, which changes nothing in the process
        os.register_at_fork(after_in_child=_forget_all)
        _watching = True


def _forget_all() -> None:
    for one in tuple(_all):
        one.forget()
