"""Whether a daemon's parts are alive: what the watchdog of the service manager is fed by.

Owns the list of what must live, and when each was last seen at work. Must not know what a part
does. Invariants:
- A thread that was watched and has ended is sick for ever: its loop is gone.
- A part that beats is sick as long as its last beat is older than it may be, and well again with
  the next one: a machine that was stopped and goes on is not ill.
- Only loops whose turn is bounded by their own limits beat. One that waits for the bucket or
  rereads packs may rightly take hours over a turn: of it only the thread is watched.
"""

import threading
import time
from collections.abc import Callable, Iterable

TURN_SILENT_MAX_S = 60.0
"""For loops that only compute, or look at small files: a hundred times what they take."""
FLUSH_SILENT_MAX_S = 180.0
"""For loops that flush: longer than a disk's own error recovery, or a path that fails over."""

Beat = Callable[[], None]


class Liveness:
    """What must live; `_lock` guards both tables. Any thread may beat."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._beats: dict[str, tuple[float, float]] = {}  # → last beat, how long silence may last

    def watch(self, threads: Iterable[threading.Thread]) -> None:
        """From now on these threads, which were started, must not end."""
        with self._lock:
            self._threads.extend(threads)

    def beat(self, name: str, silent_max_s: float) -> Beat:
        """Return what the part of that name calls in each turn; its first turn is due now."""

        def beat() -> None:
            with self._lock:
                self._beats[name] = (self._monotonic(), silent_max_s)

        beat()
        return beat

    def sick(self) -> list[str]:
        """Return the names of what is dead or silent, sorted; empty while all is well."""
        with self._lock:
            now_s = self._monotonic()
            found = {thread.name for thread in self._threads if not thread.is_alive()}
            found.update(
                name
                for name, (beat_s, silent_max_s) in self._beats.items()
                if now_s - beat_s > silent_max_s
            )
        return sorted(found)
