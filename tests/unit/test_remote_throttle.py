"""The throttle: its rate over time, its lanes, its timetable, all with a stopped clock."""

import threading
from collections import deque
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest

from appliance.remote.store import Lane
from appliance.remote.throttle import (
    BURST_S,
    STARVING_S,
    ConstantRate,
    Throttle,
    TokenBucket,
)
from tests.support.manual_clock import ManualClock

MBIT = 125_000.0


class Office:
    """10 Mbit/s from 08:00 to 18:00 local time, 50 Mbit/s else."""

    def rate_at(self, local: datetime) -> float | None:
        busy = time(8) <= local.time() < time(18)
        return (10 if busy else 50) * MBIT


def throttle_at(rate: float | None, clock: ManualClock) -> Throttle:
    return Throttle(ConstantRate(rate), UTC, clock)


def send(throttle: Throttle, total_bytes: int, lane: Lane = Lane.NEW) -> None:
    """Ask as a socket does: piece by piece."""
    while total_bytes > 0:
        piece_bytes = min(throttle.piece_bytes() or 65536, total_bytes)
        throttle.take(piece_bytes, lane)
        total_bytes -= piece_bytes


@pytest.mark.parametrize("rate", [0.064 * MBIT, 1 * MBIT, 8 * MBIT, 50 * MBIT, 400 * MBIT])
def test_minute_of_sending_stays_between_95_and_100_percent(rate):
    """The set rate is a ceiling that is used."""
    clock = ManualClock()
    throttle = throttle_at(rate, clock)
    start_s = clock.monotonic_s()
    send(throttle, int(rate * 60 * 0.97))
    share = throttle.sent_bytes / (rate * (clock.monotonic_s() - start_s))
    assert 0.95 <= share <= 1.0


@pytest.mark.parametrize("rate", [0.064 * MBIT, 8 * MBIT, 200 * MBIT])
def test_no_window_exceeds_rate_and_burst(rate):
    """In every second, also the first after a pause, no more than the rate and one burst leave."""
    clock = ManualClock()
    throttle = throttle_at(rate, clock)
    grants: deque[tuple[float, int]] = deque()
    for _ in range(3):
        clock.advance(30)  # an idle line saves no more than a burst
        for _ in range(400):
            piece_bytes = throttle.piece_bytes()
            throttle.take(piece_bytes, Lane.NEW)
            grants.append((clock.monotonic_s(), piece_bytes))
            while grants[0][0] <= clock.monotonic_s() - 1:
                grants.popleft()
            burst = max(piece_bytes, rate * BURST_S)
            assert sum(size for _, size in grants) <= rate + burst + 1


def test_unlimited_grants_without_waiting():
    """A rate of `off` never waits."""
    clock = ManualClock()
    throttle = throttle_at(None, clock)
    before_s = clock.monotonic_s()
    throttle.take(10**9, Lane.BACKFILL)
    assert clock.monotonic_s() == before_s
    assert throttle.piece_bytes() is None


def test_lower_rate_holds_for_a_send_in_progress():
    """A change during a body takes effect within a second."""
    clock = ManualClock()
    throttle = throttle_at(80 * MBIT, clock)
    send(throttle, int(10 * MBIT))
    throttle.set_timetable(ConstantRate(1 * MBIT))
    start_s, sent = clock.monotonic_s(), throttle.sent_bytes
    send(throttle, int(5 * MBIT))
    rate = (throttle.sent_bytes - sent) / (clock.monotonic_s() - start_s)
    assert rate <= 1.02 * MBIT


def test_waiter_hears_of_a_higher_rate():
    """A thread that waits under a rate of nearly nothing goes on when the rate is raised."""

    class Patient(ManualClock):
        """Waits for real, and tells that it does."""

        waiting = threading.Event()

        def wait(self, event, timeout_s):
            self.waiting.set()
            return event.wait(30)

    clock = Patient()
    throttle = throttle_at(1.0, clock)
    thread = threading.Thread(target=throttle.take, args=(1024, Lane.NEW))
    thread.start()
    assert clock.waiting.wait(10)
    throttle.set_timetable(ConstantRate(None))
    thread.join(10)
    assert not thread.is_alive()
    assert throttle.sent_bytes == 1024


@pytest.mark.parametrize(
    ("at", "rate"),
    [
        ("2026-03-02T07:59:59", 50),
        ("2026-03-02T08:00:00", 10),
        ("2026-03-02T17:59:59", 10),
        ("2026-03-02T18:00:00", 50),
    ],
)
def test_timetable_is_read_in_the_nodes_time_zone(at, rate):
    """Hours are the hospital's, not UTC's."""
    zone = ZoneInfo("Asia/Tokyo")
    clock = ManualClock(datetime.fromisoformat(at).replace(tzinfo=zone).astimezone(UTC))
    assert Throttle(Office(), zone, clock).rate_now_bytes_per_s() == rate * MBIT


def test_timetable_follows_summer_time():
    """08:00 is 08:00 before and after the clocks change, for a process that went on running."""
    zone = ZoneInfo("Europe/Berlin")
    clock = ManualClock(datetime(2026, 3, 28, 6, 59, tzinfo=UTC))  # 07:59 in winter time
    throttle = Throttle(Office(), zone, clock)
    assert throttle.rate_now_bytes_per_s() == 50 * MBIT
    clock.advance(61)
    assert throttle.rate_now_bytes_per_s() == 10 * MBIT
    clock.advance(86400 - 61 - 3600)  # Sunday, 05:59 UTC: 07:59 in summer time
    assert throttle.rate_now_bytes_per_s() == 50 * MBIT
    clock.advance(61)
    assert throttle.rate_now_bytes_per_s() == 10 * MBIT


def test_window_that_begins_holds_in_the_middle_of_a_body():
    """The timetable is looked at while a send goes on."""
    zone = ZoneInfo("Asia/Tokyo")
    clock = ManualClock(datetime(2026, 3, 2, 7, 59, 50, tzinfo=zone).astimezone(UTC))
    throttle = Throttle(Office(), zone, clock)
    start_s = clock.monotonic_s()
    send(throttle, int(50 * MBIT * 10 + 10 * MBIT * 20))
    took_s = clock.monotonic_s() - start_s
    assert 29.5 <= took_s <= 32


def waiting_order(lanes: list[Lane]) -> list[Lane]:
    """Return the order in which waiters, come in this order, are granted a piece each.

    The throttle's clock stands still until all wait; then time passes by a piece at a time.
    """

    class Gate(ManualClock):
        """Waits until the test lets time pass."""

        def wait(self, event, timeout_s):
            return event.wait(0.002)

    clock = Gate()
    throttle = throttle_at(1024.0, clock)  # its bucket is empty: everybody waits
    granted: list[Lane] = []

    def ask(lane: Lane) -> None:
        throttle.take(1024, lane)
        granted.append(lane)

    threads = []
    for number, lane in enumerate(lanes):
        thread = threading.Thread(target=ask, args=(lane,))
        thread.start()
        threads.append(thread)
        while len(throttle._waiters) + len(granted) <= number:
            threading.Event().wait(0.001)
    while len(granted) < len(lanes):
        before = len(granted)
        clock.advance(0.25)
        deadline = threading.Event()
        for _ in range(20):
            if len(granted) > before:
                break
            deadline.wait(0.001)
    for thread in threads:
        thread.join(10)
    return granted


def test_urgent_goes_before_new_before_backfill():
    """The lanes' order, whatever the order of arrival."""
    order = waiting_order([Lane.BACKFILL, Lane.NEW, Lane.BACKFILL, Lane.URGENT, Lane.NEW])
    assert order == [Lane.URGENT, Lane.NEW, Lane.NEW, Lane.BACKFILL, Lane.BACKFILL]


def test_bucket_keeps_no_more_than_a_burst():
    """Saved tokens are bounded; a debt is paid."""
    bucket = TokenBucket(1000.0, 50.0, 0.0)
    assert bucket.delay_s(50, 100.0) == 0.0
    bucket.take(50)
    assert bucket.delay_s(50, 100.0) == pytest.approx(0.05)
    assert bucket.delay_s(500, 100.05) == 0.0  # larger than the burst: waits for a full bucket
    bucket.take(500)
    assert bucket.delay_s(50, 100.05) == pytest.approx(0.5)


def test_bucket_ignores_a_clock_that_stands_or_goes_back():
    """No tokens come from time that did not pass."""
    bucket = TokenBucket(1000.0, 50.0, 10.0)
    assert bucket.delay_s(10, 5.0) > 0


def test_slow_down_halves_the_rate_and_it_grows_back():
    """After SlowDown the rate falls to half, once for a burst of refusals, and recovers."""
    clock = ManualClock()
    throttle = throttle_at(8 * MBIT, clock)
    throttle.slow_down()
    throttle.slow_down()
    assert throttle.rate_now_bytes_per_s() == pytest.approx(4 * MBIT)
    clock.advance(10)
    recovering = throttle.rate_now_bytes_per_s()
    assert 4 * MBIT < recovering < 8 * MBIT
    clock.advance(60)
    assert throttle.rate_now_bytes_per_s() == 8 * MBIT


def test_sent_rate_is_measured_over_the_last_seconds():
    """What status shows is what left."""
    clock = ManualClock()
    throttle = throttle_at(8 * MBIT, clock)
    send(throttle, int(8 * MBIT * 15))
    assert throttle.sent_bytes_per_s() == pytest.approx(8 * MBIT, rel=0.05)
    clock.advance(60)
    assert throttle.sent_bytes_per_s() == 0


def test_starving_waiter_gets_a_piece():
    """A begun upload of a low lane is kept alive by a piece every few seconds."""
    clock = ManualClock()
    throttle = throttle_at(8 * MBIT, clock)
    throttle.take(throttle.piece_bytes(), Lane.NEW)
    low = throttle._enqueue(1024, Lane.BACKFILL)
    high = throttle._enqueue(1024, Lane.URGENT)
    assert throttle._chosen(clock.monotonic_s()) is high
    clock.advance(STARVING_S)
    late = throttle._enqueue(1024, Lane.URGENT)
    throttle._waiters.remove(high)
    assert throttle._chosen(clock.monotonic_s()) is low
    throttle._waiters.remove(low)
    assert throttle._chosen(clock.monotonic_s()) is late
