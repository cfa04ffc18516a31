"""Functions of the application that are called around its jobs, in the order in which they were registered.

before_fork  in the mold, once, when all is imported: what every job would do, and may share
after_fork   in each job's process, before its task: what must not be shared
before_exit  in each job's process, when its task has ended, also by an exception: what must be flushed
"""

from __future__ import annotations

from .describing import describe, text_of
from .errors import ConfigError, TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from .safety import Watch

    Hook = Callable[[], object]
    H = TypeVar("H", bound=Hook)

#: Of code objects: `async def`. From inspect, which is too heavy to import here.
_COROUTINE = 0x80


class Hooks:
    """What an application has registered."""

    def __init__(self) -> None:
        self.before_fork: list[Hook] = []
        self.after_fork: list[Hook] = []
        self.before_exit: list[Hook] = []

    def add(self, moment: str, function: H) -> H:
        """Register a function, once.

        Raises ConfigError for what cannot be called without arguments.
        """
        code = getattr(function, "__code__", None)
        problem = None
        if not hasattr(function, "__call__"):  # noqa: B004 - callable() makes the rest unreachable for mypy
            problem = f"expected a function, got {describe(function)}"
        elif code is not None and code.co_flags & _COROUTINE:
            problem = f"expected a plain function, got the async {name_of(function)}"
        elif code is not None and _required(function) > 0:
            problem = f"expected a function without arguments, got {name_of(function)}"
        if problem:
            raise ConfigError(f"{moment}: {problem}", name=moment, value=function, source=None)
        known: list[Hook] = getattr(self, moment)
        if function not in known:
            known.append(function)
        return function


def _required(function: Hook) -> int:
    # a bound method has its own first one
    count: int = function.__code__.co_argcount + function.__code__.co_kwonlyargcount
    count -= len(getattr(function, "__defaults__", None) or ()) + len(
        getattr(function, "__kwdefaults__", None) or ()
    )
    return count - (getattr(function, "__self__", None) is not None)


def name_of(function: object) -> str:
    name = getattr(function, "__qualname__", None)
    return f"{getattr(function, '__module__', '?')}.{name}" if name else repr(function)


def run_before_fork(hooks: Sequence[Hook], target: str, watch: Watch) -> None:
    """Call them; one that raises is as bad as an application that does not import.

    Raises TargetError.
    """
    for hook in hooks:
        try:
            hook()
        except BaseException as error:
            raise TargetError(
                f"{target}: the before_fork hook {name_of(hook)} raised {type(error).__name__}: {text_of(error)}",
                target=target,
                traceback=_traceback_of(error),
            ) from error
        watch.look(f"the before_fork hook {name_of(hook)}")


def run_before_exit(hooks: Sequence[Hook], seconds: float) -> None:
    """Call them all; how the attempt ended is on record already, and nothing here changes it.

    What one raises is in the attempt's output, and the next is called. When their time is over the process ends,
    with the stacks of all threads in its output: also if C code holds the interpreter.
    """
    # loaded already in a child; the application's other processes do without
    from . import descriptors, stacks

    stacks.end_after(seconds)
    for hook in hooks:
        try:
            hook()
        except BaseException as error:  # noqa: BLE001 - it must not keep the others from flushing
            descriptors.say(
                f"forkrunner: the before_exit hook {name_of(hook)} raised\n{_traceback_of(error)}"
            )


def _traceback_of(error: BaseException) -> str:
    import traceback

    inner = error.__traceback__ and error.__traceback__.tb_next
    return "".join(traceback.format_exception(type(error), error, inner))
