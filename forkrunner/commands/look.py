"""The commands that look at jobs: `list`, `show`, `watch`, `log`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from forkrunner import clock
from forkrunner.config import Settings
from forkrunner.errors import JobNotFound, StoreUnavailable
from forkrunner.invocation import (
    BAD,
    FINE,
    as_shown,
    complain,
    find_id,
    find_settings,
    flags,
    json_flag,
    only_target,
    open_store,
    secrets_flag,
    target_and_id,
    target_and_ids,
    words_argument,
)

if TYPE_CHECKING:
    from forkrunner.records import Row


@click.command("list")
@words_argument("[MODULE:RUNNER]")
@click.option(
    "--state", type=click.Choice(["pending", "busy", "done", "failed", "cancelled"]), help="Only these."
)
@click.option("--queue", metavar="NAME", help="Only those of this queue.")
@click.option("--task", metavar="NAME", help="Only those of this task.")
@click.option("--all", "everything", is_flag=True, help="Also the jobs that send mail.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, metavar="N", help="At most so many.  [50]"
)
@secrets_flag
@json_flag
@flags("database")
def list_jobs(
    words: tuple[str, ...],
    state: str | None,
    queue: str | None,
    task: str | None,
    everything: bool,
    limit: int,
    secrets: bool,
    as_json: bool,
) -> int:
    """List jobs, the newest first."""
    from forkrunner import jsonpages, pages, terminal

    settings = find_settings(only_target(words))
    with open_store(settings) as store:
        found = store.list(state=state, queue=queue, task=task, limit=limit, all=everything)
    rows = [*map(as_shown(settings, secrets), found)]
    progress = _progress_of(settings, rows)
    if as_json:
        print(jsonpages.to_json([jsonpages.job_json(row, progress=progress.get(row.id)) for row in rows]))
    elif rows:
        print(pages.table_of(rows, progress, clock.utc()))
        if len(rows) == limit:
            print(f"The newest {limit}; --limit shows more.", file=sys.stderr)
    else:
        wanted = " ".join(
            word
            for word in (state, f"of queue {queue}" * bool(queue), f"of task {task}" * bool(task))
            if word
        )
        print(
            f"No jobs{f' ({terminal.short(wanted)})' * bool(wanted)} in {terminal.short(settings.shown('database'))}."
        )
    return FINE


@click.command()
@words_argument("[MODULE:RUNNER] ID")
@secrets_flag
@json_flag
@flags("database")
def show(words: tuple[str, ...], secrets: bool, as_json: bool) -> int:
    """Show all about one job.

    Its arguments, its result, how each attempt ended and what that cost.
    Here and elsewhere an ID may be its first or last characters, at least 6.
    """
    from forkrunner import jsonpages, pages

    target, given = target_and_id(words)
    settings = find_settings(target)
    with open_store(settings) as store:
        row = as_shown(settings, secrets)(store.get(find_id(store, given)))
        files = store.files(row.id)
    progress = _progress_of(settings, [row]).get(row.id)
    if as_json:
        print(jsonpages.to_json(jsonpages.page_json(row, progress=progress, files=files)))
    else:
        print(*pages.page_of(row, progress, clock.utc(), files), sep="\n")
    return FINE


@click.command()
@words_argument("[MODULE:RUNNER] ID…")
@json_flag
@flags("database")
def watch(words: tuple[str, ...], as_json: bool) -> int:
    """Watch jobs until they end: bars on a terminal, lines elsewhere.

    Exit status 0 if all are done then. Ctrl-C ends the watching, not the jobs. With --json: a line with one object whenever
    something has changed.
    """
    from forkrunner import bars
    from forkrunner.job import State
    from forkrunner.places import Reader, place
    from forkrunner.watch import Watcher

    target, given = target_and_ids(words)
    settings = find_settings(target)
    with open_store(settings) as store:
        rows, missing = [], False
        for text in given:
            try:
                rows.append(store.get(find_id(store, text)))
            except JobNotFound as error:
                complain(str(error))
                missing = True
        names = {row.id: row.task for row in rows}
        watcher = Watcher(lambda: store, Reader(place(settings)))
        last = {}
        try:
            with bars.choose(names, as_json) as shown:
                for views in watcher.follow(names):
                    if isinstance(views, StoreUnavailable):
                        shown.trouble(str(views))
                    else:
                        last = views
                        shown.show(views)
        finally:
            watcher.close()
        if not as_json:
            for row in map(store.get, last):
                print(bars.ending(row))
    all_done = len(last) == len(names) and all(view["state"] == State.DONE for view in last.values())
    return FINE if all_done and not missing else BAD


@click.command()
@words_argument("[MODULE:RUNNER] ID")
@click.option("--attempt", "number", type=int, metavar="N", help="Of this attempt.  [the last one]")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes until the job has ended.")
@click.option("--raw", is_flag=True, help="Control characters as they are: the terminal obeys them.")
@json_flag
@flags("database")
def log(words: tuple[str, ...], number: int | None, follow: bool, raw: bool, as_json: bool) -> int:
    """Print what a job writes to its output.

    What it printed, what its C code and its programs wrote; of much the head and the tail. While it runs that can be read
    on its own host only. Control characters are shown as \\x1b and the like unless --raw is given.
    """
    from forkrunner.logs import Logs

    if follow and (as_json or number is not None):
        raise click.UsageError(
            "--follow goes on with each attempt, as text: expected no --json and no --attempt beside it"
        )
    target, given = target_and_id(words)
    with open_store(find_settings(target)) as store:
        logs = Logs(store, find_id(store, given), raw=raw)
        if follow:
            return logs.follow()
        return logs.show(number, as_json=as_json)


def _progress_of(settings: Settings, rows: Sequence[Row]) -> dict[str, dict[str, Any] | None]:
    from forkrunner.job import State

    busy = [row.id for row in rows if row.state is State.BUSY]
    if not busy:
        return {}
    from forkrunner.places import Reader, place

    reader = Reader(place(settings))
    try:
        return dict(reader.get_many(busy))
    finally:
        reader.close()
