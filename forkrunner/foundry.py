"""Where a supervisor's molds are started, heard, told and buried. What is due says `molds.py`."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

from . import channel, clock, measure, process, stacks
from .link import MoldLink
from .molds import FOREVER, Mold, Molds, Place
from .signals import Poll
from .units import show_size

if TYPE_CHECKING:
    import resource
    from collections.abc import Collection, Iterator

    from .config import Settings
    from .events import Log


#: Between two looks at the age and growth of molds, seconds.
_CARE_EVERY = 10.0


class Foundry:
    """The molds of one supervisor. What they say of jobs is the supervisor's affair."""

    def __init__(self, targets: list[str], log: Log, poll: Poll) -> None:
        self.molds = Molds(targets)
        self.log = log
        self.poll = poll
        self.folder = _folder()
        #: When the molds are looked at for age and growth.
        self.care_at = 0.0
        #: Processes of the supervisor's that are no molds.
        self.others: set[int] = set()
        #: Those of them that remove folders, and which.
        self.removing: dict[int, list[str]] = {}
        #: Something was said that cannot be removed.
        self.stuck = False

    def start(self, place: Place, settings: Settings, keep: Collection[int]) -> None:
        """Start a mold there; `keep` are the descriptors that it and its children must hold as long as they live."""
        self.molds.generation += 1
        boot = {
            "target": place.target,
            "generation": self.molds.generation,
            "folder": self.folder,
            "preload": settings.preload,
            "allow_threads": settings.allow_threads,
            "watch": settings.reload,
        }
        link = MoldLink(boot, keep)
        self.poll.watch(link.fileno())
        link.send()
        self.molds.start(place, self.molds.generation, link, clock.monotonic())

    def receive(self, mold: Mold) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield what a mold has said."""
        try:
            if messages := mold.link.receive():
                self.molds.heard(mold, clock.monotonic())
            yield from messages
        except channel.Garbled as error:
            self.log.emit("mold.garbled", error=str(error))
            process.kill_tree(mold.link.pid)  # SIGCHLD follows, and all of its attempts are lost

    def send(self) -> None:
        for mold in self.molds:
            self.poll.watch(mold.link.fileno(), write=mold.link.send())

    def tell_all(self, header: dict[str, Any]) -> None:
        for mold in self.molds:
            mold.link.tell(header)

    def retire(self, mold: Mold, reason: str) -> None:
        """Give a mold no more jobs; it ends when its last one has."""
        if reason == "reload":
            mold.link.tell({"kind": "leave", "wish": "reload"})
        mold.link.tell({"kind": "end"})
        self.log.emit("mold.retired", generation=mold.generation, busy=mold.busy)

    def reload(self) -> None:
        for mold in self.molds.reload():
            process.kill_tree(mold.link.pid)

    def broken(self, mold: Mold, error: str, traceback: str | None = None) -> None:
        """Tell why a mold does not come up, and that who serves goes on."""
        self.molds.discard(mold)
        self.molds.give_up(mold.place.target, clock.monotonic())
        serving = mold.place.serving
        then = f"mold {serving.generation} goes on" if serving else "it is tried again"
        self.log.emit("mold.broken", error=error + _where(traceback, self.folder), then=then)

    def next_due(self, settings: Settings) -> float:
        silence = self.molds.silence_due(settings.mold_timeout)
        return min(silence, self.molds.importing_due(settings.import_timeout), self.care_at)

    def care(self, now: float, settings: Settings) -> None:
        """Kill those that hang, and renew those that are worn."""
        ask, dead = self.molds.silent(now, settings.mold_timeout)
        for mold in ask:
            mold.link.tell({"kind": "ask"})
        for mold in dead:
            self.log.emit("mold.silent", generation=mold.generation, seconds=now - mold.heard, busy=mold.busy)
            self.kill(mold)
        slow, dead = self.molds.importing(now, settings.import_timeout)
        for mold in slow:
            self.log.emit("mold.slow", generation=mold.generation, seconds=mold.told, pid=mold.link.pid)
            self.log.flush()  # before what it says itself
            stacks.ask_for_stacks(mold.link.pid)
        for mold in dead:
            mold.why = f"importing it took longer than import_timeout, {settings.import_timeout:g} s"
            self.kill(mold)
        if now < self.care_at:
            return
        serving = [place.serving for place in self.molds.places if place.serving is not None]
        for mold in serving:
            why = self._worn(mold, now, settings)
            if why and self.molds.renew(mold, now):
                self.log.emit("mold.worn", generation=mold.generation, why=why)
        # nothing is due while nothing is limited
        self.care_at = now + _CARE_EVERY if serving else FOREVER

    def _worn(self, mold: Mold, now: float, settings: Settings) -> str | None:
        if settings.mold_jobs and mold.jobs >= settings.mold_jobs:
            return f"it has had {mold.jobs} jobs"
        if settings.mold_age and now - mold.up >= settings.mold_age:
            return f"it is {now - mold.up:.0f} s old"
        memory = measure.memory_of(mold.link.pid) if settings.mold_growth else 0
        mold.memory = mold.memory or memory
        if memory - mold.memory > settings.mold_growth:
            return f"it has grown by {show_size(memory - mold.memory)}"
        return None

    def remove_folders(self, paths: list[str]) -> None:
        """Let folders be removed by a process of its own; what is left of them goes with the next start."""
        with contextlib.suppress(OSError):
            pid = process.remove_folders(*paths)
            self.others.add(pid)
            self.removing[pid] = paths

    def gone(self, pid: int) -> None:
        """Forget a dead process that may be no mold."""
        self.others.discard(pid)
        for path in self.removing.pop(pid, ()):
            if os.path.lexists(path):
                self.cannot_remove(path)

    def cannot_remove(self, path: str) -> None:
        self.stuck = True
        self.log.emit("folder.left", path=path)

    def kill(self, mold: Mold) -> None:
        """Kill one that does not do what it should, and its children; SIGCHLD follows, its attempts are lost."""
        mold.heard = mold.asked = FOREVER
        process.kill_tree(mold.link.pid)

    def bury(self, mold: Mold) -> dict[int, resource.struct_rusage]:
        """Forget a dead mold, and make certain that nothing of it is left running; return what its children had used."""
        self.poll.forget(mold.link.fileno())
        mold.link.close()
        self.molds.died(mold, clock.monotonic())
        # its children were tied to it and fell to us: when we have none but the other molds, none runs
        usages: dict[int, resource.struct_rusage] = {}
        process.reap_all(keep={other.link.pid for other in self.molds} | self.others, usages=usages)
        return usages

    def kill_all(self, *, last: bool = False) -> bool:
        """End all molds here and now, at `last` whatever else we have too; False if some process would not die."""
        for mold in self.molds:
            self.poll.forget(mold.link.fileno())
            mold.link.close()
        self.molds.clear()
        return process.reap_all(keep=() if last else self.others)


def _folder() -> str:
    """Return the current folder by the name that we were started under: a link in it may lead to a new release."""
    here, named = os.getcwd(), os.environ.get("PWD", "")
    try:
        return named if named.startswith("/") and os.path.samefile(named, here) else here
    except OSError:
        return here


def _where(traceback: str | None, folder: str) -> str:
    """Name the line of the application in which an import failed."""
    found = re.findall(r'File "([^"<]+)", line (\d+)', traceback or "")
    own = [(path, line) for path, line in found if path.startswith(os.path.join(folder, ""))]
    return "".join(f", at {os.path.relpath(path, folder)}:{line}" for path, line in own[-1:])
