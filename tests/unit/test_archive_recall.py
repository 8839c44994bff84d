"""Packs coming back: what comes first, how large a request is, how it ends, who keeps it."""

import os
import threading
from pathlib import Path

import msgspec
import pytest

from appliance.archive.fetch import FETCH_CHUNKS_MAX, GIVE_UP_S, PackFetch
from appliance.archive.recall import Recaller, check_pack, clear_abandoned
from appliance.foundation.errors import (
    AzekuraError,
    Busy,
    CloudRefused,
    CloudUnavailable,
    Damaged,
    DecryptionFailed,
    OutOfSpace,
)
from appliance.foundation.files import FileLock, FileSystem
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.remote.replicas import Replica, ReplicatedStore
from appliance.seal.age import CHUNK_BYTES, encrypt_file, unwrap_file_key
from appliance.seal.age_header import NONCE_BYTES
from tests.support.archive_box import Box, open_descriptors, sample
from tests.support.fake_store import FakeStore, Fault, corrupt, no_answer
from tests.support.pack_samples import full_disk

MIB = 2**20


@pytest.fixture
def evicted(box: Box) -> str:
    """A pack of 8 instances of 1.1 MiB, in the bucket only."""
    for number in range(8):
        box.store_sample(sample(1, number, 1_100_000))
    box.drain()
    (pack_id,) = box.pack_ids()
    box.evictor.evict_pack(pack_id)
    box.store.requests.clear()
    return pack_id


def _cloud(box: Box, pack_id: str):
    return box.pack(pack_id).cloud


def _wait_for_end(box: Box) -> None:
    for _ in range(2000):
        if not box.recaller._recalls:
            return
        threading.Event().wait(0.005)
    raise AssertionError("the recall does not end")


def _range(box: Box, number: int) -> tuple[int, int]:
    (found,) = [
        each for each in box.served() if each.sop_instance_uid.endswith(f".{number}")
    ]  # fmt: skip
    return found.offset, found.length


class _Recorded:
    """A store that notes the ranges of gets, and may hold them back."""

    def __init__(self, store) -> None:
        self._store = store
        self.ranges: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._guard = threading.Lock()

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def get_into(self, buffer, key, version_id=None, start=0, lane=0):
        with self._guard:
            self.ranges.append((start, len(buffer)))
        assert self.gate.wait(30)
        self._store.get_into(buffer, key, version_id, start, lane)


def _recorded(box: Box) -> _Recorded:
    found = _Recorded(box.store)
    box.recaller._store = found
    return found


def test_a_pack_comes_back_as_it_was(box: Box, evicted: str) -> None:
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 5)])
    assert bytes(fetch.read(*_range(box, 5))) == sample(1, 5, 1_100_000).dataset
    _wait_for_end(box)
    check_pack(box.layout.sealed_path(evicted))
    assert box.pack(evicted).state == "cached"
    assert os.listdir(box.layout.recalled) == []


def test_the_wanted_instance_comes_first(box: Box, evicted: str) -> None:
    store = _recorded(box)
    offset, length = _range(box, 6)
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [(offset, length)])
    fetch.wait(offset, length)
    first_s, size = store.ranges[0]
    sealed_start, _ = fetch._age.ciphertext_range(offset, offset + length)
    assert first_s == sealed_start
    assert size < length + 3 * CHUNK_BYTES
    _wait_for_end(box)


def test_no_request_grows_with_the_instance(box: Box) -> None:
    """A multi-frame instance of gigabytes must not be asked for at once, nor held."""
    box.store_sample(sample(1, 1, 5 * FETCH_CHUNKS_MAX * CHUNK_BYTES // 2))
    box.drain()
    (pack_id,) = box.pack_ids()
    box.evictor.evict_pack(pack_id)
    store = _recorded(box)
    offset, length = _range(box, 1)
    fetch = box.recaller.begin(pack_id, _cloud(box, pack_id), [(offset, length)])
    fetch.wait(offset, length)
    assert max(size for _, size in store.ranges) <= FETCH_CHUNKS_MAX * (CHUNK_BYTES + 16)
    _wait_for_end(box)


def test_no_chunk_is_fetched_twice(box: Box, evicted: str) -> None:
    """Many readers of one pack share what comes."""
    store = _recorded(box)
    store.gate.clear()
    ranges = [_range(box, number) for number in range(8)]
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), ranges)
    for each in ranges:
        assert box.recaller.begin(evicted, _cloud(box, evicted), [each]) is fetch
    store.gate.set()
    for each in ranges:
        fetch.wait(*each)
    _wait_for_end(box)
    assert sum(size for _, size in store.ranges) == _cloud(box, evicted).size - len(
        _cloud(box, evicted).age_header
    )


def test_a_request_that_fails_is_made_again(box: Box, evicted: str) -> None:
    box.store.fail("get", no_answer(), no_answer())
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    assert bytes(fetch.read(*_range(box, 1))) == sample(1, 1, 1_100_000).dataset
    _wait_for_end(box)


def test_a_long_recall_may_fail_now_and_then(box: Box, evicted: str) -> None:
    """Only failures with no success between them end it: a flapping line does not."""
    faults: list[Fault] = []
    for _ in range(12):
        faults += [no_answer(), Fault("after")]
    box.store.fail("get", *faults)
    box.recaller.recall(evicted, _cloud(box, evicted))
    check_pack(box.layout.sealed_path(evicted))


def test_an_unreachable_bucket_is_told_in_bounded_time(box: Box, evicted: str) -> None:
    """Every waiting reader hears it, nothing is left behind, and a later reader tries again."""
    box.store.offline = True
    began_s = box.clock.monotonic_s()
    before = open_descriptors()
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    for _ in range(2):
        with pytest.raises(CloudUnavailable):
            fetch.read(*_range(box, 1))
    _wait_for_end(box)
    assert GIVE_UP_S <= box.clock.monotonic_s() - began_s < GIVE_UP_S + 10
    assert os.listdir(box.layout.recalled) == []
    del fetch
    assert open_descriptors() <= before
    box.store.offline = False
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    assert bytes(fetch.read(*_range(box, 1))) == sample(1, 1, 1_100_000).dataset
    _wait_for_end(box)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (corrupt(), DecryptionFailed),
        (Fault("before", CloudRefused("fake", "", "403")), CloudRefused),
        (Fault("before", ZeroDivisionError("a bug")), Damaged),
    ],
)
def test_what_no_retry_helps_ends_at_once(box: Box, evicted: str, fault, error) -> None:
    """A damaged copy, a refusal, an error of our own: never shown, never waited for."""
    box.store.fail("get", *[fault] * 10)
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    with pytest.raises(error):
        fetch.read(*_range(box, 1))
    _wait_for_end(box)
    assert not os.path.exists(box.layout.sealed_path(evicted))


def test_what_is_damaged_in_the_bucket_comes_from_a_replica(box: Box, evicted: str) -> None:
    """A chunk that age does not find authentic is asked elsewhere, and the rest goes on."""
    cloud, clock = _cloud(box, evicted), box.clock
    replica = FakeStore(clock)
    replica.seed("another", b"so that version ids differ")
    replica.seed(cloud.key, box.store.content(cloud.key))
    box.store.damage(cloud.key, at=cloud.size // 2)
    both = ReplicatedStore(
        ObservedStore(box.store, Link(clock)),
        [Replica("elsewhere", ObservedStore(replica, Link(clock)))],
    )
    Recaller(box.files, clock, box.layout, both, box.index, box.space).recall(evicted, cloud)
    check_pack(box.layout.sealed_path(evicted))
    assert {key for operation, key in replica.requests if operation == "get"} == {cloud.key}


def test_a_recall_that_fails_is_told_to_whoever_asked_for_it(box: Box, evicted: str) -> None:
    box.store.fail("get", corrupt())
    with pytest.raises(DecryptionFailed):
        box.recaller.recall(evicted, _cloud(box, evicted))
    assert box.pack(evicted).state == "evicted"


def test_a_reader_that_comes_after_a_failure_is_not_told_of_it(box: Box, evicted: str) -> None:
    """One request of the recall is still on its way: the next reader asks anew all the same."""
    store = _recorded(box)
    store.gate.clear()
    wanted = [_range(box, 5)]
    first = box.recaller.begin(evicted, _cloud(box, evicted), wanted)
    with first._condition:
        first._error = Damaged("recall", evicted, "as the test wants it")
    second = box.recaller.begin(evicted, _cloud(box, evicted), wanted)
    store.gate.set()
    assert second is not first
    assert len(second.read(*wanted[0])) == wanted[0][1]
    _wait_for_end(box)


def test_a_member_that_is_not_what_was_received_is_no_cached_pack(box: Box, evicted: str) -> None:
    """Every chunk authentic, and yet another dataset: the pack is not put in its place."""
    cloud = _cloud(box, evicted)
    box.recaller.recall(evicted, cloud)
    path = Path(box.layout.sealed_path(evicted))
    raw = bytearray(path.read_bytes())
    raw[_range(box, 3)[0] + 1_000_000] ^= 1
    path.write_bytes(raw)
    forged = box.folder / "forged"
    sealed = encrypt_file(str(path), str(forged), box.recipients)
    version = box.store._keys[cloud.key][0]
    version.content = forged.read_bytes()
    key = unwrap_file_key(sealed.head[:-NONCE_BYTES], box.identities)
    cloud = msgspec.structs.replace(cloud, age_header=sealed.head, file_key=key, size=sealed.size)
    path.unlink()
    with pytest.raises(Damaged):
        box.recaller.recall(evicted, cloud)
    assert not path.exists()


def test_it_completes_once_however_many_look_meanwhile(box: Box, evicted: str) -> None:
    """A reader that joins in the last moment must not make the pack twice."""
    renames = []
    real = box.files.rename

    def rename(source, target):
        renames.append(target)
        real(source, target)

    box.files.rename = rename
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [])
    while not fetch._ended:
        fetch.want([_range(box, 1)])
        if fetch._left == 0:
            fetch.want([_range(box, 2)])
    _wait_for_end(box)
    assert renames.count(box.layout.sealed_path(evicted)) == 1
    assert not fetch.want([_range(box, 1)])
    assert bytes(fetch.read(*_range(box, 1))) == sample(1, 1, 1_100_000).dataset


def test_two_processes_read_one_and_keep_one(box: Box, evicted: str) -> None:
    """The second finds the lock taken: it reads past the first, and both serve the bytes."""
    store = _recorded(box)
    store.gate.clear()
    first = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    other = Recaller(box.files, box.clock, box.layout, box.store, box.index, box.space)
    second = other.begin(evicted, _cloud(box, evicted), [_range(box, 2)])
    assert first.part_path is not None
    assert second.part_path is None
    assert bytes(second.read(*_range(box, 2))) == sample(1, 2, 1_100_000).dataset
    store.gate.set()
    assert bytes(first.read(*_range(box, 1))) == sample(1, 1, 1_100_000).dataset
    _wait_for_end(box)
    check_pack(box.layout.sealed_path(evicted))


def test_one_that_another_process_brings_is_waited_for(box: Box, evicted: str) -> None:
    store = _recorded(box)
    store.gate.clear()
    box.recaller.begin(evicted, _cloud(box, evicted), [])
    waiting = _Waiting(store.gate)
    other = Recaller(box.files, waiting, box.layout, box.store, box.index, box.space)
    other.recall(evicted, _cloud(box, evicted))
    assert waiting.count > 0
    check_pack(box.layout.sealed_path(evicted))
    _wait_for_end(box)


class _Waiting:
    """A clock that lets the other process go on once somebody waits for it."""

    def __init__(self, gate: threading.Event) -> None:
        self.count = 0
        self._gate = gate

    def monotonic_s(self) -> float:
        return 0.0

    def wait(self, event, timeout_s):
        self.count += 1
        self._gate.set()
        return event.wait(0.01)


def test_a_removed_lock_file_is_no_lock(box: Box, evicted: str) -> None:
    """Who recalled before removes it; whoever locked that file has locked nothing."""
    path = os.path.join(box.layout.recalled, f"{evicted}.part.lock")
    stale = FileLock(path)
    stale.acquire()
    assert stale.is_current
    os.unlink(path)
    assert not stale.is_current
    FileLock(path).acquire()
    assert not stale.is_current
    stale.release()


def test_a_full_cache_is_read_past(box: Box, evicted: str) -> None:
    """No room to keep it, and no waiting for room: what was asked for is served."""
    box.space.capacity_bytes = 1
    box.space.measure()
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    assert fetch.part_path is None
    assert bytes(fetch.read(*_range(box, 1))) == sample(1, 1, 1_100_000).dataset
    with pytest.raises(OutOfSpace):
        box.recaller.recall(evicted, _cloud(box, evicted))


def test_a_full_disk_leaves_no_lock_behind(box: Box, evicted: str) -> None:
    """It could not even be begun: the next one must be able to."""

    class Full(FileSystem):
        def truncate(self, fd, length):
            raise full_disk("truncate")

    files, box.recaller._files = box.recaller._files, Full()
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(AzekuraError):
            box.recaller.begin(evicted, _cloud(box, evicted), [])
    assert open_descriptors() <= before + 1
    box.recaller._files = files
    box.recaller.recall(evicted, _cloud(box, evicted))


def test_what_a_crash_left_is_cleared_and_what_lives_is_not(box: Box, evicted: str) -> None:
    dead = os.path.join(box.layout.recalled, "0" * 26 + ".part")
    Path(dead).write_bytes(b"x")
    store = _recorded(box)
    store.gate.clear()
    fetch = box.recaller.begin(evicted, _cloud(box, evicted), [_range(box, 1)])
    clear_abandoned(box.files, box.layout)
    assert not os.path.exists(dead)
    assert os.path.exists(fetch.part_path)
    store.gate.set()
    _wait_for_end(box)


def test_what_nobody_waits_for_comes_in_turn(box: Box) -> None:
    """A study of many packs: not all at once, and none after the bucket could not be reached."""
    for study in range(6):
        box.store_sample(sample(study, 1))
    box.drain()
    packs = {pack_id: _cloud(box, pack_id) for pack_id in box.pack_ids()}
    for pack_id in packs:
        box.evictor.evict_pack(pack_id)
    most = 0
    real = box.recaller._keep

    def keep(*arguments):
        nonlocal most
        found = real(*arguments)
        most = max(most, len(box.recaller._recalls))
        return found

    box.recaller._keep = keep
    box.recaller.follow(packs)
    for _ in range(2000):
        if sorted(box.sealed_ids()) == sorted(packs) and not box.recaller._following:
            break
        threading.Event().wait(0.005)
    assert most == 1
    assert sorted(box.sealed_ids()) == sorted(packs)
    for pack_id in packs:
        box.evictor.evict_pack(pack_id)
    box.store.offline = True
    box.store.requests.clear()
    box.recaller.follow(packs)
    for _ in range(2000):
        if not box.recaller._following:
            break
        threading.Event().wait(0.005)
    assert len({key for operation, key in box.store.requests if operation == "get"}) == 1


def test_an_extent_reads_what_it_is_asked_for(box: Box, evicted: str) -> None:
    """Slices of a pack that comes, also after it was complete and put in its place."""
    offset, length = _range(box, 2)
    fetch: PackFetch | None = box.recaller.begin(evicted, _cloud(box, evicted), [(offset, length)])
    extent = fetch.extent(offset, length)
    _wait_for_end(box)
    fetch = None
    expected = sample(1, 2, 1_100_000)
    assert len(extent) == len(expected.dataset)
    assert extent[10:70] == expected.dataset[10:70]
    assert extent[length - 5 : length + 100] == expected.dataset[-5:]
    assert extent.sha256() == expected.sha256


def test_a_stop_ends_the_wait_for_a_slow_line(box: Box, evicted: str) -> None:
    """A pack that takes an hour does not keep the daemon from ending."""
    store = _recorded(box)
    store.gate.clear()
    threading.Timer(0.2, box.recaller.stop).start()
    with pytest.raises(Busy, match="stops"):
        box.recaller.recall(evicted, _cloud(box, evicted))
    store.gate.set()
    _wait_for_end(box)
