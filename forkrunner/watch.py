"""How a job stands, for whoever watches: from its progress if there is any, else from its row.

Used by web servers, the command line and `Runner.progress`. What it returns is what the HTTP endpoint sends as JSON:

    id, state, fraction, message, detail, attempt, position, due_at, started_at, updated_at, eta_seconds

and of a job that has failed by a UserError the text of that as `error`, with `user_error` true.

A job whose result is one file has `file` too: its address below the mount of the endpoint, which knows it by that alone.

`fraction` is 0…1, or None where nobody knows; `position` is the number of jobs that start before a pending one, in all queues
that are served together with its own, as far as the supervisors tell, else in all (counted up to 1000); `due_at` is when one
that is not due yet may start, and such a one has no position; times are ISO 8601 in UTC; `eta_seconds` are from `updated_at` on.

While there is progress the database is not asked. An entry may be left behind by a host that died, or because memcached
did not hear that it was to go: so one that is older than a minute counts only if the row says, once in ten seconds, that the
attempt is still running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from . import clock
from .errors import StoreUnavailable
from .job import ENDED, State, user_error

if TYPE_CHECKING:
    from .places import Entry, Reader
    from .records import Standing
    from .store import Store

View = dict[str, Any]

#: Seconds for which an entry is believed, and for which the row's word about an older one is.
_FRESH, _CONFIRMED = 60.0, 10.0
#: How many such words are remembered.
_MOST_CONFIRMED = 10_000
#: Seconds between two looks of `follow`: while something is busy, while all wait, and at most while none of them is due.
_BUSY_PAUSE, _PENDING_PAUSE, _EARLY_PAUSE = 0.15, 0.5, 5.0


class Watcher:
    """Looks at jobs. May be shared by threads and inherited by forks."""

    def __init__(self, store: Callable[[], Store], reader: Reader) -> None:
        """Prepare; nothing is connected before the first look, and a look may need no `store`."""
        self._store = store
        self._reader = reader
        #: (id, attempt) → until when it is known to run, by the monotonic clock.
        self._confirmed: dict[tuple[str, int], float] = {}

    def look(self, ids: Collection[str]) -> dict[str, View]:
        """Return how these jobs stand, those that exist; ids are in their canonical form.

        Raises: StoreUnavailable, if one has no progress and the database is away.
        """
        entries = self._reader.get_many(ids)
        now, wall = clock.monotonic(), clock.wall()
        doubtful = [id for id, entry in entries.items() if self._is_doubtful(id, entry, now, wall)]
        asked = [id for id in ids if id not in entries] + doubtful
        try:
            rows = self._store().standing(asked) if asked else {}
        except StoreUnavailable:
            if len(asked) > len(doubtful):
                raise
            return {id: _of_entry(id, entries[id]) for id in ids}
        found = {}
        for id in ids:
            entry, row = entries.get(id), rows.get(id)
            if entry is not None and (id not in doubtful or (row and self._confirms(row, entry, now))):
                found[id] = _of_entry(id, entry)
            elif row is not None:
                found[id] = _of_row(row)
        return found

    def look_at(self, id: str) -> View | None:
        """Return how one job stands; None if there is none of that id."""
        return self.look([id]).get(id)

    def close(self) -> None:
        """Close the connections to memcached; the next look opens new ones."""
        self._reader.close()

    def _is_doubtful(self, id: str, entry: Entry, now: float, wall: float) -> bool:
        updated = entry.get("updated_at")
        if updated is not None and abs(wall - updated) < _FRESH:
            return False
        return now >= self._confirmed.get((id, entry.get("attempt", 0)), 0.0)

    def _confirms(self, row: Standing, entry: Entry, now: float) -> bool:
        if row.state is not State.BUSY or row.attempt != entry.get("attempt"):
            return False
        if len(self._confirmed) >= _MOST_CONFIRMED:
            self._confirmed.clear()
        self._confirmed[row.id, row.attempt] = now + _CONFIRMED
        return True

    def follow(self, ids: Collection[str]) -> Iterator[dict[str, View] | StoreUnavailable]:
        """Yield how these jobs stand, again and again, until all have ended; sleeps between. Goes on while the database is away."""
        while True:
            try:
                views = self.look(ids)
            except StoreUnavailable as error:
                yield error
                pause = _PENDING_PAUSE
            else:
                yield views
                if all(view["state"] in ENDED for view in views.values()):
                    return
                pause = _pause(views)
            time.sleep(pause)  # noqa: TID251 - in the caller's thread, which asked for it


def seconds_until_due(view: View) -> float | None:
    """Return how long a job that is not due yet has to wait at least, by this host's clock; None of any other."""
    due_at = view["due_at"]
    if due_at is None:
        return None
    return max(0.0, (datetime.fromisoformat(due_at) - clock.utc()).total_seconds())


def _pause(views: dict[str, View]) -> float:
    live = [view for view in views.values() if view["state"] not in ENDED]
    if any(view["state"] == State.BUSY for view in live):
        return _BUSY_PAUSE
    waits = [seconds_until_due(view) or 0.0 for view in live]
    return max(_PENDING_PAUSE, min(*waits, _EARLY_PAUSE)) if waits else _PENDING_PAUSE


def _of_entry(id: str, entry: Entry) -> View:
    updated = entry.get("updated_at")
    return {
        "id": id,
        "state": "busy",
        "fraction": entry["fraction"],
        "message": entry.get("message"),
        "detail": entry.get("detail") or {},
        "attempt": entry.get("attempt", 1),
        "position": None,
        "due_at": None,
        "started_at": _utc(entry.get("started_at")),
        "updated_at": _iso(clock.from_wall(updated)) if updated is not None else None,
        "eta_seconds": entry.get("eta_seconds"),
    }


def _of_row(row: Standing) -> View:
    said = user_error(row.error) if row.state is State.FAILED else None
    by_user = {} if said is None else {"error": said, "user_error": True}
    return {
        "id": row.id,
        "state": str(row.state),
        "fraction": 1.0 if row.state is State.DONE else None,
        "message": None,
        "detail": {},
        "attempt": row.attempt,
        "position": row.position,
        "due_at": _iso(row.due_at),
        "started_at": _iso(row.started_at),
        "updated_at": _iso(row.finished_at or row.started_at or row.created_at),
        "eta_seconds": None,
        **by_user,
        **({"file": row.file} if row.file else {}),
    }


def _utc(text: object) -> str | None:
    try:
        return _iso(datetime.fromisoformat(str(text)).astimezone(UTC)) if text else None
    except (ValueError, OverflowError):
        return None


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
