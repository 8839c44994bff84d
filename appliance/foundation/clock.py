"""Time, passed in so that a test can stop it."""

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time, monotonic time and waiting."""

    def now(self) -> datetime:
        """Return wall time, aware, in UTC."""

    def monotonic_s(self) -> float:
        """Return seconds that never go back."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for the event at most `timeout_s`; return whether it is set."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for the event at most `timeout_s`; return whether it is set."""
        return event.wait(timeout_s)


def to_microseconds(at: datetime) -> int:
    """Return microseconds since 1970 UTC: how stored records carry wall time."""
    return round(at.timestamp() * 1_000_000)


def from_microseconds(microseconds: int) -> datetime:
    """Return the aware datetime of a stored wall time."""
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


def isoformat(at: datetime) -> str:
    """Return the one textual form of wall time: RFC 3339, UTC, microseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
