"""The bucket's port is closed: what is here goes on, what is not is told, and all of it drains."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.archive.requests import Request, RequestBox
from appliance.archive.status import node_status
from appliance.config.load import load
from appliance.daemons.parts import Parts
from appliance.dicom import status
from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from tests.support.archive_box import Sample, sample
from tests.support.bucket_look import packs_in_bucket, packs_in_ledger
from tests.support.node import Node
from tests.support.recording_sender import Sender, digests_of, fetch, fetch_all
from tests.support.s3_fixture import s3_bucket, s3_server  # noqa: F401
from tests.support.tcp_proxy import TcpProxy

FAILS_WITHIN_S = 15.0
SETTLES_WITHIN_S = 60.0
STANDS_STILL_S = 50.0
EVICTED = [sample(1, number, 50_000) for number in range(6)]
CACHED = [sample(2, number, 50_000) for number in range(6)]
NEW = [sample(3, number, 50_000) for number in range(6)]
AWAY = [sample(number, 1, 9_000) for number in range(10, 20)]


@pytest.fixture
def line(s3_server: EmbeddedS3) -> Iterator[TcpProxy]:
    """The line to the bucket, which can be cut."""
    address = urlsplit(s3_server.endpoint_url)
    with TcpProxy((str(address.hostname), int(address.port or 0))) as found:
        yield found


@pytest.fixture
def node(tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str, line: TcpProxy) -> Iterator[Node]:
    """A node behind that line."""
    found = Node(
        tmp_path / "node", s3_server, s3_bucket, f"{tmp_path.name}/", endpoint=line.url
    )  # fmt: skip
    yield found
    found.stop()


def _until(what: Callable[[], bool], timeout_s: float = SETTLES_WITHIN_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.2)


def _status(node: Node) -> dict[str, Any]:
    """Return what `azekura status --json` says, without starting a process for it."""
    parts = Parts(load(str(node.config_path)))
    try:
        return node_status(parts.config, parts.layout, parts.index, parts.clock, parts.condition)
    finally:
        parts.close()


def _evict(node: Node, samples: Sequence[Sample]) -> None:
    """Do what `azekura study evict` does, for many studies at once."""
    box = RequestBox(FileSystem(), str(node.data / "state" / "requests"))
    studies = dict.fromkeys(each.study for each in samples)
    asked = [box.put(Request(kind="evict", study_instance_uid=study)) for study in studies]
    assert all(box.wait(each, 60).done for each in asked)


def _close(line: TcpProxy) -> None:
    line.refuse = True
    line.cut()


def test_an_outage_is_ridden_out(node: Node, line: TcpProxy) -> None:
    """Cached studies are answered, evicted ones fail in bounded time and with the reason,
    receiving goes on, the link is down; reopened, everything drains by itself."""
    node.start()
    Sender(node.port, [*EVICTED, *CACHED, *AWAY]).start().finish(60)
    node.drain()
    _evict(node, [*EVICTED, *AWAY])
    _close(line)

    assert fetch_all(node.port, CACHED) == digests_of(CACHED)
    failed = fetch(node.port, EVICTED[0].study)
    assert failed.digests == {}
    assert failed.status == status.OUT_OF_RESOURCES_SUBOPERATIONS
    assert "cloud" in failed.comment
    assert failed.took_s < FAILS_WITHIN_S

    Sender(node.port, NEW).start().finish(60)
    assert fetch_all(node.port, NEW) == digests_of(NEW)
    _until(lambda: _status(node)["link"] == "down")
    found = _status(node)
    assert found["pending_instances"] == len(NEW)
    assert "cloud" in {each["condition"] for each in found["problems"]}
    found = node.dcmtk(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID",
        "-k", "InstanceAvailability",
    )  # fmt: skip
    assert found.count("NEARLINE") == 1 + len(AWAY)
    assert found.count("ONLINE") == 2

    line.refuse = False
    _until(lambda: _status(node)["pending_instances"] == 0)
    _until(lambda: _status(node)["problems"] == [])
    assert fetch_all(node.port, [*EVICTED, *AWAY]) == digests_of([*EVICTED, *AWAY])
    assert sorted(packs_in_ledger(node)) == packs_in_bucket(node)


def test_a_start_without_the_bucket(node: Node, line: TcpProxy) -> None:
    """The line was down before the node came up: it receives, answers, and drains later."""
    _close(line)
    node.start()
    Sender(node.port, NEW).start().finish(60)
    assert fetch_all(node.port, NEW) == digests_of(NEW)
    assert _status(node)["pending_instances"] == len(NEW)
    line.refuse = False
    _until(lambda: _status(node)["pending_instances"] == 0)
    assert sorted(packs_in_ledger(node)) == packs_in_bucket(node)


@pytest.mark.soak
def test_an_answer_that_stops_coming_is_given_up(node: Node, line: TcpProxy) -> None:
    """The line stands still while its connections stay open: a reader is told in bounded time,
    what is cached is served meanwhile, and after that the line is used again."""
    node.start()
    Sender(node.port, [*EVICTED, *CACHED]).start().finish(60)
    node.drain()
    _evict(node, EVICTED)
    line.stalled = True
    began_s = time.monotonic()
    assert fetch_all(node.port, CACHED) == digests_of(CACHED)
    failed = fetch(node.port, EVICTED[0].study)
    assert failed.digests == {}
    assert failed.comment
    assert time.monotonic() - began_s < STANDS_STILL_S
    line.stalled = False
    line.cut()
    assert fetch_all(node.port, EVICTED) == digests_of(EVICTED)
