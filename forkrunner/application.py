"""The application in a mold: import it, and make it ready to be forked from.

Also used by the command line to find a Runner. What the application's own code raises is
told with its place; what it leaves behind that no child may share is found here.
"""

from __future__ import annotations

import functools
import gc
import sys

from . import process
from .child import Place, rehearse
from .errors import TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from .runner import Runner


def load(target: str, folder: str, preload: list[str] | tuple[str, ...] = ()) -> Runner:
    """Import MODULE:RUNNER with `folder` first on sys.path.

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
    try:
        for extra in preload:
            importlib.import_module(extra)
        module = importlib.import_module(module_name)
    except BaseException as error:
        import traceback

        lines = traceback.format_exception(error)
        raise TargetError(
            f"{target}: importing it raised {type(error).__name__}: {error} (looked in {folder})",
            target=target,
            traceback="".join(lines),
        ) from error
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
    return found


def settle(runner: Runner, boot: dict[str, Any], keep: Collection[int]) -> Place:
    """Do once what every child would do: after this the application's code does not run in the mold.

    `keep` are the descriptors that the mold itself has made.

    Raises:
        TargetError: the application left threads behind.
    """
    for task in runner.tasks.values():
        task.prepare()
    reserved = process.Reserved(fixed=2)
    place = Place(runner, reserved)
    shared = [fd for fd, _ in process.sockets_and_databases() if fd not in keep]
    if shared:
        place.reconnect.append(lambda: process.shield(shared))
    for engine in _engines():
        place.reconnect.append(functools.partial(engine.dispose, close=False))
    numpy = sys.modules.get("numpy")
    if numpy is not None:  # its global generator would give every child the same numbers
        place.reconnect.append(numpy.random.seed)
    threads = process.threads()
    if threads > 1 and not boot.get("allow_threads"):
        names = _thread_names()
        raise TargetError(
            f"{runner.target or boot['target']}: importing it started {threads - 1} thread(s) ({names}); a lock that a"
            " thread holds at a fork stays locked in the job. Start threads in the task, or set allow_threads.",
            target=boot["target"],
        )
    process.report_stacks_to(place.report_fd)
    process.line_buffered()
    process.flush_all()
    gc.collect()
    process.trim_memory()
    # after the collection, which empties the interpreter's free lists
    rehearse(place)
    # frozen objects are not visited by the children's collections, which would copy their pages
    gc.freeze()
    return place


def _engines() -> list[Any]:
    """Find every SQLAlchemy engine that the application has made, without importing SQLAlchemy."""
    base = sys.modules.get("sqlalchemy.engine.base")
    if base is None:
        return []
    return [thing for thing in gc.get_objects() if isinstance(thing, base.Engine)]


def _thread_names() -> str:
    threading = sys.modules.get("threading")
    names = [t.name for t in threading.enumerate() if t is not threading.main_thread()] if threading else []
    return ", ".join(names) or "made by a library, unknown to Python"
