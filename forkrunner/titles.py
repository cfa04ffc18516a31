"""The titles by which ps shows our processes.

Most are shown by setproctitle. A mold and its children write theirs by hand, over the arguments of the mold: to show one is
a part of what each child does (`child.main`), and a library is mappings more that each fork copies.
"""

from __future__ import annotations

import ctypes

from .libc import PR_SET_NAME, libc, prctl

_copy = libc.memcpy

_set_title = None
#: Where ps finds the title of this process and of its forks, once there is room.
_place: ctypes.c_void_p | None = None
#: Bytes of a title that is written there by hand.
LENGTH = 160
#: Last argument of a mold: the room.
ROOM = " " * LENGTH


def show(text: str) -> None:
    """Show `text` in ps."""
    if _place is not None:
        write(to_bytes(text))
        return
    if _set_title is None:
        _load()
    if _set_title is not None:
        _set_title("forkrunner: " + text)


def to_bytes(text: str) -> bytes:
    """Return a title as `write` and `child.main` take it: a mold makes it before the fork."""
    return f"forkrunner: {text}".encode()[:LENGTH].ljust(LENGTH, b"\0")


def write(data: bytes) -> None:
    """Show a title made by `to_bytes`."""
    if _place is not None:
        _copy(_place, data, LENGTH)
    else:
        show(data.rstrip(b"\0").decode(errors="ignore")[12:])


def place() -> ctypes.c_void_p | None:
    """Return where a title of LENGTH bytes is to be copied to; None if there is no room."""
    return _place


def share() -> None:
    """Let this process and its forks write their titles by hand, over our arguments, if the last of them is ROOM.

    Without setproctitle, whose library and the one that it wants are ten mappings that each fork would copy.
    """
    global _place
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return
    # arg_start and arg_end
    start, end = int(fields[45]), int(fields[46])
    if ctypes.string_at(start, end - start).endswith(ROOM.encode() + b"\0"):
        ctypes.memset(start, 0, end - start)
        # by this the kernel knows that there stands a title, up to the first NUL
        ctypes.memset(end - 1, 0x20, 1)
        _place = ctypes.c_void_p(start)
        if prctl:
            prctl(PR_SET_NAME, b"forkrunner", 0, 0, 0)


def _load() -> None:
    """Get setproctitle's C module ready, without its package.

    The package imports logging and so threading, whose hooks at every fork touch
    130 pages more in each child: measured, it halves the forks per second.
    """
    global _set_title
    try:
        from importlib.machinery import PathFinder

        package = PathFinder.find_spec("setproctitle")
        places = package and package.submodule_search_locations
        # by its own name, not as a part of the package: the name decides which init function is called
        spec = places and PathFinder.find_spec("_setproctitle", list(places))
        if not spec or not spec.loader:
            raise ImportError("setproctitle._setproctitle")
        module = spec.loader.create_module(spec)
        if module is None:
            raise ImportError("setproctitle._setproctitle is no extension module")
        spec.loader.exec_module(module)
        _set_title = module.setproctitle
    except ImportError:
        from setproctitle import setproctitle

        _set_title = setproctitle
