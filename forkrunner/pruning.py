"""What is kept no longer: jobs that ended longer ago than `retention`, and content that no job has any more.

Done by `forkrunner prune`, and now and then by a process that each supervisor starts for it (`housekeeping.py`): in
small transactions with pauses between, so that nobody who claims has to wait; a storage that hangs holds up nothing else.

What always holds:

1. A job that waits or runs is never deleted, nor is a file of it: content goes only when no row names it.
2. Rows go first. Content without a row is harmless, and is found again; a row without content is not.
3. Several may prune at the same time, and each may die at any moment.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import clock
from .errors import ForkrunnerError

if TYPE_CHECKING:
    from .config import Settings
    from .storage import Storage
    from .store import Store

#: What was stored so recently may be of a job that is not there yet, seconds; and as long content stays in the bin.
GRACE = 3600.0
#: What was begun to be stored, and was not finished, goes after so long, seconds.
_UNFINISHED = 86_400.0
#: Jobs in one transaction.
_BATCH = 200
#: Before a job that could be made.
_FIRST = "00000000-0000-0000-0000-000000000000"
#: What a retention of 0 is, seconds.
_FOR_EVER = 200 * 366 * 86_400.0


@dataclass
class Pruned:
    """What was done."""

    jobs: int = 0
    #: Content that went into the bin, and that was deleted from there.
    thrown_away: int = 0
    deleted: int = 0

    def __bool__(self) -> bool:
        return bool(self.jobs or self.thrown_away or self.deleted)


def prune(store: Store, storage: Storage, settings: Settings, *, grace: float = GRACE) -> Pruned:
    """Delete what is kept no longer, jobs first.

    Raises: StoreError, StorageError; what was deleted before stays deleted.
    """
    done = Pruned()
    prune_jobs(store, settings, done)
    prune_content(store, storage, done, grace=grace)
    return done


def kept(settings: Settings) -> tuple[float, float]:
    """Return for how many seconds ended jobs are kept, and those that failed."""
    return settings.retention or _FOR_EVER, settings.retention_failed or _FOR_EVER


def prune_jobs(store: Store, settings: Settings, done: Pruned) -> None:
    """Delete jobs that ended too long ago, the oldest first."""
    after: str | None = _FIRST
    while after is not None:
        started = clock.monotonic()
        batch = store.delete_old(*kept(settings), after=after, limit=_BATCH)
        done.jobs, after = done.jobs + batch.jobs, batch.after
        if after is not None:
            # on SQLite whoever claims waits for us: at most half of the time
            time.sleep(max(0.01, clock.monotonic() - started))  # noqa: TID251 - a process of its own


def prune_content(store: Store, storage: Storage, done: Pruned, *, grace: float = GRACE) -> None:
    """Throw away content that no job has, delete what was thrown away before, and take back what was so by mistake."""
    if not storage.is_there():
        return
    storage.claim()
    thrown_away = storage.thrown_away(grace)
    for i in range(0, len(thrown_away), 100):
        some = thrown_away[i : i + 100]
        named = store.named({sha256 for _, sha256 in some})
        for name, sha256 in some:
            if sha256 in named:
                storage.take_back(name, sha256)
            else:
                storage.delete(name)
                done.deleted += 1
    for hashes in storage.old(grace):
        for sha256 in set(hashes) - store.named(hashes) if hashes else ():
            storage.throw_away(sha256)
            done.thrown_away += 1
    storage.tidy(_UNFINISHED)


def main() -> None:
    """Prune once, for a supervisor: its settings are in the environment, and what is to be said goes into its log."""
    from .events import Log
    from .sources import load
    from .storage import open_storage
    from .store import Store
    from .titles import show

    # with the terminal's Ctrl-C, or with its supervisor, it simply ends
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.nice(10)
    show("prune")
    settings = load()
    log = Log(settings.log_level, settings.log_format)
    store = Store(settings.database, notify=False, timeout=settings.store_timeout)
    started = clock.monotonic()
    try:
        done = prune(store, open_storage(settings, os.getcwd(), store.database_id), settings)
        if done:
            log.emit(
                "prune.done", jobs=done.jobs, files=done.thrown_away, seconds=clock.monotonic() - started
            )
    except ForkrunnerError as error:
        log.emit("prune.failed", error=str(error))
    finally:
        log.flush()
        store.close()
