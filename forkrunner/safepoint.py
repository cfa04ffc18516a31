"""Safe points: where a job may leave before it is finished, and from where its next run goes on.

The mold and its children share a board of memory with a few bytes for each pid. The mold writes there what it
wants of a child, and the child reads it when its task passes a safe point: no signal, which C code may never let
through, would lose, or would be interrupted by; no descriptor; nothing that a job which does not ask pays for.

    byte 0      what the mold wants; 0: nothing
    bytes 2, 3  written by the child at its first safe point: a mark of its job, since pids come again
    bytes 4-7   for how long it has been paused, milliseconds
"""

from __future__ import annotations

import json
import os

from .current import current
from .errors import CursorError, LeaveJob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What may be wanted, the more urgent ones last.
NEAR_LIMIT, RELOAD, STOP, CANCEL = 1, 2, 3, 4
#: As the supervisor names them.
WANTED = {"reload": RELOAD, "stop": STOP}

_SENTENCES = {
    NEAR_LIMIT: "left at a safe point: its time limit was near",
    RELOAD: "left at a safe point: the application was reloaded",
    STOP: "left at a safe point: its supervisor stops",
    CANCEL: "left at a safe point: cancelled",
}

#: Bytes of a cursor as JSON.
CURSOR_LIMIT = 64 * 1024
#: Of a pid on the board.
_SLOT = 8
#: No kernel gives out more pids. What is never touched of the board takes no memory.
BOARD_SIZE = _SLOT << 22


class Board:
    """The mold's side: what it wants of each child."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory

    def ask(self, pid: int, wish: int) -> None:
        """Want this of a child, unless something more urgent is wanted already."""
        at = pid * _SLOT
        self.memory[at] = max(self.memory[at], wish)

    def is_used(self, pid: int, job_id: str) -> bool:
        """Say whether the job has passed a safe point."""
        at = pid * _SLOT
        return self.memory[at + 2 : at + 4] == _mark(job_id)

    def note_pause(self, pid: int, seconds: float) -> None:
        """Tell a child for how long it has been paused, all in all."""
        at = pid * _SLOT + 4
        self.memory[at : at + 4] = min(int(seconds * 1000), 0xFFFFFFFF).to_bytes(4, "little")

    def clear(self, pid: int) -> None:
        """Forget what was wanted of a child that is dead: its pid will come again."""
        at = pid * _SLOT
        self.memory[at : at + _SLOT] = bytes(_SLOT)


def _mark(job_id: str) -> bytes:
    # the last digits of an id are random; never 0
    return (int(job_id[-4:], 16) | 1).to_bytes(2, "little")


#: The byte of this process on the board; until it is known, one that says: look closer.
_UNKNOWN = memoryview(b"\1")
_wish = _UNKNOWN


def safe_point(cursor: Any = None) -> None:
    """Let the job leave here if somebody waits for that; else return at once, in less than a microsecond.

    It leaves when its supervisor stops, when it was cancelled, when its `timeout` is near, and on a reload if its
    task says `requeue_on_reload=True`: the attempt ends as `requeued`, which counts as nothing, or as
    `cancelled`. The next attempt gets the last `cursor`, any JSON value of at most 64 KiB, as
    `current_job().cursor`; with None it keeps what it has. Near is less than a tenth of `timeout` or than `grace`, and
    never its first half; then it leaves only with another cursor than it came with, or it would begin again and
    again. A task with `at_most_once` leaves only when cancelled.

    Leaves by raising LeaveJob, no Exception, so that `except Exception` does not keep it; `finally` and `with` do
    what they always do. Outside of a job, and in a process that a job has forked, it does nothing.
    Raises CursorError at the first call, and when it leaves, if the cursor is not JSON or too large.
    """
    if _wish[0]:
        _look_closer(cursor)


def _look_closer(cursor: Any) -> None:
    global _wish
    job, board = current.job, current.board
    if job is None or board is None or os.getppid() != current.mold:
        return
    at = os.getpid() * _SLOT
    if _wish is _UNKNOWN:
        if cursor is not None:
            _dump(cursor)
        board[at + 2 : at + 4] = _mark(job["id"])
        _wish = board[at : at + 1]
    wish = _wish[0]
    if not wish:
        return
    text = None if cursor is None else _dump(cursor)
    if wish == NEAR_LIMIT and text in (None, job.get("cursor")):
        return
    outcome = "cancelled" if wish == CANCEL else "requeued"
    raise LeaveJob(_SENTENCES.get(wish, _SENTENCES[STOP]), outcome, text)


def _dump(cursor: Any) -> str:
    """Return a cursor as JSON.

    Raises CursorError.
    """
    try:
        text = json.dumps(cursor, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CursorError(f"safe_point(): expected a cursor that is JSON: {error}") from None
    if len(text) > CURSOR_LIMIT:
        raise CursorError(
            f"safe_point(): expected a cursor of at most {CURSOR_LIMIT} bytes as JSON, got {len(text)}"
        )
    return text


def paused_seconds() -> float:
    """In a job: for how long it has been paused."""
    board = current.board
    if board is None or os.getppid() != current.mold:
        return 0.0
    at = os.getpid() * _SLOT + 4
    return int.from_bytes(board[at : at + 4], "little") / 1000
