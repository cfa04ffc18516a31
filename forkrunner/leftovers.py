"""What ended jobs leave behind in a mold: processes, which are killed and counted to them, and temporary folders.

Whatever a job has started falls to the mold when it ends, however it fled: the mold is the subreaper of all.
"""

from __future__ import annotations

from . import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .children import Child, Children


class Leftovers:
    """Knows which processes of the mold are neither spares nor jobs."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._family = process.Family()
        #: Killed, and not known to be reaped: not to be counted twice.
        self._doomed: set[int] = set()
        #: Those that remove folders: no jobs, and not to be killed.
        self._helpers: set[int] = set()

    def reaped(self, pid: int) -> None:
        """Forget a process that was collected and is no child of ours."""
        self._helpers.discard(pid)

    def sweep(self, dead: list[Child]) -> None:
        """Kill what ended jobs have left behind, and count it to them. Keeps (3) of `mold.py`.

        Whatever a job has started falls to us when it ends, however it fled: we are the subreaper of all. It is
        not waited for here: its own death wakes us, and then we get what that leaves.
        """
        found = self._family.look()
        if found.count(b" ") == len(self._children) + len(self._helpers):
            self._doomed.clear()
            return
        ours = self._children.pids() | self._helpers
        left = [pid for pid in map(int, found.split()) if pid not in ours]
        for pid in left:
            if pid not in self._doomed and (session := process.session_of(pid)) is not None:
                killed = process.kill_tree(pid)
                # those that have made a session of their own may be of any that ended at this moment
                owner = next((one for one in dead if one.pid == session), dead[0] if dead else None)
                if owner is not None:
                    owner.leftover += len(set(killed) - self._doomed)
                self._doomed.update(killed)

    def remove_folder(self, path: str | None) -> None:
        """Let the temporary folder of an ended job be removed; what is left of it goes with the supervisor."""
        if path is not None:
            try:
                self._helpers.add(process.remove_folders(path))
            except OSError:
                pass

    def kill_with_all(self, victim: Child) -> int:
        """Kill a child and all that it has started, and count these to it; return how many were killed."""
        killed = process.kill_tree(victim.pid)
        victim.leftover += len(set(killed[1:]) - self._doomed)
        self._doomed.update(killed[1:])
        return len(killed)
