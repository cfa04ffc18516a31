"""What `--json` prints of jobs: pages for programs. No field is ever renamed.

Secrets are hidden before: `redaction.conceal`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forkrunner import clock
from forkrunner.payload import Misfit, check_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkrunner.records import Attempt, File, Row, SupervisorRow


#: What is told of a file: not its token, which is the way to it.
FILE = ("place", "name", "size", "sha256", "media_type")


def to_json(value: Any) -> str:
    # escaped to ASCII: what a job has said then reaches no terminal as it is
    return json.dumps(value, indent=2, default=str)


def iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat().replace("+00:00", "Z")


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
        "progress": progress and _progress_json(progress),
    }


def _progress_json(entry: dict[str, Any]) -> dict[str, Any]:
    # times as everywhere else; in the entry one is a number, for jobs that import no datetime
    started, updated = entry.get("started_at"), entry.get("updated_at")
    return entry | {
        "started_at": started and started.replace("+00:00", "Z"),
        "updated_at": None if updated is None else iso(clock.from_wall(updated)),
    }


def page_json(
    row: Row, *, progress: dict[str, Any] | None = None, files: Sequence[File] = ()
) -> dict[str, Any]:
    """Return a job as `show --json` prints it, with its files and attempts."""
    attempts = [_attempt_json(attempt) for attempt in row.attempts]
    named = [{name: getattr(file, name) for name in FILE} for file in files]
    return job_json(row, progress=progress) | {"files": named, "attempts": attempts}


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    fields = asdict(attempt)
    del fields["job_id"]
    fields["outcome"] = str(attempt.outcome)
    fields["steps"] = steps_of(attempt)
    for name in ("started_at", "finished_at"):
        fields[name] = iso(fields[name])
    return fields


def steps_of(attempt: Attempt) -> list[dict[str, Any]]:
    """Return what was done to end an attempt by force; nothing if nothing was."""
    try:
        steps = json.loads(attempt.steps or "[]")
    except ValueError:
        return []
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def molds_json(row: SupervisorRow) -> list[dict[str, Any]]:
    """Return the molds of a supervisor: generation, target, pid, stage, and of one that drains how many it has left."""
    found: list[dict[str, Any]] = _picture(row)["molds"]
    return found


def stage_of(row: SupervisorRow) -> str:
    """Say whether a supervisor claims jobs: serving; quiet or stopping, if not."""
    return str(_picture(row)["stage"])


def queues_of(row: SupervisorRow) -> list[str] | None:
    """Return the queues that a supervisor takes jobs from; None: all."""
    found: list[str] | None = _picture(row).get("queues")
    return found


def _picture(row: SupervisorRow) -> dict[str, Any]:
    found = json.loads(row.molds or "[]")
    # an older release has only its molds there
    return found if isinstance(found, dict) else {"stage": "serving", "molds": found}
