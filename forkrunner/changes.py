"""Which of the application's files has changed: for `--reload`, in development.

Every Python file below the folder, the settings files, and what the molds have imported from elsewhere. Files are
looked at now and then and not watched by the kernel: that works on every file system, also on one that a container
shares with its host.
"""

from __future__ import annotations

import os

#: Between two looks, seconds.
EVERY = 0.5
#: Below these nothing is the application's; nor below a folder with a pyvenv.cfg, or a hidden one.
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
_SETTINGS = ("forkrunner.toml", "pyproject.toml")

#: Path → what changes with its contents.
Picture = dict[str, tuple[int, int, int]]


class Changes:
    """The files of one application. Reads folders only; calls nobody."""

    def __init__(self, folder: str, limit: int | None = None) -> None:
        """Look at them for the first time; at `limit` files below the folder at most."""
        self._folder = folder
        self._limit = limit
        self._elsewhere: set[str] = set()
        self._known = self._look()
        #: The first file that has changed, while more are being written.
        self._changed: str | None = None

    def add(self, files: list[str]) -> None:
        """Look at these too: what the application has imported."""
        fresh = set(files) - self._elsewhere - self._known.keys()
        self._elsewhere |= fresh
        for path in fresh:
            _note(path, self._known)

    def changed(self) -> str | None:
        """Return a file that has changed since the last time that one was returned, when it has come to rest."""
        now = self._look()
        if now != self._known:
            different = (
                path
                for path in sorted(now.keys() | self._known.keys())
                if now.get(path) != self._known.get(path)
            )
            # a checkout or an editor may be in the middle of writing: it is told when a look later nothing is new
            self._changed = self._changed or next(different)
            self._known = now
            return None
        found, self._changed = self._changed, None
        return found

    def differ(self) -> str | None:
        """Return a file that has changed since the last time, whether or not more are being written."""
        now, before = self._look(), self._known
        self._known = now
        if now == before:
            return None
        return next(path for path in sorted(now.keys() | before.keys()) if now.get(path) != before.get(path))

    def _look(self) -> Picture:
        found: Picture = {}
        todo = [self._folder]
        while todo and (self._limit is None or len(found) < self._limit):
            try:
                entries = list(os.scandir(todo.pop()))
            except OSError:
                continue
            if any(entry.name == "pyvenv.cfg" for entry in entries):
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _SKIPPED:
                    continue
                if entry.name.endswith(".py") or entry.name in _SETTINGS:
                    _note(entry.path, found)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
        for path in self._elsewhere:
            _note(path, found)
        return found


def _note(path: str, found: Picture) -> None:
    try:
        status = os.stat(path)
    except OSError:
        return
    found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
