"""Background jobs that each get a process of their own; the database is the queue.

Everything public is named here and loaded when it is first asked for: importing forkrunner loads
no library, starts nothing and changes nothing in the process.
"""

from __future__ import annotations

# Read by setup.cfg without importing; the newest heading of CHANGELOG.md must say the same.
__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ConfigError",
    "CursorError",
    "EnqueueError",
    "FileError",
    "FileMissing",
    "ForkrunnerError",
    "InputFile",
    "Job",
    "JobNotFound",
    "JobStateError",
    "LeaveJob",
    "Outcome",
    "OutputFile",
    "Runner",
    "SchemaError",
    "Secret",
    "State",
    "StorageError",
    "StoreError",
    "StoreUnavailable",
    "TargetError",
    "Task",
    "TaskNotFound",
    "UserError",
    "WaitTimeout",
    "current_job",
    "progress",
    "safe_point",
]

# Not lazily: importing the module binds its own name here, and only now can the function take its place for good.
from forkrunner.progress import progress as progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from forkrunner.currentjob import current_job as current_job
    from forkrunner.errors import ArgumentError as ArgumentError
    from forkrunner.errors import ConfigError as ConfigError
    from forkrunner.errors import CursorError as CursorError
    from forkrunner.errors import EnqueueError as EnqueueError
    from forkrunner.errors import FileError as FileError
    from forkrunner.errors import FileMissing as FileMissing
    from forkrunner.errors import ForkrunnerError as ForkrunnerError
    from forkrunner.errors import JobNotFound as JobNotFound
    from forkrunner.errors import JobStateError as JobStateError
    from forkrunner.errors import LeaveJob as LeaveJob
    from forkrunner.errors import SchemaError as SchemaError
    from forkrunner.errors import StorageError as StorageError
    from forkrunner.errors import StoreError as StoreError
    from forkrunner.errors import StoreUnavailable as StoreUnavailable
    from forkrunner.errors import TargetError as TargetError
    from forkrunner.errors import TaskNotFound as TaskNotFound
    from forkrunner.errors import UserError as UserError
    from forkrunner.errors import WaitTimeout as WaitTimeout
    from forkrunner.files import InputFile as InputFile
    from forkrunner.files import OutputFile as OutputFile
    from forkrunner.handle import Job as Job
    from forkrunner.job import Outcome as Outcome
    from forkrunner.job import State as State
    from forkrunner.runner import Runner as Runner
    from forkrunner.safepoint import safe_point as safe_point
    from forkrunner.secret import Secret as Secret
    from forkrunner.tasks import Task as Task

#: Where the names are that are not errors.
_HOMES = {
    "InputFile": "files",
    "Job": "handle",
    "Outcome": "job",
    "OutputFile": "files",
    "Runner": "runner",
    "Secret": "secret",
    "State": "job",
    "Task": "tasks",
    "current_job": "currentjob",
    "safe_point": "safepoint",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'forkrunner' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"forkrunner.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
