"""What this process runs: set by a child before it calls the task, read by whoever asks inside it.

A module of its own, with nothing in it, because a child's every line costs copied
pages: setting one attribute here is all that it does for `current_job` and `progress`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Header of the running job, as it came from the supervisor; None outside of a child.
job: dict[str, Any] | None = None
#: Its arguments as they are in the row, JSON.
arguments = b"{}"
#: Set in the mold, before the forks: its pid, and the memory that it shares with its children (`safepoint.py`).
mold = 0
board: memoryview | None = None
#: Where progress goes (`progress.place`), known before the fork.
place: dict[str, Any] | None = None
#: The job has told its progress, which now is somewhere.
told = False
