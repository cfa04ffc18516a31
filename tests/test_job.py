"""The words of a job: the diagram, the transitions, what follows an ending."""

from __future__ import annotations

import re

import pytest

from forkrunner import job
from forkrunner.job import CRASHES, ENDED, Next, Outcome, Policy, State, after


def test_the_diagram_names_each_arrow_and_says_who_draws_it():
    doc = job.__doc__ or ""
    diagram, _, rest = doc.partition("    a  enqueue")
    legend = dict(re.findall(r"^    ([a-h])  (.+?)  +", "    a  enqueue" + rest, re.MULTILINE))
    drawn = set(re.findall(r"[─│\s]([a-h])(?=──|─|▶|\s)", diagram))
    assert set(job.TRANSITIONS) <= drawn
    assert legend == {letter: name for letter, (name, _, _) in job.TRANSITIONS.items()}


def test_every_state_can_be_reached_and_only_ended_ones_rest():
    reached = set().union(*(to for _, _, to in job.TRANSITIONS.values()))
    assert reached == set(State)
    left_by_itself = set().union(*(start for name, start, _ in job.TRANSITIONS.values() if name != "retry"))
    assert set(State) - left_by_itself == ENDED


@pytest.mark.parametrize(
    ("outcome", "max_attempts", "max_crashes", "tries", "crashes", "state"),
    [
        (Outcome.DONE, 1, 3, 0, 0, State.DONE),
        (Outcome.RAISED, 1, 3, 0, 0, State.FAILED),
        (Outcome.RAISED, 2, 3, 0, 0, State.PENDING),
        (Outcome.RAISED, 2, 3, 1, 0, State.FAILED),
        (Outcome.EXITED, 2, 3, 0, 0, State.PENDING),
        (Outcome.TIMED_OUT, 1, 3, 0, 0, State.FAILED),
        (Outcome.OVER_MEMORY, 1, 3, 0, 0, State.FAILED),
        (Outcome.OVER_CPU, 1, 3, 0, 0, State.FAILED),
        (Outcome.CRASHED, 1, 3, 0, 0, State.PENDING),
        (Outcome.CRASHED, 1, 3, 0, 2, State.FAILED),
        (Outcome.OUT_OF_MEMORY, 9, 1, 0, 0, State.FAILED),
        (Outcome.LOST, 1, 3, 0, 1, State.PENDING),
        (Outcome.LOST, 1, 3, 0, 2, State.FAILED),
        (Outcome.CANCELLED, 9, 9, 0, 0, State.CANCELLED),
        (Outcome.REQUEUED, 1, 1, 0, 0, State.PENDING),
    ],
)
def test_what_follows_an_ending(outcome, max_attempts, max_crashes, tries, crashes, state):
    policy = Policy(max_attempts=max_attempts, max_crashes=max_crashes)
    assert after(outcome, tries=tries, crashes=crashes, policy=policy).state is state


@pytest.mark.parametrize("outcome", list(Outcome))
def test_at_most_once_is_never_pending_again(outcome):
    then = after(outcome, tries=0, crashes=0, policy=Policy(max_attempts=9, at_most_once=True))
    assert then.state in ENDED


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_ending_counts_as_a_try_or_as_a_crash_or_as_nothing(outcome):
    then = after(outcome, tries=4, crashes=1, policy=Policy(max_attempts=9))
    counted = (then.tries - 4, then.crashes - 1)
    if outcome in CRASHES:
        assert counted == (0, 1)
    elif outcome in (Outcome.REQUEUED, Outcome.CANCELLED):
        assert counted == (0, 0)
    else:
        assert counted == (1, 0)


def test_an_exception_that_the_task_gives_up_on_is_not_tried_again():
    policy = Policy(max_attempts=9)
    assert after(Outcome.RAISED, tries=0, crashes=0, policy=policy, retry=False).state is State.FAILED


def test_backoff_doubles_up_to_its_cap_and_is_spread():
    policy = Policy(backoff=2.0, backoff_cap=10.0)
    assert [policy.delay(n, 0.5) for n in (1, 2, 3, 4, 5000)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert (policy.delay(1, 0.0), policy.delay(1, 1.0)) == (1.5, 2.5)


def test_backoff_may_be_one_number_per_try():
    policy = Policy(backoff=(1.0, 5.0))
    assert [policy.delay(n, 0.5) for n in (1, 2, 3)] == [1.0, 5.0, 5.0]
    assert Policy(backoff=()).delay(1, 0.5) == 0.0


def test_a_lost_attempt_runs_again_at_once():
    assert after(Outcome.LOST, tries=0, crashes=0, policy=Policy()) == Next(State.PENDING, 0, 1, 0.0)
