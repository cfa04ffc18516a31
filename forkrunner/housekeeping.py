"""When a supervisor has pruned what is kept no longer (`pruning.py`), by a process of its own.

Used by the supervisor's loop only. The process is one of ours and no job: it dies with us, is reaped like a mold, and
whatever it waits for, a database or a file server, nobody here waits for it.
"""

from __future__ import annotations

import os
import random
import sys
from typing import TYPE_CHECKING

from . import process
from .config import SETTINGS
from .molds import FOREVER

if TYPE_CHECKING:
    from .supervisor import Supervisor

#: What the process is told.
_TOLD = (
    *("database", "storage", "retention", "retention_failed", "store_timeout", "lease"),
    *("log_level", "log_format"),
)


class Housekeeping:
    """The pruning of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        #: Of the process that prunes; 0: none does.
        self.pid = 0
        #: By the monotonic clock; known when the settings are.
        self.due = 0.0

    def care(self, now: float) -> None:
        """Start a process if it is time. Several supervisors that were started together do not prune together."""
        interval = self.supervisor.settings.prune_interval
        if now < self.due or self.pid:
            return
        if self.due == 0.0 or not interval or self.supervisor.orders.quiet:
            # soon after the start, since a supervisor may never get old
            self.due = now + interval * random.uniform(0.05, 0.15) if interval else FOREVER
            return
        self.due = now + interval * random.uniform(0.9, 1.1)
        settings = self.supervisor.settings
        told = {SETTINGS[name].env: SETTINGS[name].kind.show(getattr(settings, name)) for name in _TOLD}
        code = "from forkrunner.pruning import main; main()"
        try:
            self.pid = process.spawn_beside([sys.executable, "-c", code], {**os.environ, **told})
        except OSError as error:
            self.supervisor.log.emit("prune.failed", error=str(error))
            return
        self.supervisor.foundry.others.add(self.pid)

    def ended(self, status: int) -> None:
        """Take note that it has ended; what it could not do it has said itself, unless it was killed."""
        self.pid = 0
        if os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status):
            how = f"the process ended with status {os.waitstatus_to_exitcode(status)}"
            self.supervisor.log.emit("prune.failed", error=how)
