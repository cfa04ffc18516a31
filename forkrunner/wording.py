"""How times, costs and endings are said to people, in a few words each.

What a job itself has said is passed on as it is: whoever shows it, cleans it (`terminal.clean`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forkrunner.job import Outcome
from forkrunner.jsonpages import molds_json, steps_of
from forkrunner.terminal import bar, short
from forkrunner.units import show_bytes

if TYPE_CHECKING:
    from forkrunner.records import Attempt, SupervisorRow


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
    """Word how far a moment is: in 12.3 s, 2 m 03 s ago."""
    seconds = (when - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def molds_words(row: SupervisorRow) -> str:
    """Word the molds of a supervisor on one line: gen 1 draining 2, gen 2."""
    words = []
    for mold in molds_json(row):
        text = f"gen {mold['generation']}"
        if mold["target"] != row.target:
            text += f" {mold['target']}"
        if mold["stage"] != "serving":
            text += f" {mold['stage']}"
        words.append(text + (f" {mold['busy']}" if "busy" in mold else ""))
    return short(", ".join(words), 100)


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


def outcome_sentence(attempt: Attempt) -> str:
    """Say on one line how an attempt ended."""
    if attempt.outcome is Outcome.DONE:
        return "done"
    words = attempt.sentence()
    return f"raised {words}" if attempt.outcome is Outcome.RAISED else words


def no_output(attempt: Attempt) -> str:
    """Say why there is nothing to be seen of what an attempt wrote."""
    if attempt.output_is_known:
        return f"Attempt {attempt.attempt} wrote nothing."
    why = f": {short(attempt.error_message)}" if attempt.error_message else ""
    return f"What attempt {attempt.attempt} wrote is not known{why}."


def took(started: datetime | None, finished: datetime | None) -> str | None:
    """Word the time between two moments; None where one of them is not known."""
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


#: Step of the ladder → what it did, for people.
_STEPS = {
    "stacks": "asked for its stacks",
    "no stacks": "got none within 200 ms",
    "TERM": "TERM to its process group",
    "KILL": "KILL to it and to all that it started",
    "ended": "ended",
}


def step_lines(attempt: Attempt) -> Iterator[str]:
    """Say what was done to end an attempt by force, a line a step."""
    for step in steps_of(attempt):
        word, after, detail = (step.get(name) for name in ("step", "after", "detail"))
        words = _STEPS.get(str(word), str(word).replace("_", " "))
        more = {name: value for name, value in step.items() if name not in ("step", "after", "detail")}
        if detail:
            words += f": {detail}"
        if more:
            words += ": " + ", ".join(f"{name} {value}" for name, value in more.items())
        yield f"{after:>8} s  {words}" if isinstance(after, (int, float)) else words
