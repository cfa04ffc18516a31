"""What ended jobs leave behind in a mold: processes, which are killed and counted to them, and temporary folders.

Whatever a job has started falls to the mold when it ends, however it fled: the mold is the subreaper of all. What the
application has started while it was imported is a child of the mold too, and serves all jobs: it is left alone, and
ends after the mold, when it falls to the supervisor.
"""

from __future__ import annotations

import os

from . import process, scratch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .children import Child, Children


class Leftovers:
    """Knows which processes of the mold are neither spares nor jobs."""

    def __init__(self, children: Children) -> None:
        """To be made when the application was imported, and before the first job is forked."""
        self._children = children
        self._family = process.Family()
        #: The application's own.
        self._own = {int(pid) for pid in self._family.look().split()}
        self._had_own = bool(self._own)
        self._session = os.getsid(0)
        #: Killed, and not known to be reaped: not to be counted twice.
        self._doomed: set[int] = set()
        #: Those that remove folders, and which: no jobs, and not to be killed.
        self._helpers: dict[int, str] = {}

    def reaped(self, pid: int, status: int) -> str | None:
        """Forget a process that was collected and is no job; its pid may be another's from now on.

        If it was to remove a folder and could not, that is returned.
        """
        folder = self._helpers.pop(pid, None)
        self._doomed.discard(pid)
        self._own.discard(pid)
        return folder if status else None

    def expect(self, pid: int) -> None:
        """Take it that a process ends by itself: a spare that is not needed is nobody's leftover."""
        self._doomed.add(pid)

    def sweep(self, dead: list[Child]) -> None:
        """Kill what ended jobs have left behind, and count it to them. Keeps (3) of `mold.py`.

        It is not waited for here: its own death wakes us, and then we get what that leaves.
        """
        found = self._family.look()
        if found.count(b" ") == len(self._children) + len(self._helpers) + len(self._own):
            self._doomed.clear()
            return
        ours = self._children.pids() | self._helpers.keys() | self._doomed | self._own
        owners = _Owners(dead, self._children, others=self._had_own or bool(self._doomed))
        for pid in map(int, found.split()):
            if pid in ours or (session := process.session_of(pid)) is None:
                continue
            if session == self._session:
                # no job's, which have each a session: left by one of the application's own that has ended
                self._own.add(pid)
                self._had_own = True
            else:
                # before it is killed: then it has no files any more
                owner = owners.of(pid, session)
                killed = process.kill_tree(pid)
                if owner is not None:
                    owner.leftover += len(set(killed) - self._doomed)
                self._doomed.update(killed)

    def remove_folder(self, path: str | None) -> None:
        """Let the temporary folder of an ended job be removed; what is left of it goes with the supervisor."""
        if path is not None:
            try:
                self._helpers[process.remove_folders(path)] = path
            except OSError:
                pass

    def kill_with_all(self, victim: Child) -> int:
        """Kill a child and all that it has started, and count these to it; return how many were killed."""
        killed = process.kill_tree(victim.pid)
        victim.leftover += len(set(killed[1:]) - self._doomed)
        self._doomed.update(killed[1:])
        return len(killed)


class _Owners:
    """Says of which job a process is that it has left behind.

    Jobs end at the same moment, and one that is dead and not reaped yet may be the owner as well as one that was
    just reaped. What cannot be told is counted to nobody: better too little on a bill than what is another's.
    """

    def __init__(self, dead: list[Child], children: Children, *, others: bool) -> None:
        """`others`: some may be the application's own, or of jobs whose account was told before."""
        self._dead, self._busy = dead, list(children.busy.values())
        self._jobs = [*dead, *self._busy]
        self._by_output: dict[tuple[int, int], Child] | None = None
        self._others = others

    def of(self, pid: int, session: int) -> Child | None:
        for job in self._jobs:
            # of its family is what it had when it was asked to end
            if session == job.pid or pid in job.family:
                return job
        if outputs := scratch.outputs_of(pid):
            if self._by_output is None:
                self._by_output = {scratch.identity(job.output): job for job in self._jobs}
            owners = [self._by_output[output] for output in outputs if output in self._by_output]
            return owners[0] if owners else None
        # in a session of its own, and its output goes elsewhere: it is of the one that has ended, if that is only one
        if len(self._dead) == 1 and not self._others and all(map(_lives, self._busy)):
            return self._dead[0]
        return None


def _lives(job: Child) -> bool:
    return process.session_of(job.pid) is not None
