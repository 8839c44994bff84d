"""Watching the backlog: samples for the forecasts, and alarms from them. Part of the uplink.

Must not change what it watches. One thread calls `look`, any asks for problems.
"""

from appliance.archive.alarms import AlarmBoard, Readings
from appliance.archive.forecast import Outlook, forecast
from appliance.archive.history import Recorder, Sample
from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.problem import Problem
from appliance.archive.space import Space
from appliance.archive.status import oldest_age_s
from appliance.archive.uplink import Uplink
from appliance.config.care import Alarms
from appliance.foundation.clock import Clock
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.remote.link import Link
from appliance.remote.throttle import Throttle


class BacklogWatch:
    """Looks at what is pending now and then; `outlook` is that of the last look."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        space: Space,
        uplink: Uplink,
        throttle: Throttle,
        link: Link,
        limits: Alarms,
        condition: IndexCondition | None = None,
    ) -> None:
        """`condition`: what is known of the index; without one it is whole."""
        self._clock = clock
        self._index = index
        self._space = space
        self._uplink = uplink
        self._throttle = throttle
        self._link = link
        self._condition = condition
        self._recorder = Recorder(files, layout)
        self._board = AlarmBoard(clock, limits)
        self.outlook: Outlook | None = None

    def problems(self) -> list[Problem]:
        """Return the alarms that stand."""
        return self._board.problems()

    def look(self) -> None:
        """Take a sample, draw the forecast, judge the alarms.

        An index that does not hold everything would make what is pending look like little.
        """
        if self._condition is not None and self._condition.incomplete() is not None:
            self._recorder.skip()
            return
        drained = self._uplink.drained_bytes
        with self._index.read() as view:
            counts = view.counts()
        now, state = self._clock.now(), self._link.state
        throttle = self._throttle
        self._recorder.take(
            Sample(
                at_s=now.timestamp(),
                pending_bytes=counts.pending_bytes,
                drained_bytes=drained,
                sent_bytes=throttle.sent_bytes,
                idle_count=self._uplink.idle_count,
                busy=self._uplink.busy,
                link_up=state != "down",
                throttle_bytes_per_s=throttle.rate_now_bytes_per_s(),
            )
        )
        used = self._space.measure()
        usable = self._space.usable_bytes
        # Eviction asks the bucket for proof of each pack: while the line is down, nothing goes.
        evictable = counts.cached_bytes if state != "down" else 0
        room = max(0, usable - max(counts.pending_bytes, used - evictable))
        self.outlook = forecast(
            self._recorder.history, now, throttle.timezone, throttle.timetable,
            counts.pending_bytes, room, link_down=state == "down",
            sending_bytes_per_s=throttle.sent_bytes_per_s(),
        )  # fmt: skip
        down_s = (now - self._link.since_at).total_seconds() if state == "down" else None
        self._board.take(
            Readings(
                time_to_full_s=self.outlook.time_to_full_s,
                time_to_drain_s=self.outlook.time_to_drain_s,
                pending_age_s=oldest_age_s(counts, now),
                link_down_s=down_s,
                room=room / usable if usable else 0.0,
            )
        )
