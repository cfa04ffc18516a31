"""The commands about files, and about what is kept: `files`, `prune`."""

from __future__ import annotations

from pathlib import Path

import click

from forkrunner.invocation import (
    FINE,
    find_id,
    flags,
    json_flag,
    only_target,
    open_store,
    target_and_id,
    usage_error,
    whole_settings,
    words_argument,
)
from forkrunner.sources import FROM_DEFAULT


@click.command()
@words_argument("[MODULE:RUNNER] ID")
@click.option(
    "--save",
    "folder",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Copy them there; it is made.",
)
@json_flag
@flags("database", "storage")
def files(words: tuple[str, ...], folder: str | None, as_json: bool) -> int:
    """List the files of a job, those of its arguments and of its result, and where they lie.

    With --save they are copied into a folder, under their names made safe; none that is there is overwritten.
    """
    from forkrunner import terminal
    from forkrunner.files import save_new
    from forkrunner.jsonpages import FILE, to_json
    from forkrunner.storage import open_storage
    from forkrunner.units import show_bytes

    target, given = target_and_id(words)
    settings = whole_settings(target)
    storage = open_storage(settings, "")
    with open_store(settings) as store:
        found = store.files(store.get(find_id(store, given)).id)
    saved = [str(save_new(file, storage, Path(folder))) for file in found] if folder is not None else []
    lies = [storage.place(file.sha256) for file in found]
    if as_json:
        rows = [{name: getattr(file, name) for name in FILE} for file in found]
        for number, row in enumerate(rows):
            row |= {"lies": lies[number], **({"saved": saved[number]} if saved else {})}
        print(to_json(rows))
    elif not found:
        print("no files")
    else:
        table = terminal.Table(
            "PLACE", "NAME", "SIZE", "SAVED" if saved else "LIES IN", keep=("PLACE",), drop=("SIZE",)
        )
        for file, where in zip(found, saved or lies, strict=True):
            table.add(file.place, file.name, show_bytes(file.size), where)
        print(table)
    return FINE


@click.command()
@words_argument("[MODULE:RUNNER]")
@click.option("--dry-run", is_flag=True, help="Only say how many jobs would go.")
@json_flag
@flags("database", "storage", "retention", "retention_failed")
def prune(words: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Delete what is kept no longer.

    Jobs that ended longer ago than `retention` and `retention_failed`, with their attempts and files. Supervisors do it too,
    each `prune_interval`. What nobody has any more is thrown into a bin in the storage first, and leaves the disk an hour later.
    """
    from forkrunner.jsonpages import to_json
    from forkrunner.pruning import kept, prune
    from forkrunner.storage import open_storage

    settings = whole_settings(only_target(words))
    for name in ("retention", "retention_failed"):
        if settings.app is None and settings.source(name) == FROM_DEFAULT:
            raise usage_error(
                "name the application, whose code may say how long jobs are kept, or give --retention and --retention-failed"
            )
    with open_store(settings) as store:
        if dry_run:
            old = store.count_old(*kept(settings))
            print(to_json({"jobs": old}) if as_json else f"{old:,} jobs would go")
            return FINE
        done = prune(store, open_storage(settings, "", store.database_id), settings)
    if as_json:
        print(to_json({"jobs": done.jobs, "files": done.thrown_away, "deleted": done.deleted}))
    else:
        print(
            f"deleted {done.jobs:,} jobs; threw away {done.thrown_away:,} files, which leave the disk in an hour, and deleted {done.deleted:,}"
        )
    return FINE
