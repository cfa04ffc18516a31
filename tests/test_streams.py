"""What a job has written and not flushed is kept, however it was written: the child flushes when it must, and only then."""

from __future__ import annotations

import pytest

from .running import Bed

SOURCE = """
import ctypes, io, logging, os, sys
from forkrunner import Runner

runner = Runner()
written = sys.stdout.write

@runner.task
def say(how: str) -> str | None:
    if how == "print":
        print("partial", end="")
    elif how == "error":
        sys.stderr.write("partial")
    elif how == "buffer":
        sys.stdout.buffer.write(b"partial")
    elif how == "lines":
        sys.stdout.writelines(["par", "tial"])
    elif how == "original":
        sys.__stdout__.write("partial")
    elif how == "bound at the import":
        written("partial")
    elif how == "replaced":
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
        sys.stdout.write("partial")
    elif how == "wrapped":
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer)
        sys.stdout.write("partial")
    elif how == "detached":
        sys.stdout = io.TextIOWrapper(sys.stdout.detach())
        sys.stdout.write("partial")
    elif how == "logging":
        handler = logging.StreamHandler()
        handler.terminator = ""
        logging.getLogger("x").addHandler(handler)
        logging.getLogger("x").warning("partial")
    elif how == "C":
        ctypes.CDLL(None).printf(b"partial")
    elif how == "descriptor":
        os.write(1, b"partial")
    elif how == "redirected and back":
        before, sys.stdout = sys.stdout, io.StringIO()
        print("elsewhere")
        sys.stdout = before
        print("partial", end="")
    elif how == "names":
        return f"{sys.stdout.name} {sys.stderr.name} {sys.stdout.mode} {sys.stdout.fileno()} {sys.stderr.fileno()}"
    return None
"""

#: Put before the application: what it does to the streams when it is imported.
AT_IMPORT = {
    "nothing": "",
    "keeps the buffer": "import sys; kept = sys.stdout.buffer\n",
    "replaces the stream": "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, line_buffering=True)\n",
    "writes half a line": "import sys; sys.stdout.write('half')\n",
}

HOW = [
    *(
        "print",
        "error",
        "buffer",
        "lines",
        "original",
        "bound at the import",
        "replaced",
        "wrapped",
        "detached",
    ),
    *("logging", "C", "descriptor", "redirected and back"),
]


@pytest.mark.parametrize("at_import", AT_IMPORT)
def test_what_was_written_and_not_flushed_is_kept(cli, sqlite_database: str, at_import: str) -> None:
    with Bed(cli, sqlite_database, source=AT_IMPORT[at_import] + SOURCE) as bed:
        supervisor = bed.start()
        ids = {how: bed.put("say", {"how": how}) for how in [*HOW, "nothing", "names"]}
        found = {how: bed.ended(id).attempts[0].output_tail for how, id in ids.items()}
        # behind the job that the line is of
        assert (found.pop("logging") or "").endswith("] partial")
        if at_import == "replaces the stream":
            # whoever does that flushes what he has put aside
            del found["original"]
        assert found == dict.fromkeys(found, "partial") | {"nothing": None, "names": None}
        names = bed.row(ids["names"]).result
        if at_import != "replaces the stream":
            assert names == '"<stdout> <stderr> w 1 2"'
        bed.stop(supervisor)


@pytest.mark.parametrize("how", ["exits", "dies"])
def test_unbuffered_nothing_is_held_back(cli, sqlite_database: str, how: str) -> None:
    """As in most containers: also what a job has written that ends without a flush."""
    source = SOURCE.replace(
        "return None",
        "os._exit(3) if how == 'print' else os.kill(os.getpid(), 9) if how == 'error' else None",
    )
    with Bed(cli, sqlite_database, source=source) as bed:
        supervisor = bed.start(env={"PYTHONUNBUFFERED": "1"})
        row = bed.ended(
            bed.put(
                "say",
                {"how": {"exits": "print", "dies": "error"}[how]},
                options={"max_crashes": 1, "max_attempts": 1},
            )
        )
        assert row.attempts[0].output_tail == "partial"
        bed.stop(supervisor)


def test_what_was_kept_of_a_buffer_at_the_import_is_flushed(cli, sqlite_database: str) -> None:
    source = "import sys\nkept = sys.stdout.buffer\n" + SOURCE.replace(
        'sys.stdout.buffer.write(b"partial")', 'kept.write(b"partial")'
    )
    with Bed(cli, sqlite_database, source=source) as bed:
        supervisor = bed.start()
        row = bed.ended(bed.put("say", {"how": "buffer"}))
        assert row.attempts[0].output_tail == "partial"
        bed.stop(supervisor)
