"""A clock that moves when a test says so, or when somebody waits on it."""

import threading
from datetime import UTC, datetime, timedelta

START_AT = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)


class ManualClock:
    """A Clock. A wait passes at once, taking as long as asked for, unless the event is set."""

    def __init__(self, at: datetime = START_AT) -> None:
        self._at = at
        self._monotonic_s = 1000.0
        self._guard = threading.Lock()

    def now(self) -> datetime:
        with self._guard:
            return self._at

    def monotonic_s(self) -> float:
        with self._guard:
            return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._guard:
            self._at += timedelta(seconds=seconds)
            self._monotonic_s += seconds

    def set(self, at: datetime) -> None:
        """Set the wall clock, as an administrator or NTP does; no time passes."""
        with self._guard:
            self._at = at

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if not event.is_set():
            self.advance(timeout_s)
        return event.is_set()
