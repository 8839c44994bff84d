"""Clocks that are wrong: this box's or the bucket's, by hours or by decades, forward or back."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.archive.ledger_entry import FIRST_PREVIOUS, check_link
from appliance.archive.rebuild import rebuild
from appliance.foundation.errors import CloudMisconfigured
from appliance.remote.link import Backoff
from tests.support.archive_box import DAY_S, NODE, Box, entries, packs_named, sample
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import START_AT, ManualClock

IN_1970 = datetime(1970, 1, 2, tzinfo=UTC)
IN_2099 = datetime(2099, 12, 31, tzinfo=UTC)


class Pair:
    """A box and a bucket with a clock each."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.theirs = ManualClock(), ManualClock()
        self.box = Box(folder, FakeStore(self.theirs), clock=self.ours)

    def locks(self) -> set[datetime]:
        """Return until when the versions in the bucket are locked."""
        store = self.box.store
        return {version.lock.until for found in store._keys.values() for version in found}


@pytest.fixture
def pair(tmp_path: Path):
    found = Pair(tmp_path)
    yield found
    found.box.close()


@pytest.mark.parametrize("hours", [2, -2])
def test_a_lock_is_dated_by_the_buckets_clock(pair: Pair, hours: int) -> None:
    """This box is two hours off: no lock begins or ends by its clock."""
    pair.ours.set(START_AT + timedelta(hours=hours))
    pair.box.store_sample(sample(1, 1))
    pair.box.drain()
    assert pair.locks() == {START_AT + timedelta(seconds=30 * DAY_S)}
    assert pair.box.pack(pair.box.pack_ids()[0]).state == "cached"


@pytest.mark.parametrize("wrong", ["ours", "theirs"])
@pytest.mark.parametrize("at", [IN_1970, IN_2099])
def test_an_absurd_date_locks_nothing(pair: Pair, wrong: str, at: datetime) -> None:
    """Received as ever, sent when the clocks agree; compliance mode forgives no date of 2099."""
    box = pair.box
    box.store_sample(sample(1, 1))
    assert box.uplink.sequence == 1
    before = box.store.keys()
    getattr(pair, wrong).set(at)
    box.store_sample(sample(2, 1))
    box.close_packs()
    box.indexer().catch_up()
    uplink = box.uplink
    uplink._seal_closed()
    uplink._find_pending()
    waits_s = [uplink._upload_one(*uplink._take(), Backoff()) for _ in range(2)]
    assert waits_s == [60.0, 60.0]
    (problem,) = uplink.problems()
    assert str(at.year) in problem.sentence
    assert "clock" in problem.hint
    assert box.store.keys() == before
    assert len(box.fetch()) == 2
    getattr(pair, wrong).set(START_AT)
    uplink._find_pending()
    box.upload_all()
    box.write_ledger()
    assert uplink.problems() == []
    assert sorted(packs_named(box.store, box.recovery)) == box.pack_ids()
    assert pair.locks() == {START_AT + timedelta(seconds=30 * DAY_S)}


def test_a_ledger_is_not_begun_under_an_absurd_clock(pair: Pair) -> None:
    """The entry lies on the disk, unlocked nowhere; with the clock set right it is put."""
    pair.ours.set(IN_2099)
    with pytest.raises(CloudMisconfigured):
        pair.box.uplink  # noqa: B018
    assert pair.box.store.keys() == []
    pair.ours.set(START_AT)
    assert pair.box.uplink.sequence >= 1
    assert pair.locks() == {START_AT + timedelta(seconds=30 * DAY_S)}


def test_the_ledgers_order_is_its_sequence(pair: Pair) -> None:
    """A clock that goes back by a day, and forward, between entries: chain and index are whole."""
    box = pair.box
    for study, day in enumerate((2, 1, 3, 2)):
        pair.ours.set(START_AT.replace(day=day))
        pair.theirs.set(START_AT.replace(day=day))
        box.store_sample(sample(study, 1))
        box.drain()
    found = entries(box.store, box.recovery)
    signer, previous = box.uplink._ledger._signing_key.public_text, FIRST_PREVIOUS
    for sequence, entry in enumerate(found, 1):
        check_link(entry, NODE, sequence, previous, {signer})
        previous = entry.header_sha256
    times = [entry.header.written_at for entry in found]
    assert times != sorted(times)
    served = box.fetch()
    assert len(served) == 4
    rebuild(box.layout, box.index, NODE, box.identities, box.store, lambda _: None)
    assert box.fetch() == served
    assert {box.pack(each).state for each in box.pack_ids()} == {"cached"}


def test_packs_close_by_time_that_passes(pair: Pair) -> None:
    """Whatever the wall clock is set to, a quiet study's pack closes after its ten seconds."""
    box = pair.box
    box.store_sample(sample(1, 1))
    packs = box.ingest._packs
    for at in (IN_2099, IN_1970, START_AT + timedelta(hours=2)):
        pair.ours.set(at)
        assert packs.close_due() == 0
    pair.ours.advance(10.5)
    pair.ours.set(IN_1970)
    assert packs.close_due() == 1


def test_a_clock_that_jumps_loses_and_doubles_nothing(pair: Pair) -> None:
    """Each step of an instance's way under another date of this box, in hours."""
    box = pair.box
    for study, hours in enumerate((0, 2, -2, 20, -20)):
        pair.ours.set(START_AT + timedelta(hours=hours))
        box.store_sample(sample(study, 1))
        box.close_packs()
        pair.ours.set(START_AT - timedelta(hours=hours))
        box.indexer().catch_up()
        box.upload_all()
        pair.ours.set(START_AT)
        box.write_ledger()
    assert box.fetch() == {
        each.sop_instance_uid: each.dataset for each in (sample(study, 1) for study in range(5))
    }
    assert sorted(packs_named(box.store, box.recovery)) == box.pack_ids()
    assert len(list(box.store.versions("packs/"))) == 5
