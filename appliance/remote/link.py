"""The state of the line to the bucket, from the outcomes of real requests; and how to wait.

Owns: up, degraded, down; who may send while it is down; the back-off. Must not: send anything
of its own.

Invariants:
- An answer of the store, a refusal too, proves the line; only CloudUnavailable speaks against it.
- One lost request does not change the state, and one that gets through ends `down` at once.
- While `down`, at most one request is on the way: the others fail at once with CloudUnavailable,
  those a reader waits for after `READER_WAIT_S`.
- Listeners are called without a lock held, in the order of the changes.
"""

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal

from appliance.foundation.clock import Clock
from appliance.foundation.errors import CloudUnavailable

State = Literal["up", "degraded", "down"]
Listener = Callable[[State, State], None]

DOWN_FAILURES = 3
DOWN_AFTER_S = 5.0
DEGRADED_FAILURES = 2
MEMORY_S = 60.0
MEMORY_MAX = 256
UP_SUCCESSES = 3
READER_WAIT_S = 10.0


class Link:
    """The line's state. All fields are guarded by `_lock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._announcing = threading.Lock()
        self._state: State = "up"
        self._since_at = clock.now()
        self._listeners: list[Listener] = []
        self._changes: deque[tuple[State, State]] = deque()
        # Monotonic times of the failures that still count, oldest first.
        self._failures: deque[float] = deque(maxlen=MEMORY_MAX)
        # Failures since the last success, and the time of the first of them.
        self._failed_in_a_row = 0
        self._failing_since_s = 0.0
        self._succeeded_in_a_row = 0
        # Invariant: set exactly while the state is not `down`.
        self._passable = threading.Event()
        self._passable.set()
        # Held by the one request that goes out while the line is down.
        self._probe = threading.Semaphore(1)

    @property
    def state(self) -> State:
        """Return the state of this moment."""
        with self._lock:
            self._settle()
            state = self._state
        self._announce()
        return state

    @property
    def since_at(self) -> datetime:
        """Return when the state began, aware, UTC."""
        with self._lock:
            return self._since_at

    def listen(self, listener: Listener) -> None:
        """Call `listener(old, new)` at each change from now on."""
        with self._lock:
            self._listeners.append(listener)

    def wait_passable(self, timeout_s: float) -> bool:
        """Wait until the line is not down, at most `timeout_s`; return whether it is not."""
        return self._clock.wait(self._passable, timeout_s)

    def succeeded(self) -> None:
        """Note that the store answered."""
        with self._lock:
            self._failed_in_a_row = 0
            self._succeeded_in_a_row += 1
            if self._state == "down":
                self._change("degraded")
            self._settle()
        self._announce()

    def failed(self) -> None:
        """Note that a request got no answer of the store."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            if self._failed_in_a_row == 0:
                self._failing_since_s = now_s
            self._failed_in_a_row += 1
            self._succeeded_in_a_row = 0
            self._failures.append(now_s)
            self._settle()
        self._announce()

    @contextlib.contextmanager
    def request(self, *, may_wait: bool) -> Iterator[None]:
        """Hold a request's place on the line, and note its outcome.

        Raises CloudUnavailable without sending when the line is down and another request probes
        it; with `may_wait` only after some seconds.
        """
        if self.state != "down":
            with self._observed():
                yield
            return
        if not self._probe.acquire(timeout=READER_WAIT_S if may_wait else 0):
            raise CloudUnavailable("reach the bucket", "", "the line is down", "Check the WAN line")
        try:
            with self._observed():
                yield
        finally:
            self._probe.release()

    @contextlib.contextmanager
    def _observed(self) -> Iterator[None]:
        try:
            yield
        except CloudUnavailable:
            self.failed()
            raise
        except Exception:
            self.succeeded()
            raise
        self.succeeded()

    def _settle(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._failures and now_s - self._failures[0] > MEMORY_S:
            self._failures.popleft()
        if self._state == "down":
            return
        lasting = now_s - self._failing_since_s >= DOWN_AFTER_S
        if self._failed_in_a_row >= DOWN_FAILURES and lasting:
            self._change("down")
        elif len(self._failures) >= DEGRADED_FAILURES and self._succeeded_in_a_row < UP_SUCCESSES:
            self._change("degraded")
        elif not self._failures or self._succeeded_in_a_row >= UP_SUCCESSES:
            self._change("up")

    def _change(self, state: State) -> None:
        if state == self._state:
            return
        self._changes.append((self._state, state))
        self._state = state
        self._since_at = self._clock.now()
        if state == "down":
            self._passable.clear()
        else:
            self._passable.set()

    def _announce(self) -> None:
        if not self._changes or not self._announcing.acquire(blocking=False):
            return
        try:
            while True:
                with self._lock:
                    if not self._changes:
                        return
                    change = self._changes.popleft()
                    listeners = list(self._listeners)
                for listener in listeners:
                    listener(*change)
        finally:
            self._announcing.release()


class Backoff:
    """Full-jitter back-off of one task: no limit in time, a cap on each wait. Not thread-safe."""

    def __init__(
        self, base_s: float = 1.0, cap_s: float = 60.0, source: random.Random | None = None
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._source = source or random.Random()  # noqa: S311  jitter, no secret
        self.attempts_count = 0

    def next_delay_s(self) -> float:
        """Return how long to wait now, after a further failure."""
        # The exponent is bounded so that weeks of outage don't overflow.
        ceiling_s = min(self._cap_s, self._base_s * 2.0 ** min(self.attempts_count, 32))
        self.attempts_count += 1
        return self._source.uniform(0.0, ceiling_s)

    def reset(self) -> None:
        """Begin anew after a success."""
        self.attempts_count = 0
