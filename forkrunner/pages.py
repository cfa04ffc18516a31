"""What the command line shows of jobs to people: tables of many, the page of one. No database, no clock: text out of rows.

Secrets are hidden before: `redaction.conceal`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forkrunner.costs import MEASURES
from forkrunner.job import ENDED, Outcome, State
from forkrunner.jsonpages import steps_of, value_of
from forkrunner.terminal import Table, clean, clean_lines, paint, short, short_id
from forkrunner.units import show_bytes
from forkrunner.wording import (
    bill,
    distance,
    duration,
    moment,
    outcome_sentence,
    progress_words,
    small_print,
    step_lines,
    took,
)

if TYPE_CHECKING:
    from forkrunner.records import Attempt, File, Row

#: Characters of a bar in a table.
_BAR = 10

_COLOURS = {
    State.PENDING: "blue",
    State.BUSY: "yellow",
    State.DONE: "green",
    State.FAILED: "red",
    State.CANCELLED: "magenta",
}


def table_of(rows: Sequence[Row], progress: dict[str, dict[str, Any] | None], now: datetime) -> Table:
    """Show jobs; the last column is the progress of what runs, and the error of what failed."""
    table = Table(
        "ID", "TASK", "QUEUE", "STATE", "ATTEMPT", "WHEN", "NOTE",
        keep=("ID", "STATE", "WHEN"), drop=("ATTEMPT", "QUEUE", "NOTE", "WHEN", "TASK"),
    )  # fmt: skip
    for row in rows:
        note = progress_words(progress.get(row.id), _BAR) if row.state is State.BUSY else row.error
        state = "paused" if row.paused_at else row.state
        cells = (short_id(row.id), row.task, row.queue, state, row.attempt or "", _when(row, now), note)
        table.add(*cells, colours={"STATE": _COLOURS[row.state]})
    return table


def _when(row: Row, now: datetime) -> str:
    if row.state is State.PENDING:
        return distance(row.run_at, now) if row.run_at > now else f"waits {distance(row.run_at, now)[:-4]}"
    if row.state is State.BUSY and row.started_at is not None:
        return f"for {distance(min(row.started_at, now), now)[:-4]}"
    return distance(min(row.finished_at or row.created_at, now), now)


def costs_of(costs: dict[str, dict[str, Any]]) -> Table:
    """Show what the attempts of each task cost: `costs.of_tasks`."""
    table = Table(
        "TASK", "ATTEMPTS", "RAN", "WAITED", "CPU", "PEAK MEMORY", keep=("RAN",), drop=("CPU", "WAITED", "ATTEMPTS")
    )  # fmt: skip
    for task, facts in costs.items():
        cells = [
            " / ".join("?" if value is None else show(value) for value in facts[name].values())
            for name, show in zip(MEASURES, (duration, duration, duration, show_bytes), strict=True)
        ]
        table.add(task, f"{facts['attempts']:,}", *cells)
    return table


def page_of(
    row: Row, progress: dict[str, Any] | None, now: datetime, files: Sequence[File] = ()
) -> Iterator[str]:
    """Show all that is known of a job, line by line."""
    state = paint(str(row.state), _COLOURS[row.state], bold=True)
    yield f"{paint('Job ' + clean(row.id), bold=True)}  {state}"
    facts: list[tuple[str, object]] = [
        ("task", short(row.task)),
        ("queue", f"{short(row.queue)}, priority {row.priority}"),
        ("created", moment(row.created_at, now)),
    ]
    if row.state is State.PENDING:
        facts.append(("starts", moment(row.run_at, now) if row.run_at > now else "when a slot is free"))
    if row.started_at:
        facts.append(("started", moment(row.started_at, now)))
    if row.finished_at:
        facts.append(("finished", moment(row.finished_at, now)))
    if row.attempt:
        counted = f"{row.attempt} (counted: {row.tries} as tries, {row.crashes} as crashes)"
        facts.append(("attempts", counted))
    if row.state is State.BUSY:
        facts += [
            ("progress", short(progress_words(progress, 20)) or "unknown"),
            ("supervisor", row.supervisor),
        ]
    if row.options:
        facts.append(("options", short(json.dumps(value_of(row.options)))))
    if row.paused_at:
        facts.append(("paused", moment(row.paused_at, now)))
    if row.cancel_at and (row.state not in ENDED or row.state is State.CANCELLED):
        words = [
            moment(row.cancel_at, now) if row.state in ENDED else f"asked for {distance(row.cancel_at, now)}"
        ]
        words += [f"by {short(row.cancel_actor)}"] if row.cancel_actor else []
        words += [short(row.cancel_reason)] if row.cancel_reason else []
        facts.append(("cancelled" if row.state in ENDED else "cancel", ", ".join(words)))
    if row.cursor:
        facts.append(("cursor", short(json.dumps(value_of(row.cursor)))))
    if row.error:
        facts.append(("error", short(row.error, 2000)))
    yield from _facts(facts)
    yield from _values("Arguments", value_of(row.arguments))
    if row.state is State.DONE:
        yield from _values("Result", value_of(row.result))
    if files:
        yield ""
        yield paint("Files", bold=True)
        yield from _facts(
            (short(file.place), f"{short(file.name)}, {show_bytes(file.size)}") for file in files
        )
    for attempt in row.attempts:
        yield from _attempt(attempt, now)


def _facts(facts: Iterable[tuple[str, object]]) -> Iterator[str]:
    facts = list(facts)
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        yield f"  {name:{width}}  {value}"


def _values(title: str, value: Any) -> Iterator[str]:
    yield ""
    if not isinstance(value, dict):
        yield f"{paint(title, bold=True)}  {short(json.dumps(value, ensure_ascii=False), 2000)}"
        return
    yield paint(title, bold=True) + ("" if value else "  none")
    yield from _facts(
        (short(name), short(json.dumps(item, ensure_ascii=False), 2000)) for name, item in value.items()
    )


def _attempt(attempt: Attempt, now: datetime) -> Iterator[str]:
    colour = "green" if attempt.outcome is Outcome.DONE else "red"
    yield ""
    title = paint(f"Attempt {attempt.attempt}", bold=True)
    yield f"{title}  {paint(short(outcome_sentence(attempt), 2000), colour)}"
    facts: list[tuple[str, object]] = []
    if attempt.started_at:
        facts.append(("started", moment(attempt.started_at, now)))
    waited = duration(attempt.waited_seconds) if attempt.waited_seconds is not None else None
    for name, value in (
        ("waited", waited),
        ("took", took(attempt.started_at, attempt.finished_at)),
        ("cost", bill(attempt)),
        ("", small_print(attempt)),
    ):
        if value:
            facts.append((name, value))
    place = [f"host {attempt.host}"] if attempt.host else []
    place += [f"pid {attempt.pid}"] if attempt.pid else []
    if place:
        facts.append(("ran on", short(", ".join(place))))
    if not attempt.output_is_known:
        facts.append(("output", "not known"))
    yield from _facts(facts)
    if steps := "\n".join(step_lines(attempt)):
        done = {step.get("step") for step in steps_of(attempt)}
        title = "ended by force" if done & {"TERM", "KILL"} else "asked to leave"
        yield from _block(title if done != {"ended"} else "cut short", steps)
    more = (attempt.error_message or "").strip()
    # the first line stands above, and a traceback ends with all of it
    if "\n" in more and not attempt.traceback:
        yield from _block("message", more)
    for name, text in (
        ("traceback", attempt.traceback),
        ("stacks", attempt.stacks),
        ("output", attempt.output_tail),
    ):
        if text and text.strip():
            yield from _block(name, text)


def _block(name: str, text: str) -> Iterator[str]:
    yield f"  {paint(name, bold=True)}"
    for line in clean_lines(text).rstrip("\n").split("\n"):
        yield f"    {line}"
