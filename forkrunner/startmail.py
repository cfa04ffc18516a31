"""A supervisor that could not start: the starting command tells of it by mail itself, since nobody else is there.

The database may be what is away, so what was told already is remembered in a file in `runtime_dir`: a restart loop that
fails alike every second makes one mail in each `mail_interval`, which says how often it was. Bounded in time; whatever goes
wrong here is said in a line and changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from typing import TYPE_CHECKING, Any

from . import clock, identity
from .ids import new_id
from .mails import START

if TYPE_CHECKING:
    from .config import Settings

#: Longest wait for an answer of the mail server: whoever starts us waits too, seconds.
_PATIENCE = 5.0
#: … and for all of it.
_LONGEST = 15.0


def tell(settings: Settings, target: str, error: Exception) -> str | None:
    """Send the mail, if one is due; return what to say of it, None if there is nothing to say.

    Takes no longer than `_LONGEST`.
    """
    if not settings.mail_to or settings.mail_url is None or START not in settings.mail_on:
        return None
    said: list[str | None] = []
    # also a name server may be silent, and nothing but a thread bounds that
    thread = threading.Thread(target=lambda: said.append(_tell(settings, target, error)), daemon=True)
    thread.start()
    thread.join(_LONGEST)
    return said[0] if said else f"nobody could be told by mail within {_LONGEST:g} s"


def _tell(settings: Settings, target: str, error: Exception) -> str | None:
    try:
        with _noted(settings, target, error) as note:
            now = clock.wall()
            note["count"] = note.get("count", 0) + 1
            note.setdefault("since", now)
            if 0 <= now - note.get("tried", 0.0) < settings.mail_interval:
                return None
            # also if it fails: a server that is away is not to be asked by each start of a loop
            note["tried"] = now
            _send(settings, target, error, note)
            note["count"] = 0
            del note["since"]
    except Exception as problem:  # noqa: BLE001 - it could not start, and that is what counts
        return f"nobody could be told by mail: {problem}"
    return f"told by mail: {', '.join(settings.mail_to)}"


@contextlib.contextmanager
def _noted(settings: Settings, target: str, error: Exception) -> Any:
    """Give what is known of this failure, and keep what becomes of it; one process at a time."""
    identity.private_folder(settings.runtime_dir)
    kind = f"{target} {type(error).__name__}"
    name = f"start-{hashlib.sha256(kind.encode('utf-8', 'replace')).hexdigest()[:16]}.json"
    fd = os.open(
        os.path.join(settings.runtime_dir, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    with open(fd, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            note = json.loads(file.read() or "{}")
        except ValueError:
            note = {}
        try:
            yield note
        finally:
            file.seek(0)
            file.truncate()
            json.dump(note, file)


def _send(settings: Settings, target: str, error: Exception, note: dict[str, Any]) -> None:
    from . import frames, letter, mail
    from .facts import Facts, clean, one_line
    from .gathering import versions

    facts = Facts(kind=START, id=new_id(), thread=hashlib.sha256(target.encode()).hexdigest()[:32])
    facts.title = f"{one_line(target, 100)} could not start"
    facts.reason = one_line(error)
    facts.outcome = one_line(error)
    facts.count = note["count"]
    if note["count"] > 1:
        facts.first_at, facts.last_at = clock.from_wall(note["since"]), clock.utc()
    facts.traceback = frames.mark(clean(getattr(error, "traceback", None) or "").rstrip("\n"))
    facts.ran_on = [
        ("host", identity.HOST),
        ("database", one_line(settings.shown("database"))),
        ("process", str(os.getpid())),
    ]
    facts.versions = versions()
    facts.command = f"forkrunner check {one_line(target, 100)}"
    sent = mail.send(
        letter.write(facts, settings, settings.mail_to),
        settings.mail_to,
        settings,
        timeout=min(_PATIENCE, settings.mail_timeout),
        patience=1,
    )
    if sent.refused and not sent.taken:
        raise OSError("; ".join(why for why, _ in sent.refused.values()))
