"""What is wanted of the running jobs of a mold: to leave at their next safe point, to stand still, to go on.

To be ended by force is another matter: `children.py` has the ladder.
"""

from __future__ import annotations

import os

from . import process, safepoint
from .current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .children import Child, Children


class Wanted:
    """Writes on the board that children look at when they pass a safe point; freezes and thaws them."""

    def __init__(self, children: Children, tasks: Mapping[str, Any], board: memoryview) -> None:
        self._children = children
        self._tasks = tasks
        self._board = safepoint.Board(board)
        current.board, current.mold = self._board.memory, os.getpid()
        #: What is wanted of all that run, and of all that start from now on; 0: nothing.
        self.of_all = 0

    def ask_all(self, now: float) -> None:
        """Ask what runs to leave at its next safe point, as is wanted of all."""
        for busy in self._children.busy.values():
            if self.of_all == safepoint.STOP:
                # frozen it would neither leave nor end by itself
                self.resume(busy, now)
            self.ask(busy, self.of_all)

    def ask(self, busy: Child, wish: int) -> None:
        """Want something of a child, if its task allows it."""
        assert busy.job is not None
        task = self._tasks[busy.job["task"]]
        if wish != safepoint.CANCEL and task.at_most_once:
            return  # given back it would never run again
        if wish == safepoint.RELOAD and not task.requeue_on_reload:
            return
        self._board.ask(busy.pid, wish)
        busy.asked = True

    def is_at_safe_points(self, busy: Child) -> bool:
        """Say whether it passes safe points and was asked to leave at the next."""
        assert busy.job is not None
        return busy.asked and self._board.is_used(busy.pid, busy.job["id"])

    def pause(self, busy: Child, now: float) -> None:
        """Freeze a child with all that it has started; not when all are to leave: a stop must not be held up."""
        if self.of_all != safepoint.STOP and self._children.pause(busy, now):
            process.freeze(busy.pid)

    def resume(self, busy: Child, now: float) -> None:
        """Let a child go on that is paused."""
        if self._children.resume(busy, now):
            self._board.note_pause(busy.pid, busy.paused_for)
            busy.asked = True
            process.thaw(busy.pid)

    def forget(self, dead: Child) -> None:
        """Wipe out what was wanted of a child that is dead: its pid will come again."""
        if dead.asked:
            self._board.clear(dead.pid)
