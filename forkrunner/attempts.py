"""What runs for a supervisor, and what has ended and is not written yet.

Used by the supervisor's loop only. A claim comes in by `start`; its attempt is in `running` until a mold says how it
ended; its ending is in `endings` until `rows.py` has written it, and then it is told by `report`. Nothing here asks
the database. Keeps (1) and (2) of `supervisor.py`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from . import clock, temporary
from .internal import MAIL
from .job import Outcome, Policy, State, after, user_sentence
from .lease import HOST
from .molds import FOREVER, Stage
from .options import LIMITS
from .records import Attempt, Ending, File
from .witness import Witness

if TYPE_CHECKING:
    import resource
    from collections.abc import Mapping

    from .molds import Mold
    from .records import Claim, Key
    from .supervisor import Supervisor

#: An ending is never held back longer than this, seconds.
_LONGEST_WAIT = 0.02
#: After one was claimed ahead that must not wait, none is for so long, seconds.
_ONCE = 5.0
#: Characters of a job's error in a log line; the rest is in the row.
_LONGEST_LINE = 500
#: What is done is not run again, whatever its task declared.
_ANY_POLICY = Policy()


class Running:
    """One claimed job that a mold has."""

    __slots__ = ("cancelling", "claim", "mold", "options", "paused", "told", "witness")

    def __init__(self, claim: Claim, options: dict[str, Any], mold: Mold) -> None:
        self.claim = claim
        self.mold = mold
        #: The task's options, with the call's own over them.
        self.options = options
        self.cancelling = self.paused = False
        #: Bytes that its mold had been told, this job the last of them.
        self.told = 0
        #: Once it has run for a moment.
        self.witness: Witness | None = None


class Attempts:
    """The attempts of one supervisor, from claim to report."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.log = supervisor.log
        self.running: dict[Key, Running] = {}
        #: Where jobs that ask for one have a temporary folder.
        self.temporary = temporary.folder()
        #: Those of `running` that send mail: they take no slot.
        self.mails: set[Key] = set()
        self.endings: deque[Ending] = deque()
        #: Jobs in `endings` that may have told their progress; it is cleared away when the row says more.
        self.shown: set[str] = set()
        self.ended_count = 0
        #: When the endings are to be written, whatever else may end meanwhile.
        self.write_at = FOREVER

    def start(self, claims: list[Claim], *, beside: bool = False) -> None:
        """Hand claimed jobs to the molds, `beside` the slots or ahead of a free one if there are more of them."""
        slots = self.supervisor.settings.slots
        for claim in claims:
            mold = self.supervisor.molds.choose(claim.task)
            if mold is None:
                # given back by the next turn, since it does not run; not to be claimed again at once
                self.supervisor.rows.refused(clock.monotonic())
                continue
            options = options_of(claim, mold.tasks)
            if options.get("at_most_once") and not beside and self.busy >= slots:
                # lost while it waits, it would count as begun
                self.supervisor.rows.returned((claim.id, claim.attempt), _ONCE)
                continue
            self.running[claim.id, claim.attempt] = run = Running(claim, options, mold)
            mold.busy += 1
            mold.jobs += 1
            if mold.jobs == self.supervisor.settings.mold_jobs:
                self.supervisor.foundry.care_at = 0.0
            header: dict[str, Any] = {
                "kind": "run",
                "id": claim.id,
                "task": claim.task,
                "queue": claim.queue,
                "attempt": claim.attempt,
                "tries": claim.tries,
                "started_at": claim.started_at.isoformat(),
                "grace": self.supervisor.settings.grace if options.get("grace") is None else options["grace"],
            }
            if beside:
                header["beside"] = True
            elif self.busy > slots:
                header["ahead"] = slots
            if options.get("timeout") is not None:
                header["timeout"] = options["timeout"]
            if limits := {name: options[name] for name in LIMITS if options.get(name)}:
                if "temporary_folder" in limits:
                    limits["temporary_folder"] = f"{self.temporary}/{claim.id}-{claim.attempt}"
                header["limits"] = limits
            if claim.cursor is not None:
                header["cursor"] = claim.cursor
            mold.link.tell(header, claim.arguments.encode())
            run.told = mold.link.told
            self.log.emit("job.started", task=claim.task, id=claim.id, attempt=claim.attempt)

    def start_mails(self, claims: list[Claim]) -> None:
        """Hand claimed mails to a mold, beside the slots."""
        self.start(claims, beside=True)
        self.mails |= {(claim.id, claim.attempt) for claim in claims} & self.running.keys()

    @property
    def busy(self) -> int:
        """How many jobs are claimed and have not ended: each takes a slot, or waits for the next."""
        return len(self.running) - len(self.mails)

    def ended(self, mold: Mold, facts: dict[str, Any], body: bytes) -> None:
        """Decide what becomes of a job whose attempt has ended, and keep it to be written. Keeps (2)."""
        run = self.running.pop((facts["id"], facts["attempt"]), None)
        if run is None:
            return  # told twice, or given back meanwhile
        if self.mails:
            self.mails.discard((facts["id"], facts["attempt"]))
        mold.busy -= 1
        if mold.stage is Stage.DRAINING:
            self.supervisor.renewal.renew_at = 0.0  # people wait for it
        claim = run.claim
        if facts.get("progress", True):  # unless it is known to have said nothing
            self.shown.add(claim.id)
        attempt = Attempt(
            job_id=claim.id,
            attempt=claim.attempt,
            outcome=Outcome(facts["outcome"]),
            supervisor=claim.supervisor,
            host=HOST,
            pid=facts.get("pid"),
            started_at=clock.from_wall(facts["started"]) if "started" in facts else claim.started_at,
            finished_at=clock.from_wall(facts["finished"]) if "finished" in facts else clock.utc(),
            exit_status=facts.get("exit_status"),
            signal=facts.get("signal"),
            error_type=facts.get("error_type"),
            error_message=facts.get("error_message"),
            traceback=facts.get("traceback"),
            stacks=facts.get("stacks"),
            output_tail=facts.get("output_tail"),
            cpu_user_seconds=facts.get("cpu_user"),
            cpu_system_seconds=facts.get("cpu_system"),
            peak_memory_bytes=facts.get("peak"),
            task=claim.task,
            waited_seconds=waited(claim),
            run_seconds=facts.get("ran"),
            minor_faults=facts.get("minor_faults"),
            major_faults=facts.get("major_faults"),
            voluntary_switches=facts.get("voluntary"),
            involuntary_switches=facts.get("involuntary"),
            leftover_processes=facts.get("leftover"),
            output_bytes=facts.get("output_bytes"),
            steps=msgspec.json.encode(facts["steps"]).decode() if "steps" in facts else None,
        )
        retry, cursor, user = facts.get("retry", True), facts.get("cursor"), facts.get("user", False)
        output = None
        if length := facts.get("output"):  # it stands behind the result
            body, output = body[:-length], body[-length:].decode("utf-8", "replace")
        files = tuple(File(claim.id, **file) for file in facts["files"]) if "files" in facts else ()
        self.keep(
            attempt,
            claim,
            run.options,
            retry=retry,
            result=body,
            cursor=cursor,
            output=output,
            user=user,
            files=files,
        )

    def runs(self, mold: Mold, header: dict[str, Any]) -> None:
        """Take note of the process of an attempt that is not over in a moment."""
        run = self.running.get((header["id"], header["attempt"]))
        if run is not None:
            run.witness = Witness(mold.link.pid, header)

    def refused(self, mold: Mold, header: dict[str, Any]) -> None:
        """Give a job back that a mold could not fork for; it counts as nothing."""
        self._take_back((header["id"], header["attempt"]), mold)
        self.supervisor.rows.refused(clock.monotonic())
        self.log.emit("job.refused", id=header["id"], error=header["error"])

    def returned(self, mold: Mold, header: dict[str, Any]) -> None:
        """Give a job back that was claimed ahead and has not started; it counts as nothing."""
        key = header["id"], header["attempt"]
        self._take_back(key, mold)
        self.supervisor.rows.returned(key)

    def give_back(self, mold: Mold, taken: int) -> None:
        """Take back what a dead mold has never read: it has never started, and counts as nothing.

        `taken` are the bytes that it has read of all that it was told.
        """
        for key, run in list(self.running.items()):
            if run.mold is mold and run.told > taken:
                self._take_back(key, mold)
                self.supervisor.rows.in_doubt = True

    def _take_back(self, key: Key, mold: Mold) -> None:
        """Forget an attempt that has never started."""
        if self.running.pop(key, None):
            self.mails.discard(key)
            mold.busy -= 1
            mold.jobs -= 1

    def lost(self, mold: Mold, how: str, usages: Mapping[int, resource.struct_rusage]) -> None:
        """End what a dead mold had begun; `usages` by pid: what its children had used."""
        for (job_id, number), run in list(self.running.items()):
            if run.mold is not mold:
                continue
            facts: dict[str, Any] = {"outcome": "lost", "error_message": f"its mold died ({how})"}
            output = b""
            if run.witness is not None:
                limit = self.supervisor.settings.output_limit
                told, output = run.witness.tell(usages.get(run.witness.pid), limit)
                facts |= told
            self.ended(mold, {"id": job_id, "attempt": number, **facts}, output)

    def keep(
        self,
        attempt: Attempt,
        claim: Claim,
        options: dict[str, Any],
        *,
        retry: bool = True,
        result: bytes = b"",
        cursor: str | None = None,
        output: str | None = None,
        user: bool = False,
        files: tuple[File, ...] = (),
    ) -> Ending:
        """Keep an ending until it is written; `user`: the task has raised a UserError."""
        done = attempt.outcome is Outcome.DONE
        mailing = self.supervisor.mailing
        policy = _ANY_POLICY if done else Policy.of(options)
        then = after(attempt.outcome, tries=claim.tries, crashes=claim.crashes, policy=policy, retry=retry)
        if done:
            text = result.decode("utf-8", "replace")
            notice = (
                mailing.notice(attempt, then, claim.task, options, "done")
                if mailing.rules.successes
                else None
            )
            ending = Ending(attempt, then, claim.task, result=text, output=output, files=files, notice=notice)
        else:
            error = user_sentence(attempt.error_message or "") if user else attempt.sentence()
            notice = (
                mailing.notice(attempt, then, claim.task, options, error) if mailing.rules.active else None
            )
            ending = Ending(
                attempt, then, claim.task, error=error, cursor=cursor, output=output, notice=notice
            )
        self.endings.append(ending)
        self.ended_count += 1
        if self.write_at == FOREVER:
            self.write_at = clock.monotonic() + _LONGEST_WAIT
        return ending

    def report(self, ending: Ending, became: State | None) -> None:
        """Tell how an attempt ended, after that was written; the job is now in this state. None: the row had moved on."""
        attempt = ending.attempt
        if attempt.job_id in self.shown:
            self.shown.discard(attempt.job_id)
            if became:  # else another attempt may have its progress there
                self.supervisor.hearing.progress.drop(attempt.job_id)
        seconds = 0.0
        if attempt.started_at and attempt.finished_at:
            seconds = (attempt.finished_at - attempt.started_at).total_seconds()
        facts = {
            "task": ending.task,
            "id": attempt.job_id,
            "attempt": attempt.attempt,
            "outcome": str(attempt.outcome),
        }
        if became is None:
            self.log.emit("job.late", **facts)
        elif attempt.outcome is Outcome.DONE and became is State.DONE:
            self.log.emit("job.ended", seconds=seconds, **facts)
        else:
            error = (ending.error or "")[:_LONGEST_LINE]
            if ending.task == MAIL and became is State.FAILED:
                self.log.emit("mail.undeliverable", id=attempt.job_id, error=error)
            self.log.emit(
                "job.failed", seconds=seconds, then=ending.consequence(became), error=error, **facts
            )


def options_of(claim: Claim, tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the task's options with those of the call, which are in the row, over them."""
    options = tasks.get(claim.task, {})
    return options | msgspec.json.decode(claim.options) if claim.options else options


def waited(claim: Claim) -> float | None:
    """Return how long a job was due before it was claimed, seconds by the database's clock."""
    if claim.run_at is None:
        return None
    return max(0.0, (claim.started_at - max(claim.run_at, claim.created_at)).total_seconds())
