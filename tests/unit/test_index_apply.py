"""What facts do to the index: members, versions, patients, rejections, packs and totals."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.foundation.files import FileSystem
from appliance.index.dump import dump
from appliance.index.facts import RecordId
from appliance.index.index import Index
from appliance.index.records import ConflictKind, State
from appliance.index.writing import WriteTransaction
from tests.support.index_facts import (
    JPEG,
    PACK_IDS,
    cloud_copy,
    instance,
    pack,
    tags,
)

STUDY, SERIES, SOP = "1.2.1", "1.2.1.1", "1.2.1.1.1"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(FileSystem(), str(tmp_path / "index"), map_size=1 << 28) as opened:
        yield opened


def apply(index: Index, *facts: object, **more: int) -> list[int]:
    with index.write() as txn:
        return [txn.apply_pack(each, **more) for each in facts]  # type: ignore[arg-type]


def test_apply_pack_counts_what_is_new(index: Index) -> None:
    """Members of a growing pack are new once; the indexed length only grows."""
    first = instance(sop="1.2.1.1.1", offset=1024)
    second = instance(sop="1.2.1.1.2", offset=2048)
    assert apply(index, pack(0, [first]), indexed_length=1_500) == [1]
    assert apply(index, pack(0, [first, second]), indexed_length=2_500) == [1]
    assert apply(index, pack(0, [second]), indexed_length=2_000) == [0]
    with index.read() as view:
        row = view.pack(PACK_IDS[0])
        assert row is not None
        assert (row.instance_count, row.instance_bytes, row.indexed_length) == (2, 1_000, 2_500)
        assert row.study_instance_uid == STUDY
        found = view.study(STUDY)
        assert found is not None
        assert (found.series_count, found.instance_count) == (1, 2)


def test_apply_pack_in_one_transaction_with_itself(index: Index) -> None:
    """The same member twice in one transaction is one member."""
    facts = pack(0, [instance()])
    assert apply(index, facts, facts) == [1, 0]


def test_everything_of_an_instance_comes_back(index: Index) -> None:
    """Provenance, attributes, hash and place are what was put in, sequences and odd tags too."""
    request = [{0x00401001: "RP1", 0x00400007: "胸部"}]
    facts = instance(at=7, offset=2_048, RequestAttributesSequence=request, PatientName="山田^太郎")
    facts.attributes[0x00091001] = "private"
    apply(index, pack(3, [facts], node="site-b"))
    with index.read() as view:
        (stored,) = view.instances(STUDY, SERIES)
        assert view.instance(STUDY, SOP) == stored
    assert (stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid) == (
        STUDY,
        SERIES,
        SOP,
    )
    version = stored.served
    assert version.attributes == facts.attributes
    assert (version.sha256, version.length, version.transfer_syntax_uid) == (
        facts.sha256,
        facts.length,
        facts.transfer_syntax_uid,
    )
    (copy,) = version.copies
    assert (copy.pack_id, copy.offset, copy.node, copy.received_at_us) == (
        PACK_IDS[3],
        2_048,
        "site-b",
        7,
    )
    assert (copy.calling_ae, copy.called_ae, copy.peer_address) == ("CT1", "AZEKURA", "192.0.2.1")


def test_identical_bytes_in_two_packs_are_one_version(index: Index) -> None:
    """A second copy is no version and no conflict; both places are known."""
    apply(index, pack(0, [instance(at=1)]), pack(1, [instance(at=2)], node="site-b"))
    with index.read() as view:
        (found,) = view.find_sop(SOP)
        assert list(view.conflicts()) == []
        assert view.counts().instances == 1
    (version,) = found.versions
    assert version.pack_ids == (PACK_IDS[0], PACK_IDS[1])


def test_different_bytes_are_versions_and_a_conflict(index: Index) -> None:
    """The newest is served, whichever came first to the index; the older one is kept."""
    old = instance(at=1, content="old", StudyDescription="old")
    new = instance(at=2, content="new", StudyDescription="new")
    apply(index, pack(1, [new]), pack(0, [old]))
    with index.read() as view:
        (stored,) = view.instances(STUDY)
        assert [version.sha256 for version in stored.versions] == [old.sha256, new.sha256]
        assert stored.served.sha256 == new.sha256
        study = view.study(STUDY)
        assert study is not None
        assert study.attributes == tags(
            PatientID="P1",
            PatientName="Yamada^Tarou=山田^太郎=ヤマダ^タロウ",
            StudyDate="20240102",
            StudyTime="101112",
            AccessionNumber="A1",
            StudyDescription="new",
        )
        (conflict,) = view.conflicts()
        assert conflict.kind is ConflictKind.DIFFERENT_CONTENT
        assert (conflict.study_instance_uid, conflict.sop_instance_uid) == (STUDY, SOP)
        assert list(view.conflicts("1.2.2")) == []


def test_same_bytes_in_another_transfer_syntax_are_a_version(index: Index) -> None:
    """A version is its bytes and its syntax."""
    plain, packed = instance(at=1), instance(at=2, syntax=JPEG)
    packed.sha256 = plain.sha256
    apply(index, pack(0, [plain]), pack(1, [packed]))
    with index.read() as view:
        (stored,) = view.instances(STUDY)
    assert [version.transfer_syntax_uid for version in stored.versions][1] == JPEG


def test_an_instance_that_comes_again_in_another_series_moves_there(index: Index) -> None:
    """It is served once, in the series of its newest version; the emptied series is gone."""
    apply(index, pack(0, [instance(at=1)]), pack(1, [instance(series="1.2.1.2", at=2)]))
    with index.read() as view:
        assert [row.series_instance_uid for row in view.series_of(STUDY)] == ["1.2.1.2"]
        assert view.series(STUDY, SERIES) is None
        assert view.counts().series == 1
        (stored,) = view.instances(STUDY)
        assert stored.series_instance_uid == "1.2.1.2"


def test_study_under_two_patients_is_flagged_and_then_corrected(index: Index) -> None:
    """The flag reads corrected once every instance has come again; the history stays."""
    sops = ["1.2.1.1.1", "1.2.1.1.2"]
    old = [
        instance(sop=sop, offset=1024 * n, at=n, PatientID="WRONG") for n, sop in enumerate(sops, 1)
    ]
    new = [
        instance(sop=sop, offset=1024 * n, at=9 + n, PatientID="RIGHT")
        for n, sop in enumerate(sops, 1)
    ]
    apply(index, pack(0, old), pack(1, new[:1]))
    with index.read() as view:
        (found,) = (
            each
            for each in view.conflicts()
            if each.kind is ConflictKind.STUDY_UNDER_SEVERAL_PATIENTS
        )
        assert not found.corrected
        assert [(p.patient_id, p.served_count) for p in found.patients] == [
            ("WRONG", 1),
            ("RIGHT", 1),
        ]
    apply(index, pack(1, new))
    with index.read() as view:
        found = next(iter(view.conflicts()))
        assert found.corrected
        assert [(p.patient_id, p.served_count) for p in found.patients] == [
            ("WRONG", 0),
            ("RIGHT", 2),
        ]
        assert found.patients[0].last_received_us == 2


def test_another_issuer_is_another_patient(index: Index) -> None:
    """The patient key is identifier and issuer."""
    apply(
        index,
        pack(0, [instance(IssuerOfPatientID="A")]),
        pack(1, [instance(sop="1.2.1.1.2", IssuerOfPatientID="B")]),
    )
    with index.read() as view:
        kinds = [each.kind for each in view.conflicts()]
    assert kinds == [ConflictKind.STUDY_UNDER_SEVERAL_PATIENTS]


REJECTED = RecordId(10, "site-a", 1, 0)
RESTORED = RecordId(20, "site-a", 2, 0)


def served_count(index: Index) -> int:
    with index.read() as view:
        study = view.study(STUDY)
        return 0 if study is None else study.instance_count


def test_hidden_instance_is_out_of_every_count(index: Index) -> None:
    """It is still stored and found by duplicate detection, but nothing serves or counts it."""
    apply(index, pack(0, [instance()]))
    with index.write() as txn:
        txn.hide(REJECTED, STUDY, SOP, "QA")
    with index.read() as view:
        assert view.counts().studies == view.counts().instances == 0
        assert list(view.series_of(STUDY)) == []
        assert [each.hidden for each in view.instances(STUDY)] == [True]
        assert len(view.find_sop(SOP)) == 1
        assert [each.by for each in view.visibility(STUDY, SOP)] == ["QA"]


def test_rejected_instance_that_is_sent_again_stays_hidden(index: Index) -> None:
    """Only a restored record shows it again."""
    apply(index, pack(0, [instance(at=1)]))
    with index.write() as txn:
        txn.hide(REJECTED, STUDY, SOP, "QA")
    apply(index, pack(1, [instance(at=100, content="again")]))
    assert served_count(index) == 0
    with index.write() as txn:
        txn.restore(RESTORED, STUDY, SOP, "QA")
    assert served_count(index) == 1


def test_rejection_may_come_before_the_instance(index: Index) -> None:
    """Another node's ledger may be read first."""
    with index.write() as txn:
        txn.hide(REJECTED, STUDY, SOP, "QA")
    apply(index, pack(0, [instance(), instance(sop="1.2.1.1.2", offset=2_048)]))
    assert served_count(index) == 1


def test_the_latest_record_decides_whatever_came_last(index: Index) -> None:
    """Records are ordered by their own time, node, sequence and position."""
    apply(index, pack(0, [instance()]))
    with index.write() as txn:
        txn.restore(RESTORED, STUDY, SOP, "QA")
        txn.hide(REJECTED, STUDY, SOP, "QA")
    assert served_count(index) == 1
    with index.write() as txn:
        txn.hide(RecordId(30, "site-a", 3, 0), STUDY, SOP, "QA")
    assert served_count(index) == 0


def test_pack_goes_from_pending_to_cached_to_evicted_and_back(index: Index) -> None:
    """State and totals follow the ledger and the disk."""
    apply(index, pack(0, [instance(at=5)], local=True))

    def state() -> tuple[State, int, int, int]:
        with index.read() as view:
            row, totals = view.pack(PACK_IDS[0]), view.counts()
            assert row is not None
            return (
                row.state,
                totals.pending_instances,
                totals.cached_bytes,
                totals.oldest_pending_us,
            )

    assert state() == (State.PENDING, 1, 0, 5)
    with index.write() as txn:
        txn.apply_cloud(PACK_IDS[0], cloud_copy(0))
    assert state() == (State.CACHED, 0, 10_000, 0)
    with index.write() as txn:
        txn.set_local(PACK_IDS[0], local=False)
    assert state() == (State.EVICTED, 0, 0, 0)
    apply(index, pack(0, [instance(at=5)], local=False, cloud=cloud_copy(0)))
    assert state() == (State.EVICTED, 0, 0, 0)
    with index.write() as txn:
        txn.set_local(PACK_IDS[0], local=True)
    assert state() == (State.CACHED, 0, 10_000, 0)


def test_ledger_record_of_a_local_pack_does_not_evict_it(index: Index) -> None:
    """A follower's `local=False` says nothing about this disk."""
    apply(index, pack(0, [instance()], local=True))
    apply(index, pack(0, [instance()], local=False, cloud=cloud_copy(0)))
    with index.read() as view:
        row = view.pack(PACK_IDS[0])
        assert row is not None
        assert row.state is State.CACHED


def test_evictable_is_by_last_use_and_never_pending(index: Index) -> None:
    """A pack that was touched goes last; one that is not verified does not stand there."""
    for number in range(3):
        apply(
            index,
            pack(
                number,
                [instance(f"1.2.{number}", sop=f"1.2.{number}.1", at=number + 1)],
                local=True,
                cloud=cloud_copy(number) if number < 2 else None,
            ),
        )
    with index.write() as txn:
        txn.touch([PACK_IDS[0]], 100)
    with index.read() as view:
        assert [row.pack_id for row in view.evictable(10)] == [PACK_IDS[1], PACK_IDS[0]]
        assert len(view.evictable(1)) == 1
        assert [row.pack_id for row in view.pending(10)] == [PACK_IDS[2]]


def test_a_pack_of_which_only_the_name_is_known_is_on_no_list(index: Index) -> None:
    """A stray touch makes nothing pending, and is not lost when the pack comes."""
    with index.write() as txn:
        txn.touch([PACK_IDS[0]], 100)
        txn.set_local(PACK_IDS[0], local=True)
    with index.read() as view:
        assert view.pending(10) == []
        assert view.counts().packs == 0
    apply(index, pack(0, [instance(at=1)]))
    with index.read() as view:
        (row,) = view.pending(10)
        assert (row.last_used_us, row.local) == (100, True)


def test_later_lock_and_proof_of_the_same_entry_hold(index: Index) -> None:
    """Extending a lock never shortens it, whichever fact comes first."""
    with index.write() as txn:
        txn.apply_cloud(PACK_IDS[0], cloud_copy(0, locked=9, at=9))
        txn.apply_cloud(PACK_IDS[0], cloud_copy(0, locked=5, at=5))
        txn.apply_cloud(PACK_IDS[0], cloud_copy(0, sequence=7, locked=50))
        txn.set_verified_at(PACK_IDS[0], 8)
        txn.set_verified_at(PACK_IDS[0], 3)
    with index.read() as view:
        row = view.pack(PACK_IDS[0])
        assert row is not None
        assert row.cloud is not None
        cloud = row.cloud
        assert (cloud.sequence, cloud.locked_until_us, cloud.verified_at_us) == (1, 9, 9)
        assert row.last_verified_us == 8


def test_pack_instances_are_those_of_the_pack(index: Index) -> None:
    """Other packs of the study are left out, and other copies of the same instance too."""
    apply(
        index,
        pack(0, [instance(at=1)]),
        pack(1, [instance(at=2), instance(sop="1.2.1.1.2", offset=2_048)]),
    )
    with index.read() as view:
        found = [
            (each.sop_instance_uid, copy.offset)
            for each, _, copy in view.pack_instances(PACK_IDS[1])
        ]
        assert found == [("1.2.1.1.1", 1_024), ("1.2.1.1.2", 2_048)]
        assert list(view.pack_instances(PACK_IDS[5])) == []


def test_progress_of_each_node_is_remembered_and_never_goes_back(index: Index) -> None:
    """Followers go on where they stopped."""
    with index.write() as txn:
        assert txn.progress("site-a") == -1
        txn.remember("site-a", 5)
        txn.remember("site-a", 3)
        txn.remember("site-b", 0)
    with index.read() as view:
        assert view.progress("site-a") == 5
        assert view.nodes() == {"site-a": 5, "site-b": 0}


def test_failed_transaction_leaves_nothing(index: Index) -> None:
    """All facts of a transaction are applied, or none."""
    apply(index, pack(0, [instance()]))
    with index.read() as view:
        before = dump(view)

    def fail(txn: WriteTransaction) -> None:
        txn.apply_pack(pack(1, [instance("1.2.2", sop="9")]))
        txn.flush()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        index.transact(fail)
    with index.read() as view:
        assert dump(view) == before


def test_uids_that_are_none_are_kept(index: Index) -> None:
    """What a careless device sends as UID is found again."""
    apply(index, pack(0, [instance("study?", "", "ｓｏｐ")]))
    with index.read() as view:
        (found,) = view.find_sop("ｓｏｐ")
        assert (found.study_instance_uid, found.series_instance_uid) == ("study?", "")
        assert view.study("study?") is not None


def test_shared_parts_are_stored_once(index: Index) -> None:
    """A thousand instances of a series share one context."""
    members = [instance(sop=f"1.2.1.1.{n}", offset=1024 * n) for n in range(1, 100)]
    apply(index, pack(0, members))
    with index.read() as view:
        lines = dump(view).splitlines()
    assert sum(line.startswith(b"context ") for line in lines) == 1
