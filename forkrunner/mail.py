"""Mail on its way out: SMTP, with or without TLS, over TCP or a Unix socket, LMTP, sendmail, or a folder for development.

The only file that knows smtplib. Nothing is retried here: an error says whether another try may do better. A server has
taken a mail when its answer to the data was yes; whatever happens before that may be done again, and if the connection
breaks between its yes and our ears it is sent again, with the same Message-ID. So a yes is told at once, before anything else
is said to the server.
"""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

from forkrunner import process
from forkrunner.addresses import EXPECTED
from forkrunner.errors import MailError, MailRefused, MailTooLarge
from forkrunner.letter import POLICY, bare_address, is_address
from forkrunner.mailurl import Way, way
from forkrunner.units import show_bytes

if TYPE_CHECKING:
    from forkrunner.config import Settings

#: After the data a server may have much to do: RFC 5321 gives it ten minutes, and who hangs up sooner sends twice.
_PATIENCE = 5
#: So long a server may take to say goodbye, which changes nothing any more, seconds.
_GOODBYE = 2.0
#: 552 is no more than that some store is full, and servers word it in their own ways; whoever takes one of these for a size
#: in error sends once more, which costs little.
_TOO_LARGE = re.compile(r"\b(552|5\.3\.4|5\.2\.3)\b|\btoo (large|big|long)\b|\bsize\b", re.IGNORECASE)


@dataclass
class Sent:
    """What became of a mail, by recipient."""

    taken: list[str] = field(default_factory=list)
    #: Recipient → why not, and whether another try would be refused alike.
    refused: dict[str, tuple[str, bool]] = field(default_factory=dict)
    #: Those of the refused for whom it is too large.
    too_large: list[str] = field(default_factory=list)


def send(
    message: EmailMessage,
    to: Sequence[str],
    settings: Settings,
    *,
    timeout: float | None = None,
    patience: float = _PATIENCE,
    note: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Hand a mail to the server of the settings, for these recipients.

    `timeout` for each answer, seconds, instead of `mail_timeout`; `patience` times that for the last one. `note` is called
    with each yes, as soon as it is heard: by LMTP there may be several.

    Raises:
        MailError: nobody has it, and it may be tried again.
        MailRefused: nobody has it, and another try would be refused alike.
        MailTooLarge: nobody has it, and a smaller one may be taken.
    """
    if settings.mail_url is None:
        raise MailError("mail_url is not set: there is no way for mail to leave")
    there = way(settings.mail_url)
    timeout = settings.mail_timeout if timeout is None else timeout
    last = timeout * patience
    sender = bare_address(settings.mail_bounces) if settings.mail_bounces else ""
    envelope = {one: bare_address(one) for one in to if is_address(one)}
    if not envelope:
        raise MailRefused(f"expected {EXPECTED}, got {', '.join(to)[:300]!r}")
    sent = _send(message, envelope, sender, there, timeout, last, note)
    # the others do not wait for somebody to mend it
    sent.refused |= {one: (f"expected {EXPECTED}", True) for one in to if one not in envelope}
    return sent


def _send(
    message: EmailMessage,
    envelope: dict[str, str],
    sender: str,
    there: Way,
    timeout: float,
    last: float,
    note: Callable[[Sent], None],
) -> Sent:
    try:
        if there.kind == "file":
            return _noted(_to_folder(message, there, [*envelope]), note)
        international = not (sender + "".join(envelope.values())).isascii()
        data = _bytes(message, international)
        if there.kind == "sendmail":
            return _noted(_to_sendmail(data, there, sender, envelope, last), note)
        with _connect(there, timeout) as server:
            if international and not server.has_extn("smtputf8"):
                raise MailRefused(f"{there} does not know SMTPUTF8, which an address outside of ASCII needs")
            options = ["SMTPUTF8", "BODY=8BITMIME"] if international else []
            if there.kind == "lmtp":
                return _one_by_one(server, data, sender, envelope, last, options, note)
            return _noted(_all_at_once(server, data, sender, envelope, last, options), note)
    except MailError:
        raise
    except smtplib.SMTPResponseException as error:
        raise _refusal(str(there), error.smtp_code, error.smtp_error) from error
    except TimeoutError as error:
        raise MailError(f"{there} did not answer within {timeout:g} s") from error
    except ssl.SSLError as error:
        raise MailError(
            f"{there}: no trusted connection: {getattr(error, 'verify_message', '') or error}"
        ) from error
    except (OSError, ValueError, smtplib.SMTPException) as error:  # UnicodeError too
        why = getattr(error, "strerror", None) or str(error)
        raise MailError(f"{there}: {why}") from error


def _noted(sent: Sent, note: Callable[[Sent], None]) -> Sent:
    note(sent)
    return sent


def _bytes(message: EmailMessage, international: bool) -> bytes:
    return message.as_bytes(policy=POLICY.clone(utf8=True) if international else POLICY)


def _refusal(where: str, code: int, text: Any) -> MailError:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    said = f"{code} {' '.join(words.split())[:300]}"
    kind = MailError
    if 500 <= code < 600:
        kind = MailTooLarge if _TOO_LARGE.search(said) else MailRefused
    return kind(f"{where} said {said}")


# --------------------------------------------------------------------------- SMTP and LMTP


class _Smtp(smtplib.SMTP):
    """By TCP or a Unix socket, with LHLO where that is spoken; asks no name server who we are."""

    def __init__(self, there: Way, timeout: float) -> None:
        self.there = there
        if there.kind == "lmtp":
            self.ehlo_msg = "lhlo"
        host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()) or "localhost"
        super().__init__(local_hostname=host, timeout=timeout)
        # smtplib compares certificates with it
        self._host = there.host

    def _get_socket(self, host: str, port: int, timeout: float) -> Any:
        if self.there.path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout)
                connection.connect(self.there.path)
            except BaseException:
                connection.close()
                raise
            return connection
        context = _context(self.there) if self.there.kind == "smtps" else None
        made = socket.create_connection((host, port), timeout)
        return context.wrap_socket(made, server_hostname=host) if context else made


@contextlib.contextmanager
def _connect(there: Way, timeout: float) -> Iterator[smtplib.SMTP]:
    server = _Smtp(there, timeout)
    try:
        code, text = server.connect(there.host or "localhost", there.port)
        if code != 220:
            raise _refusal(str(there), code, text)
        server.ehlo_or_helo_if_needed()
        if there.kind != "smtps" and there.tls != "off":
            if server.has_extn("starttls"):
                server.starttls(context=_context(there))
                server.ehlo_or_helo_if_needed()
            elif there.tls != "try":
                raise MailError(f"{there} offers no STARTTLS, which tls={there.tls} demands")
        if there.user:
            if not server.has_extn("auth"):
                raise MailError(f"{there} takes no user and password")
            try:
                server.login(there.user, there.password)
            except smtplib.SMTPAuthenticationError as error:
                # not for good: a password can be mended
                refusal = _refusal(str(there), error.smtp_code, error.smtp_error)
                raise MailError(f"{refusal} (user {there.user})") from error
        yield server
        with contextlib.suppress(OSError, smtplib.SMTPException):
            if server.sock is not None:
                server.sock.settimeout(min(timeout, _GOODBYE))
            server.quit()
    finally:
        server.close()


def _context(there: Way) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=there.ca or None)
    except OSError as error:
        raise MailError(f"ca={there.ca}: {error.strerror or error}") from error
    if there.tls in ("try", "unverified"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _begin(server: smtplib.SMTP, sender: str, options: Sequence[str], where: str, size: int) -> None:
    words = list(options)
    if server.has_extn("size"):
        # 0 and nothing: it has a limit and does not say which
        limit = server.esmtp_features["size"].strip()
        if limit.isdecimal() and 0 < int(limit) < size:
            raise MailTooLarge(
                f"{where} takes {show_bytes(int(limit))} at most, and the mail has {show_bytes(size)}",
                limit=int(limit),
            )
        words.append(f"SIZE={size}")
    code, text = server.mail(sender, words)
    if code != 250:
        raise _refusal(f"{where}: the sender <{sender}>", code, text)


def _all_at_once(
    server: smtplib.SMTP,
    data: bytes,
    sender: str,
    envelope: dict[str, str],
    last: float,
    options: Sequence[str],
) -> Sent:
    where = str(way_of(server))
    _begin(server, sender, options, where, len(data))
    sent = Sent()
    for one, bare in envelope.items():
        code, text = server.rcpt(bare)
        if code in (250, 251):
            sent.taken.append(one)
        else:
            _refuse(sent, one, code, text)
    if not sent.taken:
        words = "; ".join(f"<{envelope[one]}>: {why}" for one, (why, _) in sent.refused.items())
        for_good = all(permanent for _, permanent in sent.refused.values())
        kind = MailTooLarge if sent.too_large else MailRefused if for_good else MailError
        raise kind(f"{where} refuses the recipients: {words}")
    _data(server, data, last)
    code, text = server.getreply()
    if code != 250:
        raise _refusal(f"{where}: the mail", code, text)
    return sent


def _one_by_one(
    server: smtplib.SMTP,
    data: bytes,
    sender: str,
    envelope: dict[str, str],
    last: float,
    options: Sequence[str],
    note: Callable[[Sent], None],
) -> Sent:
    """By LMTP, where the mail has an answer for each recipient: each gets it alone."""
    sent, where = Sent(), str(way_of(server))
    for one, bare in envelope.items():
        try:
            _begin(server, sender, options, where, len(data))
            code, text = server.rcpt(bare)
            if code in (250, 251):
                _data(server, data, last)
                code, text = server.getreply()
            else:
                server.rset()
        except (MailError, OSError, smtplib.SMTPException) as error:
            if not sent.taken:
                raise
            # some have it: what has become of the others is no reason to send it to them again
            for left in envelope.keys() - {*sent.taken, *sent.refused}:
                sent.refused[left] = f"{where}: {error}", isinstance(error, MailRefused)
            return sent
        if code in (250, 251):
            sent.taken.append(one)
            note(sent)
        else:
            _refuse(sent, one, code, text)
        if server.sock is not None:
            server.sock.settimeout(server.timeout)
    return sent


def _refuse(sent: Sent, one: str, code: int, text: bytes) -> None:
    refusal = _refusal("it", code, text)
    sent.refused[one] = str(refusal), isinstance(refusal, MailRefused)
    if isinstance(refusal, MailTooLarge):
        sent.too_large.append(one)


def _data(server: smtplib.SMTP, data: bytes, last: float) -> None:
    server.putcmd("data")
    code, text = server.getreply()
    if code != 354:
        raise _refusal(f"{way_of(server)}: the mail", code, text)
    lines = re.sub(rb"(?m)^\.", b"..", data)
    server.send(lines + (b"" if lines.endswith(b"\r\n") else b"\r\n") + b".\r\n")
    if server.sock is not None:
        server.sock.settimeout(last)


def way_of(server: smtplib.SMTP) -> Way:
    assert isinstance(server, _Smtp)
    return server.there


# --------------------------------------------------------------------------- without a server


def _to_sendmail(data: bytes, there: Way, sender: str, envelope: dict[str, str], last: float) -> Sent:
    argv = [there.path, "-i", "-f", sender or "<>", "--", *envelope.values()]
    # a program reads its own host's line ends
    status, output = process.feed(argv, data.replace(b"\r\n", b"\n"), last)
    if status != 0:
        words = " ".join(output.decode("utf-8", "replace").split())[:300]
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        # EX_USAGE, EX_DATAERR, EX_NOUSER: of the mail; all else may be mended
        kind = MailRefused if status in (65, 67) else MailError
        if _TOO_LARGE.search(words):
            kind = MailTooLarge
        raise kind(f"{there} ended with {how}: {words}")
    return Sent(list(envelope))


def _to_folder(message: EmailMessage, there: Way, to: Sequence[str]) -> Sent:
    """Write a file that is there whole or not at all; sent again it takes its own place."""
    os.makedirs(there.path, exist_ok=True)
    # our own id: no job has a say in it
    name = str(message["Message-ID"]).strip("<>").partition("@")[0]
    path = os.path.join(there.path, f"{name}.eml")
    with open(f"{path}.new", "wb") as file:
        file.write(_bytes(message, international=False))
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    return Sent(list(to))
