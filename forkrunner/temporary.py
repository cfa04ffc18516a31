"""The folder in which jobs that ask for one get a temporary folder of their own.

Each supervisor has one, named after its process, among the temporary files of the host and not in `runtime_dir`,
which may be memory. A job makes its own in it, its mold removes that when the job has ended, and what is left when a
supervisor was killed is removed by the next one.
"""

from __future__ import annotations

import os
import shutil
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


def remove() -> None:
    shutil.rmtree(folder(), ignore_errors=True)


def _all() -> str:
    return os.path.join(tempfile.gettempdir(), f"forkrunner-jobs-{os.geteuid()}")
