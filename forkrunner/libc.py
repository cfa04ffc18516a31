"""The C library, for what Python does not offer; it belongs to no role.

Linux first: what another system lacks (prctl, memfd, /proc) is left out there, and the function that would use it says
what is lost.
"""

from __future__ import annotations

import ctypes
import signal
import sys

LINUX = sys.platform == "linux"

# without use_errno, which costs each forked child some thirty copied pages more
libc = ctypes.CDLL(None)
#: None where there is none.
prctl = libc.prctl if LINUX else None
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36

set_mask = libc.pthread_sigmask
SETMASK = int(signal.SIG_SETMASK)
# glibc's and musl's sigset_t have 128 bytes; macOS uses four of them
NO_SIGNALS, ALL_SIGNALS = b"\0" * 128, b"\xff" * 128
