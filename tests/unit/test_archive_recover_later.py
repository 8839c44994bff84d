"""A recovery identity that was made when there was a history already recovers all of it."""

from pathlib import Path

import pytest

from appliance.archive.ledger_entry import entry_key
from appliance.archive.recover import Outcome, dataset_sha256, find_packs, recover_pack
from appliance.seal.identity import Identity, load_identity, new_identity_file
from tests.support.archive_box import NODE, Box, box, restarted, sample  # noqa: F401

SAMPLES = [sample(study, number) for study in (1, 2) for number in (1, 2)]


def recovered(box: Box, identity: Identity, target: Path) -> tuple[set[bytes], list[str]]:
    """Return the hashes of what an identity recovers, and the findings."""
    outcome = Outcome()
    target.mkdir()
    for each in list(find_packs(box.store, [identity], outcome)):
        recover_pack(box.store, [identity], each, str(target), outcome, lambda _amount: None)
    return {dataset_sha256(str(path)) for path in target.rglob("*.dcm")}, outcome.findings


@pytest.fixture
def later(box: Box, tmp_path: Path) -> tuple[Box, Identity]:
    """A box with a verified history, started again with a recovery recipient more."""
    for each in SAMPLES[:2]:
        box.store_sample(each)
    box.drain()
    new_identity_file(str(tmp_path / "later.key"))
    (identity,) = load_identity(str(tmp_path / "later.key"))
    again = restarted(box)
    again.recipients.append(identity.recipient)
    for each in SAMPLES[2:]:
        again.store_sample(each)
    again.drain()
    return again, identity


def test_checkpoints_give_a_later_recovery_identity_the_old_packs(
    later: tuple[Box, Identity], tmp_path: Path
) -> None:
    """By the file keys in them: neither old entries nor old packs are sealed to it."""
    box, identity = later
    got, findings = recovered(box, identity, tmp_path / "before")
    assert got == {each.sha256 for each in SAMPLES[2:]}
    assert sum("sealed to others" in each for each in findings) == 2
    box.write_checkpoints((4,))
    got, findings = recovered(box, identity, tmp_path / "after")
    assert got == {each.sha256 for each in SAMPLES}
    assert findings == []
    box.close()


def test_a_damaged_entry_is_read_from_a_checkpoint_and_named(
    later: tuple[Box, Identity], tmp_path: Path
) -> None:
    box, identity = later
    box.write_checkpoints((4,))
    box.store.damage(entry_key(NODE, 4), 400)
    got, findings = recovered(box, identity, tmp_path / "files")
    assert got == {each.sha256 for each in SAMPLES}
    assert [each.partition(":")[0] for each in findings] == [entry_key(NODE, 4)]
    box.close()
