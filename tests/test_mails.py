"""Which mail follows from an ending, what fails alike, what an address is and a way for mail; and tracebacks read as text."""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkrunner import frames, mails, mailurl
from forkrunner.addresses import address, addresses
from forkrunner.job import Next, Outcome, State
from forkrunner.records import Attempt

FAILED = Next(State.FAILED, 1, 0)
TRACE = """Traceback (most recent call last):
  File "/srv/app/jobs.py", line 12, in convert
    parse(source)
  File "/usr/lib/python3.12/json/__init__.py", line 346, in loads
    return _default_decoder.decode(s)
ValueError: line 3: expected 4 columns
"""


def rules(**facts: Any) -> mails.Rules:
    usual: dict[str, Any] = {"to": ["ops@example.org"], "on": ["failure"], "interval": 600.0, "cap": 30}
    return mails.Rules(**{**usual, "retry": 10.0, "timeout": 120.0, "tasks": {}, **facts})


def attempt(outcome: Outcome = Outcome.RAISED, **facts: Any) -> Attempt:
    usual = {"error_type": "ValueError", "error_message": "line 3", "traceback": TRACE}
    return Attempt("j", 1, outcome, **{**usual, **facts})


def fingerprint(one: Attempt, task: str = "convert") -> str:
    return mails.fingerprint(one, task, "failure")


# --------------------------------------------------------------------------- who is told of what


@pytest.mark.parametrize(
    ("outcome", "state", "kind"),
    [
        (Outcome.DONE, State.DONE, "success"),
        (Outcome.RAISED, State.FAILED, "failure"),
        (Outcome.CRASHED, State.FAILED, "failure"),
        (Outcome.LOST, State.PENDING, "attempt"),
        (Outcome.RAISED, State.PENDING, "attempt"),
        (Outcome.REQUEUED, State.PENDING, None),
        (Outcome.REQUEUED, State.FAILED, "failure"),
        (Outcome.CANCELLED, State.CANCELLED, None),
    ],
)
def test_what_an_ending_is_for_those_who_are_told(outcome, state, kind):
    assert mails.kind_of(outcome, state) == kind


@pytest.mark.parametrize(
    ("settings", "task", "ending", "told"),
    [
        ({}, {}, FAILED, True),
        ({}, {}, Next(State.PENDING, 1, 0), False),
        ({"on": ["attempt"]}, {}, Next(State.PENDING, 1, 0), True),
        ({"on": ["attempt"]}, {}, FAILED, True),
        ({"on": ["success"]}, {}, FAILED, False),
        ({"on": []}, {"mail_on": ["failure"]}, FAILED, True),
        ({}, {"mail_on": []}, FAILED, False),
        ({}, {"mail_to": []}, FAILED, False),
        ({"to": []}, {}, FAILED, False),
        ({"to": []}, {"mail_to": ["me@example.org"]}, FAILED, True),
    ],
)
def test_settings_and_tasks_say_together_who_is_told(settings, task, ending, told):
    found = rules(**settings).notice(attempt(), ending, "convert", task, "why")
    assert (found is not None) == told
    if found is not None:
        assert found.recipients == (tuple(task["mail_to"]) if "mail_to" in task else None)


def test_no_mail_about_mail():
    asked = rules(on=["failure", "attempt", "success"])
    for outcome, state in (
        (Outcome.RAISED, State.FAILED),
        (Outcome.RAISED, State.PENDING),
        (Outcome.DONE, State.DONE),
    ):
        assert asked.notice(attempt(outcome), Next(state, 1, 0), "forkrunner:mail", {}, "why") is None


def test_nothing_is_asked_of_what_nobody_wants_to_know():
    assert not rules(to=[]).active
    assert rules(to=[], tasks={"a": {"mail_to": ["me@example.org"]}}).active
    assert not rules().successes
    assert rules(tasks={"a": {"mail_on": ["success"]}}).successes
    assert not rules(to=[], on=["success"]).successes


# --------------------------------------------------------------------------- what fails alike


def test_alike_are_task_type_and_place():
    first = fingerprint(attempt())
    assert (
        fingerprint(attempt(error_message="line 99", traceback=TRACE.replace("line 3:", "line 9:"))) == first
    )
    assert fingerprint(replace(attempt(), job_id="other", attempt=7, pid=3)) == first
    # the innermost frame of the application counts, not where a library noticed
    assert fingerprint(attempt(traceback=TRACE.replace("line 346", "line 347"))) == first
    for other in (
        fingerprint(attempt(), "render"),
        fingerprint(attempt(error_type="TypeError")),
        fingerprint(attempt(traceback=TRACE.replace("line 12", "line 13"))),
        fingerprint(attempt(Outcome.TIMED_OUT)),
    ):
        assert other != first


def test_alike_are_signals_and_exit_statuses():
    crash = fingerprint(attempt(Outcome.CRASHED, signal="SIGSEGV", stacks="here"))
    assert crash == fingerprint(attempt(Outcome.CRASHED, signal="SIGSEGV", stacks="there", traceback=None))
    assert crash != fingerprint(attempt(Outcome.CRASHED, signal="SIGBUS"))
    assert fingerprint(attempt(Outcome.EXITED, exit_status=3)) != fingerprint(
        attempt(Outcome.EXITED, exit_status=4)
    )


def test_without_an_interval_nothing_is_alike():
    asked = rules(interval=0.0)
    found = [asked.notice(replace(attempt(), job_id=job), FAILED, "convert", {}, "why") for job in ("a", "b")]
    assert found[0]
    assert found[1]
    assert found[0].fingerprint != found[1].fingerprint


@given(st.text(), st.text(), st.text() | st.none(), st.text() | st.none())
def test_whatever_a_job_says_has_a_fingerprint(task, kind, message, text):
    one = attempt(error_type=kind, error_message=message, traceback=text)
    found = rules().notice(one, FAILED, task, {}, message or "")
    if task != "forkrunner:mail":
        assert found is not None
        assert found.fingerprint.isascii()
        assert found.fingerprint.isalnum()
        assert len(found.fingerprint) == 32
        json.loads(found.options)


# --------------------------------------------------------------------------- tracebacks


def test_the_frames_of_the_application_are_marked():
    marked = frames.mark(TRACE)
    assert [line.strip() for line, own in marked if own] == [
        'File "/srv/app/jobs.py", line 12, in convert',
        "parse(source)",
    ]
    assert "\n".join(line for line, _ in marked) == TRACE.rstrip("\n")
    place = frames.place(TRACE)
    assert place == ("/srv/app/jobs.py", 12, "convert", True)


def test_a_real_traceback_of_several_exceptions_is_read():
    def innermost() -> None:
        raise KeyError("x")

    try:
        try:
            json.loads("{")
        except ValueError:
            innermost()
    except KeyError:
        text = traceback.format_exc()
    place = frames.place(text)
    assert place is not None
    assert place.name.endswith("innermost")
    assert place.own
    libraries = [frame for frame in frames.frames(text.split("During handling")[0]) if not frame.own]
    assert libraries
    assert all("json" in frame.path for frame in libraries)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/srv/app/jobs.py", True),
        ("<string>", True),
        ("/venv/lib/python3.11/site-packages/numpy/core.py", False),
        ("/usr/lib/python3/dist-packages/x.py", False),
        ("/usr/lib/python3.11/json/decoder.py", False),
        ("<frozen importlib._bootstrap>", False),
        (frames.__file__, False),
    ],
)
def test_whose_a_file_is(path, own):
    assert frames.is_own(path) == own


@given(st.text())
def test_any_text_can_be_marked(text):
    assert [line for line, _ in frames.mark(text)] == text.splitlines()


# --------------------------------------------------------------------------- addresses, and ways

HOME = os.path.expanduser("~")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ops@example.org", ("ops@example.org",)),
        (
            "ops@example.org, Jörg Müller <jörg@exämple.org>,",
            ("ops@example.org", "Jörg Müller <jörg@exämple.org>"),
        ),
        (["a@b.org", "a@b.org"], ("a@b.org",)),
        ("", ()),
        ([], ()),
    ],
)
def test_addresses(text, found):
    assert addresses(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "nobody",
        "a@b\nBcc: c@d.org",
        "a@b.org\r\nBcc: c@d.org",
        "x <a@b.org> <c@d.org>",
        "a@b.org>",
        "a b@c.org",
        '"x, y" <a@b.org>',
        "a@b@c.org",
        "Ops\u202e <a@b.org>",
        "a@b.org;c@d.org",
        "\0@b.org",
        "ü@ex..ämple.org",
        "a@b..org",
        "a@.b.org",
        f"a@{'b' * 64}.org",
        f"a@{'ü' * 64}.org",
        "a@exä\uff20mple.org",
    ],
)
def test_no_addresses(text):
    with pytest.raises(ValueError, match="expected addresses"):
        address(text)


@given(st.text())
def test_an_address_is_one_line_and_one_address(text):
    try:
        found = address(text)
    except ValueError:
        return
    assert found.isprintable()
    assert found.count("@") == 1
    assert not set(found) & set(',;"\\')


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("smtp://h", mailurl.Way("smtp", "h", 25)),
        ("smtp://h:2525?tls=off", mailurl.Way("smtp", "h", 2525, tls="off")),
        ("smtp://u:p@h", mailurl.Way("smtp", "h", 587, user="u", password="p", tls="require")),
        ("smtp://u%40x:p%3A%2F@h", mailurl.Way("smtp", "h", 587, user="u@x", password="p:/", tls="require")),
        ("smtps://h?ca=/ca.pem", mailurl.Way("smtps", "h", 465, tls="require", ca="/ca.pem")),
        ("smtp://exämple.org.", mailurl.Way("smtp", "exämple.org.", 25)),
        ("smtp://[::1]:26", mailurl.Way("smtp", "::1", 26)),
        ("lmtp:///run/lmtp", mailurl.Way("lmtp", path="/run/lmtp", tls="off")),
        ("sendmail:", mailurl.Way("sendmail", path="/usr/sbin/sendmail")),
        ("sendmail:/opt/msmtp", mailurl.Way("sendmail", path="/opt/msmtp")),
        ("sendmail:~/bin/msmtp", mailurl.Way("sendmail", path=f"{HOME}/bin/msmtp")),
        ("file:~/mails", mailurl.Way("file", path=f"{HOME}/mails")),
        ("file:mails", mailurl.Way("file", path="mails")),
        ("file:///srv/mails", mailurl.Way("file", path="/srv/mails")),
    ],
)
def test_ways(url, found):
    assert mailurl.way(url) == found
    assert not found.password or f"{found.password}@" not in str(found)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "http://h",
        "smtp://",
        "smtp://h/x",
        "smtps:///socket",
        "smtp://u@h",
        "smtp://h?tls=maybe",
        "smtps://h?tls=off",
        "smtp://h?cert=x",
        "smtp://h#x",
        "smtp://h:99999",
        "file:",
        "file://host/x",
        "smtp://h\n",
        "smtp:mail.example.org",
        "lmtp:run/lmtp",
        "file:~nobody-of-this-name/mails",
        "smtp://a..b",
        "smtps://ä..b",
        f"lmtp://{'b' * 64}",
    ],
)
def test_no_ways(url):
    with pytest.raises(ValueError):  # noqa: PT011 - of several sentences
        mailurl.way(url)
