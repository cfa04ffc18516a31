"""What the command line shows: pages, tables and JSON. No database, no clock, no exit: text out of rows.

Whatever a job has said is hostile here: it reaches the terminal only through `clean`, which shows control
characters and bidirectional ones instead of sending them. Secrets are hidden before: `redaction.conceal`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forkrunner.arguments import Misfit, check_json
from forkrunner.costs import MEASURES
from forkrunner.job import ENDED, Outcome, State
from forkrunner.units import show_bytes

if TYPE_CHECKING:
    from forkrunner.job import Attempt, Row, SupervisorRow

#: Of a cell; the rest is on the page of the job.
_LONGEST_CELL = 200
#: Characters of a bar in a table.
_BAR = 10
#: From this width on, ids are shown whole.
_WIDE = 100

_COLOURS = {
    State.PENDING: "blue",
    State.BUSY: "yellow",
    State.DONE: "green",
    State.FAILED: "red",
    State.CANCELLED: "magenta",
}


# --------------------------------------------------------------------------- words


def clean(text: object, keep: str = "") -> str:
    """Return text in which everything that a terminal might obey is shown as `\\x1b` and the like."""
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def clean_lines(text: str) -> str:
    """As `clean`, for text of several lines; a line that ends as on Windows is no attack."""
    return clean(text.replace("\r\n", "\n"), keep="\n\t")


def short(text: object, limit: int = _LONGEST_CELL) -> str:
    """Return the text on one line of at most `limit` characters."""
    line = clean(" ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """Word a time in seconds: 320 ms, 12.3 s, 2 m 03 s, 3 h 05 m, 2 d 04 h."""
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, big, small, unit in (
        (3600, 60, 1, "m s"),
        (86400, 3600, 60, "h m"),
        (10**15, 86400, 3600, "d h"),
    ):
        if whole < size:
            first, second = unit.split()
            return f"{whole // big} {first} {whole % big // small:02} {second}"
    return "for ever"


def moment(when: datetime, now: datetime) -> str:
    """Word a moment in local time, and how far it is."""
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S} ({distance(when, now)})"


def distance(when: datetime, now: datetime) -> str:
    seconds = (when - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def molds_json(row: SupervisorRow) -> list[dict[str, Any]]:
    """Return the molds of a supervisor: generation, target, pid, stage, and of one that drains how many it has left."""
    found: list[dict[str, Any]] = json.loads(row.molds or "[]")
    return found


def molds_words(row: SupervisorRow) -> str:
    words = []
    for mold in molds_json(row):
        text = f"gen {mold['generation']}"
        if mold["target"] != row.target:
            text += f" {mold['target']}"
        if mold["stage"] != "serving":
            text += f" {mold['stage']}"
        words.append(text + (f" {mold['busy']}" if "busy" in mold else ""))
    return short(", ".join(words), 100)


def iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat().replace("+00:00", "Z")


# --------------------------------------------------------------------------- JSON


def value_of(text: str | None) -> Any:
    """Read JSON of a row for showing it; text that is none was written by somebody else, and is shown as text."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        check_json(value)  # that it is not too deep to be walked, for one
    except (ValueError, RecursionError, Misfit):
        return text
    return value


def job_json(row: Row, *, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a job as `list --json` prints it: no field is ever renamed."""
    return {
        "id": row.id,
        "task": row.task,
        "queue": row.queue,
        "state": str(row.state),
        "priority": row.priority,
        "run_at": iso(row.run_at),
        "created_at": iso(row.created_at),
        "started_at": iso(row.started_at),
        "finished_at": iso(row.finished_at),
        "arguments": value_of(row.arguments),
        "result": value_of(row.result),
        "error": row.error,
        "options": value_of(row.options),
        "attempt": row.attempt,
        "tries": row.tries,
        "crashes": row.crashes,
        "supervisor": row.supervisor,
        "cancel_at": iso(row.cancel_at),
        "cancel_reason": row.cancel_reason,
        "cancel_actor": row.cancel_actor,
        "paused_at": iso(row.paused_at),
        "cursor": value_of(row.cursor),
        "progress": progress,
    }


def page_json(row: Row, *, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a job as `show --json` prints it, with its attempts."""
    attempts = [_attempt_json(attempt) for attempt in row.attempts]
    return job_json(row, progress=progress) | {"attempts": attempts}


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    fields = asdict(attempt)
    del fields["job_id"]
    fields["outcome"] = str(attempt.outcome)
    fields["steps"] = steps_of(attempt)
    for name in ("started_at", "finished_at"):
        fields[name] = iso(fields[name])
    return fields


def to_json(value: Any) -> str:
    # escaped to ASCII: what a job has said then reaches no terminal as it is
    return json.dumps(value, indent=2, default=str)


# --------------------------------------------------------------------------- how an attempt ended


def outcome_sentence(attempt: Attempt) -> str:
    """Say on one line how an attempt ended."""
    if attempt.outcome is Outcome.DONE:
        return "done"
    words = attempt.sentence()
    return f"raised {words}" if attempt.outcome is Outcome.RAISED else words


def took(started: datetime | None, finished: datetime | None) -> str | None:
    return duration((finished - started).total_seconds()) if started and finished else None


def bill(attempt: Attempt) -> str | None:
    """Say what an attempt has cost."""
    parts = []
    if attempt.cpu_user_seconds is not None and attempt.cpu_system_seconds is not None:
        user, system = duration(attempt.cpu_user_seconds), duration(attempt.cpu_system_seconds)
        parts.append(f"CPU {user} user, {system} system")
    if attempt.peak_memory_bytes is not None:
        parts.append(f"peak memory {show_bytes(attempt.peak_memory_bytes)} of its own")
    return "; ".join(parts) or None


def small_print(attempt: Attempt) -> str | None:
    """Say the rest of the bill: what tells why it was slow."""
    parts = []
    if attempt.minor_faults is not None:
        parts.append(f"page faults {attempt.minor_faults:,} minor, {attempt.major_faults or 0:,} major")
    if attempt.voluntary_switches is not None:
        waits, losses = attempt.voluntary_switches, attempt.involuntary_switches or 0
        parts.append(f"context switches {waits:,} voluntary, {losses:,} involuntary")
    if attempt.output_bytes:
        parts.append(f"output {show_bytes(attempt.output_bytes)}")
    if attempt.leftover_processes:
        parts.append(f"left {attempt.leftover_processes} processes behind")
    return "; ".join(parts) or None


def steps_of(attempt: Attempt) -> list[dict[str, Any]]:
    """Return what was done to end an attempt by force; nothing if nothing was."""
    try:
        steps = json.loads(attempt.steps or "[]")
    except ValueError:
        return []
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


#: Step of the ladder → what it did, for people.
_STEPS = {
    "stacks": "asked for its stacks",
    "no stacks": "got none within 200 ms",
    "TERM": "TERM to its process group",
    "KILL": "KILL to it and to all that it started",
    "ended": "ended",
}


def _steps(attempt: Attempt) -> Iterator[str]:
    for step in steps_of(attempt):
        word, after, detail = (step.get(name) for name in ("step", "after", "detail"))
        words = _STEPS.get(str(word), str(word).replace("_", " "))
        more = {name: value for name, value in step.items() if name not in ("step", "after", "detail")}
        if detail:
            words += f": {detail}"
        if more:
            words += ": " + ", ".join(f"{name} {value}" for name, value in more.items())
        yield f"{after:>8} s  {words}" if isinstance(after, (int, float)) else words


# --------------------------------------------------------------------------- the terminal


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def is_styled() -> bool:
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def paint(text: str, colour: str = "", *, bold: bool = False) -> str:
    """Colour text, which must be clean already, if a person looks who has not asked for none."""
    if not is_styled():
        return text
    import click

    return click.style(text, fg=colour or None, bold=bold or None)


class Table:
    """Rows of cells. On a terminal it fits the width; elsewhere it is plain, aligned and whole."""

    def __init__(self, *columns: str, keep: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        self.columns = columns
        #: Columns that are never shortened, and those that are left out, one after the other, where space is short.
        self.keep, self.drop = keep, drop
        self.rows: list[list[tuple[str, str]]] = []

    def add(self, *cells: object, colours: dict[str, str] | None = None) -> None:
        colours = colours or {}
        texts = ["" if cell is None else short(cell) for cell in cells]
        self.rows.append(
            [(text, colours.get(name, "")) for name, text in zip(self.columns, texts, strict=True)]
        )

    def __str__(self) -> str:
        if is_terminal():
            return self._fitting()
        lines = [list(self.columns), *([text for text, _ in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _fitting(self) -> str:
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        console = Console(
            color_system="auto" if is_styled() else None, highlight=False, markup=False, emoji=False
        )
        widths = {
            name: max(len(name), *(cell_len(row[n][0]) for row in self.rows))
            for n, name in enumerate(self.columns)
            if any(row[n][0] for row in self.rows)
        }
        self._fit(widths, console.width)
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name, width in widths.items():
            table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
        for row in self.rows:
            cells = dict(zip(self.columns, row, strict=True))
            table.add_row(*(Text(cells[name][0], style=cells[name][1]) for name in widths))
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip("\n")

    def _fit(self, widths: dict[str, int], room: int) -> None:
        """Shorten the widest column again and again; where that is not enough, leave columns out."""
        drop = [name for name in self.drop if name in widths]
        while (excess := sum(widths.values()) + 2 * (len(widths) - 1) - room) > 0:
            # a column of a few characters says nothing any more
            long = {name: width for name, width in widths.items() if name not in self.keep and width > 8}
            if long:
                widest = max(long, key=lambda name: long[name])
                others = max((width for name, width in long.items() if name != widest), default=8)
                widths[widest] -= max(1, min(excess, widths[widest] - others))
            elif drop:
                del widths[drop.pop(0)]
            else:
                break


def terminal_width() -> int:
    """Columns of the terminal; without one there is no limit."""
    import shutil

    return shutil.get_terminal_size().columns if is_terminal() else 10_000


def short_id(job_id: str) -> str:
    """Return the id, or, where it would take half of the line, its last 12 digits, which commands take too."""
    return job_id if terminal_width() >= _WIDE else f"…{job_id[-12:]}"


def progress_words(entry: dict[str, Any] | None, width: int = 0) -> str:
    """Say how far a job is, behind a bar of that many characters."""
    if entry is None:
        return ""
    words = []
    if entry.get("fraction") is not None:
        words += [bar(entry["fraction"], width)] if width else []
        # not 100 % before it is
        words.append(f"{int(entry['fraction'] * 100 + 1e-6)} %")
    if entry.get("message"):
        words.append(str(entry["message"]))
    return " ".join(words)


def bar(fraction: float, width: int) -> str:
    """Draw a bar in characters, to an eighth of one."""
    eighths = int(min(max(fraction, 0.0), 1.0) * width * 8 + 1e-6)
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
    return drawn[:width].rstrip().ljust(width, "·")


# --------------------------------------------------------------------------- pages


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


def _when(row: Row, now: datetime) -> str:
    if row.state is State.PENDING:
        return distance(row.run_at, now) if row.run_at > now else f"waits {distance(row.run_at, now)[:-4]}"
    if row.state is State.BUSY and row.started_at is not None:
        return f"for {distance(min(row.started_at, now), now)[:-4]}"
    return distance(min(row.finished_at or row.created_at, now), now)


def page_of(row: Row, progress: dict[str, Any] | None, now: datetime) -> Iterator[str]:
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
    yield from _facts(facts)
    if steps := "\n".join(_steps(attempt)):
        forced = any(step.get("step") in ("TERM", "KILL") for step in steps_of(attempt))
        yield from _block("ended by force" if forced else "asked to leave", steps)
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
