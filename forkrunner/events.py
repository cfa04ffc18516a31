"""What supervisors and keepers have to say: the names of its events, and the only place that words them.

Code emits an event with fields; here each becomes one line, as text or as JSON. Every
line is one event: control characters in a field are escaped, so that a job cannot forge one.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from . import clock

LEVELS = ("debug", "info", "warning", "error")
#: From this level on a line does not wait for the end of the loop's turn.
_AT_ONCE = LEVELS.index("error")


class Event(NamedTuple):
    level: str
    #: The words, with fields in braces.
    text: str


EVENTS: dict[str, Event] = {
    "supervisor.started": Event("info", "forkrunner {version} runs {target} on {database}, {slots} slots, queues {queues} (pid {pid}, wake-up by {wake})"),
    "supervisor.quiet": Event("info", "quiet: no more jobs are claimed ({signal})"),
    "supervisor.reloading": Event("info", "reloading ({signal}): the code is imported anew, running jobs go on"),
    "supervisor.ignored": Event("info", "{signal} is ignored: {why}"),
    "upgrade.begun": Event("info", "upgrading ({signal}): the new forkrunner is tried first"),
    "upgrade.refused": Event("error", "the new forkrunner does not start: {error}; this one goes on"),
    "upgrade.done": Event("info", "forkrunner {version} has taken over from {before} in {seconds:.2f} s: {busy} running, {molds} molds (pid {pid})"),
    "supervisor.stopping": Event("info", "stopping ({signal}): {busy} running, waiting up to {seconds:g} s for them"),
    "supervisor.killing": Event("warning", "killing {busy} running attempts ({signal})"),
    "supervisor.stopped": Event("info", "stopped: {done} attempts ended here, {left} left to be rescued"),
    "supervisor.leftover": Event("error", "a process that the kernel does not let go of could not be killed and is left behind"),
    "supervisor.lost_lease": Event("error", "the lease was lost: {busy} attempts were killed, starting anew as {supervisor}"),
    "settings.fixed": Event("warning", "{setting} stays {value}: another value counts from the next start on"),
    "keeper.again": Event("error", "the supervisor has ended ({how}): it is started again, after {seconds:g} s"),
    "keeper.renewed": Event("info", "generation {generation} of the web server ({why}): the code is imported anew, running jobs go on"),
    "keeper.replaced": Event("info", "the web server has other settings, another folder, environment or log: a new supervisor for new jobs, running jobs have the grace period"),
    "keeper.alone": Event("info", "the web server has ended: stopping"),
    "keeper.other": Event("error", "{other} is not run while {target} is, on the same database and host, by another web server; the setting `molds` takes both (pid {pid})"),
    "keeper.differs": Event("warning", "another web server for {target} has other settings or another folder (pid {pid}): its jobs run as the first one's for as long as that lives"),
    "mold.up": Event("info", "mold {generation} is up: {tasks} tasks, {seconds:.2f} s (pid {pid})"),
    "mold.slow": Event("warning", "mold {generation} still imports the application after {seconds:.0f} s (pid {pid}); it is at:"),
    "mold.ready": Event("debug", "mold {generation} is up: {tasks} tasks, {seconds:.2f} s (pid {pid})"),
    "mold.retired": Event("info", "mold {generation} takes no more jobs and finishes {busy}"),
    "mold.finished": Event("info", "mold {generation} has finished its last job"),
    "mold.broken": Event("error", "the application does not import: {error}; {then}"),
    "mold.died": Event("error", "mold {generation} died ({how}) with {busy} attempts; {then}"),
    "files.changed": Event("info", "{path} has changed: reloading, running jobs go on"),
    "mold.silent": Event("error", "mold {generation} has said nothing for {seconds:.1f} s and is killed, with {busy} attempts"),
    "mold.fenced": Event("error", "mold {generation} has not ended its jobs before the lease is over and is killed"),
    "mold.worn": Event("info", "mold {generation} is renewed: {why}"),
    "mold.garbled": Event("error", "something else than the mold wrote into its channel: {error}; it is replaced"),
    "mold.unsafe": Event("warning", "the application should not have this at a fork: {finding} {what}, made by {by}: {effect}"),
    "prune.done": Event("info", "pruned {jobs} jobs, and {files} files that no job has any more, in {seconds:.1f} s"),
    "prune.failed": Event("warning", "cannot prune what is kept no longer: {error}"),
    "folder.left": Event("warning", "the temporary folder {path} cannot be removed: something in it belongs to somebody else, or is in use"),
    "job.started": Event("debug", "{task} {id} started, attempt {attempt}"),
    "job.ended": Event("info", "{task} {id} {outcome} in {seconds:.3f} s, attempt {attempt}"),
    "job.failed": Event("warning", "{task} {id} {outcome} in {seconds:.3f} s, attempt {attempt}, {then}: {error}"),
    "job.paused": Event("info", "{task} {id} is paused, attempt {attempt}"),
    "job.resumed": Event("info", "{task} {id} goes on, attempt {attempt}"),
    "mail.undeliverable": Event("error", "the mail {id} is undeliverable: {error}; `forkrunner mail --again` sends it again"),
    "settings.warning": Event("warning", "{text}"),
    "jobs.rescued": Event("warning", "{count} jobs of a dead supervisor are taken back"),
    "job.refused": Event("warning", "{id} could not be started and was given back: {error}"),
    "job.late": Event("warning", "{id} attempt {attempt}: the row had moved on, so its outcome {outcome} was not written"),
    "claims.given_back": Event("warning", "{count} claimed jobs that could not be started here were given back"),
    "claims.returned": Event("debug", "{count} jobs that were claimed ahead of a free slot were given back"),
    "database.away": Event("error", "the database does not answer: {error}; running jobs go on, outcomes are kept"),
    "database.back": Event("info", "the database is back after {seconds:.1f} s, {kept} outcomes to be written"),
}  # fmt: skip


def _clean(value: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return value


class Log:
    """Writes events to a stream, standard error by default."""

    def __init__(self, level: str = "info", form: str = "text") -> None:
        lowest = LEVELS.index(level)
        self._silent = {name for name, event in EVENTS.items() if LEVELS.index(event.level) < lowest}
        self.form = form
        self._lines: list[str] = []
        #: The second that it is, and how that is written: formatting it costs as much as the rest of a line.
        self._second, self._stamp = 0, ""

    def emit(self, name: str, **fields: Any) -> None:
        if name in self._silent:
            return
        event = EVENTS[name]
        if self.form == "json":
            line = json.dumps(
                {"at": clock.utc().isoformat(), "level": event.level, "event": name, **fields}, default=str
            )
        else:
            words = event.text.format(**{key: _clean(value) for key, value in fields.items()})
            second = int(clock.wall())
            if second != self._second:
                self._second, self._stamp = second, f"{clock.from_wall(second):%Y-%m-%d %H:%M:%S}"
            line = f"{self._stamp} {event.level.upper():7} {words}"
        self._lines.append(line)
        if LEVELS.index(event.level) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was said since the last time: a loop calls it once a turn, not once a line."""
        if not self._lines:
            return
        try:
            sys.stderr.write("\n".join(self._lines) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more; the jobs are more important
        self._lines.clear()


def table() -> str:
    """Return the events as a Markdown table."""
    rows = [f"| `{name}` | {event.level} | {event.text} |" for name, event in EVENTS.items()]
    return "\n".join(["| event | level | words |", "| --- | --- | --- |", *rows])
