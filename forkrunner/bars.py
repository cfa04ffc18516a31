"""What `forkrunner watch` shows while jobs run: bars on a terminal, else a line for each change, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from forkrunner import clock, terminal, wording
from forkrunner.job import State

if TYPE_CHECKING:
    from rich.progress import TaskID

    from forkrunner.records import Row
    from forkrunner.watch import View

_COLOURS = {"pending": "blue", "busy": "yellow", "done": "green", "failed": "red", "cancelled": "magenta"}


def choose(names: Mapping[str, str], as_json: bool) -> Lines:
    """Choose how to show the jobs: their id → the name of their task."""
    if as_json:
        return Objects(names)
    return Bars(names) if terminal.is_terminal() else Lines(names)


def words(view: View) -> str:
    """Say on one line how a job stands."""
    if view["state"] == "pending":
        if view["due_at"] is not None:
            return f"waits until {wording.moment(datetime.fromisoformat(view['due_at']), clock.utc())}"
        ahead = view["position"]
        return {None: "waits", 0: "waits, is next", 1: "waits, 1 job is ahead"}.get(
            ahead, f"waits, {'at least ' if ahead == 1000 else ''}{ahead} jobs are ahead"
        )
    if view["state"] != "busy":
        return str(view["state"])
    said = terminal.short(wording.progress_words(view)) or "busy"
    left = view["eta_seconds"]
    return said if left is None else f"{said}, {wording.duration(left)} left"


def ending(row: Row) -> str:
    """Say on one line how a job has ended."""
    reason = f": {row.error}" if row.error and row.state is not State.DONE else ""
    seconds = wording.took(row.started_at, row.finished_at)
    line = f"{row.state}{reason}" + (f" after {seconds}" if seconds else "")
    name = f"{terminal.short_id(row.id)} {terminal.short(row.task)}"
    return f"{name} {terminal.paint(terminal.short(line, 2000), _COLOURS[row.state])}"


class Lines:
    """A line when the state of a job or its tenth of the way changes; how it ended is not said here."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self._last: dict[str, Any] = {}
        self._trouble = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, views: Mapping[str, View]) -> None:
        self._trouble = False
        for id, view in views.items():
            key = self.key(view)
            if self._last.get(id) != key:
                self._last[id] = key
                self.say(id, view)
        sys.stdout.flush()

    def key(self, view: View) -> Any:
        return (
            view["state"],
            view["attempt"],
            view["position"],
            view["due_at"],
            int((view["fraction"] or 0) * 10),
        )

    def say(self, id: str, view: View) -> None:
        if view["state"] in ("pending", "busy"):
            print(f"{id} {terminal.short(self.names[id])} {words(view)}")

    def trouble(self, error: str) -> None:
        if not self._trouble:
            self._trouble = True
            print(f"forkrunner: {terminal.short(error, 500)}; trying again", file=sys.stderr)


class Objects(Lines):
    """A line of JSON for each change of a job."""

    def key(self, view: View) -> Any:
        return view

    def say(self, id: str, view: View) -> None:
        print(json.dumps({name: value for name, value in view.items() if name != "file"}))


class Bars(Lines):
    """Live bars, one below the other; gone when all have ended."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(names)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(
            color_system="auto" if terminal.is_styled() else None, highlight=False, markup=False, emoji=False
        )
        one_line = {"no_wrap": True, "overflow": "ellipsis"}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(**one_line)),  # type: ignore[arg-type]
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", markup=False, table_column=Column(ratio=1, **one_line)),  # type: ignore[arg-type]
            console=console,
            transient=True,
            expand=True,
            auto_refresh=False,  # no thread: each look draws
        )
        self._bars: dict[str, TaskID] = {
            id: self._progress.add_task(
                f"{terminal.short_id(id)} {terminal.short(name)}", total=None, start=False, words=""
            )
            for id, name in names.items()
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, views: Mapping[str, View]) -> None:
        for id, view in views.items():
            bar, fraction = self._bars[id], view["fraction"]
            if fraction is not None:
                self._progress.start_task(bar)  # until then the bar only says that something is going on
                self._progress.update(bar, total=1.0, completed=fraction)
            self._progress.update(bar, words=words(view))
        self._progress.refresh()

    def trouble(self, error: str) -> None:
        for bar in self._bars.values():
            self._progress.update(bar, words=terminal.short(error, 200))
        self._progress.refresh()
