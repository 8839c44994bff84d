"""Days of outage at a CT's pace, in compressed time: nothing lost, order kept, forecasts that hold.

The real parts of a node under a clock of the test's; see `tests.support.hospital`. With -s the
forecasts are printed beside what came true.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from appliance.archive.layout import pack_created_at
from appliance.archive.senders import pack_sender
from appliance.archive.turns import NEW_FOR_S
from appliance.remote.throttle import AIM
from tests.support.archive_box import entries
from tests.support.hospital import ZONE, Hospital, Point, hours, local, spaced

WITHIN = 0.20
ODD_FRACTION = 0.1
SLACK_S = 900.0  # a look every ten minutes can't tell more
AMPLE_BYTES = 80_000_000
TIGHT_BYTES = 20_000_000


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Where a test puts the hospital that it makes, so that it is ended."""
    made: list[Hospital] = []
    yield made
    for each in made:
        each.close()


def _row(kind: str, point: Point, forecast_s: float | None, truth_s: float) -> str:
    said = "never" if forecast_s is None else f"{forecast_s / 3600:8.2f}"
    error = "" if forecast_s is None else f"{(forecast_s / truth_s - 1) * 100:+6.1f} %"
    at = point.at.astimezone(ZONE).strftime("%a %H:%M")
    pending = f"{point.pending_bytes / 1e6:8.2f}"
    return f"{at}  {kind:<6}  {pending}  {said:>8}  {truth_s / 3600:8.2f}  {error}"


def _holds(forecast_s: float | None, truth_s: float) -> bool:
    if forecast_s is None:
        return False
    return abs(forecast_s - truth_s) <= max(WITHIN * truth_s, SLACK_S)


def _told(rows: list[tuple[str, Point, float | None, float]]) -> None:
    """Print the table; the forecasts must hold, but for an hour now and then that was odd."""
    print("\nwhen       of      pending MB  forecast h     true h   error")
    for row in rows:
        print(_row(*row))
    wrong = [_row(*row) for row in rows if not _holds(row[2], row[3])]
    assert len(wrong) <= ODD_FRACTION * len(rows), wrong
    assert len(rows) >= 10


def _outage(
    made: list[Hospital],
    folder: Path,
    capacity_bytes: int,
    start: datetime,
    down: datetime,
    up: datetime,
) -> tuple[Hospital, datetime, datetime, int]:
    """Live from `start` on; the line is down from `down` to `up`; then all is drained."""
    hospital = Hospital(folder, start, 40, capacity_bytes=capacity_bytes)
    made.append(hospital)
    hospital.run(down)
    hospital.run(drained=True)
    hospital.wire.down = True
    verified = len(hospital.verified)
    hospital.run(up)
    assert len(hospital.verified) == verified
    assert _alarms(hospital) >= {"link_down", "pending_age"}
    hospital.wire.down = False
    back, sent = hospital.now, hospital.throttle.sent_bytes
    hospital.run(drained=True)
    _drained_at_the_throttle(hospital, back, sent)
    emptied = hospital.now
    hospital.run(emptied + hours(1))
    assert _alarms(hospital) == set()
    return hospital, back, emptied, verified


def _alarms(hospital: Hospital) -> set[str]:
    return {each.condition for each in hospital.watch.problems()}


def _forecasts(
    hospital: Hospital, down: datetime, back: datetime, emptied: datetime, apart: timedelta
) -> None:
    """Compare what was forecast in the outage and in the drain with what came true."""
    size = hospital.instance_bytes()
    history = hospital.watch._recorder.history
    part = AIM * min(1.0, history.drained_bytes / history.sent_bytes)
    (at_return,) = [each for each in hospital.points if each.at <= back][-1:]
    really_s = (emptied - at_return.at).total_seconds()
    # What would have been at other moments is summed up; at this one it was seen.
    assert hospital.truly_drained_s(at_return, size, part) == pytest.approx(really_s, rel=0.1)
    rows = []
    for point in spaced([each for each in hospital.points if down < each.at <= back], apart):
        assert point.outlook.after_return
        full_s = hospital.truly_full_s(point, size)
        rows.append(("full", point, point.outlook.time_to_full_s, full_s))
        empty_s = hospital.truly_drained_s(point, size, part)
        rows.append(("drain", point, point.outlook.time_to_drain_s, empty_s))
    draining = [each for each in hospital.points if back < each.at < emptied]
    for point in spaced(draining, apart / 3):
        left_s = (emptied - point.at).total_seconds()
        rows.append(("drain", point, point.outlook.time_to_drain_s, left_s))
    _told(rows)


def _order_is_kept(hospital: Hospital, verified_before: int) -> None:
    """Of each peer what was backlog, and what was new, went in the order in which it came."""
    ledger = hospital.box
    senders = {
        pack_id: pack_sender(ledger.layout.sealed_path(pack_id)) for _, pack_id in hospital.verified
    }
    after = hospital.verified[verified_before:]
    assert {senders[pack_id] for _, pack_id in after} == {"CT1", "MR1", "US1"}
    for title in ("CT1", "MR1", "US1"):
        lanes: dict[bool, list[str]] = {True: [], False: []}
        for at, pack_id in after:
            if senders[pack_id] == title:
                age_s = (at - pack_created_at(pack_id)).total_seconds()
                # What took its time on the line was younger when its turn came.
                if abs(age_s - NEW_FOR_S) > 600:
                    lanes[age_s > NEW_FOR_S].append(pack_id)
        assert lanes[True], title
        for packs in lanes.values():
            assert packs == sorted(packs)


def _nothing_is_lost(hospital: Hospital) -> None:
    """All that was answered Success is here byte for byte, and in the ledger once."""
    assert hospital.refused_at is None
    assert hospital.all_kept_are_right() == len(hospital.kept) > 100
    named: list[str] = []
    for entry in entries(hospital.bucket, hospital.box.recovery):
        for record in entry.records:
            named += [each.sop_instance_uid for each in getattr(record, "instances", ())]
    assert sorted(named) == sorted(hospital.kept)


def _drained_at_the_throttle(hospital: Hospital, back: datetime, sent_before: int) -> None:
    """What the line was given was used: what left is what the timetable allows, and no more."""
    seconds = (hospital.now - back).total_seconds()
    allowed = sum(
        (hospital.timetable.rate_at((back + timedelta(seconds=each)).astimezone(ZONE)) or 0.0) * 60
        for each in range(0, int(seconds), 60)
    )
    sent = hospital.throttle.sent_bytes - sent_before
    assert 0.9 * allowed <= sent <= 1.01 * allowed


def test_half_a_day_of_outage(hospital: list[Hospital], tmp_path: Path) -> None:
    """A night and a day to know the hours by, a working day without the line, and its evening."""
    down = local(2026, 3, 4, 7)
    found, back, emptied, verified = _outage(
        hospital, tmp_path, TIGHT_BYTES, local(2026, 3, 3, 3), down, local(2026, 3, 4, 17)
    )
    _forecasts(found, down + hours(4), back, emptied, hours(1))
    _order_is_kept(found, verified)
    _nothing_is_lost(found)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_72_hours_of_outage(hospital: list[Hospital], tmp_path: Path) -> None:
    """Five days to know the hours by, three without the line, and the drain by day and by night."""
    down = local(2026, 3, 10, 6)
    found, back, emptied, verified = _outage(
        hospital, tmp_path, AMPLE_BYTES, local(2026, 3, 5, 0), down, down + hours(72)
    )
    _forecasts(found, down + hours(4), back, emptied, hours(3))
    _order_is_kept(found, verified)
    _nothing_is_lost(found)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_disk_is_full_when_it_was_foretold(hospital: list[Hospital], tmp_path: Path) -> None:
    """A small disk, a line that never comes back: the first refusal comes as the forecasts said."""
    down = local(2026, 3, 10, 6)
    found = Hospital(tmp_path, local(2026, 3, 8, 0), 20, capacity_bytes=16_000_000)
    hospital.append(found)
    found.run(down)
    found.wire.down = True
    found.run(down + hours(200))
    assert found.refused_at is not None
    assert _alarms(found) >= {"time_to_full", "room"}
    points = [each for each in found.points if down + hours(3) < each.at < found.refused_at]
    _told(
        [
            (
                "full",
                each,
                each.outlook.time_to_full_s,
                (found.refused_at - each.at).total_seconds(),
            )
            for each in spaced(points, hours(2))
        ]
    )
