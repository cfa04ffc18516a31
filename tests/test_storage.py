"""The storage itself: a folder under attack, FTP as one that is far away, a full disk, sudden deaths, several at once."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkrunner import FileError, FileMissing, InputFile, Runner, StorageError
from forkrunner.locating import locate
from forkrunner.pruning import Pruned, prune_content
from forkrunner.storage import Storage
from tests.running import LONG, Bed
from tests.support import Cli, wait_until
from tests.test_files import SOURCE, result_of, sha256

ROOT = Path(__file__).parent.parent


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------ a folder


def test_what_is_put_can_be_read_and_is_there_once(tmp_path: Path):
    storage = Storage(f"file://{tmp_path}/s")
    (tmp_path / "s").mkdir(mode=0o700)
    data = os.urandom(3 << 20)
    assert storage.put(io.BytesIO(data), 1 << 30) == (sha256(data), len(data))
    assert storage.put(io.BytesIO(data), 1 << 30) == (sha256(data), len(data))
    assert storage.put(io.BytesIO(b""), 10) == (sha256(b""), 0)
    assert names(tmp_path / "s") == sorted(f"{sha256(d)[:2]}/{sha256(d)}" for d in (data, b""))
    with storage.open(sha256(data)) as stream:
        assert stream.read() == data
        stream.seek(1000)
        assert stream.read(10) == data[1000:1010]
    copy = storage.fetch(sha256(data), tmp_path, "../../x y.txt")
    assert copy == tmp_path / "x_y.txt"
    assert copy.read_bytes() == data
    assert storage.place(sha256(data)) == f"{tmp_path}/s/{sha256(data)[:2]}/{sha256(data)}"
    for wrong in ("", "x", "../../../etc/passwd", sha256(b"other"), f"{sha256(data)}/..", "A" * 64):
        with pytest.raises(FileMissing):
            storage.open(wrong)
    # exactly the limit is not too much
    assert storage.put(io.BytesIO(b"x" * 1000), 1000)[1] == 1000
    with pytest.raises(FileError, match=r"more than the 1kB of file_limit"):
        storage.put(io.BytesIO(b"x" * 1001), 1000)


def test_its_folder_is_for_its_user_alone_and_hides_no_mount(tmp_path: Path):
    storage = Storage(f"{tmp_path}/mine")
    storage.put(io.BytesIO(b"x"), 10)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    with pytest.raises(StorageError, match=r"cannot store a file in .*/nas/forkrunner"):
        Storage(f"{tmp_path}/nas/forkrunner").put(io.BytesIO(b"x"), 10)
    assert not (tmp_path / "nas").exists()


def test_several_put_the_same_at_once(tmp_path: Path):
    """Eight threads and two more processes, the same three contents again and again."""
    contents = [os.urandom(300_000) for _ in range(3)]
    (tmp_path / "in").mkdir()
    for number, data in enumerate(contents):
        (tmp_path / "in" / str(number)).write_bytes(data)
    script = (
        "import sys; from forkrunner.storage import Storage\n"
        "for n in range(30):\n"
        "    with open(f'{sys.argv[1]}/in/{n % 3}', 'rb') as file: Storage(f'{sys.argv[1]}/s').put(file, 1 << 20)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT) for _ in range(2)]
    failures: list[BaseException] = []

    def work() -> None:
        storage = Storage(f"{tmp_path}/s")
        try:
            for number in range(15):
                data = contents[number % 3]
                assert storage.put(io.BytesIO(data), 1 << 20) == (sha256(data), len(data))
                with storage.open(sha256(data)) as stream:
                    assert stream.read() == data
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert failures == []
    assert names(tmp_path / "s") == sorted(f"{sha256(data)[:2]}/{sha256(data)}" for data in contents)


def test_a_death_while_storing_leaves_nothing_under_a_hash(tmp_path: Path):
    script = (
        "import os, sys; from forkrunner.storage import Storage\n"
        "Storage(sys.argv[1]).put(open(0, 'rb', buffering=0), 1 << 30)\n"
    )
    root = tmp_path / "s"
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], cwd=ROOT, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"x" * 2_000_000)
    process.stdin.flush()
    wait_until(lambda: any(path.stat().st_size > 1_000_000 for path in root.glob("incoming/*")), LONG)
    process.send_signal(signal.SIGKILL)
    process.wait(LONG)
    process.stdin.close()
    (left,) = names(root)
    assert left.startswith("incoming/")
    assert list(Storage(str(root)).old(-10)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_makes_no_job_and_leaves_no_half_of_it(tmp_path: Path):
    """A file system of 1 MiB in a mount namespace of its own."""
    (tmp_path / "small").mkdir()
    script = f"""
import io, os, sys
from pathlib import Path
from forkrunner import InputFile, Runner, StorageError
root = Path({str(tmp_path)!r}, "small")
runner = Runner("sqlite:///{tmp_path}/jobs.db", storage=str(root / "s"))
@runner.task
def take(source: InputFile) -> None: ...
kept = take.enqueue(InputFile.from_bytes(b"small", name="a"))
try:
    take.enqueue(InputFile.from_stream(io.BytesIO(bytes(2 << 20)), name="b"))
except StorageError as error:
    print(error)
print(len(runner.list()), kept.files[0].read(), os.listdir(root / "s/incoming"))
runner.close()
"""
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}/small" && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, sys.executable, script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"mounts a file system: {done.stderr}")
    told, counted = done.stdout.splitlines()
    assert told == f"cannot store a file in {tmp_path}/small/s: No space left on device (setting `storage`)"
    assert counted == "1 b'small' []"


def test_where_files_are_if_nobody_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert locate("", "sqlite:///jobs.db", "/srv/app") == "/srv/app/jobs.db-files"
    assert locate("", "sqlite:////var/jobs.db?timeout=3", "/srv/app") == "/var/jobs.db-files"
    assert locate("files", "sqlite:///jobs.db", "/srv/app") == "/srv/app/files"
    assert locate("s3://b/f", "sqlite:///jobs.db", "/srv/app") == "s3://b/f"
    own = locate("", "postgresql+psycopg://me:secret@db.example:5433/shots", "/srv/app")
    assert own.startswith("/home/me/.local/share/forkrunner/shots-")
    assert own == locate("", "postgresql+psycopg://you:other@db.example:5433/shots", "/")
    assert own != locate("", "postgresql+psycopg://me:secret@other.example:5433/shots", "/srv/app")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert locate("", "postgresql+psycopg:///shots", "/").startswith("/data/forkrunner/shots-")


# ------------------------------------------------------------------------------ far away


class Ftp:
    """An FTP server in a process of its own, which serves a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name("ftp_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.folder), str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"ftp://user:secret@127.0.0.1:{self.port}/files"


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[Ftp]:
    (tmp_path / "ftp").mkdir()
    ftp = Ftp(tmp_path / "ftp")
    yield ftp
    ftp.stop()


def test_a_storage_behind_a_network(ftp: Ftp):
    storage = Storage(ftp.url)
    root = ftp.folder / "files"
    data = os.urandom(7 << 20)
    assert storage.put(io.BytesIO(data), 1 << 30) == (sha256(data), len(data))
    assert names(root) == [f"{sha256(data)[:2]}/{sha256(data)}"]
    assert (root / names(root)[0]).read_bytes() == data
    with storage.open(sha256(data)) as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == sha256(data)

    class Unseekable(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = [b"", b"half ", b"and half"]

        def read(self, size: int = -1) -> bytes:
            return self.parts.pop(0) if self.parts else b""

    unseekable: Any = Unseekable()
    unseekable.read(0)
    assert storage.put(unseekable, 100) == (sha256(b"half and half"), 13)

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b"x" * min(size, 100_000)

    with pytest.raises(FileError, match=r"more than the 1MiB"):
        storage.put(Endless(), 1 << 20)  # type: ignore[arg-type]
    assert len(names(root)) == 2
    copy = storage.fetch(sha256(data), ftp.folder, "copy")
    assert copy.read_bytes() == data
    with pytest.raises(FileMissing):
        storage.open("0" * 64)
    # what is there already is not sent again
    before = os.stat(root / f"{sha256(data)[:2]}/{sha256(data)}").st_mtime_ns
    storage.put(io.BytesIO(data), 1 << 30)
    assert os.stat(root / f"{sha256(data)[:2]}/{sha256(data)}").st_mtime_ns == before
    # a file whose bytes have been lost is not taken for whole
    (root / f"{sha256(data)[:2]}/{sha256(data)}").write_bytes(data[:-1])
    with pytest.raises(StorageError, match="is damaged"):
        storage.fetch(sha256(data), ftp.folder, "other")
    assert "secret" not in storage.place(sha256(data)) + str(storage) + repr(storage)


def test_jobs_on_a_storage_behind_a_network(cli: Cli, sqlite_database: str, ftp: Ftp):
    """From the call to the download, and pruned; and with the server gone there is no job, and no password in the words."""
    with Bed(cli, sqlite_database, source=SOURCE) as bed:
        cli.env["FORKRUNNER_STORAGE"] = ftp.url
        runner = Runner(sqlite_database, storage=ftp.url)
        process = bed.start()
        (bed.folder / "shot.txt").write_text("to be")
        job = runner.enqueue("several", {"source": InputFile.from_path(bed.folder / "shot.txt")})
        result = result_of(job)
        assert [file["name"] for file in result["files"]] == ["a.csv", "again"]
        assert [file.read() for file in job.files] == [b"to be", b"a;b", b"to be"]
        root = ftp.folder / "files"
        assert len(names(root)) == 3
        orphan, _ = runner.storage.put(io.BytesIO(b"orphan"), 10)
        prune_content(runner.store, runner.storage, Pruned(), grace=-3600)
        assert next(name for name in names(root) if orphan in name).startswith("bin/")
        prune_content(runner.store, runner.storage, Pruned(), grace=-3600)
        assert [name for name in names(root) if orphan in name] == []
        assert [file.read() for file in job.files] == [b"to be", b"a;b", b"to be"]
        rows = len(bed.store.list())
        ftp.stop()
        fresh = Runner(sqlite_database, storage=ftp.url)
        with pytest.raises(
            StorageError, match=r"cannot store a file in ftp://user:\*\*\*@127.0.0.1"
        ) as caught:
            fresh.enqueue("facts", {"source": InputFile.from_bytes(b"x", name="x")})
        assert "secret" not in str(caught.value)
        assert len(bed.store.list()) == rows
        ftp.start()
        runner.close()
        fresh.close()
        bed.stop(process)


def test_a_storage_that_nobody_knows_how_to_reach(sqlite_database: str):
    runner = Runner(sqlite_database, storage="s3://bucket/files")
    with pytest.raises(StorageError, match=r"cannot store a file in s3://bucket/files: .*s3fs"):
        runner.enqueue("facts", {"source": InputFile.from_bytes(b"x", name="x")})
    assert runner.store.counts() == {}
    runner.close()


def test_two_hosts_share_a_database_and_a_folder(cli: Cli, postgresql_database: str):
    """And a third one that does not share the folder says what is wrong."""
    with Bed(cli, postgresql_database, source=SOURCE) as bed:
        shared = str(bed.folder / "shared")
        runner = Runner(postgresql_database, storage=shared)
        hosts = []
        for name in ("first", "second"):
            (bed.folder / name).mkdir()
            env = {"HOME": str(bed.folder / name), "FORKRUNNER_RUNTIME_DIR": str(bed.folder / name / "run")}
            hosts.append(bed.start(env=env, storage=shared, slots=1))
        jobs = [
            runner.enqueue("facts", {"source": InputFile.from_bytes(b"file %d" % n, name=f"{n}.txt")})
            for n in range(12)
        ]
        for number, job in enumerate(jobs):
            assert result_of(job)["text"] == f"file {number}"
        assert len({job.attempts[0].supervisor for job in jobs}) == 2
        for host in hosts:
            host.signal(signal.SIGTERM)
            host.wait(LONG)
        (bed.folder / "third").mkdir()
        third = bed.start(env={"HOME": str(bed.folder / "third")})
        job = runner.enqueue("facts", {"source": InputFile.from_bytes(b"x", name="x")})
        job.wait(LONG)
        assert "all hosts need one that they share" in (job.error or "")
        assert f"{bed.folder}/third/.local/share/forkrunner/" in (job.error or "")
        runner.close()
        third.signal(signal.SIGTERM)
        third.wait(LONG)
