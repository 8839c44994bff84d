"""Erasing: only what has expired, only as planned, never silently, and finished after any crash."""

import base64
import json
import os
from datetime import timedelta

import pytest

from appliance.archive.applying import apply_record
from appliance.archive.disposal import read_certificate
from appliance.archive.disposal_plan import PlanFile, read_plan, write_plan
from appliance.archive.expiry import shortened, terms
from appliance.archive.quarantine import notes, set_pack_aside
from appliance.archive.rebuild import rebuild
from appliance.archive.records import Erased
from appliance.archive.recover import Outcome, find_packs
from appliance.archive.requests import Request
from appliance.foundation.clock import to_microseconds
from appliance.foundation.errors import (
    CloudError,
    CloudRefused,
    CloudUnavailable,
    Damaged,
    NotFound,
    Refused,
    UsageError,
)
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.dump import dump
from appliance.index.facts import RecordId
from appliance.index.index import Index
from appliance.index.keeping import is_held, packs_of
from appliance.remote.store import Lock
from appliance.seal.signing import verify
from tests.support.archive_box import DAY_S, NODE, Box, entries, restarted, sample
from tests.support.fake_store import FakeStore, Fault, lost_answer
from tests.support.keeping import (
    RETENTION_S,
    disposal,
    erasure,
    intents,
    plan_of,
    received,
    settled,
)
from tests.support.manual_clock import ManualClock

STUDY, OTHER = sample(1, 1).study, sample(2, 1).study


def nothing(_amount: float) -> None:
    """Take no notice of progress."""


@pytest.fixture
def expired(box: Box) -> Box:
    """Two studies, one of them in two packs, whose term is over; the box may not delete."""
    received(box, sample(1, 1))
    received(box, sample(1, 2))
    received(box, sample(2, 1))
    box.clock.advance(RETENTION_S + 1)
    return box


def run(box: Box, file: PlanFile) -> int:
    """Prove and run as the administrator's command does."""
    each = erasure(box, box.store)
    each.prove(file.plan, nothing)
    return each.run(file, "admin", "AKIA", nothing)


def packs(box: Box, study: str) -> list[str]:
    """Return the packs of a study; ids of the same moment are in no order."""
    with box.index.read() as view:
        return [row.pack_id for row in packs_of(view, study)]


def in_bucket(box: Box) -> list[str]:
    return [key for key in sorted(box.store.keys()) if key.startswith("packs/")]


def erased_records(box: Box) -> list[Erased]:
    records = [record for entry in entries(box.store, box.recovery) for record in entry.records]
    return [each for each in records if isinstance(each, Erased)]


def hold(box: Box, study: str, kind: str = "hold", **more) -> None:
    control = box.control()
    box.requests.put(Request(kind, study, by="x", reason="case", **more))
    control.run_once()
    box.write_ledger()
    box.clock.advance(1)


class TestTerms:
    """Which studies have expired."""

    def test_a_study_expires_with_its_last_pack(self, box: Box) -> None:
        received(box, sample(1, 1))
        box.clock.advance(10 * DAY_S)
        received(box, sample(1, 2))
        box.clock.advance(RETENTION_S - 10 * DAY_S + 1)
        (term,) = terms(box.index, RETENTION_S)
        assert (term.patient_id, term.instances, len(term.packs)) == ("P1", 2, 2)
        now_us = to_microseconds(box.clock.now())
        assert term.first_us < now_us < term.until_us
        assert not term.expired(now_us)
        assert term.expired(term.until_us)

    def test_what_is_held_or_pending_never_does(self, expired: Box) -> None:
        hold(expired, STUDY)
        expired.store_sample(sample(2, 9))
        expired.close_packs()
        expired.indexer().catch_up()
        assert not any(term.expired(2**60) for term in terms(expired.index, RETENTION_S))

    def test_a_rejected_study_has_a_term_and_a_patient(self, expired: Box) -> None:
        """Nothing of it is served, and still it is kept, and erased when its time is over."""
        with expired.index.write() as txn:
            for number in (1, 2):
                uid = sample(1, number).sop_instance_uid
                txn.hide(RecordId(1, NODE, 1, 0), STUDY, uid, "x")
        term = next(terms(expired.index, RETENTION_S))
        assert (term.study_instance_uid, term.patient_id) == (STUDY, "P1")
        assert term.expired(to_microseconds(expired.clock.now()))

    def test_without_locks_the_term_runs_from_receipt(self, tmp_path) -> None:
        clock = ManualClock()
        box = Box(tmp_path, FakeStore(clock), clock=clock, lock_mode="off")
        received(box, sample(1, 1))
        (term,) = terms(box.index, RETENTION_S)
        received_us = box.pack(box.pack_ids()[0]).last_received_us
        assert term.until_us == received_us + round(RETENTION_S * 1e6)
        assert not term.expired(received_us)
        box.close()

    def test_a_shortened_lock_is_found(self, expired: Box) -> None:
        term = next(terms(expired.index, RETENTION_S))
        assert shortened(expired.store, term, nothing) == []
        version = expired.store._keys[term.packs[0].cloud.key][0]
        version.lock = Lock("GOVERNANCE", version.lock.until - timedelta(days=1))
        (found,) = shortened(expired.store, term, nothing)
        assert found["pack"] == term.packs[0].pack_id


class TestRun:
    """The run and its settlement."""

    def test_exactly_the_planned_is_gone_everywhere(self, expired: Box) -> None:
        """Bucket, disk, queries, counts; the ledger and a signed certificate tell of it."""
        file = plan_of(expired, STUDY)
        (kept,) = packs(expired, OTHER)
        assert run(expired, file) == 2
        each = disposal(expired)
        path = settled(expired, each, file.sha256)
        assert [os.path.basename(key).partition(".")[0] for key in in_bucket(expired)] == [kept]
        assert expired.sealed_ids() == [kept]
        assert {one.study_instance_uid for one in expired.served()} == {OTHER}
        with expired.index.read() as view:
            assert view.study(STUDY) is None
            assert (view.counts().studies, view.counts().instances) == (1, 1)
        assert {record.by for record in erased_records(expired)} == {"admin"}
        with open(path, "rb") as source:
            content = source.read()
        certificate, _ = read_certificate(content)
        assert certificate.complete
        assert certificate.plan_sha256 == file.sha256
        (study,) = certificate.studies
        assert [pack.pack_id for pack in study.erased] == [p.pack_id for p in file.plan.packs]
        line, signature = content.splitlines()
        signed = json.loads(signature)
        assert verify(signed["key"], line, base64.b64decode(signed["signature"]))
        assert intents(expired).open() == []
        assert each.settle(file.sha256) == path

    def test_the_boxs_own_credential_deletes_nothing(self, expired: Box) -> None:
        expired.store.may_delete = False
        file = plan_of(expired, STUDY)
        with pytest.raises(CloudRefused):
            run(expired, file)
        path = settled(expired, disposal(expired), file.sha256)
        with open(path, "rb") as source:
            certificate, _ = read_certificate(source.read())
        assert not certificate.complete
        assert [len(study.left) for study in certificate.studies] == [2]
        assert len(in_bucket(expired)) == 3
        assert len(expired.served()) == 3

    def test_a_run_that_is_cut_off_is_settled_by_what_the_bucket_says(self, expired: Box) -> None:
        """One version went, its answer was lost, the process died: recorded is what is gone."""
        file = plan_of(expired, STUDY)
        expired.store.fail("delete_version", lost_answer())
        with pytest.raises(CloudUnavailable):
            run(expired, file)
        again = restarted(expired)
        each = disposal(again)
        each.run_once()
        assert each.problems() == []
        again.write_ledger()
        each.run_once()
        gone, left = (pack.pack_id for pack in file.plan.packs)
        assert [record.pack_id for record in erased_records(again)] == [gone]
        assert again.pack(gone).state == "erased"
        assert again.pack(left).state == "cached"
        assert packs(again, STUDY) == [left]
        assert len(again.served()) == 2
        assert intents(again).open() == []
        again.close()

    def test_a_crash_before_the_certificate_writes_no_record_twice(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        run(expired, file)
        assert disposal(expired).settle(file.sha256) is None
        expired.write_ledger()
        again = restarted(expired)
        disposal(again).run_once()
        assert len(erased_records(again)) == 2
        assert os.path.exists(intents(again).certificate_path(file.sha256))
        assert again.sealed_ids() == [again.pack_ids()[0]]
        again.close()

    def test_a_run_under_way_is_not_settled_behind_its_back(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        each = erasure(expired, expired.store)
        alone = FileLock(intents(expired).lock_path)
        alone.acquire()
        each.run(file, "admin", "AKIA", nothing)
        disposal(expired).run_once()
        assert intents(expired).open() == [file.sha256]
        assert not expired.uplink._records
        alone.release()

    def test_a_bucket_out_of_reach_erases_nothing_from_the_index(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        run(expired, file)
        expired.store.offline = True
        each = disposal(expired)
        each.run_once()
        assert each.problems()[0].condition == "erasure"
        expired.store.offline = False
        settled(expired, each, file.sha256)
        assert each.settle(file.sha256)

    def test_a_record_that_waits_for_the_ledger_is_queued_once(self, expired: Box) -> None:
        """The line may be down for days, and the settlement is asked for every few seconds."""
        file = plan_of(expired, STUDY)
        run(expired, file)
        each = disposal(expired)
        for _ in range(3):
            assert each.settle(file.sha256) is None
        expired.write_ledger()
        assert each.settle(file.sha256)
        assert len(erased_records(expired)) == 2

    def test_an_unknown_run_is_said_so(self, expired: Box) -> None:
        with pytest.raises(NotFound):
            disposal(expired).settle("0" * 64)
        with pytest.raises(UsageError):
            disposal(expired).settle("../pins/x")

    def test_a_governance_lock_is_never_bypassed(self, tmp_path) -> None:
        clock = ManualClock()
        box = Box(tmp_path, FakeStore(clock), clock=clock, lock_mode="governance")
        received(box, sample(1, 1))
        with pytest.raises(CloudRefused):
            box.store.delete_version(*_first(box))
        with pytest.raises(Refused):
            run(box, plan_of(box, STUDY))
        assert len(in_bucket(box)) == 1
        box.close()


def _first(box: Box) -> tuple[str, str]:
    cloud = box.pack(packs(box, STUDY)[0]).cloud
    return cloud.key, cloud.version_id


class TestRefusals:
    """What is refused before anything is deleted."""

    def refused(self, box: Box, file: PlanFile, why: str) -> None:
        with pytest.raises(Refused, match=why):
            run(box, file)
        assert len(in_bucket(box)) == len(box.pack_ids())
        assert intents(box).open() == []

    def test_an_old_plan(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        expired.clock.advance(7 * DAY_S + 1)
        self.refused(expired, file, "7 days")

    def test_a_plan_from_the_future(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        expired.clock.advance(-3600)
        self.refused(expired, file, "7 days")

    def test_a_study_that_is_held_since(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        hold(expired, STUDY)
        self.refused(expired, file, "legal hold")

    def test_a_study_that_grew_since(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        received(expired, sample(1, 3))
        self.refused(expired, file, "kept until")

    def test_a_study_with_something_pending(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        expired.store_sample(sample(1, 3))
        expired.close_packs()
        expired.indexer().catch_up()
        with pytest.raises(Refused, match="pending"):
            run(expired, file)
        assert len(in_bucket(expired)) == 3

    def test_a_lock_that_only_the_bucket_knows(self, expired: Box) -> None:
        """Another node may have moved it a moment ago: the bucket's word counts."""
        file = plan_of(expired, STUDY)
        later = Lock("COMPLIANCE", expired.clock.now() + timedelta(days=1))
        expired.store.extend_lock(*_first(expired), later)
        self.refused(expired, file, "locked until")

    def test_a_hold_that_only_the_bucket_knows(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        expired.store.set_legal_hold(*_first(expired), on=True)
        self.refused(expired, file, "bucket holds it")

    def test_an_earlier_run_that_is_open(self, expired: Box) -> None:
        run(expired, plan_of(expired, OTHER))
        with pytest.raises(Refused, match="not settled"):
            run(expired, plan_of(expired, STUDY))

    def test_a_version_that_changes_during_the_run_ends_it(self, expired: Box) -> None:
        """Each version is proved once more right before it goes."""
        file = plan_of(expired, STUDY)
        each = erasure(expired, expired.store)
        each.prove(file.plan, nothing)
        second = file.plan.packs[1]
        expired.store.set_legal_hold(second.key, second.version_id, on=True)
        with pytest.raises(Damaged, match="holds it"):
            each.run(file, "admin", "AKIA", nothing)
        assert len(in_bucket(expired)) == 2

    def test_a_deletion_that_the_bucket_does_not_show_ends_it(self, expired: Box) -> None:
        expired.store.delete_version = lambda *_args, **_more: None
        with pytest.raises(CloudError, match="still shows"):
            run(expired, plan_of(expired, STUDY))

    def test_the_intent_stands_before_the_first_deletion(self, expired: Box) -> None:
        file = plan_of(expired, STUDY)
        expired.store.fail("delete_version", Fault("before", CloudRefused("x", "", "403")))
        with pytest.raises(CloudRefused):
            run(expired, file)
        assert intents(expired).open() == [file.sha256]
        assert len(in_bucket(expired)) == 3


class TestPlanFile:
    """The plan on paper."""

    def test_it_comes_back_as_it_was(self, expired: Box, tmp_path) -> None:
        file = plan_of(expired, STUDY, OTHER)
        path = str(tmp_path / "plan.json")
        write_plan(path, file.plan, FileSystem())
        assert read_plan(path) == file
        assert os.stat(path).st_mode & 0o777 == 0o600

    def test_a_changed_one_is_refused(self, expired: Box, tmp_path) -> None:
        path = tmp_path / "plan.json"
        write_plan(str(path), plan_of(expired, STUDY).plan, FileSystem())
        path.write_text(path.read_text().replace(STUDY, OTHER))
        with pytest.raises(Damaged):
            read_plan(str(path))


def test_another_index_honours_it_all(expired: Box, tmp_path) -> None:
    """A standby that applies the entries, in order or not, holds what this node holds."""
    received(expired, sample(2, 2))
    hold(expired, OTHER)
    hold(expired, OTHER, "reject", sop_instance_uids=(sample(2, 2).sop_instance_uid,))
    file = plan_of(expired, STUDY)
    run(expired, file)
    settled(expired, disposal(expired), file.sha256)
    found = entries(expired.store, expired.recovery)
    dumps = []
    for number, order in enumerate((found, found[::-1], found + found)):
        with Index(FileSystem(), str(tmp_path / f"{number}")) as index:
            for entry in order:
                with index.write() as txn:
                    for position, record in enumerate(entry.records):
                        apply_record(txn, record, NODE, entry.header.sequence, position)
                    txn.remember(NODE, entry.header.sequence)
            with index.read() as view:
                assert view.study(STUDY) is None
                assert is_held(view, OTHER)
                assert [each.hidden for each in view.instances(OTHER)] == [False, True]
                assert view.study(OTHER).instance_count == 1
                dumps.append(dump(view))
    assert dumps[0] == dumps[1] == dumps[2]


def test_a_rebuild_with_the_file_still_there_brings_nothing_back(expired: Box) -> None:
    """The packs on disk are read after the ledger: what is erased stays so, and the file goes."""
    file = plan_of(expired, STUDY)
    run(expired, file)
    each = disposal(expired)
    each.settle(file.sha256)
    expired.write_ledger()
    assert len(expired.sealed_ids()) == 3
    rebuild(
        expired.layout, expired.index, NODE, expired.identities, expired.store, nothing
    )  # fmt: skip
    assert {one.study_instance_uid for one in expired.served()} == {OTHER}
    again = restarted(expired)
    again.indexer().catch_up()
    assert {one.study_instance_uid for one in again.served()} == {OTHER}
    assert again.upload_all() == 0
    disposal(again).run_once()
    assert len(again.sealed_ids()) == 1
    again.close()


def test_what_was_set_aside_of_it_goes_too(expired: Box) -> None:
    """A damaged copy of an erased pack is a copy; that of another study stays for people."""
    (other,) = packs(expired, OTHER)
    for pack_id in (packs(expired, STUDY)[0], other):
        path = expired.layout.sealed_path(pack_id)
        set_pack_aside(
            expired.files, expired.clock, expired.layout, path, why="test", pending=False
        )
    file = plan_of(expired, STUDY)
    run(expired, file)
    settled(expired, disposal(expired), file.sha256)
    assert [note.pack_id for _, note in notes(expired.layout)] == [other]
    assert len(os.listdir(expired.layout.set_aside)) == 2


def test_a_recovery_looks_for_nothing_that_is_erased(expired: Box) -> None:
    """What the ledger names and says to be gone is no finding; the rest is found."""
    file = plan_of(expired, STUDY)
    run(expired, file)
    settled(expired, disposal(expired), file.sha256)
    outcome = Outcome()
    found = list(find_packs(expired.store, expired.recovery, outcome))
    assert [each.studies for each in found] == [frozenset({OTHER})]
    assert outcome.findings == []
