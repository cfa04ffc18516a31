"""The command line: what people and scripts type.

Each command (commands/) finds its application or its database (invocation.py), calls the store, prints (pages.py for
people, jsonpages.py for programs) and returns an exit status. With --json standard output holds JSON and nothing else.
"""

from __future__ import annotations

import click

from forkrunner import __version__
from forkrunner.commands import enqueue, files, install, look, mail, replay, run, status, wish
from forkrunner.invocation import Group, flags


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


# the help lists them in this order, which is that of first need
for _command in (
    run.run,
    run.with_command,
    enqueue.enqueue,
    status.status,
    look.list_jobs,
    look.show,
    look.watch,
    wish.retry,
    wish.cancel,
    wish.pause,
    wish.resume,
    look.log,
    replay.replay,
    files.files,
    files.prune,
    mail.mail,
    install.migrate,
    install.check,
    install.config,
):
    main.add_command(_command)
