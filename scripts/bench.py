"""Measures what a job costs, beside the cheapest process that this machine can make.

Each job goes the product's own way: enqueued, claimed, run in a child of its own, its outcome and its bill
written; that is asserted from the rows after every run. The control is a bare interpreter that forks, exits and
waits and does nothing else. Control and databases take turns, and each ratio is to the controls just before and
just after, so that the load of other programs falls on both. All servers are throw-away; PostgreSQL has its own
defaults for durability (fsync on, synchronous_commit on).

CPU and page faults are the kernel's accounts of whole processes, from the supervisor's "runs" line to the last job's
end. The mold's children (jobs and unused spares) are what it has reaped.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

# Before anything of forkrunner is imported: no setting of the machine changes a figure.
for _name in [name for name in os.environ if name.startswith("FORKRUNNER_")]:
    del os.environ[_name]

import bench_app  # noqa: E402
from bench_rig import (  # noqa: E402
    SLOTS,
    Cost,
    Database,
    PostgresDatabases,
    SQLiteFiles,
    Supervisor,
    machine_seconds,
    memory,
    wait_until,
)
from bench_show import rounded, show  # noqa: E402

from forkrunner import Job, Runner  # noqa: E402
from tests.servers import Postgres, find  # noqa: E402

#: The target: no-op jobs on PostgreSQL per second, as a share of the control.
TARGET = 0.40

#: Eight alive, because one at a time would measure the latency of a wake-up; from `posix` itself, without `os`.
_CONTROL = """
from posix import fork, wait, _exit
from time import monotonic
import resource, sys
count = alive = 0
start = monotonic()
end = start + float(sys.argv[1])
while monotonic() < end:
    if alive == 8:
        wait()
        alive -= 1
        count += 1
    if fork() == 0:
        _exit(0)
    alive += 1
while alive:
    wait()
    alive -= 1
    count += 1
seconds = monotonic() - start
both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(count / seconds, sum(u.ru_utime + u.ru_stime for u in both) * 1000 / count, sum(u.ru_minflt for u in both) / count)
"""


@dataclass
class Control:
    """One run of the control; CPU and page faults of parent and child together, for each fork."""

    forks_per_s: float
    cpu_ms: float
    faults: float


def control(seconds: float) -> Control:
    """Fork in the cheapest interpreter for some seconds."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CONTROL, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    try:
        output, _ = process.communicate(timeout=seconds + 30)
    finally:
        process.kill()
        process.wait()
    return Control(*map(float, output.split()))


# --------------------------------------------------------------------------- what is measured


@dataclass
class Run:
    """One emptying of a queue of no-op jobs; times in seconds, CPU and faults per job."""

    jobs: int
    jobs_per_s: float
    supervisor_cpu_ms: float
    mold_cpu_ms: float
    child_cpu_ms: float
    database_cpu_ms: float
    #: What other programs took of the whole machine meanwhile.
    others_cpu_percent: float
    supervisor_faults: float
    mold_faults: float
    child_faults: float
    #: Rate and CPU of a job beside those of a fork in the controls just before and after.
    ratio: float = 0.0
    cpu_ratio: float = 0.0

    def compare(self, before: Control, after: Control) -> None:
        cpu = self.supervisor_cpu_ms + self.mold_cpu_ms + self.child_cpu_ms + self.database_cpu_ms
        self.ratio = self.jobs_per_s * 2 / (before.forks_per_s + after.forks_per_s)
        self.cpu_ratio = (before.cpu_ms + after.cpu_ms) / 2 / cpu


class Bench:
    def __init__(self, folder: Path, server: Postgres) -> None:
        self.folder = folder
        self.postgresql = PostgresDatabases(server)
        self.sqlite = SQLiteFiles(folder)

    @contextlib.contextmanager
    def database(self, kind: Database) -> Iterator[tuple[str, Runner]]:
        """A fresh database and an application's way to it."""
        url = kind.fresh()
        runner = Runner(url)
        try:
            yield url, runner
        finally:
            runner.close()
            kind.drop(url)

    # ------------------------------------------------------------------ jobs per second

    def jobs(self, kind: Database, count: int) -> Run:
        """Empty a queue of `count` no-op jobs; from the first start to the last end, by the rows."""
        with self.database(kind) as (url, runner):
            task = runner.task(bench_app.noop.function)
            runner.enqueue_many([task.call() for _ in range(count)])
            with Supervisor(self.folder, url) as running:
                parts = [[running.pid], [running.mold], kind.processes()]
                busy, before = machine_seconds(), [Cost.of(*pids) for pids in parts]
                start = time.monotonic()
                live = "select 1 from forkrunner_jobs where state = 'pending' or state = 'busy' limit 1"
                wait_until(lambda: not kind.query(url, live), running, 30 + count / 20)
                parts[2] = kind.processes()
                seconds = time.monotonic() - start
                costs = [Cost.of(*pids) - earlier for pids, earlier in zip(parts, before, strict=True)]
                busy = machine_seconds() - busy
            rate = self.check(kind, url, count)
        supervisor, mold, server = costs
        ours = supervisor.cpu + mold.cpu + mold.cpu_reaped + server.cpu
        each = 1000 / count
        return Run(
            jobs=count,
            jobs_per_s=rate,
            supervisor_cpu_ms=supervisor.cpu * each,
            mold_cpu_ms=mold.cpu * each,
            child_cpu_ms=mold.cpu_reaped * each,
            database_cpu_ms=server.cpu * each,
            others_cpu_percent=max(0.0, busy - ours) / seconds / (os.cpu_count() or 1) * 100,
            supervisor_faults=supervisor.faults / count,
            mold_faults=mold.faults / count,
            child_faults=mold.faults_reaped / count,
        )

    def check(self, kind: Database, url: str, count: int) -> float:
        """Assert that every job went the whole way, and return jobs per second.

        A process for each, its outcome, attempt and bill written.
        """
        jobs = "select count(*) from forkrunner_jobs where state = 'done' and attempt = 1 and finished_at is not null"
        attempts = (
            "select count(*), count(distinct job_id), count(distinct pid) from forkrunner_attempts where outcome = 'done'"
            " and cpu_user_seconds + cpu_system_seconds > 0 and peak_memory_bytes is not null"
        )
        everything = (
            "select (select count(*) from forkrunner_jobs), (select count(*) from forkrunner_attempts),"
            " min(started_at), max(finished_at) from forkrunner_attempts"
        )
        found = [kind.query(url, statement)[0] for statement in (jobs, attempts, everything)]
        if (*found[0], *found[1], *found[2][:2]) != (count,) * 6:
            raise SystemExit(f"bench: of {count} jobs on {kind.name} the rows show {found}")
        first, last = (_seconds(moment) for moment in found[2][2:])
        return count / (last - first)

    def rounds(
        self, number: int, seconds: float, longest: float
    ) -> tuple[list[Control], dict[str, list[Run]]]:
        """Measure control and databases in turns, some `seconds` for each.

        Fewer turns than `number` if they take more than `longest` seconds in all.
        """
        kinds: tuple[Database, ...] = (self.postgresql, self.sqlite)
        end = time.monotonic() + longest
        say("control")
        controls = [control(seconds / 2)]
        # a guess is enough: for how long it is measured makes no difference
        count = max(200, min(10_000, int(controls[0].forks_per_s * TARGET * seconds)))
        runs: dict[str, list[Run]] = {kind.name: [] for kind in kinds}
        for turn in range(number):
            start = time.monotonic()
            for kind in kinds:
                say(f"round {turn + 1} of {number}: {count} jobs on {kind.name}")
                run = self.jobs(kind, count)
                controls.append(control(seconds / 2))
                run.compare(*controls[-2:])
                runs[kind.name].append(run)
            if 2 * time.monotonic() - start > end:
                break
        return controls, runs

    # ------------------------------------------------------------------ latency and enqueue

    def pickups(self, kind: Database, number: int, longest: float) -> list[float]:
        """Return the milliseconds from the call of enqueue to the task's first line, sorted.

        Fewer than `number` if their enqueuing takes more than `longest` seconds.
        """
        say(f"pickup of {number} jobs on {kind.name}")
        with self.database(kind) as (url, runner):
            task = runner.task(bench_app.stamp.function)
            task.enqueue()  # the connection is made, and this one does not count
            with Supervisor(self.folder, url) as running:
                live = "select 1 from forkrunner_jobs where state = 'pending' or state = 'busy' limit 1"
                wait_until(lambda: not kind.query(url, live), running, 10)
                calls: list[tuple[float, Job[float]]] = []
                end = time.monotonic() + longest
                while len(calls) < number and time.monotonic() < end:
                    time.sleep(random.uniform(0.03, 0.09))
                    start = time.monotonic()
                    calls.append((start, task.enqueue()))
                wait_until(lambda: not kind.query(url, live), running, 10)
            found = []
            for start, job in calls:
                if job.result is None:
                    raise SystemExit(f"bench: {job!r} did not run: {job.error}")
                found.append((job.result - start) * 1000)
        return sorted(found)

    def enqueues(self, kind: Database, seconds: float) -> tuple[float, float]:
        """Return single and bulk enqueues per second, from one process."""
        say(f"enqueue on {kind.name}")
        with self.database(kind) as (_, runner):
            task = runner.task(bench_app.noop.function)
            task.enqueue()
            single = rate(task.enqueue, 1, seconds)
            bulk = rate(lambda: runner.enqueue_many([task.call() for _ in range(1000)]), 1000, seconds)
        return single, bulk

    @contextlib.contextmanager
    def idle(self, seconds: float, found: dict[str, float]) -> Iterator[None]:
        """Count what an idle supervisor asks PostgreSQL while the body runs, for `seconds` at least.

        All statements that reach the server, begin and commit included, by its own log.
        """
        with self.database(self.postgresql) as (url, _):
            name = url.rpartition("/")[2]
            with self.postgresql.server.connect() as connection:
                connection.execute(f"alter database \"{name}\" set log_statement = 'all'")
            with Supervisor(self.folder, url) as running:
                time.sleep(1.0)  # what is asked once, at the start, is over
                log = self.postgresql.server.folder / "log"
                size, before, start = log.stat().st_size, Cost.of(running.pid), time.monotonic()
                yield
                say("idle supervisor")
                time.sleep(max(0.0, start + seconds - time.monotonic()))
                with open(log, "rb") as file:
                    file.seek(size)
                    text = file.read().decode(errors="replace")
                passed = time.monotonic() - start
                cpu = (Cost.of(running.pid) - before).cpu
        lines = re.findall(rf"\] {name} LOG:  (?:statement|execute [^:]*): (.*)", text)
        real = [line for line in lines if not re.match(r"(?i)(begin|commit|rollback)\b", line)]
        found["idle_statements_per_minute"] = len(lines) * 60 / passed
        found["idle_without_begin_commit_per_minute"] = len(real) * 60 / passed
        found["idle_supervisor_cpu_percent"] = cpu / passed * 100
        found["idle_seconds_watched"] = passed

    # ------------------------------------------------------------------ leaks

    def leaks(self, kind: Database, count: int, size: int) -> dict[str, Any]:
        """Run jobs that each leak `size` bytes, and return the memory of supervisor and mold at some of them."""
        with self.database(kind) as (url, runner):
            task = runner.task(bench_app.leak.function)
            runner.enqueue_many([task.call(size) for _ in range(count)])
            marks = sorted({10, count // 10, count // 2, count})
            found: dict[str, Any] = {}
            with Supervisor(self.folder, url, slots=4) as running:
                for mark in marks:
                    say(f"leaking {size >> 20} MB a job on {kind.name}: job {mark} of {count}")
                    done = f"select count(*) >= {mark} from forkrunner_attempts"
                    wait_until(lambda done=done: kind.query(url, done)[0][0], running, 600, 0.01)  # type: ignore[misc]
                    found[str(mark)] = {"supervisor": memory(running.pid), "mold": memory(running.mold)}
            self.check(kind, url, count)
        first, last = found["10"], found[str(count)]
        found["growth_percent"] = {part: (last[part] / first[part] - 1) * 100 for part in first}
        return found


def _seconds(moment: Any) -> float:
    if isinstance(moment, str):
        from datetime import datetime

        moment = datetime.fromisoformat(moment)
    return float(moment.timestamp())


def rate(work: Callable[[], object], each: int, seconds: float) -> float:
    """Call for some seconds and return per second, `each` things at a call."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        work()
        count += each
    return count / passed


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the sorted ones do not exceed."""
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))]


# --------------------------------------------------------------------------- all of it


def say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text} …", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpus": os.cpu_count(),
        "cpu_model": model[1] if model else platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_before": os.getloadavg()[0],
    }


def measure(bench: Bench, quick: bool) -> dict[str, Any]:
    """Measure everything but the leaks."""
    facts = machine()
    with bench.postgresql.server.connect() as connection:
        facts["postgresql"] = connection.execute("show server_version").fetchone()[0]
        names = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        facts["postgresql_settings"] = {n: connection.execute(f"show {n}").fetchone()[0] for n in names}
    facts["postgresql_connection"] = "TCP on 127.0.0.1"
    controls, runs = bench.rounds(*((3, 2.0, 26.0) if quick else (7, 4.0, 300.0)))
    pickups = {"postgresql": bench.pickups(bench.postgresql, *((100, 8.0) if quick else (300, 60.0)))}
    enqueues = {"postgresql": bench.enqueues(bench.postgresql, 0.7 if quick else 3.0)}
    idle: dict[str, float] = {}
    # an idle supervisor takes nothing from SQLite's figures, and the waiting is used
    with bench.idle(15 if quick else 60, idle):
        pickups["sqlite"] = bench.pickups(bench.sqlite, *((80, 6.0) if quick else (300, 60.0)))
        enqueues["sqlite"] = bench.enqueues(bench.sqlite, 0.7 if quick else 3.0)
    facts["load_after"] = os.getloadavg()[0]

    def median(kind: str, field: str) -> float:
        return float(statistics.median(getattr(run, field) for run in runs[kind]))

    figures: dict[str, Any] = {
        "control_forks_per_s": statistics.median(one.forks_per_s for one in controls),
        "control_cpu_ms_per_fork": statistics.median(one.cpu_ms for one in controls),
        "control_page_faults_per_fork": statistics.median(one.faults for one in controls),
    }
    for kind in ("postgresql", "sqlite"):
        figures[f"{kind}_jobs_per_s"] = median(kind, "jobs_per_s")
        figures[f"{kind}_ratio"] = median(kind, "ratio")
        figures[f"{kind}_cpu_ratio"] = median(kind, "cpu_ratio")
    for kind, prefix in (("postgresql", ""), ("sqlite", "sqlite_")):
        for share in (50, 95, 99):
            figures[f"{prefix}pickup_p{share}_ms"] = quantile(pickups[kind], share / 100)
        figures[f"{prefix}enqueue_per_s"], figures[f"{prefix}enqueue_many_per_s"] = enqueues[kind]
        parts = ("supervisor", "mold", "child", *(["database"] if kind == "postgresql" else []))
        for part in parts:
            figures[f"{prefix}{part}_cpu_ms_per_job"] = median(kind, f"{part}_cpu_ms")
        for part in ("supervisor", "mold", "child"):
            figures[f"{prefix}{part}_page_faults_per_job"] = median(kind, f"{part}_faults")
    figures |= idle
    figures["target_postgresql_ratio"] = TARGET
    figures["slots"] = SLOTS
    figures["pickup_samples"] = {kind: len(found) for kind, found in pickups.items()}
    figures["machine"] = facts
    figures["rounds"] = {k: [vars(run) for run in found] for k, found in runs.items()}
    figures["rounds"]["control"] = [vars(one) for one in controls]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures forkrunner on this machine.")
    parser.add_argument("--quick", action="store_true", help="less than a minute; rougher")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument(
        "--leak", action="store_true", help="only: jobs that leak 50 MB each, and who grows by it"
    )
    parser.add_argument("--leak-jobs", type=int, default=1000, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if find("initdb") is None:
        parser.error("expected PostgreSQL's server programs; on Debian: apt-get install postgresql")
    # TERM as Ctrl-C: everything is stopped on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # as pip does when it installs: a mold that has to compile what it imports keeps a megabyte of it, which every fork copies
    compileall.compile_dir(ROOT / "forkrunner", quiet=2)
    compileall.compile_dir(ROOT / "scripts", quiet=2)
    folder = Path(tempfile.mkdtemp(prefix="forkrunner-bench-"))
    os.chdir(folder)  # no forkrunner.toml of the caller's changes a figure
    try:
        say("starting PostgreSQL")
        # its defaults, where the tests' server has other ones
        with Postgres(fsync="on", full_page_writes="on", shared_buffers="128MB", jit="on") as server:
            bench = Bench(folder, server)
            if options.leak:
                figures = {"leak": bench.leaks(bench.sqlite, options.leak_jobs, 50 << 20)}
            else:
                figures = measure(bench, options.quick)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rounded(figures)))
    else:
        show(figures)


if __name__ == "__main__":
    main()
