"""Whole supervisors that mail: what is told, how often, and that nothing gets lost or sent twice whoever dies when."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forkrunner import Runner, clock, gathering, postman
from forkrunner.errors import MailError, MailRefused
from forkrunner.internal import MAIL
from forkrunner.job import State
from tests.mailing import MailServer
from tests.running import LONG, Bed
from tests.support import Cli, wait_until

APP = """
import os, signal, time
from pathlib import Path
from forkrunner import InputFile, Runner, Secret, UserError

runner = Runner()

@runner.task
def convert(source: InputFile, password: str = "", note: str = ""):
    print("reading", source.display_name, password)
    raise ValueError(f"line 3: expected 4 columns, got 3 ({note}{password})")

@runner.task
def other(n: int = 0):
    raise KeyError(n)

@runner.task
def same(n: int = 0):
    raise ValueError(f"number {n}")

@runner.task
def login(password: str, pin_token: int, opts: dict, s: Secret):
    print(password, pin_token, opts, s.reveal())
    raise ValueError(f"bad {password} {pin_token} {opts} {s.reveal()}")

@runner.task
def both(files: list[InputFile], other: InputFile):
    raise ValueError("both")

@runner.task
def nothing():
    pass

@runner.task
def crash(number: int = 11):
    print("going down")
    os.kill(os.getpid(), number)

@runner.task(max_attempts=2, backoff=0.05, mail_on=["attempt"])
def again():
    raise RuntimeError("twice")

@runner.task(mail_on=["success"])
def report(name: str):
    return {"report": name}

@runner.task(mail_to=())
def quiet():
    raise ValueError("nobody wants to know")

@runner.task(mail_to="dev@example.org")
def theirs():
    raise ValueError("theirs")

@runner.task(timeout=0.5)
def slow():
    time.sleep(60)
"""
FAST: dict[str, Any] = {"mail_timeout": 2, "mail_retry": 0.1}


@pytest.fixture
def bed(cli: Cli, database: str, mail_server: MailServer) -> Iterator[Bed]:
    with Bed(cli, database, source=APP) as bed:
        cli.env |= {
            "FORKRUNNER_MAIL_TO": "ops@example.org",
            "FORKRUNNER_MAIL_URL": mail_server.url,
            "FORKRUNNER_MAIL_FROM": "Jobs <jobs@example.org>",
            "FORKRUNNER_STORAGE": str(cli.folder / "storage"),
        }
        yield bed


@pytest.fixture
def light(cli: Cli, sqlite_database: str, mail_server: MailServer) -> Iterator[Bed]:
    """The same on SQLite alone, for what does not depend on the database."""
    with Bed(cli, sqlite_database, source=APP) as bed:
        cli.env |= {"FORKRUNNER_MAIL_TO": "ops@example.org", "FORKRUNNER_MAIL_URL": mail_server.url}
        yield bed


def mail_jobs(bed: Bed) -> list:
    return bed.store.list(queue=MAIL, limit=1000)[::-1]


def all_sent(bed: Bed) -> None:
    wait_until(lambda: all(row.state is State.DONE for row in mail_jobs(bed)), LONG, "the mail jobs")


def test_one_mail_says_all_that_is_needed(bed: Bed, mail_server: MailServer):
    """Several facts on one supervisor: the file, the words, hidden secrets, a crash, a time limit, tasks of their own mind."""
    name = "Schuß 7 – 日本.txt"
    broken = bed.folder / "broken.txt"
    broken.write_bytes(os.urandom(50_000))
    process = bed.start(base_url="https://shop.example/jobs", **FAST)
    enqueue = (
        "import json, sys\nfrom forkrunner import InputFile\nfrom jobs import convert\n"
        f"print(convert.enqueue(InputFile.from_path({str(broken)!r}, name={name!r}), password='hunter22', note='é日').id)"
    )
    job = bed.cli.run(python=["-c", enqueue]).stdout.strip()
    (taken,) = mail_server.wait(1)
    row = bed.ended(job)
    assert row.state is State.FAILED
    assert taken.subject.startswith("convert failed: ValueError: line 3: expected 4 columns, got 3")
    assert taken.subject.endswith(f"[{job}]")
    assert f"<{mail_jobs(bed)[0].id}@example.org>" == taken.id
    file, log = taken.files
    assert (file, taken.hashes[file]) == (
        "Schuß 7 _ 日本.txt",
        hashlib.sha256(broken.read_bytes()).hexdigest(),
    )
    assert re.fullmatch(r"convert-\w{12}-attempt-1\.log\.gz", log)
    assert taken.log.startswith(f"reading {name} ")
    for text in (taken.text, taken.html):
        for words in (
            job,
            "ValueError",
            "é日",
            "jobs.py:11 in convert",
            f"forkrunner replay jobs:runner {job}",
            name,
            "peak memory",
        ):
            assert words in text
        assert f"https://shop.example/jobs/{job}" in text
        assert "hunter22" not in text
    assert "hunter22" not in taken.log + taken.subject
    assert re.search(r"^>\s+raise ValueError", taken.text, re.MULTILINE)

    crash, slow, theirs = bed.put("crash", options={"max_crashes": 1}), bed.put("slow"), bed.put("theirs")
    bed.put("quiet"), bed.put("nothing")
    mails = {str(mail.message["X-Forkrunner-Job"]): mail for mail in mail_server.wait(4)}
    assert "Its process crashed (SIGSEGV)" in mails[crash].text
    assert mails[crash].log == "going down\n"
    assert "in slow" in mails[slow].text.partition("Stacks")[2]
    assert "Ended at its time limit" in mails[slow].text
    assert mails[theirs].facts["to"] == ["dev@example.org"]

    again, report = bed.put("again"), bed.put("report", {"name": "May"})
    mail_server.wait(7)
    by_subject = {mail.subject.partition(" [")[0]: mail for mail in mail_server.mails}
    assert "again failed and is tried again: RuntimeError: twice" in by_subject
    assert "again failed: RuntimeError: twice" in by_subject
    assert '"report": "May"' in by_subject["report is done"].text
    assert by_subject["report is done"].files == {}
    assert {again, report} <= {str(mail.message["X-Forkrunner-Job"]) for mail in mail_server.mails}
    all_sent(bed)
    assert len(mail_server.mails) == 7
    # in no list of the users' jobs, nor their counts
    assert all(row.task != MAIL for row in bed.store.list())
    assert MAIL not in bed.store.counts()
    bed.stop(process)


def test_a_thousand_equal_failures_are_two_mails_and_another_comes_at_once(bed: Bed, mail_server: MailServer):
    """By the default interval; the digest is made due by hand."""
    process = bed.start(slots=4, log_level="warning", **FAST, ready=False)
    process.wait_ps("forkrunner: mold")
    bed.enqueue("same", count=500)
    mail_server.wait(1)
    other = bed.put("other", priority=5)
    found = mail_server.wait(2)[1]
    assert found.message["X-Forkrunner-Job"] == other
    bed.enqueue("same", count=500)
    bed.wait_counts(failed=1001, timeout=2 * LONG)
    # until the one that is being sent, if one is, has ended
    wait_until(
        lambda: sorted(row.state for row in mail_jobs(bed)) == [State.DONE, State.DONE, State.PENDING], LONG
    )
    assert len(mail_server.mails) == 2
    bed.stop(process)
    bed.execute("update forkrunner_jobs set run_at = created_at where state = 'pending'")
    process = bed.start(**FAST)
    first, _, digest = mail_server.wait(3)
    counts = [re.search(r"same failed(?: \((\d+) times\))?: ", mail.subject) for mail in (first, digest)]
    assert sum(int(count[1] or 1) for count in counts if count) == 1000
    assert digest.message["References"] == first.message["References"]
    assert digest.id != first.id
    all_sent(bed)
    assert len(mail_server.mails) == 3
    bed.stop(process)


@pytest.mark.parametrize(
    ("behaviour", "taken"),
    [("busy", 1), ("later-data", 1), ("drop", 1), ("hang", 1), ("vanish", 2)],
)
def test_what_a_server_does_not_take_is_sent_again(
    light: Bed, mail_server: MailServer, behaviour: str, taken: int
):
    """Once; where the server took it and did not say so, again with the same Message-ID."""
    mail_server.behave(behaviour, "ok")
    process = light.start(mail_timeout=0.3, mail_retry=0.1)
    job = light.put("same")
    mails = mail_server.wait(taken)
    all_sent(light)
    assert [mail.id for mail in mail_server.mails] == [mails[0].id] * taken
    (row,) = mail_jobs(light)
    assert len(light.row(row.id).attempts) == 2
    assert light.row(job).state is State.FAILED
    light.stop(process)


def test_a_server_that_is_down_or_hangs_slows_no_job_and_loses_no_mail(light: Bed, mail_server: MailServer):
    mail_server.behave("hang", "hang", "hang", "ok")
    process = light.start(slots=1, mail_timeout=1, mail_retry=0.1)
    light.put("same")
    mail_server.wait_event("data hang")
    light.enqueue("nothing", count=50)
    light.wait_counts(done=50)
    assert mail_server.mails == [], "the mail is still on its way"
    mail_server.stop()
    light.put("other")
    light.wait_counts(failed=2)
    told = r"Mail +\d waiting, the oldest since .*\n.*Connection refused"
    # of two that wait one may still tell of the connection that it had
    wait_until(
        lambda: re.search(told, light.cli.run("status", "jobs:runner").stdout), LONG, "a status", interval=0.2
    )
    mail_server.behave("ok")
    mail_server.start()
    assert {mail.subject.split()[0] for mail in mail_server.wait(2)} == {"same", "other"}
    all_sent(light)
    assert len(mail_server.mails) == 2
    light.stop(process)


def test_what_no_server_will_take_is_on_record_and_can_be_sent_again(light: Bed, mail_server: MailServer):
    mail_server.behave("no-recipient", "ok")
    process = light.start(**FAST)
    light.put("same")
    wait_until(lambda: [row.state for row in mail_jobs(light)] == [State.FAILED], LONG)
    process.wait_log("the mail .* is undeliverable: .* 550 5.1.1")
    assert len(mail_jobs(light)) == 1, "no mail about mail"
    status = light.cli.run("status", "jobs:runner", "--json").json
    assert status["mail"]["undeliverable"] == 1
    assert "550 5.1.1" in status["mail"]["error"]
    light.cli.run("mail", "jobs:runner", "--again")
    mail_server.wait(1)
    all_sent(light)
    light.stop(process)


def test_what_is_too_large_for_a_server_is_sent_without_its_files(light: Bed, mail_server: MailServer):
    """By the size that the server says, or by its refusal; of two files the larger stays behind, if that is enough."""
    light.cli.env |= {
        "FORKRUNNER_MAIL_URL": mail_server.small,
        "FORKRUNNER_STORAGE": str(light.folder / "storage"),
        "FORKRUNNER_MAIL_INTERVAL": "0",
    }
    (light.folder / "large").write_bytes(os.urandom(80_000))
    process = light.start(**FAST)

    def enqueue(note: str = "", name: str = "large") -> str:
        words = ["jobs:runner", "convert", "--file", f"source={name}", json.dumps({"note": note})]
        return light.cli.run("enqueue", *words).stdout.split()[0]

    enqueue()
    (taken,) = mail_server.wait(1)
    (log,) = taken.files
    assert log.endswith(".log.gz")
    assert re.search(r"large \(source\): 80.0 kB, not attached: it lies in \S+storage", taken.text)
    assert "it takes 100.0 kB at most" in taken.text
    # it says so only when it has it all
    light.stop(process)
    light.cli.env["FORKRUNNER_MAIL_URL"] = mail_server.url
    mail_server.behave("small 50000")
    process = light.start(**FAST)
    enqueue()
    taken = mail_server.wait(2)[1]
    assert taken.files == {}
    assert "not attached: it lies in" in taken.text
    assert "log.gz" in taken.text
    mail_server.behave("small 9000")
    job = enqueue("y" * 3000)
    taken = mail_server.wait(3)[2]
    assert "Arguments" not in taken.text
    assert f"forkrunner replay jobs:runner {job}" in taken.text
    assert "ValueError" in taken.subject
    mail_server.behave("small 10")
    enqueue()
    process.wait_log("the mail .* is undeliverable: .* 552 5.2.3 your message exceeds")
    mail_server.behave("ok")
    light.cli.run("mail", "jobs:runner", "--again")
    assert sorted(mail_server.wait(4)[3].files) != []
    all_sent(light)
    light.stop(process)


def test_no_secret_of_the_arguments_is_in_a_mail(light: Bed, mail_server: MailServer):
    """Short ones, numbers and passwords in URLs, in the subject, the words, the page and the log."""
    process = light.start(**FAST)
    opts = {"url": "postgres://u:pgpassword99@h/db"}
    light.put(
        "login", {"password": "hunter2", "pin_token": 4711, "opts": opts, "s": {"forkrunner.secret": "abc"}}
    )
    (taken,) = mail_server.wait(1)
    assert taken.subject.startswith(
        "login failed: ValueError: bad *** *** {'url': 'postgres://u:***@h/db'} ***"
    )
    shown = taken.subject + taken.text + taken.html + taken.log
    assert re.findall(r"hunter2|pgpassword99|4711|\babc\b", shown) == []
    all_sent(light)
    light.stop(process)


def test_files_of_one_name_can_be_told_apart(light: Bed, mail_server: MailServer):
    light.cli.env["FORKRUNNER_STORAGE"] = str(light.folder / "storage")
    process = light.start(**FAST)
    enqueue = (
        "from forkrunner import InputFile\nfrom jobs import both\n"
        "one, two, three = (InputFile.from_bytes(text, name=name) for text, name in"
        " ((b'1', 'shot.txt'), (b'2', 'SHOT.txt'), (b'3', 'shot.txt')))\n"
        "both.enqueue([one, two], three)"
    )
    light.cli.run(python=["-c", enqueue])
    (taken,) = mail_server.wait(1)
    files = {name: data for name, data in taken.files.items() if not name.endswith(".gz")}
    listed = dict(re.findall(r"^  (\S+) \((\S+)\): 1 B \(attached\)", taken.text, re.MULTILINE))
    assert {place: files[name] for name, place in listed.items()} == {
        "files[0]": b"1",
        "files[1]": b"2",
        "other": b"3",
    }
    for name, place in listed.items():
        assert f"<strong>{name}</strong> ({place}), 1 B" in taken.html
    assert len({name.lower() for name in files}) == 3
    all_sent(light)
    light.stop(process)


def test_the_log_and_the_files_share_one_cap(light: Bed, mail_server: MailServer):
    light.cli.env["FORKRUNNER_STORAGE"] = str(light.folder / "storage")
    (light.folder / "nearly").write_bytes(os.urandom(49_990))
    process = light.start(mail_attachments=50_000, **FAST)
    light.cli.run("enqueue", "jobs:runner", "convert", "--file", "source=nearly")
    (taken,) = mail_server.wait(1)
    assert list(taken.files) == ["nearly"]
    assert re.search(r"log.gz: \d+ B, not attached: `forkrunner log jobs:runner \S+` shows it", taken.text)
    all_sent(light)
    light.stop(process)


def test_only_who_has_not_got_it_is_sent_it_again(light: Bed, mail_server: MailServer):
    light.cli.env["FORKRUNNER_MAIL_TO"] = "ops@example.org, dev@example.org"
    mail_server.behave("no-one dev")
    process = light.start(**FAST)
    light.put("same")
    wait_until(lambda: [row.state for row in mail_jobs(light)] == [State.FAILED], LONG)
    mail_server.reset()
    light.cli.env["FORKRUNNER_MAIL_URL"] = mail_server.url
    light.stop(process)
    process = light.start(**FAST)
    light.cli.run("mail", "jobs:runner", "--again")
    (taken,) = mail_server.wait(1)
    assert taken.facts["to"] == ["dev@example.org"]
    light.stop(process)


# --------------------------------------------------------------------------- whoever dies when


def kill(process, who: str) -> None:
    """Kill a role of a running supervisor; what it takes along goes with it."""
    if who == "supervisor":
        process.signal(signal.SIGKILL)
    else:
        pattern = {"mold": r"forkrunner: mold jobs:runner gen \d+$", "mail": rf"forkrunner: job \S+ {MAIL} "}[
            who
        ]
        for pid in process.wait_ps(pattern, LONG):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("who", ["supervisor", "mold", "mail"])
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_killed_at_any_step_one_mail_arrives(bed: Bed, mail_server: MailServer, who: str, moment: str):
    """Before the server has it: one. After it took it and before we heard: again, with the same Message-ID."""
    if moment == "before":
        # the mail job waits for a server
        mail_server.stop()
    else:
        mail_server.behave("hang" if moment == "during" else "vanish", "ok")
    process = bed.start(mail_timeout=20, mail_retry=0.3, lease=4, store_timeout=0.9)
    job = bed.put("same")
    if moment == "before":
        wait_until(lambda: mail_jobs(bed) != [], LONG)
        if who == "mail":
            # whichever attempt it is at; there may be none at this moment
            wait_until(lambda: mail_jobs(bed)[0].attempt > 0, LONG)
            for pid in process.pids(MAIL):
                os.kill(pid, signal.SIGKILL)
        else:
            kill(process, who)
        mail_server.start()
    elif moment == "during":
        mail_server.wait_event("data hang")
        kill(process, who)
    else:
        mail_server.wait(1)
        if process.pids(MAIL):
            for pid in process.pids(MAIL) if who == "mail" else ():
                os.kill(pid, signal.SIGKILL)
            if who != "mail":
                kill(process, who)
        else:
            kill(process, "mold" if who == "mail" else who)
    if who == "supervisor":
        process.wait()
        process = bed.start(mail_timeout=20, mail_retry=0.3, lease=4, store_timeout=0.9)
    wait_until(lambda: [row.state for row in mail_jobs(bed)] == [State.DONE], LONG)
    ids = [mail.id for mail in mail_server.mails]
    assert len(set(ids)) == 1
    assert len(ids) == 1 or moment == "after"
    assert bed.row(job).state is State.FAILED
    bed.stop(process)


def test_a_server_that_does_not_say_goodbye_has_it_once(light: Bed, mail_server: MailServer):
    """Whoever is killed then, and whoever is not is not kept by it."""
    mail_server.behave("deaf")
    process = light.start(mail_timeout=20, mail_retry=0.1)
    light.put("same")
    mail_server.wait_event("quit")
    kill(process, "mail")
    all_sent(light)
    light.put("other")
    mail_server.wait_event("quit", 2)
    wait_until(lambda: [row.state for row in mail_jobs(light)] == [State.DONE] * 2, 10)
    assert len({mail.id for mail in mail_server.mails}) == len(mail_server.mails) == 2
    light.stop(process)


def test_by_lmtp_who_has_it_does_not_get_it_again_for_the_others(light: Bed, mail_server: MailServer):
    """Each recipient has an answer of its own; the connection breaks at the second, then at nobody."""
    light.cli.env |= {
        "FORKRUNNER_MAIL_TO": "ops@example.org, dev@example.org, boss@example.org",
        "FORKRUNNER_MAIL_URL": mail_server.lmtp,
    }
    mail_server.behave("ok", "drop", "ok")
    process = light.start(**FAST)
    light.put("same")
    mail_server.wait(3)
    all_sent(light)
    assert [mail.facts["to"] for mail in mail_server.mails] == [
        ["ops@example.org"],
        ["dev@example.org"],
        ["boss@example.org"],
    ]
    assert len({mail.id for mail in mail_server.mails}) == 1
    light.stop(process)


def test_a_mail_of_a_dead_supervisor_is_sent_by_another(bed: Bed, mail_server: MailServer):
    """Killed right after the ending was written, before it looked for mail."""
    bed.cli.env["FORKRUNNER_MAIL_URL"] = "smtp://127.0.0.1:1"
    process = bed.start(mail_retry=0.2)
    bed.put("same")
    wait_until(lambda: mail_jobs(bed) != [], LONG)
    process.signal(signal.SIGKILL)
    process.wait()
    process.wait_gone()
    bed.cli.env["FORKRUNNER_MAIL_URL"] = mail_server.url
    process = bed.start(mail_retry=0.2)
    mail_server.wait(1)
    all_sent(bed)
    assert len(mail_server.mails) == 1
    bed.stop(process)


def test_no_error_is_tried_for_ever(light: Bed, monkeypatch: pytest.MonkeyPatch):
    """One that nobody has thought of, too."""
    light.cli.env["FORKRUNNER_MAIL_URL"] = "smtp://127.0.0.1:1"
    process = light.start(**FAST)
    light.put("same")
    wait_until(lambda: any(row.error for row in mail_jobs(light)), LONG)
    light.stop(process)

    def fail(*args: object, **more: object) -> None:
        raise RuntimeError("nobody has thought of it")

    monkeypatch.setattr(gathering, "gather", fail)
    monkeypatch.setattr(clock, "utc", lambda: datetime.now(UTC) + timedelta(minutes=1))
    (row,) = mail_jobs(light)
    for patience, kind in (("5d", MailError), ("1s", MailRefused)):
        code = {"mail_url": "smtp://127.0.0.1:1", "mail_to": "ops@example.org", "mail_patience": patience}
        runner = Runner(light.database, **code)
        with pytest.raises(MailError, match="RuntimeError: nobody has thought of it") as caught:
            postman.deliver(runner, row.id)
        assert type(caught.value) is kind
        runner.close()


def test_nobody_to_tell_no_mail_job(light: Bed):
    light.cli.env["FORKRUNNER_MAIL_TO"] = ""
    process = light.start()
    light.ended(light.put("same"))
    light.ended(light.put("theirs"))
    wait_until(lambda: len(mail_jobs(light)) == 1, LONG, "one task names somebody itself")
    light.stop(process)


def test_mails_into_a_folder(light: Bed, tmp_path: Path):
    light.cli.env["FORKRUNNER_MAIL_URL"] = f"file:{tmp_path}/mails"
    process = light.start()
    light.put("same")
    wait_until(lambda: list(tmp_path.glob("mails/*.eml")), LONG)
    all_sent(light)
    light.stop(process)


# --------------------------------------------------------------------------- the command line


def test_a_test_mail_says_whether_it_works(light: Bed, mail_server: MailServer):
    said = light.cli.run("mail", "jobs:runner", "--test").stdout
    assert said.strip().endswith("has taken a test mail for ops@example.org")
    assert mail_server.wait(1)[0].subject == "forkrunner can send mail"
    mail_server.behave("no-recipient")
    failed = light.cli.run("mail", "jobs:runner", "--test", status=1)
    assert "550 5.1.1 no such person here" in failed.stderr
    failed = light.cli.run(
        "mail", "jobs:runner", "--test", env={"FORKRUNNER_MAIL_URL": "smtp://127.0.0.1:1"}, status=1
    )
    assert failed.stderr.strip() == "forkrunner: smtp://127.0.0.1:1: Connection refused"
    failed = light.cli.run("mail", "jobs:runner", "--test", env={"FORKRUNNER_MAIL_URL": ""}, status=1)
    assert "mail_url is not set" in failed.stderr


def test_check_names_what_is_missing(light: Bed):
    for env, words in (
        ({"FORKRUNNER_MAIL_URL": ""}, "mail_to is set and mail_url is not"),
        ({}, "mail_from is not set"),
    ):
        found = light.cli.run("check", "jobs:runner", "--json", env=env).json
        assert [line for line in found["warnings"] if words in line]


def test_a_supervisor_that_cannot_start_is_told_of_once_in_a_loop(light: Bed, mail_server: MailServer):
    light.cli.env["FORKRUNNER_MAIL_FROM"] = "jobs@example.org"
    light.cli.write("import json\nraise RuntimeError('no licence')\n")
    for _ in range(3):
        failed = light.cli.run("run", "jobs:runner", status=2)
        assert "no licence" in failed.stderr
    (taken,) = mail_server.mails
    assert taken.subject.startswith("jobs:runner could not start: ")
    assert "no licence" in taken.subject
    assert "forkrunner check jobs:runner" in taken.text
    failed = light.cli.run("run", "jobs:runner", "--mail-interval", "0", status=2)
    assert "told by mail: ops@example.org" in failed.stderr
    assert len(mail_server.mails) == 2
    assert "3 ended alike" in mail_server.mails[1].text
    down = {"FORKRUNNER_MAIL_URL": "smtp://127.0.0.1:1"}
    failed = light.cli.run("run", "jobs:runner", "--mail-interval", "0", env=down, status=2)
    assert "nobody could be told by mail: smtp://127.0.0.1:1: Connection refused" in failed.stderr
