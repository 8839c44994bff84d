"""A node whose clock and the bucket's disagree: what is locked until when, and what status says."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.foundation.clock import from_microseconds
from appliance.remote.embedded import EmbeddedS3
from tests.support.archive_box import Sample, sample
from tests.support.bucket import Bucket
from tests.support.node import Node
from tests.support.problems import wait_for_problem, wait_until_solved
from tests.support.recording_sender import associate, store
from tests.support.staged_s3 import StagedS3

AHEAD = timedelta(hours=2)
DECADES = timedelta(days=365 * 73)
FIRST, SECOND, THIRD = (sample(study, 1) for study in range(3))


@pytest.fixture
def staged(s3_server: EmbeddedS3) -> Iterator[StagedS3]:
    with StagedS3(s3_server.endpoint_url) as found:
        yield found


@pytest.fixture
def node(tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str, staged) -> Iterator[Node]:
    """A node whose bucket may have any time."""
    found = Node(tmp_path / "node", s3_server, s3_bucket, f"{tmp_path.name}/", endpoint=staged.url)
    yield found
    found.stop()


def _store(node: Node, each: Sample) -> None:
    association = associate(node.port)
    assert store(association, each) == 0
    association.release()


def test_a_bucket_of_another_time_dates_the_locks_and_is_named(node: Node, staged) -> None:
    """Two hours apart: locks by the bucket's clock, and an alarm."""
    staged.ahead = AHEAD
    node.start()
    _store(node, FIRST)
    node.drain()
    record = Bucket(node).pack_of(FIRST.sop_instance_uid)
    locked = from_microseconds(record.locked_until_us) - datetime.now(UTC)
    assert abs(locked - timedelta(days=1) - AHEAD) < timedelta(minutes=10)
    assert "behind the bucket's" in wait_for_problem(node, "clock")["sentence"]


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_clocks_decades_apart_lock_nothing_until_they_agree(node: Node, staged) -> None:
    """Receiving goes on meanwhile; afterwards all is verified, and the alarms are over."""
    node.start()
    _store(node, FIRST)
    node.drain()
    staged.ahead = DECADES
    _store(node, SECOND)
    wait_for_problem(node, "cloud")
    wait_for_problem(node, "clock")
    assert Bucket(node).pack_of(SECOND.sop_instance_uid) is None
    staged.ahead = timedelta(0)
    _store(node, THIRD)
    node.azekura("drain", "--timeout", "240 s")
    wait_until_solved(node, "clock")
    for each in (SECOND, THIRD):
        record = Bucket(node).pack_of(each.sop_instance_uid)
        assert from_microseconds(record.locked_until_us) < datetime.now(UTC) + timedelta(days=2)
