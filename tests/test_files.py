"""Files as part of a job, from a call to the task and back: against the real command and both databases."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from forkrunner import ArgumentError, EnqueueError, InputFile, Job, OutputFile, Runner, StorageError
from forkrunner.filenames import display_name, safe_name, suffix_of
from forkrunner.job import Next, Outcome, State
from forkrunner.records import Attempt, Ending, SupervisorRow
from tests.running import LONG, Bed
from tests.support import Cli

SOURCE = '''
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from forkrunner import InputFile, OutputFile, Runner

runner = Runner()


@dataclass
class Options:
    extra: InputFile | None = None
    scale: int = 1


@runner.task
def facts(source: InputFile) -> dict[str, object]:
    assert isinstance(source, Path) and source.is_file()
    return {
        "path": str(source),
        "name": source.display_name,
        "size": source.size,
        "sha256": source.sha256,
        "text": source.read_text(),
        "beside": sorted(os.listdir(source.parent)),
        "tmpdir": os.environ["TMPDIR"],
    }


@runner.task
def join(sources: list[InputFile], options: Options) -> OutputFile:
    parts = [source.read_bytes() for source in sources]
    if options.extra is not None:
        parts.append(options.extra.read_bytes())
    return OutputFile(b"+".join(parts), name="ganz \\u2026 \\u00e4rger.txt")


@runner.task(max_attempts=2, backoff=0)
def spoil(source: InputFile) -> str:
    """Change the copy, and fail at the first try."""
    found = source.read_text()
    source.write_text("spoilt")
    if not os.path.exists("tried"):
        Path("tried").touch()
        raise ValueError("the first try")
    return found


@runner.task
def several(source: InputFile) -> dict[str, object]:
    Path(os.environ["TMPDIR"], "a.csv").write_text("a;b")
    return {
        "files": [OutputFile(Path(os.environ["TMPDIR"], "a.csv")), OutputFile(source, name="again")],
        "count": 2,
    }


@runner.task
def give(path: str) -> OutputFile:
    return OutputFile(path, name="given.txt")


@runner.task
def loaded() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith("forkrunner."))
'''

PLAIN = """
import sys

from forkrunner import Runner

runner = Runner()


@runner.task
def loaded(some: int) -> list[str]:
    return sorted(sys.modules)
"""


@pytest.fixture
def application() -> str:
    return SOURCE


@pytest.fixture
def runner(bed: Bed) -> Iterator[Runner]:
    """The same tasks in this process, on the same database and storage."""
    spec = importlib.util.spec_from_file_location("jobs_of_test_files", bed.folder / "jobs.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runner: Runner = module.runner
    bed.cli.env["FORKRUNNER_STORAGE"] = str(bed.folder / "storage")
    runner.code |= {"database": bed.database, "storage": str(bed.folder / "storage")}
    yield runner
    runner.close()
    del sys.modules[spec.name]


def stored(bed: Bed) -> list[str]:
    """Return the hashes of what the storage has, and check that nothing else is there."""
    root = bed.folder / "storage"
    paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.name != "database"]
    for path in paths:
        assert path.parts == (path.name[:2], path.name)
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == path.name
    return sorted(path.name for path in paths)


def result_of(job: Job[Any]) -> Any:
    job.wait(LONG)
    assert job.state is State.DONE, job.error
    return job.result


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------ the way of a file


def test_a_task_gets_a_path_of_its_own_and_returns_files(bed: Bed, runner: Runner):
    """One supervisor for: a path, bytes, a stream, files in lists and dataclasses, a name that is an attack, a result."""
    (bed.folder / "shot.txt").write_text("to be")
    process = bed.start()
    enqueue = {name: task.enqueue for name, task in runner.tasks.items()}
    plain = enqueue["facts"](InputFile.from_path(bed.folder / "shot.txt"))
    evil = enqueue["facts"](InputFile.from_bytes(b"or not", name="../../../etc/x\0\u202egnp.\u202ctxt"))
    options = {"extra": InputFile.from_stream(io.BytesIO(b"stream"), name="stream")}
    twins = [InputFile.from_bytes(b"twin", name="twin.txt") for _ in range(2)]
    joined = runner.enqueue("join", {"sources": twins, "options": options})
    given = enqueue["several"](InputFile.from_bytes(b"in and out", name="in.txt"))
    again = runner.enqueue("facts", plain.arguments)
    nothing = enqueue["loaded"]()

    result = result_of(plain)
    assert result["name"] == "shot.txt"
    assert result["text"] == "to be"
    assert result["size"] == 5
    assert result["sha256"] == sha256(b"to be")
    assert Path(result["path"]).name == "source.txt"
    assert result["beside"] == ["source.txt"]
    assert Path(result["path"]).parent == Path(result["tmpdir"])
    assert plain.arguments == {"source": {"name": "shot.txt", "size": 5, "sha256": sha256(b"to be")}}
    (file,) = plain.files
    assert (file.place, file.display_name, file.size, file.token) == ("arguments.source", "shot.txt", 5, None)
    assert file.read() == b"to be"

    result = result_of(evil)
    assert result["name"] == "xgnp.txt"
    assert Path(result["path"]).name == "source.txt"

    output = result_of(joined)
    assert isinstance(output, OutputFile)
    assert output.display_name == "ganz … ärger.txt"
    assert output.media_type == "text/plain"
    assert output.read() == b"twin+twin+stream"
    assert len(output.token or "") >= 43
    places = [file.place for file in joined.files]
    assert places == ["arguments.options", "arguments.sources[0]", "arguments.sources[1]", "result"]
    assert joined.files[-1].save(bed.folder).name == "ganz_rger.txt"
    assert (bed.folder / "ganz_rger.txt").read_bytes() == b"twin+twin+stream"

    result = result_of(given)
    assert [each["name"] for each in result["files"]] == ["a.csv", "again"]
    assert result["count"] == 2
    assert [file.place for file in given.files][1:] == ["result[0]", "result[1]"]
    # what stands in a row may be passed on
    assert result_of(again)["text"] == "to be"
    assert again.files[0].sha256 == plain.files[0].sha256
    assert nothing.wait(LONG).files == ()

    contents = (b"to be", b"or not", b"twin", b"stream", b"twin+twin+stream", b"in and out", b"a;b")
    assert stored(bed) == sorted(map(sha256, contents))
    bed.stop(process)
    # the copies have gone with their jobs
    assert not Path(result_folder := result_of(plain)["tmpdir"]).exists(), result_folder


def test_each_try_gets_the_file_as_it_was(bed: Bed, runner: Runner):
    job = runner.tasks["spoil"].enqueue(InputFile.from_bytes(b"as it was", name="a"))
    process = bed.start()
    assert result_of(job) == "as it was"
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.RAISED, Outcome.DONE]
    assert job.files[0].read() == b"as it was"
    # a result that is taken back takes its files back too, and the next one has others
    given = runner.enqueue("give", {"path": str(bed.folder / "given")})
    assert given.wait(LONG).state is State.FAILED
    assert (given.error or "").endswith(f"{bed.folder}/given: No such file or directory")
    (bed.folder / "given").write_text("one")
    given.retry()
    first = result_of(given)
    given.retry()
    second = result_of(given)
    assert first.token != second.token
    assert given.files[0].token == second.token
    bed.stop(process)


def test_a_missing_file_is_told_with_what_to_do(bed: Bed, runner: Runner):
    job = runner.tasks["facts"].enqueue(InputFile.from_bytes(b"lost", name="a"))
    path = bed.folder / "storage" / sha256(b"lost")[:2] / sha256(b"lost")
    damaged = runner.tasks["facts"].enqueue(InputFile.from_bytes(b"whole", name="a"))
    other = bed.folder / "storage" / sha256(b"whole")[:2] / sha256(b"whole")
    path.unlink()
    other.write_bytes(b"whol")
    process = bed.start()
    assert job.wait(LONG).state is State.FAILED
    assert damaged.wait(LONG).state is State.FAILED
    assert str(path) in (job.error or "")
    assert "all hosts need one that they share" in (job.error or "")
    assert f"{other} is damaged" in (damaged.error or "")
    with pytest.raises(StorageError, match="there is no such file"):
        job.files[0].open()
    bed.stop(process)


# ------------------------------------------------------------------------------ no job without its file, no cost without one


@pytest.fixture
def plain(database: str, tmp_path: Path) -> Iterator[Runner]:
    """A runner on a fresh database, with its storage in `tmp_path`; nothing runs."""
    runner = Runner(database, storage=str(tmp_path / "storage"), file_limit="1MiB")
    runner.store.migrate()

    @runner.task
    def take(source: InputFile, number: int = 0) -> None: ...

    yield runner
    runner.close()


def left(runner: Runner) -> tuple[int, list[str]]:
    """Return how many rows there are, and what is in the storage."""
    root = Path(runner.storage.url)
    rows = sum(sum(states.values()) for states in runner.store.counts().values())
    return rows, sorted(path.name for path in root.rglob("*") if path.is_file() and path.name != "database")


@pytest.mark.parametrize(
    "wrong", [{"delay": -1}, {"queue": "a b"}, {"priority": "high"}, {"options": {"memory": "much"}}], ids=str
)
@pytest.mark.parametrize("name", ["take", "unknown"])
def test_a_call_by_name_that_is_refused_stores_nothing(
    plain: Runner, name: str, wrong: dict[str, Any]
) -> None:
    content = InputFile.from_bytes(b"x", name="a")
    with pytest.raises(EnqueueError):
        plain.enqueue(name, {"source": content}, **wrong)
    assert left(plain) == (0, [])
    plain.enqueue(name, {"source": content})
    assert left(plain)[0] == 1


def test_a_storage_that_cannot_be_reached_makes_no_job(database: str, tmp_path: Path):
    runner = Runner(database, storage=f"{tmp_path}/not/mounted")
    runner.store.migrate()

    @runner.task
    def take(source: InputFile) -> None: ...

    with pytest.raises(StorageError) as caught:
        take.enqueue(InputFile.from_bytes(b"x", name="x"))
    assert str(caught.value) == (
        f"cannot store a file in {tmp_path}/not/mounted: No such file or directory (setting `storage`)"
    )
    assert runner.store.counts() == {}
    runner.close()


def test_what_is_refused_leaves_nothing(plain: Runner, tmp_path: Path):
    take = plain.tasks["take"]
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name, words in {
        "link": "it is a symbolic link; if what it leads to is meant, pass Path(…).resolve()",
        "pipe": "expected a file, got a pipe",
        "socket": "No such device or address",
        "none": "No such file or directory",
        "": "expected a file, got a folder",
    }.items():
        path = str(tmp_path / name).rstrip("/")
        with pytest.raises(ArgumentError) as caught:
            take.enqueue(InputFile.from_path(path))
        assert str(caught.value) == f"take(): argument 'source': {path}: {words}"
    server.close()
    with pytest.raises(ArgumentError, match="big: it has more than the 1MiB of file_limit"):
        take.enqueue(InputFile.from_stream(Endless(), name="big"))
    with pytest.raises(ArgumentError, match="big: it has more than the 1MiB of file_limit"):
        take.enqueue(InputFile.from_bytes(bytes(2**20 + 1), name="big"))
    with pytest.raises(ArgumentError, match="expected int"):
        take.enqueue(InputFile.from_bytes(b"not stored", name="a"), "x")
    for wrong, words in {
        "shot.txt": "got str 'shot.txt'; InputFile.from_path(…) makes one of a path",
        b"x": "got bytes b'x'; InputFile.from_bytes(…, name=…) makes one of bytes",
        3: "got int 3",
        OutputFile(b"x", name="x"): "got OutputFile <OutputFile 'x'>",
    }.items():
        with pytest.raises(ArgumentError) as caught:
            take.enqueue(wrong)
        assert str(caught.value) == f"take(): argument 'source': expected InputFile, {words}"
    with pytest.raises(ArgumentError, match="there is no file with this sha256"):
        plain.enqueue("take", {"source": {"name": "x", "size": 1, "sha256": "0" * 64}})
    with pytest.raises(ArgumentError, match="there is no file with this sha256"):
        plain.enqueue("take", {"source": {"name": "x", "size": 1, "sha256": "../../../etc/passwd"}})
    with pytest.raises(TypeError, match="expected a stream of bytes"):
        InputFile.from_stream(io.StringIO("x"), name="x")  # type: ignore[arg-type]
    # its own error, and not the storage's
    with pytest.raises(ConnectionResetError, match="the visitor has gone"):
        take.enqueue(InputFile.from_stream(Broken(), name="x"))
    assert left(plain) == (0, [])
    take.enqueue(InputFile.from_path((tmp_path / "link").resolve()))
    assert left(plain) == (1, [sha256(b"x")])


class Endless(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return b"x" * min(size, 1000) if size > 0 else b""


class Broken(io.RawIOBase):
    def __init__(self) -> None:
        self.pieces = [b"", b"half"]

    def read(self, size: int = -1) -> bytes:
        if not self.pieces:
            raise ConnectionResetError("the visitor has gone")
        return self.pieces.pop(0)

    def readinto(self, buffer: Any) -> int:
        piece = self.read(1)
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_stream_is_stored_whole_or_not_at_all_also_at_a_second_try(plain: Runner):
    """What the first call has left of it is not the file: too large, an error in the middle, a stream that cannot go back."""
    take = plain.tasks["take"]
    stream = io.BytesIO(b"-" * 7 + bytes(1_500_000))
    stream.read(7)
    large = InputFile.from_stream(stream, name="large")
    for _ in range(2):
        with pytest.raises(ArgumentError, match="large: it has more than the 1MiB of file_limit"):
            take.enqueue(large)

    class Breaking(io.BytesIO):
        broken = True

        def read(self, size: int | None = -1, /) -> bytes:
            if self.broken and self.tell() > 0:
                raise OSError("the client has gone")
            return super().read(size)

    stream = Breaking(b"x" * 1_000_000)
    breaking = InputFile.from_stream(stream, name="x")
    with pytest.raises(OSError, match="the client has gone"):
        take.enqueue(breaking)
    stream.broken = False
    job = take.enqueue(breaking)
    assert job.files[0].size == 1_000_000

    class Pipe:
        def __init__(self) -> None:
            self.left = b"x" * 500

        def read(self, size: int = -1, /) -> bytes:
            if size and len(self.left) < 500:
                raise OSError("the pipe broke")
            piece, self.left = self.left[:size][:300], self.left[len(self.left[:size][:300]) :]
            return piece

    once = InputFile.from_stream(Pipe(), name="pipe")
    with pytest.raises(OSError, match="the pipe broke"):
        take.enqueue(once)
    with pytest.raises(ArgumentError, match="pipe: it was read before, and is a stream that cannot go back"):
        take.enqueue(once)
    assert len(plain.list()) == 1


def test_a_file_that_is_changed_while_it_is_read_is_refused(plain: Runner, tmp_path: Path):
    path = tmp_path / "growing"
    path.write_bytes(bytes(3 * 2**18))

    class Growing(InputFile):
        def open_content(self) -> Any:
            content = super().open_content()
            inner = content.__enter__()

            class Both:
                def __enter__(self) -> Any:
                    inner.read(10)
                    inner.seek(0)
                    with open(path, "ab") as file:
                        file.write(b"more")
                    return inner

                def __exit__(self, *error: Any) -> Any:
                    return content.__exit__(*error)

            return Both()

    with pytest.raises(ArgumentError, match=f"{path} was changed while it was read"):
        plain.tasks["take"].enqueue(Growing.from_path(path))
    assert left(plain)[0] == 0


def test_a_rollback_takes_the_rows_back(plain: Runner):
    engine = sa.create_engine(plain.store._database.url)
    with Session(engine) as session:
        job = plain.tasks["take"].using(connection=session).enqueue(InputFile.from_bytes(b"x", name="x"))
        session.rollback()
        assert plain.store.files(job.id) == []
        job = plain.tasks["take"].using(connection=session).enqueue(InputFile.from_bytes(b"x", name="x"))
        assert plain.store.files(job.id) == [] or plain.store._database.name == "sqlite"
        session.commit()
    assert [file.name for file in plain.store.files(job.id)] == ["x"]
    assert left(plain) == (1, [sha256(b"x")])
    engine.dispose()


def test_a_job_without_files_pays_nothing(cli: Cli, sqlite_database: str):
    """No module in its process, and no statement for its files: neither where it is made nor where it is written."""
    with Bed(cli, sqlite_database, source=PLAIN) as bed:
        process = bed.start()
        (id,) = bed.enqueue("loaded", {"some": 1})
        row = bed.wait_row(id, lambda row: row.state == State.DONE)
        modules = set(json.loads(row.result or "[]"))
        assert modules & {"forkrunner.files", "forkrunner.storage", "pathlib", "hashlib", "fsspec"} == set()
        bed.stop(process)
    runner = Runner(sqlite_database)
    sent: list[str] = []

    @runner.task
    def nothing(some: int) -> None: ...

    def note(connection: Any, cursor: Any, text: str, *more: Any) -> None:
        sent.append(text)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        runner.store.register(SupervisorRow("s", "h", "b", "p", 1, 1, "t", 1, "0"), 30)
        job = nothing.enqueue(1)
        (claim,) = runner.store.claim("s", 1, None)
        attempt = Attempt(job.id, claim.attempt, Outcome.DONE, "s")
        ending = Ending(attempt, Next(State.DONE, 1, 0), result="null")
        assert runner.store.turn("s", [ending], 1, None) == ({(job.id, 1): State.DONE}, [])
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
        runner.close()
    assert len(sent) >= 5
    assert [text for text in sent if "forkrunner_files" in text] == []


# ------------------------------------------------------------------------------ outside of jobs


def test_the_function_can_be_called_here_and_now(plain: Runner, tmp_path: Path):
    """A function stays a function: also bytes and a stream have a path then, which goes with them."""

    def read(source: InputFile) -> tuple[str, str, str]:
        with open(str(source)) as file:
            return file.read(), source.display_name, source.suffix

    (tmp_path / "a.txt").write_text("a")
    assert read(InputFile.from_path(tmp_path / "a.txt")) == ("a", "a.txt", ".txt")
    assert read(InputFile(tmp_path / "a.txt")) == ("a", "a.txt", ".txt")
    made = InputFile.from_stream(io.BytesIO(b"b"), name="sub/b.txt")
    assert not os.path.exists(path := repr(made).split("'")[1])
    assert read(made) == ("b", "b.txt", ".txt")
    assert os.fspath(made) == path
    assert os.stat(path).st_mode & 0o077 == 0
    # it may be passed on after that too
    assert plain.tasks["take"].enqueue(made).files[0].read() == b"b"
    del made
    assert not os.path.exists(path)
    derived = InputFile.from_path(tmp_path / "a.txt")
    for path_of_it in (derived.parent, derived / "x", derived.with_suffix(".b")):
        assert type(path_of_it) is PosixPath


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "shown", "safe", "suffix"),
    [
        ("shot.txt", "shot.txt", "shot.txt", ".txt"),
        ("../../etc/passwd", "passwd", "passwd", ""),
        ("C:\\fakepath\\Schnitt.PTF", "Schnitt.PTF", "Schnitt.PTF", ".PTF"),
        ("a\0b\r\nSet-Cookie: x", "ab Set-Cookie: x", "a_b_Set-Cookie_x", ""),
        ("invoice\u202efdp.exe", "invoicefdp.exe", "invoice_fdp.exe", ".exe"),
        ("..", "file", "file", ""),
        ("", "file", "file", ""),
        (".bashrc", ".bashrc", "bashrc", ""),
        ("-rf", "-rf", "rf", ""),
        ("дубль 3.обр", "дубль 3.обр", "3._", ""),
        ("x" * 4000 + ".txt", "x" * 195 + "….txt", "x" * 96 + ".txt", ".txt"),
        ("x." + "y" * 4000, "x." + "y" * 197 + "…", "x." + "y" * 98, ""),
        ("half\ud800.txt", "half.txt", "half_.txt", ".txt"),
    ],
)
def test_names(name: str, shown: str, safe: str, suffix: str):
    assert display_name(name) == shown
    assert safe_name(name) == safe
    assert len(shown) <= 200
    assert len(safe) <= 100
    assert suffix_of(name) == suffix


# ------------------------------------------------------------------------------ the command line


def test_the_command_line_gives_lists_and_takes_files(bed: Bed, runner: Runner):
    cli, folder = bed.cli, bed.folder
    (folder / "shot.txt").write_text("to be")
    (folder / "link.txt").symlink_to("shot.txt")
    process = bed.start()

    id = cli.run("enqueue", "jobs:runner", "facts", "--file", "source=link.txt", "--wait").stdout.strip()
    job = runner.get(id)
    assert result_of(job)["name"] == "link.txt"
    assert result_of(job)["text"] == "to be"
    given = ("--file", "sources=shot.txt", "--file", "sources=link.txt")
    several = cli.run("enqueue", "jobs:runner", "join", '{"options": {}}', *given, "--wait").stdout.strip()
    single = cli.run("enqueue", "jobs:runner", "join", '{"options": {}}', *given[:2]).stdout.strip()
    assert result_of(runner.get(several)).read() == b"to be+to be"
    assert result_of(runner.get(single)).read() == b"to be"

    text = cli.run("show", "jobs:runner", several).stdout
    assert re.search(
        r"^Files\n  arguments.sources\[0\]  shot.txt, 5 B\n.*link.txt, 5 B\n  result +ganz . .rger.txt, 11 B$",
        text,
        re.M,
    )
    assert str(runner.get(several).files[2].token) not in text
    shown = cli.run("show", "jobs:runner", several, "--json")
    assert [file["place"] for file in shown.json["files"]][2] == "result"
    assert str(runner.get(several).files[2].token) not in shown.stdout
    assert cli.run("show", "jobs:runner", "--secrets", "--json", several).json["result"]["token"]

    listed = cli.run("files", "jobs:runner", several).stdout
    assert re.search(r"PLACE +NAME +SIZE +LIES IN", listed)
    for _ in range(2):
        saved = cli.run("files", "jobs:runner", several, "--save", "out", "--json").json
    assert [Path(file["saved"]).name for file in saved] == ["shot-2.txt", "link-2.txt", "ganz_rger-2.txt"]
    assert (folder / "out" / "ganz_rger-2.txt").read_bytes() == b"to be+to be"
    assert saved[0]["lies"] == runner.storage.place(saved[0]["sha256"])
    none = cli.run("enqueue", "jobs:runner", "loaded").stdout.strip()
    assert cli.run("files", "jobs:runner", none).stdout == "no files\n"

    for words, complaint in {
        ("facts", "--file", "shot.txt"): "--file: expected NAME=PATH, as source=shot.txt, got 'shot.txt'",
        (
            "facts",
            "--file",
            "source=none.txt",
        ): f"facts(): argument 'source': {folder}/none.txt: No such file or directory",
        ("facts", '{"source": 1}', "--file", "source=shot.txt"): "argument 'source' is given twice",
        ("facts", '{"source": "shot.txt"}'): "expected InputFile, got str 'shot.txt'",
        ("give", '{"path": "x"}', "--file", "sauce=shot.txt"): "there is no argument 'sauce'",
    }.items():
        assert complaint in cli.run("enqueue", "jobs:runner", *words, status=2).stderr
    bed.stop(process)
