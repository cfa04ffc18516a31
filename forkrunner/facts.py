"""What a mail tells of: the record from which `letter.py` makes its words, and how it gets smaller.

Text in it does nothing: `clean` has taken from it what is not for reading. `gathering.py` fills it in. Used where mail
is sent, never by a supervisor or a mold.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from forkrunner.units import show_bytes

#: Characters of a value that stands on one line.
_LINE = 500


@dataclass
class Attachment:
    """A file that goes with a mail, or does not and is named."""

    name: str
    size: int
    #: None: it is not attached, and `where` says where it lies.
    data: bytes | None = None
    where: str = ""
    #: Hexadecimal.
    sha256: str = ""
    #: Of the task, where it was given: `source`, `sources[1]`; empty for the log.
    parameter: str = ""

    @property
    def words(self) -> str:
        """Its size, and whether it is attached."""
        return show_bytes(self.size) + (
            " (attached)" if self.data is not None else f", not attached: {self.where}"
        )


@dataclass
class Other:
    """One of those that are told of together because an hour had no room for a mail each."""

    task: str
    reason: str
    count: int
    job: str


@dataclass
class Facts:
    """What templates get. Text is clean of control characters; moments are aware, UTC."""

    #: failure, attempt, success, digest, start or test.
    kind: str
    #: Of the mail itself.
    id: str
    #: What is known to be alike: the same in all mails about it.
    thread: str
    task: str = ""
    #: The heading: `convert failed`.
    title: str = ""
    #: How it ended, on one line: `ValueError: bad header`.
    reason: str = ""
    #: The same in a sentence, with what was known of limits and killers.
    outcome: str = ""
    job: str = ""
    attempt: int = 0
    #: How many attempts that ended alike this mail tells of, since when, until when, and the last of them.
    count: int = 1
    first_at: datetime | None = None
    last_at: datetime | None = None
    last_job: str = ""
    #: What became of the job: failed, pending, …
    state: str = ""
    #: Name and value of each argument, as JSON, secrets hidden.
    arguments: list[tuple[str, str]] = field(default_factory=list)
    result: str = ""
    #: Lines of the traceback, each with whether it is the application's.
    traceback: list[tuple[str, bool]] = field(default_factory=list)
    #: Where it was raised: `jobs.py:12 in convert`.
    place: str = ""
    #: Stacks of all threads when it was killed or crashed.
    stacks: str = ""
    #: What was done to end it by force, and when.
    steps: list[str] = field(default_factory=list)
    #: The last lines of what it wrote.
    output: str = ""
    #: What it used, where it ran, what with: each a name and a value.
    bill: list[tuple[str, str]] = field(default_factory=list)
    ran_on: list[tuple[str, str]] = field(default_factory=list)
    versions: list[tuple[str, str]] = field(default_factory=list)
    link: str = ""
    #: What runs it again.
    command: str = ""
    attachments: list[Attachment] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    #: What is wrong with the mail itself.
    notes: list[str] = field(default_factory=list)


def clean(text: object) -> str:
    """Return text without characters that do something: only line ends and tabs are left, all others become escapes."""
    words = str(text).encode("utf-8", "backslashreplace").decode().replace("\r\n", "\n")
    if words.isascii() and words.isprintable():
        return words
    return "".join(
        c if c in "\n\t" or _is_harmless(c) else c.encode("unicode_escape").decode() for c in words
    )


def _is_harmless(character: str) -> bool:
    # formats turn text around, and hide it; the joiners are needed to write some languages and emoji
    return (
        unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")
        or character in "\u200c\u200d"
    )


def one_line(text: object, limit: int = _LINE) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def lighten(facts: Facts, size: int, limit: int | None) -> Facts | None:
    """Return what is left to try with a server for which a mail of `size` bytes was too large; None: it was the least.

    First its largest files stay behind, as many as there must, or all if nobody knows the limit; then all but what happened
    to which job, since one argument of many can be long.
    """
    attached = sorted(
        (one for one in facts.attachments if one.data is not None), key=lambda one: one.size, reverse=True
    )
    note = "The mail server did not take it all" + (
        "" if limit is None else f": it takes {show_bytes(limit)} at most"
    )
    notes = [*facts.notes, note] if note not in facts.notes else facts.notes
    if attached:
        excess = float("inf") if limit is None else size - limit
        left_out = []
        for one in attached:
            if excess > 0:
                left_out.append(one)
                excess -= _encoded(one.size)
        rest = [replace(one, data=None) if one in left_out else one for one in facts.attachments]
        return replace(facts, attachments=rest, notes=notes)
    least = Facts(facts.kind, facts.id, facts.thread)
    for name in ("task", "title", "reason", "outcome", "job", "attempt", "state", "link", "command", "count"):
        setattr(least, name, getattr(facts, name))
    least.first_at, least.last_at, least.last_job = facts.first_at, facts.last_at, facts.last_job
    least.notes = notes
    return None if least == facts else least


def _encoded(size: int) -> int:
    """Return how long so many bytes are in base64, at least."""
    return size * 4 // 3
