"""The commands that an installation needs: `migrate`, `check`, `config`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from forkrunner import clock
from forkrunner.commands.mail import missing
from forkrunner.errors import ForkrunnerError, SchemaError
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
    need_app,
    only_target,
    open_store,
    words_argument,
)
from forkrunner.sources import FROM_DEFAULT

if TYPE_CHECKING:
    from forkrunner.config import Settings
    from forkrunner.store import Store


@click.command()
@words_argument("[MODULE:RUNNER]")
@json_flag
@flags("database")
def migrate(words: tuple[str, ...], as_json: bool) -> int:
    """Make or update the tables in the database.

    All or nothing, and running it again does nothing. An SQLite file needs it only when forkrunner was updated.
    """
    from forkrunner.jsonpages import to_json
    from forkrunner.terminal import short

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


@click.command()
@words_argument("[MODULE:RUNNER]")
@json_flag
@flags(*ALL_FLAGS)
def check(words: tuple[str, ...], as_json: bool) -> int:
    """Say what is wrong, before `run` has to.

    Imports the application, asks the database, memcached and the storage, and shows the tasks. Exit status 1 if there is a problem.
    """
    from forkrunner import jsonpages, safety, terminal, wording
    from forkrunner.application import look_for_trouble, threads_in
    from forkrunner.hooks import run_before_fork
    from forkrunner.places import Reader, place

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
    warnings += missing(settings, tasks)
    reader = Reader(place(settings))
    warnings += [
        f"progress_url: {server} does not answer: {reason}; jobs run without it, and their progress is not seen"
        for server, reason in reader.silent().items()
    ]
    reader.close()
    schema = "of this release"
    with open_store(settings) as store:
        try:
            store.check_schema()
        except SchemaError as error:
            schema = "not of this release"
            problems.append(str(error))
        else:
            problems += _storage_trouble(settings, store)
    database = settings.shown("database")
    if as_json:
        facts: dict[str, Any] = {"target": app, "tasks": tasks, "database": database, "schema": schema}
        facts["unsafe"] = [finding._asdict() for finding in unsafe]
        print(jsonpages.to_json(facts | {"warnings": warnings, "problems": problems}))
        return BAD if problems else FINE
    print(f"Application  {terminal.short(app)} imports in {wording.duration(seconds)}")
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


def _storage_trouble(settings: Settings, store: Store) -> list[str]:
    """Say why no file can be stored, where files are stored at all."""
    from forkrunner.storage import open_storage

    if not settings.storage and "forkrunner.files" not in sys.modules:
        return []
    storage = open_storage(settings, "", store.database_id)
    try:
        storage.try_out()
    except ForkrunnerError as error:
        return [str(error)]
    return []


def _signature(name: str, function: Callable[..., Any]) -> str:
    import inspect

    return f"{name}{inspect.signature(function)}".replace("'", "")


def _options(facts: dict[str, Any]) -> str:
    """Word those options of a task that are not the usual ones."""
    from forkrunner.options import DEFAULTS
    from forkrunner.units import show_seconds, show_size

    words = []
    for name, value in facts.items():
        if name in ("name", "call", "queue") or value == DEFAULTS[name]:
            continue
        show = {"timeout": show_seconds, "grace": show_seconds, "cpu_seconds": show_seconds}
        shown = (show | {"memory": show_size, "file_size": show_size}).get(name, str)(value)
        words.append(f"{name} {shown}")
    return ", ".join(words)


@click.command()
@words_argument("[MODULE:RUNNER]")
@json_flag
@flags(*ALL_FLAGS)
def config(words: tuple[str, ...], as_json: bool) -> int:
    """Show each setting and where it comes from.

    Imports the application, if there is one, because its code may set some.
    """
    from forkrunner import jsonpages, terminal
    from forkrunner.config import explain

    target = only_target(words)
    settings = load_settings(target)
    if settings.app is not None:
        settings = load_settings(target, import_app(settings.app).code)
    if as_json:
        print(
            jsonpages.to_json(
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
