"""The throttle, counted where it matters: bytes that pass a proxy in front of the bucket."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliance.remote.embedded import EmbeddedS3
from tests.bench import senders
from tests.bench.datasets import make_study
from tests.support.node import Node
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

SLOW, FAST = 1_000_000, 4_000_000
MEASURE_S = 120
CHANGED_WITHIN_S = 5
BEGUN_BYTES = 2_000_000


@pytest.fixture
def proxy(s3_server: EmbeddedS3) -> Iterator[TcpProxy]:
    """A counting proxy in front of the bucket."""
    address = urlsplit(s3_server.endpoint_url)
    with TcpProxy((str(address.hostname), int(address.port or 0))) as found:
        yield found


def _rate(proxy: TcpProxy, seconds: float) -> float:
    """Return bytes a second that pass towards the bucket."""
    started, started_s = proxy.up_bytes, time.monotonic()
    time.sleep(seconds)
    return (proxy.up_bytes - started) / (time.monotonic() - started_s)


def test_upload_keeps_to_the_rate_and_takes_a_change(
    tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str, proxy: TcpProxy
) -> None:
    """8 Mbit/s over two minutes is 95 to 100 % by bytes on the socket; a change takes seconds."""
    node = Node(
        tmp_path / "node", s3_server, s3_bucket, "throttle/", endpoint=proxy.url,
        rate="8 Mbit/s", target_size="16 MiB",
    )  # fmt: skip
    node.start()
    try:
        senders.store(node.port, make_study(tmp_path / "sent", 512, 400, 1))
        end_s = time.monotonic() + 60
        while proxy.up_bytes < BEGUN_BYTES and time.monotonic() < end_s:
            time.sleep(0.1)
        part = _rate(proxy, MEASURE_S) / SLOW
        print(f"8 Mbit/s: {100 * part:.2f} % over {MEASURE_S} s")
        assert 0.95 <= part <= 1.0
        node.configure(rate="32 Mbit/s")
        time.sleep(CHANGED_WITHIN_S)
        changed = _rate(proxy, 10) / FAST
        print(f"32 Mbit/s: {100 * changed:.2f} % from {CHANGED_WITHIN_S} s after the change on")
        assert 0.95 <= changed <= 1.0
    finally:
        node.stop()
