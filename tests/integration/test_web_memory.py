"""The web daemon's memory under many retrievals at a time of a study that is larger than it."""

import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import senders
from tests.bench.datasets import make_study, study_uid
from tests.bench.measure_wado import ACCEPT, get
from tests.support.node import Node
from tests.support.running_node import running_node
from tests.support.web_client import WebClient

pytestmark = pytest.mark.soak
RETRIEVALS = 20
COUNT = 300
SIZE = 512
RUN = 950
MEMORY_MAX_BYTES = 300 * 2**20


@pytest.fixture
def node(tmp_path: Path, s3_server, s3_bucket) -> Iterator[Node]:
    daemons = ("receive", "uplink", "web")
    with running_node(tmp_path / "node", s3_server, s3_bucket, *daemons) as found:
        yield found


def anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that is its own: no pages of files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


def test_memory_is_bounded_under_parallel_retrievals(node: Node, tmp_path: Path) -> None:
    """Twenty at once of 157 MB each, cached and then evicted: all whole, in bounded memory."""
    sent = make_study(tmp_path / "sent", SIZE, COUNT, RUN)
    senders.store(node.port, sent)
    study = study_uid(SIZE, RUN)
    client = WebClient(node)
    tls = ssl.create_default_context(cafile=str(client.authority))
    pid = node.processes["web"].pid
    for evicted in (False, True):
        if evicted:
            node.drain()
            node.azekura("study", "evict", study)
        received: list[int] = []

        def retrieve(into: list[int] = received) -> None:
            path = f"/dicom-web/studies/{study}"
            into.append(get(node.web_port, path, ACCEPT, tls, client.token))

        threads = [threading.Thread(target=retrieve) for _ in range(RETRIEVALS)]
        for thread in threads:
            thread.start()
        peak = 0
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, anonymous_bytes(pid))
            threads[0].join(0.1)
        assert len(received) == RETRIEVALS
        assert min(received) > COUNT * SIZE * SIZE * 2
        print(f"evicted {evicted}: peak {peak / 2**20:.0f} MiB")
        assert peak < MEMORY_MAX_BYTES
