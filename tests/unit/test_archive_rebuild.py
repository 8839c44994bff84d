"""The index made anew while everything goes on, files got back, and what verify finds."""

import os
import shutil
from pathlib import Path

import pytest

from appliance.archive.layout import packs_in
from appliance.archive.ledger_entry import entry_name
from appliance.archive.rebuild import rebuild
from appliance.archive.recover import Outcome, dataset_sha256, find_packs, recover_pack
from appliance.archive.verify import Verification
from appliance.foundation.errors import Busy, CloudUnavailable, Damaged, OutOfSpace
from appliance.foundation.files import FileLock
from appliance.index.environment import MapFull
from appliance.index.index import Filling, Index
from appliance.seal.identity import new_identity_file, parse_identities
from tests.support.archive_box import NODE, Box, restarted, sample
from tests.support.fake_store import no_answer


def _rebuild(box: Box):
    return rebuild(box.layout, box.index, NODE, box.identities, box.store, lambda _: None)


def _mixed(box: Box) -> dict[str, bytes]:
    """Evicted, cached, sealed but not uploaded, closed and open packs; return what is served."""
    box.store_sample(sample(1, 1))
    box.drain()
    box.evictor.evict_pack(box.pack_ids()[0])
    box.store_sample(sample(2, 1))
    box.drain()
    box.store_sample(sample(3, 1))
    box.close_packs()
    box.uplink._seal_closed()
    box.store_sample(sample(4, 1))
    box.close_packs()
    box.store_sample(sample(5, 1))
    box.indexer().catch_up()
    return {each.sop_instance_uid: each.dataset for each in (sample(n, 1) for n in range(1, 6))}


def _states(box: Box) -> list[str]:
    return [box.pack(pack_id).state for pack_id in box.pack_ids()]


def test_a_rebuilt_index_is_the_one_before(box: Box) -> None:
    expected = _mixed(box)
    states = _states(box)
    counts = _rebuild(box)
    assert (counts.entries, counts.packs, counts.instances) == (3, 4, 4)
    assert _states(box) == states == ["evicted", "cached", "pending", "pending", "pending"]
    assert box.fetch() == expected


def test_what_comes_while_it_is_built_is_in_it(box: Box, monkeypatch) -> None:
    """The writer stores, the indexer indexes into the old one, packs move: nothing is missed."""
    _mixed(box)
    indexer = box.indexer()
    indexer.run_once()
    real = Index.switch

    def switch(self, filling, catch_up=None):
        box.store_sample(sample(5, 2))
        box.store_sample(sample(6, 1))
        assert indexer.run_once() == 2
        box.close_packs()
        box.uplink._seal_closed()
        real(self, filling, catch_up)

    monkeypatch.setattr(Index, "switch", switch)
    _rebuild(box)
    assert len(box.served()) == 7
    box.store_sample(sample(5, 3))  # the indexer goes on where it was
    assert indexer.run_once() == 1
    assert len(box.served()) == 8


def test_what_is_evicted_while_it_is_built_is_not_cached(box: Box, monkeypatch) -> None:
    _mixed(box)
    (cached,) = [each for each in box.pack_ids() if box.pack(each).state == "cached"]
    real = Index.switch

    def switch(self, filling, catch_up=None):
        box.evictor.evict_pack(cached)
        real(self, filling, catch_up)

    monkeypatch.setattr(Index, "switch", switch)
    _rebuild(box)
    assert box.pack(cached).state == "evicted"


def test_an_entry_that_the_bucket_may_not_have_verifies_nothing(box: Box) -> None:
    """It lies on disk, its PUT never came: what it names is pending."""
    box.store_sample(sample(1, 1))
    box.close_packs()
    box.indexer().catch_up()
    box.upload_all()
    batch, box.uplink._records = box.uplink._records, []
    box.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        box.uplink._ledger.append([each.record for each in batch])
    assert os.path.exists(os.path.join(box.layout.ledger, NODE, entry_name(2)))
    _rebuild(box)
    assert _states(box) == ["pending"]
    again = restarted(box)
    again.drain()
    assert _states(again) == ["cached"]
    again.close()


def test_entries_are_fetched_where_the_disk_has_none_or_a_damaged_one(box: Box) -> None:
    _mixed(box)
    states = _states(box)
    folder = Path(box.layout.ledger, NODE)
    (folder / entry_name(2)).write_bytes(b"damaged")
    os.unlink(folder / entry_name(3))
    _rebuild(box)
    assert _states(box) == states


def test_a_broken_chain_ends_it_and_the_old_index_stays(box: Box) -> None:
    _mixed(box)
    folder = Path(box.layout.ledger, NODE)
    shutil.copy(folder / entry_name(3), folder / entry_name(2))
    generation = box.index.generation
    with pytest.raises(Damaged, match="does not follow"):
        _rebuild(box)
    assert box.index.generation == generation
    assert len(box.served()) == 5


def test_an_index_that_cannot_be_opened_is_made_anew(box: Box) -> None:
    """The very case for which there is a rebuild: it must not need the old one."""
    expected = _mixed(box)
    name = box.index.generation
    box.close_packs()
    box.retrieval.close()
    box.index.close()
    Path(box.layout.index, name, "data.mdb").write_bytes(b"\0" * 65536)
    index = Index(box.files, box.layout.index)
    rebuild(box.layout, index, NODE, box.identities, box.store, lambda _: None)
    index.close()
    again = restarted(box)
    assert again.fetch() == expected
    again.close()


def test_a_transaction_that_is_tried_again_loses_nothing(box: Box, monkeypatch) -> None:
    """The map had to grow in the middle: entries and members are applied again, not skipped."""
    expected = _mixed(box)
    states = _states(box)
    real = Filling.write
    commits = []

    class Once:
        def __init__(self, manager) -> None:
            self._manager = manager

        def __enter__(self):
            return self._manager.__enter__()

        def __exit__(self, kind, cause, trace):
            commits.append(cause)
            if len(commits) in {1, 4}:
                full = OutOfSpace("write the index", "", "its map is full")
                full.__cause__ = MapFull("full")
                self._manager.__exit__(OutOfSpace, full, None)
                raise full
            return self._manager.__exit__(kind, cause, trace)

    monkeypatch.setattr(Filling, "write", lambda self: Once(real(self)))
    counts = _rebuild(box)
    assert len(commits) == 2 + 5 + 1  # ledger, four packs, the rest; two of them twice
    assert (counts.entries, counts.instances) == (3, 4)
    assert _states(box) == states
    assert box.fetch() == expected


def test_one_rebuild_at_a_time(box: Box) -> None:
    other = FileLock(os.path.join(box.layout.index, "rebuild.lock"))
    other.acquire()
    with pytest.raises(Busy):
        _rebuild(box)
    other.release()


def test_without_the_bucket_the_disk_is_enough(box: Box) -> None:
    _mixed(box)
    states = _states(box)
    box.store.offline = True
    _rebuild(box)
    assert _states(box) == states


class TestVerify:
    """`azekura verify`."""

    def _run(self, box: Box, **options):
        verification = Verification(box.clock, box.layout, box.index, box.store, box.evictor)
        arguments = {"cloud": True, "sample": 1.0, "advance": lambda _: None} | options
        return verification.run(**arguments)

    def test_what_is_good_is_counted(self, box: Box) -> None:
        _mixed(box)
        result = self._run(box)
        assert result.findings == []
        assert (result.local_packs, result.cloud_packs, result.reread_packs) == (4, 2, 2)

    def test_an_open_pack_is_read_as_far_as_it_is_durable(self, box: Box) -> None:
        """Behind it lies what is just being written: no finding."""
        box.store_sample(sample(1, 1))
        box.indexer().run_once()
        (pack,) = box.ingest._packs._by_study.values()
        os.pwrite(pack.writer._file._fd, b"half a member", pack.writer.size)
        assert self._run(box, cloud=False).findings == []

    def test_damage_is_found_on_disk_and_in_the_bucket(self, box: Box) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        (pack_id,) = box.pack_ids()
        path = Path(box.layout.sealed_path(pack_id))
        raw = bytearray(path.read_bytes())
        raw[raw.index(sample(1, 1).dataset[-50:])] ^= 1
        path.write_bytes(raw)
        box.store.damage(box.pack(pack_id).cloud.key, at=-1)
        findings = self._run(box).findings
        assert len(findings) == 2
        assert "on disk" in findings[0]
        assert "read back" in findings[1]

    def test_a_pack_that_is_gone_is_found(self, box: Box) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        os.unlink(box.layout.sealed_path(box.pack_ids()[0]))
        assert len(self._run(box, cloud=False).findings) == 1

    def test_a_pack_evicted_meanwhile_is_no_finding(self, box: Box, monkeypatch) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        (pack_id,) = box.pack_ids()
        real = box.layout.candidates

        def candidates(each):
            box.evictor.evict_pack(pack_id)
            return real(each)

        monkeypatch.setattr(box.layout, "candidates", candidates)
        assert self._run(box, cloud=False).findings == []


class TestRecover:
    """`azekura recover`: files from bucket and key alone."""

    def _recover(self, box: Box, target: Path, identities=None) -> Outcome:
        outcome = Outcome()
        identities = identities or box.recovery
        for found in list(find_packs(box.store, identities, outcome)):
            recover_pack(box.store, identities, found, str(target), outcome, lambda _: None)
        return outcome

    def _found(self, target: Path) -> set[bytes]:
        return {dataset_sha256(str(path)) for path in target.rglob("*.dcm")}

    def test_everything_comes_back(self, box: Box, tmp_path: Path) -> None:
        samples = [sample(study, number) for study in range(3) for number in range(2)]
        for each in samples:
            box.store_sample(each)
        box.drain()
        outcome = self._recover(box, tmp_path / "out")
        assert (outcome.packs, outcome.instances, outcome.findings) == (3, 6, [])
        assert self._found(tmp_path / "out") == {each.sha256 for each in samples}

    def test_a_second_run_changes_nothing(self, box: Box, tmp_path: Path) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        self._recover(box, tmp_path / "out")
        self._recover(box, tmp_path / "out")
        assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1

    def test_a_lost_ledger_loses_no_image(self, box: Box, tmp_path: Path) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        for key in box.store.keys():  # noqa: SIM118
            if key.startswith("ledger/"):
                box.store.damage(key, at=-1)
        outcome = self._recover(box, tmp_path / "out")
        assert len(outcome.findings) == 2
        assert self._found(tmp_path / "out") == {sample(1, 1).sha256}

    def test_one_unreadable_pack_does_not_end_it(self, box: Box, tmp_path: Path) -> None:
        for study in range(3):
            box.store_sample(sample(study, 1))
        box.drain()
        box.store.damage(box.pack(box.pack_ids()[1]).cloud.key, at=-1)
        outcome = self._recover(box, tmp_path / "out")
        assert len(outcome.findings) == 1
        assert len(self._found(tmp_path / "out")) >= 2

    def test_delete_markers_hide_nothing(self, box: Box, tmp_path: Path) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        for key in box.store.keys():  # noqa: SIM118
            box.store.put_delete_marker(key)
        assert self._recover(box, tmp_path / "out").instances == 1

    def test_versions_of_two_packs_under_one_name_are_both_kept(
        self, box: Box, tmp_path: Path
    ) -> None:
        """Two receivers got different bytes in the same moment; neither knew of the other's."""
        other = Box(box.folder, box.store, clock=box.clock, writer="receive-2")
        box.store_sample(sample(1, 1))
        other.store_sample(sample(1, 1, version=1))
        other.close_packs()
        box.drain()
        other.close()
        outcome = self._recover(box, tmp_path / "out")
        assert outcome.findings == []
        assert self._found(tmp_path / "out") == {
            sample(1, 1).sha256, sample(1, 1, version=1).sha256,
        }  # fmt: skip

    def test_a_damaged_stretch_is_a_file_of_its_own(self, box: Box, tmp_path: Path) -> None:
        """A recovered pack carries what is no instance as a plain file: the rest is recovered."""
        for number in range(3):
            box.store_sample(sample(1, number))
        directory = box.layout.writer_directory("receive")
        (pack_id,) = packs_in(directory)
        path = Path(directory, f"{pack_id}.tar")
        raw = bytearray(path.read_bytes())
        raw[raw.index(sample(1, 1).dataset[-50:])] ^= 1
        path.write_bytes(raw)
        again = restarted(box)
        again.ingest  # noqa: B018
        again.drain()
        outcome = self._recover(again, tmp_path / "out")
        assert self._found(tmp_path / "out") == {sample(1, 0).sha256, sample(1, 2).sha256}
        assert outcome.instances == 2
        again.close()

    def test_a_stranger_gets_nothing(self, box: Box, tmp_path: Path) -> None:
        box.store_sample(sample(1, 1))
        box.drain()
        new_identity_file(str(tmp_path / "stranger.key"))
        stranger = parse_identities((tmp_path / "stranger.key").read_text())
        outcome = self._recover(box, tmp_path / "out", stranger)
        assert outcome.instances == 0
        assert len(outcome.findings) == 3
