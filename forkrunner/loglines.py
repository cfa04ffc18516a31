"""Python's logging in a job: each line carries the job's id, its task and the number of the attempt.

Prepared in the mold, which does not import logging for that: it halves the forks per second. What the application
has imported is prepared before the fork; else the job does it, when and if it imports logging.
"""

from __future__ import annotations

import sys

from .current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

#: Attributes of a record. No short names: `extra={"job_id": …}` of the application would be refused beside one.
_PREFIX = "forkrunner_"


def prepare() -> None:
    """Have the lines of jobs carry what they are of, from now on or from the import of logging on."""
    logging = sys.modules.get("logging")
    if logging is not None:
        _install(logging)
    else:
        sys.meta_path.insert(0, _Await())


def _install(logging: Any) -> None:
    make, show = logging.getLogRecordFactory(), logging.Formatter.formatMessage

    def make_record(*args: Any, **kwargs: Any) -> Any:
        record = make(*args, **kwargs)
        job = current.job
        if job is not None:
            record.forkrunner_job, record.forkrunner_task = job["id"], job["task"]
            record.forkrunner_attempt = job["attempt"]
        return record

    def format_message(self: Any, record: Any) -> str:
        text: str = show(self, record)
        if not hasattr(record, "forkrunner_job") or _PREFIX in (self._fmt or ""):
            return text
        return (
            f"[{record.forkrunner_job} {record.forkrunner_task} attempt {record.forkrunner_attempt}] {text}"
        )

    logging.setLogRecordFactory(make_record)
    # in the class and not in a handler: those are the application's, and more of them may come
    logging.Formatter.formatMessage = format_message


class _Await:
    """Stands first in sys.meta_path until logging is imported."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _install(module)

            loader.exec_module = exec_module
        return spec
