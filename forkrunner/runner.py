"""What an application calls: a Runner, its tasks, and the jobs made of them.

Imported by web processes and by molds: everything that talks to a database is loaded when it is first
needed, and no connection is used on both sides of a fork.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from _thread import allocate_lock

from forkrunner import clock
from forkrunner.arguments import describe, did_you_mean, dump_named
from forkrunner.current import current
from forkrunner.errors import EnqueueError, JobNotFound, WaitTimeout
from forkrunner.hooks import Hooks
from forkrunner.tasks import (
    COROUTINE,
    DEFAULTS,
    AsyncTask,
    Call,
    P,
    R,
    Registry,
    Task,
    check_option,
    check_run_at,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins  # Runner.list hides the name in its class
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Any, Generic, Protocol, Self, overload

    from forkrunner.config import Settings
    from forkrunner.hooks import H
    from forkrunner.job import Attempt, Row, State
    from forkrunner.lifeline import Lifeline
    from forkrunner.store import Store
    from forkrunner.tasks import Duration, Size
    from forkrunner.watch import Watcher

    class Decorator(Protocol):
        """What `@runner.task(...)` gives: types pass through it."""

        @overload
        def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


else:
    from forkrunner.tasks import Generic

_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RELATIVE_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|file:)(.+)")
#: Seconds between two looks of `Job.wait`: the first, and the longest.
_SHORTEST_POLL, _LONGEST_POLL = 0.005, 0.25


# --------------------------------------------------------------------------- ids


class _Sequence:
    """The last id that this process has made."""

    __slots__ = ("last", "lock")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.last = 0


#: By pid: a child of a fork begins anew, also when another thread held the lock at the fork.
_sequences: dict[int, _Sequence] = {}


def new_id() -> str:
    """Make a UUIDv7 (RFC 9562): milliseconds since 1970, then 74 random bits.

    Those of one process sort in the order of their making: within a millisecond, or while the clock stands
    behind, the random part grows by a random step (method 2 of the RFC). Safe in threads and after forks.
    """
    pid = os.getpid()
    # setdefault is atomic: two threads get the same
    sequence = _sequences.get(pid) or _sequences.setdefault(pid, _Sequence())
    # the top bit stays free for the steps
    fresh = int(clock.wall() * 1000) << 74 | int.from_bytes(os.urandom(10)) >> 7
    with sequence.lock:
        if fresh >> 74 <= sequence.last >> 74:
            # an overflow carries into the milliseconds, which is what the RFC wants
            fresh = sequence.last + 1 + int.from_bytes(os.urandom(4))
        sequence.last = fresh
    milliseconds, random = fresh >> 74, fresh & (1 << 74) - 1
    number = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# --------------------------------------------------------------------------- inside a job


class CurrentJob:
    """The job that this process runs."""

    __slots__ = ("_arguments", "_cursor", "_deadline", "attempt", "id", "queue", "task", "tries")

    def __init__(self, job: Mapping[str, Any], arguments: bytes) -> None:
        self.id: str = job["id"]
        self.task: str = job["task"]
        self.queue: str = job["queue"]
        #: Number of this attempt, from 1.
        self.attempt: int = job["attempt"]
        #: How many attempts before this one counted against `max_attempts`.
        self.tries: int = job["tries"]
        self._arguments = arguments
        self._cursor: str | None = job.get("cursor")
        self._deadline: float | None = job.get("deadline")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as they are stored: parameter name → plain JSON value."""
        found: dict[str, Any] = json.loads(self._arguments)
        return found

    @property
    def cursor(self) -> Any:
        """What an earlier attempt gave to the safe point at which it left; None: begin at the beginning."""
        return None if self._cursor is None else json.loads(self._cursor)

    @property
    def time_left(self) -> float | None:
        """Seconds until `timeout` ends this attempt, None without one; the time of a pause does not count."""
        if self._deadline is None:
            return None
        from forkrunner.safepoint import paused_seconds

        return max(0.0, self._deadline + paused_seconds() - clock.monotonic())

    @property
    def deadline(self) -> datetime | None:
        """When `timeout` ends this attempt, aware, UTC; None without one. A pause moves it."""
        from datetime import timedelta

        left = self.time_left
        return None if left is None else clock.utc() + timedelta(seconds=left)

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.task} attempt {self.attempt}>"


def current_job() -> CurrentJob | None:
    """Return the job that runs in this process, None outside of one."""
    job = current.job
    return None if job is None else CurrentJob(job, current.arguments)


# --------------------------------------------------------------------------- jobs


class Job(Generic[R]):
    """One call of a task. What it tells is the row as it was when first asked, until `refresh`."""

    def __init__(self, runner: Runner, id: str, row: Row | None = None, *, pending: bool = False) -> None:
        self.id = id
        self._runner = runner
        self._read = row
        #: Made inside a transaction of the caller's: nobody else sees it before the commit.
        self._uncommitted = pending

    def __repr__(self) -> str:
        # asks nothing: a debugger shows it at any time
        state = f" {self._read.task} {self._read.state}" if self._read else ""
        return f"<Job {self.id}{state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def _row(self) -> Row:
        if self._read is None:
            try:
                self._read = self._runner.store.get(self.id)
            except JobNotFound as error:
                if not self._uncommitted:
                    raise
                hint = "; it was made in a transaction of the caller's, which may not be committed"
                raise JobNotFound(f"{error}{hint}", id=self.id) from None
        return self._read

    def refresh(self) -> Self:
        """Read the row again, now.

        Raises JobNotFound.
        """
        self._read = None
        self._row()
        return self

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._row().task

    @property
    def queue(self) -> str:
        return self._row().queue

    @property
    def state(self) -> State:
        return self._row().state

    @property
    def priority(self) -> int:
        return self._row().priority

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as they are stored: parameter name → plain JSON value."""
        found: dict[str, Any] = json.loads(self._row().arguments)
        return found

    @property
    def result(self) -> R | None:
        """What the task returned, None unless it is done; typed as declared if the task is known here."""
        text = self._row().result
        if text is None:
            return None
        task = self._runner.tasks.get(self._row().task)
        value: R = json.loads(text) if task is None else task.load_result(text)
        return value

    @property
    def error(self) -> str | None:
        """Why the last attempt did not end well, in one sentence."""
        return self._row().error

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts that have ended, the first one first."""
        return self._row().attempts

    @property
    def cancel_reason(self) -> str | None:
        """Why somebody asked for its end."""
        return self._row().cancel_reason

    @property
    def cancel_actor(self) -> str | None:
        """Who asked for its end."""
        return self._row().cancel_actor

    @property
    def paused_at(self) -> datetime | None:
        """Since when the running job is to stand still."""
        return self._row().paused_at

    @property
    def cursor(self) -> Any:
        """From where its next attempt goes on, as it said at a safe point."""
        text = self._row().cursor
        return None if text is None else json.loads(text)

    @property
    def run_at(self) -> datetime:
        """Not started before this moment."""
        return self._row().run_at

    @property
    def created_at(self) -> datetime:
        return self._row().created_at

    @property
    def started_at(self) -> datetime | None:
        """When the last attempt started."""
        return self._row().started_at

    @property
    def finished_at(self) -> datetime | None:
        return self._row().finished_at

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far it is, now; see `Runner.progress`."""
        return self._runner.progress(self.id)

    def wait(self, timeout: Duration | None = None, poll: Duration | None = None) -> Self:
        """Wait until the job is done, failed or cancelled, and read it; without `timeout` for ever.

        Looks every `poll` seconds; by default after 5 ms, then ever more rarely, at least 4 times a second.
        Raises:
            WaitTimeout: `timeout` is over; the job goes on.
            JobNotFound: also for a job whose transaction is not committed.
        """
        from forkrunner.job import ENDED

        limit = None if timeout is None else check_option("delay", timeout, "wait", EnqueueError)
        fixed = None if poll is None else check_option("delay", poll, "wait", EnqueueError)
        start = clock.monotonic()
        pause = _SHORTEST_POLL
        while self.refresh().state not in ENDED:
            step = pause if fixed is None else fixed
            if limit is not None:
                left = start + limit - clock.monotonic()
                if left <= 0:
                    state = self.state
                    message = f"job {self.id} is still {state} after {limit:g} s"
                    raise WaitTimeout(message, id=self.id, state=state)
                step = min(step, left)
            time.sleep(step)  # noqa: TID251 - in the caller's process, which asked for it
            pause = min(pause * 1.5, _LONGEST_POLL)
        return self

    def cancel(self, reason: str | None = None, *, actor: str | None = None) -> Self:
        """Cancel the job: a pending one at once, a running one is ended by its supervisor.

        A running one that uses safe points gets `grace` to reach the next; then, as all others at once, it gets TERM,
        and KILL after another `grace`. Reason and actor of who asks first stay with the job.
        Raises JobStateError when it has ended, JobNotFound.
        """
        self._runner.store.cancel(self.id, reason, actor=actor)
        self._read = None
        return self

    def pause(self) -> Self:
        """Freeze the running job, and all that it has started; its `timeout` does not count meanwhile.

        A cancel ends it all the same. The pause is of the process: a stop of its supervisor lets it go on, and a later
        attempt is not paused. Raises JobStateError when it does not run, JobNotFound.
        """
        self._runner.store.pause(self.id)
        self._read = None
        return self

    def resume(self) -> Self:
        """Let the paused job go on; one that is not paused does anyway.

        Raises JobStateError when it does not run, JobNotFound.
        """
        self._runner.store.resume(self.id)
        self._read = None
        return self

    def retry(self) -> Self:
        """Make an ended job pending again, with all its tries before it.

        Raises JobStateError when it has not ended, JobNotFound.
        """
        self._runner.store.retry(self.id)
        self._read = None
        return self


# --------------------------------------------------------------------------- the runner


class Runner:
    """The tasks of an application and the database that holds their jobs.

    Making one reads nothing and connects to nothing; may be shared by threads and inherited by forks.
    """

    def __init__(self, database: str | None = None, /, **settings: object) -> None:
        """Name the database (`sqlite:///FILE`, `postgresql://…`) and any setting of forkrunner.

        The environment has the last word, FORKRUNNER_DATABASE for one. The file of a relative SQLite URL
        is in the folder that is current now.
        """
        #: What the code says of the settings; the supervisor is told of it by the mold.
        self.code: dict[str, Any] = settings if database is None else {"database": database, **settings}
        #: MODULE:RUNNER, where known.
        self.target: str | None = None
        #: The module that has made it.
        self.module: str = sys._getframe(1).f_globals.get("__name__", "")
        self.tasks = Registry()
        self.hooks = Hooks()
        self._folder = os.getcwd()
        self._settings: Settings | None = None
        self._store: Store | None = None
        self._store_pid = 0
        self._watcher: Watcher | None = None
        #: In a web process that has started forkrunner: what makes certain that it still runs.
        self.lifeline: Lifeline | None = None
        self._locks: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"<Runner with {len(self.tasks)} tasks>"

    @property
    def settings(self) -> Settings:
        """All settings with their values.

        Raises ConfigError.
        """
        if self._settings is None:
            from forkrunner.config import load

            self._settings = load(code=self.code, folder=self._folder)
        return self._settings

    @property
    def store(self) -> Store:
        """The access to the tables, one per process: after a fork a new one, never the parent's connection."""
        pid = os.getpid()
        if self._store is None or self._store_pid != pid:
            # a lock of this process's own: at the fork a thread of the parent may have held the other
            with self._locks.setdefault(pid, allocate_lock()):
                if self._store is None or self._store_pid != pid:
                    from forkrunner.store import Store

                    if self._store is not None:
                        self._store.forget()
                    settings = self.settings
                    self._store = Store(
                        self.url, role="client", notify=settings.notify, timeout=settings.store_timeout
                    )
                    self._store_pid = pid
        return self._store

    @property
    def url(self) -> str:
        """The database; the file of SQLite by its absolute path."""
        return _RELATIVE_SQLITE.sub(self._absolute, self.settings.database)

    @property
    def folder(self) -> str:
        """What relative names in its settings start from."""
        return self._folder

    def _absolute(self, match: re.Match[str]) -> str:
        return f"{match[1]}{os.path.join(self._folder, match[2])}"

    def close(self) -> None:
        """Close the connections of this process; the next use opens new ones."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()
        store, self._store = self._store, None
        if store is not None:
            if self._store_pid == os.getpid():
                store.close()
            else:
                store.forget()

    # ------------------------------------------------------------------------- tasks

    if TYPE_CHECKING:

        @overload
        def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
        @overload
        def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
        @overload
        def task(
            self,
            /,
            *,
            name: str | None = None,
            queue: str = "default",
            priority: int = 0,
            max_attempts: int = 1,
            max_crashes: int = 3,
            backoff: Duration | Sequence[Duration] = 10.0,
            backoff_cap: Duration = 3600.0,
            retry_for: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
            give_up_on: type[BaseException] | Sequence[type[BaseException]] = (),
            timeout: Duration | None = None,
            grace: Duration | None = None,
            memory: Size | None = None,
            cpu_seconds: Duration | None = None,
            open_files: int | None = None,
            file_size: Size | None = None,
            nice: int | None = None,
            temporary_folder: bool = False,
            at_most_once: bool = False,
            requeue_on_reload: bool = False,
        ) -> Decorator: ...

    def task(self, function: Any = None, /, **options: Any) -> Any:
        """Register a function as a task: `@runner.task`, or `@runner.task(queue=…, timeout=…)`.

        `name` is by default the function's. The rest is how its jobs are run, unless a call says otherwise:
        `max_attempts` tries at most, after exceptions of `retry_for` and not of `give_up_on`, with waits of
        `backoff` seconds, doubled each time up to `backoff_cap`, or given one by one; `max_crashes` is how
        often it may take its process along. `timeout`, `memory`, `cpu_seconds`, `open_files`, `file_size`, `nice`:
        limits, None for no limit. `temporary_folder`: TMPDIR is a folder of its own, removed at its end. `grace`: time between TERM and KILL. `at_most_once`: never started again once
        claimed, whatever happened. `requeue_on_reload`: on a reload its jobs leave at their next safe point and
        go on with the new code.
        Raises ConfigError.
        """
        for name in options:
            if name not in DEFAULTS:
                guess = did_you_mean(name, list(DEFAULTS))
                raise TypeError(f"task() got an unexpected option {name!r}{guess}")

        def register(function: Any) -> Any:
            flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
            kind = AsyncTask if flags & COROUTINE else Task
            task: Task[..., Any] = kind(self, function, {**DEFAULTS, **options})
            self.tasks.add(task)
            return task

        return register if function is None else register(function)

    # ------------------------------------------------------------------------- hooks

    def before_fork(self, hook: H, /) -> H:
        """Register a function that each mold calls once, when all is imported: `@runner.before_fork`.

        For what every job would do by itself and may share. If it raises, the mold is as one whose application does
        not import. Raises ConfigError.
        """
        return self.hooks.add("before_fork", hook)

    def after_fork(self, hook: H, /) -> H:
        """Register a function that is called in each job's process before its task: `@runner.after_fork`.

        SQLAlchemy's engines have been made fit for use by then. It is a part of the attempt: what it raises the attempt
        has raised, and the time that it takes counts. Raises ConfigError.
        """
        return self.hooks.add("after_fork", hook)

    def before_exit(self, hook: H, /) -> H:
        """Register a function that is called in each job's process when its task has ended: `@runner.before_exit`.

        Also when it raised or left, not when the process was killed, crashed or called `os._exit`. For what must be
        flushed, as `atexit` does not run in a job. The outcome is on record by then: what a hook raises goes to the job's
        output, and when all together take longer than `exit_timeout` the process is ended. Raises ConfigError.
        """
        return self.hooks.add("before_exit", hook)

    # ------------------------------------------------------------------------- making jobs

    def enqueue(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        connection: Any = None,
    ) -> Job[Any]:
        """Make a job of a task by its name and arguments as plain JSON values.

        The task need not be known here; if it is, the arguments are checked against it, and its queue and
        priority are the defaults. A name that no runner knows fails when it is to be run.
        Raises EnqueueError, or ArgumentError of its kind.
        """
        return self.enqueue_many(
            [
                self.call(
                    name,
                    arguments,
                    queue=queue,
                    priority=priority,
                    delay=delay,
                    run_at=run_at,
                    connection=connection,
                )
            ]
        )[0]

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        connection: Any = None,
    ) -> Call[Any]:
        """Check a call by name and keep it for `enqueue_many`; see `enqueue`."""
        check_option("name", name, describe(name, typed=False), EnqueueError)
        text = dump_named(name, arguments or {}, self.settings.argument_limit)
        task = self.tasks.get(name)
        if task is not None:
            task.load(text)
        if delay is not None and run_at is not None:
            raise EnqueueError(f"task {name}: expected delay or run_at, got both", task=name)
        if queue is None:
            queue = task.queue if task else "default"
        if priority is None:
            priority = task.priority if task else 0
        return Call(
            name,
            text,
            queue=check_option("queue", queue, name, EnqueueError),
            priority=check_option("priority", priority, name, EnqueueError),
            delay=0.0 if delay is None else check_option("delay", delay, name, EnqueueError),
            run_at=None if run_at is None else check_run_at(run_at, name),
            connection=connection,
        )

    def enqueue_many(self, calls: Iterable[Call[R]], *, connection: Any = None) -> builtins.list[Job[R]]:
        """Make a job of each call, all or none: in one transaction, or in the one of `connection`.

        Their ids sort in the order of the calls. Raises EnqueueError when calls name different connections.
        """
        from forkrunner.job import New

        calls = list(calls)
        for call in calls:
            if connection is None:
                connection = call.connection
            elif call.connection is not None and call.connection is not connection:
                raise EnqueueError(
                    "the calls name different connections: all jobs are made in one transaction"
                )
        rows = [
            New(
                id=new_id(),
                task=call.task,
                queue=call.queue,
                arguments=call.arguments,
                priority=call.priority,
                delay=call.delay,
                run_at=call.run_at,
                options=call.options,
            )
            for call in calls
        ]
        if rows:
            self.store.enqueue(rows, connection=connection)
            if self.lifeline is not None:
                self.lifeline.check()
        return [Job(self, row.id, pending=connection is not None) for row in rows]

    # ------------------------------------------------------------------------- beside a web server

    def wsgi(self, app: Any, mount: str = "/jobs", **options: Any) -> Any:
        """Return a WSGI application with the progress endpoint under `mount`, and start forkrunner with its web server.

        See `forkrunner.wsgi.Mounted`, whose options these are.
        """
        from forkrunner.wsgi import Mounted

        return Mounted(self, app, mount, **options)

    # ------------------------------------------------------------------------- finding jobs

    def get(self, id: object) -> Job[Any]:
        """Read one job.

        Raises JobNotFound, also for what is no id.
        """
        text = str(id).lower()
        if not _ID.fullmatch(text):
            raise JobNotFound(f"there is no job {describe(id, typed=False)}: expected a UUID", id=id)
        return Job(self, text, self.store.get(text))

    def list(
        self,
        *,
        state: State | str | None = None,
        queue: str | None = None,
        task: str | None = None,
        limit: int = 50,
    ) -> builtins.list[Job[Any]]:
        """Read the newest jobs, the newest first.

        Raises ValueError for what is no state.
        """
        from forkrunner.job import State

        wanted = None if state is None else State(state)
        rows = self.store.list(state=wanted, queue=queue, task=task, limit=limit)
        return [Job(self, row.id, row) for row in rows]

    def progress(self, id: str) -> dict[str, Any] | None:
        """Say how a job stands, as the HTTP endpoint does (see `watch.py`); None if there is no such job.

        `fraction` (None where nobody knows), `message`, `detail`, `eta_seconds` are what it has said; with them are
        `id`, `state`, `attempt`, `position` in the queue, `started_at`, `updated_at`. While it runs and says something this
        asks memcached or a file, otherwise the database.
        Raises StoreUnavailable.
        """
        text = str(id).lower()
        return self.watcher.look_at(text) if _ID.fullmatch(text) else None

    @property
    def watcher(self) -> Watcher:
        """What looks at jobs for `progress` and the HTTP endpoint; asks for many at once."""
        if self._watcher is None:
            from forkrunner.progress import Reader, place
            from forkrunner.watch import Watcher

            self._watcher = Watcher(lambda: self.store, Reader(place(self.settings)))
        return self._watcher
