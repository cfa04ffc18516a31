"""The lease: what makes "at most one live execution of a job" true.

A supervisor owns the rows that are busy under its id while its lease lasts; whoever finds a
lease over deletes that supervisor's row and takes its jobs back. So three things must hold:

- The end that we believe in comes before the end that the database believes in: we count
  from before the call that renewed it, the database from when it got there.
- Nothing of ours runs after that end: the mold is told a moment a margin before it, by a
  clock that goes on while the host sleeps, and kills its children then, whether we are
  frozen, starved or cut off. A mold that is killed takes its children along.
- Only the database's clock decides whether a lease is over.

On its own host a supervisor can be proven dead sooner: its process is gone (boot, pid
namespace, pid and start time), and so is everything that it forked (`identity.LifeLock`).
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from . import __version__, clock, identity, survivors
from .places import place
from .records import SupervisorRow
from .signals import Poll

if TYPE_CHECKING:
    from .config import Settings
    from .store import Store

HOST = identity.HOST
#: The mold kills this share of the lease before its end.
MARGIN = 0.15
#: A mold that has not done so before this share of the lease is left is killed itself: it hangs.
LAST_MARGIN = 0.05
#: What was killed is given so long to be gone, seconds.
_DEATH_TIME = 1.0
_LIFE = ".life"


class Lease:
    """Our row among the supervisors, and the locked file that others on this host may test."""

    def __init__(self, settings: Settings) -> None:
        """Make an id and lock its file; to be done before the mold is started, which inherits the lock."""
        self._folder = identity.private_folder(settings.runtime_dir)
        self._database = place(settings)["prefix"]
        self.id = str(uuid.uuid4())
        self.lock = identity.LifeLock(_life_file(self._folder, self.id))
        # for those of the same database, if nothing else is left of us
        os.write(self.lock.fd, self._database.encode())
        self._home = (HOST, identity.boot_id(), identity.pid_namespace())
        #: By the boot-time clock: from then on the rows may be somebody else's.
        self.ends = float("inf")

    @classmethod
    def adopt(cls, settings: Settings, id: str, lock: int, store: Store, ends: float) -> Lease:
        """Take up the lease of the program that this process was before."""
        lease = object.__new__(cls)
        lease._folder, lease._database = settings.runtime_dir, place(settings)["prefix"]
        lease._store, lease.id, lease.seconds, lease.ends = store, id, settings.lease, ends
        lease.lock = identity.LifeLock.adopt(_life_file(lease._folder, id), lock)
        lease._home = (HOST, identity.boot_id(), identity.pid_namespace())
        return lease

    def take(self, store: Store, seconds: float, target: str, slots: int, molds: str | None = None) -> None:
        """Register in the database for `seconds`.

        Raises:
            StoreError: as the store does.
        """
        self._store = store
        self.seconds = seconds
        sent = clock.boottime()
        row = SupervisorRow(
            id=self.id,
            host=HOST,
            boot_id=self._home[1],
            pid_namespace=self._home[2],
            pid=os.getpid(),
            start_ticks=identity.start_ticks(os.getpid()) or 0,
            target=target,
            slots=slots,
            version=__version__,
            molds=molds,
        )
        store.register(row, seconds)
        self.ends = sent + seconds

    @property
    def taken(self) -> bool:
        return self.ends != float("inf")

    @property
    def kill_at(self) -> float:
        """Boot time at which the mold must end its children."""
        return self.ends - MARGIN * self.seconds

    @property
    def fence_at(self) -> float:
        """Boot time at which a mold that still has children must be ended."""
        return self.ends - LAST_MARGIN * self.seconds

    def renew(self, molds: str | None = None) -> bool:
        """Prolong it, and say what molds there are; False if it is lost: somebody believed us dead."""
        sent = clock.boottime()
        if not self._store.renew(self.id, self.seconds, molds):
            return False
        self.ends = sent + self.seconds
        return True

    def release(self) -> None:
        """Give it back in the database; nothing may run or wait to be written any more."""
        if self.taken:
            self._store.deregister(self.id)

    def expire_the_dead(self) -> None:
        """Delete the rows of supervisors whose lease is over or that are proven dead.

        What the jobs of those of this host have left running is killed before: their jobs may run again at once.
        """
        found = _life_files(self._folder)
        others = [other for other in self._store.supervisors() if other.id != self.id]
        if any(self._has_ended(other) for other in others):
            survivors.kill_marked()
        dead = [other.id for other in others if self._is_proven_dead(other)]
        gone = self._store.expire(dead)
        for other in others:
            if other.id in gone:
                identity.LifeLock.discard(_life_file(self._folder, other.id))
        # of who was killed before it was registered: nobody else asks for it
        for path in found - {_life_file(self._folder, other.id) for other in others}:
            if _database_of(path) == self._database:
                identity.LifeLock.free(path, discard=True)

    def _has_ended(self, other: SupervisorRow) -> bool:
        """Say whether its process is known to be gone; others of its family may be left."""
        home = (other.host, other.boot_id, other.pid_namespace)
        return home == self._home and identity.start_ticks(other.pid) != other.start_ticks

    def _is_proven_dead(self, other: SupervisorRow) -> bool:
        if not self._has_ended(other):
            return False
        life = _life_file(self._folder, other.id)
        if identity.LifeLock.free(life):
            return True
        # its mold and children died with it; a fork that one of its jobs made did not
        if not survivors.kill_holders(life):
            return False
        end = clock.monotonic() + _DEATH_TIME
        while not identity.LifeLock.free(life) and clock.monotonic() < end:
            Poll().wait(0.005)
        return identity.LifeLock.free(life)


def _life_file(folder: str, supervisor: str) -> str:
    return os.path.join(folder, supervisor + _LIFE)


def _life_files(folder: str) -> set[str]:
    try:
        return {os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(_LIFE)}
    except OSError:  # somebody has removed it
        return set()


def _database_of(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(200)
    except (OSError, ValueError):
        return ""
