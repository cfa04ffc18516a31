"""A mail in words: what is known of an ending (`facts.py`) becomes a message of plain text and HTML, with the files that it needs.

Used where mail is sent, never by a supervisor or a mold. Everything that comes from a job is data: it stands in the body,
escaped, or in an attachment; of the headers only the subject says something of it, on one line. Who a mail is from and to
is in the settings alone.

The words are in `templates/`; an application can replace each file by one of the same name in `mail_templates`. They get the
fields of `Facts`. A template that fails does not lose the mail: ours takes its place, and says so.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import jinja2

from forkrunner import clock
from forkrunner.addresses import ascii_host, split
from forkrunner.facts import Facts, clean, moment, one_line
from forkrunner.units import show_bytes

if TYPE_CHECKING:
    from forkrunner.config import Settings

OURS = os.path.join(os.path.dirname(__file__), "templates")
#: Those that are asked for; what else is in a folder is for them to include.
NAMES = ("subject.txt", "mail.txt", "mail.html")
#: Characters of a subject.
_SUBJECT = 180


class _Policy(EmailPolicy):
    """SMTP's, with a subject that arrives as it was: Python's own folding loses and adds spaces around encoded words."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        if name == "Subject":
            return f"Subject: {fold(str(value))}\r\n".encode("ascii")
        return super().fold_binary(name, value)


POLICY = _Policy(linesep="\r\n", max_line_length=78)


def fold(text: str) -> str:
    """Return the value of a header on lines that are short enough, in ASCII."""
    if text.isascii() and all(len(word) <= 900 for word in text.split(" ")) and "=?" not in text:
        lines, length = [""], len("Subject: ")
        for word in text.split(" "):
            if lines[-1] and length + len(word) >= 78:
                lines.append("")
                length = 0
            lines[-1] += (" " if lines[-1] else "") + word
            length += len(word) + 1
        return "\r\n ".join(lines)
    words, chunk = [], b""
    for character in text:
        data = character.encode()
        if len(chunk) + len(data) > 42:
            words.append(chunk)
            chunk = b""
        chunk += data
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in [*words, chunk])


def write(facts: Facts, settings: Settings, to: Sequence[str]) -> EmailMessage:
    """Put a mail into words; the same facts make the same message, but for its date and boundary."""
    subject, text, html = _render(facts, settings.mail_templates)
    message = EmailMessage(policy=POLICY)
    sender = settings.mail_from or default_sender()
    message["From"] = _address(sender)
    message["To"] = [_address(one) for one in to if is_address(one)]
    # whoever reads it would decode what a job has written as an encoded word
    message["Subject"] = one_line(subject, _SUBJECT).replace("=?", "= ?")
    message["Date"] = format_datetime(clock.utc())
    domain = _address(settings.mail_from).domain if settings.mail_from else "forkrunner.invalid"
    message["Message-ID"] = f"<{facts.id}@{domain}>"
    # what is alike stands together where mails are read
    message["References"] = f"<{facts.thread}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    if facts.job:
        message["X-Forkrunner-Job"] = facts.job
    message.set_content(clean(text), cte="quoted-printable")
    message.add_alternative(clean(html), subtype="html", cte="quoted-printable")
    for attachment in facts.attachments:
        if attachment.data is not None:
            message.add_attachment(
                attachment.data, maintype="application", subtype="octet-stream", filename=attachment.name
            )
    return message


def default_sender() -> str:
    """Say who mails are from if nobody is named."""
    host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()).strip(".-") or "localhost"
    return f"forkrunner@{host}"


def _address(text: str) -> Address:
    name, bare = split(text)
    local, _, domain = bare.rpartition("@")
    # a domain has a form in ASCII; what stands before it has not, and then the server has to know SMTPUTF8
    return Address(name, local, ascii_host(domain))


def is_address(text: str) -> bool:
    """Say whether mail can go there: a row may have one that no setting would take now."""
    try:
        _address(text)
    except ValueError:
        return False
    return True


def bare_address(text: str) -> str:
    """Return an address as it stands in the envelope."""
    return _address(text).addr_spec


def trouble(folder: str) -> list[str]:
    """Say what is wrong with the templates in a folder: each that could not be used, in a sentence."""
    if not folder:
        return []
    try:
        names = os.listdir(folder)
    except OSError as error:
        return [f"mail_templates: {folder}: {error.strerror or error}; mail is worded by forkrunner's own"]
    facts = Facts(kind="test", id="0", thread="0", title="A test", outcome="A test.")
    found = []
    for name in NAMES:
        if name in names:
            try:
                _fill(facts, folder, name)
            except Exception as error:  # noqa: BLE001 - whatever a template raises is said
                found.append(
                    f"mail_templates: {_unusable(folder, name, error)}; forkrunner's own takes its place"
                )
    return found


def _unusable(folder: str, name: str, error: Exception) -> str:
    line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return one_line(
        f"The template {name} in {folder} could not be used: {type(error).__name__}: {error}{line}"
    )


@functools.lru_cache
def _environment(folder: str) -> jinja2.Environment:
    loaders: list[jinja2.BaseLoader] = [jinja2.FileSystemLoader(OURS)]
    if folder:
        loaders.insert(0, jinja2.FileSystemLoader(folder))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=lambda name: bool(name and name.endswith(".html")),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["moment"] = moment
    environment.filters["size"] = show_bytes
    return environment


def _render(facts: Facts, folder: str) -> tuple[str, str, str]:
    found = []
    for name in NAMES:
        try:
            found.append(_fill(facts, folder, name))
        except Exception as error:
            if not folder:
                raise
            facts = replace(facts, notes=[*facts.notes, _unusable(folder, name, error)])
            found.append(_fill(facts, "", name))
    return found[0], found[1], found[2]


def _fill(facts: Facts, folder: str, name: str) -> str:
    return (
        _environment(folder)
        .get_template(name)
        .render({f: getattr(facts, f) for f in facts.__dataclass_fields__})
    )
