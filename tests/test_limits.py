"""What a job has started ends with it, however it fled and however the job ends; and a limit of memory is of its own.

Named how × ending, against the real CLI. Nobody is asked whether a process is gone but the kernel.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forkrunner import identity, temporary
from forkrunner.job import Outcome, State
from tests.running import LONG, UNPRIVILEGED, Bed, cgroup_folder, check_gone, unshared
from tests.support import Cli, alive, need, wait_until

GRACE = 0.3
HOW = ("subprocess", "pipeline", "process_group", "session", "multiprocessing", "daemon")
THEN = {
    "return": ({}, Outcome.DONE),
    "timeout": ({"timeout": 1.5, "grace": GRACE}, Outcome.TIMED_OUT),
    "crash": ({"max_crashes": 1}, Outcome.CRASHED),
}


def pids_in(path: Path) -> list[int]:
    wait_until(path.exists, LONG, f"{path}")
    return [int(word) for word in path.read_text().split()]


def test_nothing_that_a_job_has_started_outlives_it(bed: Bed) -> None:
    """Six ways to start processes × three ways to end, all at once."""
    supervisor = bed.start(slots=6)
    cases = [(how, then) for how in HOW for then in THEN]
    ids = {
        (how, then): bed.put(
            "spawn", {"how": how, "then": then, "path": f"{how}-{then}"}, options=THEN[then][0]
        )
        for how, then in cases
    }
    for (how, then), id in ids.items():
        row = bed.ended(id)
        pids = pids_in(bed.folder / f"{how}-{then}")
        check_gone(pids)
        (attempt,) = row.attempts
        assert (attempt.outcome, len(pids)) == (
            THEN[then][1],
            {"pipeline": 4, "multiprocessing": 2}.get(how, 1),
        ), (
            how,
            then,
        )
    left = sum(row.attempts[0].leftover_processes or 0 for row in map(bed.row, ids.values()))
    # a TERM to the group gets some before they are left behind, multiprocessing has a helper more
    assert left >= 2 * (4 + 2 + 1)
    bed.stop(supervisor)


@pytest.mark.parametrize("then", ["crash", "timeout"])
def test_each_job_is_told_what_it_has_left_behind_itself(sqlite_bed: Bed, then: str) -> None:
    """Also those that end at the same moment, among others that have left nothing."""
    bed = sqlite_bed
    supervisor = bed.start(slots=7)
    counts = [(3, False), (20, False), (60, False)]
    if then == "timeout":  # then it was seen whose they are, before they had fled
        counts += [(5, True), (30, True)]
    options = {"timeout": 4, "grace": GRACE} if then == "timeout" else {"max_crashes": 1}
    ids = [
        bed.put("let_flee", {"count": count, "silent": silent, "path": bed.path("go")}, options=options)
        for count, silent in counts
    ]
    bed.wait_noted("start", count=len(ids))
    if then == "crash":
        bed.let_go()
    # they end while the others do, one after the other
    innocent = bed.enqueue("noop", count=50, run_at=datetime.now(UTC) + timedelta(seconds=0.1))
    left = [bed.ended(id).attempts[0].leftover_processes for id in ids]
    assert left == [count for count, _ in counts]
    assert {bed.ended(id).attempts[0].leftover_processes for id in innocent} == {0}
    bed.stop(supervisor)


def test_what_one_job_alone_has_left_behind_is_its_own(sqlite_bed: Bed) -> None:
    """Though nothing tells it: a session of its own, and no output."""
    bed = sqlite_bed
    supervisor = bed.start()
    bed.let_go()
    id = bed.put("let_flee", {"count": 7, "silent": True, "path": bed.path("go")}, options={"max_crashes": 1})
    assert bed.ended(id).attempts[0].leftover_processes == 7
    bed.stop(supervisor)


def test_a_shell_with_children_that_times_out_is_gone_within_its_grace(bed: Bed) -> None:
    supervisor = bed.start(slots=2)
    path = bed.folder / "shell"
    id = bed.put(
        "shell",
        {"path": str(path), "command": "sleep 1000 & sleep 1000"},
        options={"timeout": 0.5, "grace": GRACE},
    )
    pids = pids_in(path)
    row = bed.ended(id)
    wait_until(lambda: not any(map(alive, pids)), GRACE + 1, f"the end of {pids}")
    assert len(pids) == 3
    assert row.attempts[0].outcome == Outcome.TIMED_OUT
    bed.stop(supervisor)


@pytest.mark.parametrize("how", HOW)
def test_kill_of_the_supervisor_and_the_next_one_ends_what_its_jobs_had_started(
    cli: Cli, database: str, how: str
) -> None:
    """Mold and job die with it, by the kernel; their programs do not, and are found by their mark, forks by the lock."""
    with Bed(cli, database) as bed:
        first = bed.start(slots=2)
        path = bed.folder / "pids"
        id = bed.put(
            "spawn",
            {"how": how, "then": "timeout", "path": str(path)},
            options={"timeout": 60, "max_crashes": 1},
        )
        pids = pids_in(path)
        assert all(map(alive, pids))
        first.signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        killed = time.monotonic()
        second = bed.start(slots=2)
        wait_until(lambda: not any(map(alive, pids)), 5, f"the end of {pids}")
        row = bed.ended(id)
        assert (row.state, row.attempts[0].outcome) == (State.FAILED, Outcome.LOST)
        # at once, and not when a lease has ended
        assert time.monotonic() - killed < 25
        bed.stop(second)


def test_a_new_supervisor_spares_what_the_jobs_of_others_have_started(cli: Cli, sqlite_database: str) -> None:
    with Bed(cli, sqlite_database) as bed:
        first = bed.start(slots=2)
        path = bed.folder / "pids"
        id = bed.put(
            "spawn",
            {"how": "session", "then": "timeout", "path": str(path)},
            options={"timeout": 60, "grace": GRACE},
        )
        (pid,) = pids_in(path)
        second = bed.start(slots=2)
        bed.ended(bed.put("noop"))
        assert alive(pid)
        bed.store.cancel(id)
        bed.ended(id)
        bed.stop(first, second)


def test_the_temporary_folder_of_a_job_goes_with_it(bed: Bed) -> None:
    """However it ends, also with folders that may not be written to; also of the supervisor's own nothing is left."""
    supervisor = bed.start(slots=3, env={"TMPDIR": str(bed.folder)}, before=UNPRIVILEGED)
    ids = {then: bed.put("leave_files", {"then": then}, options=THEN[then][0]) for then in THEN}
    everyone = bed.folder / f"forkrunner-jobs-{os.geteuid()}"
    folders = set()
    for then, id in ids.items():
        row = bed.ended(id)
        assert row.attempts[0].outcome == THEN[then][1]
        folder = Path(str(row.attempts[0].output_tail).strip())
        assert folder.parent.parent == everyone
        if then == "return":
            assert json.loads(str(row.result)) == [str(folder)] * 2
        folders.add(folder)
    assert len(folders) == 3
    wait_until(lambda: not any(folder.exists() for folder in folders), LONG, f"the end of {folders}")
    bed.stop(supervisor)
    assert list(everyone.iterdir()) == []


def test_the_temporary_folders_of_a_killed_supervisor_go_with_the_next_start(
    cli: Cli, sqlite_database: str
) -> None:
    with Bed(cli, sqlite_database) as bed:
        first = bed.start(env={"TMPDIR": str(bed.folder)}, before=UNPRIVILEGED)
        bed.put("leave_files", {"then": "timeout"}, options={"timeout": 60, "max_crashes": 1})
        everyone = bed.folder / f"forkrunner-jobs-{os.geteuid()}"
        wait_until(lambda: list(everyone.glob("*/*/a/b")), LONG, "the job's files")
        (old,) = everyone.iterdir()
        first.signal(signal.SIGKILL)
        first.wait()
        second = bed.start(env={"TMPDIR": str(bed.folder)}, before=UNPRIVILEGED)
        # by a process of its own: there may be more than can be removed within a lease
        wait_until(lambda: not old.exists(), LONG, f"the end of {old}")
        bed.stop(second)


MOUNTS = """
import subprocess, tempfile, time
from pathlib import Path
from forkrunner import Runner

runner = Runner()


@runner.task(temporary_folder=True)
def mount() -> str:
    \"\"\"Leave something that nobody can remove.\"\"\"
    folder = Path(tempfile.gettempdir()) / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    return str(folder.parent)
"""


def test_what_cannot_be_removed_is_said_once(cli: Cli, sqlite_database: str) -> None:
    with Bed(cli, sqlite_database, source=MOUNTS) as bed:
        supervisor = bed.start(env={"TMPDIR": str(bed.folder)}, before=unshared())
        row = bed.ended(bed.put("mount"))
        assert row.state == State.DONE, row.error
        folder = json.loads(str(row.result))
        supervisor.wait_log(f"the temporary folder {folder} cannot be removed", LONG)
        (inner,) = supervisor.wait_ps("forkrunner: supervisor")
        os.kill(inner, signal.SIGTERM)
        assert supervisor.wait() == 0
        supervisor.wait_gone()
        assert supervisor.log.count("cannot be removed") == 1


def test_no_link_is_followed_when_a_folder_is_removed(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "folder"
    (other / "kept").mkdir(parents=True)
    other.chmod(0o555)
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "link").symlink_to(other)
    (folder / "a").chmod(0o555)
    assert temporary.clear_away(str(folder))
    assert not folder.exists()
    folder.symlink_to(other)
    assert not temporary.clear_away(str(folder)), "a job has put it there"
    assert (other.stat().st_mode & 0o777, (other / "kept").exists()) == (0o555, True)


def test_the_folders_of_the_dead_are_not_removed_by_the_supervisor_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a million files take longer than a lease; nor are those of the living removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert temporary.prepare() == []
    own = Path(temporary.folder())
    # pid 1 lives, but was not started then
    old = own.parent / f"{identity.pid_namespace()}-1-999999999999"
    (old / "a").mkdir(parents=True)
    assert temporary.prepare() == [str(old)]
    assert (old / "a").is_dir()
    assert own.is_dir()


PRELOADED = """
import time
from forkrunner import Runner

runner = Runner()
#: As many small objects as a large application has, and one large block.
ballast = [str(n) * 3 for n in range(2_000_000)], b"x" * (250 << 20)

@runner.task(memory="200MB")
def allocate(megabytes: int, step: int) -> int:
    blocks = [b"x" * (step << 20) for _ in range(megabytes // step)]
    return sum(map(len, blocks))
"""


def test_a_limit_of_memory_is_of_the_jobs_own(cli: Cli, database: str) -> None:
    """1 GB under 200 MB beside 400 MB of the application's: over memory within 2 s; 150 MB: done."""
    with Bed(cli, database, source=PRELOADED) as bed:
        supervisor = bed.start(slots=2)
        mold = supervisor.pids("forkrunner: mold")[0]
        resident = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{mold}/status").read_text())[0]) * 1024
        assert resident > 400e6
        cases = {
            "at once": bed.put("allocate", {"megabytes": 1000, "step": 1000}),
            "bit by bit": bed.put("allocate", {"megabytes": 1000, "step": 10}),
            "less": bed.put("allocate", {"megabytes": 150, "step": 10}),
        }
        rows = {name: bed.ended(id) for name, id in cases.items()}
        for name, had in (("at once", r"\d+(\.\d)? [Mk]?B"), ("bit by bit", r"(1[89]|20)\d\.\d MB")):
            (attempt,) = rows[name].attempts
            assert attempt.outcome == Outcome.OVER_MEMORY
            pattern = rf"its limit memory is 200\.0 MB: it had {had} of its own and was refused more"
            assert re.fullmatch(pattern, str(attempt.error_message)), attempt.error_message
            assert attempt.run_seconds is not None
            assert attempt.run_seconds < 2
        assert rows["less"].state == State.DONE
        assert 150e6 < (rows["less"].attempts[0].peak_memory_bytes or 0) < 190e6
        bed.stop(supervisor)


STARTERS = """
import os, subprocess, sys, time
from forkrunner import Runner

runner = Runner()
ballast = b"x" * (300 << 20)
PROGRAM = "import sys, time; block = b'a' * (int(sys.argv[1]) << 20); time.sleep(1)"


@runner.task
def run(megabytes: int, count: int) -> None:
    for program in [subprocess.Popen([sys.executable, "-c", PROGRAM, str(megabytes)]) for _ in range(count)]:
        program.wait()


@runner.task
def fork(megabytes: int) -> None:
    if not os.fork():
        block = b"a" * (megabytes << 20)
        time.sleep(1)
        os._exit(0)
    os.wait()
"""


def test_the_bill_of_a_job_under_a_large_application_has_what_its_programs_had(
    cli: Cli, sqlite_database: str
) -> None:
    """Less than the application itself, so that the kernel's figure for the job with all its programs says nothing."""
    with Bed(cli, sqlite_database, source=STARTERS) as bed:
        supervisor = bed.start(slots=4)
        ids = {
            100: bed.put("run", {"megabytes": 100, "count": 1}),
            200: bed.put("run", {"megabytes": 100, "count": 2}),
            0: bed.put("run", {"megabytes": 0, "count": 0}),
            # that has all of the application from its start
            60: bed.put("fork", {"megabytes": 60}),
        }
        for megabytes, id in ids.items():
            peak = bed.ended(id).attempts[0].peak_memory_bytes or 0
            # of what it shared a fork may have less in the end
            assert (megabytes - 5) << 20 <= peak < (megabytes + 40) << 20, (megabytes, peak)
        bed.stop(supervisor)


GROUPED = """
import mmap, subprocess, sys
from forkrunner import Runner

runner = Runner()


@runner.task(memory="100MB", max_attempts=1)
def share(size: int) -> int:
    \"\"\"Memory that RLIMIT_DATA does not see, faster than anybody looks.\"\"\"
    shared = mmap.mmap(-1, size)
    while shared.tell() < size:
        shared.write(b"x" * 1_000_000)
    return size


@runner.task(memory="100MB", max_attempts=1)
def start_another(size: int) -> int:
    return subprocess.run([sys.executable, "-c", f"x = bytearray({size})"]).returncode
"""


@pytest.mark.alone
def test_the_kernel_holds_a_job_to_its_memory_in_a_group_of_its_own(cli: Cli, sqlite_database: str) -> None:
    with cgroup_folder() as folder:
        need("cgroups", folder, "no control group with a limit of memory can be made")
        assert folder is not None
        cli.env["FORKRUNNER_CGROUP"] = str(folder)
        with Bed(cli, sqlite_database, source=GROUPED) as bed:
            supervisor = bed.start(slots=3)
            less, more = bed.put("share", {"size": 40_000_000}), bed.put("share", {"size": 400_000_000})
            other = bed.put("start_another", {"size": 400_000_000})
            assert bed.ended(less).state == State.DONE
            (attempt,) = bed.ended(more).attempts
            assert attempt.outcome == Outcome.OVER_MEMORY
            # at its limit nobody who looks now and then sees it above it: the kernel has stopped it
            pattern = r"its limit memory is 100\.0 MB: its control group had [\d.]+ MB and was refused more"
            assert re.fullmatch(pattern, attempt.error_message or ""), attempt.error_message
            # a program of the job's that the kernel kills is its own affair
            row = bed.ended(other)
            assert row.state == State.DONE or row.attempts[0].outcome == Outcome.OVER_MEMORY
            bed.stop(supervisor)
        assert not [entry for entry in folder.iterdir() if entry.is_dir()]


def test_a_control_group_that_is_none_is_said_at_the_start(cli: Cli, sqlite_database: str) -> None:
    with Bed(cli, sqlite_database, source=GROUPED):
        result = cli.run("run", "jobs:runner", env={"FORKRUNNER_CGROUP": "/nowhere"}, status=2)
    assert "cgroup" in result.stderr
    assert "/nowhere" in result.stderr
    assert "Traceback" not in result.stderr
