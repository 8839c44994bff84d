"""The upload under a throttle: bytes that pass a counting proxy in front of the bucket."""

import time
from pathlib import Path

from tests.bench import senders
from tests.bench.datasets import make_study
from tests.support.node import Node
from tests.support.tcp_proxy import TcpProxy

SIZE, COUNT, RUN = 512, 120, 600
SETTLE_S = 5.0
BEGUN_BYTES = 500_000
MEASURE_S = 30.0
RATE_BYTES_PER_S = 1_000_000.0


def measure(folder: Path, node: Node, proxy: TcpProxy, seconds: float = MEASURE_S) -> float:
    """Return the rate on the socket as a part of the set one; the node's rate is 8 Mbit/s."""
    senders.store(node.port, make_study(folder / "sent", SIZE, COUNT, RUN))
    end_s = time.monotonic() + 60
    begun = proxy.up_bytes + BEGUN_BYTES
    while proxy.up_bytes < begun and time.monotonic() < end_s:
        time.sleep(0.1)
    time.sleep(SETTLE_S)
    started, started_s = proxy.up_bytes, time.perf_counter()
    time.sleep(seconds)
    sent = proxy.up_bytes - started
    return sent / (time.perf_counter() - started_s) / RATE_BYTES_PER_S
