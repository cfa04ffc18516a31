"""UserError: what a task says to its users arrives word for word, and nothing else that is raised does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import Client

from forkrunner import Runner, UserError
from forkrunner.job import Outcome, State, user_error, user_sentence
from forkrunner.records import Attempt
from forkrunner.wsgi import progress_app
from tests.running import Bed
from tests.support import Cli

APP = '''
from forkrunner import Runner, Secret, UserError

runner = Runner()
calls = []

class BadFile(UserError, ValueError):
    """An application's own."""

class Lookalike(Exception):
    pass

Lookalike.__name__ = Lookalike.__qualname__ = "UserError"

@runner.task(max_attempts=3, backoff=0.01)
def say(text: str, how: str = "plain") -> None:
    kinds = {"plain": UserError, "own": BadFile, "lookalike": Lookalike, "other": ValueError}
    try:
        {}["cause"]
    except KeyError as error:
        raise kinds[how](text) from error

@runner.task(max_attempts=3, backoff=0.01)
async def say_later(text: str) -> None:
    raise UserError(text)

@runner.task(max_attempts=2, backoff=0.01, retry_for=BadFile)
def say_again(text: str, how: str) -> None:
    raise {"own": BadFile, "plain": UserError}[how](text)

@runner.task
def say_secret(word: Secret) -> None:
    raise UserError(f"{word.reveal()} is no password")
'''  # fmt: skip

#: Markup, quotes, both kinds of line ends, a separator of lines that JSON allows and scripts did not, bidi, an escape.
HOSTILE = (
    "<script>alert(1)</script> & \"q\" 'a' </x>\nsecond\r\nthird\u2028 \u202edlrow\u202c \x1b[31m {0} %s ü 🎬"
)
NEUTRAL = "This could not be completed because of an error."


def test_what_a_task_says_to_its_users_arrives_and_nothing_else(cli: Cli, database: str) -> None:
    with Bed(cli, database, source=APP) as bed:
        supervisor = bed.start(slots=3)
        long = "ü" * 1500
        cases: dict[str, tuple[str, dict[str, Any], str, int]] = {
            "plain": ("say", {"text": "This is no tracking file."}, "This is no tracking file.", 1),
            "hostile": ("say", {"text": HOSTILE}, HOSTILE, 1),
            "own": ("say", {"text": "x.txt:3: no", "how": "own"}, "x.txt:3: no", 1),
            "async": ("say_later", {"text": "later"}, "later", 1),
            "again": ("say_again", {"text": "again", "how": "own"}, "again", 2),
            "not again": ("say_again", {"text": "once", "how": "plain"}, "once", 1),
            "secret": ("say_secret", {"word": {"forkrunner.secret": "hunter2"}}, "*** is no password", 1),
            "nothing": ("say", {"text": ""}, NEUTRAL, 1),
            "spaces": ("say", {"text": "  kept  "}, "  kept  ", 1),
            "long": ("say", {"text": long}, "", 1),
            "lookalike": ("say", {"text": "inner", "how": "lookalike"}, NEUTRAL, 3),
            "fake": ("say", {"text": "UserError: fake", "how": "other"}, NEUTRAL, 3),
        }
        ids = {name: bed.put(task, arguments) for name, (task, arguments, _, _) in cases.items()}
        rows = {name: bed.ended(id) for name, id in ids.items()}
        runner = Runner(database, runtime_dir=str(bed.runtime))
        client = Client(progress_app(runner))
        for name, (_, arguments, expected, attempts) in cases.items():
            row = rows[name]
            assert (row.state, row.attempt) == (State.FAILED, attempts), name
            response = client.get(f"/{row.id}")
            found = json.loads(response.data)
            assert (response.mimetype, response.headers["X-Content-Type-Options"]) == (
                "application/json",
                "nosniff",
            )
            job = runner.get(row.id)
            if name == "long":
                assert found["error"].startswith("ü" * 1000)
                assert found["error"].endswith("bytes cut]")
                continue
            assert found["error"] == expected, name
            said = None if expected == NEUTRAL else expected
            assert (job.user_error, found.get("user_error", False)) == (said, said is not None), name
            assert runner.progress(row.id) is not None
            # for those who run it nothing is lost
            assert (row.attempts[-1].error_message or "") == (
                expected if name == "secret" else arguments.get("text")
            )
        assert "KeyError: 'cause'" in (rows["plain"].attempts[0].traceback or "")
        assert rows["own"].attempts[0].error_type == "jobs.BadFile"
        assert rows["lookalike"].error == "jobs.UserError: inner"
        shown = cli.run("show", "jobs:runner", ids["hostile"]).stdout
        assert "\x1b" not in shown
        assert "error     UserError: <script>alert(1)</script>" in shown
        runner.close()
        bed.stop(supervisor)


@pytest.mark.parametrize(
    "attempt",
    [
        Attempt("1", 1, Outcome.RAISED, error_type="ValueError", error_message="UserError: x"),
        Attempt("1", 1, Outcome.RAISED, error_type="jobs.UserError", error_message="x"),
        Attempt("1", 1, Outcome.RAISED, error_type="forkrunner.errors.UserError", error_message="x"),
        Attempt("1", 1, Outcome.EXITED, error_message="UserError: x"),
        Attempt("1", 1, Outcome.CRASHED, error_message="UserError: x"),
    ],
)
def test_no_other_sentence_is_taken_for_one_of_a_user_error(attempt: Attempt) -> None:
    assert user_error(attempt.sentence()) is None
    assert user_error(user_sentence("x")) == "x"
    assert user_error(None) is None


def test_another_try_is_only_for_those_that_are_named() -> None:
    class Mild(UserError): ...

    runner = Runner("sqlite:///nowhere.db")
    usual = runner.task(name="usual")(lambda: None)
    every = runner.task(name="every", retry_for=(UserError, OSError))(lambda: None)
    mild = runner.task(name="mild", retry_for=Mild, give_up_on=OSError)(lambda: None)
    none = runner.task(name="none", retry_for=UserError, give_up_on=Mild)(lambda: None)
    assert [task.retryable(UserError("x")) for task in (usual, every, mild, none)] == [
        False,
        True,
        False,
        True,
    ]
    assert [task.retryable(Mild("x")) for task in (usual, every, mild, none)] == [False, True, True, False]
