"""When the disk will be full and when the backlog will be empty, from what happened before.

Pure: the history, the moment and the timetable are passed in. Must not look at the disk or a clock.

What is expected to come at an hour is what came at that hour of day on the last days of the same
kind, corrected by how far the last hour was off, which fades within hours. What is expected to
leave is the throttle's timetable, in the node's time zone, as far as the line was seen to carry it.
Both are summed up ahead, step by step. While the line is down nothing leaves, so that the time to
full counts with the outage going on, and the time to drain counts from the return of the line.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from appliance.archive.history import DAY_S, HOUR_S, History, LineRates
from appliance.remote.throttle import AIM, Timetable

HORIZON_S = 14 * DAY_S
NEAR_S = DAY_S
NEAR_STEP_S = 300.0
FAR_STEP_S = 900.0
SLOT_MIN = 5
ALIKE_MAX = 5
FADES_S = 2 * HOUR_S
THROTTLED_FRACTION = 0.5
CARRIED_QUANTILE = 0.9
YIELD_LEAST = 0.1
SATURDAY = 5

Rate = Callable[[float], float]


class Outlook(NamedTuple):
    """Times in seconds from now, None for never or unknown; rates as they are now.

    `after_return`: the time to drain counts from the return of the line.
    """

    time_to_full_s: float | None
    time_to_drain_s: float | None
    after_return: bool
    intake_bytes_per_s: float | None
    drain_bytes_per_s: float | None


def forecast(
    history: History,
    now: datetime,
    timezone: tzinfo,
    timetable: Timetable,
    pending_bytes: int,
    room_bytes: int,
    *,
    link_down: bool,
    sending_bytes_per_s: float = 0.0,
) -> Outlook:
    """Return the outlook of a backlog of `pending_bytes`, for which all but `room_bytes` is taken.

    `sending_bytes_per_s`: what goes out at this moment, for a line that was never measured.
    """
    intake = intake_ahead(history, now, timezone)
    drain = drain_ahead(history, now, timezone, timetable, sending_bytes_per_s)
    empty_s = 0.0 if not pending_bytes else None
    if pending_bytes and drain is not None:
        empty_s = _reach(pending_bytes, intake, drain, 0.0)
    full_s = None
    if intake is not None:
        leaves = _nothing if link_down or drain is None else drain
        full_s = _reach(pending_bytes, intake, leaves, float(pending_bytes + room_bytes))
    return Outlook(
        full_s, empty_s, link_down, history.last_hour_rate(),
        None if drain is None else round(drain(0.0), 1),
    )  # fmt: skip


def _nothing(_ahead_s: float) -> float:
    return 0.0


def _reach(backlog: float, intake: Rate | None, drain: Rate, goal: float) -> float | None:
    """Return in how many seconds the backlog reaches the goal, None when not in the horizon.

    A goal above is a full disk, one of nothing an empty backlog.
    """
    rising = goal > 0
    if rising and backlog >= goal:
        return 0.0
    ahead_s = 0.0
    while ahead_s < HORIZON_S:
        step_s = NEAR_STEP_S if ahead_s < NEAR_S else FAR_STEP_S
        middle_s = ahead_s + step_s / 2
        slope = (intake(middle_s) if intake is not None else 0.0) - drain(middle_s)
        then = backlog + slope * step_s
        if (rising and then >= goal) or (not rising and then <= goal):
            return round(ahead_s + (goal - backlog) / slope, 1)
        backlog = max(0.0, then)
        ahead_s += step_s
    return None


# --- what comes


class _Usual:
    """What came at each local hour of the days before, the latest day first."""

    def __init__(self, history: History, timezone: tzinfo) -> None:
        self._hours: dict[int, list[tuple[int, float]]] = {}
        self._known: dict[tuple[int, int], float | None] = {}
        for number in sorted(history.hours, reverse=True):
            rate = history.hour_rate(number * HOUR_S)
            if rate is not None:
                middle = datetime.fromtimestamp((number + 0.5) * HOUR_S, timezone)
                self._hours.setdefault(middle.hour, []).append((middle.toordinal(), rate))

    def rate(self, local: datetime, before: int | None = None) -> float | None:
        """Return bytes a second at that hour on the last days that are most like that day.

        `before`: only days in front of that one, as an ordinal, count.
        """
        key = (local.weekday(), local.hour)
        if before is not None or key not in self._known:
            found = self._mean(local, before)
            if before is not None:
                return found
            self._known[key] = found
        return self._known[key]

    def _mean(self, local: datetime, before: int | None) -> float | None:
        classes: dict[int, list[float]] = {}
        for day, rate in self._hours.get(local.hour, ()):
            if before is None or day < before:
                unlike = _unlike(local.weekday(), (day + 6) % 7)
                classes.setdefault(unlike, []).append(rate)
        if not classes:
            return None
        best = classes[min(classes)][:ALIKE_MAX]
        return sum(best) / len(best)


def intake_ahead(history: History, now: datetime, timezone: tzinfo) -> Rate | None:
    """Return the expected intake, bytes a second, by seconds from now; None when nothing is known.

    Where no day before is known, the last hour is taken to go on.
    """
    usual = _Usual(history, timezone)
    last = history.last_hour_rate()
    middle = _local(now, -HOUR_S / 2, timezone)
    usual_now = usual.rate(middle, before=middle.toordinal())
    if last is None and usual_now is None:
        return None
    level = last if last is not None else usual_now or 0.0
    excess = level - usual_now if usual_now is not None else 0.0

    def rate(ahead_s: float) -> float:
        found = usual.rate(_local(now, ahead_s, timezone))
        return max(0.0, (level if found is None else found) + excess * math.exp(-ahead_s / FADES_S))

    return rate


def _unlike(day: int, other: int) -> int:
    """Return how unlike two days of the week are: 0 for two working days, or the same day."""
    if day < SATURDAY and other < SATURDAY:
        return 0
    if day == other:
        return 0
    return 1 if day >= SATURDAY and other >= SATURDAY else 2


# --- what leaves


def drain_ahead(
    history: History,
    now: datetime,
    timezone: tzinfo,
    timetable: Timetable,
    sending_bytes_per_s: float,
) -> Rate | None:
    """Return how fast packs leave, in bytes a second of packs, by seconds from now.

    None when there is no throttle and the line was never seen at work.
    """
    part = _yield(history)
    aimed = _aimed(history)
    by_throttle: dict[float | None, float | None] = {}

    def carried(throttle: float | None) -> float | None:
        if throttle not in by_throttle:
            line = _line(history, throttle)
            if throttle is not None:
                line = throttle * aimed if line is None else min(line, throttle * aimed)
            elif line is None and sending_bytes_per_s > 1.0:
                line = sending_bytes_per_s
            by_throttle[throttle] = None if line is None else line * part
        return by_throttle[throttle]

    by_slot: dict[tuple[int, int, int], float] = {}

    def rate(ahead_s: float) -> float:
        at = _local(now, ahead_s, timezone)
        slot = (at.weekday(), at.hour, at.minute // SLOT_MIN)
        if slot not in by_slot:
            by_slot[slot] = carried(timetable.rate_at(at)) or 0.0
        return by_slot[slot]

    hours = range(0, int(7 * DAY_S), int(HOUR_S))
    if any(carried(timetable.rate_at(_local(now, each, timezone))) is not None for each in hours):
        return rate
    return None


def _local(now: datetime, ahead_s: float, timezone: tzinfo) -> datetime:
    return (now.astimezone(UTC) + timedelta(seconds=ahead_s)).astimezone(timezone)


def _yield(history: History) -> float:
    """Return the part of what is on the wire that is packs: the rest is framing and ledger."""
    if history.sent_bytes <= 0 or history.drained_bytes <= 0:
        return 1.0
    return min(1.0, max(YIELD_LEAST, history.drained_bytes / history.sent_bytes))


def _aimed(history: History) -> float:
    """Return the part of a throttle that is used where nothing else limits."""
    parts = [
        _carried(each) / each.throttle_bytes_per_s
        for each in history.line
        if each.throttle_bytes_per_s and each.rates
    ]
    full = [part for part in parts if part >= THROTTLED_FRACTION]
    return min(1.0, max(full)) if full else AIM


def _line(history: History, throttle: float | None) -> float | None:
    """Return what the line was seen to carry where a throttle like this one, or less, held it."""
    fitting = [
        each
        for each in history.line
        if each.rates
        and (
            each.throttle_bytes_per_s is None
            or (throttle is not None and each.throttle_bytes_per_s >= 0.9 * throttle)
        )
    ]
    if fitting:
        return _carried(max(fitting, key=lambda each: each.at_s))
    if throttle is None and history.line:
        return max(_carried(each) for each in history.line if each.rates)
    return None


def _carried(line: LineRates) -> float:
    """Return what a line carries: among its busiest stretches, since others had idle moments."""
    return sorted(line.rates)[int(CARRIED_QUANTILE * (len(line.rates) - 1))]
