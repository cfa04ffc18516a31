"""Options: what may be said of how a task is run, by its declaration or by a single call; their checks and defaults.

Molds import it, so it is thin.
"""

from __future__ import annotations

import re

from . import units
from .addresses import addresses
from .describing import describe
from .errors import ConfigError, EnqueueError, ForkrunnerError
from .internal import LOWEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime, timedelta
    from typing import Any

    #: Seconds, or text such as 500ms, 30s, 10m, 1h.
    Duration = float | str | timedelta
    #: Bytes, or text such as 512KiB, 200MB.
    Size = int | str

#: Of tasks and queues: fit for a process title, a log line, a URL and a shell.
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
#: Not given, where None has a meaning of its own.
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "UNSET"})()
#: A century, in seconds: beyond it lies a mistake, and the end of what can be added to a date.
_LONGEST = 100 * 366 * 86400.0


def is_name(text: str) -> bool:
    """Say whether a task or a queue may have this name."""
    return NAME.fullmatch(text) is not None


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        # bool is an int, but True attempts are a slip
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, got {describe(value)}")
        return value

    return check


def _seconds(value: Any) -> float:
    if hasattr(value, "total_seconds"):
        value = value.total_seconds()
    if type(value) not in (int, float):
        value = units.seconds(value)
    if not 0 <= value <= _LONGEST:
        raise ValueError(f"expected 0 seconds to {_LONGEST:.0f} (a century), got {value!r}")
    return float(value)


def _some_seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = _seconds(value)
    if not seconds:
        raise ValueError("expected more than 0 seconds, or None for no limit")
    return seconds


def _some_bytes(value: Any) -> int | None:
    if value is None or (type(value) is int and 0 < value < 2**63):
        number: int | None = value
        return number
    result = units.size(value)
    if not result:
        raise ValueError("expected more than 0 bytes, or None for no limit")
    return result


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _backoff(value: Any) -> float | list[float]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("expected at least one number of seconds, got none")
        return [_seconds(item) for item in value]
    return _seconds(value)


def _switch(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected True or False, got {describe(value)}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        expected = "1 to 200 letters, digits or any of _ . : -"
        raise ValueError(f"expected {expected}, got {describe(value)}")
    return value


def _exceptions(value: Any) -> tuple[type[BaseException], ...]:
    kinds = value if isinstance(value, (tuple, list)) else (value,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ValueError(f"expected types of exceptions, got {describe(kind)}")
    return tuple(kinds)


#: What a task may have mailed: the words of the setting `mail_on`, of which one is no affair of a task.
_MAIL_ON = ("failure", "attempt", "success")


def _mail_to(value: Any) -> list[str] | None:
    return None if value is None else list(addresses(value))


def _mail_on(value: Any) -> list[str] | None:
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(word in _MAIL_ON for word in words):
        expected = f"some of {', '.join(_MAIL_ON)}, or () for no mail"
        raise ValueError(f"expected {expected}, got {describe(value)}")
    return list(words)


#: Option → (check, whether a single call may override it: it is then kept in the row's `options`).
OPTIONS: Mapping[str, tuple[Callable[[Any], Any], bool]] = {
    "name": (_name, False),
    "queue": (_name, False),
    "priority": (_whole(LOWEST + 1, 2**31 - 1), False),
    "max_attempts": (_whole(1, 2**31 - 1), True),
    "max_crashes": (_whole(1, 2**31 - 1), True),
    "backoff": (_backoff, True),
    "backoff_cap": (_seconds, False),
    "retry_for": (_exceptions, False),
    "give_up_on": (_exceptions, False),
    "timeout": (_some_seconds, True),
    "grace": (_or_none(_seconds), True),
    "memory": (_some_bytes, True),
    "cpu_seconds": (_some_seconds, True),
    "open_files": (_or_none(_whole(1, 2**20)), True),
    "file_size": (_some_bytes, True),
    "nice": (_or_none(_whole(-20, 19)), True),
    "temporary_folder": (_switch, True),
    "at_most_once": (_switch, False),
    "requeue_on_reload": (_switch, False),
    "mail_to": (_mail_to, False),
    "mail_on": (_mail_on, False),
    "delay": (_seconds, False),
}

#: Those that a single call may override.
OF_CALLS = frozenset(name for name, (_, may_override) in OPTIONS.items() if may_override)

DEFAULTS: Mapping[str, Any] = {
    "name": None,
    "queue": "default",
    "priority": 0,
    "max_attempts": 1,
    "max_crashes": 3,
    "backoff": 10.0,
    "backoff_cap": 3600.0,
    "retry_for": (Exception,),
    "give_up_on": (),
    "timeout": None,
    "grace": None,
    "memory": None,
    "cpu_seconds": None,
    "open_files": None,
    "file_size": None,
    "nice": None,
    "temporary_folder": False,
    "at_most_once": False,
    "requeue_on_reload": False,
    "mail_to": None,
    "mail_on": None,
}

#: Limits of a job's process beside `timeout`: set in it before the task is called, and watched by the mold.
LIMITS = ("memory", "cpu_seconds", "open_files", "file_size", "nice", "temporary_folder")

#: What whoever runs the jobs must know of a task.
POLICY = (
    "queue",
    "max_attempts",
    "max_crashes",
    "backoff",
    "backoff_cap",
    "timeout",
    "grace",
    "at_most_once",
    "requeue_on_reload",
    "mail_to",
    "mail_on",
    *LIMITS,
)


def check_option(name: str, value: Any, task: str, error: type[ForkrunnerError] = ConfigError) -> Any:
    """Return an option in its final form, or raise `error`."""
    try:
        return OPTIONS[name][0](value)
    except ValueError as reason:
        raise error(
            f"task {task}: {name}: {reason}", name=name, value=value, source=None, task=task
        ) from None


def check_run_at(value: Any, task: str) -> datetime:
    """Return an aware moment.

    Raises EnqueueError for a naive one, which could mean any.
    """
    from datetime import UTC, datetime

    if not isinstance(value, datetime):
        got = describe(value)
        raise EnqueueError(f"task {task}: run_at: expected a datetime, got {got}", task=task)
    if value.utcoffset() is None:
        raise EnqueueError(
            f"task {task}: run_at: expected an aware datetime, got the naive {value};"
            " say datetime.now(UTC) + …, or value.astimezone() if it is local time",
            task=task,
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise EnqueueError(f"task {task}: run_at: {value} is no date in UTC", task=task) from None
