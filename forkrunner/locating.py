"""Where the files of a database are: what the setting `storage` says, or what follows from the database."""

from __future__ import annotations

import hashlib
import os

from .filenames import safe_name


def local_path(url: str) -> str | None:
    """Return the path that the setting `storage` names; None if it is a URL of anything but this host's files."""
    scheme, there, rest = url.partition("://")
    if not there:
        return url
    return rest if scheme in ("file", "local") else None


def locate(storage: str, database: str, folder: str) -> str:
    """Return where the files of a database are: what the setting says, or a folder of their own.

    By default they lie beside an SQLite file, since who has the one is to have the other: `jobs.db-files`. For PostgreSQL it is a
    folder of this user's, by the server and the name of the database: that suits one host, and several need a shared one.
    `folder` is what relative paths start from.
    """
    if storage:
        path = local_path(storage)
        return storage if path is None else os.path.join(folder, path)
    kind, _, rest = database.partition("://")
    if kind.startswith("sqlite"):
        return os.path.join(folder, rest.removeprefix("/").partition("?")[0]) + "-files"
    server, _, name = rest.partition("?")[0].rpartition("/")
    where = server.rpartition("@")[2] or "localhost"
    digest = hashlib.sha256(f"{where}/{name}".encode()).hexdigest()[:8]
    return os.path.join(data_folder(), f"{safe_name(name)}-{digest}")


def data_folder() -> str:
    """Return where this user's files of a storage are that nobody has named."""
    base = os.environ.get("XDG_DATA_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(os.path.expanduser("~"), ".local/share")
    return os.path.join(base, "forkrunner")
