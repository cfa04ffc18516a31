"""What a mold looks at in its children while they run: what only looking can tell, or can hold them to.

Their memory and CPU time, where these have a limit, because the kernel's own limits count for one process and not for all
that a job has started; how much they have written; and of those that run for more than a moment which process they are,
and what their programs have in memory. Jobs that are over in a moment are not looked at.
"""

from __future__ import annotations

from . import limits, measure, process, scratch, units
from .children import FOREVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .children import Child, Children

#: Seconds between two looks at what the busy children have written, and at those that run for more than a moment.
_LOOK_EVERY = 0.1
#: Seconds between two looks at the memory and CPU time of a child that has a limit of these.
_MEASURE_EVERY = 0.25
#: A child that has run for so long is told of when these are looked at, seconds.
_TOLD_AFTER = 0.05
#: The memory of its programs is looked at when a job is so much older than at the last look, but once a second at
#: least: of one that runs for long they do so too, or there are many.
_WEIGH_AFTER = 1 / 8
#: What a process may have beyond its limit while it is alone, and the kernel holds it to that: the kernel counts addresses,
#: and what the mold had reserved and not used is memory only when the child uses it, bytes.
_RESERVED = 4 << 20
#: How long a child that is over its memory is asked kindly: it may be taking more meanwhile, seconds.
_MEMORY_GRACE = 0.5


class Observer:
    """Looks, writes down in the child what it has seen, and begins the ladder with who is over a limit."""

    def __init__(self, children: Children, tell: Callable[[dict[str, Any]], None]) -> None:
        self._children = children
        self._tell = tell
        self._look_at = self._measure_at = FOREVER
        #: Bytes of its output that are kept of each.
        self.output_limit = 1 << 20

    @property
    def due(self) -> float:
        """When to look again."""
        return min(self._look_at, self._measure_at)

    def expect(self, now: float) -> None:
        """Take note that children begin to run."""
        self._look_at = min(self._look_at, now + _LOOK_EVERY)

    def look(self, now: float) -> None:
        self._measure(now)
        if now < self._look_at:
            return
        for busy in self._children.busy.values():
            # of what they write head and tail are kept, so that a flood does not fill the memory
            if scratch.cut(busy.output, self.output_limit):
                busy.cut = True
            if now - busy.started >= _TOLD_AFTER and not busy.told:
                self._tell_of(busy)
            if now >= busy.weigh_at:
                self._weigh(busy, now)
        self._look_at = now + _LOOK_EVERY if self._children.busy else FOREVER

    def _measure(self, now: float) -> None:
        """Look at the memory and CPU time of those that have a limit, with all that each has started."""
        if not self._children.watched:
            self._measure_at = FOREVER
            return
        for busy in self._children.watched.values():
            if not busy.inherited:
                busy.inherited = measure.own_memory()
                self._measure_at = min(self._measure_at, now + _MEASURE_EVERY)
        if now < self._measure_at:
            return
        self._measure_at = now + _MEASURE_EVERY
        for busy in self._children.watched.values():
            assert busy.job is not None
            started = process.descendants(busy.pid)
            memory, cpu = measure.tree(busy.pid, started, busy.inherited)
            busy.peak = max(busy.peak, memory)
            bound = busy.job["limits"]
            if started and "cpu_seconds" in bound:
                limits.leave_cpu_to_mold(started)
            by = f" by {len(started) + 1} processes" if started else ""
            if memory > bound.get("memory", FOREVER) + (0 if started else _RESERVED):
                got = f"{units.show_bytes(memory)} of its own{by}"
                sentence = f"more than its memory limit of {units.show_bytes(bound['memory'])}: {got}"
                busy.grace = min(busy.grace, _MEMORY_GRACE)
                self._children.condemn(busy, "over_memory", sentence, now)
            elif cpu > bound.get("cpu_seconds", FOREVER):
                sentence = f"more than its limit of {bound['cpu_seconds']:g} s of CPU time (cpu_seconds): {cpu:.2f} s{by}"
                self._children.condemn(busy, "over_cpu", sentence, now)

    def _tell_of(self, busy: Child) -> None:
        """Tell which process an attempt is: not of those that are over in a moment, since most are, and a message costs."""
        busy.told = True
        assert busy.job is not None
        self._tell(
            {
                "kind": "runs",
                "id": busy.job["id"],
                "attempt": busy.job["attempt"],
                "pid": busy.pid,
                "started": busy.started_wall,
                "output": busy.output,
                "file": scratch.identity(busy.output),
            }
        )

    def _weigh(self, busy: Child, now: float) -> None:
        """Look at what the programs of a job have in memory while they run: later nothing tells it."""
        busy.peak = max(busy.peak, measure.programs(busy.pid))
        busy.weigh_at = now + min(max(_LOOK_EVERY, (now - busy.started) * _WEIGH_AFTER), 1.0)
