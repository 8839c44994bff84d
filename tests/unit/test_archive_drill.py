"""The restore drill: what it takes, what it finds, what it leaves alone, and what it reads."""

import os
import random
from pathlib import Path

import pytest

from appliance.archive.applying import apply_record
from appliance.archive.catalogue import Catalogue
from appliance.archive.drill import FINDINGS_MAX, Drill, DrillResult
from appliance.archive.drill_keeper import DrillHall, node_label
from appliance.archive.layout import pack_key
from appliance.archive.ledger_entry import entry_key
from appliance.archive.records import Erased, PackRecord, Rejected
from appliance.config.load import loads
from appliance.config.model import Config
from appliance.foundation.errors import Busy, CloudUnavailable, NotFound
from appliance.foundation.files import FileLock
from appliance.index.view import View
from appliance.remote.store import Lane
from appliance.seal.identity import load_identity, new_identity_file
from tests.support.archive_box import Box, entries, sample

CONFIG = """
[node]
name = "site-a"
demo = true
[cache]
capacity = "1 GiB"
[cloud]
bucket = "archive"
region = "ap-northeast-1"
"""


def config() -> Config:
    return loads(CONFIG)


def archived(box: Box, studies: int = 6, instances: int = 3) -> None:
    """Bring studies to the bucket, an entry each, an hour apart."""
    for study in range(1, studies + 1):
        for number in range(instances):
            box.store_sample(sample(study, number))
        box.clock.advance(3600)
        box.drain()


def hall(box: Box, store=None) -> DrillHall:
    return DrillHall(box.files, box.clock, config(), box.layout, box.index, store or box.store)


def held(box: Box, count: int = 100, identities=None, **options) -> DrillResult:
    identities = identities or box.identities
    return hall(box, options.pop("store", None)).hold(
        identities, node_label(identities), count, source=random.Random(1), **options
    )


def test_all_that_was_stored_comes_back(box: Box) -> None:
    """Every instance by its hash, and the answers of C-FIND at three levels."""
    archived(box)
    result = held(box)
    assert result.all_findings == []
    assert (len(result.studies), result.instances, result.matched) == (6, 18, 18)
    assert [each.answers for each in result.studies] == [1 + 1 + 3] * 6
    assert result.known_studies == 6
    assert result.skipped == 0


def test_the_recovery_identity_opens_it_too(box: Box) -> None:
    """What is on the sheet in the safe, and none that is not a recipient's."""
    archived(box, studies=1)
    assert held(box, identities=box.recovery).matched == 3
    new_identity_file(str(box.folder / "stranger.key"))
    result = held(box, identities=load_identity(str(box.folder / "stranger.key")))
    assert result.matched == 0
    assert len(result.all_findings) == len(entries(box.store, box.recovery))


def test_it_uses_nothing_of_this_disk(box: Box) -> None:
    """No pack and no ledger copy is read: with both gone, the drill brings the same."""
    archived(box, studies=2)
    for folder in (box.layout.sealed, os.path.join(box.layout.ledger, "site-a")):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
    result = held(box)
    assert result.all_findings == []
    assert result.matched == 6


def test_it_leaves_nothing_on_the_disk(box: Box) -> None:
    archived(box, studies=1)
    before = sorted(os.listdir(box.layout.state))
    held(box)
    assert sorted(os.listdir(box.layout.state)) == sorted({*before, "drill"})
    assert os.listdir(os.path.join(box.layout.state, "drill")) == ["lock"]


def test_old_and_new_are_drawn(box: Box) -> None:
    """Of as many equal parts by age as studies are asked for, one each."""
    archived(box, studies=9, instances=1)
    catalogue = Catalogue(box.store, box.identities)
    catalogue.read(lambda _: None)
    order = [sample(number, 0).study for number in range(1, 10)]
    drawn = set()
    for seed in range(50):
        found = catalogue.draw(3, random.Random(seed))
        assert [order.index(study) // 3 for study in found] == [0, 1, 2]
        drawn |= set(found)
    assert drawn == set(order)


def test_a_damaged_pack_is_found(box: Box) -> None:
    archived(box)
    damaged = box.pack_ids()[2]
    box.store.damage(pack_key(damaged), at=3000)
    result = held(box)
    (finding,) = result.all_findings
    assert damaged in finding
    assert (result.instances, result.matched) == (18, 15)


def test_a_pack_that_is_gone_is_found(box: Box) -> None:
    archived(box, studies=2)
    gone = box.pack_ids()[0]
    del box.store._keys[pack_key(gone)]
    result = held(box)
    assert len(result.all_findings) == 1
    assert gone in result.all_findings[0]


def test_an_index_that_knows_other_hashes_is_found(box: Box) -> None:
    """The bucket and its ledger agree, the node would serve something else."""
    archived(box, studies=1)
    (record,) = [
        each
        for entry in entries(box.store, box.recovery)
        for each in entry.records
        if isinstance(each, PackRecord)
    ]
    assert held(box).matched == 3
    with pytest.MonkeyPatch.context() as patch:
        real = View.pack_instances

        def other(view, pack_id):
            for instance, version, copy in real(view, pack_id):
                if instance.sop_instance_uid == record.instances[0].sop_instance_uid:
                    continue
                yield instance, version, copy

        patch.setattr(View, "pack_instances", other)
        result = held(box)
    assert result.matched == 2
    assert "not in this node's index" in result.all_findings[0]


def test_a_pack_that_lacks_what_the_ledger_lists_is_found(box: Box) -> None:
    """The object opens and holds together, but it is not all that the record says."""
    archived(box, studies=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drill, "_hashes", lambda *_: set())
        result = held(box)
    assert result.matched == 0
    assert "3 datasets of the ledger are not in it" in result.all_findings[0]


def test_answers_that_differ_are_found(box: Box) -> None:
    """The node hides an instance of which the ledger says nothing."""
    archived(box, studies=2)
    hidden = sample(1, 0)
    said = Rejected("r", hidden.study, [hidden.sop_instance_uid], "manual", "x", _now(box))
    with box.index.write() as txn:
        apply_record(txn, said, "site-a", 0, 0)
    result = held(box)
    assert result.matched == 6
    assert [finding.partition(":")[0] for finding in result.all_findings] == [
        "C-FIND at level STUDY", "C-FIND at level SERIES", "C-FIND at level IMAGE",
    ]  # fmt: skip


def test_what_the_ledger_hides_is_hidden_in_both(box: Box) -> None:
    archived(box, studies=1)
    hidden = sample(1, 0)
    said = Rejected("r", hidden.study, [hidden.sop_instance_uid], "manual", "x", _now(box))
    box.uplink.record(said)
    box.write_ledger()
    result = held(box)
    assert result.all_findings == []
    assert result.studies[0].answers == 1 + 1 + 2


def test_a_study_that_is_hidden_whole_is_no_finding(box: Box) -> None:
    """Its pack serves nothing, and is known and compared all the same."""
    archived(box, studies=1)
    study = sample(1, 0).study
    everything = [sample(1, number).sop_instance_uid for number in range(3)]
    box.uplink.record(Rejected("r", study, everything, "manual", "x", _now(box)))
    box.write_ledger()
    result = held(box)
    assert result.all_findings == []
    assert (result.matched, result.studies[0].answers) == (3, 0)


def test_an_erased_study_is_no_finding(box: Box) -> None:
    """The ledger names its pack and says that it is no more; nobody looks for it."""
    archived(box, studies=2)
    (first, _) = box.pack_ids()
    cloud = box.pack(first).cloud
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box.store, "enforces_lock", False)
        box.store.delete_version(cloud.key, cloud.version_id)
    box.uplink.record(Erased(first, cloud.key, cloud.version_id, "x", "plan", _now(box)))
    box.write_ledger()
    result = held(box)
    assert result.all_findings == []
    assert result.matched == 3


def _now(box: Box) -> str:
    return box.clock.now().isoformat()


def test_what_was_erased_is_not_asked_for(box: Box) -> None:
    """An expired pack is gone from the bucket, and the ledger says by whom: no finding."""
    archived(box, studies=2)
    gone = box.pack_ids()[0]
    said = Erased(gone, pack_key(gone), "v1", "an administrator", "expired", _now(box))
    box.uplink.record(said)
    box.write_ledger()
    del box.store._keys[pack_key(gone)]
    result = held(box)
    assert result.all_findings == []
    assert (len(result.studies), result.matched) == (1, 3)


def test_a_pack_the_node_forgot_is_found(box: Box, tmp_path: Path) -> None:
    """An index that says it has followed up to there, and does not know a pack of it."""
    archived(box, studies=2)
    other = Box(tmp_path / "empty", box.store, clock=box.clock)
    with other.index.write() as txn:
        txn.remember("site-a", 100)
    result = DrillHall(box.files, box.clock, config(), other.layout, other.index, box.store).hold(
        box.identities, "node", 100
    )
    assert len([each for each in result.all_findings if "does not know it" in each]) == 2
    other.close()


def test_what_another_node_wrote_and_none_follows_is_not_compared(box: Box, tmp_path: Path) -> None:
    archived(box, studies=2)
    other = Box(tmp_path / "empty", box.store, clock=box.clock)
    result = DrillHall(box.files, box.clock, config(), other.layout, other.index, box.store).hold(
        box.identities, "node", 100
    )
    assert result.all_findings == []
    assert (result.matched, result.skipped) == (6, 2)
    other.close()


def test_what_is_in_change_is_not_compared(box: Box) -> None:
    """An instance came since: its pack is pending, and no finding."""
    archived(box, studies=2)
    box.store_sample(sample(1, 99))
    box.close_packs()
    box.indexer().catch_up()
    result = held(box)
    assert result.all_findings == []
    assert (result.matched, result.skipped) == (6, 1)


def test_an_entry_that_is_missing_is_found_and_the_rest_goes_on(box: Box) -> None:
    archived(box, studies=3)
    del box.store._keys[entry_key("site-a", 2)]
    result = held(box)
    assert [entry_key("site-a", 3) in each for each in result.findings] == [True]
    assert len(result.studies) == 2
    assert result.matched == 6


def test_a_line_that_breaks_ends_it_without_a_result(box: Box) -> None:
    archived(box, studies=1)
    box.store.offline = True
    with pytest.raises(CloudUnavailable):
        held(box)
    box.store.offline = False
    assert held(box).matched == 3


def test_an_empty_bucket_is_no_drill(box: Box) -> None:
    with pytest.raises(NotFound):
        held(box)


def test_one_is_held_at_a_time(box: Box) -> None:
    archived(box, studies=1)
    held(box)
    with (
        FileLock(os.path.join(box.layout.state, "drill", "lock")).holding(),
        pytest.raises(Busy),
    ):
        held(box)


def test_times_leave_out_what_was_waited_for_the_budget(box: Box) -> None:
    """A drill may take days under its budget; what it says is how long a recovery would."""
    archived(box, studies=2)

    def spend(_bytes: int) -> float:
        box.clock.advance(1000.0)
        return 1000.0

    result = held(box, spend=spend)
    assert result.took_s == 0.0
    assert [each.took_s for each in result.studies] == [0.0, 0.0]


def test_all_of_it_reads_in_the_last_lane(box: Box) -> None:
    """And says what it will read before it does: each entry twice at most, each pack once."""
    archived(box, studies=2)
    lanes, spent = [], []

    class Watching:
        def __getattr__(self, name):
            return getattr(box.store, name)

        def get(self, key, version_id=None, start=0, end=None, lane=Lane.URGENT):
            lanes.append(lane)
            return box.store.get(key, version_id, start, end, lane)

    held(box, store=Watching(), spend=lambda size: spent.append(size) or 0.0)
    assert set(lanes) == {Lane.BACKFILL}
    sizes = {key: len(box.store.content(key)) for key in list(box.store.keys())}
    packs = sum(size for key, size in sizes.items() if key.startswith("packs/"))
    ledger = sum(size for key, size in sizes.items() if key.startswith("ledger/"))
    assert packs + ledger < sum(spent) <= packs + 2 * ledger


def test_findings_are_bounded() -> None:
    result = DrillResult("", "", findings=[f"{number}" for number in range(FINDINGS_MAX + 5)])
    assert len(result.all_findings) == FINDINGS_MAX
    assert result.all_findings[-1] == "and 6 more"
