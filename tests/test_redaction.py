"""What is secret is shown nowhere: by name, as Secret, in errors, tracebacks, output, titles and log lines."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from forkrunner import ArgumentError, ConfigError, Runner, Secret
from forkrunner.job import Outcome, State
from forkrunner.records import Attempt, Row
from forkrunner.redaction import SECRET_NAMES, conceal, is_secret, redact, redact_text, scrub, secrets_in
from forkrunner.sources import load
from tests.running import Bed
from tests.support import Cli

HUNTER = "hunter2-correct-horse"


# ------------------------------------------------------------------------------ what is hidden


def test_secrets_are_hidden_by_name_at_any_depth_and_passwords_in_urls() -> None:
    value = {
        "db_password": "p",
        "apiKey": 5,
        "AUTH": ["a"],
        "Session-Cookie": {"a": 1},
        "token": None,
        "nested": [{"secret": "s", "plain": 1}],
        "url": "postgresql://u:p@h/d",
        "text": "see http://x: mail me@example.org",
        "typed": [{"forkrunner.secret": "s"}],
        "no secret": {"forkrunner.other": "s"},
    }
    assert redact(value) == {
        "db_password": "***",
        "apiKey": "***",
        "AUTH": "***",
        "Session-Cookie": "***",
        "token": None,
        "nested": [{"secret": "***", "plain": 1}],
        "url": "postgresql://u:***@h/d",
        "text": "see http://x: mail me@example.org",
        "typed": ["***"],
        "no secret": "***",
    }
    # other names, and a Secret is one whatever it is called
    assert redact({"IBAN": "DE1", "password": "p", "x": {"forkrunner.secret": "s"}}, ("iban",)) == {
        "IBAN": "***",
        "password": "p",
        "x": "***",
    }
    assert redact({"password": "p"}, ()) == {"password": "p"}


@pytest.mark.parametrize(
    "text",
    [
        "no json, password=x",
        "[" * 300 + '{"password": "x"}' + "]" * 300,
        "[" * 100_000,
        '{"password": NaN}',
    ],
)
def test_what_cannot_be_searched_for_secrets_is_hidden_whole(text: str) -> None:
    shown = json.loads(redact_text(text))
    assert shown.startswith(f"*** ({len(text)} characters")
    assert "password" not in shown


def test_the_names_are_a_setting() -> None:
    assert load(environ={}).secret_names == SECRET_NAMES
    assert load(environ={"FORKRUNNER_SECRET_NAMES": "iban, pin"}).secret_names == ("iban", "pin")
    assert load(environ={"FORKRUNNER_SECRET_NAMES": ""}).secret_names == ()
    assert is_secret("MyIban", ("IBAN",))
    assert not is_secret("password", ("iban",))
    with pytest.raises(ConfigError, match="secret_names: expected parts of names"):
        load(code={"secret_names": 5}, environ={})


def test_a_row_is_concealed_with_all_its_texts() -> None:
    now = datetime.now(UTC)
    text = f"connect({HUNTER!r}) failed: {HUNTER} and long-enough and a short shortage"
    attempt = Attempt(
        "1", 1, Outcome.RAISED, error_message=text, traceback=text, stacks=text, output_tail=text + "\n"
    )
    arguments = {"pw": {"forkrunner.secret": HUNTER}, "api_key": "long-enough", "key": "short", "n": 1}
    row = Row(
        "1", "t", "q", State.FAILED, 0, now, now, now, now, json.dumps(arguments), json.dumps({"token": "t"}),
        text, None, 1, 1, 0, None, None, None, None, None, json.dumps([{"forkrunner.secret": "x"}]), (attempt,),
    )  # fmt: skip
    shown = conceal(row)
    clean = "connect('***') failed: *** and *** and a *** shortage"
    assert json.loads(shown.arguments) == {"pw": "***", "api_key": "***", "key": "***", "n": 1}
    assert (shown.result, shown.cursor, shown.error) == ('{"token": "***"}', '["***"]', clean)
    (one,) = shown.attempts
    assert (one.error_message, one.traceback, one.stacks) == (clean, clean, clean)
    assert one.output_tail == clean + "\n"
    assert row.attempts[0].error_message == text
    assert conceal(row, ()).error == clean.replace("and *** and a ***", "and long-enough and a short")


def test_scrub_finds_a_secret_also_as_repr_writes_it() -> None:
    secret = 'it\'s\n"mine"'
    text = json.dumps({"a": {"forkrunner.secret": secret}})
    assert secrets_in(text) == [secret]
    assert scrub(f"got {secret!r} and {secret}", secrets_in(text)) == "got '***' and ***"
    # too short to be looked for
    assert secrets_in('{"a":{"forkrunner.secret":"ab"},"token":"123","pass":12}', SECRET_NAMES) == []
    assert scrub(f"{json.dumps(secret)} {json.dumps('ünter')}", [secret, "ünter"]) == '"***" "***"'


def test_short_secrets_numbers_and_passwords_in_urls_are_found_as_words() -> None:
    arguments = {
        "password": "hunter2",
        "opts": {"url": "postgres://u:pgpass%4099@h/db", "other": "https://h/?secret_token=abcd&x=1"},
        "s": {"forkrunner.secret": "abc"},
        "pin_token": 4711,
        "api_key": 1234567890,
        "plain": 98765,
        "prose": "see http://x: mail me@example.org",
    }
    secrets = secrets_in(json.dumps(arguments), SECRET_NAMES)
    assert secrets == sorted(secrets, key=len, reverse=True)
    assert set(secrets) == {"hunter2", "pgpass%4099", "pgpass@99", "abcd", "abc", "4711", "1234567890"}
    shown = scrub(
        "bad hunter2 {'url': 'postgres://u:pgpass%4099@h/db'} pgpass@99, 'abc' (abcd) 4711 1234567890",
        secrets,
    )
    assert shown == "bad *** {'url': 'postgres://u:***@h/db'} ***, '***' (***) *** ***"
    # not in the middle of something else
    plain = "hunter21 abcde xabc 47110 0x4711 12345678901 98765"
    assert scrub(plain, secrets) == plain
    assert secrets_in(json.dumps(arguments)) == ["pgpass%4099", "pgpass@99", "abcd", "abc"]


# ---------------------------------------------------------------------------------- Secret


def test_a_secret_shows_itself_to_nobody_but_who_asks() -> None:
    secret = Secret(HUNTER)
    assert secret.reveal() == HUNTER
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>30}",
        f"{secret!r}",
        "%s" % secret,  # noqa: UP031
        "%r" % [secret],
    ]
    assert [text for text in shown if HUNTER in text or "hunter" in text] == []
    assert repr(secret) == "Secret('***')"
    assert (secret == Secret(HUNTER), secret == Secret("x"), secret == HUNTER) == (True, False, False)
    assert len({secret, Secret(HUNTER)}) == 1
    assert pickle.loads(pickle.dumps(secret)) == copy.deepcopy(secret) == secret
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError, match=r"Secret: expected str, got bytes \(not shown\)"):
        Secret(HUNTER.encode())  # type: ignore[arg-type]


@dataclass
class Login:
    user: str
    pw: Secret


class Server(msgspec.Struct):
    host: str
    login: Login
    parent: Server | None = None


@pytest.fixture
def runner() -> Runner:
    return Runner("sqlite:///nowhere.db")


def test_a_secret_arrives_as_one_wherever_it_stands(runner: Runner) -> None:
    @runner.task
    def work(
        one: Secret,
        maybe: Secret | None,
        many: list[Secret],
        login: Login,
        server: Server,
        by: dict[str, Secret],
    ) -> None: ...

    secret = Secret(HUNTER)
    login = Login("me", secret)
    values = {
        "one": secret,
        "maybe": None,
        "many": [secret],
        "login": login,
        "server": Server("h", login, Server("p", login)),
        "by": {"x": secret},
    }
    text = work.dump((), values)
    args, kwargs = work.load(text)
    assert (args, kwargs) == ([], values)
    assert text.count(HUNTER) == text.count('{"forkrunner.secret":"' + HUNTER) == 6
    assert HUNTER not in redact_text(text, ())
    assert secrets_in(text) == [HUNTER]
    # of a row that is older than the declaration
    assert work.load(text.replace('{"forkrunner.secret":"hunter2-correct-horse"}', '"old"'))[1][
        "one"
    ] == Secret("old")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Secret, HUNTER),
        (Secret, {"forkrunner.secret": HUNTER}),
        (Secret, [HUNTER]),
        (Secret, Secret(HUNTER + "\0")),
        (Secret | None, HUNTER),
        (list[Secret], [HUNTER]),
        (Login, Login(HUNTER, HUNTER)),  # type: ignore[arg-type]
        (Login, {"user": HUNTER, "pw": HUNTER}),
        (Server, Server(HUNTER, HUNTER)),  # type: ignore[arg-type]
        (str, Secret(HUNTER)),
        (dict[str, int], {"password": HUNTER}),
        (dict[str, int], {"n": 1, "deep": [{"token": HUNTER}], "x": HUNTER}),
        (list[datetime], [{"password": HUNTER}]),
        (int, Login(HUNTER, Secret(HUNTER))),
    ],
)
def test_no_error_shows_a_secret(runner: Runner, annotation: Any, value: Any) -> None:
    def work(thing: Any) -> None: ...

    work.__annotations__["thing"] = annotation
    task = runner.task(work)
    with pytest.raises(ArgumentError) as caught:
        task.dump((value,), {})
    assert "hunter2" not in str(caught.value)
    assert "argument 'thing'" in str(caught.value)
    wire = {
        "thing": {"forkrunner.secret": [HUNTER]}
        if annotation is Secret
        else {"password": HUNTER, "n": HUNTER}
    }
    with pytest.raises(ArgumentError) as caught:
        task.load(json.dumps(wire))
    assert "hunter2" not in str(caught.value)


def test_the_names_of_the_settings_hold_for_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner("sqlite:///nowhere.db", secret_names="iban")

    @runner.task
    def pay(iban: int, password: int, broken: int = 0) -> None: ...

    with pytest.raises(ArgumentError, match=r"'iban': expected int, got str \(not shown, for its name\)"):
        pay.dump((), {"iban": "DE12", "password": 1})
    with pytest.raises(ArgumentError, match="'password': expected int, got str 'DE12'"):
        pay.dump((), {"iban": 1, "password": "DE12"})


def test_by_name_it_may_come_as_text_and_the_row_says_what_it_is(database: str) -> None:
    runner = Runner(database)

    @runner.task
    def login(user: str, word: Secret, /, *, more: list[Secret] = []) -> Secret:  # noqa: B006
        return word

    runner.store.migrate()
    given = {"user": "me", "word": HUNTER, "more": [HUNTER]}
    by_name, by_call = (
        runner.enqueue("login", given),
        login.enqueue("me", Secret(HUNTER), more=[Secret(HUNTER)]),
    )
    rows = [runner.store.get(job.id) for job in (by_name, by_call)]
    assert rows[0].arguments == rows[1].arguments
    assert HUNTER not in conceal(rows[0], ()).arguments
    assert by_name.arguments == {"user": "me", "word": Secret(HUNTER), "more": [Secret(HUNTER)]}
    assert HUNTER not in str(by_name.arguments)
    runner.close()


# ------------------------------------------------------------------------------------ a job

APP = '''
import os
from forkrunner import Runner, Secret, current_job, progress

runner = Runner()

@runner.task
def login(word: Secret, path: str, how: str) -> Secret:
    job = current_job()
    print("arguments", job.arguments, word)
    progress(0.5, f"with {word}")
    while not os.path.exists(path):
        pass
    if how == "raise":
        raise ValueError(f"cannot log in with {word.reveal()}") from KeyError(word.reveal())
    if how == "exit":
        raise SystemExit(word.reveal())
    print("revealed", word.reveal())
    return word

@runner.task
def strict(word: Secret, number: int) -> None: ...
'''  # fmt: skip


def test_a_secret_of_a_job_is_nowhere_to_be_seen(cli: Cli, database: str) -> None:
    """While it runs and after each way to end: rows but the arguments, log, titles, every command."""
    with Bed(cli, database, source=APP) as bed:
        supervisor = bed.start(slots=3)
        secret = json.dumps({"forkrunner.secret": HUNTER})
        ids = {
            how: bed.put("login", f'{{"word": {secret}, "path": "{bed.path("go")}", "how": "{how}"}}')
            for how in ("raise", "exit", "return")
        }
        ids["strict"] = bed.put("strict", f'{{"word": {secret}, "number": {secret}}}')
        for how in ("raise", "exit", "return"):
            bed.wait_row(ids[how], lambda row: row.state is State.BUSY)
        titles = "\n".join(found.title for found in supervisor.ps())
        bed.let_go()
        rows = {how: bed.ended(id) for how, id in ids.items()}
        assert {how: row.state for how, row in rows.items()} == {
            "raise": State.FAILED, "exit": State.FAILED, "return": State.DONE, "strict": State.FAILED,
        }  # fmt: skip
        assert rows["raise"].error == "ValueError: cannot log in with ***"
        (attempt,) = rows["raise"].attempts
        assert "KeyError: '***'" in (attempt.traceback or "")
        assert rows["exit"].error == "exited: the task called sys.exit(***)"
        assert rows["return"].result == json.dumps({"forkrunner.secret": HUNTER}, separators=(",", ":"))
        assert rows["return"].attempts[0].output_tail == (
            f"arguments {{'word': Secret('***'), 'path': {bed.path('go')!r}, 'how': 'return'}} ***\nrevealed {HUNTER}\n"
        )
        seen: list[str] = [titles, *(row.error or "" for row in rows.values())]
        seen += [cli.run("show", "jobs:runner", ids[how]).stdout for how in ("raise", "return")]
        seen += [cli.run("show", "jobs:runner", ids[how], "--json").stdout for how in ("strict", "return")]
        seen += [cli.run("list", "jobs:runner", *more).stdout for more in ((), ("--json",))]
        assert [text for text in seen if "revealed ***" in text]
        bed.stop(supervisor)
        seen += [supervisor.stdout, supervisor.stderr]
        assert [text for text in seen if "hunter2" in text] == []
        shown = cli.run("show", "jobs:runner", ids["return"], "--secrets", "--json").json
        assert shown["arguments"]["word"] == {"forkrunner.secret": HUNTER}
