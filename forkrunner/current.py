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
#: Where progress goes (`progress.place`), known before the fork.
place: dict[str, Any] | None = None
#: The job has told its progress, which now is somewhere.
told = False
