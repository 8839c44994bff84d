"""Locks follow a study's life: bucket first, then ledger, then index; and after any crash."""

import hashlib
from datetime import timedelta

import msgspec
import pytest

from appliance.archive.checkpoint_name import CheckpointName, Range
from appliance.archive.ledger_entry import entry_key
from appliance.archive.records import Retained
from appliance.archive.retain import EXTENSIONS_PER_TURN_MAX, FAILED_RETRY_S
from appliance.foundation.clock import to_microseconds
from appliance.foundation.errors import CloudRefused, CloudUnavailable
from appliance.index.facts import PackFacts
from appliance.remote.store import Lock
from tests.support.archive_box import DAY_S, NODE, Box, entries, restarted, sample
from tests.support.fake_store import FakeStore, Fault, lost_answer, no_answer
from tests.support.index_facts import PACK_IDS, cloud_copy, instance
from tests.support.keeping import received, retainer
from tests.support.manual_clock import ManualClock


def grown(box: Box, *, days: float = 40) -> tuple[str, str]:
    """Return the ids of two packs of a study, the second received so many days later."""
    (old,) = received(box, sample(1, 1))
    box.clock.advance(days * DAY_S)
    (new,) = received(box, sample(1, 2))
    return old, new


def lock_of(box: Box, pack_id: str) -> Lock:
    cloud = box.pack(pack_id).cloud
    return box.store.head(cloud.key, cloud.version_id).lock


def until_us(box: Box, pack_id: str) -> int:
    return box.pack(pack_id).cloud.locked_until_us


def retained(box: Box) -> list[Retained]:
    records = [record for entry in entries(box.store, box.recovery) for record in entry.records]
    return [each for each in records if isinstance(each, Retained)]


def test_a_study_that_goes_on_keeps_its_older_packs_as_long(box: Box) -> None:
    """The old pack's lock, read back, is the new one's; then the ledger and the index say so."""
    old, new = grown(box)
    each = retainer(box)
    assert each.run_once() == 1
    assert lock_of(box, old) == lock_of(box, new)
    assert retained(box) == []
    assert until_us(box, old) < until_us(box, new)
    box.write_ledger()
    (record,) = retained(box)
    assert (record.pack_id, record.locked_until_us) == (old, until_us(box, new))
    assert until_us(box, old) == until_us(box, new)
    assert each.run_once() == 0


def test_what_names_the_pack_is_locked_as_long(box: Box) -> None:
    """Its ledger entry, and a checkpoint over that entry; another checkpoint is let be."""
    old, new = grown(box)
    short = Lock("COMPLIANCE", box.clock.now() + timedelta(days=1))
    spans = (Range(1, 1, 3), Range(1, 7, 9))
    over, beside = (CheckpointName(NODE, span, "0123abcd").key for span in spans)
    for key in (over, beside):
        box.store.put(key, b"x", sha256=hashlib.sha256(b"x").digest(), lock=short)
    retainer(box).run_once()
    latest = lock_of(box, new)
    named = box.pack(old).cloud
    assert box.store.head(entry_key(named.node, named.sequence)).lock == latest
    assert box.store.head(over).lock == latest
    assert box.store.head(beside).lock == short


def test_a_pack_of_another_node_is_kept_as_long(box: Box) -> None:
    """The site is gone, its standby takes the next instance: the site's pack and entry follow."""
    box.clock.advance(40 * DAY_S)
    (new,) = received(box, sample(1, 2))
    early = Lock("COMPLIANCE", box.clock.now() - timedelta(days=10))
    own, other = box.pack(new).cloud, PACK_IDS[0]
    facts = msgspec.structs.replace(
        cloud_copy(0, sequence=7, locked=to_microseconds(early.until)), node="site-z",
        lock_mode=early.mode, version_id=box.store.seed("packs/z", b"pack"), key="packs/z",
    )  # fmt: skip
    entry = box.store.seed(entry_key("site-z", 7), b"entry")
    theirs = instance(sample(1, 1).study, sop="1.2.3")
    with box.index.write() as txn:
        txn.apply_pack(PackFacts(other, "site-z", [theirs], local=False, size=10, cloud=facts))
    assert retainer(box).run_once() == 1
    latest = lock_of(box, new)
    assert box.store.head("packs/z", facts.version_id).lock == latest
    assert box.store.head(entry_key("site-z", 7), entry).lock == latest
    box.write_ledger()
    assert until_us(box, other) == own.locked_until_us


def test_less_than_thirty_days_move_nothing(box: Box) -> None:
    """A study that is stored over some weeks costs no request for each of its packs."""
    grown(box, days=29)
    asked = len(box.store.requests)
    assert retainer(box).run_once() == 0
    assert len(box.store.requests) == asked


def test_other_studies_are_let_be(box: Box) -> None:
    (old,) = received(box, sample(1, 1))
    box.clock.advance(40 * DAY_S)
    received(box, sample(2, 1))
    before = lock_of(box, old)
    assert retainer(box).run_once() == 0
    assert lock_of(box, old) == before


@pytest.mark.parametrize("written", [False, True])
def test_a_crash_on_the_way_is_made_good(box: Box, written: bool) -> None:
    """Between bucket and ledger, or before either: the next start does what is left, once."""
    old, new = grown(box)
    if written:
        assert retainer(box).run_once() == 1  # the record is queued, and lost
    else:
        box.store.fail("extend_lock", lost_answer())
        with pytest.raises(CloudUnavailable):
            retainer(box).run_once()
    assert lock_of(box, old) == lock_of(box, new)
    again = restarted(box)
    again.store.requests.clear()
    assert retainer(again).run_once() == 1
    # What was moved before is not moved again; the entry that names it may still have to be.
    assert not any(
        operation == "extend_lock" and key.startswith("packs/")
        for operation, key in again.store.requests
    )
    again.write_ledger()
    assert until_us(again, old) == until_us(again, new)
    assert len(retained(again)) == 1
    again.close()


def test_a_lock_that_the_bucket_does_not_show_is_no_record(box: Box) -> None:
    """Read back means read back: a problem is shown, and the next try comes later."""
    old, _ = grown(box)
    box.store.extend_lock = lambda *_: None
    each = retainer(box)
    assert each.run_once() == 0
    (problem,) = each.problems()
    assert problem.condition == "retention"
    box.write_ledger()
    assert retained(box) == []
    del box.store.extend_lock
    assert each.run_once() == 0
    box.clock.advance(FAILED_RETRY_S)
    assert each.run_once() == 1
    assert each.problems() == []
    assert until_us(box, old) < to_microseconds(lock_of(box, old).until)


def test_a_refused_pack_stops_no_other(box: Box) -> None:
    received(box, sample(1, 1))
    received(box, sample(2, 1))
    box.clock.advance(40 * DAY_S)
    received(box, sample(1, 2))
    received(box, sample(2, 2))
    box.store.fail("extend_lock", Fault("before", CloudRefused("extend_lock", "", "403")))
    each = retainer(box)
    assert each.run_once() == 1
    assert len(each.problems()) == 1


def test_a_line_that_is_down_ends_the_turn(box: Box) -> None:
    grown(box)
    box.store.fail("head", no_answer())
    each = retainer(box)
    with pytest.raises(CloudUnavailable):
        each.run_once()
    assert each.problems() == []
    assert each.run_once() == 1


def test_a_turn_is_bounded_and_the_next_goes_on(box: Box, monkeypatch) -> None:
    """However much is due, a turn asks for a number of packs; none is forgotten or done twice."""
    monkeypatch.setattr("appliance.archive.retain.EXTENSIONS_PER_TURN_MAX", 2)
    assert EXTENSIONS_PER_TURN_MAX == 32
    old = [pack for n in range(5) for pack in received(box, sample(1, n))]
    box.clock.advance(40 * DAY_S)
    (new,) = received(box, sample(1, 9))
    each = retainer(box)
    counts = [each.run_once() for _ in range(4)]
    assert counts == [2, 2, 1, 0]
    box.write_ledger()
    assert {until_us(box, pack) for pack in old} == {until_us(box, new)}


def test_an_absurd_date_is_not_followed(box: Box) -> None:
    """Under compliance nobody could undo it: a pack locked until 2199 drags no other along."""
    old, new = grown(box)
    with box.index.write() as txn:
        txn.retain(new, until_us(box, new) + 200 * 366 * 86_400_000_000)
    each = retainer(box)
    before = lock_of(box, old)
    assert each.run_once() == 0
    assert lock_of(box, old) == before
    assert "absurd" in each.problems()[0].sentence


def test_packs_stored_without_locks_are_given_none(tmp_path) -> None:
    clock = ManualClock()
    box = Box(tmp_path, FakeStore(clock), clock=clock, lock_mode="off")
    old, _ = grown(box)
    assert retainer(box).run_once() == 0
    assert lock_of(box, old) is None
    box.close()
