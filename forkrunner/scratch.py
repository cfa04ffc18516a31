"""Nameless files in memory: what a job writes goes into one, its report into another.

Neither blocks its writer, both outlive a crash of it, and they can be read and cut from outside meanwhile.
"""

from __future__ import annotations

import ctypes
import os

from .libc import LINUX, libc

#: As fcntl.F_SETFL; that module is not in the memory that a child copies.
_F_SETFL = 4
#: FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE = 2 | 1
#: Stands in what is shown of an output for what was given up.
LEFT_OUT = b"\n[... %d bytes left out ...]\n"


#: Bytes of an output that go into the row of its attempt.
_TAIL = 16 * 1024
#: Names the file that takes what a job writes.
OUTPUT = "forkrunner-output"


def scratch_file(name: str) -> int:
    """Open a nameless file in memory (elsewhere: a deleted temporary one); written by appending only."""
    if LINUX:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    # append: the file can be cut from outside while the job goes on writing
    libc.fcntl(fd, _F_SETFL, os.O_APPEND | os.O_RDWR)
    return fd


def identity(fd: int) -> tuple[int, int]:
    """Return what a file is known by, whoever has it open."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def outputs_of(pid: int) -> list[tuple[int, int]]:
    """Return the identities of the outputs of jobs that another process writes to."""
    found = []
    for fd in (1, 2):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            # by its name first: to look at a file that lies on a dead network disk would hang us
            if os.readlink(path).startswith("/memfd:" + OUTPUT):
                status = os.stat(path)
                found.append((status.st_dev, status.st_ino))
        except OSError:  # it is gone, or somebody else's
            pass
    return found


def size(fd: int) -> int:
    """Return how much was written into a file, also if some of it was cut out."""
    return os.fstat(fd).st_size


def contents(fd: int) -> bytes:
    length = size(fd)
    return os.pread(fd, length, 0) if length else b""


def tail(fd: int, length: int) -> bytes:
    """Read the last bytes of a file that may have been `cut`."""
    size = os.fstat(fd).st_size
    return os.pread(fd, length, max(0, size - length)).lstrip(b"\0") if size else b""


def head_and_tail(fd: int, limit: int, was_cut: bool) -> bytes:
    """Read a file that may have been `cut`: all of it, or a quarter of the limit from its head and half from its tail."""
    length, head, end = size(fd), limit // 4, limit // 2
    if length <= head + end or (length <= limit and not was_cut):
        return contents(fd)
    return os.pread(fd, head, 0) + LEFT_OUT % (length - head - end) + os.pread(fd, end, length - end)


def kept(fd: int, limit: int, was_cut: bool) -> tuple[bytes, bytes]:
    """Read what is kept of an output: its end, and if that is not all of it, of the whole up to `limit` bytes."""
    end = tail(fd, min(_TAIL, limit))
    return end, head_and_tail(fd, limit, was_cut) if size(fd) > len(end) else b""


def was_cut(fd: int) -> bool:
    """Say whether a file has been `cut`, for who has not done it."""
    status = os.fstat(fd)
    return status.st_blocks * 512 < status.st_size


def cut(fd: int, limit: int) -> bool:
    """If a scratch file holds more than `limit` bytes, give the memory of its middle back; say whether it was done.

    It keeps its length, with a hole in it: whoever appends to it meanwhile loses nothing. Where there are no
    holes it is cut to its tail, and what is written at this very moment is lost.
    """
    status = os.fstat(fd)
    if status.st_blocks * 512 <= limit:
        return False
    if LINUX:
        head = limit // 4
        hole = status.st_size - limit // 2 - head
        if hole > 0:
            libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(head), ctypes.c_long(hole))
        return hole > 0
    kept = tail(fd, limit // 2)
    os.ftruncate(fd, 0)
    os.write(fd, b"[...]\n" + kept)
    return True
