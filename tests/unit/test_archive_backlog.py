"""The backlog as status and the uplink see it: what is sampled, and what room an outage has."""

from datetime import UTC
from types import SimpleNamespace

import pytest

from appliance.archive.backlog import BacklogWatch
from appliance.archive.history import HOUR_S, History, Stretch, read_history
from appliance.archive.index_condition import IndexCondition
from appliance.archive.status import UplinkStatus, node_status, write_uplink_status
from appliance.config.load import loads
from appliance.config.model import Alarms
from appliance.remote.link import Link
from appliance.remote.throttle import ConstantRate, Throttle
from tests.support.archive_box import Box, sample
from tests.unit.test_archive_drill import CONFIG

MIB = 2**20


def _watch(box: Box, link: Link, **options) -> BacklogWatch:
    throttle = Throttle(ConstantRate(1000.0), UTC, box.clock)
    return BacklogWatch(
        box.files, box.clock, box.layout, box.index, box.space, box.uplink, throttle, link,
        Alarms(), **options,
    )  # fmt: skip


def _down(box: Box) -> Link:
    link = Link(box.clock)
    for _ in range(5):
        link.failed()
        box.clock.advance(5)
    assert link.state == "down"
    return link


@pytest.fixture
def filled(box: Box) -> Box:
    """A megabyte verified and cached, a megabyte pending, and a history of a MiB an hour."""
    box.store_sample(sample(1, 1, MIB))
    box.drain()
    box.store_sample(sample(2, 1, MIB))
    box.close_packs()
    box.indexer().catch_up()
    box.space.capacity_bytes = 20 * MIB
    return box


def _comes(watch: BacklogWatch, box: Box) -> None:
    now_s = box.clock.now().timestamp()
    watch._recorder.history = History(
        at_s=now_s - 30, pending_bytes=2 * MIB, minutes=[Stretch(now_s - 30, float(MIB), HOUR_S)]
    )


def test_an_outage_has_the_room_that_is_free(filled: Box) -> None:
    """Eviction asks the bucket for proof: the cached megabyte stays where it is till then."""
    watch = _watch(filled, _down(filled))
    _comes(watch, filled)
    watch.look()
    assert watch.outlook is not None
    assert watch.outlook.after_return
    assert watch.outlook.time_to_full_s == pytest.approx(18 * HOUR_S, rel=0.03)
    up = _watch(filled, Link(filled.clock))
    _comes(up, filled)
    up.look()
    assert up.outlook is not None
    assert up.outlook.time_to_full_s is None
    assert up.outlook.time_to_drain_s == pytest.approx(1478, rel=0.05)


def test_what_comes_and_what_leaves_is_sampled(box: Box) -> None:
    watch = _watch(box, Link(box.clock))
    watch.look()
    box.store_sample(sample(1, 1, MIB))
    box.clock.advance(30)
    box.drain()
    watch.look()
    (stretch,) = read_history(box.layout).minutes
    assert stretch.bytes == pytest.approx(MIB, rel=0.05)
    assert stretch.watched_s == pytest.approx(30, abs=0.1)


def test_an_index_that_is_not_whole_is_no_sample(filled: Box) -> None:
    """What is pending would look like little: nothing is sampled, and nothing forecast."""
    condition = SimpleNamespace(incomplete=lambda: "it is made anew")
    watch = _watch(filled, Link(filled.clock), condition=condition)
    watch.look()
    assert watch.outlook is None
    assert read_history(filled.layout).minutes == []


def test_status_says_from_when_the_drain_counts(filled: Box) -> None:
    """With the line down, and with no uplink at all, nothing leaves and nothing is evicted."""
    config = loads(CONFIG.replace("1 GiB", "256 MiB"))
    condition = IndexCondition(filled.files, filled.clock, filled.layout)

    def status() -> dict:
        return node_status(config, filled.layout, filled.index, filled.clock, condition)

    assert status()["time_to_drain_from"] == "the return of the line"
    for link, counts_from in (("up", "now"), ("down", "the return of the line")):
        said = UplinkStatus(
            at_s=filled.clock.now().timestamp(), pid=1, link=link, ledger_sequence=1,
            upload_rate_bytes_per_s=1000.0, throttle_bytes_per_s=None, problems=[],
        )  # fmt: skip
        write_uplink_status(filled.files, filled.layout, said)
        found = status()
        assert found["time_to_drain_from"] == counts_from
        assert found["time_to_drain_s"] == pytest.approx(1050, rel=0.05)
    assert found["last_drill"] is None
