"""Whether this box and the bucket agree on the time, for status: the doctor's check, now and then.

Must not set a clock. Without an answer of the bucket, what was found last stands.
"""

from appliance.archive.problem import Problem
from appliance.foundation.clock import Clock
from appliance.health.check import Severity
from appliance.health.clock_skew import check_clock_skew
from appliance.remote.store import ObjectStore


class ClockWatch:
    """`look` is called by one thread; `problems` by any."""

    def __init__(self, clock: Clock, store: ObjectStore) -> None:
        self._clock = clock
        self._store = store
        self._found: list[Problem] = []

    def look(self) -> None:
        """Compare both clocks."""
        found = check_clock_skew(self._clock, self._store)
        if found:
            self._found = [
                Problem(each.condition, each.sentence, each.hint)
                for each in found
                if each.severity is not Severity.OK
            ]

    def problems(self) -> list[Problem]:
        """Return the skew that was found, if it is worth a word."""
        return self._found
