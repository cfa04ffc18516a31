"""The command line: what people and scripts type.

Each command finds its application or its database (invocation.py), calls the store, prints (terminal.py says
what) and returns an exit status. With --json standard output holds JSON and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from forkrunner import __version__, clock
from forkrunner.config import FROM_DEFAULT, Settings
from forkrunner.errors import ForkrunnerError, JobNotFound, JobStateError, SchemaError, StoreUnavailable
from forkrunner.invocation import (
    ALL_FLAGS,
    BAD,
    FINE,
    Group,
    complain,
    find_id,
    find_settings,
    flags,
    import_app,
    json_flag,
    load_settings,
    need_app,
    only_target,
    open_store,
    secrets_flag,
    target_and_call,
    target_and_id,
    target_and_ids,
    usage_error,
    user_and_host,
    words_argument,
)

if TYPE_CHECKING:
    from forkrunner.handle import Job
    from forkrunner.job import Row
    from forkrunner.runner import Runner
    from forkrunner.store import Store


def _progress_of(settings: Settings, rows: Sequence[Row]) -> dict[str, dict[str, Any] | None]:
    from forkrunner.job import State

    busy = [row.id for row in rows if row.state is State.BUSY]
    if not busy:
        return {}
    from forkrunner.progress import Reader, place

    reader = Reader(place(settings))
    try:
        return dict(reader.get_many(busy))
    finally:
        reader.close()


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 fine; 1 what was asked about is bad (no such job, the job failed, check found problems);"
    " 2 usage, settings, application or database.",
)
@click.version_option(__version__, message="forkrunner %(version)s")
@flags("database")
def main() -> None:
    """Background jobs beside any Python web application; the database is the queue.

    Every command takes the application first, as MODULE:RUNNER; MODULE alone means MODULE:runner. It may be left
    out if FORKRUNNER_APP names it, or `app` in forkrunner.toml. With --database or FORKRUNNER_DATABASE most
    commands work without the application.

    \b
        forkrunner run jobs:runner --slots 4
        forkrunner enqueue jobs:runner convert '{"scale": 2}'
        forkrunner list jobs:runner
    """


class _RunCommand(click.Command):
    """`run`, whose help ends with the signals."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        import signal

        from forkrunner.orders import SIGNALS

        with formatter.section("Signals"):
            rows = [
                (signal.Signals(n).name[3:], text) for n, (_, text) in SIGNALS.items() if n != signal.SIGCHLD
            ]
            formatter.write_dl(rows)


@main.command(cls=_RunCommand)
@words_argument("[MODULE:RUNNER]")
@flags(*ALL_FLAGS)
def run(words: tuple[str, ...]) -> int:
    """Run jobs until a signal ends it.

    Any number of these may share a database, on one host or many. Each flag is also a variable, as
    FORKRUNNER_SLOTS, a keyword of Runner(...), and a key in forkrunner.toml.
    """
    target = only_target(words)
    settings = load_settings(target)
    app = need_app(settings)
    keeper = os.environ.pop("FORKRUNNER_KEEPER", None)
    if keeper is not None:
        from forkrunner.process import tie_to

        tie_to(int(keeper))
    # what is wrong with the settings is said before anything heavy is loaded
    from forkrunner.events import Log
    from forkrunner.supervisor import Supervisor

    log = Log(settings.log_level, settings.log_format)
    for warning in settings.warnings:
        log.emit("settings.warning", text=warning)
    Supervisor(settings, app, log, lambda code: load_settings(target, code)).run()
    return FINE


class _WithCommand(click.Command):
    """`with`, which takes what is behind the first `--` for itself."""

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(context), "-- COMMAND…"]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        context.obj = args[at + 1 :]
        return super().parse_args(context, args[:at])


@main.command("with", cls=_WithCommand)
@words_argument("[MODULE:RUNNER]")
@flags(*ALL_FLAGS)
@click.pass_obj
def with_command(command: list[str], words: tuple[str, ...]) -> int:
    """Run jobs and a command beside each other: one command for a container.

    As in `forkrunner with jobs:runner -- gunicorn app:app`. When either ends the other is stopped, and the exit status is that
    of who ended first, or of the command when a signal has ended both. Signals are passed on: TERM, INT, QUIT and HUP to both,
    the others to the command. It may be process 1.
    """
    from forkrunner.alongside import Alongside

    settings = load_settings(only_target(words))
    app = need_app(settings)
    if not command:
        raise usage_error(
            "expected a command behind --, as in `forkrunner with jobs:runner -- gunicorn app:app`"
        )
    return Alongside(app, command, settings.grace_period).run()


@main.command()
@words_argument("[MODULE:RUNNER] TASK [JSON]")
@click.option("--queue", metavar="NAME", help="The queue to put it in.  [the task's]")
@click.option("--priority", type=int, metavar="N", help="Higher numbers start first.  [the task's]")
@click.option("--delay", metavar="SECONDS", help="Start it so much later: 90, 500ms, 10m, 1h.")
@click.option(
    "--run-at", metavar="TIME", help="Start it not before 2030-01-31T10:00, local time, or with +02:00 or Z."
)
@click.option("--wait", is_flag=True, help="Wait for its end; exit status 1 if it is not done then.")
@secrets_flag
@json_flag
@flags("database")
def enqueue(
    words: tuple[str, ...],
    queue: str | None,
    priority: int | None,
    delay: str | None,
    run_at: str | None,
    wait: bool,
    secrets: bool,
    as_json: bool,
) -> int:
    """Make a job of a task and print its id.

    The arguments are one JSON object, parameter name → value; `-` reads it from standard input. They are checked
    against the task. With --database and no application they are not, and any name is taken.
    """
    from forkrunner import arguments
    from forkrunner.runner import Runner

    target, task, text = target_and_call(words)
    settings = load_settings(target)
    try:
        given = arguments.parse(_read_stdin() if text == "-" else text)
    except arguments.Misfit as misfit:
        raise usage_error(f"arguments: {misfit.message}; quote it as in '{{\"scale\": 2}}'") from None
    if settings.app is None and settings.source("database") == FROM_DEFAULT:
        need_app(settings, ", or name the database with --database")
    runner = Runner() if settings.app is None else import_app(settings.app)
    if settings.app is not None:
        _ = runner.tasks[task]  # raises TaskNotFound, with what it knows
    at = None if run_at is None else _moment(run_at)
    try:
        job = runner.enqueue(task, given, queue=queue, priority=priority, delay=delay, run_at=at)
        if not wait:
            _print_enqueued(job, as_json)
            return FINE
        if not as_json:
            _print_enqueued(job, as_json)
            sys.stdout.flush()
        return _wait(runner, job, as_json, secrets)
    finally:
        runner.close()


def _print_enqueued(job: Job[Any], as_json: bool) -> None:
    from forkrunner.terminal import to_json

    if as_json:
        print(to_json({"id": job.id}))
    else:
        print(job.id)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise usage_error(
            f"standard input: expected UTF-8, got something else at byte {error.start}"
        ) from None


def _moment(text: str) -> Any:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise usage_error(
            f"--run-at: expected a time as 2030-01-31T10:00 or 2030-01-31T10:00Z, got {text!r}"
        ) from None


def _wait(runner: Runner, job: Job[Any], as_json: bool, secrets: bool) -> int:
    """Wait for the end of a job, with its progress if somebody looks; return the exit status."""
    from forkrunner import terminal
    from forkrunner.errors import WaitTimeout
    from forkrunner.job import State

    watched = sys.stderr is not None and sys.stderr.isatty()
    erase = "\r\x1b[K" if watched else ""
    while True:
        try:
            job.wait(timeout=0.25 if watched else None)
            break
        except WaitTimeout:
            words = terminal.short(f"{job.state} {terminal.progress_words(job.progress)}", 70)
            print(f"{erase}{words}", end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(erase, end="", file=sys.stderr)
            complain(f"the job goes on; `forkrunner cancel {job.id}` ends it")
            raise
    print(erase, end="", file=sys.stderr, flush=True)
    row = runner.store.get(job.id)
    if as_json:
        print(terminal.to_json(terminal.page_json(row, secrets=secrets)))
    else:
        reason = f": {row.error}" if row.error and row.state is not State.DONE else ""
        time = terminal.took(row.started_at, row.finished_at)
        line = f"{row.state}{reason}" + (f" after {time}" if time else "")
        print(terminal.short(line, 2000), file=sys.stderr)
    return FINE if row.state is State.DONE else BAD


def _check_for_supervisor(settings: Settings, as_json: bool) -> int:
    """Say whether a supervisor of this host holds its lease."""
    from forkrunner import terminal
    from forkrunner.identity import HOST

    with open_store(settings) as store:
        rows = store.supervisors()
    now = clock.utc()
    alive = [
        row for row in rows if row.host == HOST and row.lease_until is not None and row.lease_until > now
    ]
    if as_json:
        print(terminal.to_json({"alive": bool(alive), "pids": [row.pid for row in alive]}))
    elif alive:
        print(f"a supervisor runs on {HOST}: pid {', '.join(str(row.pid) for row in alive)}")
    else:
        complain(f"no supervisor runs on {HOST}")
    return FINE if alive else BAD


@main.command()
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
    from forkrunner import terminal
    from forkrunner.job import State
    from forkrunner.keeper import at_work
    from forkrunner.store import COSTS_OF

    keeper = at_work(settings)
    now = clock.utc()
    states = [str(state) for state in State]
    queues = {name: {state: counts[name].get(state, 0) for state in states} for name in sorted(counts)}
    if as_json:
        names = ("id", "host", "pid", "target", "slots", "version")
        rows = [{name: getattr(row, name) for name in names} for row in supervisors]
        for shown, row in zip(rows, supervisors, strict=True):
            ours = keeper is not None and keeper["supervisor"] == row.pid
            shown |= {
                "web": {name: keeper[name] for name in ("pid", "generation", "clients")}
                if keeper and ours
                else None,
                "molds": terminal.molds_json(row),
                "started_at": terminal.iso(row.started_at),
                "lease_until": terminal.iso(row.lease_until),
            }
        facts = {
            "database": settings.shown("database"),
            "supervisors": rows,
            "queues": queues,
            "tasks": costs,
        }
        print(terminal.to_json(facts))
        return FINE
    print(f"Database  {terminal.short(settings.shown('database'))}\n")
    if supervisors:
        table = terminal.Table(
            "HOST",
            "PID",
            "RUNS",
            "SLOTS",
            "MOLDS",
            "SINCE",
            "LEASE",
            "VERSION",
            keep=("PID", "MOLDS"),
            drop=("VERSION", "SINCE", "HOST"),
        )
        for row in supervisors:
            since = row.started_at and terminal.distance(row.started_at, now)
            lease = row.lease_until and terminal.distance(row.lease_until, now)
            over = row.lease_until is not None and row.lease_until < now
            cells = (
                row.host,
                row.pid,
                row.target,
                row.slots,
                terminal.molds_words(row),
                since,
                f"over {lease}" if over else f"ends {lease}",
                row.version,
            )
            table.add(*cells, colours={"LEASE": "red"} if over else None)
        print(table)
        if keeper is not None:
            clients = len(keeper["clients"])
            print(
                f"\nWith the web server: {clients} of its processes, generation {keeper['generation']}"
                f" (keeper {keeper['pid']}, supervisor {keeper['supervisor'] or 'ended'})"
            )
    else:
        print(f"No supervisor runs; start one: forkrunner run {settings.app or 'MODULE:RUNNER'}")
    print()
    if not queues:
        print("No jobs.")
        return FINE
    table = terminal.Table("QUEUE", *map(str.upper, states), drop=("CANCELLED", "DONE"))
    for name, numbers in queues.items():
        table.add(
            name,
            *(f"{numbers[state]:,}" for state in states),
            colours={"FAILED": "red"} if numbers["failed"] else None,
        )
    print(table)
    if costs:
        print(
            f"\n{terminal.costs_of(costs)}\n\np50 / p95 / max of what the newest {COSTS_OF:,} attempts cost"
        )
    return FINE


@main.command("list")
@words_argument("[MODULE:RUNNER]")
@click.option(
    "--state", type=click.Choice(["pending", "busy", "done", "failed", "cancelled"]), help="Only these."
)
@click.option("--queue", metavar="NAME", help="Only those of this queue.")
@click.option("--task", metavar="NAME", help="Only those of this task.")
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
    limit: int,
    secrets: bool,
    as_json: bool,
) -> int:
    """List jobs, the newest first."""
    from forkrunner import terminal

    settings = find_settings(only_target(words))
    with open_store(settings) as store:
        rows = store.list(state=state, queue=queue, task=task, limit=limit)
    progress = _progress_of(settings, rows)
    if as_json:
        print(
            terminal.to_json(
                [terminal.job_json(row, secrets=secrets, progress=progress.get(row.id)) for row in rows]
            )
        )
    elif rows:
        print(terminal.table_of(rows, progress, clock.utc()))
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


@main.command()
@words_argument("[MODULE:RUNNER] ID")
@secrets_flag
@json_flag
@flags("database")
def show(words: tuple[str, ...], secrets: bool, as_json: bool) -> int:
    """Show all about one job.

    Its arguments, its result, how each attempt ended and what that cost.
    Here and elsewhere an ID may be its first or last characters, at least 6.
    """
    from forkrunner import terminal

    target, given = target_and_id(words)
    settings = find_settings(target)
    with open_store(settings) as store:
        row = store.get(find_id(store, given))
    progress = _progress_of(settings, [row]).get(row.id)
    if as_json:
        print(terminal.to_json(terminal.page_json(row, secrets=secrets, progress=progress)))
    else:
        print(*terminal.page_of(row, progress, clock.utc(), secrets=secrets), sep="\n")
    return FINE


@main.command()
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
    from forkrunner.progress import Reader, place
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


def _for_each_id(words: tuple[str, ...], as_json: bool, act: Callable[[Store, str], tuple[str, str]]) -> int:
    """Do something to each job; one that refuses does not keep the others from it."""
    from forkrunner.terminal import to_json

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


@main.command()
@words_argument("[MODULE:RUNNER] ID…")
@json_flag
@flags("database")
def retry(words: tuple[str, ...], as_json: bool) -> int:
    """Run ended jobs again, with all their tries before them."""

    def act(store: Store, job_id: str) -> tuple[str, str]:
        store.retry(job_id)
        return "pending", "is pending again"

    return _for_each_id(words, as_json, act)


@main.command()
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


@main.command()
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


@main.command()
@words_argument("[MODULE:RUNNER] ID…")
@json_flag
@flags("database")
def resume(words: tuple[str, ...], as_json: bool) -> int:
    """Let paused jobs go on."""

    def act(store: Store, job_id: str) -> tuple[str, str]:
        store.resume(job_id)
        return "busy", "is to go on"

    return _for_each_id(words, as_json, act)


@main.command()
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


@main.command()
@words_argument("[MODULE:RUNNER]")
@json_flag
@flags("database")
def migrate(words: tuple[str, ...], as_json: bool) -> int:
    """Make or update the tables in the database.

    All or nothing, and running it again does nothing. An SQLite file needs it only when forkrunner was updated.
    """
    from forkrunner.terminal import short, to_json

    settings = find_settings(only_target(words))
    with open_store(settings) as store:
        before, after = store.migrate()
    database = settings.shown("database")
    if as_json:
        print(to_json({"database": database, "from": before, "to": after}))
    elif before == after:
        print(f"{short(database)} is of this release already (revision {after})")
    else:
        print(
            f"{short(database)}: {'made the tables' if before is None else f'from revision {before}'}, now at {after}"
        )
    return FINE


@main.command()
@words_argument("[MODULE:RUNNER]")
@json_flag
@flags(*ALL_FLAGS)
def check(words: tuple[str, ...], as_json: bool) -> int:
    """Say what is wrong, before `run` has to.

    Imports the application, asks the database, and shows the tasks. Exit status 1 if there is a problem.
    """
    from forkrunner import safety, terminal
    from forkrunner.application import look_for_trouble, threads_in
    from forkrunner.hooks import run_before_fork

    target = only_target(words)
    settings = load_settings(target)
    app = need_app(settings)
    start, watch = clock.monotonic(), safety.Watch()
    runner = import_app(app, settings.preload, watch)
    seconds = clock.monotonic() - start
    run_before_fork(runner.hooks.before_fork, app, watch)
    settings = load_settings(target, runner.code)
    warnings, problems = list(settings.warnings), list[str]()
    unsafe = look_for_trouble(watch)
    threads = None if settings.allow_threads else threads_in(unsafe)
    if threads:
        problems.append(f"{app}: {threads}")
    warnings += [
        safety.sentence(*finding) for finding in unsafe if not (threads and finding.kind == "thread")
    ]
    tasks = []
    for task in runner.tasks.values():
        try:
            task.prepare()
        except ForkrunnerError as error:
            problems.append(str(error))
        tasks.append({"name": task.name, "call": _signature(task.name, task.function), **task.policy()})
    if not tasks:
        warnings.append(f"{app} has no tasks: nothing can run")
    schema = "of this release"
    with open_store(settings) as store:
        try:
            store.check_schema()
        except SchemaError as error:
            schema = "not of this release"
            problems.append(str(error))
    database = settings.shown("database")
    if as_json:
        facts: dict[str, Any] = {"target": app, "tasks": tasks, "database": database, "schema": schema}
        facts["unsafe"] = [finding._asdict() for finding in unsafe]
        print(terminal.to_json(facts | {"warnings": warnings, "problems": problems}))
        return BAD if problems else FINE
    print(f"Application  {terminal.short(app)} imports in {terminal.duration(seconds)}")
    print(f"Database     {terminal.short(database)} answers, its tables are {schema}")
    if tasks:
        print()
        table = terminal.Table("TASK", "QUEUE", "OPTIONS", drop=("QUEUE",))
        for facts in tasks:
            table.add(facts["call"], facts["queue"], _options(facts))
        print(table)
    for kind, lines in (("warning", warnings), ("problem", problems)):
        for line in lines:
            print(
                f"{terminal.paint(kind, 'red' if kind == 'problem' else 'yellow')}: {terminal.short(line, 2000)}"
            )
    if not problems:
        print("\nNo problems." if not warnings else "")
    return BAD if problems else FINE


def _signature(name: str, function: Callable[..., Any]) -> str:
    import inspect

    return f"{name}{inspect.signature(function)}".replace("'", "")


def _options(facts: dict[str, Any]) -> str:
    """Word those options of a task that are not the usual ones."""
    from forkrunner.tasks import DEFAULTS
    from forkrunner.units import show_seconds, show_size

    words = []
    for name, value in facts.items():
        if name in ("name", "call", "queue") or value == DEFAULTS[name]:
            continue
        show = {"timeout": show_seconds, "grace": show_seconds, "cpu_seconds": show_seconds}
        shown = (show | {"memory": show_size, "file_size": show_size}).get(name, str)(value)
        words.append(f"{name} {shown}")
    return ", ".join(words)


@main.command()
@words_argument("[MODULE:RUNNER]")
@json_flag
@flags(*ALL_FLAGS)
def config(words: tuple[str, ...], as_json: bool) -> int:
    """Show each setting and where it comes from.

    Imports the application, if there is one, because its code may set some.
    """
    from forkrunner import terminal
    from forkrunner.config import explain

    target = only_target(words)
    settings = load_settings(target)
    if settings.app is not None:
        settings = load_settings(target, import_app(settings.app).code)
    if as_json:
        print(
            terminal.to_json(
                {name: {"value": value, "from": source} for name, value, source in explain(settings)}
            )
        )
    else:
        table = terminal.Table("SETTING", "VALUE", "FROM", keep=("SETTING",), drop=("FROM",))
        for name, value, source in explain(settings):
            table.add(name, value, source, colours={"FROM": "dim" if source == FROM_DEFAULT else "green"})
        print(table)
    for warning in settings.warnings:
        complain(warning)
    return FINE
