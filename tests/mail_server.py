"""A mail server in a process of its own, with TLS and AUTH, that behaves as it is told to: `python -m tests.mail_server FOLDER`.

In FOLDER it keeps each mail that it has taken (`0001.eml`, and the envelope in `0001.json`), and a line for each thing
that happens (`events`). What the file `behaviour` says, one word for each mail in turn and the last one for all
others, it does:

    ok              takes it
    busy            451 to the recipient, later perhaps
    no-recipient    550 to the recipient
    no-one NAME     550 to recipients that begin so, ok for the others
    no-data         554 to the data
    later-data      451 to the data
    drop            closes the connection in the middle of the data
    vanish          takes it, and closes the connection before it says so
    hang            never answers the data
    slow SECONDS    takes that long to say yes
    deaf            takes it, says so, and does not answer QUIT
    small BYTES     552 to the data if there are more, which it did not say before

The port `small` says in its greeting that it takes 100,000 bytes at most.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from pathlib import Path
from typing import Any

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

USER, PASSWORD = b"jobs", b"pa:ss/w@rd"


class Handler:
    """Decides about each mail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.taken = 0
        self.deaf = False

    def note(self, *words: object) -> None:
        with open(self.folder / "events", "a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def behaviour(self) -> list[str]:
        lines = (self.folder / "behaviour").read_text().split("\n")
        lines = [line for line in lines if line] or ["ok"]
        return lines[min(self.number, len(lines) - 1)].split()

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.note("mail", address or "<>")
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        word, *more = self.behaviour()
        if word in ("no-recipient", "busy") or (word == "no-one" and address.startswith(more[0])):
            self.note(word, address)
            if word != "no-one":
                self.number += 1
            return "451 4.2.2 later perhaps" if word == "busy" else "550 5.1.1 no such person here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        word, *more = self.behaviour()
        self.number += 1
        self.note("data", word)
        self.deaf = word == "deaf"
        if word in ("no-data", "later-data"):
            return "554 5.7.1 not that one" if word == "no-data" else "451 4.3.0 later perhaps"
        if word == "small" and len(envelope.original_content or b"") > int(more[0]):
            return "552 5.2.3 your message exceeds what we take"
        if word == "hang":
            await asyncio.sleep(3600)
        if word == "slow":
            await asyncio.sleep(float(more[0]))
        self.keep(server, session, envelope)
        if word == "vanish":
            cut(server)
            await asyncio.sleep(3600)
        return "250 OK"

    def keep(self, server: SMTP, session: Session, envelope: Envelope) -> None:
        self.taken += 1
        name = self.folder / f"{self.taken:04}"
        facts = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": server.transport is not None and server.transport.get_extra_info("sslcontext") is not None,
            "user": session.authenticated,
            "options": envelope.mail_options,
        }
        name.with_suffix(".json").write_text(json.dumps(facts))
        content = envelope.original_content or b""
        name.with_suffix(".new").write_bytes(content)
        os.rename(name.with_suffix(".new"), name.with_suffix(".eml"))
        self.note("taken", name.name)


class Server(SMTP):
    """aiosmtpd's, which can also drop a connection in the middle of the data."""

    async def smtp_DATA(self, arg: str) -> None:
        handler: Handler = self.event_handler
        if handler.behaviour()[0] == "drop":
            handler.number += 1
            handler.note("data", "drop")
            await self.push("354 go on")
            await self._reader.read(100)
            cut(self)
            return
        await super().smtp_DATA(arg)

    async def smtp_QUIT(self, arg: str) -> None:
        handler: Handler = self.event_handler
        if handler.deaf:
            handler.note("quit")
            await asyncio.sleep(3600)
        await super().smtp_QUIT(arg)


class Local(LMTP, Server):
    """The same by LMTP, with an answer for each recipient."""


def cut(server: SMTP) -> None:
    """Close its connection here and now."""
    transport: Any = server.transport
    transport.abort()


def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (USER, PASSWORD), handled=False)


async def main(folder: Path) -> None:
    handler = Handler(folder)
    loop = asyncio.get_running_loop()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem")

    def plain() -> Server:
        return Server(handler, hostname="mail.test", enable_SMTPUTF8=True, loop=loop)

    def secure() -> Server:
        return Server(
            handler,
            hostname="mail.test",
            tls_context=tls,
            require_starttls=True,
            auth_required=True,
            authenticator=authenticate,
            enable_SMTPUTF8=True,
            loop=loop,
        )

    def implicit() -> Server:
        return Server(
            handler,
            hostname="mail.test",
            auth_required=True,
            auth_require_tls=False,
            authenticator=authenticate,
            enable_SMTPUTF8=True,
            loop=loop,
        )

    def old() -> Server:
        return Server(handler, hostname="mail.test", enable_SMTPUTF8=False, loop=loop)

    def small() -> Server:
        return Server(handler, hostname="mail.test", data_size_limit=100_000, enable_SMTPUTF8=True, loop=loop)

    ports = {}
    for name, factory, context in (
        ("plain", plain, None),
        ("starttls", secure, None),
        ("tls", implicit, tls),
        ("old", old, None),
        ("small", small, None),
        ("lmtp", lambda: Local(handler, hostname="mail.test", loop=loop), None),
    ):
        wanted = json.loads((folder / "wanted").read_text()).get(name, 0)
        server = await loop.create_server(factory, "127.0.0.1", wanted, ssl=context)
        ports[name] = server.sockets[0].getsockname()[1]
    await loop.create_unix_server(plain, str(folder / "socket"))
    (folder / "ports.new").write_text(json.dumps(ports))
    os.rename(folder / "ports.new", folder / "ports")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
