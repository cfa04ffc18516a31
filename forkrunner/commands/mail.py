"""`mail`: how the mails stand, a test of the way that they take, and once more what was undeliverable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forkrunner import clock
from forkrunner.errors import MailError
from forkrunner.invocation import (
    ALL_FLAGS,
    BAD,
    FINE,
    complain,
    find_settings,
    flags,
    import_app,
    json_flag,
    load_settings,
    only_target,
    open_store,
    words_argument,
)

if TYPE_CHECKING:
    from forkrunner.config import Settings
    from forkrunner.outbox import Standing


@click.command()
@words_argument("[MODULE:RUNNER]")
@click.option("--test", is_flag=True, help="Send a test mail to `mail_to` now, and say what went wrong.")
@click.option("--again", is_flag=True, help="Send again what was undeliverable.")
@json_flag
@flags(*ALL_FLAGS)
def mail(words: tuple[str, ...], test: bool, again: bool, as_json: bool) -> int:
    """Show how the mails about jobs stand.

    Which are on their way, and which could not be delivered. With --test: exit status 1 if the mail server does not take
    a mail for everybody.
    """
    from forkrunner import jsonpages

    target = only_target(words)
    if test:
        settings = load_settings(target)
        if settings.app is not None:
            settings = load_settings(target, import_app(settings.app).code)
        return _test(settings, as_json)
    settings = find_settings(target)
    with open_store(settings) as store:
        sent_again = store.outbox.again() if again else []
        found = store.outbox.standing()
    if as_json:
        print(jsonpages.to_json(standing_json(found) | {"again": sent_again}))
        return FINE
    if again:
        print(f"{len(sent_again)} mails are sent again")
    for line in standing_words(found) or ["No mail waits, and all of the last hour was delivered."]:
        print(line)
    return FINE


def standing_json(found: Standing) -> dict[str, Any]:
    from forkrunner.jsonpages import iso

    return {
        "waiting": found.waiting,
        "since": iso(found.since),
        "undeliverable": found.undeliverable,
        "ids": list(found.ids),
        "sent_in_the_last_hour": found.sent,
        "error": found.error,
    }


def standing_words(found: Standing) -> list[str]:
    """Say it in lines, none if there is nothing that anybody has to know."""
    from forkrunner import terminal, wording

    words = []
    if found.waiting:
        since = f", the oldest since {wording.distance(found.since, clock.utc())[:-4]}" if found.since else ""
        words.append(f"{found.waiting} waiting{since}")
    if found.undeliverable:
        words.append(
            terminal.paint(f"{found.undeliverable} undeliverable", "red") + " (`forkrunner mail --again`)"
        )
    if not words:
        return []
    words.append(f"{found.sent} sent in the last hour")
    lines = [f"Mail      {', '.join(words)}"]
    if found.error:
        lines.append(f"          {terminal.short(found.error, 300)}")
    return lines


def missing(settings: Settings, tasks: list[dict[str, Any]]) -> list[str]:
    """Name the settings without which no mail leaves, or nobody gets it, and templates that are of no use."""
    found = []
    named = any(task.get("mail_to") for task in tasks)
    if (settings.mail_to or named) and settings.mail_url is None:
        found.append(
            "mail_to is set and mail_url is not: mail about failures waits until it is, as in"
            " FORKRUNNER_MAIL_URL=smtp://USER:PASSWORD@HOST:587"
        )
    if settings.mail_url is not None and not settings.mail_to and not named:
        found.append("mail_url is set and mail_to is not: nobody gets mail about failures")
    if (settings.mail_to or named) and settings.mail_url is not None and settings.mail_from is None:
        from forkrunner.letter import default_sender

        found.append(f"mail_from is not set: mail is from {default_sender()}, which many servers refuse")
    if settings.mail_templates:
        from forkrunner.letter import trouble

        found += trouble(settings.mail_templates)
    return found


def _test(settings: Settings, as_json: bool) -> int:
    from forkrunner import jsonpages, letter, mail, terminal
    from forkrunner.facts import Facts
    from forkrunner.gathering import versions
    from forkrunner.ids import new_id

    problems = [] if settings.mail_to else ["mail_to is not set: a test mail has nobody to go to"]
    if settings.mail_url is None:
        problems.append("mail_url is not set: there is no way for mail to leave")
    taken: list[str] = []
    way = settings.shown("mail_url")
    if not problems:
        facts = Facts(kind="test", id=new_id(), thread="0" * 32, title="forkrunner can send mail")
        facts.outcome = f"This is a test, sent by way of {way}."
        facts.versions = versions()
        try:
            sent = mail.send(letter.write(facts, settings, settings.mail_to), settings.mail_to, settings)
            taken = sent.taken
            problems += [f"{one}: {why}" for one, (why, _) in sent.refused.items()]
        except MailError as error:
            problems.append(str(error))
    if as_json:
        print(jsonpages.to_json({"way": way, "taken": taken, "problems": problems}))
    else:
        for one in taken:
            print(f"{terminal.short(way)} has taken a test mail for {terminal.short(one)}")
        for problem in problems:
            complain(problem)
    return BAD if problems else FINE
