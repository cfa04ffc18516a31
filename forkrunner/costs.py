"""What the attempts of each task cost: percentiles of their bills. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

#: What is told of each task, in the order of the rows: seconds, seconds, seconds of CPU, bytes.
MEASURES = ("run_seconds", "waited_seconds", "cpu_seconds", "peak_memory_bytes")
#: Name → share of the attempts that cost no more.
SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def of_tasks(rows: Iterable[Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return task → `attempts`, their number, and measure → percentiles; `rows` are (task, *MEASURES), None: unknown."""
    values: dict[str, list[list[float]]] = {}
    numbers: dict[str, int] = {}
    for task, *measures in rows:
        numbers[task] = numbers.get(task, 0) + 1
        found = values.setdefault(task, [[] for _ in MEASURES])
        for one, value in zip(found, measures, strict=True):
            if value is not None:
                one.append(value)
    return {
        task: {"attempts": numbers[task]}
        | {name: percentiles(one) for name, one in zip(MEASURES, values[task], strict=True)}
        for task in sorted(values)
    }


def percentiles(values: list[float]) -> dict[str, float | None]:
    """Return p50, p95 and max, each a value that occurred (nearest rank); None if there is none."""
    values.sort()
    # ceil without floats: 0.95 * 20 is a little more than 19
    return {
        name: values[max(-(-len(values) * round(share * 100) // 100) - 1, 0)] if values else None
        for name, share in SHARES.items()
    }
