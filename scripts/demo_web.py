"""Serve the example site with its jobs until Ctrl-C: scripts/demo --web.

Without any setting the database is an SQLite file in a new folder, and progress goes to files. FORKRUNNER_DATABASE,
FORKRUNNER_PROGRESS_URL and all others are heeded, unlike in the other demo.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import waitress

from forkrunner import ForkrunnerError, Runner
from forkrunner.keeper import at_work
from forkrunner.units import mask
from forkrunner.wsgi import start

T = TypeVar("T")
TARGET = "trackconvert.jobs:runner"
#: So that the address is the same each time; another if it is taken.
_PORT = 8000
#: Seconds that a conversion takes at least, to be seen.
_DWELL = 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo --web",
        description="Serve the example site: upload files of tracks, watch their conversions, download the results.",
    )
    parser.add_argument("--web", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=_port, help=f"(default: {_PORT}, or any that is free)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep database and files there (default: a new folder, removed at the end)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_DWELL,
        help="that each conversion takes at least, to be seen (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    with contextlib.ExitStack() as stack:
        try:
            if given.folder is None:
                work = Path(tempfile.mkdtemp(prefix="forkrunner-demo-"))
                stack.callback(shutil.rmtree, work, ignore_errors=True)
            else:
                work = given.folder
                work.mkdir(parents=True, exist_ok=True)
            # a Runner takes the folder that is current when it is made
            os.chdir(work)
            # goes with the folder, whatever the database is
            os.environ.setdefault("FORKRUNNER_STORAGE", os.path.abspath("files"))
            serve(given.host, given.port, given.seconds)
        except KeyboardInterrupt:
            print("\nInterrupted: nothing is left running.", file=sys.stderr)
            return 130
        except (OSError, ForkrunnerError) as error:
            print(f"scripts/demo: {error}", file=sys.stderr)
            return 1


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError
    return number


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def serve(host: str, port: int | None, seconds: float) -> NoReturn:
    """Serve in the current folder until KeyboardInterrupt."""
    from trackconvert.jobs import runner
    from trackconvert.web.site import Site

    database = mask(runner.settings.database)
    runner.store.migrate()
    site = Site(runner, demo_seconds=seconds)
    listener = _listen(host, port)
    server = waitress.create_server(site, sockets=[listener], threads=6, ident="trackconvert")
    try:
        with _jobs(runner):
            address = f"[{host}]" if ":" in host else host
            print(
                f"The site is at http://{address}:{listener.getsockname()[1]}/  (Ctrl-C ends it)", flush=True
            )
            print(f"Jobs are in {database}, files in {Path.cwd()}", flush=True)
            server.run()
            # waitress takes the KeyboardInterrupt for itself, to let its threads finish
            raise KeyboardInterrupt
    finally:
        server.close()
        listener.close()
        site.close()
        runner.close()


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [_PORT, 0] if port is None else [port]:
        try:
            return socket.create_server((host, candidate), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port is not None:
                raise
    raise AssertionError("the kernel chooses a free port")


@contextlib.contextmanager
def _jobs(runner: Runner) -> Iterator[None]:
    """Run its jobs for as long as the block, started as every web site starts them; then end them at once.

    Without the last part they would have the grace period, from when this process is gone.
    """
    started = start(runner, TARGET)
    try:
        if started:
            _wait_for(lambda: at_work(runner.settings))
        yield
    finally:
        # an impatient second signal must not leave it behind
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        keeper = _wait_for(lambda: at_work(runner.settings)) if started else None
        if keeper:
            os.kill(keeper["pid"], signal.SIGINT)
            _wait_for(lambda: not at_work(runner.settings))


def _wait_for(fact: Callable[[], T], seconds: float = 20) -> T:
    end = time.monotonic() + seconds
    while not (found := fact()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


if __name__ == "__main__":
    sys.exit(main())
