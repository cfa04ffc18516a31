"""`replay`: run a past attempt again, here and now, to see how it went wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import click

from forkrunner import identity, process, temporary
from forkrunner.errors import JobNotFound
from forkrunner.invocation import (
    WRONG,
    as_shown,
    complain,
    find_id,
    flags,
    import_app,
    load_settings,
    need_app,
    open_store,
    target_and_id,
    usage_error,
    words_argument,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkrunner.config import Settings
    from forkrunner.records import Attempt, File, Row
    from forkrunner.replaying import Ended


#: In the folder of a replay that is not to be kept.
_LOCK = "alive"
#: Of objects, in messages: others at each time.
_ADDRESS = re.compile(r"(0x|\.\.\.)x?[0-9a-f]+")


@click.command()
@words_argument("[MODULE:RUNNER] ID")
@click.option("--attempt", "number", type=int, metavar="N", help="As this attempt.  [the last one]")
@click.option("--pdb", is_flag=True, help="Debug it where it raises, or breakpoint() stands; no time limits.")
@click.option("--here", is_flag=True, help="In this process, without a fork and limits: for profilers.")
@click.option("--keep", is_flag=True, help="Keep its temporary folder and output files, and say where.")
@click.option(
    "--file",
    "given",
    multiple=True,
    metavar="NAME=PATH",
    help="Take this file for the parameter, as source or sources[1], or the input file, NAME: an attachment that was saved.",
)
@click.option("--task", "name", metavar="NAME", help="The task's name now, if it was renamed.")
@flags("database")
def replay(
    words: tuple[str, ...],
    number: int | None,
    pdb: bool,
    here: bool,
    keep: bool,
    given: tuple[str, ...],
    name: str | None,
) -> int:
    """Run a past attempt again in the foreground: same arguments and files, output on the terminal.

    In a process of its own with the limits of its task. The job is not touched: no row is written, output files stay in a
    temporary folder, and what the task does by current_job().session() is rolled back. What else it does, it does again.

    Exit status: 0 it returned; 1 it raised; 2 it could not be run; 3 it exited; 4 timed out; 5 over its limit of memory or
    CPU time; 6 it left at a safe point; 128 and the number of the signal that ended it, 130 for Ctrl-C.
    """
    from forkrunner.redaction import secrets_in
    from forkrunner.replaying import Part
    from forkrunner.replaying import replay as run

    target, wanted = target_and_id(words)
    app = need_app(load_settings(target))
    settings = load_settings(target)
    runner = import_app(app, settings.preload)
    settings = load_settings(target, runner.code)
    with open_store(settings) as store:
        try:
            row = store.get(find_id(store, wanted))
        except JobNotFound as error:
            complain(str(error))
            return WRONG
        inputs = [file for file in store.files(row.id) if file.place.startswith("arguments.")]
    task = runner.tasks[name or row.task].name  # raises TaskNotFound, with what it knows
    attempt = max(row.attempt, 1) if number is None else number
    if not 1 <= attempt <= max(row.attempt, 1):
        raise usage_error(f"--attempt: expected 1 to {max(row.attempt, 1)}, got {attempt}")
    files = _overrides(given, inputs)
    _clear_away()
    folder = tempfile.mkdtemp(prefix="forkrunner-replay-") if keep else _make_folder()
    part = Part(
        row,
        task,
        attempt,
        folder,
        grace=settings.grace,
        result_limit=settings.result_limit,
        file_limit=settings.file_limit,
        exit_timeout=settings.exit_timeout,
        allow_threads=settings.allow_threads,
        inputs=[(file.place, file.name, file.sha256) for file in inputs],
        files=files,
        pdb=pdb,
        here=here,
    )
    try:
        if here:
            _end_with_signals(None if keep else folder)
        before = _introduce(as_shown(settings, False)(row), task, attempt)
        ended = run(runner, part, _Screen())
        secrets = secrets_in(row.arguments, settings.secret_names)
        _tell(ended, before, settings, inputs, secrets, pdb=pdb, keep=keep)
        return ended.status
    finally:
        if keep:
            _say(f"kept: {part.folder}")
        else:
            temporary.clear_away(part.folder)


def _make_folder() -> str:
    """Make a folder that is known to be in use: its lock is free when the last of us is gone, whatever has ended us."""
    new = tempfile.mkdtemp(prefix=".forkrunner-replay-")
    identity.LifeLock(os.path.join(new, _LOCK))
    # under its name with the lock already: another replay may be clearing away
    above, name = os.path.split(new)
    folder = os.path.join(above, name[1:])
    os.rename(new, folder)
    return folder


def _clear_away() -> None:
    """Remove what was left by replays that were killed, or by tasks that ended the process of a replay themselves."""
    for entry in os.scandir(tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            if (
                entry.name.startswith("forkrunner-replay-")
                and entry.is_dir(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                and identity.LifeLock.free(os.path.join(entry.path, _LOCK), discard=True)
            ):
                temporary.clear_away(entry.path)


def _end_with_signals(folder: str | None) -> None:
    """Have TERM and HUP end this process as they always do, but for the folder, which goes first.

    No exception: the task could catch it, and its ending would count as the task's own.
    """

    def end(number: int, frame: object) -> None:
        if folder is not None:
            temporary.clear_away(folder)
        signal.signal(number, signal.SIG_DFL)
        process.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # what nohup ignores stays so
            signal.signal(number, end)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _overrides(given: Sequence[str], inputs: Sequence[File]) -> dict[str, str]:
    """Read `--file NAME=PATH`; a name that no input file has, or more than one, would be passed over in silence."""
    found = {}
    known: dict[str, list[File]] = {}
    for file in inputs:
        place = _place(file)
        for word in {file.name, place, place.partition("[")[0]}:
            known.setdefault(word, []).append(file)
    for text in given:
        name, equals, path = text.rpartition("=") if text.split("=")[0] not in known else text.partition("=")
        if not equals or not os.path.isfile(path):
            raise usage_error(f"--file: expected NAME=PATH of a file that is there, got {text!r}")
        meant = known.get(name, [])
        if len(meant) != 1:
            names = ", ".join(f"{_place(file)} ({file.name})" for file in meant or inputs) or "none"
            raise usage_error(
                f"--file: {name!r} may be one of several input files; take the first word of: {names}"
                if meant
                else f"--file: the job has no input file {name!r}; it has: {names}"
            )
        found[meant[0].place] = os.path.abspath(path)
    return found


def _place(file: File) -> str:
    """Return where among the parameters a file stands: `source`, `sources[1]`."""
    return file.place.removeprefix("arguments.")


def _introduce(row: Row, task: str, number: int) -> Attempt | None:
    """Say what is replayed, and how that attempt had ended; return it."""
    from forkrunner.terminal import short
    from forkrunner.wording import outcome_sentence

    attempt = next((one for one in row.attempts if one.attempt == number), None)
    if attempt is not None:
        how = f"attempt {number}, which ended: {outcome_sentence(attempt)}"
    elif row.attempt == 0:
        how = f"its first attempt; the job is {row.state} and has not run yet"
    else:
        how = f"attempt {number}, which runs at this moment and goes on"
    _say(f"replay of {row.id} {short(task)}, {short(how, 500)}")
    return attempt


def _tell(
    ended: Ended,
    before: Attempt | None,
    settings: Settings,
    inputs: Sequence[File],
    secrets: Sequence[str],
    *,
    pdb: bool,
    keep: bool,
) -> None:
    """Say how it ended, without these secrets."""
    from forkrunner.job import Outcome
    from forkrunner.records import Attempt
    from forkrunner.redaction import redact_text, scrub
    from forkrunner.terminal import clean_lines, short
    from forkrunner.wording import duration, outcome_sentence

    facts = dict(ended.facts)
    for name in ("error_message", "traceback", "stacks"):
        if facts.get(name):
            facts[name] = scrub(facts[name], secrets)
    if ended.not_ready:
        hint = ""
        if inputs:
            known = ", ".join(f"{_place(file)} ({file.name})" for file in inputs)
            hint = f"; its input files: {known}; one that was saved from a mail: --file NAME=PATH"
        complain(f"it cannot be run again: {facts['error_message']}{hint}")
        return
    if facts.get("traceback") and not pdb:
        _say(clean_lines(facts["traceback"]).rstrip())
    if facts.get("stacks"):
        _say(clean_lines(_own_frames(facts["stacks"])).rstrip())
    names = ("error_type", "error_message", "signal", "exit_status")
    now = Attempt("", 0, ended.outcome, **{name: facts.get(name) for name in names})
    words = f"{outcome_sentence(now)}, after {duration(facts['ran'])}"
    if before is not None:
        telling = ("error_type", "error_message") if ended.outcome is Outcome.RAISED else ("signal",)
        same = before.outcome is now.outcome and all(
            _ADDRESS.sub("", str(getattr(before, name))) == _ADDRESS.sub("", str(getattr(now, name)))
            for name in telling
        )
        words += (
            f": as attempt {before.attempt}"
            if same
            else f"; attempt {before.attempt}: {outcome_sentence(before)}"
        )
    _say(short(words, 2000))
    if ended.outcome is Outcome.DONE and ended.result not in ("", "null"):
        _say(f"result: {short(redact_text(ended.result, settings.secret_names), 2000)}")
    files = facts.get("files", ())
    for file in files if keep else ():
        _say(f"output: {short(file['path'], 2000)}")
    if files and not keep:
        _say(f"{len(files)} output file{'s'[: len(files) > 1]}, which --keep would have kept")


def _own_frames(stacks: str) -> str:
    """Return stacks without what is ours below the task, in each thread, and without the list of extension modules."""
    lines, ours = [], False
    for line in stacks.splitlines():
        if not line.startswith("  "):
            ours = line.startswith("Extension modules:")
        ours = ours or "/forkrunner/understudy.py" in line
        if not ours:
            lines.append(line)
    return "\n".join(lines)


class _Screen:
    """The terminal: what the job writes, and a bar below it on standard error."""

    def __init__(self) -> None:
        self.fd = 1 if os.isatty(1) else 2
        self.has_bar = os.isatty(2)
        self.drawn = ""
        self.at_line_start = True

    def write(self, data: bytes) -> None:
        self._draw("")
        self.at_line_start = data.endswith(b"\n")
        while data:
            data = data[os.write(self.fd, data) :]

    def show(self, progress: dict[str, Any] | None) -> None:
        from forkrunner.terminal import short
        from forkrunner.wording import progress_words

        # not into a line that the job has begun
        if self.has_bar and (self.at_line_start or self.drawn):
            width = shutil.get_terminal_size().columns
            self._draw(short(progress_words(progress, 20), max(width - 1, 20)))

    def _draw(self, words: str) -> None:
        if words != self.drawn:
            self.drawn = words
            os.write(2, f"\r\x1b[K{words}".encode())
