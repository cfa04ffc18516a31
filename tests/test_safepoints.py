"""What people want of a running job: cancel, pause, and safe points, by signal × situation, against the real command."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from forkrunner.job import Outcome, State
from forkrunner.records import Row
from tests.running import LONG, SOURCE, Bed, check_gone, tree_of
from tests.support import Cli, alive, proc, wait_until

TASKS = '''
# -------------------------------------------------------------------------- test_safepoints.py

from forkrunner import LeaveJob, safe_point


def leave_at_term() -> None:
    def leave(*_: object) -> None:
        note("term")
        os._exit(7)

    signal.signal(signal.SIGTERM, leave)


@runner.task
def count(to: int, pause: float = 0.02, keep: str = "cursor") -> list[int]:
    """Count, a safe point at each number; from where an earlier attempt left."""
    begin()
    leave_at_term()
    cursor = current_job().cursor
    start = at = cursor if isinstance(cursor, int) else 0
    try:
        while at < to:
            try:
                safe_point({"cursor": at, "same": "x", "none": None}[keep])
            except Exception:  # noqa: BLE001
                note("caught")
            if at - start == 3:
                note("counting")
            time.sleep(pause)
            at += 1
    finally:
        note("finally")
    note("end")
    return [start, at]


@runner.task(at_most_once=True)
def count_once(to: int) -> list[int]:
    return count(to)


@runner.task(requeue_on_reload=True)
def count_reloaded(to: int) -> list[int]:
    return count(to)


@runner.task
def hold_to_it() -> int:
    """Catch what must not be caught, twice; then let go."""
    begin()
    caught = 0
    while True:
        try:
            time.sleep(0.01)
            safe_point([caught])
        except BaseException as error:
            assert isinstance(error, LeaveJob)
            caught += 1
            note("caught")
            if caught == 3:
                raise


@runner.task
def count_in_thread(path: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def loop() -> None:
        while True:
            time.sleep(0.01)
            safe_point("in a thread")

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(loop)
        begin()
        future.result()


@runner.task
async def count_async() -> None:
    import asyncio

    begin()
    while True:
        await asyncio.sleep(0.01)
        safe_point("async")


@runner.task
async def count_in_groups(beside: str = "") -> None:
    """Pass safe points in a group within a group; `beside` says what a task beside it does when that is cancelled."""
    import asyncio

    async def loop() -> None:
        while True:
            await asyncio.sleep(0.01)
            safe_point("in groups")

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(loop())

    async def other() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            note("cancelled")
            if beside == "raises":
                raise ValueError("not tidy") from None
            if beside == "wraps":
                raise BaseExceptionGroup("tidied up", [error]) from None
            raise

    begin()
    async with asyncio.TaskGroup() as group:
        group.create_task(inner())
        group.create_task(other())


@runner.task
def fork_and_count() -> int:
    """Let only a child pass safe points; it is not the job, and does not leave."""
    safe_point()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        begin()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            safe_point("child")
            time.sleep(0.01)
        note("end")
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@runner.task
def bad_cursor(kind: str) -> None:
    safe_point({"object": object(), "nan": float("nan"), "large": "x" * 70_000}[kind])


@runner.task
def cost() -> list[float]:
    """Seconds for a call that finds nothing wanted."""
    from timeit import repeat

    safe_point(1)
    return [min(repeat(lambda: safe_point(1), number=20_000)) / 20_000, min(repeat(safe_point, number=20_000)) / 20_000]


@runner.task
def mind_term() -> None:
    begin()
    leave_at_term()
    time.sleep(60)


@runner.task(timeout=300)
def about() -> dict[str, Any]:
    job = current_job()
    assert job is not None and job.deadline is not None
    return {"id": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt, "tries": job.tries,
            "arguments": job.arguments, "cursor": job.cursor, "left": job.time_left, "deadline": job.deadline.isoformat()}


@runner.task
def tick(program: bool = False, path: str = "") -> None:
    """Note each hundredth of a second, also by a program in a session of its own."""
    begin()
    if program:
        code = f"import time\\nwhile True: open({path!r}, 'a').write('x'); time.sleep(0.01)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while True:
        note("tick")
        time.sleep(0.01)


@runner.task
def fall(how: str, path: str) -> None:
    """Pass one safe point, and come to another end before the next."""
    safe_point(0)
    hold(path)
    if how != "return":
        {"raise": boom, "exit": lambda: leave(3), "crash": segfault, "fill": fill}[how]()


@runner.task
def hold_within(path: str) -> float:
    """Hold, and say what is left of the timeout."""
    hold(path)
    return current_job().time_left
'''


@pytest.fixture
def application() -> str:
    return SOURCE.read_text() + TASKS


def outcomes(row: Row) -> list[str]:
    return [str(attempt.outcome) for attempt in row.attempts]


def result(row: Row) -> Any:
    assert row.result is not None, row
    return json.loads(row.result)


# ---------------------------------------------------------------------------------- cancel


def test_cancel_while_a_job_runs_sends_term_first(bed: Bed) -> None:
    """The supervisor looks at its rows by itself every five minutes only: it must be told."""
    supervisor = bed.start(poll_interval=30)
    id = bed.put("mind_term")
    bed.wait_noted("start", id)
    assert bed.store.cancel(id, actor="somebody@somewhere") == State.BUSY
    row = bed.ended(id)
    assert (row.state, outcomes(row), row.tries, row.crashes) == (State.CANCELLED, ["cancelled"], 0, 0)
    assert (row.cancel_reason, row.cancel_actor) == (None, "somebody@somewhere")
    assert "by somebody@somewhere" in str(row.error)
    assert len(bed.noted("term", id)) == 1
    bed.stop(supervisor)


def test_cancel_while_a_job_passes_safe_points_sends_nothing(bed: Bed) -> None:
    supervisor = bed.start(poll_interval=30)
    id = bed.put("count", {"to": 10**6})
    bed.wait_noted("counting", id)
    bed.store.cancel(id, "not needed")
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert (row.state, attempt.outcome, attempt.error_message) == (
        State.CANCELLED,
        Outcome.CANCELLED,
        "not needed",
    )
    assert (attempt.signal, attempt.exit_status) == (None, 0)
    steps = json.loads(str(attempt.steps))
    assert [step["step"] for step in steps] == ["cancelled", "ended"]
    assert steps[0]["after"] <= steps[1]["after"]
    assert [line.event for line in bed.ledger()] == ["start", "counting", "finally"]
    assert int(str(row.cursor)) >= 3
    # it goes on there, if somebody wants it after all
    bed.store.retry(id)
    bed.wait_noted("start", id, 2)
    bed.store.cancel(id)
    row = bed.ended(id)
    assert (row.state, row.cancel_reason) == (State.CANCELLED, None)
    assert int(str(bed.row(id).cursor)) >= 3
    bed.stop(supervisor)


def test_cancel_while_a_job_is_away_from_its_safe_points(bed: Bed) -> None:
    """It gets `grace` to come to the next, and is then ended like any other."""
    supervisor = bed.start(grace=0.3)
    id = bed.put("count", {"to": 10**6, "pause": 60.0})
    bed.wait_noted("start", id)
    bed.store.cancel(id)
    row = bed.ended(id)
    assert (row.state, outcomes(row)) == (State.CANCELLED, ["cancelled"])
    assert len(bed.noted("term", id)) == 1
    bed.stop(supervisor)


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_cancel_while_a_job_comes_to_another_end(bed: Bed, max_attempts: int) -> None:
    """Whatever that is it is cancelled, at its last try too, and the log says so; unless it is done."""
    supervisor = bed.start(slots=6, grace=LONG)
    ends = {
        "return": "done",
        "raise": "raised",
        "exit": "exited",
        "crash": "crashed",
        "fill": "over_memory",
        "lost": "lost",
    }
    ids = {}
    for how in ends:
        options = {"max_attempts": max_attempts} | ({"memory": 64 << 20} if how == "fill" else {})
        path = bed.path("never" if how == "lost" else "go")
        ids[how] = bed.put("fall", {"how": how, "path": path}, options=options)
    bed.wait_noted("start", count=len(ids))
    for id in ids.values():
        bed.store.cancel(id, "not needed", actor="somebody")
    bed.let_go()
    for how in ends:
        if how == "lost":
            _, mold, _ = tree_of(supervisor)
            os.kill(mold, signal.SIGKILL)
        row = bed.ended(ids[how])
        assert outcomes(row) == [ends[how]]
        if how == "return":
            assert row.state == State.DONE
            continue
        assert (row.state, row.error) == (State.CANCELLED, "not needed")
        assert (row.cancel_reason, row.cancel_actor) == ("not needed", "somebody")
        supervisor.wait_log(f"fall {row.id} {ends[how]} in .*, attempt 1, cancelled: ")
    bed.stop(supervisor)


def test_an_idle_job_costs_no_statement_a_second(cli: Cli, postgresql_database: str) -> None:
    with Bed(cli, postgresql_database) as bed:
        supervisor = bed.start(poll_interval=30, lease=300, slots=1)
        id = bed.put("hold", {"path": bed.path("go")})
        bed.wait_noted("start", id)
        query = "select query_start from pg_stat_activity where application_name = 'forkrunner supervisor'"
        statements = [(time.monotonic(), bed.query(query))]

        def silent() -> bool:
            if (last := bed.query(query)) != statements[-1][1]:
                statements.append((time.monotonic(), last))
            return time.monotonic() > statements[-1][0] + 2.5

        wait_until(silent, interval=0.1)
        assert len(statements[-1][1]) == 1
        # the claim, and one look after it, in case it was cancelled meanwhile
        assert len(statements) <= 3
        bed.let_go()
        bed.ended(id)
        bed.stop(supervisor)


# ----------------------------------------------------------------------------------- pause


def stopped(pid: int) -> bool:
    found = proc(pid)
    return found is not None and found.state == "T"


def test_pause_while_a_job_runs_freezes_all_that_it_has_started(bed: Bed) -> None:
    supervisor = bed.start(poll_interval=30)
    id = bed.put("tick", {"program": True, "path": bed.path("ticks")})
    (start,) = bed.wait_noted("start", id)
    wait_until((bed.folder / "ticks").exists, LONG)
    program = next(found.pid for found in supervisor.ps() if found.ppid == start.pid)
    bed.store.pause(id)
    wait_until(lambda: stopped(start.pid) and stopped(program))
    assert (bed.row(id).state, bed.row(id).paused_at is not None) == (State.BUSY, True)
    before = len(bed.noted("tick")), (bed.folder / "ticks").stat().st_size
    end = time.monotonic() + 0.3
    wait_until(lambda: time.monotonic() > end)
    assert (len(bed.noted("tick")), (bed.folder / "ticks").stat().st_size) == before
    bed.store.resume(id)
    wait_until(
        lambda: len(bed.noted("tick")) > before[0] and (bed.folder / "ticks").stat().st_size > before[1]
    )
    assert bed.row(id).paused_at is None
    supervisor.wait_log(f"tick {id} goes on")
    bed.store.pause(id)
    wait_until(lambda: stopped(start.pid))
    bed.store.cancel(id, "enough")
    row = bed.ended(id)
    assert (row.state, outcomes(row), row.paused_at) == (State.CANCELLED, ["cancelled"], None)
    check_gone([start.pid, program])
    bed.stop(supervisor)


def test_pause_while_the_timeout_would_strike(bed: Bed) -> None:
    supervisor = bed.start()
    id = bed.put("hold_within", {"path": bed.path("go")}, options={"timeout": 5})
    (start,) = bed.wait_noted("start", id)
    bed.store.pause(id)
    wait_until(lambda: stopped(start.pid))
    # when it would have struck
    wait_until(lambda: time.monotonic() > start.at + 5.5)
    assert stopped(start.pid)
    bed.let_go()
    bed.store.resume(id)
    row = bed.ended(id)
    assert outcomes(row) == ["done"]
    assert 0 < result(row) < 5
    # nor does a pause keep the rest of it from passing
    id = bed.put("hold", {"path": bed.path("never")}, options={"timeout": 3, "grace": 0.2})
    (start,) = bed.wait_noted("start", id)
    bed.store.pause(id)
    wait_until(lambda: stopped(start.pid))
    bed.store.resume(id)
    assert outcomes(bed.ended(id)) == ["timed_out"]
    bed.stop(supervisor)


def test_term_while_a_job_is_paused(bed: Bed) -> None:
    """It is as if nobody had paused it: one leaves at its next safe point, the other is waited for."""
    supervisor = bed.start(slots=2)
    counting, holding = bed.put("count", {"to": 10**6}), bed.put("hold", {"path": bed.path("go")})
    starts = [*bed.wait_noted("counting", counting), *bed.wait_noted("start", holding)]
    bed.store.pause(counting)
    bed.store.pause(holding)
    wait_until(lambda: all(stopped(start.pid) for start in starts), LONG)
    supervisor.signal(signal.SIGTERM)
    row = bed.wait_row(counting, lambda row: row.state == State.PENDING)
    assert (outcomes(row), row.tries, row.paused_at) == (["requeued"], 0, None)
    assert int(str(row.cursor)) >= 3
    bed.let_go()
    assert outcomes(bed.ended(holding)) == ["done"]
    bed.stop(supervisor)


def test_pause_while_a_job_ends_in_an_old_mold(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    id = bed.put("hold", {"path": bed.path("go")})
    (start,) = bed.wait_noted("start", id)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_ps(r"forkrunner: mold .*\(draining\)", LONG)
    bed.store.pause(id)
    wait_until(lambda: stopped(start.pid))
    bed.let_go()
    bed.store.resume(id)
    assert outcomes(bed.ended(id)) == ["done"]
    bed.stop(supervisor)


def test_usr2_while_a_job_is_paused(bed: Bed) -> None:
    """What is wished for meanwhile is heard, though nobody listened."""
    supervisor = bed.start(poll_interval=30)
    ids = [bed.put("hold", {"path": bed.path("go")}), bed.put("mind_term")]
    starts = [bed.wait_noted("start", id)[0] for id in ids]
    bed.store.pause(ids[0])
    wait_until(lambda: stopped(starts[0].pid))
    supervisor.signal(signal.SIGUSR2)
    # while the program is loaded: it has not listened before it says that it is there
    bed.store.resume(ids[0])
    bed.store.cancel(ids[1])
    wait_until(lambda: not stopped(starts[0].pid))
    assert bed.ended(ids[1]).state == State.CANCELLED
    bed.let_go()
    assert outcomes(bed.ended(ids[0])) == ["done"]
    bed.stop(supervisor)


def test_kill_while_a_job_is_paused(bed: Bed) -> None:
    supervisor = bed.start()
    id = bed.put("hold", {"path": bed.path("go")})
    (start,) = bed.wait_noted("start", id)
    bed.store.pause(id)
    wait_until(lambda: stopped(start.pid))
    supervisor.signal(signal.SIGKILL)
    supervisor.wait(LONG)
    wait_until(lambda: not alive(start.pid))
    supervisor = bed.start()
    bed.wait_noted("start", id, 2)
    assert bed.row(id).paused_at is None, "a pause is of a process"
    bed.let_go()
    assert outcomes(bed.ended(id)) == ["lost", "done"]
    bed.stop(supervisor)


def test_pause_by_the_command_line(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    waiting = bed.put("noop", delay=1000)
    found = bed.cli.run("pause", "jobs:runner", waiting, status=1)
    assert f"job {waiting} cannot be paused: expected it busy, it is pending" in found.stderr
    supervisor = bed.start()
    id = bed.put("hold", {"path": bed.path("go")})
    (start,) = bed.wait_noted("start", id)
    assert (
        bed.cli.run("pause", "jobs:runner", id).stdout
        == f"{id} runs; its supervisor was asked to freeze it\n"
    )
    wait_until(lambda: stopped(start.pid))
    supervisor.wait_log(f"hold {id} is paused")
    assert " paused " in bed.cli.run("list", "jobs:runner", "--task", "hold").stdout
    assert "paused" in bed.cli.run("show", "jobs:runner", id).stdout
    assert bed.cli.run("show", "jobs:runner", id, "--json").json["paused_at"]
    assert bed.cli.run("resume", "jobs:runner", id, "--json").json == [{"id": id, "state": "busy"}]
    wait_until(lambda: not stopped(start.pid))
    bed.cli.run("cancel", "jobs:runner", id, "--reason", "no use", "--actor", "a test")
    row = bed.ended(id)
    assert (row.cancel_reason, row.cancel_actor) == ("no use", "a test")
    assert "a test, no use" in bed.cli.run("show", "jobs:runner", id).stdout
    bed.cli.run("cancel", "jobs:runner", waiting)
    assert "@" in str(bed.row(waiting).cancel_actor)
    bed.stop(supervisor)


# ----------------------------------------------------------------------------- safe points


@pytest.mark.core
def test_term_while_jobs_pass_safe_points(bed: Bed) -> None:
    """They leave at the next, count as nothing, and go on from there elsewhere."""
    supervisor = bed.start()
    ids = [bed.put("count", {"to": 100}), bed.put("count", {"to": 100})]
    for id in ids:
        bed.wait_noted("counting", id)
    bed.stop(supervisor)
    for id in ids:
        row = bed.row(id)
        (attempt,) = row.attempts
        assert (row.state, row.tries, row.crashes, attempt.outcome) == (State.PENDING, 0, 0, Outcome.REQUEUED)
        assert attempt.error_message == "left at a safe point: its supervisor stops"
        assert (attempt.signal, attempt.exit_status) == (None, 0)
        assert int(str(row.cursor)) >= 3
    assert (bed.noted("caught"), bed.noted("term"), len(bed.noted("finally"))) == ([], [], 2)
    cursors = [int(str(bed.row(id).cursor)) for id in ids]
    supervisor = bed.start()
    for id, cursor in zip(ids, cursors, strict=True):
        row = bed.ended(id)
        assert (outcomes(row), row.tries, row.cursor) == (["requeued", "done"], 1, None)
        assert result(row) == [cursor, 100]
    bed.check_history(ids)
    bed.stop(supervisor)


@pytest.mark.parametrize(("beside", "left"), [("", True), ("wraps", True), ("raises", False)])
def test_a_safe_point_in_a_group_of_tasks(sqlite_bed: Bed, beside: str, left: bool) -> None:
    """It comes wrapped, also twice; an error of another task is not lost for it."""
    bed = sqlite_bed
    supervisor = bed.start(grace=LONG)
    id = bed.put("count_in_groups", {"beside": beside})
    bed.wait_noted("start", id)
    bed.store.cancel(id)
    row = bed.ended(id)
    (attempt,) = row.attempts
    assert len(bed.noted("cancelled", id)) == 1
    if left:
        assert (row.state, attempt.outcome, attempt.error_type) == (State.CANCELLED, Outcome.CANCELLED, None)
        assert row.cursor == '"in groups"'
    else:
        assert (attempt.outcome, attempt.error_type) == (Outcome.RAISED, "BaseExceptionGroup")
        assert "ValueError: not tidy" in str(attempt.traceback)
    bed.stop(supervisor)


def test_a_stop_while_a_group_of_tasks_passes_safe_points(sqlite_bed: Bed) -> None:
    supervisor = sqlite_bed.start(grace_period=LONG)
    id = sqlite_bed.put("count_in_groups")
    sqlite_bed.wait_noted("start", id)
    sqlite_bed.stop(supervisor)
    row = sqlite_bed.row(id)
    assert (row.state, row.tries, row.cursor, outcomes(row)) == (
        State.PENDING,
        0,
        '"in groups"',
        ["requeued"],
    )


@pytest.mark.core
@pytest.mark.parametrize("task", ["count_in_thread", "count_async"])
def test_term_while_a_safe_point_is_passed_elsewhere(sqlite_bed: Bed, task: str) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    id = bed.put(task, {"path": ""} if task == "count_in_thread" else {})
    bed.wait_noted("start", id)
    bed.stop(supervisor)
    row = bed.row(id)
    assert (row.state, outcomes(row), bool(row.cursor)) == (State.PENDING, ["requeued"], True)


def test_term_while_a_job_holds_on_against_its_leaving(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    id = bed.put("hold_to_it")
    bed.wait_noted("start", id)
    bed.stop(supervisor)
    assert len(bed.noted("caught", id)) == 3
    assert (outcomes(bed.row(id)), bed.row(id).cursor) == (["requeued"], "[2]")


def test_term_while_a_job_that_runs_at_most_once_passes_safe_points(bed: Bed) -> None:
    """Given back it would never run again: it is waited for."""
    supervisor = bed.start()
    id = bed.put("count_once", {"to": 30})
    bed.wait_noted("counting", id)
    bed.stop(supervisor)
    assert outcomes(bed.row(id)) == ["done"]


@pytest.mark.core
def test_term_while_a_process_that_a_job_has_forked_passes_safe_points(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    id = bed.put("fork_and_count")
    bed.wait_noted("start", id)
    bed.stop(supervisor)
    assert (outcomes(bed.row(id)), bed.row(id).result) == (["done"], "3")


def test_hup_while_jobs_pass_safe_points(bed: Bed) -> None:
    """Those leave whose task says so, and go on in the new mold; the other ends in the old one."""
    supervisor = bed.start(slots=2)
    leaving, staying = bed.put("count_reloaded", {"to": 150}), bed.put("count", {"to": 150})
    bed.wait_noted("counting", leaving)
    bed.wait_noted("counting", staying)
    supervisor.signal(signal.SIGHUP)
    row = bed.ended(leaving)
    assert (outcomes(row), row.tries) == (["requeued", "done"], 1)
    assert row.attempts[0].error_message == "left at a safe point: the application was reloaded"
    assert result(row)[0] >= 3
    assert (outcomes(bed.ended(staying)), bed.noted("term")) == (["done"], [])
    bed.stop(supervisor)


def test_a_job_longer_than_its_timeout_gets_through_in_pieces(bed: Bed) -> None:
    supervisor = bed.start()
    id = bed.put("count", {"to": 40, "pause": 0.1}, options={"timeout": 2, "grace": 0.5})
    row = bed.ended(id)
    assert (row.state, row.tries, row.crashes) == (State.DONE, 1, 0), row
    assert outcomes(row)[-1] == "done"
    assert set(outcomes(row)[:-1]) == {"requeued"}
    assert row.attempts[0].error_message == "left at a safe point: its time limit was near"
    assert bed.noted("term") == []
    bed.stop(supervisor)


@pytest.mark.parametrize("keep", ["none", "same"])
def test_a_job_that_gets_no_further_runs_into_its_timeout(bed: Bed, keep: str) -> None:
    """With the same cursor it leaves once, without one never: else it would begin again for ever."""
    supervisor = bed.start()
    id = bed.put("count", {"to": 10**6, "keep": keep}, options={"timeout": 1, "grace": 0.2})
    row = bed.ended(id)
    assert row.state == State.FAILED
    assert outcomes(row) == (["timed_out"] if keep == "none" else ["requeued", "timed_out"])
    bed.stop(supervisor)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("object", "not JSON serializable"),
        ("nan", "not JSON compliant"),
        ("large", "at most 65536 bytes as JSON, got 70002"),
    ],
)
def test_a_cursor_that_no_row_takes(sqlite_bed: Bed, kind: str, words: str) -> None:
    """It is said at the first safe point, and not when somebody stops it."""
    bed = sqlite_bed
    supervisor = bed.start()
    (attempt,) = bed.ended(bed.put("bad_cursor", {"kind": kind})).attempts
    assert (attempt.outcome, attempt.error_type) == (Outcome.RAISED, "forkrunner.errors.CursorError")
    assert words in str(attempt.error_message)
    bed.stop(supervisor)


@pytest.mark.timing
def test_a_safe_point_costs_less_than_a_microsecond(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    supervisor = bed.start()
    for seconds in result(bed.ended(bed.put("cost"))):
        assert seconds < 1e-6
    bed.stop(supervisor)


def test_a_job_knows_about_itself(bed: Bed) -> None:
    supervisor = bed.start()
    id = bed.put("about")
    known = result(bed.ended(id))
    assert 0 < known.pop("left") <= 300
    assert known.pop("deadline").endswith("+00:00")
    assert known == {
        "id": id,
        "task": "about",
        "queue": "default",
        "attempt": 1,
        "tries": 0,
        "arguments": {},
        "cursor": None,
    }
    bed.stop(supervisor)
