"""Copies in the bucket: a daily sample, its budget, what is found, and what becomes of it."""

import random
import threading

import pytest

from appliance.archive.cloud_scrub import RESTORED_DAYS, CloudScrub
from appliance.archive.layout import salvaged_pack_id
from appliance.archive.recall import Recaller
from appliance.config.care import Scrub
from appliance.foundation.errors import CloudUnavailable, Damaged, ObjectArchived
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.remote.replicas import Replica, ReplicatedStore
from tests.support.archive_box import NODE, Box, sample
from tests.support.fake_store import FakeStore, Fault, no_answer
from tests.support.mending import Mended, flip_dataset, mended, packs_by_study  # noqa: F401

DAY_S = 86400.0
PACKS = 5


class Scrubbed:
    """A cloud scrub over a box, driven hour by hour."""

    def __init__(self, mended: Mended, *, sample_per_day: int = 20, requests: int = 2000) -> None:
        box = mended.box
        self.box = box
        self.cloud = CloudScrub(
            box.files, box.clock, box.layout, box.index, box.store, box.recaller,
            mended.salvager, NODE,
            Scrub(cloud_sample_per_day=sample_per_day, cloud_requests_per_day=requests),
            threading.Event(), random.Random(1),
        )  # fmt: skip

    def hours(self, count: int) -> int:
        looked = 0
        for _ in range(count):
            looked += self.cloud.run_once()
            self.box.clock.advance(3600)
        return looked

    def conditions(self) -> set[str]:
        return {each.condition for each in self.cloud.problems()}


@pytest.fixture
def packs(box: Box) -> list[str]:
    for study in range(PACKS):
        box.store_sample(sample(study, 1))
        box.drain()
        box.clock.advance(60)
    return packs_by_study(box)


@pytest.fixture
def scrubbed(mended: Mended, packs: list[str]) -> Scrubbed:
    return Scrubbed(mended)


def test_a_sample_a_day_is_proved_and_a_tenth_of_it_reread(scrubbed: Scrubbed, box: Box) -> None:
    """By the bucket's word and list, some by every byte; `last_verified_at` says so."""
    box.store.requests.clear()
    assert 15 <= scrubbed.hours(24) <= 20
    heads = sum(operation == "head" for operation, _ in box.store.requests)
    gets = sum(operation == "get" for operation, _ in box.store.requests)
    assert 15 <= heads <= 20
    assert 1 <= gets <= 3
    assert scrubbed.conditions() == set()
    shown = scrubbed.cloud.document()
    assert shown["requests_per_day"] == 2000


def test_in_time_every_pack_is_met(scrubbed: Scrubbed, box: Box, packs) -> None:
    before = {pack_id: box.pack(pack_id).last_verified_us for pack_id in packs}
    scrubbed.hours(24 * 4)
    assert all(box.pack(pack_id).last_verified_us > before[pack_id] for pack_id in packs)


def test_the_day_s_budget_is_kept(mended: Mended, box: Box, packs) -> None:
    """However many findings want to be looked at."""
    scrubbed = Scrubbed(mended, sample_per_day=1000, requests=7)
    for pack_id in packs:
        scrubbed.cloud.suspect(pack_id)
    box.store.requests.clear()
    while scrubbed.cloud.document()["day"] in {"", f"{box.clock.now():%Y-%m-%d}"}:
        scrubbed.hours(1)
        if box.clock.now().hour == 23:
            break
    assert len(box.store.requests) <= 7


def test_none_a_day_makes_no_request(mended: Mended, box: Box, packs) -> None:
    scrubbed = Scrubbed(mended, sample_per_day=0)
    box.store.requests.clear()
    assert scrubbed.hours(48) == 0
    assert box.store.requests == []


def test_a_line_that_is_down_is_no_finding(scrubbed: Scrubbed, box: Box) -> None:
    box.store.offline = True
    scrubbed.hours(24)
    assert scrubbed.conditions() == set()


def test_a_damaged_copy_is_sent_again_from_here(
    scrubbed: Scrubbed, box: Box, mended: Mended, packs
) -> None:
    """It is said, the good pack here is not evicted, and its instances go to the bucket under
    another id; then it is over."""
    bad = packs[2]
    box.store.damage(box.pack(bad).cloud.key, at=-30)
    scrubbed.cloud.suspect(bad)
    box.evictor._suspect = scrubbed.cloud.is_suspect
    with pytest.raises(Damaged, match="found damaged"):
        box.evictor.evict_pack(bad)
    scrubbed.hours(1)
    assert scrubbed.conditions() == {"cloud_copy_damaged"}
    with pytest.raises(Damaged, match="found damaged"):
        box.evictor.evict_pack(bad)
    box.drain()
    new_id = salvaged_pack_id(bad)
    assert box.pack(new_id).state == "cached"
    scrubbed.hours(1)
    assert scrubbed.conditions() == set()
    for pack_id in (bad, new_id):
        box.evictor.evict_pack(pack_id)
    assert box.fetch()[sample(2, 1).sop_instance_uid] == sample(2, 1).dataset


def test_a_missing_version_is_sent_again_from_a_replica(
    scrubbed: Scrubbed, box: Box, mended: Mended, packs
) -> None:
    """Evicted, and then lost by the bucket: the replica has it still."""
    bad = packs[1]
    cloud = box.pack(bad).cloud
    box.evictor.evict_pack(bad)
    replica = FakeStore(box.clock)
    replica.seed(cloud.key, box.store.content(cloud.key))
    both = ReplicatedStore(
        ObservedStore(box.store, Link(box.clock)),
        [Replica("elsewhere", ObservedStore(replica, Link(box.clock)))],
    )
    scrubbed.cloud._recaller = Recaller(
        box.files, box.clock, box.layout, both, box.index, box.space
    )
    del box.store._keys[cloud.key]
    scrubbed.cloud.suspect(bad)
    scrubbed.hours(1)
    assert scrubbed.conditions() == {"cloud_copy_missing"}
    box.drain()
    scrubbed.hours(1)
    assert scrubbed.conditions() == set()
    assert box.pack(salvaged_pack_id(bad)).state == "cached"


def test_what_nobody_has_stays_a_finding(scrubbed: Scrubbed, box: Box, mended, packs) -> None:
    """Across restarts, and without a storm of requests."""
    bad = packs[0]
    box.evictor.evict_pack(bad)
    box.store.damage(box.pack(bad).cloud.key, at=-30)
    scrubbed.cloud.suspect(bad)
    scrubbed.hours(1)
    assert scrubbed.conditions() == {"cloud_copy_damaged"}
    again = Scrubbed(mended, sample_per_day=0)
    box.store.requests.clear()
    again.hours(20)
    assert again.conditions() == {"cloud_copy_damaged"}
    assert len(box.store.requests) < 10


def test_a_delete_marker_over_a_pack_is_an_alarm_and_hides_nothing(
    scrubbed: Scrubbed, box: Box, packs
) -> None:
    """A stolen key deletes: the version is there and read by its id, and somebody must look."""
    cloud = box.pack(packs[0]).cloud
    box.store.put_delete_marker(cloud.key)
    scrubbed.hours(24 * 3)
    assert scrubbed.conditions() == {"cloud_copy_hidden"}
    (problem,) = scrubbed.cloud.problems()
    assert "delete marker" in problem.sentence
    box.evictor.evict_pack(packs[0])
    assert box.fetch()[sample(0, 1).sop_instance_uid] == sample(0, 1).dataset


def test_another_version_over_a_pack_is_an_alarm(scrubbed: Scrubbed, box: Box, packs) -> None:
    box.store.seed(box.pack(packs[0]).cloud.key, b"a stranger's")
    scrubbed.cloud.suspect(packs[0])
    scrubbed.hours(1)
    assert scrubbed.conditions() == {"cloud_copy_hidden"}


def test_a_lock_that_is_gone_is_found(scrubbed: Scrubbed, box: Box, packs) -> None:
    (version,) = box.store._keys[box.pack(packs[0]).cloud.key]
    version.lock = None
    scrubbed.cloud.suspect(packs[0])
    scrubbed.hours(1)
    (problem,) = scrubbed.cloud.problems()
    assert "lock" in problem.sentence


def test_a_pack_in_an_archive_class_is_asked_back_and_shown(
    scrubbed: Scrubbed, box: Box, packs
) -> None:
    """A lifecycle rule moved it: the reader is told why, a restore is asked for once, and the
    policy stays a finding until the pack has left that class."""
    bad = packs[0]
    cloud = box.pack(bad).cloud
    box.evictor.evict_pack(bad)
    box.store.archive(cloud.key)
    box.recaller._report = lambda pack_id, _why: scrubbed.cloud.suspect(pack_id)
    (found,) = (each for each in box.fetch().values() if isinstance(each, Exception))
    assert isinstance(found, ObjectArchived)
    scrubbed.hours(3)
    assert scrubbed.conditions() == {"cloud_copy_archived"}
    assert box.store.restoring == {cloud.key}
    assert sum(operation == "restore" for operation, _ in box.store.requests) == 1
    box.clock.advance((RESTORED_DAYS + 1) * DAY_S)
    scrubbed.hours(1)
    assert sum(operation == "restore" for operation, _ in box.store.requests) == 2
    box.store.restored(cloud.key)
    scrubbed.hours(2)
    assert scrubbed.conditions() == set()


def test_a_pack_in_an_archive_class_is_not_evicted(box: Box, packs) -> None:
    """It would not come back for hours."""
    box.store.archive(box.pack(packs[0]).cloud.key)
    with pytest.raises(ObjectArchived):
        box.evictor.evict_pack(packs[0])
    assert box.pack(packs[0]).state == "cached"


def test_an_error_of_the_bucket_as_a_whole_is_no_finding_of_a_pack(
    scrubbed: Scrubbed, box: Box, packs
) -> None:
    box.store.fail("head", no_answer(), Fault("before", CloudUnavailable("fake", "", "503")))
    scrubbed.cloud.suspect(packs[0])
    scrubbed.hours(1)
    assert scrubbed.conditions() == set()
    scrubbed.hours(3)
    assert not scrubbed.cloud.is_suspect(packs[0])


def test_a_damaged_local_pack_is_not_sent_in_place_of_a_damaged_copy(
    scrubbed: Scrubbed, box: Box, packs
) -> None:
    bad = packs[4]
    flip_dataset(box, bad, sample(4, 1))
    box.store.damage(box.pack(bad).cloud.key, at=-30)
    scrubbed.cloud.suspect(bad)
    scrubbed.hours(1)
    box.drain()
    assert box.pack(salvaged_pack_id(bad)) is None
