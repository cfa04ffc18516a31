"""The memory of this process: what it shares with its forks, what it gives back, and who is to be killed for want of it."""

from __future__ import annotations

import ctypes
import os
import resource

from .libc import LINUX, libc

#: MAP_SHARED, MAP_ANONYMOUS, and on Linux MAP_NORESERVE.
_MAP_SHARED = 0x1 | 0x20 | 0x4000 if LINUX else 0x1 | 0x1000
_MADV_COLLAPSE = 25
_HUGE = 2 << 20
#: With less there are few whole huge pages in it, and what children write to is in all of them.
_WORTH_IT = 16 << 20
#: What is in huge pages already costs nothing at another try.
_TRIES = 4


def shared_memory(size: int) -> memoryview:
    """Map that many bytes of zeros that this process and its future children share; what is not touched costs nothing."""
    # by hand: the module mmap is a library more for each fork to copy the mapping of
    map_memory = libc.mmap
    map_memory.restype = ctypes.c_void_p
    address = map_memory(None, ctypes.c_size_t(size), 3, _MAP_SHARED, -1, ctypes.c_long(0))
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"{size} bytes of shared memory are not to be had")
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def resident_peak() -> int:
    """Return the highest resident size of this process so far, bytes.

    Right after a fork this is what the child shares with the mold: the
    kernel starts a new process's high-water mark at its size at the fork.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 if LINUX else peak


def trim_memory() -> None:
    """Give free memory back to the system: what is not there need not be copied."""
    if LINUX and hasattr(libc, "malloc_trim"):  # musl has none
        libc.malloc_trim(0)


def use_huge_pages() -> None:
    """Let the kernel move what is in memory now into huge pages, where it can; that takes two seconds for a gigabyte.

    A fork copies one entry for each of them instead of 512, and so does the child's end give them back.
    """
    if not LINUX or _anonymous() < _WORTH_IT:
        return
    advise = libc.madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with open("/proc/self/maps") as file:
        lines = file.read().splitlines()
    for line in lines:
        place, mode, _, _, _, *name = line.split(None, 5)
        if mode == "rw-p" and name in ([], ["[heap]"]):
            start, end = (int(number, 16) for number in place.split("-"))
            start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
            if start < end:
                # Refused by a kernel before 6.1, or where there is no room: then it stays as it is. But on a busy machine the
                # kernel may just have other plans with some of the pages.
                for _ in range(_TRIES):
                    if advise(start, end - start, _MADV_COLLAPSE) == 0:
                        break


def _anonymous() -> int:
    """Return how much memory of this process comes from no file, bytes; 0 if that is not told."""
    try:
        with open("/proc/self/status", "rb") as file:
            words = next(line for line in file if line.startswith(b"RssAnon:")).split()
    except (OSError, StopIteration):
        return 0
    return int(words[1]) * 1024


def prefer_as_victim() -> None:
    """Let the kernel's out-of-memory killer take this process before the supervisor; forks inherit it."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"500")
    except OSError:
        pass
    finally:
        os.close(fd)
