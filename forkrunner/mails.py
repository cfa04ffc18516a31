"""Which mail follows from an ending, and what fails alike. No I/O: the supervisor asks, `outbox.py` writes it down.

Two failures are alike when task, exception type and place are, or the signal, or whatever else ended them: 1,000 of
them in a minute are one mail at once and one after `mail_interval` that says how many there were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from . import frames
from .ids import new_id
from .internal import MAIL
from .job import Next, Outcome, State
from .records import Attempt, Notice

FAILURE, ATTEMPT, SUCCESS, START = "failure", "attempt", "success", "start"
#: A mail job is not given up by the number of its tries, but by `mail_patience`; nor is a supervisor that was killed a few
#: times the mail's fault.
_TRIES, _CRASHES = 2**31 - 1, 50
_LONGEST_RETRY = 3600.0


def kind_of(outcome: Outcome, then: State) -> str | None:
    """Say what an ending is for those who are told; None: nothing to be told."""
    if outcome is Outcome.DONE:
        return SUCCESS
    if then is State.FAILED:
        return FAILURE
    return ATTEMPT if then is State.PENDING and outcome is not Outcome.REQUEUED else None


def is_wanted(kind: str, mail_on: Collection[str]) -> bool:
    """Say whether mail of this kind was asked for: the last failed attempt is one too."""
    return kind in mail_on or (kind == FAILURE and ATTEMPT in mail_on)


def fingerprint(attempt: Attempt, task: str, kind: str) -> str:
    """Return what this ending has in common with those that are told of together with it."""
    facts: list[Any] = [kind, task, str(attempt.outcome)]
    if attempt.outcome in (Outcome.RAISED, Outcome.OVER_MEMORY):
        place = frames.place(attempt.traceback)
        facts += [attempt.error_type, *(place[:3] if place else ())]
    elif attempt.outcome is Outcome.EXITED:
        facts.append(attempt.exit_status)
    elif attempt.outcome is Outcome.CRASHED:
        facts.append(attempt.signal)
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Rules:
    """What the settings say of mail, ready to be asked about each ending."""

    def __init__(
        self,
        *,
        to: Collection[str],
        on: Collection[str],
        interval: float,
        cap: int,
        retry: float,
        timeout: float,
        tasks: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.to, self.on = tuple(to), tuple(on)
        self.interval, self.cap = interval, cap
        options = {
            "max_attempts": _TRIES,
            "max_crashes": _CRASHES,
            "backoff": retry,
            "backoff_cap": _LONGEST_RETRY,
            # all that a slow server may take for one mail; each answer has its own, shorter limit
            "timeout": timeout * 20 + 60,
        }
        self._options = json.dumps(options)
        policies = tasks.values()
        #: Somebody may have to be told of something; if not, nothing below is asked.
        self.active = bool(to) or any(options.get("mail_to") for options in policies)
        #: … of jobs that are done.
        self.successes = self.active and (
            SUCCESS in on or any(SUCCESS in (options.get("mail_on") or ()) for options in policies)
        )

    def notice(
        self, attempt: Attempt, then: Next, task: str, options: Mapping[str, Any], reason: str
    ) -> Notice | None:
        """Return the mail that is due with an ending, if one is; `options` are the task's."""
        kind = kind_of(attempt.outcome, then.state)
        on, to = options.get("mail_on"), options.get("mail_to")
        if kind is None or task == MAIL or not is_wanted(kind, self.on if on is None else on):
            return None
        if not (self.to if to is None else to):
            return None
        mark = fingerprint(attempt, task, kind)
        if not self.interval:
            mark = f"{mark} {attempt.job_id} {attempt.attempt}"
        return Notice(
            id=new_id(),
            kind=kind,
            fingerprint=mark,
            task=task,
            reason=reason,
            recipients=None if to is None else tuple(to),
            interval=self.interval,
            cap=self.cap,
            options=self._options,
        )
