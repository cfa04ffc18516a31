"""Mails put into words, sent to a real server and read again; and each way that they can leave by."""

from __future__ import annotations

import email
import email.policy
import os
import re
import stat
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from forkrunner import letter, mail
from forkrunner.config import Settings
from forkrunner.errors import MailError, MailRefused
from forkrunner.facts import Attachment, Facts, clean, one_line
from forkrunner.gathering import file_name
from forkrunner.ids import new_id
from forkrunner.sources import load
from tests.mailing import MailServer, Taken, read

ROOT = Path(__file__).parent.parent
#: Names, words and code in several scripts; the last is Latin-1 that was read as UTF-8 and back.
SCRIPTS = ["Schuß 7 – Köln", "撮影データ 日本語", "Ελληνικά и кириллица", "ÄÖ \udce4\udcf6", "🎬 עברית ‏"]


@pytest.fixture
def ok(mail_server: MailServer) -> MailServer:
    return mail_server


def of(url: str | None, **more: object) -> Settings:
    code = {"mail_url": url, "mail_to": ["ops@example.org"], "mail_timeout": 5, **more}
    return load(code=code, environ={}, folder="/nonexistent")


def facts(**more: object) -> Facts:
    found = Facts(kind="failure", id=new_id(), thread="0" * 32, task="convert", title="convert failed")
    for name, value in {"reason": "ValueError: x", "outcome": "It raised.", "job": new_id(), **more}.items():
        setattr(found, name, value)
    return found


def deliver(server: MailServer, found: Facts, *to: str, url: str | None = None, **more: object) -> Taken:
    """Send it, and read what the server has taken."""
    there = of(url or server.url, **more)
    recipients = to or there.mail_to
    before = len(list(server.folder.glob("*.eml")))
    sent = mail.send(letter.write(found, there, recipients), recipients, there)
    assert sent == mail.Sent(list(recipients))
    return read(server.folder / f"{before + 1:04}.eml")


# --------------------------------------------------------------------------- headers


def test_the_headers_say_what_machines_need_to_know(ok):
    found = facts()
    taken = deliver(ok, found, mail_from="Jobs <jobs@example.org>")
    message = taken.message
    assert taken.facts["from"] == "<>", "the null sender: nobody answers, and nothing is returned"
    assert taken.facts["to"] == ["ops@example.org"]
    assert (message["From"], message["To"]) == ("Jobs <jobs@example.org>", "ops@example.org")
    assert message["Message-ID"] == f"<{found.id}@example.org>"
    assert message["References"] == f"<{'0' * 32}@example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["X-Forkrunner-Job"] == found.job
    assert taken.subject == f"convert failed: ValueError: x [{found.job}]"
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]
    assert message.defects == []


def test_bounces_go_where_the_setting_says(ok):
    assert deliver(ok, facts(), mail_bounces="back@example.org").facts["from"] == "back@example.org"


def test_the_same_failure_has_the_same_message_id(ok):
    found = facts()
    assert deliver(ok, found).id == deliver(ok, found).id


@pytest.mark.parametrize("words", SCRIPTS)
def test_every_script_arrives_as_it_was(ok, words):
    name = file_name(f"{words}.txt")
    log = Attachment(name, 5, b"12345")
    trace = [
        (f'  File "/srv/{clean(words)}.py", line 1, in f', True),
        (f"ValueError: {clean(words)}", False),
    ]
    found = facts(
        reason=one_line(f"ValueError: {words} at the end of {words}"),
        arguments=[("source", clean(words))],
        traceback=trace,
        output=clean(words),
        attachments=[log],
    )
    taken = deliver(ok, found, "Prüfer <ops@example.org>", mail_from=f"{SCRIPTS[0]} <jobs@example.org>")
    shown = clean(words)
    assert taken.subject == f"convert failed: {found.reason} [{found.job}]"
    assert taken.text.count(shown) >= 4
    assert one_line(words) in re.sub(r"&\w+;", "", taken.html)
    assert taken.files == {name: b"12345"}
    assert taken.message["From"].addresses[0].display_name == SCRIPTS[0]
    assert taken.message["To"].addresses[0].display_name == "Prüfer"


def test_addresses_outside_of_ascii(ok):
    """A domain has a form in ASCII; what stands before it needs a server that knows it."""
    taken = deliver(ok, facts(), "ops@exämple.org")
    assert taken.facts["to"] == ["ops@xn--exmple-cua.org"]
    taken = deliver(ok, facts(), "jürgen@exämple.org", mail_from="jörg@example.org")
    assert taken.facts["to"] == ["jürgen@xn--exmple-cua.org"]
    assert "SMTPUTF8" in taken.facts["options"]
    assert taken.message["To"] == "jürgen@xn--exmple-cua.org"
    with pytest.raises(MailRefused, match="SMTPUTF8"):
        deliver(ok, facts(), "jürgen@example.org", url=ok.old)


# --------------------------------------------------------------------------- injection

HOSTILE = st.text(
    st.sampled_from("ab \r\n\0\t\x0b\x0c\x1c\x85\u2028\u2029<>\"';:,@=?_&%\\/.ä\u202e\udc80日\u200d\ufeff")
    | st.characters(),
    max_size=120,
) | st.sampled_from(
    [
        "x\r\nBcc: evil@example.org",
        "x\nSubject: other\n\nbody",
        "x\r\n\r\n.\r\nMAIL FROM:<evil@example.org>\r\n",
        "=?utf-8?q?x=0ABcc:_evil@example.org?=",
        "=?utf-8?b?DQpCY2M6IGV2aWxAZXhhbXBsZS5vcmc=?=",
        "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>",
        "{{ 7 * 7 }}{% raw %}",
        "../../etc/passwd\0.txt",
        'a"; filename="b.exe',
        "\r\n--===============0==\r\nContent-Type: text/html\r\n\r\nx",
        ".\r\n.",
    ]
)


@settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(reason=HOSTILE, task=HOSTILE, name=HOSTILE, argument=HOSTILE, value=HOSTILE, output=HOSTILE)
def test_nothing_of_a_job_gets_into_the_headers_the_envelope_or_the_page(
    ok, reason, task, name, argument, value, output
):
    """Through the real server: file name, text of the exception, name of the task, arguments, output."""
    found = facts(
        task=one_line(task, 200),
        title=f"{one_line(task, 200)} failed",
        reason=one_line(reason),
        outcome=one_line(reason),
        arguments=[(one_line(argument, 100), clean(value))],
        traceback=[(line, False) for line in clean(reason).split("\n")],
        output=clean(output),
        attachments=[Attachment(file_name(name), 3, b"\r\n.")],
    )
    taken = deliver(ok, found)
    message = taken.message
    assert taken.facts["to"] == ["ops@example.org"]
    assert sorted(message.keys()) == sorted(
        [
            "From",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "References",
            "Auto-Submitted",
            "X-Auto-Response-Suppress",
            "X-Forkrunner-Job",
            "MIME-Version",
            "Content-Type",
        ]
    )
    assert (message["To"], len(message["From"].addresses)) == ("ops@example.org", 1)
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "application/octet-stream",
    ]
    # the id is there whatever stands before it
    title = one_line(found.title, 60)
    reason = one_line(found.reason, 123 - len(title))
    subject = one_line(f"{title}: {reason} [{found.job}]", 180)
    assert found.job in subject
    assert taken.subject == subject.replace("=?", "= ?")
    ((filename, content),) = taken.files.items()
    assert (filename, content) == (file_name(name), b"\r\n.")
    assert re.fullmatch(r"[\w+()-][\w.()+ -]{0,101}", filename)
    assert "<script" not in taken.html
    assert "<img" not in taken.html
    assert not re.search(
        r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", taken.text + taken.html
    )
    raw = max(ok.folder.glob("*.eml")).read_bytes()
    assert re.search(rb"(?<!\r)\n|\r(?!\n)", raw) is None, "no bare line ends: they would smuggle"
    assert max(map(len, raw.split(b"\r\n"))) <= 998


@given(st.text())
def test_a_subject_is_folded_and_read_again_as_it_was(text):
    line = one_line(text, 180).replace("=?", "= ?")
    message = EmailMessage(policy=letter.POLICY)
    message["Subject"] = line
    raw = message.as_bytes()
    assert raw.isascii()
    assert all(len(one) <= 998 for one in raw.split(b"\r\n"))
    read = email.message_from_bytes(raw, policy=email.policy.default)
    assert (str(read["Subject"]), list(read.keys())) == (line, ["Subject"])


# --------------------------------------------------------------------------- templates


def test_an_application_can_replace_each_template(ok, tmp_path):
    (tmp_path / "subject.txt").write_text("Ouch: {{ task }}")
    (tmp_path / "mail.html").write_text('{% include "head.html" %}<b>{{ reason }}</b>')
    (tmp_path / "head.html").write_text("<h1>Our own</h1>")
    taken = deliver(ok, facts(reason="1 < 2"), mail_templates=str(tmp_path))
    assert taken.subject == "Ouch: convert"
    assert taken.html.strip() == "<h1>Our own</h1><b>1 &lt; 2</b>"
    assert "Run it again" not in taken.text
    assert "convert failed" in taken.text


@pytest.mark.parametrize("broken", ["{{ nothing.like.that }}", "{% if %}", "{{ 1 / 0 }}"])
def test_a_broken_template_does_not_lose_the_mail(ok, tmp_path, broken):
    (tmp_path / "mail.txt").write_text(broken)
    taken = deliver(ok, facts(), mail_templates=str(tmp_path))
    assert "convert failed" in taken.text
    assert f"The template mail.txt in {tmp_path} could not be used" in taken.text
    assert "could not be used" in taken.html


# --------------------------------------------------------------------------- ways


def test_with_a_password_by_starttls_and_by_tls(ok):
    for url in (ok.starttls, ok.tls):
        taken = deliver(ok, facts(), url=url)
        assert taken.facts["tls"]
        assert taken.facts["user"]


def test_encrypted_if_the_server_can_without_being_asked(ok):
    plain = ok.url.replace("?tls=off", "")
    assert not deliver(ok, facts(), url=plain).facts["tls"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda ok: re.sub(r"\?ca=.*", "", ok.starttls), "no trusted connection"),
        (lambda ok: re.sub(r"\?ca=.*", "", ok.tls), "no trusted connection"),
        (lambda ok: ok.starttls.replace("rd@", "x@"), "535"),
        (lambda ok: ok.tls.replace("ca.pem", "none.pem"), "No such file"),
        (lambda ok: ok.url.replace("tls=off", "tls=require"), "offers no STARTTLS"),
        (lambda ok: "smtp://u:p@" + ok.url.partition("://")[2], "takes no user and password"),
        (lambda ok: "smtp://127.0.0.1:1", "Connection refused"),
        (lambda ok: "smtp:///nonexistent/socket", "No such file"),
        (lambda ok: "smtp://nonexistent.invalid", "smtp://nonexistent.invalid:25: "),
        (lambda ok: "sendmail:/nonexistent/sendmail", "No such file"),
        (lambda ok: "file:/proc/mails", "No such file"),
    ],
)
def test_what_can_be_mended_is_told_and_may_be_tried_again(ok, change, complaint):
    with pytest.raises(MailError, match=complaint) as caught:
        deliver(ok, facts(), url=change(ok))
    assert not isinstance(caught.value, MailRefused)
    assert "pa:ss" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ok.mails == []


def test_without_a_way_nothing_leaves():
    with pytest.raises(MailError, match="mail_url is not set"):
        mail.send(EmailMessage(), ["a@example.org"], of(None))


@pytest.mark.parametrize(
    ("behaviour", "complaint", "for_good"),
    [
        ("no-recipient", "550 5.1.1 no such person here", True),
        ("busy", "451 4.2.2 later perhaps", False),
        ("no-data", "554 5.7.1 not that one", True),
        ("later-data", "451 4.3.0 later perhaps", False),
        ("drop", "closed", False),
        ("vanish", "closed", False),
        ("hang", "closed|answer", False),
    ],
)
def test_what_a_server_says_is_told(ok, behaviour, complaint, for_good):
    ok.behave(behaviour)
    with pytest.raises(MailError, match=complaint) as caught:
        deliver(ok, facts(), mail_timeout=0.3)
    assert isinstance(caught.value, MailRefused) == for_good


def test_one_recipient_that_is_refused_does_not_keep_it_from_the_others(ok):
    ok.behave("no-one nobody")
    there = of(ok.url)
    to = ["ops@example.org", "nobody@example.org", "dev@example.org"]
    sent = mail.send(letter.write(facts(), there, to), to, there)
    assert sent.taken == ["ops@example.org", "dev@example.org"]
    assert list(sent.refused) == ["nobody@example.org"]
    assert sent.refused["nobody@example.org"][1], "for good"
    assert ok.wait()[0].facts["to"] == sent.taken


def test_an_address_where_no_mail_can_go_does_not_keep_it_from_the_others(ok):
    """A setting refuses it, but a row from before may have it."""
    there, to = of(ok.url), ["ops@example.org", "ü@ex..ämple.org"]
    sent = mail.send(letter.write(facts(), there, to), to, there)
    assert sent.taken == ["ops@example.org"]
    assert sent.refused["ü@ex..ämple.org"][1], "for good"
    assert str(ok.wait()[0].message["To"]) == "ops@example.org"
    with pytest.raises(MailRefused, match="expected addresses such as"):
        mail.send(letter.write(facts(), there, to), to[1:], there)


def test_by_a_unix_socket(ok):
    assert deliver(ok, facts(), url=f"smtp://{ok.folder}/socket").facts["to"] == ["ops@example.org"]


def test_by_sendmail(ok, tmp_path):
    """The program gets the recipients as arguments, and the mail with this host's line ends."""
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail.eml\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    there = of(f"sendmail:{program}")
    found = facts()
    mail.send(letter.write(found, there, ["ops@example.org"]), ["-x@example.org", "ops@example.org"], there)
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments == ["-i", "-f", "<>", "--", "-x@example.org", "ops@example.org", ""]
    assert b"\r" not in (tmp_path / "mail.eml").read_bytes()
    assert read(tmp_path / "mail.eml").id == f"<{found.id}@forkrunner.invalid>"
    for status, kind in ((75, MailError), (67, MailRefused), (1, MailError)):
        program.write_text(f"#!/bin/sh\necho it is full >&2\nexit {status}\n")
        with pytest.raises(MailError, match=f"exit status {status}: it is full") as caught:
            mail.send(letter.write(found, there, ["ops@example.org"]), ["ops@example.org"], there)
        assert type(caught.value) is kind


def test_into_a_folder_for_development(tmp_path):
    there = of(f"file:{tmp_path}/mails")
    found = facts()
    for _ in range(2):
        mail.send(letter.write(found, there, ["ops@example.org"]), ["ops@example.org"], there)
    (path,) = (tmp_path / "mails").iterdir()
    assert path.name == f"{found.id}.eml", "sent again it takes its own place"
    assert read(path).subject.startswith("convert failed")


@pytest.mark.slow
def test_a_server_that_takes_a_minute_has_it_once(ok):
    ok.behave("slow 61")
    taken = deliver(ok, facts(), mail_timeout=120)
    assert taken.subject
    assert ok.events.count("data slow") == 1


def test_names_of_files_are_names(tmp_path):
    for name, found in (
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\x.txt", "x.txt"),
        (".bashrc", "bashrc"),
        ("", "file"),
        ("...", "file"),
        ("a\0b\nc.txt", "a_b_c.txt"),
        ("x" * 500 + ".txt", "x" * 80 + ".txt"),
        ("Schuß 7 – 日本.txt", "Schuß 7 _ 日本.txt"),
    ):
        assert file_name(name) == found
        (tmp_path / file_name(name)).touch()
    assert len(os.listdir(tmp_path)) == 7


@pytest.mark.slow
def test_the_page_fits_a_phone_and_a_desk_by_day_and_by_night(browser):
    """Screenshots to be looked at: build/screenshots/mail-*.png."""
    folder = ROOT / "build/screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    trace = [('  File "/srv/app/jobs.py", line 12, in convert', True), ("ValueError: " + "x" * 300, False)]
    found = facts(
        reason="ValueError: " + "x" * 300,
        outcome="The task raised ValueError: " + "x" * 300,
        count=204,
        last_job=new_id(),
        arguments=[("source", "y" * 200), ("password", '"***"')],
        traceback=trace,
        output="reading\n" + "z" * 300,
        bill=[("ran", "1.2 s")],
        link="https://shop.example/jobs/1",
        command="forkrunner replay " + new_id(),
        attachments=[Attachment("plate.exr", 10**9, None, "it lies in /srv/storage/" + "9f" * 32)],
        notes=["Something about the mail itself."],
    )
    page = browser.folder / "mail.html"
    page.write_bytes(read_html(found))
    page.chmod(0o644)
    for scheme, dark in (("light", False), ("dark", True)):
        for width in (390, 1280):
            driver = browser.open()
            try:
                media = [{"name": "prefers-color-scheme", "value": scheme}]
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.get(f"file://{page}")
                high = driver.execute_script("return document.documentElement.scrollHeight")
                wide = driver.execute_script("return document.documentElement.scrollWidth")
                assert wide <= width
                colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
                assert (colour == "rgb(20, 23, 26)") == dark
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": high})
                driver.save_screenshot(str(folder / f"mail-{scheme}-{width}.png"))
            finally:
                driver.quit()


def read_html(found: Facts) -> bytes:
    body = letter.write(found, of("file:x"), ["ops@example.org"]).get_body(("html",))
    assert body is not None
    data = body.get_payload(decode=True)
    assert isinstance(data, bytes)
    return data
