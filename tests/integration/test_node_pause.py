"""Daemons that stand still, or that can't have their keys, beside others that go on."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliance.remote.embedded import EmbeddedS3
from tests.support.archive_box import Sample, sample
from tests.support.bucket import Bucket
from tests.support.node import Node, node  # noqa: F401
from tests.support.recording_sender import associate, store
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]
PAUSE_S = 20.0
BEGUN_BYTES = 300_000
LARGE = [sample(study, 1, 2_000_000) for study in range(4)]


def _store(node: Node, *samples: Sample) -> None:
    association = associate(node.port)
    for each in samples:
        assert store(association, each) == 0
    association.release()


@pytest.fixture
def line(s3_server: EmbeddedS3) -> Iterator[TcpProxy]:
    address = urlsplit(s3_server.endpoint_url)
    with TcpProxy((str(address.hostname), int(address.port or 0))) as found:
        yield found


def test_a_paused_uplink_doubles_nothing(
    tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str, line: TcpProxy
) -> None:
    """SIGSTOP in the middle of a body, the far side gives up meanwhile: afterwards each pack is
    there once, and the ledger names it once."""
    node = Node(
        tmp_path / "node", s3_server, s3_bucket, f"{tmp_path.name}/", endpoint=line.url,
        rate="8 Mbit/s",
    )  # fmt: skip
    node.start()
    try:
        line.reset_counts()
        _store(node, *LARGE)
        end_s = time.monotonic() + 60
        while line.up_bytes < BEGUN_BYTES:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        os.kill(node.processes["uplink"].pid, signal.SIGSTOP)
        line.cut()  # as a server does with a connection on which nothing comes
        _store(node, sample(9, 1))  # receiving goes on
        time.sleep(PAUSE_S)
        os.kill(node.processes["uplink"].pid, signal.SIGCONT)
        node.drain()
        bucket = Bucket(node)
        keys = [each.key for each in bucket.store.versions()]
        assert len([key for key in keys if key.startswith("packs/")]) == len(LARGE) + 1
        immutable = [key for key in keys if not key.startswith("nodes/")]
        assert len(immutable) == len(set(immutable))
        named = [each.pack_id for each in bucket.records() if hasattr(each, "pack_id")]
        assert len(named) == len(set(named)) == len(LARGE) + 1
    finally:
        node.stop()


def test_without_its_keys_the_uplink_does_not_start_and_receiving_goes_on(node: Node) -> None:
    """One error that names the file; with the file back, all that came is brought to verified."""
    aside = node.folder / "aside.key"
    os.rename(node.folder / "node.key", aside)
    node.start()
    assert node.processes["uplink"].wait(60) != 0
    assert "node.key" in node.log("uplink")
    del node.processes["uplink"]
    _store(node, sample(1, 1))
    assert node.processes["receive"].poll() is None
    conditions = {each["condition"] for each in node.status()["problems"]}
    assert "uplink" in conditions
    os.rename(aside, node.folder / "node.key")
    node.start("uplink")
    assert node.drain()["pending_instances"] == 0
