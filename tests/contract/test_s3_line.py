"""The real server behind a line that is slow, cut or dead."""

import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC
from urllib.parse import urlsplit

import pytest

from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import CloudUnavailable, ObjectExists
from appliance.remote import s3_connection
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import S3Settings
from appliance.remote.store import FileBody, Lane, holds_body
from appliance.remote.throttle import ConstantRate, Throttle
from tests.support.s3_fixture import unlimited
from tests.support.tcp_proxy import TcpProxy

MBIT = 125_000.0


@pytest.fixture
def proxy(s3_settings: S3Settings) -> Iterator[TcpProxy]:
    address = urlsplit(s3_settings.endpoint_url)
    with TcpProxy((address.hostname, address.port)) as proxy:
        yield proxy


def through(proxy: TcpProxy, settings: S3Settings, throttle: Throttle | None = None) -> S3Store:
    settings = dataclasses.replace(settings, endpoint_url=proxy.url)
    return S3Store(settings, throttle or unlimited(), SystemClock())


def spool(tmp_path, size_bytes: int) -> tuple[FileBody, bytes]:
    content = os.urandom(size_bytes)
    path = tmp_path / "spool"
    path.write_bytes(content)
    return FileBody.whole(str(path)), hashlib.sha256(content).digest()


def test_bytes_on_the_wire_stay_between_95_and_100_percent(proxy, s3_settings, tmp_path):
    """8 Mbit/s over five seconds, counted by the proxy, with three threads in two lanes."""
    rate = 8 * MBIT
    throttle = Throttle(ConstantRate(rate), UTC, SystemClock())
    store = through(proxy, s3_settings, throttle)
    body, digest = spool(tmp_path, int(rate * 5 / 3))
    threads = [
        threading.Thread(
            target=store.put, args=(f"k{n}", body), kwargs={"sha256": digest, "lane": lane}
        )
        for n, lane in enumerate([Lane.NEW, Lane.NEW, Lane.BACKFILL])
    ]
    start_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - start_s
    share = proxy.up_bytes / (rate * took_s)
    assert 0.95 <= share <= 1.005  # the start's burst over 5 s, not over a minute
    assert proxy.up_bytes == throttle.sent_bytes
    whole = sorted(proxy.up_bytes_by_second.items())[1:-1]
    assert whole
    assert all(sent <= rate * 1.06 for _, sent in whole)


def test_rate_changes_in_the_middle_of_a_body(proxy, s3_settings, tmp_path):
    """Raised from a crawl to no limit, a put in progress ends at once."""
    throttle = Throttle(ConstantRate(0.5 * MBIT), UTC, SystemClock())
    store = through(proxy, s3_settings, throttle)
    body, digest = spool(tmp_path, 4_000_000)  # over a minute at that rate
    thread = threading.Thread(target=store.put, args=("k", body), kwargs={"sha256": digest})
    start_s = time.monotonic()
    thread.start()
    while proxy.up_bytes < 20_000:
        assert time.monotonic() - start_s < 30
        time.sleep(0.01)  # the proxy has no event for a count
    throttle.set_timetable(ConstantRate(None))
    thread.join(20)
    assert not thread.is_alive()
    assert holds_body(store.head("k"), body)


def test_waiting_reader_overtakes_an_upload(proxy, s3_settings, s3_store, tmp_path):
    """A GET under a throttle does not queue behind the body of a put."""
    s3_store.put("old", b"x" * 1000, sha256=hashlib.sha256(b"x" * 1000).digest())
    throttle = Throttle(ConstantRate(1 * MBIT), UTC, SystemClock())
    store = through(proxy, s3_settings, throttle)
    body, digest = spool(tmp_path, 1_000_000)
    thread = threading.Thread(
        target=store.put, args=("k", body), kwargs={"sha256": digest, "lane": Lane.BACKFILL}
    )
    thread.start()
    while proxy.up_bytes < 5_000:
        time.sleep(0.01)
    start_s = time.monotonic()
    assert store.get("old") == b"x" * 1000
    assert time.monotonic() - start_s < 1.5
    assert thread.is_alive()
    throttle.set_timetable(ConstantRate(None))
    thread.join()


def test_lost_answer_is_settled_by_the_stored_checksum(proxy, s3_settings, s3_store, tmp_path):
    """PUT took effect, its answer was lost: the retry meets 412, and head says it is ours."""
    store = through(proxy, s3_settings)
    body, digest = spool(tmp_path, 300_000)
    proxy.cut_answer_after_bytes = body.size_bytes
    with pytest.raises(CloudUnavailable):
        store.put("packs/a", body, sha256=digest)
    while s3_store.oldest_version("packs/a") is None:
        time.sleep(0.01)
    proxy.cut_answer_after_bytes = None
    with pytest.raises(ObjectExists):
        store.put("packs/a", body, sha256=digest)
    version = store.oldest_version("packs/a")
    assert holds_body(store.head("packs/a", version.version_id), body)
    assert len(list(store.versions("packs/a"))) == 1


@pytest.mark.parametrize("after_bytes", [200, 5_000, 900_000])
def test_cut_in_the_middle_of_a_body_stores_nothing(
    proxy, s3_settings, s3_store, tmp_path, after_bytes
):
    """Early, in the middle and late: no object, and the retry makes the only version."""
    store = through(proxy, s3_settings)
    body, digest = spool(tmp_path, 1_000_000)
    proxy.cut_up_after_bytes = after_bytes
    with pytest.raises(CloudUnavailable):
        store.put("packs/a", body, sha256=digest)
    proxy.cut_up_after_bytes = None
    assert s3_store.oldest_version("packs/a") is None
    store.put("packs/a", body, sha256=digest)
    assert len(list(store.versions("packs/a"))) == 1


def test_dead_line_is_given_up_after_the_timeout(proxy, s3_settings, monkeypatch, tmp_path):
    """Connections stay open and nothing moves: the put and the get end by themselves."""
    monkeypatch.setattr(s3_connection, "READ_TIMEOUT_LEAST_S", 1.0)
    monkeypatch.setattr(s3_connection, "SEND_TIMEOUT_S", 1.0)
    store = through(proxy, s3_settings)
    body, digest = spool(tmp_path, 20_000_000)
    store.put("seed", b"s", sha256=hashlib.sha256(b"s").digest())
    proxy.stalled = True
    for ask in (
        lambda: store.put("k", body, sha256=digest),
        lambda: store.get("seed", None, 0, 1),
        lambda: store.head("seed"),
    ):
        start_s = time.monotonic()
        with pytest.raises(CloudUnavailable):
            ask()
        assert time.monotonic() - start_s < 10
    proxy.stalled = False
    assert store.get("seed") == b"s"


def test_connections_that_died_unseen_do_not_fail_more_than_once(proxy, s3_settings):
    """After an outage pooled connections are dead: requests go on over new ones."""
    store = through(proxy, s3_settings)
    store.put("seed", b"s", sha256=hashlib.sha256(b"s").digest())
    proxy.cut()
    failures = 0
    for _ in range(3):
        try:
            assert store.get("seed") == b"s"
        except CloudUnavailable:
            failures += 1
    assert failures <= 1


def test_refusing_line_is_unavailable(proxy, s3_settings):
    """Nobody behind the proxy."""
    store = through(proxy, s3_settings)
    proxy.refuse = True
    with pytest.raises(CloudUnavailable):
        store.head("k")
