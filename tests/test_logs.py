"""What a job writes: kept whole or head and tail, and read while it runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from forkrunner import scratch
from forkrunner.job import Outcome, State
from forkrunner.live import Live, NotHere
from forkrunner.records import SupervisorRow
from forkrunner.scratch import head_and_tail, scratch_file
from tests.running import LONG, Bed
from tests.support import Process, wait_until


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"^line (\d+)$", text, re.MULTILINE)]


def test_what_it_wrote_is_kept_whole_or_head_and_tail(bed: Bed) -> None:
    """By Python, C code and programs alike: up to 16 KiB in the attempt, up to the limit in a row of its own, then cut."""
    supervisor = bed.start(slots=2, output_limit="200kB")
    counts = {"short": 100, "long": 10_000, "flood": 100_000}
    ids = {name: bed.put("count", {"lines": lines, "how": "print"}) for name, lines in counts.items()}
    ids["by C"] = bed.put("count", {"lines": 10_000, "how": "printf"})
    ids["by a program"] = bed.put("count", {"lines": 10_000, "how": "program"})
    ids["crashes"] = bed.put("count", {"lines": 10_000, "how": "crash"}, options={"max_crashes": 1})
    for name, id in ids.items():
        row = bed.ended(id)
        assert row.state == (State.FAILED if name == "crashes" else State.DONE)
        text = bed.cli.run("log", "jobs:runner", id).stdout
        found = numbers(text)
        if name == "flood":
            left_out = re.search(r"^\[\.\.\. (\d+) bytes left out \.\.\.\]$", text, re.MULTILINE)
            assert left_out
            written = sum(len(f"line {n}\n") for n in range(100_000))
            assert row.attempts[0].output_bytes == written
            assert len(text) - len(left_out[0]) - 2 == written - int(left_out[1]) == 150_000
            assert (found[0], found[-1]) == (0, 99_999)
            assert bed.store.output(id, 1) == text
        else:
            assert found == list(range(counts.get(name, 10_000))), name
            assert (bed.store.output(id, 1) is None) == (name == "short")
    assert bed.cli.run("log", "jobs:runner", ids["long"], "--json").json["output"].endswith("line 9999\n")
    bed.stop(supervisor)


def test_a_running_job_is_read_live_and_followed_to_its_end(bed: Bed) -> None:
    supervisor = bed.start(slots=2)
    id = bed.put("talk", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    follower = bed.cli.start("log", "jobs:runner", id, "-f")
    follower.wait_log("before")
    so_far = bed.cli.run("log", "jobs:runner", id)
    assert (so_far.status, so_far.stdout) == (0, "before\n")
    bed.let_go()
    bed.ended(id)
    assert follower.wait() == 0
    assert follower.stdout == "before\nafter, by a program\nhalf a line\n"
    assert "[attempt 1: done]" in follower.stderr
    assert bed.cli.run("log", "jobs:runner", id).stdout == follower.stdout
    bed.stop(supervisor)


def test_a_job_is_followed_from_try_to_try(bed: Bed) -> None:
    id = bed.put("third_try_talks")
    follower = bed.cli.start("log", "jobs:runner", id, "--follow")
    follower.wait_log("pending: waiting for it to start")
    supervisor = bed.start(slots=2)
    bed.ended(id)
    assert follower.wait() == 0
    assert follower.stdout == "try 1\ntry 2\ntry 3\n"
    assert [line for line in follower.stderr.splitlines() if "attempt" in line] == [
        "[attempt 1: raised ValueError: 1]", "[attempt 2: raised ValueError: 2]", "[attempt 3: done]",
    ]  # fmt: skip
    bed.stop(supervisor)


def test_whoever_is_slower_than_a_flood_is_told_what_was_given_up(bed: Bed) -> None:
    supervisor = bed.start(slots=2, output_limit="200kB")
    id = bed.put("flood_and_hold", {"lines": 1_000_000, "path": bed.path("go")})
    bed.wait_noted("flooded", id)
    # the middle is cut ten times a second
    row = bed.row(id)
    (holder,) = bed.store.supervisors()
    live = Live(id, 1, holder)
    text = b"".join(iter(live.read, b"")).decode()
    live.close()
    found = numbers(text)
    assert (found[0], found[-1], row.state) == (0, 999_999, State.BUSY)
    assert "\0" not in text
    (gap,) = re.findall(r"\[\.\.\. (\d+) bytes left out", text)
    assert len(text) - len(scratch.LEFT_OUT % int(gap)) + int(gap) == sum(
        len(f"line {n}\n") for n in range(1_000_000)
    )
    bed.let_go()
    bed.ended(id)
    bed.stop(supervisor)


def test_elsewhere_it_is_said_where_to_look(bed: Bed) -> None:
    row = SupervisorRow("s", "far-away", "boot", "1", 1, 1, "jobs:runner", 2, "1")
    bed.store.register(row, 60)
    id = bed.put("noop")
    assert bed.store.claim("s", 1, None)
    found = bed.cli.run("log", "jobs:runner", id, status=1)
    assert found.status == 1
    assert found.stderr == (
        "forkrunner: attempt 1 runs, and its output is kept when it ends: it runs on host far-away; there `forkrunner log -f`"
        " shows its output while it runs\n"
    )
    with pytest.raises(NotHere, match="its supervisor is gone"):
        Live(id, 1, None)
    bed.store.deregister("s")


def test_of_a_job_that_has_not_started_that_is_said(bed: Bed) -> None:
    id = bed.put("noop")
    for cancelled, words in ((False, "pending: it has not started yet"), (True, "cancelled: it never ran")):
        if cancelled:
            bed.store.cancel(id)
        assert bed.cli.run("log", "jobs:runner", id, status=1).stderr == f"forkrunner: job {id} is {words}\n"
    found = bed.cli.run("log", "jobs:runner", id, "--attempt", "2", status=1)
    assert "has no such attempt (ended: none; state cancelled)" in found.stderr


def test_follow_says_what_it_does_not_go_with(bed: Bed) -> None:
    id = bed.put("noop")
    found = bed.cli.run("log", "jobs:runner", id, "-f", "--json", status=2)
    assert found.status == 2
    assert "expected no --json" in found.stderr


@pytest.mark.parametrize("limit", [1, 10, 4096, 10_000, 100_000])
def test_head_and_tail_are_kept_of_whatever_size_a_file_is(limit: int) -> None:
    import os

    for size in {0, 1, limit // 2, 3 * limit // 4, limit - 1, limit, limit + 1, 5 * limit}:
        fd = scratch_file("test")
        data = bytes(33 + n % 90 for n in range(size))
        os.write(fd, data)
        cut = scratch.cut(fd, limit)
        kept = head_and_tail(fd, limit, cut)
        os.close(fd)
        assert b"\0" not in kept
        if kept != data:
            head, _, rest = kept.partition(b"\n[... ")
            count, _, tail = rest.partition(b" bytes left out ...]\n")
            assert data.startswith(head)
            assert data.endswith(tail)
            assert len(head) + int(count) + len(tail) == size
            assert len(head) + len(tail) >= 3 * (limit // 4)
        else:
            assert size <= limit


def held(supervisor: Process) -> list[str]:
    """Return the outputs of jobs that a supervisor holds open."""
    found = []
    for link in Path(f"/proc/{supervisor.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += [str(link.readlink())]
    return [name for name in found if name.startswith("/memfd:forkrunner-output")]


@pytest.mark.parametrize("how", ["killed", "hangs", "upgraded"])
def test_what_a_lost_attempt_wrote_is_kept(sqlite_bed: Bed, how: str) -> None:
    """The mold that knew its output is gone; the supervisor has it too, and the process and its bill."""
    bed = sqlite_bed
    supervisor = bed.start(slots=3, mold_timeout=1, output_limit="200kB")
    options = {"max_crashes": 1}
    little = bed.put("talk", {"path": bed.path("never")}, options=options)
    much = bed.put("flood_and_hold", {"lines": 100_000, "path": bed.path("never")}, options=options)
    nothing = bed.put("hold", {"path": bed.path("never")}, options=options)
    (flooded,) = bed.wait_noted("flooded", much)
    bed.wait_noted("start", count=3)
    wait_until(lambda: len(held(supervisor)) == 3)
    if how == "upgraded":
        supervisor.signal(signal.SIGUSR2)
        supervisor.wait_log("has taken over", LONG)
        wait_until(lambda: len(held(supervisor)) == 3)
    (mold,) = supervisor.wait_ps("forkrunner: mold")
    os.kill(mold, signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
    rows = {id: bed.ended(id) for id in (little, much, nothing)}
    for row in rows.values():
        (attempt,) = row.attempts
        assert attempt.outcome is Outcome.LOST
        assert attempt.run_seconds is not None
        assert attempt.run_seconds > 0
        assert attempt.minor_faults
    assert rows[much].attempts[0].pid == flooded.pid
    assert (rows[much].attempts[0].cpu_user_seconds or 0) > 0
    assert bed.cli.run("log", "jobs:runner", little).stdout == "before\n"
    found = numbers(text := bed.cli.run("log", "jobs:runner", much).stdout)
    assert (found[0], found[-1]) == (0, 99_999)
    assert "bytes left out" in text
    assert bed.cli.run("log", "jobs:runner", nothing).stderr == "Attempt 1 wrote nothing.\n"
    assert held(supervisor) == []
    bed.stop(supervisor)


def test_it_is_said_that_what_a_lost_attempt_wrote_is_not_known(sqlite_bed: Bed) -> None:
    """Its supervisor is gone as well; or it has killed its mold before anybody else knew of it."""
    bed = sqlite_bed
    first = bed.start(grace_period=LONG)
    id = bed.put("talk", {"path": bed.path("never")}, options={"max_crashes": 1})
    bed.wait_noted("start", id)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = bed.start()
    at_once = bed.put("kill_others", {"generations": 1}, options={"max_crashes": 1})
    for lost, why in ((id, "its supervisor died or lost its lease"), (at_once, "its mold died (SIGKILL)")):
        assert [attempt.outcome for attempt in bed.ended(lost).attempts] == [Outcome.LOST]
        said = bed.cli.run("log", "jobs:runner", lost).stderr
        assert said == f"What attempt 1 wrote is not known: {why}.\n"
        assert bed.cli.run("log", "jobs:runner", lost, "--json").json["output"] is None
        assert re.search(
            r"^ +output +not known$", bed.cli.run("show", "jobs:runner", lost).stdout, re.MULTILINE
        )
    bed.stop(second)


def test_the_outputs_of_those_that_have_ended_are_not_held(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    id = bed.put("talk", {"path": bed.path("go")})
    wait_until(lambda: len(held(supervisor)) == 1)
    bed.let_go()
    bed.ended(id)
    assert held(supervisor) == []
    bed.stop(supervisor)
