"""Runs a command as init would: adopts and reaps whatever the command leaves behind, and ends after the last of it.

    python -I -S nursery.py FD COMMAND…

Writes `pid N` and, when the command has ended, `status N` (negative: a signal) to FD; FD is closed when no
descendant is left. So a test knows exactly what belongs to the command it started, orphans included, and sees
no zombie that is not the command's own fault. It dies with the tests (PR_SET_PDEATHSIG), and the command with it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork()
    if pid == 0:
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            # Ignored where a shell has put the whole run into the background, or nohup has.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGQUIT, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            # A session of its own, so that a signal to its group does not reach the nursery.
            os.setsid()
            os.execvp(sys.argv[2], sys.argv[2:])
        finally:
            os._exit(127)
    os.write(fd, f"pid {pid}\n".encode())
    while True:
        try:
            reaped, status = os.wait()
        except ChildProcessError:
            break
        if reaped == pid:
            os.write(fd, f"status {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
