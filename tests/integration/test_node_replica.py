"""The bucket is cut off, and a replica has the same objects: evicted studies come all the same."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliance.archive.requests import Request, RequestBox
from appliance.foundation.clock import SystemClock
from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from appliance.remote.s3 import S3Store
from tests.support.archive_box import sample
from tests.support.node import Node
from tests.support.quick_status import quick_status
from tests.support.recording_sender import Sender, digests_of, fetch_all
from tests.support.s3_fixture import s3_bucket, s3_server, unlimited  # noqa: F401
from tests.support.tcp_proxy import TcpProxy

COPY = "elsewhere"
COMES_WITHIN_S = 25.0  # less than a read timeout
EVICTED = [sample(1, number, 200_000) for number in range(8)]
LARGE = [sample(2, 1, 9_000_000)]
_REPLICA = """
[[cloud.replicas]]
endpoint_url = "{url}"
region = "us-east-1"
bucket = "{bucket}"
prefix = "{prefix}"
profile = "{profile}"
"""
_CREDENTIALS = """
[reads-the-copy]
aws_access_key_id = {id}
aws_secret_access_key = {secret}
"""


@pytest.fixture
def line(s3_server: EmbeddedS3) -> Iterator[TcpProxy]:
    """The line to the bucket, which can be cut; the replica has another."""
    address = urlsplit(s3_server.endpoint_url)
    with TcpProxy((str(address.hostname), int(address.port or 0))) as found:
        yield found


@pytest.fixture
def node(tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str, line: TcpProxy) -> Iterator[Node]:
    """A node behind that line."""
    found = Node(tmp_path / "node", s3_server, s3_bucket, f"{tmp_path.name}/", endpoint=line.url)
    yield found
    found.stop()


def _replicate(node: Node) -> None:
    """Copy every object as another provider's replication does: bytes kept, version ids new."""
    node.server.create_bucket(COPY)
    stores = [
        S3Store(node.server.settings(bucket, prefix=node.prefix), unlimited(), SystemClock())
        for bucket in (node.bucket, COPY)
    ]
    for info in list(stores[0].versions()):
        body = stores[0].get(info.key, info.version_id, 0, info.size_bytes)
        stores[1].put(info.key, body, sha256=hashlib.sha256(body).digest())


@pytest.mark.parametrize("cut", ["stalled", pytest.param("refused", marks=pytest.mark.soak)])
def test_evicted_studies_come_from_the_replica(
    node: Node, line: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Byte for byte and soon, also when the line swallows what is sent without a word; the
    replica's own profile reads it. That they fail without one is test_node_outage's."""
    credentials = node.server.credentials
    assert credentials is not None
    file = tmp_path / "credentials"
    file.write_text(
        _CREDENTIALS.format(id=credentials.access_key_id, secret=credentials.secret_access_key)
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    node.server.create_bucket(COPY)
    replica = _REPLICA.format(
        url=node.server.endpoint_url, bucket=COPY, prefix=node.prefix, profile="reads-the-copy"
    )
    node.configure(peers=replica)
    node.start()
    Sender(node.port, [*EVICTED, *LARGE]).start().finish(60)
    node.drain()
    box = RequestBox(FileSystem(), str(node.data / "state" / "requests"))
    for each in (EVICTED[0], LARGE[0]):
        assert box.wait(box.put(Request(kind="evict", study_instance_uid=each.study)), 60).done
    assert [each["link"] for each in quick_status(node)["replicas"]] == ["up"]
    _replicate(node)

    line.refuse, line.stalled = cut == "refused", cut == "stalled"
    if line.refuse:
        line.cut()
    began_s = time.monotonic()
    assert fetch_all(node.port, EVICTED) == digests_of(EVICTED)
    assert time.monotonic() - began_s < COMES_WITHIN_S
    assert fetch_all(node.port, LARGE) == digests_of(LARGE)
    line.refuse = line.stalled = False
    line.cut()
