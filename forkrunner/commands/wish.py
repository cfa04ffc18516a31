"""The commands that want something of jobs: `retry`, `cancel`, `pause`, `resume`.

Each leaves its wish in the database; the supervisor of a running job does what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from forkrunner.errors import JobNotFound, JobStateError
from forkrunner.invocation import (
    BAD,
    FINE,
    complain,
    find_id,
    find_settings,
    flags,
    json_flag,
    open_store,
    target_and_ids,
    user_and_host,
    words_argument,
)

if TYPE_CHECKING:
    from forkrunner.store import Store


@click.command()
@words_argument("[MODULE:RUNNER] ID…")
@json_flag
@flags("database")
def retry(words: tuple[str, ...], as_json: bool) -> int:
    """Run ended jobs again, with all their tries before them."""

    def act(store: Store, job_id: str) -> tuple[str, str]:
        store.retry(job_id)
        return "pending", "is pending again"

    return _for_each_id(words, as_json, act)


@click.command()
@words_argument("[MODULE:RUNNER] ID…")
@click.option("--reason", metavar="TEXT", help="Is kept with the job.")
@click.option("--actor", metavar="NAME", help="Who asks; is kept with the job.  [USER@HOST]")
@json_flag
@flags("database")
def cancel(words: tuple[str, ...], reason: str | None, actor: str | None, as_json: bool) -> int:
    """Cancel jobs; running ones are ended.

    A pending job is cancelled at once. A running one is ended by its supervisor: it may leave at a safe point, else
    it gets TERM, and KILL after `grace`.
    """
    actor = actor or user_and_host()

    def act(store: Store, job_id: str) -> tuple[str, str]:
        state = store.cancel(job_id, reason, actor=actor)
        ended = state == "cancelled"
        return str(state), "is cancelled" if ended else "runs; its supervisor was asked to end it"

    return _for_each_id(words, as_json, act)


@click.command()
@words_argument("[MODULE:RUNNER] ID…")
@json_flag
@flags("database")
def pause(words: tuple[str, ...], as_json: bool) -> int:
    """Freeze running jobs, with all that they have started.

    Their time limits do not count meanwhile. A cancel, or a stop of their supervisor, ends the pause.
    """

    def act(store: Store, job_id: str) -> tuple[str, str]:
        store.pause(job_id)
        return "busy", "runs; its supervisor was asked to freeze it"

    return _for_each_id(words, as_json, act)


@click.command()
@words_argument("[MODULE:RUNNER] ID…")
@json_flag
@flags("database")
def resume(words: tuple[str, ...], as_json: bool) -> int:
    """Let paused jobs go on."""

    def act(store: Store, job_id: str) -> tuple[str, str]:
        store.resume(job_id)
        return "busy", "is to go on"

    return _for_each_id(words, as_json, act)


def _for_each_id(words: tuple[str, ...], as_json: bool, act: Callable[[Store, str], tuple[str, str]]) -> int:
    """Do something to each job; one that refuses does not keep the others from it."""
    from forkrunner.jsonpages import to_json

    target, ids = target_and_ids(words)
    settings = find_settings(target)
    results: list[dict[str, str]] = []
    failed = False
    with open_store(settings) as store:
        for given in ids:
            try:
                job_id = find_id(store, given)
                state, sentence = act(store, job_id)
            except (JobNotFound, JobStateError) as error:
                failed = True
                results.append({"id": given, "error": str(error)})
                complain(str(error))
                continue
            results.append({"id": job_id, "state": state})
            if not as_json:
                print(f"{job_id} {sentence}")
    if as_json:
        print(to_json(results))
    return BAD if failed else FINE
