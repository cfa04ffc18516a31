"""Memcached in trouble, and jobs that say very much: no job fails, none waits, nothing of it reaches the database."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from forkrunner.job import State
from forkrunner.places import Reader
from tests.running import LONG, Bed
from tests.servers import Memcached, Postgres, free_port
from tests.support import Cli, wait_until

APP = '''
import os, time
from forkrunner import Runner, progress
runner = Runner()

def in_queue() -> float:
    "Return how long this thread has been ready to run and did not, seconds."
    with open("/proc/thread-self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9

@runner.task
def talk(path: str, size: int = 0) -> dict[str, float]:
    """Say something 200 times a second until that file is there; return how often, and how long that took.

    Less what it waited for a processor, which others had.
    """
    calls, spent, detail = 0, 0.0, {"more": "x" * size}
    while not os.path.exists(path):
        calls += 1
        queued, start = in_queue(), time.perf_counter()
        progress(calls / 100_000, f"call {calls}", **detail)
        took = time.perf_counter() - start
        spent += max(0.0, took - (in_queue() - queued))
        time.sleep(0.005)
    return {"calls": calls, "spent": spent}

@runner.task
def shout(seconds: float, loud: bool) -> dict[str, float]:
    "Say something 1,000 times a second, or nothing; return how often, and the CPU time of all."
    calls, end = 0, time.monotonic() + seconds
    start = time.process_time()
    while time.monotonic() < end:
        for _ in range(10):
            calls += 1
            if loud:
                progress(calls / (seconds * 1000), f"call {calls}")
        time.sleep(max(0.0, 0.01 * calls / 10 - (seconds - (end - time.monotonic()))))
    return {"calls": calls, "cpu": time.process_time() - start}
'''


#: A statement in the log of PostgreSQL: of whom, and its first line.
STATEMENT = re.compile(r"<(.*)> LOG: +(?:statement|execute [^:]*): *(.*)")


class Trouble:
    """A memcached of the test's own, and what becomes of it while a job talks."""

    def __init__(self, stack: ExitStack, megabytes: int = 64) -> None:
        self.stack = stack
        self.server = stack.enter_context(Memcached(megabytes))
        self.url = self.server.url

    def nothing(self) -> None:
        pass

    def hiccup(self) -> None:
        self.server.pause()
        time.sleep(0.5)  # the trouble is of that length
        self.server.resume()

    def elsewhere(self) -> None:
        self.url = f"memcached://127.0.0.1:{free_port()}"

    def unreachable(self) -> None:
        """Take the place of a host that does not answer: a full queue of connections that nobody accepts."""
        deaf = self.stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            waiting = self.stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        self.url = f"memcached://127.0.0.1:{deaf.getsockname()[1]}"


#: What happens before the job starts, while it runs, whether there is progress at the end, and bytes of each word.
TROUBLES: dict[str, tuple[Callable[[Trouble], None], Callable[[Trouble], None], bool, int]] = {
    "none": (Trouble.nothing, Trouble.nothing, True, 0),
    "stopped before": (lambda t: t.server.pause(), Trouble.nothing, False, 0),
    "stopped while it runs": (Trouble.nothing, lambda t: t.server.pause(), False, 0),
    "stopped, and goes on": (
        Trouble.nothing,
        Trouble.hiccup,
        True,
        0,
    ),
    "killed while it runs": (Trouble.nothing, lambda t: t.server.stop("kill"), False, 0),
    "restarted while it runs": (Trouble.nothing, lambda t: t.server.restart("kill"), True, 0),
    "nobody at the port": (Trouble.elsewhere, Trouble.nothing, False, 0),
    "unreachable": (Trouble.unreachable, Trouble.nothing, False, 0),
    "tiny memory": (Trouble.nothing, Trouble.nothing, True, 15_000),
}


def talk(bed: Bed, trouble: Trouble, name: str) -> dict[str, float]:
    """Have a job talk for two seconds at least through this trouble, and return its result."""
    before, meanwhile, shown, size = TROUBLES[name]
    before(trouble)
    supervisor = bed.start(progress_url=trouble.url)
    id = bed.put("talk", {"path": bed.path("go"), "size": size})
    row = bed.wait_row(id, lambda row: row.state is State.BUSY)
    if shown:
        reader = Reader(
            {"url": trouble.url, "prefix": f"forkrunner-{next(bed.runtime.glob('*/progress')).parent.name}"}
        )
        wait_until(lambda: reader.get(id), message="progress")
    meanwhile(trouble)
    time.sleep(2)  # words of two seconds
    if shown:
        last = reader.get(id)
        wait_until(lambda: (reader.get(id) or {}) != last, message="the progress goes on")
        reader.close()
    bed.let_go()
    row = bed.ended(id)
    assert (row.state, row.error) == (State.DONE, None)
    trouble.server.resume()
    bed.stop(supervisor)
    result: dict[str, float] = json.loads(row.result or "")
    assert result["calls"] > 50
    return result


@pytest.fixture
def trouble(request: Any) -> Iterator[Trouble]:
    with ExitStack() as stack:
        yield Trouble(stack, megabytes=1 if "tiny" in request.node.name else 64)


@pytest.mark.memcached
@pytest.mark.parametrize("name", list(TROUBLES))
def test_a_job_is_done_whatever_becomes_of_memcached(
    cli: Cli, sqlite_database: str, trouble: Trouble, name: str
) -> None:
    with Bed(cli, sqlite_database, source=APP) as bed:
        spent = talk(bed, trouble, name)["spent"]
        # beside 50 ms: what a healthy one takes on a busy machine, for 40 words that are sent and 400 that are not
        assert spent < 0.05 + 0.15, f"{spent * 1000:.0f} ms"


@pytest.mark.memcached
@pytest.mark.timing
@pytest.mark.parametrize("name", ["none", "stopped while it runs", "unreachable"])
def test_it_delays_a_job_by_50_ms_at_most(
    cli: Cli, sqlite_database: str, trouble: Trouble, name: str
) -> None:
    with Bed(cli, sqlite_database, source=APP) as bed:
        spent = talk(bed, trouble, name)["spent"]
        print(f"{name}: {spent * 1000:.1f} ms")
        assert spent < 0.05


@pytest.mark.memcached
@pytest.mark.postgresql
@pytest.mark.timing
def test_20_jobs_that_say_1000_words_a_second(cli: Cli, memcached: Memcached) -> None:
    """No statement, at most 20 sets a second and job, and less than 2 % of a core for each."""
    jobs = 20
    logging = {"log_statement": "all", "log_line_prefix": "<%a> "}
    with Postgres(**logging) as postgres, Bed(cli, postgres.create_database(), source=APP) as bed:
        supervisor = bed.start(progress_url=memcached.url, slots=jobs)

        def round_of(seconds: int, loud: bool) -> tuple[float, float, float]:
            """Return what a job used of a core, and per second statements while all ran and sets of a job."""
            ids = bed.enqueue("shout", {"seconds": seconds, "loud": loud}, count=jobs)
            bed.wait_counts(busy=jobs)
            start, sets = len(postgres.log), memcached.stats()["cmd_set"]
            time.sleep(seconds - 2)  # what is counted is counted per second
            statements = STATEMENT.findall(postgres.log[start:])
            # a job has no connection of its own, and the supervisor says only what it says anyway
            assert {who for who, _ in statements} <= {"forkrunner supervisor", "forkrunner waker"}
            told.append(
                (
                    {text for _, text in STATEMENT.findall(postgres.log[:start])},
                    {text for _, text in statements},
                )
            )
            rows = [bed.ended(id, LONG) for id in ids]
            sets = memcached.stats()["cmd_set"] - sets
            results = [json.loads(row.result or "") for row in rows]
            assert min(result["calls"] for result in results) > 0.9 * seconds * 1000
            cpu = sum(result["cpu"] for result in results) / jobs
            # the first word and the last are beside the rate
            return cpu / seconds, len(statements) / (seconds - 2), (sets / jobs - 2) / seconds

        #: Of each round: the statements before it, and those while all jobs ran.
        told: list[tuple[set[str], set[str]]] = []
        quiet, few, _ = round_of(10, loud=False)
        loud, many, sets = round_of(10, loud=True)
        print(f"{loud - quiet:.2%} slower; {few:.1f} and {many:.1f} statements/s; {sets:.1f} sets/s a job")
        before, meanwhile = told[1]
        assert before
        assert meanwhile <= before
        assert many < few + 1
        assert 10 < sets <= 20
        assert loud - quiet < 0.02
        bed.stop(supervisor)
