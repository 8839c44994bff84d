"""An index made anew from the ledgers of all nodes is the one that following them had made."""

from pathlib import Path

import pytest

from appliance.archive.index_condition import IndexCondition
from appliance.archive.index_repair import IndexRepair
from appliance.archive.indexer import Indexer
from appliance.archive.ledger_entry import entry_name
from appliance.archive.rebuild import rebuild
from appliance.archive.recall import Recaller
from appliance.archive.requests import RequestBox
from appliance.archive.space import Space
from tests.support.archive_box import NODE, Box, box, sample  # noqa: F401
from tests.support.standby_box import Sites, StandbyBox, sites  # noqa: F401


def rebuilt(standby: StandbyBox, *, offline: bool = False, advance=lambda _: None):
    """Rebuild a standby's index; return what was read."""
    store = None if offline else standby.store
    return rebuild(
        standby.layout, standby.index, "standby", standby.identities, store, advance,
        standby.others(offline=offline),
    )  # fmt: skip


@pytest.mark.parametrize("offline", [True, False])
def test_a_rebuild_has_all_ledgers_that_were_followed(sites: Sites, offline: bool) -> None:
    """From the copies alone, byte for byte; the follower then goes on where it was."""
    sites.write(1, 2, 3)
    sites.write(4, 5, ledger=sites.b)
    standby = sites.box()
    standby.follow()
    before, generation = standby.fingerprint(), standby.index.generation
    counts = rebuilt(standby, offline=offline)
    assert counts.followed == 5
    assert standby.index.generation != generation
    assert standby.fingerprint() == before
    sites.write(6)
    standby.follow()
    assert standby.studies() == {1, 2, 3, 4, 5, 6}


def test_a_rebuild_on_an_empty_disk_reads_the_bucket(sites: Sites) -> None:
    """The same as following would have made, and the copies are kept for the next time."""
    sites.write(1, 2, 3)
    sites.write(4, ledger=sites.b)
    followed, empty = sites.box("followed"), sites.box("empty")
    followed.follow()
    assert rebuilt(empty).followed == 4
    assert empty.fingerprint() == followed.fingerprint()
    assert rebuilt(empty, offline=True).followed == 4
    sites.store.requests.clear()
    empty.follow()
    assert not [each for each in sites.store.requests if each[0] == "get"]


def test_a_rebuild_while_the_line_is_down_has_what_is_here(sites: Sites) -> None:
    """No error of the bucket ends it."""
    sites.write(1, 2)
    standby = sites.box()
    standby.follow()
    sites.store.offline = True
    assert rebuilt(standby).followed == 2
    assert standby.studies() == {1, 2}


def test_a_rebuild_does_not_take_what_is_not_trusted(sites: Sites) -> None:
    """A copy that somebody exchanged on the disk, and an entry that was forged in the bucket."""
    sites.write(1, 2)
    thief = sites.ledger("site-a", "thief")
    standby = sites.box()
    standby.follow()
    copies = Path(standby.layout.ledger) / "site-a"
    (copies / entry_name(2)).write_bytes(thief.seal(thief.build([], sequence=2)))
    (copies / entry_name(1)).write_bytes(b"torn")
    rebuilt(standby, offline=True)
    assert standby.studies() == set()
    assert rebuilt(standby).followed == 2
    assert standby.studies() == {1, 2}


def test_what_a_rebuild_could_not_read_comes_back_from_the_bucket(sites: Sites) -> None:
    """A copy that is torn in the middle of the ledger: following goes on and fills the hole."""
    sites.write(1, 2, 3)
    standby = sites.box()
    standby.follow()
    before = standby.fingerprint()
    torn = Path(standby.layout.ledger) / "site-a" / entry_name(2)
    torn.write_bytes(b"torn")
    rebuilt(standby, offline=True)
    assert standby.studies() == {1, 3}
    standby.follow()
    assert standby.fingerprint() == before


def test_what_is_followed_while_a_rebuild_runs_is_in_the_new_index(sites: Sites) -> None:
    """Applied to the old index after the rebuild has read that ledger: the switch takes it up."""
    sites.write(1)
    sites.write(2, ledger=sites.b)
    standby = sites.box()
    standby.follow()
    came = iter([3, 4])

    def advance(_amount: float) -> None:
        for number in came:
            sites.write(number)
            standby.follow()

    rebuilt(standby, offline=True, advance=advance)
    assert standby.studies() == {1, 2, 3, 4}
    fresh = sites.box("fresh")
    fresh.follow()
    assert standby.fingerprint() == fresh.fingerprint()


def test_an_index_that_knows_less_is_caught_up(sites: Sites) -> None:
    """An empty generation is put in place of the index: everything is applied again."""
    sites.write(1, 2, 3)
    standby = sites.box()
    standby.follow()
    before = standby.fingerprint()
    standby.index.set_aside(standby.index.generation, lambda _fresh: None)
    assert standby.studies() == set()
    standby.follow()
    assert standby.fingerprint() == before


def test_a_lost_index_of_a_standby_is_made_anew_without_the_bucket(sites: Sites) -> None:
    """It has no ledger of its own that would tell; the copies do."""
    sites.write(1, 2)
    standby = sites.box()
    standby.follow()
    before = standby.fingerprint()
    standby.index.set_aside(standby.index.generation, lambda _fresh: None)
    condition = IndexCondition(standby.files, sites.clock, standby.layout)
    repair = IndexRepair(
        sites.clock, standby.layout, standby.index, condition, "standby",
        lambda advance: rebuilt(standby, offline=True, advance=advance),
        {name: each._copies for name, each in standby.follower._followers.items()},
    )  # fmt: skip
    assert repair.open()
    assert condition.incomplete() is not None
    assert repair._rebuild(lambda _: None).followed == 2
    assert condition.incomplete() is None
    assert standby.fingerprint() == before


def test_a_recalled_pack_stays_the_node_that_wrote_it(box: Box, tmp_path: Path) -> None:
    """The indexer finds the pack on this disk and the rebuild does: neither makes it its own."""
    box.store_sample(sample(1, 1))
    box.drain()
    signers = {NODE: (box.ledger()._signing_key.public_text,)}
    standby = StandbyBox(tmp_path / "standby", box.store, signers, box.clock, box.identities)
    try:
        standby.follow()
        (pack_id,) = box.pack_ids()
        with standby.index.read() as view:
            cloud = view.pack(pack_id).cloud
        space = Space(standby.files, standby.layout, 2**40, box.clock)
        Recaller(
            standby.files, box.clock, standby.layout, box.store, standby.index, space
        ).recall(pack_id, cloud)  # fmt: skip
        requests = RequestBox(standby.files, standby.layout.requests)
        # The name of this node is the greater one.
        Indexer(box.clock, standby.layout, standby.index, "standby", requests).catch_up()
        before = standby.fingerprint()
        with standby.index.read() as view:
            assert (view.pack(pack_id).node, view.pack(pack_id).local) == (NODE, True)
        rebuilt(standby, offline=True)
        assert standby.fingerprint() == before
    finally:
        standby.close()


def test_an_own_ledger_and_a_followed_one_are_one_index(box: Box, sites: Sites) -> None:
    """An appliance follows too: its rebuild has its own studies and the others'."""
    box.store_sample(sample(7, 1))
    box.drain()
    sites.b.recipients = [box.identities[0].recipient]
    sites.store = box.store
    sites.write(8, ledger=sites.b)
    signers = {"site-b": sites.signers["site-b"]}
    follower = StandbyBox(
        Path(box.layout.data_dir), box.store, signers, box.clock, box.identities
    )  # fmt: skip
    try:
        follower.follow()
        before = follower.fingerprint()
        counts = rebuild(
            box.layout, box.index, NODE, box.identities, box.store, lambda _: None,
            follower.others(),
        )  # fmt: skip
        assert (counts.entries, counts.followed) == (2, 1)
        assert follower.fingerprint() == before
        with box.index.read() as view:
            assert view.counts().studies == 2
    finally:
        follower.close()
