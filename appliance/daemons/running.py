"""How a daemon runs: signals, readiness, watchdog, and the death of its parent.

Owns the process's signal handlers. Invariants:
- A fatal error of any thread ends the daemon with exit code 1, after nothing more was answered.
- The watchdog is fed by the main thread and only while everything in `liveness` is well: one
  part that hangs or has ended brings the restart that repairs it.
- No handler takes a lock. Python runs it in the middle of whatever the main thread does, a wait for
  that very lock included; two signals in a row then stop the process for ever. A signal's number
  goes through a pipe to a thread, which sets the events.
"""

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable

from appliance.daemons.liveness import Liveness
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError

_PR_SET_PDEATHSIG = 1
TICK_S = 10.0
WATCHDOG_SHARE = 3
"""How many times within the watchdog's time it is fed."""

_log = log.get("daemon")


class Running:
    """One daemon's life: `stop` is set by a signal or by a fatal error."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reload = threading.Event()
        self.exit_code = 0
        self.liveness = Liveness()

    def install(self) -> None:
        """Take the signals; only the main thread can."""
        numbers, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _written_down)
        threading.Thread(target=self._heed, args=(numbers,), name="signals", daemon=True).start()

    def _heed(self, numbers: int) -> None:
        while True:
            for number in os.read(numbers, 256):
                (self.reload if number == signal.SIGHUP else self.stop).set()

    def fatal(self, error: AzekuraError) -> None:
        """End the daemon: it can no longer keep its promises."""
        _log.critical("daemon_stops", error=type(error).__name__, cause=error.cause)
        self.exit_code = 1
        self.stop.set()

    def wait(self, tick: Callable[[], None] | None = None) -> int:
        """Wait until the end; return the exit code.

        Feeds the watchdog while all is well, and calls `tick` at least every ten seconds.
        """
        interval_s = _interval_s()
        known: list[str] = []
        while not self.stop.wait(interval_s):
            if tick is not None:
                tick()
            sick = self.liveness.sick()
            if not sick:
                notify("WATCHDOG=1")
            elif sick != known:
                _log.critical("watchdog_not_fed", parts=sick)
            known = sick
        notify("STOPPING=1")
        return self.exit_code


def _written_down(_number: int, _frame: object) -> None:
    """Do nothing: the interpreter has put the number into the pipe."""


def _interval_s() -> float:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return TICK_S
    with contextlib.suppress(ValueError):
        watchdog_s = int(os.environ.get("WATCHDOG_USEC", "")) / 1_000_000
        return min(TICK_S, max(0.1, watchdog_s / WATCHDOG_SHARE))
    return TICK_S


def notify(state: str) -> None:
    """Tell systemd, if it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to end this process when its parent ends, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGTERM)
