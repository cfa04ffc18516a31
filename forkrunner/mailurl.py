"""`mail_url`: by which way mail leaves. Only read here; `mail.py` goes there."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from .addresses import ascii_host

EXPECTED = "smtp://USER:PASSWORD@HOST:587, smtps://…, lmtp://…, smtp:///SOCKET, sendmail: or file:FOLDER"
#: Of a connection by smtp: or lmtp:. `try`: encrypted if the server offers it, whoever it says it is; `require`: encrypted,
#: by a server that proves its name; `unverified`: encrypted, whoever it is; `off`: never.
TLS = ("try", "require", "unverified", "off")
_PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24}


class Way(NamedTuple):
    """Where mail goes to first."""

    #: smtp, smtps, lmtp, sendmail or file.
    kind: str
    host: str = ""
    port: int = 0
    #: Of a Unix socket, a program or a folder.
    path: str = ""
    user: str = ""
    password: str = ""
    tls: str = "try"
    #: File of the certificates that are trusted; empty: the system's.
    ca: str = ""

    def __str__(self) -> str:
        """Say it for people, without the password."""
        if self.kind in ("sendmail", "file"):
            return f"{self.kind}:{self.path}"
        return f"{self.kind}://{self.path or f'{self.host}:{self.port}'}"


def way(url: str) -> Way:
    """Read a URL.

    Raises ValueError.
    """
    if not url.isprintable():  # urlsplit would take some of that out
        raise ValueError(f"expected {EXPECTED}")
    parts = urlsplit(url)
    kind, path = parts.scheme, unquote(parts.path)
    if kind in ("sendmail", "file"):
        # as a shell would have done it, had the URL been a word for one
        path = os.path.expanduser(path)
        if path.startswith("~") or "\0" in path or parts.netloc or parts.query:
            raise ValueError(f"expected {EXPECTED}")
        if kind == "file" and not path.strip("/"):
            raise ValueError(f"expected {EXPECTED}")
        return Way(kind, path=path or "/usr/sbin/sendmail")
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    if kind not in _PORTS or options.keys() - {"tls", "ca"} or parts.fragment:
        raise ValueError(f"expected {EXPECTED}")
    host, socket = parts.hostname or "", path if path.strip("/") else ""
    if socket and not (socket.startswith("/") and kind != "smtps"):  # smtp:mail.example.org means a host
        raise ValueError(f"expected {EXPECTED}")
    if bool(host) == bool(socket) or not (host + socket).isprintable():
        raise ValueError(f"expected {EXPECTED}")
    if host and ":" not in host:  # which is one of IPv6
        try:
            ascii_host(host)
        except ValueError:
            raise ValueError(f"expected {EXPECTED}") from None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    # a password is never sent where others can read it, unless that is asked for
    tls = options.get("tls", "require" if kind == "smtps" or (user and host) else "off" if socket else "try")
    if tls not in TLS or (kind == "smtps" and tls not in ("require", "unverified")):
        raise ValueError(f"expected tls={', '.join(TLS)}")
    if "\0" in user + password or bool(user) != bool(password):
        raise ValueError("expected a user and a password, or neither")
    port = parts.port or (587 if user and kind == "smtp" else _PORTS[kind])
    return Way(kind, host, 0 if socket else port, socket, user, password, tls, options.get("ca", ""))


def check(url: str) -> str:
    """Return a URL that can be read.

    Raises ValueError.
    """
    way(url)
    return url
