"""`enqueue`: make a job, and wait for its end if wanted."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from forkrunner.invocation import (
    BAD,
    FINE,
    F,
    as_shown,
    complain,
    flags,
    import_app,
    json_flag,
    load_settings,
    need_app,
    secrets_flag,
    target_and_call,
    usage_error,
    words_argument,
)
from forkrunner.sources import FROM_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkrunner.handle import Job
    from forkrunner.records import Row
    from forkrunner.runner import Runner


#: Option of a single call → what stands for its value, what it does; those that the table of the README marks.
OVERRIDES = {
    "timeout": ("DURATION", "End it when it has run so long: 90, 10m, 1h."),
    "grace": ("DURATION", "Time between TERM and KILL when it is ended."),
    "memory": ("SIZE", "What it and all that it starts may have: 512MiB, 2GB."),
    "cpu_seconds": ("DURATION", "CPU time that it and all that it starts may use."),
    "open_files": ("N", "Files that it may have open."),
    "file_size": ("SIZE", "What a file may grow to."),
    "nice": ("N", "How much it stands back behind others, up to 19."),
    "temporary_folder": (None, "Give it a folder of its own as TMPDIR."),
    "max_attempts": ("N", "How often it is tried when it raises, exits or breaks a limit."),
    "max_crashes": ("N", "How often it may take its process along."),
    "backoff": ("DURATION,…", "Wait before the second try, doubled each time; or one wait for each."),
}


def _overrides(function: F) -> F:
    for name, (metavar, words) in reversed(OVERRIDES.items()):
        flag = f"--{name.replace('_', '-')}"
        if metavar is None:
            option = click.option(flag, name, is_flag=True, help=words)
        else:
            option = click.option(flag, name, metavar=metavar, help=f"{words}  [the task's]")
        function = option(function)
    return function


@click.command()
@words_argument("[MODULE:RUNNER] TASK [JSON]")
@click.option("--queue", metavar="NAME", help="The queue to put it in.  [the task's]")
@click.option("--priority", type=int, metavar="N", help="Higher numbers start first.  [the task's]")
@click.option("--delay", metavar="SECONDS", help="Start it so much later: 90, 500ms, 10m, 1h.")
@click.option(
    "--run-at", metavar="TIME", help="Start it not before 2030-01-31T10:00, local time, or with +02:00 or Z."
)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="NAME=PATH",
    help="A file as the argument NAME; - is standard input. May be given again, for the same NAME if it takes several.",
)
@_overrides
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
    files: tuple[str, ...],
    wait: bool,
    secrets: bool,
    as_json: bool,
    **overrides: str | bool | None,
) -> int:
    """Make a job of a task and print its id.

    The arguments are one JSON object, parameter name → value; `-` reads it from standard input. They are checked
    against the task. With --database and no application they are not, and any name is taken. Files are given by --file,
    as in `forkrunner enqueue jobs:runner convert '{"scale": 2}' --file source=shot.txt`. `none` as the value of a limit
    takes the task's away.
    """
    from forkrunner.payload import Misfit, parse
    from forkrunner.runner import Runner

    target, task, text = target_and_call(words)
    settings = load_settings(target)
    try:
        given = parse(_read_stdin() if text == "-" else text)
    except Misfit as misfit:
        raise usage_error(f"arguments: {misfit.message}; quote it as in '{{\"scale\": 2}}'") from None
    if settings.app is None and settings.source("database") == FROM_DEFAULT:
        need_app(settings, ", or name the database with --database")
    runner = Runner() if settings.app is None else import_app(settings.app)
    if settings.app is not None:
        _ = runner.tasks[task]  # raises TaskNotFound, with what it knows
    given |= _files(files, given, runner, task)
    at = None if run_at is None else _moment(run_at)
    options = {name: _value(text) for name, text in overrides.items() if text not in (None, False)}
    try:
        job = runner.enqueue(
            task, given, queue=queue, priority=priority, delay=delay, run_at=at, options=options
        )
        if not wait:
            _print_enqueued(job, as_json)
            return FINE
        if not as_json:
            _print_enqueued(job, as_json)
            sys.stdout.flush()
        return _wait(runner, job, as_json, as_shown(settings, secrets))
    finally:
        runner.close()


def _files(options: tuple[str, ...], given: dict[str, Any], runner: Runner, task: str) -> dict[str, Any]:
    """Return the arguments that are files."""
    if not options:
        return {}
    from forkrunner.files import InputFile

    found: dict[str, list[InputFile]] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise usage_error(f"--file: expected NAME=PATH, as source=shot.txt, got {option!r}")
        if name in given:
            raise usage_error(f"argument {name!r} is given twice, in the JSON and with --file")
        if path == "-":
            file = InputFile.from_stream(sys.stdin.buffer, name="stdin")
        else:
            # a link that somebody has typed is meant
            file = InputFile.from_path(os.path.realpath(path), name=os.path.basename(path))
        found.setdefault(name, []).append(file)
    kinds = runner.tasks[task].signature.kinds if task in runner.tasks else {}
    several = {
        name for name, each in found.items() if len(each) > 1 or str(kinds.get(name)).startswith("list[")
    }
    return {name: each if name in several else each[0] for name, each in found.items()}


def _value(text: str | bool | None) -> Any:
    """Return what was typed as the value of an option of a task, which is checked where all of them are."""
    if not isinstance(text, str):
        return text
    if "," in text:
        return [_value(part) for part in text.split(",")]
    text = text.strip()
    if text == "none":
        return None
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _print_enqueued(job: Job[Any], as_json: bool) -> None:
    from forkrunner.jsonpages import to_json

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


def _wait(runner: Runner, job: Job[Any], as_json: bool, shown: Callable[[Row], Row]) -> int:
    """Wait for the end of a job, with its progress if somebody looks; return the exit status."""
    from forkrunner import jsonpages, terminal, wording
    from forkrunner.errors import WaitTimeout
    from forkrunner.job import State

    watched = sys.stderr is not None and sys.stderr.isatty()
    erase = "\r\x1b[K" if watched else ""
    while True:
        try:
            job.wait(timeout=0.25 if watched else None)
            break
        except WaitTimeout:
            words = terminal.short(f"{job.state} {wording.progress_words(job.progress)}", 70)
            print(f"{erase}{words}", end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(erase, end="", file=sys.stderr)
            complain(f"the job goes on; `forkrunner cancel {job.id}` ends it")
            raise
    print(erase, end="", file=sys.stderr, flush=True)
    row = shown(runner.store.get(job.id))
    if as_json:
        print(jsonpages.to_json(jsonpages.page_json(row)))
    else:
        reason = f": {row.error}" if row.error and row.state is not State.DONE else ""
        time = wording.took(row.started_at, row.finished_at)
        line = f"{row.state}{reason}" + (f" after {time}" if time else "")
        print(terminal.short(line, 2000), file=sys.stderr)
    return FINE if row.state is State.DONE else BAD
