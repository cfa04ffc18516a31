"""What an application calls: a Runner, which holds its tasks and makes and finds its jobs.

Imported by web processes and by molds: everything that talks to a database is loaded when it is first
needed, and no connection is used on both sides of a fork.
"""

from __future__ import annotations

import json
import os
import re
import sys
from _thread import allocate_lock

from forkrunner.arguments import dump_named
from forkrunner.describing import describe, did_you_mean
from forkrunner.errors import EnqueueError, JobNotFound
from forkrunner.handle import Job
from forkrunner.hooks import Hooks
from forkrunner.ids import is_id, new_id
from forkrunner.options import DEFAULTS, OF_CALLS, check_option, check_run_at
from forkrunner.tasks import COROUTINE, AsyncTask, Call, P, R, Registry, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins  # Runner.list hides the name in its class
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Any, Protocol, overload

    from forkrunner.config import Settings
    from forkrunner.filing import Files
    from forkrunner.hooks import H
    from forkrunner.job import State
    from forkrunner.lifeline import Lifeline
    from forkrunner.options import Duration, Size
    from forkrunner.storage import Storage
    from forkrunner.store import Store
    from forkrunner.watch import Watcher

    class Decorator(Protocol):
        """What `@runner.task(...)` gives: types pass through it."""

        @overload
        def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


_RELATIVE_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|file:)(.+)")


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
        #: By pid: a connection to a storage is not used on both sides of a fork.
        self._storages: dict[int, Storage] = {}
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
            from forkrunner.sources import load

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
    def storage(self) -> Storage:
        """Where the files of jobs are, as this process sees it."""
        pid = os.getpid()
        if pid not in self._storages:
            from forkrunner.storage import open_storage

            owner = lambda: self.store.database_id()  # noqa: E731 - the store of the process that asks
            self._storages = {pid: open_storage(self.settings, self._folder, owner)}
        return self._storages[pid]

    def files(self) -> Files:
        """Return what takes care of the files in the values of one call, or of one result."""
        from forkrunner.filing import Files

        return Files(lambda: self.storage, self.settings.file_limit)

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
            mail_to: str | Sequence[str] | None = None,
            mail_on: str | Sequence[str] | None = None,
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
        `mail_to`, `mail_on`: who gets mail about its jobs, and about which of failure, attempt and success, instead of what
        the settings say; () for no mail.
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
        options: Mapping[str, Any] | None = None,
    ) -> Job[Any]:
        """Make a job of a task by its name and arguments as plain JSON values.

        The task need not be known here; if it is, the arguments are checked against it, and its queue and
        priority are the defaults. A name that no runner knows fails when it is to be run. `options` are limits and tries,
        as `using` takes them.
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
                    options=options,
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
        options: Mapping[str, Any] | None = None,
    ) -> Call[Any]:
        """Check a call by name and keep it for `enqueue_many`; see `enqueue`."""
        check_option("name", name, describe(name, typed=False), EnqueueError)
        if delay is not None and run_at is not None:
            raise EnqueueError(f"task {name}: expected delay or run_at, got both", task=name)
        given = dict(options or {})
        if strange := given.keys() - OF_CALLS:
            expected = f"expected some of {', '.join(sorted(OF_CALLS))}"
            raise EnqueueError(
                f"task {name}: options: {expected}, got {', '.join(sorted(strange))}", task=name
            )
        task = self.tasks.get(name)
        if queue is None:
            queue = task.queue if task else "default"
        if priority is None:
            priority = task.priority if task else 0
        queue = check_option("queue", queue, name, EnqueueError)
        priority = check_option("priority", priority, name, EnqueueError)
        wait = 0.0 if delay is None else check_option("delay", delay, name, EnqueueError)
        moment = None if run_at is None else check_run_at(run_at, name)
        checked = {key: check_option(key, value, name, EnqueueError) for key, value in given.items()}
        overrides = task.using(**given).overrides() if task else None

        # Files are stored by this, so it comes after all else that may be refused. Without that module there is none
        # among the arguments; with it they may be anywhere in them.
        files = self.files() if "forkrunner.files" in sys.modules else None
        text = dump_named(name, arguments or {}, self.settings.argument_limit, files)
        if task is None:
            if files and files.rows:
                # the copies of them are in there
                checked.pop("temporary_folder", None)
            overrides = json.dumps(checked) if checked else None
        else:
            loaded = task.load(text, files)
            if task.signature.has_secrets:
                if files is not None:
                    files.rows.clear()
                # by name they may come as plain text: the row is to say that they are secrets
                text = task.dump(*loaded, self.settings.argument_limit, files)
        return Call(
            name,
            text,
            queue=queue,
            priority=priority,
            delay=wait,
            run_at=moment,
            options=overrides,
            connection=connection,
            files=files.rows if files else (),
        )

    def enqueue_many(self, calls: Iterable[Call[R]], *, connection: Any = None) -> builtins.list[Job[R]]:
        """Make a job of each call, all or none: in one transaction, or in the one of `connection`.

        Their ids sort in the order of the calls. Raises EnqueueError when calls name different connections.
        """
        from forkrunner.records import File, New

        calls = list(calls)
        for call in calls:
            if connection is None:
                connection = call.connection
            elif call.connection is not None and call.connection is not connection:
                raise EnqueueError(
                    "the calls name different connections: all jobs are made in one transaction"
                )
        ids = [new_id() for _ in calls]
        rows = [
            New(
                id=id,
                task=call.task,
                queue=call.queue,
                arguments=call.arguments,
                priority=call.priority,
                delay=call.delay,
                run_at=call.run_at,
                options=call.options,
                files=tuple(File(id, **file) for file in call.files),
            )
            for id, call in zip(ids, calls, strict=True)
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
        if not is_id(text):
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
        `id`, `state`, `attempt`, `started_at`, `updated_at`; while it waits `position`, the number of jobs ahead, or, if it is not due
        yet, `due_at`. While it runs and says something this asks memcached or a file, otherwise the database.
        Raises StoreUnavailable.
        """
        text = str(id).lower()
        return self.watcher.look_at(text) if is_id(text) else None

    @property
    def watcher(self) -> Watcher:
        """What looks at jobs for `progress` and the HTTP endpoint; asks for many at once."""
        if self._watcher is None:
            from forkrunner.places import Reader, place
            from forkrunner.watch import Watcher

            self._watcher = Watcher(lambda: self.store, Reader(place(self.settings)))
        return self._watcher
