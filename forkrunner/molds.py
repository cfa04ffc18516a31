"""The supervisor's memory of its molds: which there are, which takes the next job, where one is missing.

No system call is made here, so tests start nothing: this says what is due, `foundry.py` does it. A place is
where one mold is to serve at any time; what happens there:

    STARTING ──up──▶ SERVING ──another is up──▶ DRAINING ──its last job ended──▶ gone
       │                │                          │
       ├──died──────────┴──────────died────────────┴──▶ gone, and its attempts are lost
       └──does not import, or is not wanted any more──▶ DISCARDED ──died──▶ gone

A reload, or a renewal, starts a mold where one serves. Until the new one is up, and if it never is, the old
one goes on.

Always true between two turns of the supervisor's loop:
(1) a place has at most one mold that serves, and at most one that starts;
(2) only one that serves is given jobs;
(3) a place with no mold at all has a moment at which one is started.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .link import MoldLink

FOREVER = float("inf")
#: A second mold that never came up, or died by itself within YOUNG of that, is replaced after a pause, doubled up to
#: the last one, seconds.
YOUNG, FIRST_PAUSE, LAST_PAUSE = 5.0, 1.0, 30.0
#: A mold that has said nothing for this share of the patience is asked whether it lives.
ASK_AFTER = 1 / 3
#: A mold that imports for so long is told of, and again after twice, four times …, seconds.
SLOW = 10.0
#: We were held up ourselves by more than this, seconds: who has not answered meanwhile is not to blame.
HELD_UP = 1.0
#: A renewal that came to nothing is tried again after so long, seconds.
RENEW_AGAIN = 300.0


def targets_of(app: str, molds: str) -> list[str]:
    """Return the application of each mold that the setting `molds` asks for, our own first."""
    own, *others = molds.split(",")
    targets = [app] * int(own)
    for other in others:
        target, _, number = other.partition("=")
        targets += [target] * int(number)
    return targets


class Stage(enum.StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    DISCARDED = "discarded"


class Mold:
    """One mold, from its start to its death."""

    __slots__ = (
        "asked", "busy", "generation", "heard", "jobs", "link", "memory", "place", "queues", "stage", "started", "tasks",
        "told", "up", "why"
    )  # fmt: skip

    def __init__(self, place: Place, generation: int, link: MoldLink, now: float) -> None:
        self.place = place
        self.generation = generation
        self.link = link
        self.stage = Stage.STARTING
        self.started = now
        self.up = FOREVER
        #: How long it had been importing when that was last told of, seconds.
        self.told = 0.0
        #: Why it was killed while it imported.
        self.why = ""
        #: How many attempts it has, and how many it has been given and taken.
        self.busy = self.jobs = 0
        #: When it last said something, and since when it has owed us an answer.
        self.heard, self.asked = now, FOREVER
        #: What it had in memory when it was first looked at; 0: not yet.
        self.memory = 0
        #: It has a queue for jobs that were claimed ahead; one of an earlier release would start them.
        self.queues = False
        #: Task name → its options, as it told when it was up.
        self.tasks: dict[str, dict[str, Any]] = {}


class Place:
    """Where one mold of an application is to serve."""

    __slots__ = ("due", "reason", "renew_at", "serving", "starting", "target", "tasks", "young_deaths")

    def __init__(self, target: str) -> None:
        self.target = target
        self.serving: Mold | None = None
        self.starting: Mold | None = None
        #: When a mold is to be started here, whether or not one serves; FOREVER: none.
        self.due = 0.0
        #: Why the next one replaces one that serves.
        self.reason = ""
        #: No renewal before.
        self.renew_at = 0.0
        self.young_deaths = 0
        #: The tasks of the mold that served here last: whose turn it is while none does.
        self.tasks: dict[str, dict[str, Any]] = {}

    def pause(self, now: float) -> float:
        """Say how long it is until a mold is started here that is not yet, seconds; 0: none is to be waited for."""
        return 0.0 if self.due == FOREVER else max(0.0, self.due - now)


class Molds:
    """All molds of one supervisor, oldest first."""

    def __init__(self, targets: list[str]) -> None:
        self.places = [Place(target) for target in targets]
        self.generation = 0
        self._all: list[Mold] = []
        self._looked = FOREVER

    def __iter__(self) -> Iterator[Mold]:
        return iter(tuple(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def with_pid(self, pid: int) -> Mold | None:
        return next((mold for mold in self._all if mold.link.pid == pid), None)

    def start(self, place: Place, generation: int, link: MoldLink, now: float) -> Mold:
        mold = Mold(place, generation, link, now)
        place.starting, place.due = mold, FOREVER
        self._all.append(mold)
        return mold

    def adopt(
        self,
        place: Place,
        generation: int,
        link: MoldLink,
        started: float,
        stage: Stage,
        tasks: dict[str, dict[str, Any]],
    ) -> Mold:
        """Take up a mold that the program before this one has started."""
        mold = Mold(place, generation, link, started)
        mold.stage, mold.tasks = stage, tasks
        if stage is Stage.SERVING:
            place.serving = mold
        elif stage is Stage.STARTING or (stage is Stage.DISCARDED and place.starting is None):
            place.starting = mold
        self._all.append(mold)
        return mold

    def up(self, mold: Mold, tasks: dict[str, dict[str, Any]], now: float) -> Mold | None:
        """Let it serve from now on; return the one that did, which is to be retired."""
        place = mold.place
        before, place.serving, place.starting = place.serving, mold, None
        mold.up = now
        mold.stage, mold.tasks, place.tasks = Stage.SERVING, tasks, tasks
        if before is not None:
            before.stage = Stage.DRAINING
        return before

    def died(self, mold: Mold, now: float) -> None:
        """Forget a dead one, and say when the place gets another. Keeps (3)."""
        self._all.remove(mold)
        place = mold.place
        if mold is place.starting:
            place.starting = None
        elif mold is place.serving:
            place.serving = None
        else:
            return
        if place.serving or place.starting or place.due != FOREVER:
            return
        # At once, but a mold that cannot live is not started as fast as it dies. One that has begun a job could: if that
        # job has killed it, that counts as one of its crashes, which have a cap, and others must not wait for it.
        lived = mold.jobs > 0 or now > mold.up + YOUNG
        place.young_deaths = 0 if lived else place.young_deaths + 1
        again = min(place.young_deaths - 1, 10)
        place.due = now + min(FIRST_PAUSE * 2.0 ** (again - 1), LAST_PAUSE) if again > 0 else now

    def clear(self) -> None:
        """Forget them all: they were killed on purpose. Keeps (3)."""
        self._all.clear()
        for place in self.places:
            place.serving = place.starting = None
            place.due = 0.0

    def reload(self) -> list[Mold]:
        """Have each place get a new mold; return those that were starting, whose code may be old: kill them."""
        for place in self.places:
            place.due, place.reason = 0.0, "reload"
        stale = [place.starting for place in self.places if place.starting is not None]
        for mold in stale:
            self.discard(mold)
        return stale

    def discard(self, mold: Mold) -> None:
        """Give up one that starts; who serves in its place goes on."""
        mold.stage = Stage.DISCARDED

    def give_up(self, target: str, now: float) -> None:
        """Replace no more molds of an application that does not import: each would fail alike."""
        for place in self.places:
            if place.target == target and place.serving is not None:
                place.due, place.renew_at = FOREVER, now + RENEW_AGAIN

    def renew(self, mold: Mold, now: float) -> bool:
        """Have one that serves replaced by one of the same code; False: it is about to be, or was tried just now."""
        place = mold.place
        if mold is not place.serving or place.starting or place.due != FOREVER or now < place.renew_at:
            return False
        place.due, place.reason = now, "renewal"
        return True

    def heard(self, mold: Mold, now: float) -> None:
        mold.heard, mold.asked = now, FOREVER

    def silent(self, now: float, patience: float) -> tuple[list[Mold], list[Mold]]:
        """Say which molds are to be asked whether they live, and which have owed an answer for too long.

        A mold that imports is not asked. To be called when what has come was heard.
        """
        if now > self._looked + HELD_UP:
            # a frozen or starved supervisor must not blame its molds, which may be thawing too
            for mold in self._all:
                if mold.asked != FOREVER:
                    mold.asked = now
        ask, dead = [], []
        for mold in self._all:
            if mold.stage not in (Stage.SERVING, Stage.DRAINING):
                continue
            if mold.asked == FOREVER and now >= mold.heard + patience * ASK_AFTER:
                mold.asked = now
                ask.append(mold)
            elif now >= mold.asked + patience * (1 - ASK_AFTER):
                dead.append(mold)
        self._looked = self.silence_due(patience)
        return ask, dead

    def silence_due(self, patience: float) -> float:
        return min(
            (
                mold.heard + patience * ASK_AFTER
                if mold.asked == FOREVER
                else mold.asked + patience * (1 - ASK_AFTER)
                for mold in self._all
                if mold.stage in (Stage.SERVING, Stage.DRAINING)
            ),
            default=FOREVER,
        )

    def importing(self, now: float, patience: float) -> tuple[list[Mold], list[Mold]]:
        """Say which molds import for so long that it is to be told, and which for longer than they may."""
        slow, dead = [], []
        for mold in self._all:
            if mold.stage is Stage.STARTING and not mold.why:
                if now >= mold.started + patience:
                    dead.append(mold)
                elif now >= self._tell_at(mold, patience):
                    mold.told = now - mold.started
                    slow.append(mold)
        return slow, dead

    def importing_due(self, patience: float) -> float:
        return min(
            (
                min(mold.started + patience, self._tell_at(mold, patience))
                for mold in self._all
                if mold.stage is Stage.STARTING and not mold.why
            ),
            default=FOREVER,
        )

    def _tell_at(self, mold: Mold, patience: float) -> float:
        return mold.started + max(2 * mold.told, min(SLOW, patience / 2))

    def missing(self, now: float, *, quiet: bool = False) -> list[Place]:
        """Return the places where a mold is to be started now: see `_open`.

        Where none serves all at once; where one does, one after the other: starting costs CPU, and most of the
        molds should have their hands free.
        """
        due = [place for place in self._open(quiet) if place.due <= now]
        return [place for place in due if place.serving is None] or due[:1]

    def next_due(self, *, quiet: bool = False) -> float:
        return min((place.due for place in self._open(quiet)), default=FOREVER)

    def _open(self, quiet: bool) -> list[Place]:
        """Return where a mold may be started: while one starts only where none serves, while quiet only where one does."""
        places = [place for place in self.places if place.starting is None]
        if len(places) < len(self.places):
            places = [place for place in places if place.serving is None]
        return [place for place in places if place.serving is not None] if quiet else places

    def extend(self, targets: list[str]) -> None:
        """Add places."""
        self.places += [Place(target) for target in targets]

    def picture(self) -> list[dict[str, Any]]:
        """Say for people which molds there are; how many attempts it has of one that drains, for it is waited for."""
        return [
            {
                "generation": mold.generation,
                "target": mold.place.target,
                "pid": mold.link.pid,
                "stage": mold.stage,
            }
            | ({"busy": mold.busy} if mold.stage is Stage.DRAINING else {})
            for mold in self._all
            if mold.stage is not Stage.DISCARDED
        ]

    def ready(self) -> bool:
        """Say whether every place has a mold that serves."""
        return all(place.serving is not None for place in self.places)

    def take_jobs(self) -> bool:
        """Say whether any mold serves."""
        return any(place.serving is not None for place in self.places)

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Return the tasks of all applications with their options, of the newest code that served."""
        return {name: options for place in reversed(self.places) for name, options in place.tasks.items()}

    def choose(self, task: str) -> Mold | None:
        """Return the mold for a job: of those that know the task the one with the fewest attempts. Keeps (2).

        None: all that know it are missing at the moment. What nobody knows is the first application's to refuse.
        """
        places = [place for place in self.places if task in place.tasks]
        # of those of the first application, whose settings count
        places = places or [place for place in self.places if place.target == self.places[0].target]
        serving = [place.serving for place in places if place.serving is not None]
        return min(serving, key=lambda mold: mold.busy, default=None)
