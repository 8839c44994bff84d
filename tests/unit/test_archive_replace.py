"""A new box takes a lost one's place: every entry proved, nothing destroyed, nothing half done."""

import shutil
from pathlib import Path

import pytest

from appliance.archive.ledger import load_state, state_path
from appliance.archive.ledger_entry import entry_key, entry_name
from appliance.archive.rebuild import rebuild
from appliance.archive.replace import ASIDE, Replacement
from appliance.foundation.errors import (
    CloudUnavailable,
    Damaged,
    ForeignWriter,
    KeyUnavailable,
    NotFound,
)
from appliance.seal.identity import load_identity, new_identity_file
from appliance.seal.signing import SigningKey
from tests.support.archive_box import NODE, Box, box, packs_named, sample  # noqa: F401
from tests.support.fake_store import no_answer

OLD, NEW = sample(1, 1), sample(2, 1)


def replacement(new: Box, *, identities=None, signing_key: SigningKey | None = None) -> Replacement:
    """Return the replacement that a box would make with its keys, or with others."""
    return Replacement(
        new.files, new.layout, NODE, new.store, identities or new.identities,
        signing_key or SigningKey.load(str(new.folder / "signing.pem")),
    )  # fmt: skip


def nothing(_amount: float) -> None:
    """Show no progress."""


@pytest.fixture
def lost(box: Box):
    """A bucket with a verified study, and an empty box with the keys and the name of its writer."""
    box.store_sample(OLD)
    box.drain()
    shutil.rmtree(box.layout.data_dir, ignore_errors=True)
    folder = box.folder / "new"
    folder.mkdir()
    for name in ("node.key", "recovery.key", "signing.pem"):
        shutil.copy(box.folder / name, folder / name)
    new = Box(folder, box.store, clock=box.clock)
    yield new
    new.close()


def test_a_new_box_goes_on_with_a_lost_ones_ledger(lost: Box) -> None:
    """It refuses before; afterwards old studies are found and new ones are verified."""
    lost.store_sample(NEW)
    with pytest.raises(ForeignWriter):
        lost.ledger().start()
    plan = replacement(lost)
    found = plan.find()
    assert (found.sequence, len(found.version_ids)) == (2, 2)
    assert not plan.is_ours(found)
    plan.take_over(found, nothing)
    assert plan.is_ours(plan.find())
    assert load_state(state_path(lost.layout)).confirmed_sequence == 2
    rebuild(lost.layout, lost.index, NODE, lost.identities, lost.store, nothing)
    lost.drain()
    fetched = lost.fetch()
    assert fetched == {each.sop_instance_uid: each.dataset for each in (OLD, NEW)}
    named = packs_named(lost.store, lost.identities)
    assert len(named) == len(set(named)) == 2
    assert lost.uplink.sequence == 4


@pytest.mark.parametrize("which", ["identity", "signing"])
def test_other_keys_than_the_lost_boxs_take_over_nothing(lost: Box, tmp_path, which) -> None:
    """The sentence says which key must be restored."""
    if which == "identity":
        new_identity_file(str(tmp_path / "other.key"))
        plan = replacement(lost, identities=load_identity(str(tmp_path / "other.key")))
    else:
        other = SigningKey.create(str(tmp_path / "other.pem"))
        plan = replacement(lost, signing_key=other)
    with pytest.raises(KeyUnavailable, match=f"keys.{which}"):
        plan.find()
    assert not Path(state_path(lost.layout)).exists()


def test_a_forged_entry_in_the_middle_is_found_before_anything_is_taken(lost: Box) -> None:
    """A chain that does not hold leaves a box that refuses as before."""
    first = lost.store.content(entry_key(NODE, 1))
    second = lost.store._keys[entry_key(NODE, 2)][0]
    genuine, second.content = second.content, first
    plan = replacement(lost)
    found = plan.find()
    with pytest.raises(Damaged, match="sequence 2"):
        plan.take_over(found, nothing)
    second.content = genuine
    with pytest.raises(ForeignWriter):
        lost.ledger().start()


def test_a_missing_entry_is_named(lost: Box) -> None:
    del lost.store._keys[entry_key(NODE, 1)]
    with pytest.raises(Damaged, match="sequence 1"):
        replacement(lost).find()


def test_the_oldest_version_is_the_entry(lost: Box) -> None:
    """What somebody laid over it counts for nothing."""
    lost.store.seed(entry_key(NODE, 2), b"laid over it")
    lost.store.put_delete_marker(entry_key(NODE, 1))
    plan = replacement(lost)
    plan.take_over(plan.find(), nothing)
    lost.ledger().start()


def test_nothing_in_the_bucket_is_nothing_to_take(lost: Box) -> None:
    lost.store._keys.clear()
    with pytest.raises(NotFound):
        replacement(lost).find()


def test_a_replacement_that_is_cut_short_still_refuses_and_is_done_again(lost: Box) -> None:
    plan = replacement(lost)
    found = plan.find()

    def fail_after_one(_amount: float) -> None:
        raise CloudUnavailable("get", "", "the line went down")

    with pytest.raises(CloudUnavailable):
        plan.take_over(found, fail_after_one)
    with pytest.raises(ForeignWriter):
        lost.ledger().start()
    plan.take_over(plan.find(), nothing)
    lost.ledger().start()


def test_other_entries_on_the_disk_are_put_aside(lost: Box) -> None:
    """Bytes of the box's own that the bucket has not are kept under another name."""
    folder = Path(lost.layout.ledger) / NODE
    folder.mkdir(exist_ok=True)
    for sequence in (1, 3):
        (folder / entry_name(sequence)).write_bytes(b"of another life")
    plan = replacement(lost)
    plan.take_over(plan.find(), nothing)
    aside = {each.name for each in folder.glob(f"*{ASIDE}")}
    assert aside == {entry_name(1) + ASIDE, entry_name(3) + ASIDE}
    assert lost.ledger().sequence == 2


def test_an_entry_on_its_way_that_follows_the_last_one_is_kept(lost: Box) -> None:
    """It was made, and the line went down before its PUT; then state/ was lost."""
    plan = replacement(lost)
    plan.take_over(plan.find(), nothing)
    lost.store_sample(NEW)
    lost.close_packs()
    lost.indexer().catch_up()
    rebuild(lost.layout, lost.index, NODE, lost.identities, lost.store, nothing)
    ledger = lost.ledger()
    ledger.start()
    lost.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        ledger.append([])
    Path(state_path(lost.layout)).unlink()
    plan.take_over(plan.find(), nothing)
    again = lost.ledger()
    again.start()
    assert again.sequence == 3
