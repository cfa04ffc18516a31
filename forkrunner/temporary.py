"""The folder in which jobs that ask for one get a temporary folder of their own.

Each supervisor has one, named after its process, among the temporary files of the host and not in `runtime_dir`,
which may be memory. A job makes its own in it, its mold removes that when the job has ended, and what is left when a
supervisor was killed is removed by the next one.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from . import identity, survivors


def folder() -> str:
    """Return where this supervisor's jobs have their folders; it is there only after `prepare`."""
    return os.path.join(_all(), survivors.mark().replace(":", "-"))


def prepare() -> list[str]:
    """Make this supervisor's folder; return those of dead supervisors, whose removal may take longer than a lease.

    Raises:
        OSError: it cannot be made, or somebody else has made it.
    """
    everyone = identity.private_folder(_all())
    names = os.listdir(everyone)
    identity.private_folder(folder())
    return [os.path.join(everyone, name) for name in names if survivors.is_dead(name.replace("-", ":"))]


def remove() -> bool:
    """Remove this supervisor's folder; False if something is left of it."""
    return clear_away(folder())


def main() -> None:
    """Entry point of the process that removes what `rm` could not: `python -c … FOLDER…`."""
    left = [path for path in sys.argv[1:] if not clear_away(path)]
    sys.exit(bool(left))


def clear_away(path: str) -> bool:
    """Remove a folder, also if a job has made folders in it read-only; False if something is left. No link is followed."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.isdir(path) and not os.path.islink(path):
        # what is in a folder can be removed only if that may be written to, and seen only if it may be read
        _open_up(path)
        for above, names, _ in os.walk(path):
            for name in names:  # these are walked into after this
                _open_up(os.path.join(above, name))
        shutil.rmtree(path, ignore_errors=True)
    return not os.path.lexists(path)


def _open_up(path: str) -> None:
    try:
        if not os.path.islink(path):  # its mode would be that of what it leads to
            os.chmod(path, 0o700)
    except OSError:  # somebody else's: what can be removed without is
        pass


def _all() -> str:
    return os.path.join(tempfile.gettempdir(), f"forkrunner-jobs-{os.geteuid()}")
