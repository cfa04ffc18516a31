"""`status`: who runs jobs, how many there are, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from forkrunner import clock
from forkrunner.commands.mail import standing_json, standing_words
from forkrunner.config import Settings
from forkrunner.invocation import (
    BAD,
    FINE,
    complain,
    find_settings,
    flags,
    json_flag,
    only_target,
    open_store,
    words_argument,
)

if TYPE_CHECKING:
    from forkrunner.records import SupervisorRow

    #: Queue → state → number of jobs.
    Queues = dict[str, dict[str, int]]
    #: What a keeper says of itself: `keeper.at_work`.
    Keeper = dict[str, Any]


@click.command()
@words_argument("[MODULE:RUNNER]")
@click.option(
    "--check",
    is_flag=True,
    help="For probes: exit status 1 unless a supervisor of this host holds its lease.",
)
@json_flag
@flags("database")
def status(words: tuple[str, ...], check: bool, as_json: bool) -> int:
    """Show who runs jobs and how many there are."""
    settings = find_settings(only_target(words))
    if check:
        return _check_for_supervisor(settings, as_json)
    with open_store(settings) as store:
        supervisors, counts, costs = store.supervisors(), store.counts(), store.costs()
        mails = store.outbox.standing()
    from forkrunner import jsonpages, terminal
    from forkrunner.job import State
    from forkrunner.keeper import at_work

    keeper = at_work(settings)
    database = settings.shown("database")
    queues = {name: {str(state): counts[name].get(state, 0) for state in State} for name in sorted(counts)}
    if as_json:
        rows = [_supervisor_json(row, keeper) for row in supervisors]
        facts = {"database": database, "supervisors": rows, "queues": queues, "tasks": costs}
        facts["mail"] = standing_json(mails)
        print(jsonpages.to_json(facts))
        return FINE
    print(f"Database  {terminal.short(database)}\n")
    if supervisors:
        _print_supervisors(supervisors, keeper)
    else:
        print(f"No supervisor runs; start one: forkrunner run {settings.app or 'MODULE:RUNNER'}")
    print()
    if queues:
        _print_queues(queues, costs)
    else:
        print("No jobs.")
    if lines := standing_words(mails):
        print("", *lines, sep="\n")
    return FINE


def _supervisor_json(row: SupervisorRow, keeper: Keeper | None) -> dict[str, Any]:
    from forkrunner import jsonpages

    ours = keeper is not None and keeper["supervisor"] == row.pid
    return {
        **{name: getattr(row, name) for name in ("id", "host", "pid", "target", "slots", "version")},
        "web": {name: keeper[name] for name in ("pid", "generation", "clients")} if keeper and ours else None,
        "stage": jsonpages.stage_of(row),
        "queues": jsonpages.queues_of(row),
        "molds": jsonpages.molds_json(row),
        "started_at": jsonpages.iso(row.started_at),
        "lease_until": jsonpages.iso(row.lease_until),
    }


def _print_supervisors(supervisors: Sequence[SupervisorRow], keeper: Keeper | None) -> None:
    from forkrunner import jsonpages, terminal, wording

    columns = ("HOST", "PID", "RUNS", "STAGE", "SLOTS", "MOLDS", "SINCE", "LEASE", "VERSION")
    table = terminal.Table(*columns, keep=("PID", "MOLDS"), drop=("VERSION", "SINCE", "HOST"))
    now = clock.utc()
    for row in supervisors:
        lease = row.lease_until and wording.distance(row.lease_until, now)
        over = row.lease_until is not None and row.lease_until < now
        stage = jsonpages.stage_of(row)
        table.add(
            row.host,
            row.pid,
            row.target,
            stage,
            row.slots,
            wording.molds_words(row),
            row.started_at and wording.distance(row.started_at, now),
            f"over {lease}" if over else f"ends {lease}",
            row.version,
            colours={"LEASE": "red" if over else "", "STAGE": "" if stage == "serving" else "yellow"},
        )
    print(table)
    if keeper is not None:
        print(
            f"\nWith the web server: {len(keeper['clients'])} of its processes, generation {keeper['generation']}"
            f" (keeper {keeper['pid']}, supervisor {keeper['supervisor'] or 'ended'})"
        )


def _print_queues(queues: Queues, costs: dict[str, dict[str, Any]]) -> None:
    from forkrunner import pages, terminal
    from forkrunner.asking import COSTS_OF
    from forkrunner.job import State

    states = [str(state) for state in State]
    table = terminal.Table("QUEUE", *map(str.upper, states), drop=("CANCELLED", "DONE"))
    for name, numbers in queues.items():
        table.add(
            name,
            *(f"{numbers[state]:,}" for state in states),
            colours={"FAILED": "red"} if numbers["failed"] else None,
        )
    print(table)
    if costs:
        print(f"\n{pages.costs_of(costs)}\n\np50 / p95 / max of what the newest {COSTS_OF:,} attempts cost")


def _check_for_supervisor(settings: Settings, as_json: bool) -> int:
    """Say whether a supervisor of this host holds its lease."""
    from forkrunner import jsonpages
    from forkrunner.identity import HOST

    with open_store(settings) as store:
        rows = store.supervisors()
    now = clock.utc()
    alive = [
        row for row in rows if row.host == HOST and row.lease_until is not None and row.lease_until > now
    ]
    if as_json:
        print(jsonpages.to_json({"alive": bool(alive), "pids": [row.pid for row in alive]}))
    elif alive:
        print(f"a supervisor runs on {HOST}: pid {', '.join(str(row.pid) for row in alive)}")
    else:
        complain(f"no supervisor runs on {HOST}")
    return FINE if alive else BAD
