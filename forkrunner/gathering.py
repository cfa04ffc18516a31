"""What a mail tells of is gathered here: from rows, files and outputs, with secrets hidden and text that does nothing.

Used where mail is sent, never by a supervisor or a mold. Whatever is not there any more is left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from forkrunner import __version__, frames
from forkrunner.errors import FileMissing, JobNotFound, MailError, StorageError
from forkrunner.facts import Attachment, Facts, Other, clean, moment, one_line
from forkrunner.job import Outcome, State
from forkrunner.records import Attempt, Mail
from forkrunner.redaction import conceal, scrub, secrets_in
from forkrunner.units import show_bytes

if TYPE_CHECKING:
    from forkrunner.records import Row
    from forkrunner.runner import Runner
    from forkrunner.store import Store

#: What is told of a job that was pruned.
_GONE = "(the job is not in the database any more)"
#: Characters of one argument; lines of output that are shown.
_VALUE, _OUTPUT_LINES = 4000, 60
#: Of the others that are told of in a digest.
_LISTED = 50
_VERBS = {
    "failure": "failed",
    "attempt": "failed and is tried again",
    "success": "is done",
}


def gather(runner: Runner, store: Store, mails: Sequence[Mail], *, insist: bool = False) -> Facts:
    """Read all that a mail tells of; what is not there any more is left out.

    Raises MailError: with `insist`, that the storage of the files does not answer.
    """
    mail, names = mails[0], runner.settings.secret_names
    facts = Facts(
        kind=mail.kind,
        id=mail.id,
        thread=hashlib.sha256(mail.fingerprint.encode()).hexdigest()[:32],
        task=one_line(mail.task, 200),
        reason=one_line(mail.reason),
        outcome=one_line(mail.reason),
        job=mail.job_id,
        attempt=mail.attempt,
        count=mail.count,
        first_at=mail.created_at,
        last_at=mail.last_at,
        last_job=mail.last_job_id,
    )
    others = list(mails[1:])
    if mail.kind == "digest":
        facts.count = sum(other.count for other in others)
        verb = "failed" if all(other.kind != "success" for other in others) else "ended"
        facts.title = f"{facts.count} more have {verb}" if facts.count != 1 else f"One more has {verb}"
        facts.others = [
            Other(one_line(o.task, 200), _reason(store, o, names), o.count, o.job_id)
            for o in others[:_LISTED]
        ]
        facts.task = f"{len(others)} kinds" if len(others) != 1 else "1 kind"
    else:
        facts.title = f"{facts.task} {_VERBS.get(mail.kind, mail.kind)}"
    facts.versions = versions(runner)
    if mail.kind == "digest":
        return facts
    facts.link = _link(runner.settings.base_url, mail.job_id)
    facts.command = _command(runner, "replay", mail)
    try:
        row = store.get(mail.job_id)
    except JobNotFound:
        # without its arguments nobody knows what of the reason is a secret
        facts.reason = facts.outcome = _GONE
        return facts
    secrets = secrets_in(row.arguments, names)
    facts.reason = facts.outcome = one_line(scrub(mail.reason, secrets))
    row = conceal(row, names)
    attempt = next((one for one in row.attempts if one.attempt == mail.attempt), None)
    _tell_row(facts, row)
    if attempt is not None:
        _tell_attempt(facts, attempt)
    if mail.kind != "success":
        room = _attach_files(facts, runner, store, insist)
        whole = store.output(mail.job_id, mail.attempt) or (attempt.output_tail if attempt else None)
        if whole:
            where = f"`{_command(runner, 'log', mail)}` shows it"
            _attach_log(facts, scrub(whole, secrets), room, where)
    return facts


def _command(runner: Runner, verb: str, mail: Mail) -> str:
    # of several applications on one database this may not be the one that has the task
    application = f"{runner.target} " if runner.target and mail.task in runner.tasks else ""
    return f"forkrunner {verb} {application}{mail.job_id}"


def _reason(store: Store, mail: Mail, names: Sequence[str]) -> str:
    try:
        secrets = secrets_in(store.get(mail.job_id).arguments, names)
    except JobNotFound:
        return _GONE
    return one_line(scrub(mail.reason, secrets))


def _tell_row(facts: Facts, row: Row) -> None:
    facts.state = str(row.state)
    try:
        values: Any = json.loads(row.arguments)
    except ValueError:
        values = {"(no JSON)": row.arguments}
    if isinstance(values, dict):
        facts.arguments = [(one_line(name, 100), _value(value)) for name, value in values.items()]
    if row.state is State.DONE and row.result not in (None, "null"):
        facts.result = _value(json.loads(row.result or "null"))


def _value(value: Any) -> str:
    text = clean(json.dumps(value, ensure_ascii=False, indent=1 if isinstance(value, (dict, list)) else None))
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}… ({len(text)} characters)"


def _tell_attempt(facts: Facts, attempt: Attempt) -> None:
    facts.outcome = outcome_of(attempt)
    if attempt.traceback:
        facts.traceback = frames.mark(clean(attempt.traceback).rstrip("\n"))
        if place := frames.place(attempt.traceback):
            facts.place = one_line(f"{os.path.basename(place.path)}:{place.line} in {place.name}", 200)
    facts.stacks = clean(attempt.stacks or "").strip("\n")
    facts.steps = list(_steps(attempt.steps))
    lines = clean(attempt.output_tail or "").rstrip("\n").split("\n")
    facts.output = "\n".join(lines[-_OUTPUT_LINES:])
    facts.bill = list(_bill(attempt))
    where = [("host", attempt.host), ("process", attempt.pid), ("supervisor", attempt.supervisor)]
    facts.ran_on = [(name, one_line(value, 200)) for name, value in where if value]
    if attempt.started_at:
        facts.ran_on.append(("started", moment(attempt.started_at)))
    if attempt.finished_at:
        facts.ran_on.append(("ended", moment(attempt.finished_at)))


def outcome_of(attempt: Attempt) -> str:
    """Say in a sentence how an attempt ended."""
    message = one_line(attempt.error_message or "")
    if attempt.outcome is Outcome.DONE:
        return "The task returned."
    if attempt.outcome is Outcome.RAISED:
        return f"The task raised {one_line(attempt.error_type or 'an exception', 200)}" + (
            f": {message}" if message else "."
        )
    peak = show_bytes(attempt.peak_memory_bytes) if attempt.peak_memory_bytes else ""
    begins = {
        Outcome.OUT_OF_MEMORY: "Killed by the kernel's out-of-memory killer"
        + (f" after {peak}" if peak else ""),
        Outcome.CRASHED: f"Its process crashed ({attempt.signal})",
        Outcome.TIMED_OUT: "Ended at its time limit",
        Outcome.OVER_MEMORY: "Ended at its memory limit",
        Outcome.OVER_CPU: "Ended at its limit of CPU time",
        Outcome.EXITED: f"Its process ended itself with exit status {attempt.exit_status}",
        Outcome.LOST: "Nobody saw how it ended",
    }
    words = begins.get(attempt.outcome, str(attempt.outcome))
    return f"{words}: {message}" if message else f"{words}."


def _steps(text: str | None) -> Iterable[str]:
    try:
        steps = json.loads(text or "[]")
        for step in steps if isinstance(steps, list) else ():
            more = [
                f"{name} {value}" for name, value in step.items() if name not in ("step", "after") and value
            ]
            yield one_line(
                f"after {step['after']:.2f} s: {step['step']}" + (f" ({', '.join(more)})" if more else "")
            )
    except (ValueError, TypeError, KeyError, AttributeError):
        return


def _bill(attempt: Attempt) -> Iterable[tuple[str, str]]:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.3f} s" if value < 10 else f"{value:.1f} s"

    cpu = (attempt.cpu_user_seconds or 0.0) + (attempt.cpu_system_seconds or 0.0)
    facts = (
        ("ran", seconds(attempt.run_seconds)),
        ("waited", seconds(attempt.waited_seconds)),
        ("CPU", seconds(cpu) if attempt.cpu_user_seconds is not None else ""),
        (
            "peak memory",
            show_bytes(attempt.peak_memory_bytes) if attempt.peak_memory_bytes is not None else "",
        ),
        ("output", show_bytes(attempt.output_bytes) if attempt.output_bytes else ""),
        ("processes left", str(attempt.leftover_processes or "")),
    )
    return ((name, value) for name, value in facts if value)


def versions(runner: Runner | None = None) -> list[tuple[str, str]]:
    """Say what it ran with."""
    found = [
        ("forkrunner", __version__),
        ("Python", platform.python_version()),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
    ]
    module = sys.modules.get(runner.module.partition(".")[0]) if runner is not None else None
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        found.insert(0, (one_line(module.__name__, 100) if module else "", one_line(version, 100)))
    return found


def _link(base: str | None, job: str) -> str:
    if not base:
        return ""
    return base.replace("{id}", job) if "{id}" in base else f"{base.rstrip('/')}/{job}"


def _attach_files(facts: Facts, runner: Runner, store: Store, insist: bool) -> int:
    """Attach what the job was given, as far as there is room; the rest is named, with its place. Return the room left."""
    room = runner.settings.mail_attachments
    for file in store.files(facts.job):
        if not file.place.startswith("arguments."):
            continue
        name = _free_name(file_name(file.name), facts)
        data, where = None, ""
        try:
            where = f"it lies in {one_line(runner.storage.place(file.sha256))}"
            if file.size <= room:
                with runner.storage.open(file.sha256) as stream:
                    data = stream.read(file.size + 1)
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    data, where = None, f"its content is damaged; {where}"
        except FileMissing:
            where = "the storage does not have it any more"
        except StorageError as error:
            if insist:
                raise MailError(f"a file of the job is not to be had: {error}") from error
            where = f"the storage does not answer: {one_line(error)}"
        room -= len(data or b"")
        facts.attachments.append(
            Attachment(name, file.size, data, where, file.sha256, file.place.removeprefix("arguments."))
        )
    return room


def file_name(name: str) -> str:
    """Return a name that is one on every system, and neither a path nor hidden."""
    base = re.split(r"[/\\]", name)[-1]
    words = re.sub(
        r"[^\w.()+ -]", "_", unicodedata.normalize("NFC", base.encode("utf-8", "replace").decode())
    )
    stem, dot, suffix = words.strip(" .").rpartition(".")
    if not dot:
        stem, suffix = suffix, ""
    suffix = suffix[:20]
    return f"{stem[:80]}{dot}{suffix}".strip(" .") or "file"


def _free_name(name: str, facts: Facts) -> str:
    """Return a name that no other file of the mail has, also where capitals do not count."""
    taken = {one.name.casefold() for one in facts.attachments}
    stem, suffix = os.path.splitext(name)
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{stem}-{number}{suffix}"
    return free


def _attach_log(facts: Facts, text: str, room: int, where: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    packed = gzip.compress(data, mtime=0)
    name = _free_name(file_name(f"{facts.task}-{facts.job[-12:]}-attempt-{facts.attempt}.log.gz"), facts)
    fits = len(packed) <= room
    facts.attachments.append(
        Attachment(
            name,
            len(packed),
            packed if fits else None,
            where,
            hashlib.sha256(packed).hexdigest(),
        )
    )
