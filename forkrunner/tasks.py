"""Tasks: what a function declares about being run as jobs, and the registry of their names.

Molds, web processes and the command line import this. Nothing here touches a database, and decorating
only checks. A row names a task: what is called is what is registered under that name, nothing else.
"""

from __future__ import annotations

import json

from forkrunner import arguments
from forkrunner.describing import describe, did_you_mean
from forkrunner.errors import (
    ArgumentError,
    ConfigError,
    EnqueueError,
    ForkrunnerError,
    TaskNotFound,
    UserError,
)
from forkrunner.internal import PREFIX
from forkrunner.options import NAME, OF_CALLS, POLICY, UNSET, check_option, check_run_at
from forkrunner.payload import Misfit
from forkrunner.redaction import SECRET_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
    from datetime import datetime
    from typing import Any, Generic, ParamSpec, Self, TypeVar

    from forkrunner.filing import Files
    from forkrunner.handle import Job
    from forkrunner.options import Duration, Size
    from forkrunner.runner import Runner

    P = ParamSpec("P")
    R = TypeVar("R")
else:

    class Generic:
        """Stands in for the real one: importing typing costs memory that every fork pays for."""

        def __class_getitem__(cls, parameters):
            return cls

    P = R = None

#: Of code objects: `async def`, and the kinds of generators. From inspect, which is too heavy to import here.
COROUTINE, _GENERATORS = 0x80, 0x20 | 0x200
_FUNCTION = type(lambda: None)


class Task(Generic[P, R]):
    """A registered function. Call it to run it here and now; `enqueue` it to make a job of the call."""

    #: What rows, commands and molds call it.
    name: str
    queue: str
    priority: int
    max_attempts: int
    max_crashes: int
    #: Seconds before the second try, doubled for each further one; or one number per try.
    backoff: float | list[float]
    backoff_cap: float
    retry_for: tuple[type[BaseException], ...]
    give_up_on: tuple[type[BaseException], ...]
    #: Seconds; None: no limit.
    timeout: float | None
    #: Seconds between TERM and KILL; None: as the settings say.
    grace: float | None
    #: Bytes of its own that a job may have; None: no limit. So with the others.
    memory: int | None
    #: Seconds of CPU time.
    cpu_seconds: float | None
    #: How many files it may have open beside those that the application has.
    open_files: int | None
    #: Bytes that a file may grow to.
    file_size: int | None
    #: How much nicer than its supervisor it is to others; below 0, which needs privileges, less nice.
    nice: int | None
    #: It has a folder of its own as TMPDIR, which is removed when it has ended.
    temporary_folder: bool
    at_most_once: bool
    #: On a reload its jobs leave the old code at their next safe point and go on with the new.
    requeue_on_reload: bool
    #: Who gets mail about its jobs, and about what; None: as the settings say; empty: nobody, nothing.
    mail_to: list[str] | None
    mail_on: list[str] | None

    def __init__(self, runner: Runner, function: Callable[P, Any], options: Mapping[str, Any]) -> None:
        """Check the function and the options.

        Raises ConfigError.
        """
        own = _name_of(function, options.get("name"))
        for name, value in options.items():
            setattr(self, name, check_option(name, own if name == "name" else value, own))
        if self.at_most_once and self.max_attempts > 1:
            raise ConfigError(
                f"task {own}: expected max_attempts=1 beside at_most_once, got {self.max_attempts}",
                name="max_attempts",
                value=self.max_attempts,
                source=None,
            )
        self.runner = runner
        self.function = function
        #: What a job without arguments calls, once `prepare` has found that this will do: to parse them in a fresh
        #: process would cost more than all the rest of it.
        self.bare: Callable[[], Any] | None = None
        #: There is an InputFile in its parameters; known after `prepare`.
        self.takes_files = False
        self.signature = arguments.Signature(function, own)
        self.signature.secret_names = self._secret_names
        #: What `using` said, for every call made through this object.
        self.bound: dict[str, Any] = {}
        # as functools.wraps has it, so that help(), inspect and Sphinx see the function
        self.__wrapped__ = function
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    def _secret_names(self) -> Collection[str]:
        try:
            return self.runner.settings.secret_names
        except ForkrunnerError:
            return SECRET_NAMES  # what is wrong with the settings, others say

    def __repr__(self) -> str:
        bound = "".join(f" {name}={value!r}" for name, value in self.bound.items() if name != "connection")
        return f"<Task {self.name}{bound}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in this process, as if it were not decorated."""
        result: R = self.function(*args, **kwargs)
        return result

    # ------------------------------------------------------------------------- making jobs

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Make a job of this call, in one transaction, or in the caller's after `using(connection=…)`.

        Raises:
            ArgumentError: an argument does not fit; nothing is stored.
            StorageError: a file in them cannot be stored; there is no job then.
            StoreUnavailable: the database is away. The job may exist nevertheless if the answer was lost.
        """
        return self.runner.enqueue_many([self.call(*args, **kwargs)])[0]

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Check a call and keep it for `Runner.enqueue_many`.

        Raises ArgumentError.
        """
        bound = self.bound
        files = self.runner.files() if self.signature.takes_files else None
        return Call(
            self.name,
            self.dump(args, kwargs, self.runner.settings.argument_limit, files),
            queue=bound.get("queue", self.queue),
            priority=bound.get("priority", self.priority),
            delay=bound.get("delay", 0.0),
            run_at=bound.get("run_at"),
            options=self.overrides(),
            connection=bound.get("connection"),
            files=files.rows if files else (),
        )

    def overrides(self) -> str | None:
        """Return what the row of a call is to say of how it is run, as JSON text; None: as the task says."""
        found = {name: value for name, value in self.bound.items() if name in OF_CALLS}
        if self.policy()["at_most_once"]:
            # in the row, for whoever rescues it may not know the task
            found["at_most_once"] = True
        if self.signature.takes_files:
            found.pop("temporary_folder", None)
        return json.dumps(found) if found else None

    def using(
        self,
        *,
        queue: str = UNSET,
        priority: int = UNSET,
        delay: Duration = UNSET,
        run_at: datetime = UNSET,
        connection: Any = UNSET,
        timeout: Duration | None = UNSET,
        grace: Duration | None = UNSET,
        memory: Size | None = UNSET,
        cpu_seconds: Duration | None = UNSET,
        open_files: int | None = UNSET,
        file_size: Size | None = UNSET,
        nice: int | None = UNSET,
        temporary_folder: bool = UNSET,
        max_attempts: int = UNSET,
        max_crashes: int = UNSET,
        backoff: Duration | Sequence[Duration] = UNSET,
    ) -> Self:
        """Return this task with other options for the calls made through it; the task itself stays as it is.

        `delay` counts from the database's now, `run_at` is an aware moment; one of them. `connection` is
        a SQLAlchemy Session or Connection: the job lives and dies with its transaction.
        Raises EnqueueError.
        """
        given = {
            "queue": queue,
            "priority": priority,
            "delay": delay,
            "timeout": timeout,
            "grace": grace,
            "memory": memory,
            "cpu_seconds": cpu_seconds,
            "open_files": open_files,
            "file_size": file_size,
            "nice": nice,
            "temporary_folder": temporary_folder,
            "max_attempts": max_attempts,
            "max_crashes": max_crashes,
            "backoff": backoff,
        }
        bound = dict(self.bound)
        for name, value in given.items():
            if value is not UNSET:
                bound[name] = check_option(name, value, self.name, EnqueueError)
        if run_at is not UNSET:
            bound["run_at"] = check_run_at(run_at, self.name)
        if connection is not UNSET:
            bound["connection"] = connection
        if "delay" in bound and "run_at" in bound:
            raise EnqueueError(f"task {self.name}: expected delay or run_at, got both", task=self.name)
        if self.at_most_once and bound.get("max_attempts", 1) > 1:
            got = bound["max_attempts"]
            raise EnqueueError(
                f"task {self.name}: it is run at most once: expected max_attempts=1, got {got}",
                task=self.name,
            )
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, bound=bound)
        return copy

    # ------------------------------------------------------------------------- the two ends of a row

    def dump(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        limit: int = arguments.ARGUMENT_LIMIT,
        files: Files | None = None,
    ) -> str:
        """Return the arguments of a call as the JSON text of a row.

        What it accepts arrives equal in the task. Two changes of type are equal enough: an int where a
        float is declared, and the time zone of a datetime, which arrives as a fixed offset.
        Raises ArgumentError; StorageError when files in them cannot be stored.
        """
        return self.signature.dump(args, kwargs, limit, files)

    def load(self, text: bytes | str, files: Files | None = None) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return what to call the function with.

        Raises ArgumentError: the row was written by other code, or for another version of this. StorageError.
        """
        return self.signature.load(text if isinstance(text, str) else text.decode(), files)

    def prepare(self) -> None:
        """Do before a fork what every job would do after it: in the mold, once all is imported.

        Raises ConfigError for an annotation that cannot be resolved.
        """
        _ = self.signature.kinds
        self.takes_files = self.signature.takes_files
        if isinstance(self, AsyncTask):
            import asyncio  # noqa: F401 - to be there when the job starts
        elif not self.signature.required:
            self.bare = self.function

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as a job does."""
        return self.function(*args, **kwargs)

    def dump_result(self, value: Any, limit: int, files: Files | None = None) -> str:
        """Return what the function returned as JSON text of at most `limit` bytes.

        Raises ForkrunnerError when it has no form in JSON or is too large.
        """
        return arguments.dump_result(value, self.name, limit, files)

    def load_result(self, text: str, files: Files | None = None) -> Any:
        """Return a stored result, as the declared return type if it fits, as plain JSON otherwise."""
        value = json.loads(text)
        try:
            return self.signature.kind_of("return").load(value, files)
        except Misfit:
            return value

    def policy(self) -> dict[str, Any]:
        """Return the options that matter to who runs it, fit for JSON."""
        found = {name: getattr(self, name) for name in POLICY}
        if self.takes_files:
            # its copies of them are in there
            found["temporary_folder"] = True
        return found

    def retryable(self, error: BaseException) -> bool:
        """Say whether another try may follow this exception; `give_up_on` has the last word."""
        if isinstance(error, ArgumentError) and error.facts.get("task") == self.name:
            return False  # the row will not fit next time either
        if isinstance(error, UserError):
            # to be an Exception is not enough: what was said to a user would be taken back
            named = tuple(kind for kind in self.retry_for if issubclass(kind, UserError))
            return isinstance(error, named) and not isinstance(error, self.give_up_on)
        return isinstance(error, self.retry_for) and not isinstance(error, self.give_up_on)


class AsyncTask(Task[P, R]):
    """A task made of an `async def`: calling it gives a coroutine, its job runs that to the end."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the coroutine to its end."""
        import asyncio

        return asyncio.run(self.function(*args, **kwargs))


class Call(Generic[R]):
    """A checked call of a task that is not a job yet; see `Runner.enqueue_many`."""

    __slots__ = (
        "arguments",
        "connection",
        "delay",
        "files",
        "options",
        "priority",
        "queue",
        "run_at",
        "task",
    )

    def __init__(
        self,
        task: str,
        arguments: str,
        *,
        queue: str,
        priority: int = 0,
        delay: float = 0.0,
        run_at: datetime | None = None,
        options: str | None = None,
        connection: Any = None,
        files: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.task = task
        #: JSON text, as it will stand in the row.
        self.arguments = arguments
        self.queue = queue
        self.priority = priority
        #: Seconds.
        self.delay = delay
        self.run_at = run_at
        self.options = options
        self.connection = connection
        #: Those of the arguments, as `filing.Files.rows` has them.
        self.files = files

    def __repr__(self) -> str:
        return f"<Call {self.task}>"


class Registry(dict[str, "Task[..., Any]"]):
    """The tasks of a runner by name. `[name]` of an unknown one raises TaskNotFound."""

    def __missing__(self, name: str) -> Task[..., Any]:
        known = ", ".join(sorted(self)) or "none"
        guess = did_you_mean(str(name), list(self))
        raise TaskNotFound(f"there is no task {name!r}{guess} (known: {known})", name=name, task=name)

    def add(self, task: Task[..., Any]) -> None:
        """Register a task; the same function again, as after a reload, takes its own place.

        Raises ConfigError when another function has the name.
        """
        if task.name.startswith(PREFIX):
            raise ConfigError(
                f"task {task.name}: names that begin with {PREFIX} are forkrunner's own",
                name="name",
                value=task.name,
                source=None,
            )
        other = self.get(task.name)
        if other is not None and _place(other.function) != _place(task.function):
            raise ConfigError(
                f"task {task.name}: two functions have this name, {_place(other.function)} and"
                f" {_place(task.function)}; give one of them another with name=",
                name=task.name,
                value=None,
                source=None,
            )
        self[task.name] = task


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _name_of(function: Any, name: Any) -> str:
    """Return the name that a function is registered under, after checking that it can be a task.

    Raises ConfigError.
    """
    problem = None
    if not isinstance(function, _FUNCTION):
        problem = f"expected a function, got {describe(function)}"
        shown = "task"
    else:
        shown = f"task {function.__qualname__}"
        owner = function.__qualname__.rpartition(".")[0]
        if function.__code__.co_flags & _GENERATORS:
            problem = "expected a function that returns, got a generator, whose body would never run"
        elif owner and not owner.endswith("<locals>"):
            problem = f"expected a plain function, got one of class {owner}: a job has no instance of it"
        elif name is None and not NAME.fullmatch(function.__name__):
            problem = "has no name that fits a row (letters, digits, _ . : -); give it one with name="
    if problem:
        raise ConfigError(f"{shown}: {problem}", name="name", value=name, source=None)
    found: str = function.__name__ if name is None else name
    return found
