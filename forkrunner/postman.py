"""The task that sends a mail. Runs in a child like any other task; the mold only holds the function.

One mail, from the tables to a server: seal it (from then on it tells of the same for ever), read what it tells of
(`gathering.py`), put it in words (`letter.py`), hand it over (`mail.py`), which tells at once who has it, so that it is written
down. Whatever ends this process, another attempt goes on: whom a server has taken it for is not sent it again. Only where
the process dies between the server's yes and our note of it, a mail arrives twice, with the same Message-ID.
"""

from __future__ import annotations

from forkrunner.current import current
from forkrunner.errors import MailRefused
from forkrunner.internal import MAIL
from forkrunner.options import DEFAULTS
from forkrunner.tasks import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from forkrunner.config import Settings
    from forkrunner.facts import Facts
    from forkrunner.mail import Sent
    from forkrunner.records import Mail
    from forkrunner.runner import Runner
    from forkrunner.store import Store


#: So long a mail waits for the files that go with it; then it goes without, seconds.
_INSIST = 600.0


def internal_tasks(runner: Runner) -> Mapping[str, Task[..., Any]]:
    """Return the tasks that every mold knows beside those of its application."""

    def send(kind: str, task: str, job: str, attempt: int) -> None:
        # what it tells of is in the table of mails; the arguments are for people who look at the job
        assert current.job is not None
        deliver(runner, current.job["id"])

    options = {**DEFAULTS, "name": MAIL, "queue": MAIL, "give_up_on": (MailRefused,)}
    return {MAIL: Task(runner, send, options)}


def deliver(runner: Runner, id: str) -> None:
    """Send one mail to those who have not got it.

    Raises:
        MailError: not to all of them; what was done is written down.
    """
    import json

    from forkrunner import clock, gathering
    from forkrunner.errors import MailError

    settings, store = runner.settings, runner.store
    rows = store.outbox.seal(id)
    if not rows or rows[0].sent_at is not None:
        return
    first = rows[0]
    to = json.loads(first.recipients) or list(settings.mail_to)
    done = json.loads(first.delivered or "[]")
    left = [one for one in to if one not in done]
    if not left:
        return
    age = (clock.utc() - first.due_at).total_seconds()
    late = age > settings.mail_patience
    try:
        if settings.mail_url is None:
            raise MailError("mail_url is not set: there is no way for mail to leave")
        told = gathering.gather(runner, store, rows, insist=age < _INSIST)
        sent = _hand_over(
            told,
            settings,
            to,
            left,
            lambda taken: _note(store, first, done + taken, len(taken) == len(left)),
        )
    except MailRefused:
        raise
    except Exception as error:
        # whatever it is, it is not tried for ever
        words = str(error) if isinstance(error, MailError) else f"{type(error).__name__}: {error}"
        if late:
            raise MailRefused(f"{words}; given up after {settings.mail_patience:g} s") from error
        if isinstance(error, MailError):
            raise
        raise MailError(words) from error
    if sent.refused:
        words = "; ".join(f"{one}: {why}" for one, (why, _) in sent.refused.items())
        for_good = late or all(permanent for _, permanent in sent.refused.values())
        raise (MailRefused if for_good else MailError)(f"not delivered to {words}")


def _hand_over(
    facts: Facts, settings: Settings, to: list[str], left: list[str], note: Callable[[list[str]], None]
) -> Sent:
    """Send it, and less of it to those for whom it is too large, until they have it or there is nothing left to leave out.

    `note` gets all who have it, as soon as one more has.
    Raises MailError: nobody has it.
    """
    from forkrunner import letter, mail
    from forkrunner.errors import MailError, MailTooLarge
    from forkrunner.facts import lighten

    sent = mail.Sent()
    while True:
        message, limit = letter.write(facts, settings, to), None
        try:
            found = mail.send(message, left, settings, note=lambda now: note(sent.taken + now.taken))
        except MailTooLarge as error:
            limit = error.limit
            found = mail.Sent([], dict.fromkeys(left, (str(error), True)), left)
        except MailError as error:
            if not sent.taken:
                raise
            found = mail.Sent([], dict.fromkeys(left, (str(error), isinstance(error, MailRefused))))
        sent.taken += found.taken
        sent.refused |= found.refused
        left = found.too_large
        less = lighten(facts, len(bytes(message)), limit) if left else None
        if less is None:
            return sent
        facts = less
        for one in left:
            del sent.refused[one]


def _note(store: Store, first: Mail, done: list[str], all: bool) -> None:
    """Write down who has it; a database that is away is waited for, because the mail must not be sent twice."""
    from forkrunner.database import pause
    from forkrunner.errors import StoreUnavailable

    for _ in range(100):
        try:
            store.outbox.delivered(first.id, done, all=all)
            return
        except StoreUnavailable:
            # the supervisor keeps the ending of this attempt, which says the same, until the database is back
            if all:
                return
            pause(0.5)
