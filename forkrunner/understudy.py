"""What stands in for a task, and for its files, in a replay: it does what the task does, and leaves nothing behind.

In the child of a replay, or, without a fork, in the command itself. The child's own way (`child.py`) does not know of it.
"""

from __future__ import annotations

import os
import shutil
import sys

from .current import current
from .errors import ForkrunnerError
from .filenames import safe_name
from .filing import Files
from .raising import leave_in
from .session import Work  # before the fork: a task has not the time for it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Any

    from .storage import Storage
    from .tasks import Task

_OURS = os.path.dirname(__file__)


class NotReady(ForkrunnerError):
    """The task could not be called: its arguments do not fit, or a file of them is not to be had."""


class Understudy:
    """Has the part of a `Task` that a child uses."""

    def __init__(self, task: Task[..., Any], url: str, folder: str, *, pdb: bool) -> None:
        self._task = task
        self._url = url
        self._folder = folder
        self._pdb = pdb
        self.takes_files = task.takes_files
        self.retryable = task.retryable
        self.bare: None = None
        self.at_most_once, self.requeue_on_reload = task.at_most_once, task.requeue_on_reload

    def load(self, text: bytes, files: Files | None = None) -> Any:
        """Return what to call the function with.

        Raises NotReady.
        """
        # of this process, and it is to leave nothing
        current.work = Work(self._url, current.job["id"] if current.job else "", self._folder)
        try:
            return self._task.load(text, files)
        except ForkrunnerError as error:
            raise NotReady(str(error), of=type(error).__name__) from None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; where it raises a person may look around."""
        try:
            return self._task.run(*args, **kwargs)
        except BaseException as error:
            if self._pdb and not leave_in(error):
                _look_around(error)
            raise

    def dump_result(self, value: Any, limit: int, files: Files | None = None) -> str:
        return self._task.dump_result(value, limit, files)


def _look_around(error: BaseException) -> None:
    import pdb
    import traceback

    inner: TracebackType | None = error.__traceback__
    while inner and inner.tb_next and os.path.dirname(inner.tb_frame.f_code.co_filename) == _OURS:
        inner = inner.tb_next
    traceback.print_exception(type(error), error, inner)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        pdb.post_mortem(inner)
    except KeyboardInterrupt:
        pass


class ReplayFiles(Files):
    """Files of a replay: those of the arguments from the storage or where somebody has them, results into a folder."""

    __slots__ = ("_given", "_inputs", "_results")

    def __init__(
        self,
        storage: Callable[[], Storage],
        limit: int,
        results: str,
        inputs: Iterable[tuple[str, str, str]],
        given: Mapping[str, str],
    ) -> None:
        """Prepare; `inputs`: place, name and hash of each file of the arguments; `given`: place → a path to take instead."""
        super().__init__(storage, limit)
        self._results = results
        self._given = given
        #: Parameter, name and hash → its places, those that were not met yet.
        self._inputs: dict[tuple[str, str, str], list[str]] = {}
        for place, name, sha256 in inputs:
            self._inputs.setdefault((place.partition("[")[0], name, sha256), []).append(place)

    def take(self, kind: Any, wire: Any) -> Any:
        """Return the file that a JSON stands for."""
        name = wire.get("name") if isinstance(wire, dict) else None
        path = self._given.get(self._place_of(wire)) if self._given else None
        if path is None or name is None or self.folder is None or kind.forkrunner_file != "InputFile":
            return super().take(kind, wire)
        copy = os.path.join(self.folder, self._file_name(os.path.splitext(safe_name(str(name)))[1]))
        shutil.copyfile(path, copy)
        return kind.stored(wire.get("sha256"), os.path.getsize(copy), name, copy)

    def _place_of(self, wire: Any) -> str:
        """Return the place of a file among the rows, by what it is: alike ones are met in their order."""
        if not isinstance(wire, dict):
            return ""
        places = self._inputs.get((self._part, str(wire.get("name")), str(wire.get("sha256"))), [""])
        return places.pop(0) if len(places) > 1 else places[0]

    def put(self, file: Any) -> dict[str, Any]:
        """Leave an output file in the folder of the results; the report says where."""
        os.makedirs(self._results, exist_ok=True)
        shown = file.display_name
        path = os.path.join(self._results, safe_name(shown))
        stem, suffix = os.path.splitext(path)
        number = 1
        while os.path.exists(path):
            number += 1
            path = f"{stem}-{number}{suffix}"
        with file.open_content() as source, open(path, "xb") as target:
            shutil.copyfileobj(source, target)
        wire = {"name": shown, "size": os.path.getsize(path)}
        self.rows.append({**wire, "path": path})
        return wire
