"""The three clocks, and the only place that reads them.

- `utc()` for rows and people: aware, UTC; may jump.
- `monotonic()` for deadlines within a process: stands still while the host is suspended.
- `boottime()` for leases: goes on while the host is suspended (Linux; elsewhere monotonic).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

monotonic = time.monotonic
#: Seconds since 1970, UTC: what a mold stamps on an attempt (it imports no datetime).
wall = time.time


def utc() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def from_wall(seconds: float) -> datetime:
    """Turn what `wall` gave into an aware UTC datetime."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


def boottime() -> float:
    return time.clock_gettime(_BOOT)
