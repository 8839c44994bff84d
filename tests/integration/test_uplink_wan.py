"""The uplink over a wire that loses packets, goes silent, flaps or is pulled out.

Real TCP over a real link: what the kernel does with lost segments and half-open connections is
part of what is proved. The uplink's own threads run inside the namespace, on the system's clock.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliance.archive.uplink import Uplink
from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import CloudUnavailable
from appliance.remote.embedded import EmbeddedS3
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import S3Settings
from appliance.remote.s3_connection import DEAD_PEER_S
from appliance.remote.throttle import ConstantRate, Throttle
from tests.support.archive_box import Box, sample
from tests.support.s3_fixture import s3_settings, unlimited  # noqa: F401
from tests.support.tcp_proxy import TcpProxy
from tests.support.wan import Wan, unable

RATE_BYTES_PER_S = 1_000_000


@pytest.fixture
def wan() -> Iterator[Wan]:
    if reason := unable():
        pytest.skip(f"NOT PROVED HERE, no network namespaces: {reason}")
    with Wan() as found:
        yield found


@pytest.fixture
def line(wan: Wan, s3_server: EmbeddedS3) -> Iterator[TcpProxy]:
    """Counts what arrives at the bucket's end of the wire."""
    address = urlsplit(s3_server.endpoint_url)
    with TcpProxy((str(address.hostname), int(address.port or 0)), wan.host) as found:
        yield found


class Site:
    """A node's uplink inside the namespace."""

    def __init__(self, folder: Path, wan: Wan, settings: S3Settings, line: TcpProxy) -> None:
        clock = SystemClock()
        self.wan = wan
        throttle = Throttle(ConstantRate(RATE_BYTES_PER_S), UTC, clock)
        self.link = Link(clock)
        near = S3Store(replace(settings, endpoint_url=line.url), throttle, clock)
        self.box = Box(folder, ObservedStore(near, self.link), clock=clock)
        # The bucket as it is, past the wire.
        self.bucket = S3Store(settings, unlimited(), clock)
        box = self.box
        self.uplink = Uplink(
            box.files, clock, box.layout, box.index, box.ledger(), box.upload(), "test",
            box.fatal.append,
        )  # fmt: skip

    def receive(self, packs: int, size_bytes: int) -> None:
        """Have studies ready to be sent, a pack each."""
        for study in range(packs):
            self.box.store_sample(sample(study, 1, size_bytes))
        self.box.close_packs()
        self.box.indexer().catch_up()

    def verified(self) -> int:
        """Return how many packs are verified."""
        return sum(self.box.pack(each).cloud is not None for each in self.box.pack_ids())

    def caught_up(self) -> bool:
        return self.verified() == len(self.box.pack_ids())

    def each_once(self) -> bool:
        """Whether no key in the bucket has a second version."""
        keys = [each.key for each in self.bucket.versions()]
        return len(keys) == len(set(keys)) > 0


@pytest.fixture
def site(tmp_path: Path, wan: Wan, s3_settings: S3Settings, line: TcpProxy) -> Iterator[Site]:
    found = Site(tmp_path, wan, s3_settings, line)
    yield found
    wan.clear()
    wan.plug_in()
    found.uplink.stop()
    found.box.close()


def _until(what: Callable[[], bool], timeout_s: float, meanwhile: Callable[[], object] = int):
    """Wait for a condition; return how long it took."""
    began_s = time.monotonic()
    while not what():
        assert time.monotonic() - began_s < timeout_s
        meanwhile()
        time.sleep(0.05)
    return time.monotonic() - began_s


def test_five_percent_of_the_packets_are_lost(site: Site, line: TcpProxy) -> None:
    """Slower at worst, never stuck, never above the set rate; nothing twice."""
    site.receive(4, 1_000_000)
    site.wan.lose(5)
    line.reset_counts()
    site.wan.run(site.uplink.start)
    took_s = _until(site.caught_up, 100)
    part = line.up_bytes / (line.last_up_s - line.first_up_s) / RATE_BYTES_PER_S
    print(f"5 % lost: {took_s:.1f} s, {100 * part:.1f} % of the rate")
    # One burst of the token bucket is above the rate in so short a time.
    assert part <= 1.05 + 0.25 / took_s
    assert site.each_once()


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_the_rate_holds_for_half_a_minute_of_loss(site: Site, line: TcpProxy) -> None:
    """Never more than 5 % above what is set, by bytes that arrive; and most of it is used."""
    site.receive(8, 4_000_000)
    site.wan.lose(5)
    line.reset_counts()
    site.wan.run(site.uplink.start)
    _until(site.caught_up, 300)
    part = line.up_bytes / (line.last_up_s - line.first_up_s) / RATE_BYTES_PER_S
    print(f"5 % lost over {line.last_up_s - line.first_up_s:.0f} s: {100 * part:.1f} % of the rate")
    assert 0.7 <= part <= 1.05
    assert site.each_once()


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_half_open_connection_ends_within_its_deadline(site: Site, line: TcpProxy) -> None:
    """Connected, then silence: a minute at most, and the next try finds what took effect."""
    store = site.box.store
    body = b"x" * 2_000_000
    digest = hashlib.sha256(body).digest()

    def put() -> float:
        began_s = time.monotonic()
        with pytest.raises(CloudUnavailable):
            store.put("half-open", body, sha256=digest)
        return time.monotonic() - began_s

    assert site.wan.run(store.server_time) is not None
    site.wan.fall_silent()
    took_s = site.wan.run(put)
    print(f"half-open: given up after {took_s:.1f} s")
    assert took_s <= DEAD_PEER_S + 5
    site.wan.clear()
    site.wan.run(lambda: store.put("half-open", body, sha256=digest))
    assert site.each_once()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["blocked", "pulled out", "half-open"])
def test_a_line_that_flaps_each_five_seconds(site: Site, line: TcpProxy, way: str) -> None:
    """Five seconds up, five down, for a minute: work goes on in between, then all catches up."""
    site.receive(20, 2_000_000)
    site.wan.run(site.uplink.start)
    down = {
        "blocked": site.wan.block, "pulled out": site.wan.pull_out,
        "half-open": site.wan.fall_silent,
    }[way]  # fmt: skip
    up = site.wan.plug_in if way == "pulled out" else site.wan.clear
    for _ in range(6):
        down()
        time.sleep(5)
        up()
        time.sleep(5)
    came = site.verified()
    requests = line.connections_count
    took_s = _until(site.caught_up, 300)
    print(f"{way}: {came} of 20 packs while it flapped, the rest in {took_s:.0f} s")
    assert site.each_once()
    assert requests < 200, "a storm of connections"
    assert site.box.fatal == []


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_link_that_drops_and_returns(site: Site, line: TcpProxy) -> None:
    """Down is said within the time of a few tries; with the link back, all drains by itself."""
    site.receive(10, 1_000_000)
    site.wan.run(site.uplink.start)
    _until(lambda: site.verified() > 0, 60)
    site.wan.pull_out()
    _until(lambda: site.link.state == "down", 200)
    assert not site.caught_up()
    site.wan.plug_in()
    _until(site.caught_up, 200)
    assert site.link.state != "down"
    assert site.uplink.problems() == []
    assert site.each_once()


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_line_over_a_satellite(site: Site, line: TcpProxy) -> None:
    """800 ms there and back, and 5 % lost: slow, never stuck; what is evicted comes back."""
    site.receive(3, 200_000)
    line.delay_s = 0.4
    site.wan.lose(5)
    site.wan.run(site.uplink.start)
    took_s = _until(site.caught_up, 300)
    print(f"800 ms, 5 % lost: 0.6 MB verified in {took_s:.0f} s")
    assert site.each_once()
    box = site.box
    for pack_id in box.pack_ids():
        site.wan.run(lambda pack_id=pack_id: box.evictor.evict_pack(pack_id))
    expected = {sample(study, 1, 200_000).sop_instance_uid for study in range(3)}
    found = site.wan.run(box.fetch)
    assert found.keys() == expected
    assert all(isinstance(each, bytes) for each in found.values())
