"""The state of the line, its gate, and the back-off."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.foundation.errors import CloudRefused, CloudUnavailable, ObjectMissing
from appliance.remote.link import DOWN_AFTER_S, MEMORY_S, UP_SUCCESSES, Backoff, Link
from appliance.remote.observed import ObservedStore
from appliance.remote.store import Lane
from tests.support.fake_store import FakeStore, no_answer
from tests.support.manual_clock import ManualClock

SHA256_OF_NOTHING = bytes.fromhex(
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def link(clock) -> Link:
    return Link(clock)


def bring_down(link: Link, clock: ManualClock) -> None:
    for _ in range(4):
        link.failed()
        clock.advance(DOWN_AFTER_S / 2)
    assert link.state == "down"


def test_one_lost_request_changes_nothing(link):
    """Debounced."""
    link.failed()
    assert link.state == "up"


def test_failures_at_once_are_not_yet_down(link):
    """Eight parallel requests cut by one hiccup are one event, not an outage."""
    for _ in range(8):
        link.failed()
    assert link.state == "degraded"
    for _ in range(UP_SUCCESSES):
        link.succeeded()
    assert link.state == "up"


def test_lasting_failures_are_down_and_one_success_ends_it(link, clock):
    """Down after some seconds without any answer; degraded, then up as answers come."""
    bring_down(link, clock)
    link.succeeded()
    assert link.state == "degraded"
    for _ in range(UP_SUCCESSES):
        link.succeeded()
    assert link.state == "up"


def test_flapping_line_is_degraded(link, clock):
    """Every other request lost: neither up nor down."""
    for _ in range(20):
        link.failed()
        clock.advance(3)
        link.succeeded()
        clock.advance(3)
    assert link.state == "degraded"
    clock.advance(MEMORY_S + 1)
    assert link.state == "up"


def test_down_lasts_without_requests(link, clock):
    """Time alone proves nothing."""
    bring_down(link, clock)
    clock.advance(86400)
    assert link.state == "down"


def test_listeners_hear_every_change_in_order(link, clock):
    """And may ask the link, which holds no lock meanwhile."""
    heard = []
    link.listen(lambda old, new: heard.append((old, new, link.state)))
    bring_down(link, clock)
    link.succeeded()
    assert [(old, new) for old, new, _ in heard] == [
        ("up", "degraded"),
        ("degraded", "down"),
        ("down", "degraded"),
    ]
    assert all(new == state for _, new, state in heard)


def test_refusal_proves_the_line(clock, link):
    """403 and 404 are answers."""
    bring_down(link, clock)
    with pytest.raises(CloudRefused), link.request(may_wait=False):
        raise CloudRefused("x")
    assert link.state == "degraded"


def test_only_one_request_goes_out_while_down(clock, link):
    """The others fail at once; the one probe decides."""
    store = FakeStore(clock)
    observed = ObservedStore(store, link)
    bring_down(link, clock)
    inside, leave = threading.Event(), threading.Event()

    def slow_head(key, version_id=None):
        inside.set()
        assert leave.wait(10)
        raise CloudUnavailable("head", key)

    store.head = slow_head
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(observed.head, "a")
        assert inside.wait(10)
        for _ in range(5):
            with pytest.raises(CloudUnavailable, match="line is down"):
                observed.put("k", b"", sha256=SHA256_OF_NOTHING, lane=Lane.NEW)
        assert store.requests == []
        leave.set()
        assert isinstance(probe.exception(10), CloudUnavailable)
    observed.put("k", b"", sha256=SHA256_OF_NOTHING)
    assert link.state == "degraded"
    assert link.wait_passable(0)


def test_observed_store_notes_outcomes(clock, link):
    """Lost requests of every kind bring the line down; a missing object does not."""
    store = FakeStore(clock)
    observed = ObservedStore(store, link)
    with pytest.raises(ObjectMissing):
        observed.head("none")
    assert link.state == "up"
    store.offline = True
    for ask in (
        lambda: observed.head("a"),
        lambda: observed.get("a"),
        lambda: list(observed.versions()),
        lambda: list(observed.objects()),
        observed.server_time,
    ):
        with pytest.raises(CloudUnavailable):
            ask()
        clock.advance(2)
    assert link.state == "down"
    assert not link.wait_passable(1)
    store.offline = False
    assert list(observed.versions()) == []
    assert link.state == "degraded"


def test_listing_that_breaks_off_is_noted(clock, link):
    """A page lost in the middle is a lost request."""
    store = FakeStore(clock)

    def broken(prefix="", after_key=""):
        yield from ["a"]
        raise CloudUnavailable("list", prefix)

    store.versions = broken
    observed = ObservedStore(store, link)
    for _ in range(3):
        with pytest.raises(CloudUnavailable):
            list(observed.versions())
    assert link.state == "degraded"


def test_a_time_that_is_known_is_no_sign_of_life(clock, link):
    """The bucket's clock is remembered for a minute: asking for it proves nothing of the line."""
    store = FakeStore(clock)
    observed = ObservedStore(store, link)
    for _ in range(4):
        observed.server_time()
        store.fail("put", no_answer())
        with pytest.raises(CloudUnavailable):
            observed.put("k", b"", sha256=SHA256_OF_NOTHING)
        clock.advance(3)
    assert link.state == "down"


def test_scripted_fault_is_met_once(clock):
    """The fake's own faults are one each."""
    store = FakeStore(clock)
    store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        store.put("k", b"", sha256=SHA256_OF_NOTHING)
    assert store.keys() == []
    store.put("k", b"", sha256=SHA256_OF_NOTHING)


def test_backoff_is_full_jitter_with_a_cap_and_no_end():
    """Delays lie between nought and a doubling ceiling; weeks of failures change nothing."""
    backoff = Backoff(base_s=1.0, cap_s=60.0, source=random.Random(7))
    delays = [backoff.next_delay_s() for _ in range(20_000)]
    assert all(delay <= min(60.0, 2.0 ** min(number, 9)) for number, delay in enumerate(delays))
    late = delays[10:]
    assert min(late) < 1.0
    assert 59.0 < max(late) <= 60.0
    assert sum(late) / len(late) == pytest.approx(30.0, rel=0.02)
    backoff.reset()
    assert backoff.next_delay_s() <= 1.0
