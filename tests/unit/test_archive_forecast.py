"""Time to full and time to drain: by the hour of the day, the timetable, and the line."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from appliance.archive.forecast import forecast, intake_ahead
from appliance.archive.history import DAY_S, HOUR_S, History, LineRates, Stretch
from appliance.config.model import Throttle, ThrottleWindow
from appliance.remote.throttle import AIM, ConstantRate

TOKYO = ZoneInfo("Asia/Tokyo")
BERLIN = ZoneInfo("Europe/Berlin")
THURSDAY = datetime(2026, 3, 5, 12, 0, tzinfo=TOKYO).astimezone(UTC)
OFF = ConstantRate(None)


def _history(now: datetime, zone: ZoneInfo, rate_at, days: int = 14) -> History:
    """Return the past of a node at which `rate_at(local)` came in."""
    hours = {}
    number = int(now.timestamp() // HOUR_S)
    for each in range(number - 24 * days, number):
        local = datetime.fromtimestamp((each + 0.5) * HOUR_S, UTC).astimezone(zone)
        hours[each] = Stretch((each + 1) * HOUR_S, rate_at(local) * HOUR_S, HOUR_S)
    last = rate_at((now - timedelta(minutes=30)).astimezone(zone))
    return History(minutes=[Stretch(now.timestamp(), last * HOUR_S, HOUR_S)], hours=hours)


def _by_day(local: datetime) -> float:
    """100 B/s in the working hours of working days, and 10 else."""
    return 100.0 if local.weekday() < 5 and 8 <= local.hour < 18 else 10.0


def test_the_time_to_full_sees_the_night_coming() -> None:
    """At noon the present pace would fill the disk in 10 h; by then it is night."""
    room = 100 * 6 * 3600 + 10 * 5 * 3600
    found = forecast(
        _history(THURSDAY, TOKYO, _by_day), THURSDAY, TOKYO, OFF, 0, room, link_down=True
    )
    assert found.time_to_full_s == pytest.approx(11 * HOUR_S, rel=0.01)


def test_a_weekend_is_expected_to_be_one() -> None:
    """On Friday evening, over a weekend and into Monday."""
    friday = datetime(2026, 3, 6, 18, 0, tzinfo=TOKYO).astimezone(UTC)
    room = 10 * 62 * 3600 + 100 * 3600
    found = forecast(_history(friday, TOKYO, _by_day), friday, TOKYO, OFF, 0, room, link_down=True)
    assert found.time_to_full_s == pytest.approx(63 * HOUR_S, rel=0.02)


def test_without_days_before_the_last_hour_goes_on() -> None:
    history = History(minutes=[Stretch(THURSDAY.timestamp(), 36_000, 3600)])
    found = forecast(history, THURSDAY, TOKYO, OFF, 0, 864_000, link_down=True)
    assert found.time_to_full_s == pytest.approx(DAY_S, rel=0.01)
    assert found.intake_bytes_per_s == 10.0


def test_an_odd_hour_counts_and_is_forgotten() -> None:
    """Three times the usual in the last hour: the next one will be much, tomorrow as ever."""
    history = _history(THURSDAY, TOKYO, _by_day)
    history.minutes = [Stretch(THURSDAY.timestamp(), 300 * 3600, 3600)]
    rate = intake_ahead(history, THURSDAY, TOKYO)
    assert rate is not None
    assert rate(0) == pytest.approx(300)
    assert rate(HOUR_S) == pytest.approx(100 + 200 * 0.6065, rel=0.01)
    assert rate(DAY_S) == pytest.approx(100, rel=0.01)


def test_nothing_known_is_nothing_said() -> None:
    found = forecast(History(), THURSDAY, TOKYO, OFF, 10**6, 10**9, link_down=False)
    assert found.time_to_full_s is None
    assert found.time_to_drain_s is None


def test_nothing_pending_is_empty_now() -> None:
    assert forecast(History(), THURSDAY, TOKYO, OFF, 0, 1, link_down=True).time_to_drain_s == 0.0


def test_a_full_disk_is_full_now() -> None:
    history = _history(THURSDAY, TOKYO, _by_day)
    assert forecast(history, THURSDAY, TOKYO, OFF, 9, 0, link_down=True).time_to_full_s == 0.0


def test_what_never_fills_and_what_never_drains() -> None:
    """The line carries more than comes, and less than comes."""
    history = _history(THURSDAY, TOKYO, lambda _: 50.0)
    fast = forecast(history, THURSDAY, TOKYO, ConstantRate(100.0), 9000, 10**6, link_down=False)
    assert fast.time_to_full_s is None
    slow = forecast(history, THURSDAY, TOKYO, ConstantRate(20.0), 9000, 10**6, link_down=False)
    assert slow.time_to_drain_s is None
    assert slow.time_to_full_s == pytest.approx(10**6 / (50 - 20 * AIM), rel=0.01)


def _timetable(rate: float | None, window_rate: float) -> Throttle:
    window = ThrottleWindow(
        from_minute=8 * 60, to_minute=18 * 60, rate_bytes_per_s=window_rate,
        days=("mon", "tue", "wed", "thu", "fri"),
    )  # fmt: skip
    return Throttle(rate_bytes_per_s=rate, windows=(window,))


def test_the_timetable_is_summed_up_ahead() -> None:
    """At noon 10 B/s go out, and from 18:00 on a hundred: the night is what empties it."""
    pending = round((10 * 6 * 3600 + 100 * 4 * 3600) * AIM)
    found = forecast(
        History(), THURSDAY, TOKYO, _timetable(100.0, 10.0), pending, 0, link_down=False
    )
    assert found.time_to_drain_s == pytest.approx(10 * HOUR_S, rel=0.01)
    assert found.drain_bytes_per_s == pytest.approx(10 * AIM, abs=0.1)


@pytest.mark.parametrize(
    ("day", "hours"),
    [(datetime(2026, 3, 29, 0, 0, tzinfo=BERLIN), 17), (datetime(2026, 10, 25, tzinfo=BERLIN), 19)],
)
def test_the_timetable_is_the_nodes_local_time(day: datetime, hours: int) -> None:
    """The clocks change at night: until 18:00 there is an hour less, or more, to come."""
    window = ThrottleWindow(from_minute=0, to_minute=18 * 60, rate_bytes_per_s=1.0)
    timetable = Throttle(rate_bytes_per_s=1000.0, windows=(window,))
    now = day.astimezone(UTC)
    pending = round((hours * 3600 + 1000 * 3600) * AIM)
    found = forecast(History(), now, BERLIN, timetable, pending, 0, link_down=False)
    assert found.time_to_drain_s == pytest.approx((hours + 1) * HOUR_S, rel=0.01)


def test_hours_of_the_day_are_local_over_a_change_of_the_clocks() -> None:
    """The morning after the change is expected as the mornings before, by the wall clock."""
    now = datetime(2026, 3, 29, 20, 0, tzinfo=BERLIN).astimezone(UTC)
    rate = intake_ahead(_history(now, BERLIN, _by_day), now, BERLIN)
    assert rate is not None
    at = {}
    for hour in range(24):
        local = (now + timedelta(hours=hour, minutes=30)).astimezone(BERLIN)
        at[local.hour] = rate(hour * HOUR_S + 1800)
    assert at[7] == pytest.approx(10.0, abs=1)
    assert at[8] == pytest.approx(100.0, rel=0.01)
    assert at[17] == pytest.approx(100.0, rel=0.01)
    assert at[18] == pytest.approx(10.0, abs=1)


def test_while_the_line_is_down_the_drain_counts_from_its_return() -> None:
    history = _history(THURSDAY, TOKYO, lambda _: 10.0)
    down = forecast(history, THURSDAY, TOKYO, ConstantRate(100.0), 10**6, 10**6, link_down=True)
    up = forecast(history, THURSDAY, TOKYO, ConstantRate(100.0), 10**6, 10**6, link_down=False)
    assert down.after_return
    assert down.time_to_drain_s == up.time_to_drain_s == pytest.approx(10**6 / 88.5, rel=0.01)
    assert down.time_to_full_s == pytest.approx(10**5, rel=0.01)
    assert up.time_to_full_s is None


def test_a_line_that_carries_less_than_the_throttle_is_what_counts() -> None:
    """By day the throttle of 10 is reached; by night, of 100 only 40 was ever seen."""
    history = History(
        line=[
            LineRates(100.0, 1.0, [*range(21, 38), 40.0, 40.0, 41.0]),
            LineRates(10.0, 2.0, [9.8, 9.9, 9.8]),
        ]
    )
    pending = 98 * 6 * 360 + 40 * 3600 * 4
    found = forecast(history, THURSDAY, TOKYO, _timetable(100.0, 10.0), pending, 0, link_down=False)
    assert found.time_to_drain_s == pytest.approx(10 * HOUR_S, rel=0.01)


def test_framing_and_ledger_take_their_part_of_the_line() -> None:
    history = History(line=[LineRates(100.0, 1.0, [98.0])], drained_bytes=700, sent_bytes=1000)
    found = forecast(history, THURSDAY, TOKYO, ConstantRate(100.0), 98 * 700, 0, link_down=False)
    assert found.time_to_drain_s == pytest.approx(1000, rel=0.01)


def test_an_unlimited_line_is_what_it_was_seen_to_carry() -> None:
    """And before it ever was, what goes out at this moment."""
    history = History(line=[LineRates(None, 1.0, [480.0] * 10 + [500.0, 10.0])])
    seen = forecast(history, THURSDAY, TOKYO, OFF, 48_000, 0, link_down=False)
    assert seen.time_to_drain_s == pytest.approx(100, rel=0.01)
    first = forecast(
        History(), THURSDAY, TOKYO, OFF, 48_000, 0, link_down=False, sending_bytes_per_s=48.0
    )
    assert first.time_to_drain_s == pytest.approx(1000, rel=0.01)
