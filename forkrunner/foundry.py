"""Where a supervisor's molds are started, heard, told and buried. What is due says `molds.py`."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

from . import channel, clock, process
from .link import MoldLink
from .molds import Mold, Molds, Place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .config import Settings
    from .events import Log


class Foundry:
    """The molds of one supervisor. What they say of jobs is the supervisor's affair."""

    def __init__(self, targets: list[str], log: Log, poll: process.Poll) -> None:
        self.molds = Molds(targets)
        self.log = log
        self.poll = poll
        self.folder = _folder()
        #: Processes of the supervisor's that are no molds.
        self.others: set[int] = set()

    def start(self, place: Place, settings: Settings, keep: Collection[int]) -> None:
        """Start a mold there; `keep` are the descriptors that it and its children must hold as long as they live."""
        self.molds.generation += 1
        boot = {
            "target": place.target,
            "generation": self.molds.generation,
            "folder": self.folder,
            "preload": settings.preload,
            "allow_threads": settings.allow_threads,
        }
        link = MoldLink(boot, keep)
        self.poll.watch(link.fileno())
        link.send()
        self.molds.start(place, self.molds.generation, link, clock.monotonic())

    def receive(self, mold: Mold) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield what a mold has said."""
        try:
            yield from mold.link.receive()
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
        mold.link.tell({"kind": "end", "reason": reason})
        self.log.emit("mold.retired", generation=mold.generation, busy=mold.busy)

    def reload(self) -> None:
        for mold in self.molds.reload():
            process.kill_tree(mold.link.pid)

    def broken(self, mold: Mold, error: str, traceback: str | None = None) -> None:
        """Tell why a mold does not come up, and that who serves goes on."""
        self.molds.discard(mold)
        self.molds.give_up(mold.place.target)
        serving = mold.place.serving
        then = f"mold {serving.generation} goes on" if serving else "it is tried again"
        self.log.emit("mold.broken", error=error + _where(traceback, self.folder), then=then)

    def bury(self, mold: Mold) -> None:
        """Forget a dead mold, and make certain that nothing of it is left running."""
        self.poll.forget(mold.link.fileno())
        mold.link.close()
        self.molds.died(mold, clock.monotonic())
        # its children were tied to it and fell to us: when we have none but the other molds, none runs
        process.reap_all(keep={other.link.pid for other in self.molds} | self.others)

    def kill_all(self) -> bool:
        """End all molds here and now; False if some process would not die."""
        for mold in self.molds:
            self.poll.forget(mold.link.fileno())
            mold.link.close()
        self.molds.clear()
        return process.reap_all()


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


def how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
