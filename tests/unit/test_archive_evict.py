"""Making room: what may go, on whose word, in which order."""

import os
from pathlib import Path

import pytest

from appliance.archive.evict import UNPROVED_MAX
from appliance.archive.indexer import mark_found
from appliance.foundation.errors import (
    CloudUnavailable,
    Damaged,
    NotFound,
    ObjectMissing,
    Refused,
)
from appliance.foundation.files import FileSystem
from appliance.remote.store import Lock
from tests.support.archive_box import Box, sample
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock


def _filled(tmp_path: Path, packs: int = 10, **options) -> Box:
    """A cache of `packs` equal packs, verified, each used after the one before."""
    clock = ManualClock()
    box = Box(tmp_path / "box", FakeStore(clock), clock=clock, **options)
    for study in range(packs):
        box.store_sample(sample(study, 1, 20_000))
        clock.advance(1)
    box.drain()
    with box.index.write() as txn:
        for number, pack_id in enumerate(box.pack_ids()):
            txn.touch([pack_id], 10**16 + number)
    return box


def _sized(box: Box, capacity_bytes: float) -> Box:
    box.space.capacity_bytes = int(capacity_bytes)
    return box


def test_pending_packs_stay_whatever_is_asked(box: Box) -> None:
    box.store_sample(sample(1, 1))
    box.close_packs()
    box.indexer().catch_up()
    (pack_id,) = box.pack_ids()
    with pytest.raises(Refused, match="only copy"):
        box.evictor.evict_pack(pack_id)
    assert box.evictor.evict_study(sample(1, 1).study) == (0, 1)
    _sized(box, 1)
    assert box.evictor.keep_watermarks() == 0
    assert os.path.exists(box.layout.closed_path(pack_id))


def test_the_least_recently_used_go_down_to_the_low_mark(tmp_path: Path) -> None:
    box = _filled(tmp_path)
    packs = box.pack_ids()
    used = box.space.measure()
    with box.index.write() as txn:
        txn.touch(packs[:3], 2 * 10**16)  # somebody looked at the oldest
    _sized(box, used / 0.95)
    freed = box.evictor.keep_watermarks()
    assert box.space.measure() == used - freed <= used / 0.95 * 0.8
    assert set(packs) - set(box.sealed_ids()) == set(packs[3:5])
    assert box.evictor.keep_watermarks() == 0
    box.close()


def test_a_full_disk_counts_like_a_full_cache(tmp_path: Path) -> None:
    """The cache is configured larger than the disk: what the disk holds is kept to the marks."""
    box = _filled(tmp_path)
    box.space._files = _Small(box.space.reserve_bytes)
    assert box.evictor.keep_watermarks() > 0
    assert len(box.sealed_ids()) in {7, 8}
    box.close()


class _Small(FileSystem):
    def __init__(self, free: int) -> None:
        self._free = free

    def free_bytes(self, path):
        return self._free


def test_pinned_studies_stay_and_hide_nobody(tmp_path: Path) -> None:
    """However many are pinned, the others are found behind them."""
    box = _filled(tmp_path, 80)
    for study in range(70):
        box.pins.pin(sample(study, 1).study)
    packs = box.pack_ids()
    _sized(box, box.space.measure())
    box.evictor.keep_watermarks()
    assert set(box.sealed_ids()) == set(packs[:70])
    with pytest.raises(Refused, match="pinned"):
        box.evictor.evict_study(sample(1, 1).study)
    box.close()


@pytest.mark.parametrize("lie", ["size", "checksum", "lock", "shorter lock"])
def test_a_bucket_that_says_otherwise_keeps_the_pack(box: Box, lie: str) -> None:
    """Fresh proof or nothing: size, checksum and lock are what was read back then."""
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()
    version = box.store._keys[box.pack(pack_id).cloud.key][0]
    if lie == "size":
        version.content += b"x"
    elif lie == "checksum":
        version.checksum = version.checksum._replace(value="AAAA")
    elif lie == "lock":
        version.lock = None
    else:
        version.lock = Lock("COMPLIANCE", box.clock.now())
    with pytest.raises(Damaged):
        box.evictor.evict_pack(pack_id)
    assert box.pack(pack_id).state == "cached"
    assert box.sealed_ids() == [pack_id]
    _sized(box, 1)
    with pytest.raises(Damaged):
        box.evictor.keep_watermarks()


def test_one_lost_object_does_not_keep_the_rest(tmp_path: Path) -> None:
    """It is named, and everything else that can be proved goes."""
    box = _filled(tmp_path)
    first = box.pack_ids()[0]
    box.store._keys.pop(box.pack(first).cloud.key)
    _sized(box, box.space.measure())
    with pytest.raises(ObjectMissing):
        box.evictor.keep_watermarks()
    assert first in box.sealed_ids()
    assert len(box.sealed_ids()) in {7, 8}
    box.close()


def test_a_bucket_that_lost_many_is_believed_no_more(tmp_path: Path) -> None:
    box = _filled(tmp_path)
    lost = box.pack_ids()[:UNPROVED_MAX]
    for pack_id in lost:
        box.store._keys.pop(box.pack(pack_id).cloud.key)
    _sized(box, 1)
    with pytest.raises(ObjectMissing):
        box.evictor.keep_watermarks()
    assert len(box.sealed_ids()) == 10
    box.close()


def test_no_bucket_no_eviction(tmp_path: Path) -> None:
    box = _filled(tmp_path)
    _sized(box, 1)
    box.store.offline = True
    with pytest.raises(CloudUnavailable):
        box.evictor.keep_watermarks()
    assert len(box.sealed_ids()) == 10
    box.close()


def test_the_index_is_told_before_the_file_goes(box: Box, monkeypatch) -> None:
    """A crash in between leaves a file, never an index that promises one; the next start counts
    it as cached again."""
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()

    class Crash(BaseException):
        pass

    def crash(_path):
        assert box.pack(pack_id).state == "evicted"
        raise Crash

    monkeypatch.setattr(box.files, "unlink", crash)
    with pytest.raises(Crash):
        box.evictor.evict_pack(pack_id)
    monkeypatch.undo()
    assert mark_found(box.layout, box.index) == 1
    assert box.pack(pack_id).state == "cached"


def test_a_reader_goes_on_while_its_pack_is_evicted(box: Box) -> None:
    each = sample(1, 1, 300_000)
    box.store_sample(each)
    box.drain()
    (pack_id,) = box.pack_ids()
    opened = box.retrieval.open_all(box.served())
    _, at_hand = next(opened)
    box.evictor.evict_pack(pack_id)
    assert bytes(at_hand.dataset) == each.dataset
    opened.close()


def test_a_study_that_is_not_here_is_said_so(box: Box) -> None:
    with pytest.raises(NotFound):
        box.evictor.evict_study("1.2.3")


def test_the_proof_is_remembered(box: Box) -> None:
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()
    box.clock.advance(1000)
    box.evictor.evict_pack(pack_id)
    assert box.pack(pack_id).last_verified_us == box.clock.now().timestamp() * 1e6
