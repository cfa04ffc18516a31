"""What every child does with the system: it leaves the mold, shows its title, flushes at its end.

In one module, over names of its own: a look-up in another one costs each forked child two or three copied pages more.
Titles are here because to show one is the last step of leaving; molds, supervisors and keepers show theirs by `title`.
"""

from __future__ import annotations

import ctypes
import os
import sys

from .libc import (
    NO_SIGNALS,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    SETMASK,
    libc,
    prctl,
    set_mask,
)

_flush_c = libc.fflush
_copy = libc.memcpy
_getppid, _setsid, _close_range = os.getppid, os.setsid, os.closerange
_HIGHEST = 1 << 20

_set_title = None
#: Where ps finds the title of this process and of its forks, once setproctitle has made room there.
_title_place: ctypes.c_void_p | None = None
#: Bytes of a title that is written there by hand.
_TITLE_LENGTH = 160


def leave(parent: int, base: int, title: bytes) -> None:
    """Make a forked process one of its own, in this order; one function, since each call costs copied pages.

    From `base` on descriptors are the parent's own. The title is one of `title_bytes`.
    """
    # first, since from here on the parent may die at any time
    if prctl:
        prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if _getppid() != parent:  # it died before the prctl
        os._exit(127)
    try:
        # a group of its own can be killed as one, and Ctrl-C in a terminal is not for jobs
        _setsid()
    except PermissionError:  # it leads one already: a mold that rehearses
        pass
    # what the job's processes leave behind falls to the job, and after it to the mold
    if prctl:
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # the mold blocks all signals and has no handlers: here they are as in any new process
    set_mask(SETMASK, NO_SIGNALS, None)
    # before the application's code can run with the mold's descriptors
    _close_range(base, _HIGHEST)
    if _title_place is not None:
        _copy(_title_place, title, _TITLE_LENGTH)
    else:
        show_title(title)


def load_title() -> None:
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


def title(text: str) -> None:
    """Show `text` in ps."""
    if _title_place is not None:
        show_title(title_bytes(text))
        return
    if _set_title is None:
        load_title()
    if _set_title is not None:
        _set_title("forkrunner: " + text)


def title_bytes(text: str) -> bytes:
    """Return a title as `leave` and `show_title` take it: a mold makes it before the fork."""
    return f"forkrunner: {text}".encode()[:_TITLE_LENGTH].ljust(_TITLE_LENGTH, b"\0")


def show_title(data: bytes) -> None:
    """Show a title made by `title_bytes`."""
    if _title_place is not None:
        _copy(_title_place, data, _TITLE_LENGTH)
    else:
        title(data.rstrip(b"\0").decode(errors="ignore")[12:])


def share_title() -> None:
    """Let this process and its forks write their titles by hand, to where setproctitle has put ours."""
    global _title_place
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return
    # arg_start and env_end: setproctitle has moved away what was between them
    start, end = int(fields[45]), int(fields[48])
    if end - start > _TITLE_LENGTH and ctypes.string_at(start, 12) == b"forkrunner: ":
        _title_place = ctypes.c_void_p(start)
        if prctl:
            prctl(PR_SET_NAME, b"forkrunner", 0, 0, 0)


def flush_all() -> None:
    """Flush what Python and C hold back of standard output and error; never fails."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # the job closed one, or put something else there
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
    _flush_c(None)
