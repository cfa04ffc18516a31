"""A user's file as `mypy --strict` must see it: right code without a word, and an error where one is due.

Never run. An ignore that is not needed is an error in strict mode, so each one stands for an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from forkrunner import Job, Outcome, Runner, State, Task, current_job, progress, safe_point

runner = Runner("sqlite:///jobs.db", slots=4)


@dataclass
class Shape:
    name: str


@runner.task
def convert(source: str, scale: float = 1.0) -> dict[str, int]:
    progress(0.5, f"Frame {scale}", frame=3)
    progress(fraction=0.5, message="Frame 3", frame=3)
    progress(None, message="Frame 4")
    progress(message="Frame 5")
    return {"frames": len(source)}


@runner.task(queue="slow", max_attempts=3, timeout="10m", backoff=[1, timedelta(seconds=5)], memory="200MB")
def render(shape: Shape, *, folder: Path, when: datetime | None = None) -> list[Shape]:
    return [shape]


@runner.task
async def fetch(url: str) -> bytes:
    return url.encode()


@runner.task(retry_for=OSError, give_up_on=(FileNotFoundError, PermissionError), at_most_once=True)
async def send(to: str) -> None: ...


# --- what is right

job = convert.enqueue("a.txt", scale=2.0)
assert_type(job, Job[dict[str, int]])
assert_type(job.id, str)
assert_type(job.state, State)
assert_type(job.result, dict[str, int] | None)
assert_type(job.wait(timeout=30), Job[dict[str, int]])
assert_type(job.cancel("why").retry().refresh(), Job[dict[str, int]])
for attempt in job.attempts:
    assert_type(attempt.outcome, Outcome)

assert_type(convert("a.txt"), dict[str, int])
assert_type(render(Shape("a"), folder=Path()), list[Shape])
assert_type(render.using(delay=60, priority=5).enqueue(Shape("a"), folder=Path()), Job[list[Shape]])
assert_type(
    render.using(run_at=datetime.now(UTC), timeout=None).enqueue(Shape("a"), folder=Path()).result,
    list[Shape] | None,
)
assert_type(
    runner.enqueue_many([convert.call("a"), convert.using(queue="q").call("b")]), list[Job[dict[str, int]]]
)
assert_type(runner.get(job.id), Job[Any])
assert_type(runner.list(state="done", limit=3), list[Job[Any]])
assert_type(runner.enqueue("convert", {"source": "a"}, delay="10m"), Job[Any])
assert_type(fetch.enqueue("https://example.org"), Job[bytes])
assert_type(send.enqueue("somebody").result, None)
takes_a_task: Task[[str], bytes] = fetch
current = current_job()
if current is not None:
    assert_type(current.attempt, int)
    assert_type(current.time_left, float | None)
    assert_type(current.deadline, datetime | None)
assert_type(job.cancel("why", actor="who").pause().resume(), Job[dict[str, int]])
safe_point()
safe_point({"row": 7})


@runner.before_fork
def warm_up() -> int:
    return 1


@runner.before_exit
def flush() -> None: ...


assert_type(warm_up(), int)
runner.after_fork(flush)


async def view() -> None:
    assert_type(await fetch("https://example.org"), bytes)


# --- what is wrong

convert.enqueue("a.txt", scale="x")  # type: ignore[arg-type]
convert.enqueue(Path("a.txt"))  # type: ignore[arg-type]
convert.enqueue()  # type: ignore[call-arg]
convert.enqueue("a.txt", scal=2.0)  # type: ignore[call-arg]
convert.call(3)  # type: ignore[arg-type]
convert(3)  # type: ignore[arg-type]
convert.using(queue="q").enqueue(3)  # type: ignore[arg-type]
convert.using(que="q")  # type: ignore[call-arg]
convert.using(priority="high")  # type: ignore[arg-type]
fetch.enqueue(3)  # type: ignore[arg-type]
send.using(delay=1).enqueue()  # type: ignore[call-arg]
wrong: str = convert.enqueue("a").result  # type: ignore[assignment]
runner.task(max_attempts="3")  # type: ignore[call-overload]
progress("half", 3)  # type: ignore[arg-type]
progress(message=3)  # type: ignore[arg-type]
runner.enqueue("convert", ["a"])  # type: ignore[arg-type]
job.state = State.DONE  # type: ignore[misc]
runner.before_exit(convert)  # type: ignore[type-var]
