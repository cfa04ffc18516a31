"""`run` and `with`: the commands that run jobs, until they are told to stop."""

from __future__ import annotations

import os

import click

from forkrunner.errors import ForkrunnerError
from forkrunner.invocation import (
    ALL_FLAGS,
    FINE,
    collect_as_usual,
    complain,
    flags,
    load_settings,
    need_app,
    only_target,
    usage_error,
    words_argument,
)


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


@click.command(cls=_RunCommand)
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
    from forkrunner import handover, startmail
    from forkrunner.events import Log
    from forkrunner.supervisor import Supervisor

    log = Log(settings.log_level, settings.log_format)
    for warning in settings.warnings:
        log.emit("settings.warning", text=warning)
    supervisor = Supervisor(settings, app, log, lambda code: load_settings(target, code))
    trial = handover.VARIABLE in os.environ
    collect_as_usual()
    try:
        supervisor.run()
    except ForkrunnerError as error:
        # the settings that it had by then: some may be in the code
        told = None if trial else startmail.tell(supervisor.settings, app, error)
        if told:
            complain(told)
        raise
    return FINE


class _WithCommand(click.Command):
    """`with`, which takes what is behind the first `--` for itself."""

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(context), "-- COMMAND…"]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        context.obj = args[at + 1 :]
        return super().parse_args(context, args[:at])


@click.command("with", cls=_WithCommand)
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
