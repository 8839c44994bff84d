"""What every ObjectStore promises, held by the fake and by a real S3 server."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import (
    ChecksumRejected,
    CloudError,
    CloudRefused,
    ObjectExists,
    ObjectMissing,
)
from appliance.remote.link import Link
from appliance.remote.lock_probe import probe_lock
from appliance.remote.observed import ObservedStore
from appliance.remote.replicas import Replica, ReplicatedStore
from appliance.remote.store import Checksum, FileBody, Lock, ObjectStore, holds_body
from tests.support.fake_store import FakeStore


@pytest.fixture(params=["fake", "replicated", "seaweedfs"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    if request.param == "fake":
        return FakeStore()
    if request.param == "replicated":
        clock = SystemClock()
        primary, replica = (ObservedStore(FakeStore(), Link(clock)) for _ in range(2))
        return ReplicatedStore(primary, [Replica("elsewhere", replica)])
    return request.getfixturevalue("s3_store")


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def put(store: ObjectStore, key: str, body: bytes, **options):
    return store.put(key, body, sha256=digest(body), **options)


def tomorrow(days: int = 1) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


BODY = bytes(range(256)) * 400


def test_put_is_read_back_by_version_with_size_and_checksum(store):
    """head tells what put stored."""
    result = put(store, "packs/a", BODY)
    info = store.head("packs/a", result.version_id)
    assert (info.size_bytes, info.version_id) == (len(BODY), result.version_id)
    assert info.checksum == result.checksum == Checksum.of_sha256(digest(BODY))
    assert info.lock is None
    assert store.get("packs/a", result.version_id) == BODY
    assert holds_body(info, BODY)
    assert not holds_body(info, BODY[:-1] + b"x")


def test_put_of_a_file_range_stores_exactly_that_range(store, tmp_path):
    """A FileBody is the range, not the file."""
    path = tmp_path / "spool"
    path.write_bytes(b"before" + BODY + b"after")
    body = FileBody(str(path), 6, len(BODY))
    store.put("packs/f", body, sha256=digest(BODY))
    assert store.get("packs/f") == BODY
    assert holds_body(store.head("packs/f"), body)


def test_put_of_no_bytes_is_stored(store):
    """The empty body is a body."""
    put(store, "empty", b"")
    assert store.head("empty").size_bytes == 0
    assert store.get("empty") == b""


def test_create_only_put_finds_the_key_taken(store):
    """A second create-only put raises ObjectExists and stores nothing."""
    put(store, "ledger/1", b"mine")
    with pytest.raises(ObjectExists):
        put(store, "ledger/1", b"other")
    assert [info.size_bytes for info in store.versions("ledger/1")] == [4]


def test_create_only_puts_at_once_let_one_through(store):
    """Of parallel create-only puts of a key exactly one succeeds."""

    def attempt(number: int) -> bool:
        try:
            put(store, "ledger/2", b"writer %d" % number)
        except CloudError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert len(list(store.versions("ledger/2"))) == 1


def test_put_of_changed_bytes_is_refused_and_stores_nothing(store):
    """The far side checks our sha256."""
    with pytest.raises(ChecksumRejected):
        store.put("packs/bad", BODY, sha256=digest(b"something else"))
    assert store.oldest_version("packs/bad") is None


def test_put_without_create_only_makes_a_further_version(store):
    """Heartbeats overwrite; the oldest version stays the first."""
    first = put(store, "nodes/a", b"1", create_only=False)
    second = put(store, "nodes/a", b"22", create_only=False)
    assert store.get("nodes/a") == b"22"
    assert store.get("nodes/a", first.version_id) == b"1"
    found = list(store.versions("nodes/a"))
    assert [info.version_id for info in found] == [second.version_id, first.version_id]
    assert [info.is_latest for info in found] == [True, False]
    assert store.oldest_version("nodes/a").version_id == first.version_id


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_lock_is_carried_and_enforced(store, mode):
    """A locked version is read back with its lock and not deleted."""
    until = tomorrow()
    result = put(store, "packs/l", BODY, lock=Lock(mode, until))
    assert store.head("packs/l", result.version_id).lock == Lock(mode, until)
    with pytest.raises(CloudRefused):
        store.delete_version("packs/l", result.version_id)
    assert store.get("packs/l", result.version_id) == BODY


def test_lock_is_extended_but_not_shortened_under_compliance(store):
    """Retention only grows."""
    result = put(store, "packs/e", BODY, lock=Lock("COMPLIANCE", tomorrow(2)))
    store.extend_lock("packs/e", result.version_id, Lock("COMPLIANCE", tomorrow(5)))
    assert store.head("packs/e", result.version_id).lock.until >= tomorrow(4)
    with pytest.raises(CloudRefused):
        store.extend_lock("packs/e", result.version_id, Lock("COMPLIANCE", tomorrow(1)))


def test_legal_hold_outlasts_everything_until_it_ends(store):
    """Nobody deletes a held version, locked or not; the hold is read back and can be lifted."""
    result = put(store, "packs/h", BODY)
    assert not store.head("packs/h", result.version_id).legal_hold
    store.set_legal_hold("packs/h", result.version_id, on=True)
    assert store.head("packs/h", result.version_id).legal_hold
    with pytest.raises(CloudRefused):
        store.delete_version("packs/h", result.version_id)
    store.set_legal_hold("packs/h", result.version_id, on=False)
    assert not store.head("packs/h", result.version_id).legal_hold
    store.delete_version("packs/h", result.version_id)
    with pytest.raises(ObjectMissing):
        store.head("packs/h", result.version_id)
    with pytest.raises(ObjectMissing):
        store.set_legal_hold("packs/none", result.version_id, on=True)


def test_a_lock_that_has_ended_lets_the_version_be_deleted(store):
    """Retention ends by the bucket's clock, and with it the lock."""
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    result = put(store, "packs/x", BODY, lock=Lock("COMPLIANCE", until))
    with pytest.raises(CloudRefused):
        store.delete_version("packs/x", result.version_id)
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    while True:
        try:
            store.delete_version("packs/x", result.version_id)
        except CloudRefused:
            assert datetime.now(UTC) < deadline
            threading.Event().wait(0.2)
        else:
            break
    assert datetime.now(UTC) >= until
    with pytest.raises(ObjectMissing):
        store.head("packs/x", result.version_id)


def test_unlocked_version_is_deleted_for_ever(store):
    """delete_version of what is not locked works, once and again."""
    result = put(store, "packs/d", BODY)
    store.delete_version("packs/d", result.version_id)
    with pytest.raises(ObjectMissing):
        store.head("packs/d", result.version_id)
    store.delete_version("packs/d", result.version_id)


@pytest.mark.parametrize(
    "span", [(0, 1), (5, 99), (0, len(BODY)), (len(BODY) - 1, len(BODY)), (1000, None), (0, None)]
)
def test_get_returns_exactly_the_range(store, span):
    """Ranges are half-open."""
    version_id = put(store, "packs/r", BODY).version_id
    start, end = span
    assert store.get("packs/r", version_id, start, end) == BODY[start:end]
    buffer = bytearray(len(BODY[start:end]))
    store.get_into(buffer, "packs/r", version_id, start)
    assert buffer == BODY[start:end]


def test_get_past_the_end_raises(store):
    """Never fewer bytes than asked for."""
    version_id = put(store, "packs/s", BODY).version_id
    with pytest.raises(CloudError):
        store.get("packs/s", version_id, len(BODY) - 5, len(BODY) + 5)
    with pytest.raises(CloudError):
        store.get("packs/s", version_id, len(BODY) + 5, len(BODY) + 50)
    with pytest.raises(ValueError):
        store.get("packs/s", version_id, 5, 5)
    assert store.get("packs/s", version_id, 0, 3) == BODY[:3]


def test_missing_key_and_version_raise(store):
    """ObjectMissing for a key, for a version of another key, for every way of asking."""
    version_id = put(store, "packs/m", BODY).version_id
    for key, version in (("packs/none", None), ("packs/none", version_id)):
        with pytest.raises(ObjectMissing):
            store.head(key, version)
        with pytest.raises(ObjectMissing):
            store.get(key, version, 0, 5)
    assert store.oldest_version("packs/none") is None


def test_gets_from_many_threads_return_each_their_bytes(store):
    """Parallel ranges don't mix."""
    version_id = put(store, "packs/p", BODY).version_id

    def fetch(number: int) -> bool:
        start = number * 37 % (len(BODY) - 700)
        return store.get("packs/p", version_id, start, start + 700) == BODY[start : start + 700]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(fetch, range(200)))


def test_objects_are_listed_by_key_past_a_key(store):
    """Prefix and after_key are respected; keys come without our prefix, in order."""
    for number in range(5):
        put(store, f"ledger/a/{number:03d}", b"x" * number)
    put(store, "ledger/b/000", b"")
    listed = list(store.objects("ledger/a/", after_key="ledger/a/001"))
    assert [entry.key for entry in listed] == ["ledger/a/002", "ledger/a/003", "ledger/a/004"]
    assert [entry.size_bytes for entry in listed] == [2, 3, 4]
    assert [info.key for info in store.versions("ledger/a/", after_key="ledger/a/002")] == [
        "ledger/a/003",
        "ledger/a/004",
    ]
    assert list(store.objects("nothing/")) == []
    assert list(store.versions("nothing/")) == []


def test_oldest_version_is_not_of_a_key_that_begins_alike(store):
    """A longer key with the same beginning is another key."""
    put(store, "ledger/a/1.json", b"longer")
    put(store, "ledger/a/1", b"short")
    assert store.oldest_version("ledger/a/1").size_bytes == 5
    assert store.oldest_version("ledger/a/1.js") is None


def test_server_time_is_now(store):
    """The bucket's clock is aware and runs."""
    assert abs(store.server_time() - datetime.now(UTC)) < timedelta(seconds=5)


def test_bucket_with_versioning_and_lock_has_no_finding(store):
    """check_bucket is silent for a good bucket."""
    assert store.check_bucket() == []


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_probe_finds_an_enforced_lock(store, mode):
    """The probe passes where deleting is refused, and only under probe/."""
    assert probe_lock(store, mode).verdict == "carried"
    assert probe_lock(store, mode, deleter=store).verdict == "enforced"
    assert {info.key.split("/")[0] for info in store.versions()} == {"probe"}
