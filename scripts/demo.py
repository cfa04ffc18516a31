"""Show what forkrunner does: convert some files as jobs, watch them, and print what each run cost.

Called by scripts/demo. Starts the real supervisor as a process, on an SQLite file in a new folder, without any
setting; talks to it by the database only, as a web application would. Ends it again, however this ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from forkrunner import ForkrunnerError, State
from forkrunner.terminal import short
from forkrunner.units import show_bytes
from forkrunner.wording import duration
from trackconvert import FORMATS

if TYPE_CHECKING:
    from forkrunner import Job

SAMPLES = Path(__file__).parent.parent / "contrib" / "trackconvert" / "samples"
TARGET = "trackconvert.jobs:runner"
#: Conversions of each file.
_EACH = 2
#: Seconds that a small file takes at least, to be seen on the screen.
_DWELL = 1.2
#: A larger file takes long enough by itself, bytes.
_SMALL = 1_000_000
_POLL = 0.1
_SUFFIXES = {"nuke": "nk", "pftrack4": "2dt", "pftrack5": "2dt"}
_ENDED = (State.DONE, State.FAILED, State.CANCELLED)


class Stopped(Exception):
    """The supervisor ended before its jobs did."""


class Conversion:
    """One job, and what is known of it."""

    def __init__(self, source: str, target: str, job: Job[dict[str, Any]]) -> None:
        #: As the user has named it.
        self.source = source
        self.target = target
        self.job = job
        self.label = f"{short(os.path.basename(source), 28)} to {target}"
        self.state = State.PENDING
        self.fraction = 0.0
        self.message = ""

    def look(self) -> None:
        """Ask how far it is: the database for its state, and the progress for the rest."""
        if self.state in _ENDED:
            return
        self.state = self.job.refresh().state
        said = self.job.progress
        if self.state is State.DONE:
            self.fraction, self.message = 1.0, "done"
        elif self.state is State.FAILED:
            self.message = "failed"
        elif said is not None and said["fraction"] is not None:  # before its first word nobody knows
            self.fraction, self.message = said["fraction"], short(said["message"] or "", 60)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Convert files of tracks as background jobs and watch them; or, with --web, serve a site that does.",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help="instead of the ones that ship")
    given = parser.parse_args(arguments).files
    for file in given:
        reason = _unreadable(file)
        if reason:
            print(f"scripts/demo: {file}: {reason}", file=sys.stderr)
            return 2
    files = given or sorted(str(path) for path in SAMPLES.iterdir() if path.stem != "broken")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no … is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    work = Path(tempfile.mkdtemp(prefix="forkrunner-demo-"))
    try:
        return run([(file, os.path.abspath(file)) for file in files], work)
    except KeyboardInterrupt:
        shutil.rmtree(work, ignore_errors=True)
        print("\nInterrupted: nothing is left running, and nothing is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read has had enough; the interpreter would complain about what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (Stopped, ForkrunnerError) as error:
        print(f"scripts/demo: {error}\nIts log: {work / 'supervisor.log'}", file=sys.stderr)
        return 1


def _unreadable(file: str) -> str | None:
    try:
        with open(file, "rb") as stream:
            stream.read(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run(files: list[tuple[str, str]], work: Path) -> int:
    """Convert `files`, (as named, path), in the folder `work`; return the exit status."""
    # what the user has set for other applications must not reach this one: a database, for instance
    for name in [name for name in os.environ if name.startswith("FORKRUNNER_")]:
        del os.environ[name]
    # a Runner takes the folder that is current when it is made
    os.chdir(work)
    from forkrunner import InputFile
    from trackconvert.jobs import convert, runner

    results = work / "results"
    results.mkdir()
    print(f"Starting a supervisor: forkrunner run {TARGET}", flush=True)
    with _supervisor(work) as supervisor:
        conversions = []
        outputs: dict[str, Path] = {}
        slow = False
        for number, (name, path) in enumerate(files):
            own = _format_of(path)
            seconds = _DWELL if os.path.getsize(path) <= _SMALL else 0.0
            slow = slow or seconds > 0
            others = sorted(FORMATS.keys() - {own})
            for step in range(_EACH):
                target = others[(number + step * len(others) // _EACH) % len(others)]
                stem = Path(path).stem.removesuffix(f".{own}")
                output = results / f"{stem}.{target}.{_SUFFIXES.get(target, 'txt')}"
                if output in outputs.values():  # two files of one name, from two folders
                    output = output.with_name(f"{number + 1}-{output.name}")
                file = InputFile.from_path(os.path.realpath(path), name=name)
                job = convert.enqueue(file, target, demo_seconds=seconds)
                conversions.append(Conversion(name, target, job))
                outputs[job.id] = output
        dwell = " The files are small, so each job dwells on its trackers for a moment." if slow else ""
        print(f"{len(conversions)} conversions, a process each.{dwell}\n")
        watch = _watch_bars if _is_terminal() else _watch_lines
        watch(conversions, supervisor)
        for each in conversions:
            for file in each.job.files:
                if file.token:
                    file.save(outputs[each.job.id])
        runner.close()
    print()
    for line in _bill(conversions):
        print(line)
    python = f"{shlex.quote(sys.executable)} -m forkrunner"
    converted = any(conversion.state is State.DONE for conversion in conversions)
    print(f"\nThe results are in {results}" if converted else "\nNothing was converted.")
    print(
        f"More of a run:  {python} show --database sqlite:///{shlex.quote(str(work))}/forkrunner.db {conversions[0].job.id}"
    )
    return 0 if all(conversion.state is State.DONE for conversion in conversions) else 1


def _format_of(path: str) -> str:
    """Return the name of a file's format; a bad file is the job's to refuse."""
    from trackconvert.formats import detect

    try:
        with open(path, "rb") as stream:
            return detect(stream, path).name
    except (OSError, ValueError):
        return ""


# --------------------------------------------------------------------------- the supervisor


@contextlib.contextmanager
def _supervisor(work: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a supervisor for as long as the block: at the end it stops, after an error it kills its jobs first."""
    here = str(Path(__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    environ = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}
    with open(work / "supervisor.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "forkrunner", "run", TARGET],
            cwd=work,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    except BaseException:
        _end(process, signal.SIGINT)
        raise
    _end(process, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], signum: int) -> None:
    # an impatient second Ctrl-C must not leave it behind
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.send_signal(signum)
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel takes its jobs along
        process.wait()
    finally:
        signal.signal(signal.SIGINT, old)


def _wait(conversions: list[Conversion], supervisor: subprocess.Popen[bytes]) -> Iterator[None]:
    """Look at the jobs again and again until all have ended.

    Raises Stopped.
    """
    while any(conversion.state not in _ENDED for conversion in conversions):
        if supervisor.poll() is not None:
            raise Stopped(f"the supervisor ended too early, with status {supervisor.returncode}")
        for conversion in conversions:
            conversion.look()
        yield
        time.sleep(_POLL)


# --------------------------------------------------------------------------- what is shown


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _watch_bars(conversions: list[Conversion], supervisor: subprocess.Popen[bytes]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    console = Console(highlight=False)
    label = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    message = TextColumn(
        "{task.fields[message]}",
        markup=False,
        table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
    )
    # drawn by us: no thread
    bars = Progress(
        label, BarColumn(24), TaskProgressColumn(), message, console=console, auto_refresh=False, expand=True
    )
    fits = len(conversions) < console.height
    with bars:
        ids = [bars.add_task(each.label, total=1.0, message="waits", visible=fits) for each in conversions]
        for _ in _wait(conversions, supervisor):
            for bar, each in zip(ids, conversions, strict=True):
                waits = each.state is State.PENDING
                bars.update(
                    bar,
                    completed=each.fraction,
                    message="waits" if waits else each.message,
                    visible=fits or each.state is State.BUSY,
                )
            bars.refresh()


def _watch_lines(conversions: list[Conversion], supervisor: subprocess.Popen[bytes]) -> None:
    told = [-1] * len(conversions)
    width = max(len(each.label) for each in conversions)
    for _ in _wait(conversions, supervisor):
        for n, each in enumerate(conversions):
            # a line for the start, each third of the way, and the end
            step = (
                4
                if each.state in _ENDED
                else -1
                if each.state is State.PENDING
                else int(min(each.fraction, 0.99) * 3)
            )
            if step > told[n]:
                told[n] = step
                print(f"{each.label:{width}} {each.fraction:>5.0%}  {each.message}".rstrip(), flush=True)


def _bill(conversions: list[Conversion]) -> Iterator[str]:
    """Yield a table of what the runs have cost; under what failed stands why."""
    rows = [("CONVERSION", "OUTCOME", "ATTEMPTS", "TIME", "CPU", "PEAK MEMORY")]
    for each in conversions:
        # once more: the row as it was left, with its attempts
        attempts = each.job.refresh().attempts
        time_spent = sum(
            (attempt.finished_at - attempt.started_at).total_seconds()
            for attempt in attempts
            if attempt.started_at and attempt.finished_at
        )
        cpu = sum((a.cpu_user_seconds or 0.0) + (a.cpu_system_seconds or 0.0) for a in attempts)
        peak = max((a.peak_memory_bytes or 0 for a in attempts), default=0)
        outcome = str(attempts[-1].outcome) if attempts else str(each.state)
        rows.append(
            (each.label, outcome, str(len(attempts)), duration(time_spent), duration(cpu), show_bytes(peak))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for n, row in enumerate(rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*left, *right])
        if n and conversions[n - 1].state is not State.DONE:
            yield f"    {_reason(conversions[n - 1])}"


def _reason(conversion: Conversion) -> str:
    attempts = conversion.job.attempts
    text = (attempts[-1].error_message if attempts else conversion.job.error) or ""
    # as the user has named the file
    return short(text.replace(str(conversion.job.arguments["source"]), conversion.source), 1000)


if __name__ == "__main__":
    sys.exit(main())
