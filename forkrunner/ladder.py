"""The ladder by which a mold ends an attempt by force, and what is written down of each step.

Who is due for which step says `children.py`, where the ladder is drawn; here it is taken.
"""

from __future__ import annotations

import signal

from . import measure, process, safepoint, scratch, stacks
from .children import DUMP, FOREVER, NEAR, TERM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .children import Child, Children
    from .leftovers import Leftovers
    from .wanted import Wanted


class Ladder:
    """Asks, looks and kills; what has happened is in the steps of the child."""

    def __init__(self, children: Children, wanted: Wanted, leftovers: Leftovers) -> None:
        self._children = children
        self._wanted = wanted
        self._leftovers = leftovers

    def climb(self, now: float) -> None:
        """Take the next step with each child that is due for one."""
        for victim, step in self._children.overdue(now):
            if step == NEAR:
                self._wanted.ask(victim, safepoint.NEAR_LIMIT)
                continue
            if victim.said == FOREVER:
                # before the first signal, which may hasten the report. Keeps (3) of children.py
                victim.said = scratch.size(victim.report)
            if step == DUMP:
                process.kill(victim.pid, stacks.DUMP_SIGNAL)
                victim.note("stacks", now)
            elif step == TERM:
                self._end_kindly(victim, now)
            else:
                self._kill(victim, now)

    def _end_kindly(self, victim: Child, now: float) -> None:
        if scratch.size(victim.report) == victim.said:
            # signals blocked, or stopped, or deep in the kernel: who cannot be asked is looked at
            victim.note("no stacks", now, **measure.blocked_in(victim.pid))
        victim.family = frozenset(process.descendants(victim.pid))
        # a stopped process sees TERM only when it goes on
        process.kill_group(victim.pid, signal.SIGTERM)
        process.kill_group(victim.pid, signal.SIGCONT)
        victim.note("TERM", now)

    def _kill(self, victim: Child, now: float) -> None:
        killed = self._leftovers.kill_with_all(victim)
        if victim.steps is not None and victim.steps[-1]["step"] == "KILL":
            victim.steps[-1]["again"] = victim.steps[-1].get("again", 0) + 1
        else:
            victim.note("KILL", now, processes=killed)
