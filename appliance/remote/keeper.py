"""Keeps a child process no longer than its own parent: run as a program, never imported.

`python keeper.py COMMAND ...` runs COMMAND until it ends, until standard input reaches its end
(the parent holds the other side and died, or closed it), or until SIGTERM. The child is asked to
end, and killed after `STOP_S`. Should the keeper itself be killed, the kernel kills the child.
Own program, so that the parent's threads don't matter: a parent-death signal fires when the
*thread* that started the child ends.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys

# SeaweedFS waits for its own streams, ten seconds and more; what it wrote is with the kernel.
STOP_S = 2.0
PR_SET_PDEATHSIG = 1


def _die_with_keeper() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run the command; return its exit status."""
    stop_read, stop_write = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(stop_write, b"."))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(  # noqa: S603  the parent chose the command
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_keeper,  # noqa: PLW1509  one thread only
    )
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([ended, stop_read, sys.stdin.fileno()], [], [])
    if ended not in ready:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
