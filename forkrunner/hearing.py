"""What molds say, and that they have died: settings, tasks and mistakes of the application come to a supervisor here.

Used by the supervisor's loop only. A message of the kind `x` is taken by `on_x`; those of attempts go on to
`attempts.py`. Where molds are started and ended says `foundry.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import cgroup, changes, clock, handover, identity, process
from .changes import Changes
from .errors import ConfigError, TargetError
from .locating import locate
from .molds import FOREVER, Stage, targets_of
from .places import Reader
from .places import place as progress_place
from .safety import EFFECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Settings
    from .molds import Mold
    from .supervisor import Supervisor

#: What a reload does not change: it is in use since the start.
_FIXED = ("app", "database", "notify", "lease", "store_timeout", "runtime_dir", "log_level", "log_format",
          "molds", "reload", "cgroup")  # fmt: skip


class Hearing:
    """What one supervisor knows from its molds."""

    def __init__(self, supervisor: Supervisor, reload_settings: Callable[[dict[str, Any]], Settings]) -> None:
        self.supervisor = supervisor
        self.log = supervisor.log
        self.attempts = supervisor.attempts
        self.reload_settings = reload_settings
        #: What the application sets in its code, as the newest mold told.
        self.code: dict[str, Any] = {}
        #: Where progress is cleared away.
        self.progress: Reader
        #: Looks at the application's files, if that is asked for.
        self.changes: Changes | None = None
        self.watch_at = FOREVER
        #: Where control groups can be made and of which version, once that was looked for.
        self.groups: tuple[str, int] | None = None

    def take(self) -> None:
        for mold in self.supervisor.molds:
            self.take_of(mold)

    def take_of(self, mold: Mold) -> None:
        for header, body in self.supervisor.foundry.receive(mold):
            getattr(self, "on_" + header["kind"])(mold, header, body)

    def on_up(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        if mold.stage is Stage.DISCARDED:
            return
        try:
            if mold.place.target == self.supervisor.target:
                self.adopt_settings(self.reload_settings(header["code"]))
                self.code = header["code"]
            elif handover.home(self.reload_settings(header["code"])) != handover.home(
                self.supervisor.settings
            ):
                raise ConfigError(
                    f"{mold.place.target}: its jobs are in another database than those of {self.supervisor.target}"
                )
        except ConfigError as error:
            if self.supervisor.store is None:
                raise
            self.supervisor.foundry.broken(mold, str(error))
            process.kill_tree(mold.link.pid)
            return
        before = self.supervisor.molds.up(mold, header["tasks"], clock.monotonic())
        mold.queues = header.get("queues", False)
        self.supervisor.foundry.care_at = 0.0
        if before is not None:
            self.supervisor.foundry.retire(before, mold.place.reason)
        if self.supervisor.store is None and len(self.supervisor.molds.places) == 1:
            self.supervisor.molds.extend(
                targets_of(self.supervisor.target, self.supervisor.settings.molds)[1:]
            )
        self.start_watching(header.get("files", []))
        self.supervisor.renewal.renew_at = 0.0
        where = self.use_settings()
        mold.link.tell(
            {
                "kind": "go",
                "spares": min(self.supervisor.settings.spares, self.supervisor.settings.slots),
                "output_limit": self.supervisor.settings.output_limit,
                "result_limit": self.supervisor.settings.result_limit,
                "exit_timeout": self.supervisor.settings.exit_timeout,
                "storage": self.find_storage(),
                "cgroup": self.find_groups(),
                "progress": {key: where[key] for key in ("url", "prefix", "rate", "folder")},
            }
        )
        self.supervisor.renewal.tell_lease()
        seconds = clock.monotonic() - mold.started
        # of the first one `supervisor.started` tells
        self.log.emit(
            "mold.ready" if self.supervisor.store is None else "mold.up",
            generation=mold.generation,
            tasks=len(mold.tasks),
            seconds=seconds,
            pid=mold.link.pid,
        )
        for kind, what, by in header["unsafe"]:
            self.log.emit("mold.unsafe", finding=kind, what=what, by=by, effect=EFFECTS[kind])
        self.supervisor.rows.look()

    def on_alive(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        """Nothing more: it was heard."""

    def on_broken(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        if self.supervisor.store is None:
            raise TargetError(header["error"], traceback=header.get("traceback"))
        # the code was changed under a running supervisor: it may be mended in the same way
        self.supervisor.foundry.broken(mold, header["error"], header.get("traceback"))

    def on_runs(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        self.attempts.runs(mold, header)

    def on_ended(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        self.attempts.ended(mold, header, body)

    def on_refused(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        self.attempts.refused(mold, header)

    def on_returned(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        self.attempts.returned(mold, header)

    def on_left(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        self.supervisor.foundry.cannot_remove(header["path"])

    def on_dead_mold(self, mold: Mold, how: str) -> None:
        """Count the attempts that it has begun as lost, once it is certain that none of its children is left."""
        self.take_of(mold)
        busy = mold.busy
        # before it is buried: whether it has begun any decides how soon there is another
        self.attempts.give_back(mold, mold.link.taken())
        usages = self.supervisor.foundry.bury(mold)
        self.supervisor.renewal.renew_at = 0.0
        if mold.stage is Stage.STARTING and self.supervisor.orders.stop_at == FOREVER:
            why = mold.why or f"the process ended while it was imported ({how})"
            if self.supervisor.store is None:
                raise TargetError(f"{mold.place.target}: {why}")
            self.supervisor.foundry.broken(mold, why)
        elif mold.stage is Stage.DRAINING and not busy:
            self.log.emit("mold.finished", generation=mold.generation)
        elif mold.stage is not Stage.DISCARDED and not self.supervisor.orders.killed:
            pause = mold.place.pause(clock.monotonic())
            then = "a new one is started" + (f" in {pause:.0f} s" if pause else "")
            if mold.stage is Stage.DRAINING:
                then = "it was draining"
            self.log.emit("mold.died", generation=mold.generation, how=how, busy=busy, then=then)
        self.attempts.lost(mold, how, usages)

    def adopt_settings(self, fresh: Settings) -> None:
        """Take over what may change while we run."""
        if self.supervisor.store is not None:
            for name in fresh.fix(self.supervisor.settings, _FIXED):
                self.log.emit("settings.fixed", setting=name, value=self.supervisor.settings.shown(name))
        self.supervisor.settings = fresh

    def use_settings(self) -> dict[str, Any]:
        """Make ready what follows from the settings; return where progress goes."""
        where = progress_place(self.supervisor.settings)
        for folder in (self.supervisor.settings.runtime_dir, where["runtime"], where["folder"]):
            identity.private_folder(folder)
        self.progress = Reader(where)
        self.progress.sweep()
        self.supervisor.mailing.use_settings()
        return where

    def find_storage(self) -> tuple[str, int]:
        """Say where the files of jobs are, and how large one may be."""
        settings = self.supervisor.settings
        return locate(settings.storage, settings.database, os.getcwd()), settings.file_limit

    def find_groups(self) -> tuple[str, int]:
        """Look once where control groups can be made.

        Raises ConfigError.
        """
        if self.groups is None:
            named = self.supervisor.settings.cgroup
            try:
                self.groups = cgroup.find(named)
            except OSError as error:
                raise ConfigError(
                    f"cgroup: expected a control group that is ours to use: {error}",
                    name="cgroup",
                    value=named,
                    source=None,
                ) from None
        return self.groups

    def start_watching(self, imported: list[str]) -> None:
        """Watch the application's files, if that is asked for, and those that a mold has imported from elsewhere."""
        if not self.supervisor.settings.reload:
            return
        if self.changes is None:
            self.changes, self.watch_at = (
                Changes(self.supervisor.foundry.folder),
                clock.monotonic() + changes.EVERY,
            )
        self.changes.add(imported)

    def watch_files(self, now: float) -> None:
        if self.changes is None or now < self.watch_at:
            return
        self.watch_at = now + changes.EVERY
        path = self.changes.changed()
        if path is not None and self.supervisor.orders.stop_at == FOREVER:
            self.log.emit("files.changed", path=os.path.relpath(path, self.supervisor.foundry.folder))
            self.supervisor.foundry.reload()
