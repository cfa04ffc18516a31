"""What this process runs: set by a child before it calls the task, read by whoever asks inside it.

A module of its own, and one object with slots, because a child's every line costs copied
pages: setting two attributes here is all that it does for `current_job` and `progress`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Current:
    __slots__ = (
        "arguments",
        "board",
        "commons",
        "job",
        "mold",
        "place",
        "printed",
        "runner",
        "stderr",
        "stdout",
        "told",
        "work",
    )

    def __init__(self) -> None:
        #: Header of the running job, as it came from the supervisor; None outside of a child.
        self.job: dict[str, Any] | None = None
        #: Its arguments as they are in the row, JSON.
        self.arguments = b""
        #: Set in the mold, before the forks: its pid, and the memory that it shares with its children (`safepoint.py`).
        self.mold = 0
        self.board: memoryview | None = None
        #: And what the processes of each job have in common (`common.py`).
        self.commons: memoryview[float] | None = None
        #: Where progress goes (`places.place`), known before the fork.
        self.place: dict[str, Any] | None = None
        #: The job has told its progress, which now is somewhere.
        self.told = False
        #: Something may be held back in standard output or error, which are these two (`streams.py`).
        self.printed = True
        self.stdout: Any = None
        self.stderr: Any = None
        #: Whose tasks these are, known before the fork; and its session (`session.Work`) once it has asked for one.
        self.runner: Any = None
        self.work: Any = None


current = Current()
