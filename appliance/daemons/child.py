"""A child process that is kept alive: started, watched, started again, stopped.

Owns exactly one process at a time and never another's.
"""

import subprocess
import sys
import threading
from collections.abc import Sequence

from appliance.foundation import log

RESTART_MIN_S = 0.5
RESTART_MAX_S = 30.0
LIVED_LONG_S = 60.0
STOP_TIMEOUT_S = 60.0

_log = log.get("child")


class Child:
    """Keeps `python -m module arguments` running. `_lock` guards `_process`."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self._name = name
        self._command = [sys.executable, "-m", module, *arguments]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"keep-{name}")

    @property
    def thread(self) -> threading.Thread:
        """The thread that keeps it running; it lives from `start` to `stop`."""
        return self._thread

    def start(self) -> None:
        """Start it; from now on it is started again whenever it ends."""
        self._thread.start()

    def _keep(self) -> None:
        delay_s = RESTART_MIN_S
        while not self._stop.is_set():
            with self._lock:
                if self._stop.is_set():
                    return
                self._process = subprocess.Popen(self._command)  # noqa: S603 - our own module
            lived = threading.Event()
            timer = threading.Timer(LIVED_LONG_S, lived.set)
            timer.daemon = True
            timer.start()
            code = self._process.wait()
            timer.cancel()
            if self._stop.is_set():
                return
            delay_s = RESTART_MIN_S if lived.is_set() else min(delay_s * 2, RESTART_MAX_S)
            _log.error("child_ended", child=self._name, code=code, restart_in_s=delay_s)
            self._stop.wait(delay_s)

    @property
    def pid(self) -> int | None:
        """The process id, if it runs."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    def stop(self) -> int:
        """End it and return its exit code; killed when it does not end in time."""
        self._stop.set()
        with self._lock:
            process = self._process
        code = 0
        if process is not None:
            process.terminate()
            try:
                code = process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if self._thread.ident is not None:
            self._thread.join()
        return code
