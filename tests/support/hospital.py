"""Days of a hospital in compressed time: modalities, a node's real parts, a line that fails.

Nothing is mocked but time, the bucket (which keeps S3's rules) and the length of the line's wire:
instances go through ingest, packs, index, uplink, throttle and link state; the clock moves when a
body is sent or nothing is to be done. Sizes are compressed: 16 kB stand for 50 MB.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from appliance.archive.backlog import BacklogWatch
from appliance.archive.forecast import Outlook
from appliance.archive.ingest import Ingest
from appliance.archive.sender import Sender
from appliance.config.care import Alarms
from appliance.config.model import Throttle as Timetable
from appliance.config.model import ThrottleWindow
from appliance.foundation.errors import AzekuraError, CloudUnavailable, OutOfSpace
from appliance.remote.link import Backoff, Link
from appliance.remote.observed import ObservedStore
from appliance.remote.store import Lane
from appliance.remote.throttle import Throttle
from tests.support.archive_box import Box, Sample, sample
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import CT_STORAGE, EXPLICIT

ZONE = ZoneInfo("Asia/Tokyo")
TICK_S = 600.0
IDLE_S = 120.0
EVICT_S = 1800.0
INSTANCE_BYTES = 16_000
DRAIN_STEP_S = 30.0


class Modality(NamedTuple):
    """Studies an hour on a working day, by night and at weekends, and instances in each."""

    title: str
    by_day: float
    by_night: float
    instances: int


HOSPITAL = (
    Modality("CT1", 3.0, 0.6, 6),
    Modality("MR1", 1.2, 0.0, 5),
    Modality("US1", 2.0, 0.1, 2),
)


class Study(NamedTuple):
    """A study that a modality sends at a moment."""

    at: datetime
    title: str
    number: int
    instances: int

    def samples(self) -> list[Sample]:
        return [sample(self.number, each, INSTANCE_BYTES) for each in range(self.instances)]


def schedule(start: datetime, days: int, seed: int) -> list[Study]:
    """Return what the modalities send, in order: spread over each hour, not by the clock."""
    draw = random.Random(seed)
    found = []
    for modality in HOSPITAL:
        carry = 0.0
        for hour in range(days * 24):
            begin = start + timedelta(hours=hour)
            local = begin.astimezone(ZONE)
            busy = local.weekday() < 5 and 8 <= local.hour < 18
            carry += (modality.by_day if busy else modality.by_night) * draw.uniform(0.7, 1.3)
            while carry >= 1.0:
                carry -= 1.0
                at = begin + timedelta(seconds=draw.uniform(0, 3600))
                count = max(1, round(modality.instances * draw.uniform(0.6, 1.4)))
                found.append((at, modality.title, count))
    found.sort()
    return [Study(at, title, 1000 + n, count) for n, (at, title, count) in enumerate(found)]


class _Wire:
    """The line: what is put goes through the throttle by the piece, and takes its time."""

    def __init__(self, store: FakeStore, throttle: Throttle, hospital: "Hospital") -> None:
        self._store = store
        self._throttle = throttle
        self._hospital = hospital
        self.down = False

    def __getattr__(self, name: str):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*args, **named):
            self._need()
            return found(*args, **named)

        return call

    def _need(self) -> None:
        self._hospital.receive()
        if self.down:
            raise CloudUnavailable("ask", "", "the line is down")

    def put(self, key, body, *, lane=Lane.NEW, **named):
        self._need()
        left = len(body) if isinstance(body, bytes) else body.size_bytes
        while left > 0:
            piece = min(left, self._throttle.piece_bytes() or left)
            self._throttle.take(piece, lane)
            left -= piece
            self._need()
        return self._store.put(key, body, lane=lane, **named)


class _WallClock(ManualClock):
    """The hospital's time for the thread that closes packs: it never waits on it."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now()

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    def wait(self, event, timeout_s):
        return event.wait()


class _Box(Box):
    @property
    def ingest(self) -> Ingest:
        if self._ingest is None:
            self._ingest = Ingest(
                self.files, _WallClock(self.clock), self.layout, self._writer, self._packs,
                self.index, self.space, self.fatal.append,
            )  # fmt: skip
            self._ingest.start()
        return self._ingest


class Point(NamedTuple):
    """What was forecast at a moment."""

    at: datetime
    pending_bytes: int
    used_bytes: int
    outlook: Outlook


class Hospital:
    """The node and its surroundings; driven by one thread."""

    def __init__(
        self, folder: Path, start: datetime, days: int, *, capacity_bytes: int, seed: int = 1,
        day_rate: float = 400.0, night_rate: float = 1000.0,
    ) -> None:  # fmt: skip
        self.clock = ManualClock(start)
        self.studies = schedule(start, days, seed)
        self._next = 0
        window = ThrottleWindow(
            from_minute=8 * 60, to_minute=18 * 60, rate_bytes_per_s=day_rate,
            days=("mon", "tue", "wed", "thu", "fri"),
        )  # fmt: skip
        self.timetable = Timetable(rate_bytes_per_s=night_rate, windows=(window,))
        self.throttle = throttle = Throttle(self.timetable, ZONE, self.clock)
        self.bucket = FakeStore(self.clock)
        self.wire = _Wire(self.bucket, throttle, self)
        self.link = Link(self.clock)
        store = ObservedStore(self.wire, self.link)
        self.box = _Box(folder, store, clock=self.clock, capacity_bytes=capacity_bytes)
        self.kept: dict[str, Sample] = {}
        self.refused_at: datetime | None = None
        self.verified: list[tuple[datetime, str]] = []
        self.points: list[Point] = []
        self._backoff = Backoff(source=random.Random(seed))
        self._not_before_s = 0.0
        self._next_tick_s = self._next_evict_s = 0.0
        self.watch = BacklogWatch(
            self.box.files, self.clock, self.box.layout, self.box.index, self.box.space,
            self.box.uplink, throttle, self.link, Alarms(),
        )  # fmt: skip
        self._indexer = self.box.indexer()

    def close(self) -> None:
        self.box.close()

    @property
    def now(self) -> datetime:
        return self.clock.now()

    # --- what comes

    def receive(self) -> None:
        """Have everything stored that the modalities have sent by now."""
        while self._next < len(self.studies) and self.studies[self._next].at <= self.now:
            study = self.studies[self._next]
            self._next += 1
            sender = Sender(study.title, "AZEKURA", "192.0.2.7")
            for each in study.samples():
                try:
                    self.box.ingest.store(
                        sender, CT_STORAGE, each.sop_instance_uid, EXPLICIT,
                        memoryview(each.dataset), each.sha256,
                    )  # fmt: skip
                except OutOfSpace:
                    self.refused_at = self.refused_at or self.now
                else:
                    self.kept[each.sop_instance_uid] = each

    # --- what the daemons' threads do

    def run(self, until: datetime | None = None, *, drained: bool = False) -> None:
        """Let time pass to a moment, or until nothing waits any more, or something is refused."""
        while self.refused_at is None:
            if until is not None and self.now >= until:
                return
            self._keep_house()
            if drained and self.empty:
                return
            if not self._upload_one():
                self.clock.advance(IDLE_S)

    @property
    def empty(self) -> bool:
        """Whether nothing waits for the bucket but what is still growing."""
        uplink = self.box.uplink
        return not (uplink.backlogged or uplink.busy or uplink._records)

    def _keep_house(self) -> None:
        self.receive()
        self.box.ingest._packs.close_due()
        self._indexer.run_once()
        uplink = self.box.uplink
        uplink._seal_closed()
        uplink._find_pending()
        now_s = self.clock.monotonic_s()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            self.watch.look()
            assert self.watch.outlook is not None
            used_bytes = self.box.space.used_bytes
            self.points.append(Point(self.now, self.pending_bytes, used_bytes, self.watch.outlook))
        if now_s >= self._next_evict_s and not self.wire.down:
            self._next_evict_s = now_s + EVICT_S
            self.box.evictor.keep_watermarks()

    @property
    def pending_bytes(self) -> int:
        with self.box.index.read() as view:
            return view.counts().pending_bytes

    def _upload_one(self) -> bool:
        """Do what one worker and the ledger's thread do; False when there is nothing to do."""
        uplink = self.box.uplink
        if self.clock.monotonic_s() < self._not_before_s or not uplink.backlogged:
            uplink._idle_count += 1  # a worker that finds nothing
            return False
        lane, pack_id = uplink._take()
        wait_s = uplink._upload_one(lane, pack_id, self._backoff)
        if wait_s:
            self._not_before_s = self.clock.monotonic_s() + wait_s
            return True
        names = [queued.record.pack_id for queued in uplink._records]
        self.box.write_ledger()
        self.verified += [(self.now, each) for each in names]
        return True

    # --- what came true

    def all_kept_are_right(self) -> int:
        """Compare every instance that was answered Success, byte for byte; return how many."""
        found = self.box.fetch()
        for uid, each in self.kept.items():
            got = found[uid]
            assert not isinstance(got, AzekuraError), got
            assert got == each.dataset
        return len(self.kept)

    def instance_bytes(self) -> float:
        """Return what an instance takes in packs, of all that was verified."""
        return self.box.uplink.drained_bytes / len(self.kept)

    def truly_full_s(self, point: Point, instance_bytes: float) -> float:
        """Return in how long the disk would have been full, by what really came afterwards."""
        used = float(point.used_bytes)
        for study in self.studies:
            if study.at > point.at:
                used += study.instances * instance_bytes
                if used > self.box.space.capacity_bytes:
                    return (study.at - point.at).total_seconds()
        raise AssertionError("the schedule is too short")

    def truly_drained_s(self, point: Point, instance_bytes: float, part: float) -> float:
        """Return in how long the backlog would have been empty, had the line come back then.

        By what really came afterwards; `part` of the throttle carries packs.
        """
        left, at = float(point.pending_bytes), point.at
        coming = [study for study in self.studies if study.at > point.at]
        while left > 0:
            rate = self.timetable.rate_at(at.astimezone(ZONE))
            assert rate is not None
            left -= rate * part * DRAIN_STEP_S
            at += timedelta(seconds=DRAIN_STEP_S)
            while coming and coming[0].at <= at:
                left += coming.pop(0).instances * instance_bytes
        return (at - point.at).total_seconds()


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def local(year: int, month: int, day: int, hour: int) -> datetime:
    """Return a moment by the hospital's clocks."""
    return datetime(year, month, day, hour, tzinfo=ZONE).astimezone(UTC)


def spaced(points: list[Point], apart: timedelta) -> Iterator[Point]:
    """Yield points at least so far apart."""
    last = None
    for point in points:
        if last is None or point.at - last >= apart:
            last = point.at
            yield point
