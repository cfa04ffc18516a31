"""The commands about files, and about what is kept: `prune`."""

from __future__ import annotations

import click

from forkrunner.invocation import (
    FINE,
    flags,
    import_app,
    json_flag,
    load_settings,
    only_target,
    open_store,
    usage_error,
    words_argument,
)
from forkrunner.sources import FROM_DEFAULT


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

    target = only_target(words)
    settings = load_settings(target)
    if settings.app is not None:
        # its code may say how long jobs are kept
        settings = load_settings(target, import_app(settings.app).code)
    elif settings.source("retention") == FROM_DEFAULT or settings.source("retention_failed") == FROM_DEFAULT:
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
