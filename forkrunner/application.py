"""The application in a mold: import it, and make it ready to be forked from.

Also used by the command line to find a Runner. What the application's own code raises is
told with its place; what it leaves behind that no child may share is found here.
"""

from __future__ import annotations

import functools
import gc
import sys

from . import (
    currentjob,  # noqa: F401 - loaded before the forks for tasks that ask for it
    descriptors,
    loglines,
    places,  # noqa: F401 - for tasks that tell their progress
    process,
    stacks,
    streams,
)
from .child import Place, flush_all
from .current import current
from .describing import text_of
from .errors import TargetError
from .hooks import run_before_fork
from .memory import trim_memory, use_huge_pages
from .postman import internal_tasks
from .rehearsal import rehearse
from .safety import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from .runner import Runner
    from .safety import Finding


def load(
    target: str, folder: str, preload: list[str] | tuple[str, ...] = (), watch: Watch | None = None
) -> Runner:
    """Import MODULE:RUNNER with `folder` first on sys.path, after what is to be preloaded; `watch` sees it.

    Raises:
        TargetError: with `.traceback` when the application's own code raised.
    """
    import importlib

    from .runner import Runner

    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    module_name, _, name = target.partition(":")
    if not module_name:
        raise TargetError(f"expected MODULE:RUNNER, got {target!r}", target=target)
    watch = watch or Watch()
    try:
        with watch:
            for extra in preload:
                _warm_up(extra, watch)
            module = importlib.import_module(module_name)
            watch.look(module_name)
    except BaseException as error:
        raise _importing_raised(error, target, folder) from error
    found: Any = module
    for part in (name or "runner").split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Runner):
        there = [key for key, value in vars(module).items() if isinstance(value, Runner)]
        hint = f"; it has {module_name}:{there[0]}" if there else ""
        got = "nothing of that name" if found is None else f"a {type(found).__name__}"
        raise TargetError(
            f"{target}: expected a forkrunner.Runner called {name or 'runner'!r} in {module_name}, got {got}{hint}",
            target=target,
        )
    try:
        with watch:
            # what only the code names can but come after it
            for extra in () if preload else _names(found.code.get("preload")):
                _warm_up(extra, watch)
    except BaseException as error:
        raise _importing_raised(error, target, folder) from error
    return found


def _importing_raised(error: BaseException, target: str, folder: str) -> TargetError:
    import traceback

    return TargetError(
        f"{target}: importing it raised {type(error).__name__}: {text_of(error)} (looked in {folder})",
        target=target,
        traceback="".join(traceback.format_exception(error)),
    )


def _names(value: Any) -> list[str]:
    # what else it may be, the supervisor refuses when it reads the settings of the code
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ()
    return [part.strip() for part in parts if isinstance(part, str) and part.strip()]


def _warm_up(name: str, watch: Watch) -> None:
    """Import MODULE, or call MODULE:FUNCTION."""
    import importlib

    module, _, function = name.partition(":")
    found: Any = importlib.import_module(module)
    watch.look(module)
    if function:
        for part in function.split("."):
            found = getattr(found, part)
        found()
        watch.look(f"{name}()")


def settle(runner: Runner, boot: dict[str, Any], keep: Collection[int], watch: Watch) -> Place:
    """Do once what every child would do: after this the application's code does not run in the mold.

    `keep` are the descriptors that the mold itself has made.

    Raises:
        TargetError: a before_fork hook raised, or the application left threads behind.
    """
    allow_threads = boot["allow_threads"] or runner.code.get("allow_threads")
    place = make_place(runner, boot["target"], keep, watch, allow_threads)
    stacks.report_stacks_to(place.report_fd)
    descriptors.line_buffered()
    flush_all()
    streams.watch()
    gc.collect()
    trim_memory()
    # after the collection, which empties the interpreter's free lists
    rehearse(place)
    # frozen objects are not visited by the children's collections, which would copy their pages
    gc.freeze()
    use_huge_pages()
    return place


def make_place(
    runner: Runner, target: str, keep: Collection[int], watch: Watch, allow_threads: object
) -> Place:
    """Make the application ready for a job, and find what a child must leave: see `settle`."""
    run_before_fork(runner.hooks.before_fork, target, watch)
    own = internal_tasks(runner)
    for task in (*runner.tasks.values(), *own.values()):
        task.prepare()
    if any(task.takes_files for task in runner.tasks.values()):
        from . import storage  # noqa: F401 - to be there when the job starts
    reserved = descriptors.Reserved(fixed=2)
    place = Place(runner, reserved)
    place.tasks = {**runner.tasks, **own}
    current.runner = runner
    reconnect: list[Callable[[], Any]] = []
    shared = [fd for fd, _ in descriptors.sockets_and_databases() if fd not in keep]
    if shared:
        reconnect.append(lambda: descriptors.shield(shared))
    for engine in _engines():
        reconnect.append(functools.partial(engine.dispose, close=False))
    numpy = sys.modules.get("numpy")
    if numpy is not None:  # its global generator would give every child the same numbers
        reconnect.append(numpy.random.seed)
    # else nothing: a list would be a page more for each child
    place.reconnect = tuple(reconnect)
    place.unsafe = look_for_trouble(watch)
    problem = None if allow_threads else threads_in(place.unsafe)
    if problem:
        raise TargetError(f"{target}: {problem}", target=target)
    loglines.prepare()
    return place


def _engines() -> list[Any]:
    """Find every SQLAlchemy engine that the application has made, without importing SQLAlchemy."""
    base = sys.modules.get("sqlalchemy.engine.base")
    if base is None:
        return []
    return [thing for thing in gc.get_objects() if isinstance(thing, base.Engine)]


def look_for_trouble(watch: Watch) -> list[Finding]:
    """Return what the application has made that no fork may take along."""
    if process.threads() > 1:
        # some libraries, OpenBLAS for one, end their threads before a fork by themselves: those are no trouble
        process.shared_at_fork()
    return watch.findings()


def threads_in(findings: list[Finding]) -> str | None:
    """Say why there must be no fork while these threads are there; None: there are none."""
    threads = [f"{what}, made by {by}" for kind, what, by in findings if kind == "thread"]
    if not threads:
        return None
    return (
        f"it has started {len(threads)} thread(s) ({'; '.join(threads)}); a lock that a thread holds at a fork"
        " stays locked in the job. Start threads in the task, or set allow_threads."
    )
