"""Where a supervisor's molds are started, heard, told and buried. What is due says `molds.py`."""

from __future__ import annotations

import os
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

    def start(self, place: Place, settings: Settings, keep: Collection[int]) -> None:
        """Start a mold there; `keep` are the descriptors that it and its children must hold as long as they live."""
        self.molds.generation += 1
        boot = {
            "target": place.target,
            "generation": self.molds.generation,
            "folder": os.getcwd(),
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

    def bury(self, mold: Mold) -> None:
        """Forget a dead mold, and make certain that nothing of it is left running."""
        self.poll.forget(mold.link.fileno())
        mold.link.close()
        self.molds.died(mold, clock.monotonic())
        # its children were tied to it and fell to us: when we have none but the other molds, none runs
        process.reap_all(keep={other.link.pid for other in self.molds})

    def kill_all(self) -> bool:
        """End all molds here and now; False if some process would not die."""
        for mold in self.molds:
            self.poll.forget(mold.link.fileno())
            mold.link.close()
        self.molds.clear()
        return process.reap_all()


def how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
