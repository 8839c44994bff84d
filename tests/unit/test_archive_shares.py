"""Little room left: each peer has its share of it, and a flood is refused before the others are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.archive.layout import Layout
from appliance.archive.sender import Sender
from appliance.archive.space import Space
from appliance.dicom.status import store_status
from appliance.dimse.service import error_comment
from appliance.foundation.errors import OutOfSpace, ShareUsed
from appliance.foundation.files import FileSystem
from tests.support.archive_box import Box, sample
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import CT_STORAGE, EXPLICIT

MIB = 2**20
PEERS = ("CT1", "MR1", "US1", "*")


class _Disk(FileSystem):
    def free_bytes(self, path):
        return 2**40


class World:
    """A space of 1,000 MiB, 50 of them its short mark, over files that grow by what is claimed."""

    def __init__(self, folder, used_mib: int) -> None:
        disk = _Disk()
        layout = Layout(str(folder))
        layout.create(disk)
        self.clock = ManualClock()
        self._old, self._new = layout.sealed_path("old"), layout.sealed_path("new")
        self._came = 0
        self.fill(used_mib)
        self.space = Space(disk, layout, 1000 * MIB, self.clock, PEERS)

    def fill(self, mib: int) -> None:
        """Have so much on the disk besides what is claimed."""
        with open(self._old, "wb") as file:
            file.truncate(mib * MIB)

    def claim(self, peer: str, size_bytes: int = MIB) -> None:
        self.space.claim(size_bytes, peer)
        self._came += size_bytes
        with open(self._new, "ab") as file:
            file.truncate(self._came)

    def flood(self, peer: str) -> int:
        """Claim for a peer until it is refused; return how many MiB it got."""
        for count in range(10_000):
            try:
                self.claim(peer)
            except OutOfSpace:
                return count
        raise AssertionError("it is never refused")


@pytest.fixture
def world(tmp_path) -> World:
    """40 MiB of room for four: less than the mark."""
    return World(tmp_path, 960)


def test_a_flood_leaves_the_others_their_shares(world: World) -> None:
    """The CT gets ten of the 40 MiB, and each of the others still has its ten."""
    assert world.flood("CT1") == 10
    with pytest.raises(ShareUsed, match="CT1 has used its share"):
        world.claim("CT1")
    assert [world.flood(peer) for peer in ("MR1", "US1", "UNKNOWN")] == [10, 10, 10]
    with pytest.raises(OutOfSpace) as full:
        world.claim("MR1")
    assert not isinstance(full.value, ShareUsed)


def test_with_ample_room_nobody_is_counted(tmp_path) -> None:
    """Far from full, one peer may take all down to the short mark, and its share of that."""
    world = World(tmp_path, 0)
    assert world.flood("CT1") == pytest.approx(950 + 12, abs=1)
    assert world.flood("US1") == 12


def test_peers_that_are_not_listed_share_one_share(world: World) -> None:
    """Another AE title for every association does not multiply what one gets."""
    assert sum(world.flood(f"X{number}") for number in range(5)) == 10


def test_what_drains_meanwhile_is_shared_too(world: World) -> None:
    """The flood goes on at its part of what leaves, without waiting for ample room."""
    assert world.flood("CT1") == 10
    world.fill(940)
    world.clock.advance(1)
    assert world.flood("CT1") == 5


def test_ample_room_again_forgives_all(world: World) -> None:
    world.flood("CT1")
    world.fill(890)
    world.space.measure()
    world.claim("US1")
    assert world.flood("CT1") == pytest.approx(49 + 12, abs=1)


def test_a_recall_has_no_share(world: World) -> None:
    """What can be fetched again must not take the room of what can't be sent again."""
    assert not world.space.try_claim(1)
    world.claim("CT1")
    world.fill(100)
    world.space.measure()
    assert world.space.try_claim(MIB)


def test_a_peer_waits_for_room_though_another_gave_up(world: World) -> None:
    """The pause for eviction is each peer's own: the flood's ended long ago."""
    world.flood("CT1")
    world.space.claim(5 * MIB, "US1")
    real_wait = world.clock.wait

    def wait(event, timeout_s):
        world.fill(900)
        return real_wait(event, timeout_s)

    world.clock.wait = wait
    world.claim("US1", 9 * MIB)


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.integers(1, 8 * MIB)), max_size=60))
def test_whoever_is_within_its_share_is_never_refused(tmp_path_factory, claims) -> None:
    """Whatever comes in whatever order: no refusal while a peer has taken less than its part."""
    world = World(tmp_path_factory.mktemp("space"), 960)
    share = 40 * MIB / len(PEERS)
    taken = dict.fromkeys(PEERS, 0)
    for peer, size_bytes in claims:
        if world.space._try(size_bytes, "" if peer == "*" else peer):
            taken[peer] += size_bytes
        else:
            assert taken[peer] + size_bytes > share
    assert sum(taken.values()) <= 40 * MIB


def test_a_flood_of_one_modality_is_refused_and_another_is_not(box: Box) -> None:
    """Through the writer, as C-STORE asks it: by the calling AE title, with its own comment."""
    gib = 1024 * MIB

    def have(name: str, size_bytes: int) -> None:
        with open(box.layout.sealed_path(name), "wb") as file:
            file.truncate(size_bytes)

    # Packs grow in steps: on a small disk these would be more than a share.
    came = 2 * gib - 20 * MIB
    have("old", 96 * gib)
    have("new", came)
    box.space = Space(_Disk(), box.layout, 100 * gib, ManualClock(), ("CT1", "US1"))
    box.space._taken["CT1"] = came
    refusals: list[OutOfSpace] = []

    def store(title: str, number: int) -> bool:
        each = sample(1, number, 4 * MIB)
        try:
            box.ingest.store(
                Sender(title, "AZEKURA"), CT_STORAGE, each.sop_instance_uid, EXPLICIT,
                memoryview(each.dataset), each.sha256,
            )  # fmt: skip
        except OutOfSpace as refused:
            refusals.append(refused)
            return False
        return True

    flood = [store("CT1", number) for number in range(8)]
    assert flood[0]
    assert not flood[-1]
    assert all(isinstance(each, ShareUsed) for each in refusals)
    assert store_status(refusals[0]) == 0xA700
    assert "your share" in error_comment(refusals[0])
    assert all(store("US1", number) for number in range(100, 108))
