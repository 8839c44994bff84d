"""Alarms of the backlog by configured thresholds, each a problem until it is over by itself.

Owns which alarms stand. Must not measure: readings are passed in.

Invariants:
- An alarm is raised only after its threshold was crossed for `RAISE_S` on end, and is over only
  after the value was clearly on the good side for `CLEAR_S` on end: no flapping.
- Each change is logged once.
"""

from typing import NamedTuple

from appliance.archive.problem import Problem
from appliance.config.care import Alarms
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.units import format_duration

RAISE_S = 60.0
CLEAR_S = 120.0
MARGIN = 0.2
"""How far on the good side of a threshold a value must be, as a part of it, to end the alarm."""

_log = log.get("alarms")


class Readings(NamedTuple):
    """What alarms are judged by: seconds, a part of 1; None where there is nothing to tell.

    `time_to_drain_s` counts from the return of the line where that is down.
    """

    time_to_full_s: float | None
    time_to_drain_s: float | None
    pending_age_s: float | None
    link_down_s: float | None
    room: float | None


class _Alarm:
    """One alarm. `turning_since_s`: since when it has been on the other side, None when it isn't.

    Invariant: a problem is there exactly while it stands.
    """

    def __init__(self, condition: str, threshold: float, *, above: bool, hint: str) -> None:
        self.condition = condition
        self._threshold = threshold
        self._above = above
        self._hint = hint
        self._turning_since_s: float | None = None
        self.problem: Problem | None = None

    def take(self, value: float | None, sentence: str, now_s: float) -> None:
        """Judge a reading."""
        stands = self.problem is not None
        turning = self._is_clear(value) if stands else self._is_crossed(value)
        if not turning:
            self._turning_since_s = None
        elif self._turning_since_s is None:
            self._turning_since_s = now_s
        elif now_s - self._turning_since_s >= (CLEAR_S if stands else RAISE_S):
            self._turning_since_s = None
            stands = not stands
            self._tell(value, stands=stands)
        if not stands:
            self.problem = None
        elif self.problem is None or value is not None:
            self.problem = Problem(self.condition, sentence, self._hint)

    def _tell(self, value: float | None, *, stands: bool) -> None:
        if stands:
            _log.warning("alarm_raised", alarm=self.condition, value=value)
        else:
            _log.info("alarm_over", alarm=self.condition, value=value)

    def _is_crossed(self, value: float | None) -> bool:
        if value is None:
            return False
        return value > self._threshold if self._above else value < self._threshold

    def _is_clear(self, value: float | None) -> bool:
        if value is None:
            return True
        if self._above:
            return value < self._threshold * (1 - MARGIN)
        return value > self._threshold * (1 + MARGIN)


class AlarmBoard:
    """All alarms of a node. `take` is called by one thread; `problems` by any."""

    def __init__(self, clock: Clock, limits: Alarms) -> None:
        self._clock = clock
        self._full = _Alarm(
            "time_to_full", limits.time_to_full_s, above=False,
            hint="Raise the throttle or see why nothing leaves; what can't be kept is refused, "
            "and stays at its sender",
        )  # fmt: skip
        self._drain = _Alarm(
            "time_to_drain", limits.time_to_drain_s, above=True,
            hint="The throttle is too low for what comes: raise cloud.throttle, or the line",
        )  # fmt: skip
        self._age = _Alarm(
            "pending_age", limits.pending_age_s, above=True,
            hint="Its only copy is here: see the other problems, and cloud.throttle",
        )  # fmt: skip
        self._link = _Alarm(
            "link_down", limits.link_down_s, above=True,
            hint="Check the WAN line; everything local goes on meanwhile",
        )  # fmt: skip
        self._room = _Alarm(
            "room", limits.room, above=False,
            hint="What is pending must reach the bucket, or cache.capacity must grow; "
            "each peer has its share of what is left",
        )  # fmt: skip

    def take(self, readings: Readings) -> None:
        """Judge what was read now."""
        now_s = self._clock.monotonic_s()
        full = f"the disk will be full in {_duration(readings.time_to_full_s)}"
        drain = f"the backlog needs {_duration(readings.time_to_drain_s)}"
        if readings.link_down_s is not None:
            drain += ", counted from the return of the line"
        age = f"the oldest pending instance has waited {_duration(readings.pending_age_s)}"
        link = f"the line to the bucket has been down for {_duration(readings.link_down_s)}"
        room = f"{(readings.room or 0.0) * 100:.0f} % of the disk is left for new instances"
        self._full.take(readings.time_to_full_s, full, now_s)
        self._drain.take(readings.time_to_drain_s, drain, now_s)
        self._age.take(readings.pending_age_s, age, now_s)
        self._link.take(readings.link_down_s, link, now_s)
        self._room.take(readings.room, room, now_s)

    def problems(self) -> list[Problem]:
        """Return the alarms that stand."""
        alarms = (self._full, self._room, self._link, self._age, self._drain)
        return [each.problem for each in alarms if each.problem is not None]


def _duration(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else format_duration(seconds)
