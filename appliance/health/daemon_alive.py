"""Whether a daemon is alive, by the flock that it holds for as long as it lives."""

import os

from appliance.foundation.errors import Busy
from appliance.foundation.files import FileLock
from appliance.health.check import Findings, error, ok


def is_held(lock_path: str) -> bool:
    """Return whether a process holds a lock file; the file is not made.

    Free, it is held for an instant by this process.
    """
    if not os.path.exists(lock_path):
        return False
    lock = FileLock(lock_path)
    try:
        lock.acquire()
    except Busy:
        return True
    lock.release()
    return False


def check_daemon(condition: str, daemon: str, lock_path: str, hint: str) -> Findings:
    """Look at one daemon's lock; `hint` says what stands still without it."""
    if is_held(lock_path):
        return [ok(condition, f"{daemon} runs")]
    return [error(condition, f"{daemon} does not run", hint)]
