"""Opening instances: from disk, from the bucket, from another copy; checked before given out."""

import os
from pathlib import Path

import pytest

from appliance.archive.extent import Extent
from appliance.archive.retrieval import (
    LARGE_BYTES,
    READERS_KEPT_MAX,
    Opened,
    PackReaders,
    Retrieval,
)
from appliance.foundation.errors import (
    AzekuraError,
    CloudUnavailable,
    Damaged,
    OutOfSpace,
)
from tests.support.archive_box import Box, open_descriptors, sample
from tests.support.mending import wait_for_recalls

MIB = 2**20


def _damage(box: Box, pack_id: str, each) -> None:
    for path in box.layout.candidates(pack_id):
        if os.path.exists(path):
            raw = bytearray(Path(path).read_bytes())
            raw[raw.index(each.dataset[-50:])] ^= 1
            Path(path).write_bytes(raw)
            return


def _expected(*samples) -> dict[str, bytes]:
    return {each.sop_instance_uid: each.dataset for each in samples}


def test_pending_cached_and_evicted_are_served_alike(box: Box) -> None:
    evicted, cached, pending = sample(1, 1), sample(2, 1), sample(3, 1)
    box.store_sample(evicted)
    box.drain()
    box.evictor.evict_pack(box.pack_ids()[0])
    box.store_sample(cached)
    box.drain()
    box.store_sample(pending)
    box.indexer().run_once()
    assert box.fetch() == _expected(evicted, cached, pending)


def test_a_damaged_local_copy_is_replaced_from_the_bucket(box: Box) -> None:
    """Silent bit rot in the cache: the reader gets the right bytes, and the cache is repaired."""
    samples = [sample(1, number) for number in range(3)]
    for each in samples:
        box.store_sample(each)
    box.drain()
    (pack_id,) = box.pack_ids()
    _damage(box, pack_id, samples[1])
    assert box.fetch() == _expected(*samples)
    wait_for_recalls(box)
    assert box.fetch() == _expected(*samples)
    box.store.offline = True
    assert box.fetch() == _expected(*samples)


def test_a_damaged_copy_is_replaced_by_one_in_another_pack(box: Box) -> None:
    """Pending, damaged, and sent again by the modality: the good copy is found."""
    each = sample(1, 1)
    box.store_sample(each)
    box.close_packs()
    box.indexer().catch_up()
    (pack_id,) = box.pack_ids()
    _damage(box, pack_id, each)
    box.store_sample(each)
    box.close_packs()
    box.indexer().catch_up()
    assert len(box.pack_ids()) == 2
    assert box.fetch() == _expected(each)


def test_a_damaged_only_copy_is_an_error_and_never_shown(box: Box) -> None:
    each, good = sample(1, 1), sample(1, 2)
    box.store_sample(each)
    box.store_sample(good)
    box.close_packs()
    box.indexer().catch_up()
    _damage(box, box.pack_ids()[0], each)
    found = box.fetch()
    assert isinstance(found[each.sop_instance_uid], Damaged)
    assert found[good.sop_instance_uid] == good.dataset


def test_a_pack_that_went_after_the_selection_is_recalled(box: Box) -> None:
    """Evicted between C-MOVE's selection and its turn."""
    each = sample(1, 1)
    box.store_sample(each)
    box.drain()
    wanted = box.served()
    box.evictor.evict_pack(box.pack_ids()[0])
    assert box.fetch(wanted) == _expected(each)


def test_a_pack_that_came_back_after_the_selection_is_not_fetched(box: Box) -> None:
    each = sample(1, 1)
    box.store_sample(each)
    box.drain()
    (pack_id,) = box.pack_ids()
    box.evictor.evict_pack(pack_id)
    wanted = box.served()
    box.recaller.recall(pack_id, box.pack(pack_id).cloud)
    box.store.requests.clear()
    assert box.fetch(wanted) == _expected(each)
    assert box.store.requests == []


def test_cached_instances_come_while_the_line_is_down(box: Box) -> None:
    """What is here is served; what is not fails, with the reason, and waits for the line once."""
    for study in range(5):
        box.store_sample(sample(study, 1))
    box.drain()
    for pack_id in box.pack_ids()[:4]:
        box.evictor.evict_pack(pack_id)
    box.store.offline = True
    box.store.requests.clear()
    began_s = box.clock.monotonic_s()
    found = box.fetch()
    assert found[sample(4, 1).sop_instance_uid] == sample(4, 1).dataset
    assert sum(isinstance(each, CloudUnavailable) for each in found.values()) == 4
    assert box.clock.monotonic_s() - began_s < 15
    assert len({key for operation, key in box.store.requests if operation == "get"}) <= 2


def test_no_bucket_configured_is_no_crash(box: Box) -> None:
    box.store_sample(sample(1, 1))
    box.drain()
    box.evictor.evict_pack(box.pack_ids()[0])
    retrieval = Retrieval(box.clock, box.layout, box.index, None)
    ((_, found),) = retrieval.open_all(box.served())
    assert isinstance(found, CloudUnavailable)
    retrieval.close()


def test_the_rest_of_a_study_follows(box: Box) -> None:
    """Who looks at one series of an evicted study will look at the others."""
    for number in range(3):
        box.store_sample(sample(1, number))
        box.drain()
    for pack_id in box.pack_ids():
        box.evictor.evict_pack(pack_id)
    assert len(box.fetch(box.served()[:1])) == 1
    for _ in range(100_000):
        if len(box.sealed_ids()) == 3:
            break
    assert len(box.sealed_ids()) == 3


def test_a_large_instance_is_an_extent(box: Box) -> None:
    """Never mapped as a whole, whether it is here or comes: mapped pages count as memory."""
    each = sample(1, 1, LARGE_BYTES + 1000)
    box.store_sample(each)
    box.drain()
    for _ in range(2):
        for _instance, opened in box.retrieval.open_all(box.served()):
            assert isinstance(opened.dataset, Extent)
            assert opened.dataset.sha256() == each.sha256
        wait_for_recalls(box)
        box.evictor.evict_pack(box.pack_ids()[0])


def test_a_large_instance_is_checked_too(box: Box) -> None:
    each = sample(1, 1, LARGE_BYTES + 1000)
    box.store_sample(each)
    box.close_packs()
    box.indexer().catch_up()
    _damage(box, box.pack_ids()[0], each)
    assert isinstance(box.fetch()[each.sop_instance_uid], Damaged)


def test_use_is_noted_for_evictions_order(box: Box) -> None:
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()
    box.clock.advance(10**9)
    before = box.pack(pack_id).last_used_us
    box.fetch()
    assert box.pack(pack_id).last_used_us > before


def test_an_index_that_takes_no_writes_keeps_nobody_from_reading(box: Box, monkeypatch) -> None:
    box.store_sample(sample(1, 1))
    box.drain()

    def full(_work):
        raise OutOfSpace("write the index", "", "full")

    monkeypatch.setattr(box.index, "transact", full)
    assert box.fetch() == _expected(sample(1, 1))


def test_an_extent_that_cannot_be_read_is_damage() -> None:
    def broken(_offset: int, _length: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(Damaged):
        Extent(broken, 0, 10)[0:5]
    with pytest.raises(Damaged, match="ends inside"):
        Extent(lambda offset, length: b"x", 0, 10)[0:5]


class TestPackReaders:
    """Open packs."""

    def _packs(self, box: Box, count: int) -> list[str]:
        for study in range(count):
            box.store_sample(sample(study, 1))
        box.drain()
        return box.pack_ids()

    def test_no_more_than_a_few_stay_open(self, box: Box) -> None:
        packs = self._packs(box, READERS_KEPT_MAX + 20)
        readers = PackReaders(box.layout)
        before = open_descriptors()
        for pack_id in packs:
            assert readers.get(pack_id) is not None
        assert open_descriptors() - before <= READERS_KEPT_MAX

    def test_an_evicted_pack_gives_its_space_back(self, box: Box) -> None:
        """As soon as nobody reads it: its file is unlinked and must not stay open."""
        (pack_id,) = self._packs(box, 1)
        readers = PackReaders(box.layout)
        before = open_descriptors()
        view = readers.get(pack_id).view(0, 100)
        box.evictor.evict_pack(pack_id)
        readers.sweep()
        assert len(bytes(view)) == 100
        del view
        assert open_descriptors() <= before

    def test_a_pack_in_the_place_of_another_is_opened_anew(self, box: Box) -> None:
        (pack_id,) = self._packs(box, 1)
        readers = PackReaders(box.layout)
        first = readers.get(pack_id)
        assert readers.get(pack_id) is first
        path = box.layout.sealed_path(pack_id)
        content = Path(path).read_bytes()
        os.unlink(path)
        assert readers.get(pack_id) is None
        Path(path).write_bytes(content)
        assert readers.get(pack_id) is not first


def test_errors_are_told_with_their_instance(box: Box) -> None:
    """Each wanted instance is yielded once, opened or not."""
    samples = [sample(study, number) for study in range(3) for number in range(2)]
    for each in samples:
        box.store_sample(each)
    box.drain()
    os.unlink(box.layout.sealed_path(box.pack_ids()[1]))
    box.store.damage(box.pack(box.pack_ids()[1]).cloud.key, at=-1)
    told = list(box.retrieval.open_all(box.served()))
    assert len({each.sop_instance_uid for each, _ in told}) == len(told) == 6
    assert all(isinstance(found, Opened | AzekuraError) for _, found in told)


def test_a_check_of_a_large_instance_is_believed_for_a_while(box: Box) -> None:
    """Whoever reads it frame by frame does not wait for all of it each time; then it is reread."""
    each = sample(1, 1, 9 * MIB)
    box.store_sample(each)
    box.close_packs()
    box.indexer().catch_up()
    patient = Retrieval(box.clock, box.layout, box.index, None, believed_s=60.0)

    def opened() -> bool:
        ((_, found),) = patient.open_all(box.served())
        return isinstance(found, Opened)

    assert opened()
    _damage(box, box.pack_ids()[0], each)
    assert opened()
    ((_, strict),) = box.retrieval.open_all(box.served())
    assert not isinstance(strict, Opened)
    box.clock.advance(61)
    assert not opened()
    patient.close()
