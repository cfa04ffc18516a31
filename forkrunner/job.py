"""The words of a job: its states, how attempts end, and what follows from an ending.

No I/O and no clock here: the store writes what this file decides.

    enqueue ──a──▶ pending ──b──▶ busy ──c──▶ done
                     ▲ │           │ ├────d──▶ failed
                     │ └─────f─────┼─┴────g──▶ cancelled
                     └──────e──────┘
                     ◀──────h───────────────── done, failed, cancelled

    a  enqueue          Store.enqueue: the row is inserted, `run_at` says when it may start
    b  claim            Store.claim: `attempt` is counted up, `supervisor` is set
    c  finish           Store.finish: the attempt's outcome is `done`, `result` is set
    d  finish           Store.finish: no further try is due, `error` says why
    e  finish, release  Store.finish: another try at `run_at`, or requeued · Store.release: claimed, never started
    f  cancel           Store.cancel: nothing ran
    g  finish           Store.finish: a running attempt was cancelled, or ended while a cancel was on record, and not well
    h  retry            Store.retry: somebody asked for another run; `tries` and `crashes` start again at 0

pending    `supervisor` is None; `finished_at` is None
busy       `supervisor` and `started_at` are set; the row belongs to that supervisor while its lease lasts
done       `result` and `finished_at` are set, `error` is None
failed     `error` and `finished_at` are set
cancelled  `error` and `finished_at` are set
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    PENDING = "pending"
    BUSY = "busy"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: States that a job leaves only by `retry`.
ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED})

#: Arrow → (function, from, to); a test compares this with the diagram above.
TRANSITIONS: Mapping[str, tuple[str, frozenset[State], frozenset[State]]] = {
    "a": ("enqueue", frozenset(), frozenset({State.PENDING})),
    "b": ("claim", frozenset({State.PENDING}), frozenset({State.BUSY})),
    "c": ("finish", frozenset({State.BUSY}), frozenset({State.DONE})),
    "d": ("finish", frozenset({State.BUSY}), frozenset({State.FAILED})),
    "e": ("finish, release", frozenset({State.BUSY}), frozenset({State.PENDING})),
    "f": ("cancel", frozenset({State.PENDING}), frozenset({State.CANCELLED})),
    "g": ("finish", frozenset({State.BUSY}), frozenset({State.CANCELLED})),
    "h": ("retry", ENDED, frozenset({State.PENDING})),
}


class Outcome(StrEnum):
    """How an attempt ended. The mold decides it, `after` says what follows."""

    #: The task returned.
    DONE = "done"
    #: The task raised.
    RAISED = "raised"
    #: The process ended itself with an exit status: sys.exit, os._exit.
    EXITED = "exited"
    #: The process was ended by a signal that was not ours.
    CRASHED = "crashed"
    #: Ended by the mold at the task's `timeout`.
    TIMED_OUT = "timed_out"
    #: More memory of its own than the task's `memory`.
    OVER_MEMORY = "over_memory"
    #: More CPU time than the task's `cpu_seconds`.
    OVER_CPU = "over_cpu"
    #: Killed by the kernel's out-of-memory killer.
    OUT_OF_MEMORY = "out_of_memory"
    #: Ended because somebody cancelled the job.
    CANCELLED = "cancelled"
    #: Stopped on purpose before it was finished; runs again and counts as nothing.
    REQUEUED = "requeued"
    #: Its supervisor or mold died, so nobody saw how it ended.
    LOST = "lost"


#: Endings that say "this job may be dangerous", capped by `max_crashes` apart from `max_attempts`.
CRASHES = frozenset({Outcome.CRASHED, Outcome.OUT_OF_MEMORY, Outcome.LOST})


@dataclass(frozen=True, slots=True)
class Policy:
    """What a task declared about being run again."""

    #: How often the task may be tried before the job is failed; crashes are not counted here.
    max_attempts: int = 1
    #: After how many crashes (see CRASHES) the job is failed.
    max_crashes: int = 3
    #: Seconds before the second try, doubled for each further one; or one number per try.
    backoff: float | tuple[float, ...] = 10.0
    #: Longest wait between two tries, seconds.
    backoff_cap: float = 3600.0
    #: Never start it again once it was claimed, whatever happened.
    at_most_once: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Policy:
        """Make one from a task's options as they come over a channel; others than its own are passed over."""
        known = {key: options[key] for key in cls.__dataclass_fields__ if options.get(key) is not None}
        if isinstance(known.get("backoff"), list):
            known["backoff"] = tuple(known["backoff"])
        return cls(**known)

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds to wait after the `failures`-th failure; `jitter` in 0…1 spreads it by ± 25 %."""
        if isinstance(self.backoff, tuple):
            base = self.backoff[min(failures, len(self.backoff)) - 1] if self.backoff else 0.0
        else:
            # 2.0 ** 1024 overflows; the cap is reached long before
            base = self.backoff * 2.0 ** min(failures - 1, 60)
        return min(base, self.backoff_cap) * (0.75 + 0.5 * jitter)


@dataclass(frozen=True, slots=True)
class Next:
    """What becomes of a row after an attempt; `delay` in seconds is for `pending` only."""

    state: State
    tries: int
    crashes: int
    delay: float = 0.0


def after(
    outcome: Outcome,
    *,
    tries: int,
    crashes: int,
    policy: Policy,
    retry: bool = True,
    jitter: float | None = None,
) -> Next:
    """Decide what follows an ending: the one place that does, but for a cancel.

    Whether somebody has cancelled the job is known for certain by its row alone. So the statement that writes this makes
    a job `cancelled` whose attempt has ended in any way but `done` while a cancel was on record.
    `tries` and `crashes` are those of the row before this attempt; `retry` is
    False when the task's `retry_for` or `give_up_on` ruled another try out.
    """
    if outcome is Outcome.DONE:
        return Next(State.DONE, tries + 1, crashes)
    if outcome is Outcome.CANCELLED:
        return Next(State.CANCELLED, tries, crashes)
    if outcome is Outcome.REQUEUED and not policy.at_most_once:
        return Next(State.PENDING, tries, crashes)
    jitter = random.random() if jitter is None else jitter
    if outcome in CRASHES:
        crashes += 1
        again, failures = crashes < policy.max_crashes, crashes
    else:
        tries += 1
        again, failures = retry and tries < policy.max_attempts, tries
    if policy.at_most_once or not again:
        return Next(State.FAILED, tries, crashes)
    # a lost attempt says nothing against the job: it need not wait
    delay = 0.0 if outcome is Outcome.LOST else policy.delay(failures, jitter)
    return Next(State.PENDING, tries, crashes, delay)


#: Begins the `error` of a job whose task has raised a UserError; nothing else does, since the types of exceptions that
#: are not Python's own are named with their modules.
_BY_USER_ERROR = "UserError: "


def user_sentence(text: str) -> str:
    """Return the `error` of a job that has failed by a UserError of this text."""
    return _BY_USER_ERROR + text


def user_error(error: str | None) -> str | None:
    """Return the text of the UserError behind a job's `error`: fit for users, word for word. None: it was none, or said nothing."""
    if error is None or not error.startswith(_BY_USER_ERROR):
        return None
    return error.removeprefix(_BY_USER_ERROR) or None


#: How an attempt ended, for people; the order is that of the docs.
ENDINGS: Mapping[Outcome, str] = {
    Outcome.DONE: "the task returned",
    Outcome.RAISED: "the task raised, or its result was not JSON or too large, or no task has the name",
    Outcome.EXITED: "the process ended itself: `sys.exit`, `os._exit`",
    Outcome.CRASHED: "the process was ended by a signal that was not ours; with its stacks for SIGSEGV, ABRT, BUS, FPE, ILL",
    Outcome.TIMED_OUT: "it ran longer than `timeout` and was killed",
    Outcome.OVER_MEMORY: "`MemoryError` under the task's `memory` limit; or with all that it started it had more, and was killed",
    Outcome.OVER_CPU: "SIGXCPU at the task's `cpu_seconds`; or with all that it started it used more, and was killed, or had used as much when it returned",
    Outcome.OUT_OF_MEMORY: "SIGKILL by the kernel's out-of-memory killer: its log names the pid, or a counter has moved",
    Outcome.CANCELLED: "somebody cancelled the job: it left at a safe point, or was killed",
    Outcome.REQUEUED: "it left at a safe point; or was killed because its supervisor stopped or could not renew its lease",
    Outcome.LOST: "its mold or supervisor died or was killed; or its lease was over and another took it back",
}


def ending_table() -> str:
    """Return the outcomes as a Markdown table: how an attempt ended, and what `after` makes of its job."""
    policy = Policy(max_attempts=2, max_crashes=2)
    rows = ["| outcome | what happened | counts as | the job is then |", "|---|---|---|---|"]
    for outcome, meaning in ENDINGS.items():
        then = after(outcome, tries=0, crashes=0, policy=policy, jitter=0.5)
        kind, limit = (
            ("try", "max_attempts") if then.tries else ("crash", "max_crashes") if then.crashes else ("–", "")
        )
        words = str(then.state)
        if then.state is State.PENDING:
            words += (
                " again "
                + ("after `backoff`" if then.delay else "at once")
                + (f"; `failed` at `{limit}`" if limit else "")
            )
        rows.append(f"| `{outcome}` | {meaning} | {kind} | {words} |")
    return "\n".join(rows)
