"""Headers of instances, wherever their packs are: without bulk, and no more read than needed."""

from pathlib import Path

import pytest

from appliance.archive.headers import Headers
from appliance.foundation.errors import AzekuraError, CloudUnavailable
from appliance.packs.frames import InstanceHeader
from tests.support.archive_box import Box, box, sample  # noqa: F401
from tests.support.fake_store import FakeStore, no_answer

COUNT = 4
BIG_BYTES = 9 * 2**20


class CountingStore(FakeStore):
    """Notes every read."""

    reads: list[tuple[str, int]]

    def get(self, key, version_id=None, start=0, end=None, *rest):
        self.reads.append((key, (end or 0) - start))
        return super().get(key, version_id, start, end, *rest)

    def get_into(self, buffer, key, *rest):
        self.reads.append((key, len(buffer)))
        return super().get_into(buffer, key, *rest)


@pytest.fixture
def counted(box: Box) -> CountingStore:
    box.store.__class__ = CountingStore
    box.store.reads = []
    return box.store


def headers_of(box: Box) -> dict[str, InstanceHeader | AzekuraError]:
    headers = Headers(box.layout, box.index, box.retrieval, box.store)
    try:
        return {instance.sop_instance_uid: found for instance, found in headers.of(box.served())}
    finally:
        headers.close()


def stored(box: Box, sizes: list[int]) -> dict[str, bytes]:
    """Have instances of two studies received; return what their headers are."""
    expected = {}
    for number, size in enumerate(sizes):
        each = sample(number % 2, number, size)
        box.store_sample(each)
        pixels = each.dataset.index(b"\xe0\x7f\x10\x00OW")
        expected[each.sop_instance_uid] = each.dataset[:pixels]
    box.indexer().catch_up()
    return expected


def plain(found: dict[str, InstanceHeader | AzekuraError]) -> dict[str, bytes]:
    assert all(isinstance(each, InstanceHeader) for each in found.values()), found
    return {uid: each.dataset for uid, each in found.items()}


def test_open_closed_and_sealed_packs_give_the_same(box: Box) -> None:
    """Whatever the pack has become; a large instance is looked at through a window."""
    expected = stored(box, [2000, 100_000, 3000, BIG_BYTES])
    assert plain(headers_of(box)) == expected
    box.close_packs()
    assert plain(headers_of(box)) == expected
    box.drain()
    assert plain(headers_of(box)) == expected
    bulk = [found.bulk for found in headers_of(box).values()]
    assert {element.value_length for (element,) in bulk} == {2000, 100_000, 3000, BIG_BYTES}


def test_evicted_packs_take_one_read_each(box: Box, counted: CountingStore) -> None:
    """One ranged GET a pack, of little more than its headers; nothing comes back to the disk."""
    expected = stored(box, [100_000] * COUNT)
    box.drain()
    _evict(box)
    assert box.sealed_ids() == []
    counted.reads.clear()
    assert plain(headers_of(box)) == expected
    assert len(counted.reads) == len(box.pack_ids()) == 2
    assert len({key for key, _ in counted.reads}) == 2
    assert all(length <= 3 * 65_552 for _, length in counted.reads)
    assert box.sealed_ids() == []


def test_without_a_line_each_header_says_so(box: Box, counted: CountingStore) -> None:
    """One pack asks once, and its instances are not asked for one by one."""
    stored(box, [2000] * COUNT)
    box.drain()
    _evict(box)
    counted.reads.clear()
    counted.fail("get", *[no_answer() for _ in range(20)])
    found = headers_of(box)
    assert {type(each) for each in found.values()} == {CloudUnavailable}
    assert len(counted.reads) == 2


def test_damaged_headers_are_read_from_the_datasets(box: Box) -> None:
    """A pack whose headers do not inflate still gives what its datasets say."""
    expected = stored(box, [2000] * COUNT)
    box.drain()
    for pack_id in box.sealed_ids():
        path = Path(box.layout.sealed_path(pack_id))
        cloud = box.pack(pack_id).cloud
        raw = bytearray(path.read_bytes())
        raw[cloud.headers_offset + cloud.headers_length - 12] ^= 0xFF
        path.write_bytes(raw)
    assert plain(headers_of(box)) == expected


def _evict(box: Box) -> None:
    for pack_id in box.sealed_ids():
        box.evictor.evict_pack(pack_id)
