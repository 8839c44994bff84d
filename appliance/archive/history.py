"""What came in and what went out lately, sampled: the past from which forecasts are drawn.

Owns `state/history.json`: the last hour by the minute, the last weeks by the hour, and what the
line gave under each throttle. Written now and then, not flushed: a power cut loses minutes of it,
and a lost file costs no more than forecasts that know less for some days.

Invariants:
- Bounded: `HOURS_MAX` hours, an hour of minutes, `RATES_MAX` rates under `THROTTLES_MAX` throttles.
- A stretch that nobody watched, and one in which the clock was set, counts neither as busy nor as
  quiet: what is not known is left out.
- What came is the growth of what is pending and what left it meanwhile, both in bytes of packs.
"""

import os
from typing import NamedTuple

import msgspec

from appliance.archive.layout import Layout
from appliance.foundation.files import FileSystem

HOUR_S = 3600.0
DAY_S = 86400.0
HOURS_MAX = 28 * 24
RATES_MAX = 30
THROTTLES_MAX = 16
GAP_MAX_S = 2 * HOUR_S
RATE_LEAST_S = 20.0
"""A stretch shorter than this says nothing of the line's rate."""
FADED = 0.999
"""Of the sums that tell packs' bytes from bytes on the wire, what is kept a sample later."""


class Sample(NamedTuple):
    """What the uplink knows at one moment.

    Bytes: `pending_bytes` here, `drained_bytes` verified and `sent_bytes` on the wire, both since
    the process began. `idle_count` rises whenever a worker finds nothing to take. `busy`: a pack is
    on its way.
    """

    at_s: float
    pending_bytes: int
    drained_bytes: int
    sent_bytes: int
    idle_count: int
    busy: bool
    link_up: bool
    throttle_bytes_per_s: float | None


class Stretch(msgspec.Struct, array_like=True):
    """What came in a stretch of time: its end, the bytes, and how much of it was watched."""

    end_s: float
    bytes: float
    watched_s: float


class LineRates(msgspec.Struct):
    """What the line carried while all workers sent, the latest last: wire bytes a second."""

    throttle_bytes_per_s: float | None
    at_s: float
    rates: list[float]


class History(msgspec.Struct):
    """What is remembered; `hours` by their number since 1970 UTC."""

    at_s: float = 0.0
    pending_bytes: int = 0
    minutes: list[Stretch] = []
    hours: dict[int, Stretch] = {}
    line: list[LineRates] = []
    drained_bytes: float = 0.0
    sent_bytes: float = 0.0

    def hour_rate(self, at_s: float) -> float | None:
        """Return bytes a second of the hour in which a moment lies; None when not watched."""
        hour = self.hours.get(int(at_s // HOUR_S))
        if hour is None or hour.watched_s < HOUR_S / 2:
            return None
        return max(0.0, hour.bytes / hour.watched_s)

    def last_hour_rate(self) -> float | None:
        """Return bytes a second of the last hour that was watched; None when too little was."""
        watched_s = sum(each.watched_s for each in self.minutes)
        if watched_s < RATE_LEAST_S:
            return None
        return max(0.0, sum(each.bytes for each in self.minutes) / watched_s)


class Recorder:
    """Takes samples into a history. Used by one thread; others read the file."""

    def __init__(self, files: FileSystem, layout: Layout) -> None:
        self._files = files
        self._layout = layout
        self.history = read_history(layout)
        self._last: Sample | None = None

    def take(self, sample: Sample) -> None:
        """Add what happened since the last sample, and write it down."""
        history, last = self.history, self._last
        elapsed_s = sample.at_s - history.at_s
        if history.at_s and 0 < elapsed_s <= GAP_MAX_S:
            drained = sample.drained_bytes - (last.drained_bytes if last is not None else 0)
            came = sample.pending_bytes - history.pending_bytes + drained
            self._add(sample.at_s, elapsed_s, came)
            if last is not None:
                self._measure(last, sample, elapsed_s, drained)
        self._forget(sample.at_s)
        history.at_s, history.pending_bytes = sample.at_s, sample.pending_bytes
        self._last = sample
        self._files.write_volatile(_path(self._layout), msgspec.json.encode(history))

    def skip(self) -> None:
        """Leave out what happens until the next sample: it can't be told."""
        self.history.at_s = 0.0
        self._last = None

    def _add(self, end_s: float, elapsed_s: float, came: float) -> None:
        """Spread what came over the hours that the stretch touches."""
        history = self.history
        history.minutes.append(Stretch(end_s, came, elapsed_s))
        start_s = end_s - elapsed_s
        while start_s < end_s:
            number = int(start_s // HOUR_S)
            until_s = min(end_s, (number + 1) * HOUR_S)
            hour = history.hours.setdefault(number, Stretch((number + 1) * HOUR_S, 0.0, 0.0))
            hour.bytes += came * (until_s - start_s) / elapsed_s
            hour.watched_s += until_s - start_s
            start_s = until_s

    def _measure(self, last: Sample, sample: Sample, elapsed_s: float, drained: int) -> None:
        history = self.history
        sent = sample.sent_bytes - last.sent_bytes
        if drained or last.busy or sample.busy:
            history.drained_bytes = history.drained_bytes * FADED + drained
            history.sent_bytes = history.sent_bytes * FADED + sent
        same = last.throttle_bytes_per_s == sample.throttle_bytes_per_s
        loaded = last.idle_count == sample.idle_count and last.link_up and sample.link_up
        if not (same and loaded) or elapsed_s < RATE_LEAST_S:
            return
        throttle = sample.throttle_bytes_per_s
        known = [each for each in history.line if each.throttle_bytes_per_s == throttle]
        line = known[0] if known else LineRates(throttle, sample.at_s, [])
        line.at_s = sample.at_s
        line.rates = [*line.rates[-(RATES_MAX - 1) :], sent / elapsed_s]
        others = [each for each in history.line if each is not line]
        history.line = [*others[-(THROTTLES_MAX - 1) :], line]

    def _forget(self, now_s: float) -> None:
        history = self.history
        history.minutes = [each for each in history.minutes if 0 <= now_s - each.end_s < HOUR_S]
        oldest = int(now_s // HOUR_S) - HOURS_MAX
        newest = int(now_s // HOUR_S)
        history.hours = {
            number: hour for number, hour in history.hours.items() if oldest < number <= newest
        }


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "history.json")


def read_history(layout: Layout) -> History:
    """Return what is remembered; an empty history where there is none that can be read."""
    try:
        with open(_path(layout), "rb") as file:
            return msgspec.json.decode(file.read(), type=History)
    except (FileNotFoundError, msgspec.DecodeError):
        return History()
