"""Batches: how jobs and endings become the JSON text of a statement, cleaned and cut to what both databases take.

Used by `asking.py` and `supervising.py` only. Nothing here asks the database.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from .errors import EnqueueError
from .job import Next, State
from .records import Attempt, Ending, New
from .schema import to_text
from .supervisorsql import ATTEMPT

# Bytes of UTF-8 of what an outcome may bring along.
LIMITS = {
    "error": 2 << 10,
    "error_type": 2 << 10,
    "error_message": 16 << 10,
    "traceback": 64 << 10,
    "stacks": 64 << 10,
    "output_tail": 64 << 10,
}
#: Of these the end is worth more than the beginning.
_TAILS = frozenset({"traceback", "output_tail"})

#: Characters of a result that goes in a statement of its own.
LARGE = 256 << 10
#: How many endings, and characters of them, go well into one call.
_BATCH = 500
_BATCH_SIZE = 4 << 20

_attempt_values = operator.attrgetter(*ATTEMPT)


def clean(text: str | None, limit: int | None = None, tail: bool = False) -> str | None:
    """Make text that both databases take: NUL and lone surrogates become visible escapes, too much is cut off.

    For JSON text too: there these two characters mean what the escape says.
    """
    if text is None:
        return None
    # the usual case costs two looks and no copy
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if "\0" in text:
        text = text.replace("\0", "\\u0000")
    if limit is None or len(text) * 4 <= limit:
        return text
    data = text.encode()
    if len(data) <= limit:
        return text
    kept = data[-limit:] if tail else data[:limit]
    mark = f"[{len(data) - limit} bytes cut]"
    # half a character at the cut is dropped
    words = kept.decode("utf-8", "ignore")
    return f"{mark} {words}" if tail else f"{words} {mark}"


def ending_row(ending: Ending) -> dict[str, Any]:
    """Return an ending as one row of a batch: what is None is left out, and so is NULL."""
    attempt, after = ending.attempt, ending.next
    row: dict[str, Any] = {
        "state": after.state.value,
        "tries": after.tries,
        "crashes": after.crashes,
        "delay": after.delay,
    }
    if ending.result is not None:
        row["result"] = clean(ending.result)
    if ending.error is not None:
        row["error"] = clean(ending.error, LIMITS["error"])
    if ending.cursor is not None:
        row["cursor"] = clean(ending.cursor)
    for name, value in zip(ATTEMPT, _attempt_values(attempt), strict=True):
        if value is None:
            continue
        kind = type(value)
        if kind is str:
            value = clean(value, LIMITS.get(name), name in _TAILS)
        elif kind is datetime:
            value = to_text(value)
        row[name] = value
    return row


def without_details(ending: Ending, error: Exception) -> Ending:
    """Return what can still be said of an ending that the database refused."""
    attempt, after = ending.attempt, ending.next
    words = f"outcome could not be stored: {error}"
    # without its result it is not done; nor is it run again, for it did run
    state = State.FAILED if after.state is State.DONE else after.state
    return Ending(
        Attempt(attempt.job_id, attempt.attempt, attempt.outcome, attempt.supervisor, error_message=words),
        Next(state, after.tries, after.crashes, after.delay),
        error=words,
        # it would tell of success
        notice=ending.notice if state is after.state else None,
    )


def new_row(row: New) -> dict[str, Any]:
    for name in ("task", "queue", "arguments", "options"):
        if "\0" in (getattr(row, name) or ""):
            raise EnqueueError(f"expected text without NUL characters as {name}, got some", task=row.task)
    return {
        "id": row.id,
        "task": row.task,
        "queue": row.queue,
        "arguments": row.arguments,
        "priority": row.priority,
        "options": row.options,
        "delay": row.delay,
        "run_at": None if row.run_at is None else to_text(row.run_at),
    }


def pack(rows: list[dict[str, Any]]) -> str:
    return msgspec.json.encode(rows).decode()


def is_large(ending: Ending) -> bool:
    """Say whether some of it goes in a statement of its own."""
    return (
        ending.output is not None
        or bool(ending.files)
        or len(ending.result or "") > LARGE
        or ending.notice is not None
    )


def first_of(endings: Iterable[Ending]) -> list[Ending]:
    """Return as many of the first endings as one call of `finish` or `turn` writes well within its time."""
    taken: list[Ending] = []
    size = 0
    for ending in itertools.islice(endings, _BATCH):
        attempt = ending.attempt
        texts = (
            ending.result,
            ending.output,
            attempt.error_message,
            attempt.traceback,
            attempt.stacks,
            attempt.output_tail,
        )
        size += sum(len(text) for text in texts if text)
        # at least one, whatever its size
        if taken and size > _BATCH_SIZE:
            break
        taken.append(ending)
    return taken
