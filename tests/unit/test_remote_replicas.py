"""Reading from a replica: when it is asked, for which version, and what never goes there."""

import hashlib
import threading
from datetime import UTC, datetime

import pytest

from appliance.foundation.errors import CloudRefused, CloudUnavailable, ObjectMissing
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.remote.replicas import Replica, ReplicatedStore
from appliance.remote.store import Lock
from tests.support.fake_store import FakeStore, Fault, no_answer
from tests.support.manual_clock import ManualClock

KEY = "packs/2026/03/02/one.tar.age"
BODY = bytes(range(256)) * 10
GENEROUS_S = 60.0
READS = {"get", "head", "versions"}


def _put(store: FakeStore, body: bytes = BODY, key: str = KEY) -> str:
    return store.put(key, body, sha256=hashlib.sha256(body).digest()).version_id


class SilentStore(FakeStore):
    """Answers nothing while `silent` is set."""

    def __init__(self, clock) -> None:
        super().__init__(clock)
        self.speaks = threading.Event()
        self.speaks.set()

    def get(self, *arguments, **named):
        self.requests.append(("asked", arguments[0]))
        assert self.speaks.wait(GENEROUS_S)
        return super().get(*arguments, **named)


class Pair:
    """A primary and a replica at another provider, whose version ids differ."""

    def __init__(self, patience_s: float = GENEROUS_S) -> None:
        self.clock = ManualClock()
        self.primary = SilentStore(self.clock)
        self.replica = FakeStore(self.clock)
        _put(self.replica, b"moves the version ids on", "another")
        self.version = _put(self.primary)
        assert _put(self.replica) != self.version
        self.link = Link(self.clock)
        self.store = ReplicatedStore(
            ObservedStore(self.primary, self.link),
            [Replica("copy at elsewhere", ObservedStore(self.replica, Link(self.clock)))],
            patience_s,
        )
        self.primary.requests.clear()
        self.replica.requests.clear()

    def read(self) -> bytes:
        return self.store.get(KEY, self.version, 0, len(BODY))

    def cut_for_good(self) -> None:
        """Let the line be known as down."""
        self.primary.offline = True
        while self.link.state != "down":
            self.link.failed()
            self.clock.advance(3)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_primary_that_answers_is_the_only_one_asked(pair: Pair) -> None:
    assert pair.read() == BODY
    assert pair.store.head(KEY, pair.version).size_bytes == len(BODY)
    buffer = bytearray(10)
    pair.store.get_into(buffer, KEY, pair.version, 3)
    assert buffer == BODY[3:13]
    assert pair.replica.requests == []


@pytest.mark.parametrize(
    "error",
    [
        CloudUnavailable("fake", "", "503 everywhere"),
        CloudRefused("fake", "", "403 revoked"),
        ObjectMissing("fake", "", "404 NoSuchVersion"),
    ],
)
def test_what_the_primary_does_not_give_a_replica_does(pair: Pair, error) -> None:
    """A region that is out, credentials revoked, a version that is gone."""
    pair.primary.fail("get", Fault("before", error), Fault("before", error))
    pair.primary.fail("head", Fault("before", error))
    assert pair.read() == BODY
    buffer = bytearray(len(BODY))
    pair.store.get_into(buffer, KEY, pair.version)
    assert buffer == BODY
    assert pair.store.head(KEY, pair.version).size_bytes == len(BODY)


def test_another_provider_s_version_is_the_oldest_one(pair: Pair) -> None:
    """What was put over the key there later is not the object, nor is a delete marker."""
    pair.replica.seed(KEY, b"x" * len(BODY))
    pair.replica.put_delete_marker(KEY)
    pair.primary.offline = True
    assert pair.read() == BODY
    pair.replica.requests.clear()
    assert pair.read() == BODY
    assert ("versions", KEY) not in pair.replica.requests  # it is known by now


def test_the_same_provider_s_version_is_asked_for_by_its_id(pair: Pair) -> None:
    pair.primary.offline = True
    own = pair.replica.seed(KEY, b"y" * len(BODY))
    assert pair.store.get(KEY, own, 0, 3) == b"yyy"


def test_nobody_has_it_the_primary_s_word_is_told(pair: Pair) -> None:
    with pytest.raises(ObjectMissing, match="other"):
        pair.store.get("other", "v1", 0, 1)
    pair.primary.offline = True
    with pytest.raises(CloudUnavailable):
        pair.store.get("other", "v1", 0, 1)


def test_while_the_line_is_down_a_replica_is_asked_at_once() -> None:
    """Nobody waits for a line that is known to be down, though it hangs; and it goes on being
    tried, by one request."""
    pair = Pair()
    pair.cut_for_good()
    pair.primary.speaks.clear()
    for _ in range(5):
        assert pair.read() == BODY
    assert len(pair.primary.requests) == 1
    pair.primary.speaks.set()


def test_a_silent_primary_is_waited_for_once() -> None:
    """Only the first reader's patience runs out; the first answer brings the primary back."""
    pair = Pair(patience_s=0.05)
    pair.primary.speaks.clear()
    for _ in range(20):
        assert pair.read() == BODY
    # One by the reader that lost patience, one that tries it on and on.
    assert len(pair.primary.requests) == 2
    pair.primary.speaks.set()
    ended_s = threading.Event()
    for _ in range(6000):
        pair.replica.requests.clear()
        assert pair.read() == BODY
        if not pair.replica.requests:
            break
        ended_s.wait(0.01)
    assert pair.replica.requests == []


def test_an_answer_that_comes_too_late_touches_no_buffer() -> None:
    pair = Pair(patience_s=0.05)
    pair.primary.speaks.clear()
    buffer = bytearray(len(BODY))
    pair.store.get_into(buffer, KEY, pair.version)
    assert buffer == BODY
    buffer[:] = bytes(len(BODY))
    pair.primary.speaks.set()
    for thread in threading.enumerate():
        if thread.name == "bucket-read":
            thread.join(GENEROUS_S)
    assert buffer == bytes(len(BODY))


def test_neither_answers_and_the_primary_is_waited_for() -> None:
    """With the replica out as well, a slow primary is better than none."""
    pair = Pair(patience_s=0.05)
    pair.replica.offline = True
    pair.primary.speaks.clear()
    threading.Timer(0.3, pair.primary.speaks.set).start()
    assert pair.read() == BODY


def test_listings_come_from_a_replica_only_when_the_primary_is_out_of_reach(pair: Pair) -> None:
    """What the primary does not list may be a finding, and is not covered up."""
    only_there = _put(pair.replica, b"more", "packs/9999/more")
    assert [each.version_id for each in pair.store.versions("packs/")] == [pair.version]
    assert pair.store.oldest_version("packs/9999/more") is None
    pair.primary.fail("versions", Fault("before", CloudRefused("fake", "", "403")))
    with pytest.raises(CloudRefused):
        pair.store.oldest_version(KEY)
    pair.primary.fail("versions", no_answer(), no_answer())
    assert pair.store.oldest_version("packs/9999/more").version_id == only_there
    assert len(list(pair.store.versions("packs/"))) == 2


def test_nothing_is_written_to_or_proved_by_a_replica(pair: Pair) -> None:
    lock = Lock("COMPLIANCE", datetime(2030, 1, 1, tzinfo=UTC))
    pair.primary.offline = True
    for request in (
        lambda: _put(pair.store, key="new"),
        lambda: pair.store.extend_lock(KEY, pair.version, lock),
        lambda: pair.store.delete_version(KEY, pair.version),
        pair.store.server_time,
        pair.store.check_bucket,
        lambda: list(pair.store.objects()),
        lambda: list(pair.store.orphan_uploads(1)),
        lambda: pair.store.abort_upload(KEY, "u1"),
    ):
        with pytest.raises(CloudUnavailable):
            request()
    assert pair.replica.requests == []
