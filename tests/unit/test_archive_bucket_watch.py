"""While the bucket is unfit nothing relies on it; a line that is down is no such finding."""

import threading
from pathlib import Path

import pytest

from appliance.archive.bucket_watch import LOOK_S, SUSPECT_LOOK_S, BucketWatch
from appliance.archive.rungs import reached
from appliance.archive.status import (
    DISTRUST_S,
    UplinkStatus,
    bucket_trusted,
    write_uplink_status,
)
from appliance.archive.uplink import Uplink
from appliance.foundation.errors import CloudMisconfigured, CloudRefused
from appliance.remote.store import BucketFinding
from tests.support.archive_box import Box, sample
from tests.support.fake_store import FakeStore, Fault
from tests.support.manual_clock import ManualClock

UNLOCKED = BucketFinding("no_object_lock", "the bucket has no Object Lock", "Switch it on")
UNVERSIONED = BucketFinding("not_versioned", "versioning is off", "Switch it on")


@pytest.fixture
def watched(tmp_path: Path):
    """A node whose evictor minds the bucket's watch, and the watch."""
    clock = ManualClock()
    store = FakeStore(clock)
    box = Box(tmp_path, store, clock=clock)
    watch = BucketWatch(clock, store, needs_lock=True)
    box.evictor._bucket = watch
    yield box, watch
    box.close()


def test_a_finding_stands_until_the_bucket_answers_otherwise() -> None:
    """Neither a line that goes down nor a refused question ends it."""
    clock = ManualClock()
    store = FakeStore(clock)
    watch = BucketWatch(clock, store, needs_lock=True)
    assert (watch.trusted, watch.may_send) == (True, False)
    watch.look_if_due()
    assert (watch.trusted, watch.may_send, watch.problem) == (True, True, None)
    store.findings = [UNVERSIONED, UNLOCKED]
    watch.look_if_due()
    assert watch.trusted
    clock.advance(LOOK_S)
    watch.look_if_due()
    assert (watch.trusted, watch.may_send) == (False, False)
    assert "versioning is off; the bucket has no Object Lock" in watch.problem.sentence
    store.offline = True
    clock.advance(SUSPECT_LOOK_S)
    watch.look_if_due()
    assert not watch.trusted
    store.offline = False
    store.fail("check_bucket", Fault("before", CloudRefused("check", "", "403")))
    watch.look()
    assert not watch.trusted
    store.findings = []
    clock.advance(SUSPECT_LOOK_S)
    watch.look_if_due()
    assert (watch.may_send, watch.problem) == (True, None)


def test_a_missing_lock_is_no_finding_where_none_is_wanted() -> None:
    store = FakeStore()
    store.findings = [UNLOCKED]
    watch = BucketWatch(ManualClock(), store, needs_lock=False)
    watch.look()
    assert watch.may_send


def test_a_line_that_is_down_at_the_start_is_named_and_withdraws_no_trust() -> None:
    store = FakeStore()
    store.offline = True
    watch = BucketWatch(ManualClock(), store, needs_lock=True)
    watch.look()
    assert (watch.trusted, watch.may_send) == (True, False)
    assert watch.problem.condition == "cloud"


def test_a_restart_of_the_uplink_does_not_forget_a_finding() -> None:
    store = FakeStore()
    store.offline = True
    watch = BucketWatch(ManualClock(), store, needs_lock=True, trusted=False)
    watch.look()
    assert not watch.trusted
    assert watch.problem.condition == "bucket"


def test_nothing_is_evicted_while_the_bucket_is_unfit(watched) -> None:
    """By nobody: neither by the watermarks nor by hand, though each copy could be proved."""
    box, watch = watched
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()
    box.store.findings = [UNLOCKED]
    watch.look()
    box.evictor._high_water = box.evictor._low_water = 0.0
    assert box.evictor.keep_watermarks() == 0
    with pytest.raises(CloudMisconfigured, match="Object Lock"):
        box.evictor.evict_pack(pack_id)
    assert box.pack(pack_id).local
    box.store.findings = []
    watch.look()
    assert box.evictor.keep_watermarks() > 0


def test_cloud_and_locked_are_held_while_the_bucket_is_unfit(watched) -> None:
    """`local` is what lies here; with the bucket fit again, every rung is back."""
    box, _ = watched
    each = sample(1, 1)
    box.store_sample(each)
    box.drain()
    uid = each.sop_instance_uid
    with box.index.read() as view:
        good = reached(view, [uid], bucket_trusted=True)[uid]
        held = reached(view, [uid], bucket_trusted=False)[uid]
    assert (good.local, good.cloud, good.locked) == (True, True, True)
    assert (held.local, held.cloud, held.locked) == (True, False, False)
    box.evictor.evict_pack(box.pack_ids()[0])
    with box.index.read() as view:
        assert not reached(view, [uid], bucket_trusted=False)[uid].local


def test_silence_of_the_uplink_withdraws_no_trust(watched) -> None:
    """No status, or an old one without a finding: what was verified stays so."""
    box, _ = watched

    def say(trusted: bool) -> None:
        status = UplinkStatus(
            box.clock.now().timestamp(), 1, "up", 1, 0.0, None, [], bucket_trusted=trusted
        )
        write_uplink_status(box.files, box.layout, status)

    assert bucket_trusted(box.layout, box.clock)
    say(True)
    box.clock.advance(10 * DISTRUST_S)
    assert bucket_trusted(box.layout, box.clock)
    say(False)
    box.clock.advance(3600)
    assert not bucket_trusted(box.layout, box.clock)
    box.clock.advance(DISTRUST_S)
    assert bucket_trusted(box.layout, box.clock)


def test_nothing_is_sent_to_an_unfit_bucket_and_all_once_it_is_fit(watched) -> None:
    """The uplink's own threads: no request but the look, one problem, then the backlog drains."""
    box, watch = watched
    box.store_sample(sample(1, 1))
    box.close_packs()
    box.indexer().catch_up()
    box.store.missing = True
    watch.look()
    idle = threading.Event()

    class Clock(ManualClock):
        def wait(self, event, timeout_s):
            idle.set()
            return event.wait(min(timeout_s, 0.01))

    uplink = Uplink(
        box.files, Clock(), box.layout, box.index, box.ledger(), box.upload(), "test",
        box.fatal.append, watch,
    )  # fmt: skip
    uplink.start()
    try:
        assert idle.wait(10)
        assert [each.condition for each in uplink.problems()] == ["bucket"]
        assert [name for name, _ in box.store.requests if name != "check_bucket"] == []
        box.store.missing = False
        watch.look()
        verified = threading.Event()
        for _ in range(2000):
            with box.index.read() as view:
                if view.counts().pending_instances == 0:
                    verified.set()
                    break
            verified.wait(0.01)
        assert verified.is_set()
        assert uplink.problems() == []
    finally:
        uplink.stop()
