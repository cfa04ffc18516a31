"""What the tests of mail are written with: a real mail server in a process of its own, and the mails that it has taken."""

from __future__ import annotations

import email
import email.policy
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Self

import trustme

from tests.support import wait_until

ROOT = Path(__file__).parent.parent
#: As it stands in a URL.
CREDENTIALS = "jobs:pa%3Ass%2Fw%40rd"


@dataclass(frozen=True)
class Taken:
    """A mail that the server has taken."""

    message: EmailMessage
    #: Its envelope, and how it came.
    facts: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.message["Message-ID"])

    @property
    def subject(self) -> str:
        return str(self.message["Subject"])

    @property
    def text(self) -> str:
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content())

    @property
    def html(self) -> str:
        part = self.message.get_body(("html",))
        assert part is not None
        return str(part.get_content())

    @property
    def files(self) -> dict[str, bytes]:
        """Name → content of what is attached."""
        return {
            str(part.get_filename()): part.get_payload(decode=True)  # type: ignore[misc]
            for part in self.message.iter_attachments()
        }

    @property
    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}

    @property
    def log(self) -> str:
        (data,) = (data for name, data in self.files.items() if name.endswith(".log.gz"))
        return gzip.decompress(data).decode()


class MailServer:
    """The server, which can be stopped and started again at the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(folder / "server.pem")
        )
        (folder / "wanted").write_text("{}")
        self.behave("ok")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        (folder / "wanted").write_text((folder / "ports").read_text())

    def start(self) -> None:
        (self.folder / "ports").unlink(missing_ok=True)
        setpriv = [shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL"]
        command = [sys.executable, "-W", "ignore", "-m", "tests.mail_server", str(self.folder)]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*setpriv, *command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until((self.folder / "ports").exists, 60, "the mail server")
        self.ports: dict[str, int] = json.loads((self.folder / "ports").read_text())

    @property
    def pids(self) -> list[int]:
        return [self.process.pid] if self.process else []

    def heal(self) -> None:
        """Make it run again, whatever a test did to it."""
        if self.process is None:
            self.start()

    def reset(self) -> None:
        """Forget all mails, and take whatever comes."""
        self.stop()
        for path in (*self.folder.glob("*.eml"), *self.folder.glob("*.json"), self.folder / "events"):
            path.unlink(missing_ok=True)
        self.behave("ok")
        self.start()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def behave(self, *lines: str) -> None:
        """Say what it does with the mails from its start on; the last line is for all that follow."""
        path = self.folder / "behaviour"
        path.with_suffix(".new").write_text("\n".join(lines))
        os.rename(path.with_suffix(".new"), path)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.ports['plain']}?tls=off"

    @property
    def starttls(self) -> str:
        return f"smtp://{CREDENTIALS}@127.0.0.1:{self.ports['starttls']}?ca={self.folder}/ca.pem"

    @property
    def tls(self) -> str:
        return f"smtps://{CREDENTIALS}@127.0.0.1:{self.ports['tls']}?ca={self.folder}/ca.pem"

    @property
    def old(self) -> str:
        return f"smtp://127.0.0.1:{self.ports['old']}?tls=off"

    @property
    def small(self) -> str:
        return f"smtp://127.0.0.1:{self.ports['small']}?tls=off"

    @property
    def lmtp(self) -> str:
        return f"lmtp://127.0.0.1:{self.ports['lmtp']}?tls=off"

    @property
    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def mails(self) -> list[Taken]:
        return [read(path) for path in sorted(self.folder.glob("*.eml"))]

    def wait(self, count: int = 1, timeout: float = 60) -> list[Taken]:
        """Wait for that many mails."""
        try:
            wait_until(lambda: len(list(self.folder.glob("*.eml"))) >= count, timeout)
        except AssertionError:
            raise AssertionError(
                f"no {count} mails within {timeout} s: {self.events}\n{(self.folder / 'server.log').read_text()[-2000:]}"
            ) from None
        return self.mails

    def wait_event(self, event: str, count: int = 1, timeout: float = 60) -> None:
        wait_until(lambda: self.events.count(event) >= count, timeout, f"{event!r} of {self.events}")


def read(path: Path) -> Taken:
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    facts = path.with_suffix(".json")
    return Taken(message, json.loads(facts.read_text()) if facts.exists() else {})
