"""Who a process is, beyond its pid, and what proves that it and all of its family are gone.

Used by supervisors, keepers, web processes and the command line; a mold has no need of it.
"""

from __future__ import annotations

import os
import socket
import stat

HOST = socket.gethostname()


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name may hold spaces and brackets: count from the last one
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def image(pid: int) -> str:
    """Name the program that a process runs, as it was started: the same for its forks, another after any exec.

    By where its stack and its arguments begin, which the kernel chooses at random at each exec; empty if it is not told.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    # start_code and start_stack; 1 and 0 for who may not look
    return f"{int(fields[23]):x}-{int(fields[25]):x}" if int(fields[25]) else ""


class LifeLock:
    """A locked file that shows whether any process of a supervisor's family is left.

    An flock belongs to the open file, which forks share: it is free only when
    supervisor, mold and every forked child are gone, however they went. That is the
    proof that lets another supervisor of this host run their jobs again at once.
    """

    def __init__(self, path: str) -> None:
        import fcntl

        self.path = path
        while True:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            # whoever takes it for one that was left behind holds it for a moment, and it is gone
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            if os.fstat(self.fd).st_nlink:
                return
            os.close(self.fd)

    @classmethod
    def adopt(cls, path: str, fd: int) -> LifeLock:
        """Take up a lock that this process has had before it became another program."""
        lock = object.__new__(cls)
        lock.path, lock.fd = path, fd
        return lock

    def remove(self) -> None:
        self.discard(self.path)
        os.close(self.fd)

    @staticmethod
    def discard(path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    @staticmethod
    def free(path: str, *, discard: bool = False) -> bool:
        """Say whether the family that locked `path` is gone; False if there is no such file to prove it.

        With `discard` the file is removed then, and nobody has locked it meanwhile.
        """
        import fcntl

        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if discard:
                os.unlink(path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def private_folder(path: str) -> str:
    """Make sure that `path` is a folder of our own that nobody else can enter.

    Raises:
        PermissionError: it belongs to somebody else, is a link, or others may enter it and it is not for us alone.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
        if status.st_mode & 0o077:
            # what systemd or an operator has made for us is closed; /tmp and /run are not, whoever is root
            if status.st_mode & stat.S_ISVTX or not all(map(_is_ours, os.listdir(fd))):
                mode = oct(stat.S_IMODE(status.st_mode))[2:]
                raise PermissionError(
                    f"{path} is open to others (mode {mode}) and theirs too: expected a folder for forkrunner alone"
                )
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)
    return path


def _is_ours(name: str) -> bool:
    """Say whether a runtime folder has entries of this name: life files, and a folder for each database."""
    return name.endswith(".life") or (len(name) == 16 and not name.strip("0123456789abcdef"))
