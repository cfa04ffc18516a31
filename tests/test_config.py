"""Settings: what is true of every one of them, then the kinds, the files and the names. Nothing here forks."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from forkrunner import config
from forkrunner.config import SETTINGS, Settings
from forkrunner.errors import ConfigError
from forkrunner.sources import load
from forkrunner.units import mask, seconds, show_seconds, show_size, size


class Sample(NamedTuple):
    #: As written in TOML and in code.
    raw: Any
    #: The same as text of a flag or variable.
    text: str
    #: What the attribute must be.
    value: Any
    #: Refused everywhere.
    bad: Any


#: A new setting needs a line here: `test_every_setting_has_a_sample` says so.
SAMPLES = {
    "app": Sample("myapp.jobs:runner", "myapp.jobs:runner", "myapp.jobs:runner", "jobs"),
    "database": Sample("sqlite:///x.db", "postgres://u:pw@h/d", "sqlite:///x.db", "mysql://root:pw@h/d"),
    "slots": Sample(7, "7", 7, "many"),
    "spares": Sample(0, "0", 0, 65),
    "queues": Sample(["a", "b"], "a, b,", ("a", "b"), "a\tb"),
    "poll_interval": Sample(0.5, "500ms", 0.5, 0),
    "notify": Sample(False, "no", False, "maybe"),
    "lease": Sample(60, "1m", 60.0, "1s"),
    "grace_period": Sample("10m", "600", 600.0, -1),
    "grace": Sample(1.5, "1.5s", 1.5, True),
    "exit_timeout": Sample("500ms", "0.5", 0.5, 0),
    "store_timeout": Sample(2, "2s", 2.0, float("nan")),
    "molds": Sample(3, "2, shop:runner", "3", "2,shop"),
    "mold_timeout": Sample(3, "3s", 3.0, 0),
    "import_timeout": Sample("2m", "120s", 120.0, 0),
    "mold_jobs": Sample(1000, "1000", 1000, -1),
    "mold_age": Sample("1h", "1h", 3600.0, "old"),
    "mold_growth": Sample("100MB", "100MB", 100_000_000, -1),
    "preload": Sample(["numpy", "os:getcwd"], "numpy,os:getcwd", ("numpy", "os:getcwd"), "my-module"),
    "output_limit": Sample("20MB", "20MB", 20_000_000, 1.5),
    "result_limit": Sample(512, "512", 512, "1GiB"),
    "argument_limit": Sample("512KiB", "512kib", 524_288, "1 apple"),
    "storage": Sample("s3://b/f", " s3://b/f ", "s3://b/f", "memory://x"),
    "file_limit": Sample("5GB", "5GB", 5_000_000_000, -1),
    "retention": Sample("2d", "48h", 172_800.0, -1),
    "retention_failed": Sample(0, "0", 0.0, "a week"),
    "prune_interval": Sample("10m", "600", 600.0, "400d"),
    "progress_url": Sample(
        "memcached://h:1,i", "memcached://h:1,i", "memcached://h:1,i:11211", "redis://u:pw@h"
    ),
    "progress_rate": Sample(5, "5", 5.0, 0),
    "runtime_dir": Sample("/run/x", " /run/x", "/run/x", "run/x"),
    "cgroup": Sample("/sys/fs/cgroup/x", " /sys/fs/cgroup/x", "/sys/fs/cgroup/x", "fs/x"),
    "secret_names": Sample(["pin", "iban"], "pin, iban", ("pin", "iban"), "a\tb"),
    "mail_to": Sample(
        ["ops@example.org", "Jörg <j@example.org>"],
        "ops@example.org, Jörg <j@example.org>,",
        ("ops@example.org", "Jörg <j@example.org>"),
        "nobody",
    ),
    "mail_url": Sample("smtp://h:2525", "smtps://u:pw@h", "smtp://h:2525", "http://u:pw@h"),
    "mail_from": Sample("jobs@example.org", "jobs@example.org", "jobs@example.org", "a@b.org, c@d.org"),
    "mail_bounces": Sample("b@example.org", "b@example.org", "b@example.org", "nobody"),
    "mail_on": Sample(["attempt", "start"], "attempt,start", ("attempt", "start"), "always"),
    "mail_interval": Sample("1m", "60", 60.0, -1),
    "mail_cap": Sample(3, "3", 3, 0),
    "mail_timeout": Sample("1m", "60", 60.0, 0),
    "mail_retry": Sample(2, "2s", 2.0, 0),
    "mail_patience": Sample("1h", "1h", 3600.0, 0),
    "mail_attachments": Sample("1MB", "1MB", 1_000_000, -1),
    "mail_templates": Sample("/srv/mails", "/srv/mails", "/srv/mails", "mails"),
    "base_url": Sample("https://x.org/jobs", "https://x.org/jobs", "https://x.org/jobs", "javascript:x"),
    "log_level": Sample("debug", "DEBUG", "debug", "loud"),
    "log_format": Sample("json", "json", "json", "xml"),
    "reload": Sample(True, "on", True, 1),
    "allow_threads": Sample(True, "1", True, 1),
}
#: Where the text gives another value than the TOML value does.
TEXT_VALUES = {
    "molds": "2,shop:runner=1",
    "mail_url": "smtps://u:pw@h",
    "database": "postgresql+psycopg://u:pw@h/d",
}

every_setting = pytest.mark.parametrize("name", SETTINGS)


def _toml(value: Any) -> str:
    # JSON is TOML, for these samples
    return json.dumps(value).replace("NaN", "nan")


def _refused(**places: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(**{"environ": {}, "folder": "/nonexistent", **places})
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "forkrunner.toml"


def test_every_setting_has_a_sample() -> None:
    assert list(SAMPLES) == list(SETTINGS)


@every_setting
def test_the_default_is_legal_and_its_source_is_named(name: str, tmp_path: Path) -> None:
    settings = load(environ={}, folder=tmp_path)
    value = getattr(settings, name)
    assert settings.source(name) == "default"
    if value is not None:
        assert SETTINGS[name].parse(value, "the test") == value


@every_setting
def test_what_is_shown_can_be_read_back(name: str, tmp_path: Path) -> None:
    for settings in (load(environ={}, folder=tmp_path), load(code={name: SAMPLES[name].raw}, environ={})):
        text = settings.shown(name)
        assert SETTINGS[name].parse(text, "the test", lax=True) == getattr(settings, name)


@every_setting
def test_from_the_environment(name: str, tmp_path: Path) -> None:
    variable = f"FORKRUNNER_{name.upper()}"
    settings = load(environ={variable: SAMPLES[name].text}, folder=tmp_path)
    assert getattr(settings, name) == TEXT_VALUES.get(name, SAMPLES[name].value)
    assert settings.source(name) == variable
    assert settings.warnings == ()


@every_setting
def test_from_a_flag(name: str, tmp_path: Path) -> None:
    settings = load(flags={name: SAMPLES[name].text}, environ={}, folder=tmp_path)
    assert getattr(settings, name) == TEXT_VALUES.get(name, SAMPLES[name].value)
    flag = SETTINGS[name].flag
    expected = f"--{name.replace('_', '-')}" if name != "app" else None
    assert flag == expected
    assert settings.source(name) == (flag or "the command line")


@every_setting
def test_from_the_code(name: str, tmp_path: Path) -> None:
    settings = load(code={name: SAMPLES[name].raw}, environ={}, folder=tmp_path)
    assert getattr(settings, name) == SAMPLES[name].value
    assert settings.source(name) == "Runner(...) in the code"


@every_setting
def test_from_a_file(name: str, file: Path) -> None:
    file.write_text(f"{name} = {_toml(SAMPLES[name].raw)}\n")
    settings = load(environ={}, folder=file.parent)
    assert getattr(settings, name) == SAMPLES[name].value
    assert settings.source(name) == str(file)


@every_setting
@pytest.mark.parametrize("place", ["flags", "environ", "code", "file"])
def test_a_bad_value_names_setting_value_and_source(name: str, place: str, file: Path) -> None:
    bad = SAMPLES[name].bad
    variable = SETTINGS[name].env
    if place == "environ":
        # str(True) and str(1) are good booleans as text
        bad = "2" if SETTINGS[name].is_bool else str(bad)
        error, source = _refused(environ={variable: bad}), variable
    elif place == "file":
        file.write_text(f"{name} = {_toml(bad)}\n")
        error, source = _refused(folder=file.parent), str(file)
    elif place == "flags":
        error, source = _refused(flags={name: bad}), SETTINGS[name].flag or "the command line"
    else:
        error, source = _refused(code={name: bad}), "Runner(...) in the code"
    if SETTINGS[name].secret:
        assert "pw" not in str(error)
        bad = bad.replace(":pw@", ":***@")
    assert str(error) == f"{name}: expected {SETTINGS[name].kind.expected}, got {bad!r} (from {source})"
    facts = (error.facts["name"], repr(error.facts["value"]), error.facts["source"])
    assert facts == (name, repr(bad), source)


@every_setting
def test_each_declaration_is_complete(name: str) -> None:
    setting = SETTINGS[name]
    assert setting is getattr(Settings, name)
    assert setting.name == name
    assert bool(setting.metavar) != setting.is_bool
    assert setting.help[0].isupper()
    assert not setting.help.endswith(".")
    assert setting.default_text
    assert setting.multiple == isinstance(SAMPLES[name].value, tuple)
    assert f"| `{name}` | {setting.default_text} | {setting.help} (" in config.table()


# --- Which place counts


def test_flag_before_environment_before_code_before_file_before_default(file: Path) -> None:
    file.write_text("slots = 4\n")
    places: dict[str, Any] = {
        "flags": {"slots": "1"},
        "environ": {"FORKRUNNER_SLOTS": "2"},
        "code": {"slots": 3},
    }
    seen = []
    for gone in ("flags", "environ", "code", "file", "nothing"):
        settings = load(**{"environ": {}, "folder": file.parent, **places})
        seen.append((settings.slots, settings.source("slots")))
        places.pop(gone, None)
        if gone == "file":
            file.unlink()
    assert seen[:4] == [
        (1, "--slots"),
        (2, "FORKRUNNER_SLOTS"),
        (3, "Runner(...) in the code"),
        (4, str(file)),
    ]
    assert seen[4][1] == "default"


def test_only_the_value_that_wins_is_checked() -> None:
    assert load(flags={"slots": 3}, environ={"FORKRUNNER_SLOTS": "many"}).slots == 3


def test_a_flag_or_keyword_that_was_not_given_does_not_count() -> None:
    settings = load(flags={"slots": None, "queues": ()}, code={"slots": None, "queues": ["a"]}, environ={})
    assert settings.source("slots") == "default"
    assert settings.queues == ("a",)


def test_a_flag_given_several_times() -> None:
    assert load(flags={"queues": ("a,b", "c", "a")}, environ={}).queues == ("a", "b", "c")


def test_the_flag_that_switches_off_is_named() -> None:
    settings = load(flags={"notify": False, "allow_threads": True}, environ={})
    assert (settings.source("notify"), settings.source("allow_threads")) == ("--no-notify", "--allow-threads")


def test_an_empty_variable_means_none_where_there_can_be_none(file: Path) -> None:
    file.write_text('progress_url = "memcached://h"\nqueues = ["a"]\n')
    environ = {"FORKRUNNER_PROGRESS_URL": "", "FORKRUNNER_QUEUES": " "}
    settings = load(environ=environ, folder=file.parent)
    assert (settings.progress_url, settings.queues) == (None, ())
    assert str(_refused(environ={"FORKRUNNER_DATABASE": ""})).startswith("database: expected sqlite:///FILE")


def test_the_process_environment_and_the_current_folder_are_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("spares = 5\n")
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("FORKRUNNER_SLOTS", "9")
    monkeypatch.delenv("FORKRUNNER_CONFIG", raising=False)
    settings = load()
    assert (settings.slots, settings.spares, settings.source("spares")) == (9, 5, str(file))


def test_settings_are_read_only() -> None:
    with pytest.raises(AttributeError):
        load(environ={}).slots = 3  # type: ignore[misc, assignment, unused-ignore]  # what the test is about


# --- Kinds


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (2.5, 2.5),
        ("2.5", 2.5),
        ("500ms", 0.5),
        (" 30 s ", 30),
        ("10m", 600),
        ("1h", 3600),
        ("1H", 3600),
        ("7d", 604_800),
    ],
)
def test_seconds(given: object, expected: float) -> None:
    result = seconds(given)
    assert result == expected
    assert type(result) is float


@pytest.mark.parametrize(
    "given",
    [-1, "-1", True, None, "", "s", "1w", "1h30m", "1.", float("nan"), float("inf"), 10**400, "9" * 400],
)
def test_no_seconds(given: object) -> None:
    with pytest.raises(
        ValueError, match=r"^expected seconds as a number, or text like 500ms.*, got "
    ) as caught:
        seconds(given)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (5, 5),
        ("5", 5),
        ("1MB", 10**6),
        ("512KiB", 2**19),
        ("1.5 mib", 3 * 2**19),
        ("1TiB", 2**40),
        ("2.3GB", 2_300_000_000),
    ],
)
def test_size(given: object, expected: int) -> None:
    result = size(given)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize("given", [-1, 1.5, 1e6, True, None, "", "MB", "1.5", "1.5 B", "512K", "1 MBit", [1]])
def test_no_size(given: object) -> None:
    with pytest.raises(ValueError, match=r"^expected bytes as a whole number, or text like 512KiB.*, got "):
        size(given)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0s"), (0.01, "0.01s"), (30, "30s"), (90, "90s"), (120, "2m"), (7200, "2h")]
)
def test_show_seconds(value: float, text: str) -> None:
    assert show_seconds(value) == text
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0B"), (1025, "1025B"), (2**20, "1MiB"), (2 * 10**8, "200MB"), (1000, "1kB")]
)
def test_show_size(value: int, text: str) -> None:
    assert show_size(value) == text
    assert size(text) == value


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("database", "postgresql://h/d", "postgresql+psycopg://h/d"),
        ("database", "postgresql+psycopg://h/d?x=1", "postgresql+psycopg://h/d?x=1"),
        ("database", "sqlite+pysqlite:////abs/x.db", "sqlite:////abs/x.db"),
        *(
            ("database", f"postgresql://{rest}", f"postgresql+psycopg://{rest}")
            for rest in (
                "u:p/w?:x@h:5432/d",
                "u@/d?host=/run",
                "/d",
                "?service=x",
                "u:p@[::1]:5432/d",
                "h:/d",
                "u:[@h",
            )
        ),
        ("progress_url", "memcached://[::1]:5, h/", "memcached://[::1]:5,h:11211"),
        ("slots", 1, 1),
        ("slots", 1000, 1000),
        ("queues", "a", ("a",)),
    ],
)
def test_accepted(name: str, given: object, expected: object) -> None:
    assert getattr(load(code={name: given}, environ={}), name) == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("database", "sqlite://"),
        ("database", "sqlite:///:memory:"),
        ("database", "sqlite:///file:x?mode=memory&uri=true"),
        ("database", "sqlite:///?timeout=3"),
        ("database", "sqlite://x.db"),
        ("database", "postgresql://"),
        ("database", "postgresql+asyncpg://h/d"),
        ("database", "postgresql://u:p@h:port/d"),
        ("database", "postgresql://h:1,i:2/d"),
        ("database", "postgresql://[::1/d"),
        ("database", 3),
        ("progress_url", "memcached://"),
        ("progress_url", "memcached://h:0"),
        ("progress_url", "memcached://h:65536"),
        ("progress_url", "memcached://h,"),
        ("slots", 0),
        ("slots", 1001),
        ("slots", True),
        ("slots", 4.0),
        ("slots", "4"),
        ("notify", "true"),
        ("progress_rate", "5"),
        ("progress_rate", True),
        ("queues", 3),
        ("queues", ["a", 3]),
        ("queues", "default slow"),
        ("queues", ["ä"]),
        ("log_level", 3),
        ("app", "a:b:c"),
        ("app", "a b:c"),
        ("runtime_dir", 3),
    ],
)
def test_refused_in_code_and_file(name: str, given: object) -> None:
    assert _refused(code={name: given}).facts["name"] == name


def test_the_slots_are_the_cpus_that_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert load(environ={}).slots == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert load(environ={}).slots == 1


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/forkrunner"),
        ({"XDG_RUNTIME_DIR": ""}, 7, "/tmp/forkrunner-7"),
        ({}, 0, "/run/forkrunner"),
    ],
)
def test_the_default_runtime_dir(
    environ: dict[str, str], uid: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert load(environ=environ).runtime_dir == expected


def test_store_timeout_and_lease_must_fit() -> None:
    error = _refused(flags={"lease": "10s"}, environ={"FORKRUNNER_STORE_TIMEOUT": "2.5"})
    assert str(error) == (
        "store_timeout: expected less than a quarter of lease, which is 10s from --lease, "
        "got 2.5 (from FORKRUNNER_STORE_TIMEOUT)"
    )
    assert load(flags={"lease": "10s", "store_timeout": "2.4"}, environ={}).lease == 10


# --- Names


def test_an_unknown_name_is_an_error_with_a_hint(file: Path) -> None:
    assert str(_refused(code={"slotz": 3})) == (
        "slotz: expected the name of a setting, did you mean slots? (from Runner(...) in the code)"
    )
    file.write_text('"poll-interval" = 3\n')
    assert f"did you mean poll_interval? (from {file})" in str(_refused(folder=file.parent))
    error = _refused(flags={"xyzzy": 1})
    assert str(error) == "xyzzy: expected the name of a setting (from the command line)"
    assert error.facts == {"name": "xyzzy", "value": None, "source": "the command line"}


def test_an_unknown_variable_is_a_warning_with_a_hint() -> None:
    environ = {
        "FORKRUNNER_SLOTZ": "3",
        "FORKRUNNER_PORT_80_TCP_ADDR": "10.0.0.1",
        "FORKRUNNER_TEST_ANYTHING": "1",
        "FORKRUNNER_REQUIRE": "postgresql",
        "OTHER": "1",
    }
    assert load(environ=environ).warnings == (
        "FORKRUNNER_PORT_80_TCP_ADDR is ignored: no setting has this name",
        "FORKRUNNER_SLOTZ is ignored: no setting has this name, did you mean FORKRUNNER_SLOTS?",
    )


# --- Files


def test_forkrunner_toml_wins_over_pyproject_toml(file: Path) -> None:
    pyproject = file.with_name("pyproject.toml")
    pyproject.write_text("[tool.other]\nx = 1\n[tool.forkrunner]\nslots = 5\nspares = 5\n")
    settings = load(environ={}, folder=file.parent)
    assert (settings.slots, settings.source("slots")) == (5, f"{pyproject} [tool.forkrunner]")
    file.write_text("slots = 6\n")
    settings = load(environ={}, folder=file.parent)
    assert (settings.slots, settings.spares) == (6, 2)


@pytest.mark.parametrize("content", ["", "[project]\nname = 'x'\n", "[tool.other]\nslots = 5\n"])
def test_a_pyproject_toml_without_our_table_is_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    assert load(environ={}, folder=tmp_path).source("slots") == "default"


@pytest.mark.parametrize("content", ["tool = 3\n", "[tool]\nforkrunner = 3\n"])
def test_our_table_must_be_a_table(content: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    assert str(_refused(folder=tmp_path)).startswith("tool.forkrunner: expected a table, got 3 (from /")


@pytest.mark.parametrize(
    ("name", "content"), [("x.toml", "slots = 8"), ("pyproject.toml", "[tool.forkrunner]\nslots = 8")]
)
def test_forkrunner_config_names_the_file(name: str, content: str, file: Path) -> None:
    file.write_text("slots = 6\n")
    folder = file.parent / "etc"
    folder.mkdir()
    (folder / name).write_text(content)
    for path in (f"etc/{name}", str(folder / name)):
        settings = load(environ={"FORKRUNNER_CONFIG": path}, folder=file.parent)
        assert settings.slots == 8
        assert settings.source("slots").startswith(str(folder / name))


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    assert str(_refused(environ={"FORKRUNNER_CONFIG": "x.toml"}, folder=tmp_path)) == (
        f"{tmp_path}/x.toml: expected a readable TOML file, got 'No such file or directory' (from FORKRUNNER_CONFIG)"
    )


def test_a_file_that_cannot_be_read(file: Path) -> None:
    file.mkdir()
    assert str(_refused(folder=file.parent)) == (
        f"{file}: expected a readable TOML file, got 'Is a directory' (from the current folder)"
    )


def test_a_current_folder_that_was_deleted_holds_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load(environ={}).source("slots") == "default"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"slots = 1\nspares = = 2\n", r"line 2, column 10"),
        (b"slots = 1\nspares = '\xff'\n", r"line 2, column 11"),
        (b"\xff", r"line 1, column 1"),
        (b"slots = 1\nslots = 2\n", r"line 2, column"),
        (b"x = " + b"9" * 5000, r"4300 digits"),
    ],
)
def test_a_broken_file_is_named_with_line_and_column(content: bytes, place: str, file: Path) -> None:
    file.write_bytes(content)
    message = str(_refused(folder=file.parent))
    assert re.match(rf"{re.escape(str(file))}: expected valid TOML, got .*{place}", message)


# --- What is shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
        ("postgresql://user@h/d", "postgresql://user@h/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://u:pw@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u:p@w/p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=pw&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("smtp://:pw@h", "smtp://:***@h"),
        ("postgresql:/u:pw@h", "postgresql:***@h"),
        ("plain", "plain"),
    ],
)
def test_mask(url: str, expected: str) -> None:
    assert mask(url) == expected


def test_explain_shows_every_setting_without_passwords() -> None:
    rows = config.explain(load(environ={"FORKRUNNER_DATABASE": "postgres://u:pw@h/d"}))
    assert [row[0] for row in rows] == list(SETTINGS)
    assert ("database", "postgresql+psycopg://u:***@h/d", "FORKRUNNER_DATABASE") in rows


def test_the_docs_table_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config.table()
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    monkeypatch.setattr(os, "geteuid", lambda: 99)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/x")
    assert config.table() == before
    assert before.count("\n| `") == len(SETTINGS)
