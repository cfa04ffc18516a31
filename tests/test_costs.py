"""Percentiles of what attempts cost, by task."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from forkrunner.costs import MEASURES, of_tasks, percentiles
from forkrunner.store import Store


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], (None, None, None)),
        ([7.0], (7, 7, 7)),
        ([2.0, 1.0], (1, 2, 2)),
        ([float(n) for n in range(1, 21)], (10, 19, 20)),
        ([float(n) for n in range(1000, 0, -1)], (500, 950, 1000)),
    ],
)
def test_percentiles_are_values_that_occurred(values: list[float], found: tuple[float | None, ...]) -> None:
    assert tuple(percentiles(values).values()) == found


def test_what_is_not_known_is_not_counted() -> None:
    costs = of_tasks([("b", 1.0, None, None, 5), ("a", 2.0, 0.5, 0.1, None), ("b", 3.0, None, 0.2, 7)])
    assert list(costs) == ["a", "b"]
    assert costs["b"]["attempts"] == 2
    assert costs["b"]["run_seconds"] == {"p50": 1, "p95": 3, "max": 3}
    assert costs["b"]["waited_seconds"] == {"p50": None, "p95": None, "max": None}
    assert costs["b"]["cpu_seconds"]["max"] == 0.2
    assert set(costs["a"]) == {"attempts", *MEASURES}


def fill(store: Store, count: int) -> None:
    """Write so many attempts of two tasks, the newest with the longest run, each with an output as most have none."""
    engine = sa.create_engine(store._database.url)
    id = "'01990000-0000-7000-8000-' || lpad({}, 12, '0')"
    numbers = f"generate_series(1, {count}) AS n"
    text = "CAST(n AS text)"
    if engine.dialect.name == "sqlite":
        numbers = f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)"
        id, text = "'01990000-0000-7000-8000-' || substr('000000000000' || {}, -12)", "n"
    id = id.format(text)
    if engine.dialect.name == "postgresql":
        id = f"CAST({id} AS uuid)"
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO forkrunner_attempts (job_id, attempt, outcome, task, run_seconds, waited_seconds,"
                " cpu_user_seconds, cpu_system_seconds, peak_memory_bytes, output_tail)"
                f" SELECT {id}, 1, 'done', CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, n, 0.25, 1, 0.5, 1000 * n,"
                " 'some words that it printed' FROM " + numbers
            )
        )
    engine.dispose()


def test_costs_are_of_the_newest_attempts(database: str) -> None:
    store = Store(database)
    store.migrate()
    assert store.costs() == {}
    fill(store, 300)
    costs = store.costs(limit=200)
    assert [costs[task]["attempts"] for task in ("even", "odd")] == [100, 100]
    assert costs["even"]["run_seconds"] == {"p50": 200, "p95": 290, "max": 300}
    assert costs["odd"]["cpu_seconds"] == {"p50": 1.5, "p95": 1.5, "max": 1.5}
    assert costs["odd"]["peak_memory_bytes"]["max"] == 299_000
    store.close()


@pytest.mark.timing
def test_costs_are_quick_with_a_hundred_thousand_attempts(database: str) -> None:
    store = Store(database)
    store.migrate()
    fill(store, 100_000)
    store.costs()
    began = time.perf_counter()
    assert sum(facts["attempts"] for facts in store.costs().values()) == 10_000
    took = time.perf_counter() - began
    print(f"{took * 1000:.0f} ms")
    assert took < 0.5
    store.close()
