"""The throttle on what leaves the sockets, shared by all threads that send.

Owns: the token bucket, the lanes' order, the rate of the hour, and the count of bytes sent. Must
not: touch a socket.

Invariants:
- Over any span of time t, at most `rate * t + burst` bytes are granted, the burst being
  `BURST_S` of the rate or one piece.
- A waiter in a more urgent lane is granted first; one that waited `STARVING_S` is granted one
  piece before all, so that the far side doesn't cut an upload that was begun as idle.
- After `slow_down` the rate is half of what it was, and grows back over about a minute.
- A change of the rate, by the timetable or by `set_timetable`, holds within `LOOK_S`, in the
  middle of a body too.
"""

import itertools
import threading
from collections import deque
from datetime import datetime, tzinfo
from typing import Protocol

from appliance.foundation.clock import Clock
from appliance.remote.store import Lane

# Of the set rate, so that a minute with its burst and TLS framing stays below 100 %.
AIM = 0.985
BURST_S = 0.05
PIECE_S = 0.01
PIECE_BYTES_LEAST = 1024
PIECE_BYTES_MOST = 16 * 1024
LOOK_S = 0.5
STARVING_S = 5.0
MEASURED_S = 10.0
SLOWED_S = 60.0
SLOWED_BYTES_PER_S_LEAST = 64 * 1024.0
SLOW_DOWN_PAUSE_S = 2.0


class Timetable(Protocol):
    """A rate for each minute of the local week."""

    def rate_at(self, local: datetime) -> float | None:
        """Return bytes a second at a local wall time, None for no limit."""


class ConstantRate:
    """The same rate at every hour; None for no limit."""

    def __init__(self, rate_bytes_per_s: float | None) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s

    def rate_at(self, local: datetime) -> float | None:  # noqa: ARG002
        """Return the rate."""
        return self._rate_bytes_per_s


class TokenBucket:
    """Tokens are bytes. Pure: the time is passed in, the caller holds a lock."""

    def __init__(self, rate_bytes_per_s: float, burst_bytes: float, now_s: float) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self.burst_bytes = burst_bytes
        self._tokens = 0.0
        self._at_s = now_s

    def _fill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(self.burst_bytes, self._tokens + elapsed_s * self.rate_bytes_per_s)
        self._at_s = now_s

    def change(self, rate_bytes_per_s: float, burst_bytes: float, now_s: float) -> None:
        """Go on at another rate; what was saved under the old one is kept up to the new burst."""
        self._fill(now_s)
        self.rate_bytes_per_s = rate_bytes_per_s
        self.burst_bytes = burst_bytes
        self._tokens = min(self._tokens, burst_bytes)

    def delay_s(self, size_bytes: int, now_s: float) -> float:
        """Return seconds until `size_bytes` may go; 0 when they may go now."""
        self._fill(now_s)
        # A piece cut before the rate fell may exceed the burst: it waits for a full bucket.
        missing = min(size_bytes, self.burst_bytes) - self._tokens
        # Less than a byte is granted as a debt: no clock tells so short a wait.
        return 0.0 if missing < 1.0 else missing / self.rate_bytes_per_s

    def take(self, size_bytes: int) -> None:
        """Spend tokens; may leave a debt, which later takes wait for."""
        self._tokens -= size_bytes


class _Waiter:
    """One thread in `take`. `event` is set when it should look again."""

    __slots__ = ("event", "lane", "number", "since_s", "size_bytes")

    def __init__(self, lane: Lane, number: int, since_s: float, size_bytes: int) -> None:
        self.lane = lane
        self.number = number
        self.since_s = since_s
        self.size_bytes = size_bytes
        self.event = threading.Event()


class Throttle:
    """Grants bytes to senders. All state is guarded by `_lock`."""

    def __init__(self, timetable: Timetable, timezone: tzinfo, clock: Clock) -> None:
        self._timetable = timetable
        self._timezone = timezone
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiters: list[_Waiter] = []
        self._sent: deque[tuple[float, int]] = deque()
        self.sent_bytes = 0
        self._looked_s = clock.monotonic_s()
        self._rate = self._set_rate()
        # A rate below the set one after `slow_down`, with the time at which it was cut.
        self._ceiling: tuple[float, float] | None = None
        self._bucket = TokenBucket(1.0, 1.0, self._looked_s)
        self._apply(self._rate, self._looked_s)

    @property
    def timetable(self) -> Timetable:
        """The timetable in force."""
        with self._lock:
            return self._timetable

    @property
    def timezone(self) -> tzinfo:
        """The time zone of the timetable."""
        with self._lock:
            return self._timezone

    def rate_now_bytes_per_s(self) -> float | None:
        """Return the rate of this moment, None for no limit."""
        with self._lock:
            self._look(self._clock.monotonic_s())
            return self._rate

    def sent_bytes_per_s(self) -> float:
        """Return what left the sockets lately, as a rate over the last ten seconds."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._forget(now_s)
            return sum(size for _, size in self._sent) / MEASURED_S

    def set_timetable(self, timetable: Timetable, timezone: tzinfo | None = None) -> None:
        """Change the timetable while sends go on."""
        with self._lock:
            self._timetable = timetable
            self._timezone = timezone or self._timezone
            now_s = self._clock.monotonic_s()
            self._looked_s = now_s - LOOK_S
            self._look(now_s)
            for waiter in self._waiters:
                waiter.event.set()

    def slow_down(self) -> None:
        """Halve the rate for a while: the far side asked for it."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            # The requests that were on the way together are all refused together.
            if self._ceiling is not None and now_s - self._ceiling[1] < SLOW_DOWN_PAUSE_S:
                return
            self._forget(now_s)
            measured = sum(size for _, size in self._sent) / MEASURED_S
            rate = measured if self._rate is None else self._rate
            self._ceiling = (max(rate / 2, SLOWED_BYTES_PER_S_LEAST), now_s)
            self._looked_s = now_s - LOOK_S
            self._look(now_s)

    def piece_bytes(self) -> int | None:
        """Return how much to ask for at once; None when nothing limits."""
        rate = self._rate
        if rate is None:
            return None
        return int(min(PIECE_BYTES_MOST, max(PIECE_BYTES_LEAST, rate * PIECE_S)))

    def take(self, size_bytes: int, lane: Lane) -> None:
        """Return once `size_bytes` may leave a socket."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._look(now_s)
            if not self._waiters and self._may_go(size_bytes, now_s):
                self._grant(size_bytes, now_s)
                return
            waiter = self._enqueue(size_bytes, lane)
        try:
            while not self._try(waiter):
                pass
        finally:
            with self._lock:
                if waiter in self._waiters:  # an exception, not a grant
                    self._waiters.remove(waiter)
                self._wake()

    def _enqueue(self, size_bytes: int, lane: Lane) -> _Waiter:
        now_s = self._clock.monotonic_s()
        waiter = _Waiter(lane, next(self._numbers), now_s, size_bytes)
        self._waiters.append(waiter)
        return waiter

    def _try(self, waiter: _Waiter) -> bool:
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._look(now_s)
            wait_s = LOOK_S
            if self._chosen(now_s) is waiter:
                if self._may_go(waiter.size_bytes, now_s):
                    self._waiters.remove(waiter)
                    self._grant(waiter.size_bytes, now_s)
                    return True
                wait_s = min(LOOK_S, self._bucket.delay_s(waiter.size_bytes, now_s))
            waiter.event.clear()
        self._clock.wait(waiter.event, wait_s)
        return False

    def _chosen(self, now_s: float) -> _Waiter:
        def order(waiter: _Waiter) -> tuple[bool, int, int]:
            starving = now_s - waiter.since_s >= STARVING_S
            return (not starving, 0 if starving else waiter.lane, waiter.number)

        return min(self._waiters, key=order)

    def _wake(self) -> None:
        if self._waiters:
            self._chosen(self._clock.monotonic_s()).event.set()

    def _may_go(self, size_bytes: int, now_s: float) -> bool:
        return self._rate is None or self._bucket.delay_s(size_bytes, now_s) == 0.0

    def _grant(self, size_bytes: int, now_s: float) -> None:
        if self._rate is not None:
            self._bucket.take(size_bytes)
        self.sent_bytes += size_bytes
        if self._sent and now_s - self._sent[-1][0] < 0.1:
            at_s, sum_bytes = self._sent[-1]
            self._sent[-1] = (at_s, sum_bytes + size_bytes)
        else:
            self._sent.append((now_s, size_bytes))
            self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._sent and now_s - self._sent[0][0] > MEASURED_S:
            self._sent.popleft()

    def _look(self, now_s: float) -> None:
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        rate = self._slowed(self._set_rate(), now_s)
        if rate != self._rate:
            self._apply(rate, now_s)

    def _set_rate(self) -> float | None:
        return self._timetable.rate_at(self._clock.now().astimezone(self._timezone))

    def _slowed(self, rate: float | None, now_s: float) -> float | None:
        if self._ceiling is None:
            return rate
        start, cut_s = self._ceiling
        # Eightfold in a minute, in small steps.
        ceiling = start * 8.0 ** ((now_s - cut_s) / SLOWED_S)
        if now_s - cut_s >= SLOWED_S or (rate is not None and ceiling >= rate):
            self._ceiling = None
            return rate
        return float(ceiling)

    def _apply(self, rate: float | None, now_s: float) -> None:
        self._rate = rate
        if rate is not None:
            piece_bytes = self.piece_bytes() or PIECE_BYTES_MOST
            burst_bytes = max(float(piece_bytes), rate * BURST_S)
            self._bucket.change(rate * AIM, burst_bytes, now_s)
