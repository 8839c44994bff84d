"""Storage Commitment with pynetdicom as SCU: reports on every way there is."""

import queue
import threading

import pytest
from pydicom.uid import generate_uid

from appliance.archive.commitment import (
    GIVEN_UP,
    REPORTED,
    CommitmentBook,
    CommitmentRequest,
    Reference,
)
from appliance.dimse.reporter import Reporter
from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import OutOfSpace
from appliance.foundation.files import FileSystem
from tests.support.dimse import AE_TITLE, ALL, CT, make_config, peer
from tests.support.memory_archive import MemoryArchive
from tests.support.modality import Modality, ask
from tests.support.services import free_port, reached, service_node, wait_for


def modality_peer(port, **more):
    more.setdefault("commit_deadline_s", 60)
    more.setdefault("commitment", "cloud")
    return peer("MODALITY", allow=ALL, port=port, **more)


@pytest.fixture
def archive():
    archive = MemoryArchive()
    archive.reached = {"1.2.1": reached(CT, "cloud"), "1.2.2": reached(CT, "local")}
    return archive


def test_commitment_is_reported_on_the_association_that_asked(tmp_path, archive):
    modality = Modality()
    with service_node(tmp_path, modality_peer(free_port()), archive=archive) as node:
        transaction = generate_uid()
        with modality.associated(node) as association:
            assert ask(association, "1.2.1", transaction=transaction) == 0x0000
            report = modality.report()
        assert report.on_own_association
        assert report.event_type == 1
        assert report.dataset.TransactionUID == transaction
        assert report.successes() == ["1.2.1"]
        wait_for(lambda: node.book.find("MODALITY", transaction).state == REPORTED)


def test_commitment_goes_to_a_new_association_when_the_requestor_is_gone(tmp_path, archive):
    """The requestor released before the rung was reached; it is called under the same title."""
    modality = Modality()
    with (
        modality.listening(),
        service_node(tmp_path, modality_peer(modality.port), archive=archive) as node,
    ):
        with modality.associated(node, called="OLDPACS") as association:
            assert ask(association, "1.2.1", "1.2.2") == 0x0000
        archive.reached["1.2.2"] = reached(CT, "cloud")
        report = modality.report()
    assert not report.on_own_association
    assert report.caller == "OLDPACS"
    assert report.event_type == 1
    assert report.successes() == ["1.2.1", "1.2.2"]


def test_commitment_goes_to_a_new_association_when_the_peer_wants_that(tmp_path, archive):
    modality = Modality()
    with (
        modality.listening(),
        service_node(
            tmp_path, modality_peer(modality.port, commit_report="new"), archive=archive
        ) as node,
        modality.associated(node) as association,
    ):
        assert ask(association, "1.2.1") == 0x0000
        assert not modality.report().on_own_association


def test_commitment_is_reported_to_a_peer_that_ignores_role_selection(tmp_path, archive):
    modality = Modality()
    with (
        modality.listening(role_selection=False),
        service_node(
            tmp_path, modality_peer(modality.port, commit_report="new"), archive=archive
        ) as node,
        modality.associated(node) as association,
    ):
        transaction = generate_uid()
        assert ask(association, "1.2.1", transaction=transaction) == 0x0000
        assert modality.report().event_type == 1
        wait_for(lambda: node.book.find("MODALITY", transaction).state == REPORTED)


def test_commitment_names_a_reason_for_each_instance(tmp_path, archive, monkeypatch):
    """At once for a wrong class, after the grace for the unknown, at the deadline for the late."""
    monkeypatch.setattr("appliance.archive.commitment.UNKNOWN_INSTANCE_GRACE_S", 0.1)
    archive.reached["1.2.3"] = reached("1.2.840.10008.5.1.4.1.1.4", "cloud")
    archive.reached["1.2.4"] = reached(CT, "cloud", damaged=True)
    archive.reached["1.2.5"] = reached(CT, "cloud", hidden=True)
    modality = Modality()
    uids = ["1.2.1", "1.2.3", "1.2.4", "1.2.5", "1.2.99"]
    with (
        service_node(tmp_path, modality_peer(free_port()), archive=archive) as node,
        modality.associated(node) as association,
    ):
        assert ask(association, *uids) == 0x0000
        report = modality.report()
    assert report.event_type == 2
    assert report.successes() == ["1.2.1"]
    assert report.failures() == {
        "1.2.3": 0x0119, "1.2.4": 0x0110, "1.2.5": 0x0112, "1.2.99": 0x0112,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"action": 2}, 0x0123),
        ({"instance": "1.2.3"}, 0x0112),
        ({"transaction": "1.02.x"}, 0x0115),
    ],
)
def test_commitment_request_that_makes_no_sense_is_refused(tmp_path, archive, wrong, status):
    modality = Modality()
    with service_node(tmp_path, modality_peer(free_port()), archive=archive) as node:
        with modality.associated(node) as association:
            assert ask(association, "1.2.1", **wrong) == status
            assert ask(association) == 0x0115
        assert node.book.open_transactions() == []


def test_commitment_request_again_is_the_same_transaction(tmp_path, archive):
    """A repeated request reports once; with other instances under its UID it is refused."""
    modality = Modality()
    with service_node(tmp_path, modality_peer(free_port()), archive=archive) as node:
        transaction = generate_uid()
        with modality.associated(node) as association:
            assert ask(association, "1.2.2", transaction=transaction) == 0x0000
            assert ask(association, "1.2.2", transaction=transaction) == 0x0000
            assert ask(association, "1.2.1", transaction=transaction) == 0x0115
            archive.reached["1.2.2"] = reached(CT, "cloud")
            assert modality.report().successes() == ["1.2.2"]
            wait_for(lambda: node.book.find("MODALITY", transaction).state == REPORTED)
            with pytest.raises(queue.Empty):
                modality.report(0.6)
            assert ask(association, "1.2.2", transaction=transaction) == 0x0000
            assert modality.report().successes() == ["1.2.2"]


def test_commitment_report_is_repeated_until_the_peer_takes_it(tmp_path, archive, monkeypatch):
    monkeypatch.setattr("appliance.archive.commitment.RETRY_MIN_S", 0.1)
    modality = Modality(answer=0x0110)
    with (
        modality.listening(),
        service_node(
            tmp_path, modality_peer(modality.port, commit_report="new"), archive=archive
        ) as node,
    ):
        transaction = generate_uid()
        with modality.associated(node) as association:
            assert ask(association, "1.2.1", transaction=transaction) == 0x0000
        modality.report()
        modality.report()
        modality.answer = 0x0000
        wait_for(lambda: node.book.find("MODALITY", transaction).state == REPORTED)
        assert node.book.find("MODALITY", transaction).attempts_count >= 2


def test_commitment_report_survives_a_restart_and_a_dead_peer(tmp_path, archive, monkeypatch):
    """Decided but never delivered before the restart; the next process delivers it."""
    monkeypatch.setattr("appliance.archive.commitment.RETRY_MIN_S", 0.1)
    monkeypatch.setattr("appliance.archive.commitment.RETRY_MAX_S", 0.2)
    modality = Modality(port=free_port())
    transaction = generate_uid()
    listed = modality_peer(modality.port, commit_report="new")
    with service_node(tmp_path, listed, archive=archive) as node:
        with modality.associated(node) as association:
            assert ask(association, "1.2.1", transaction=transaction) == 0x0000
        wait_for(lambda: node.book.find("MODALITY", transaction).attempts_count > 0)
    with service_node(tmp_path, listed, archive=archive) as node, modality.listening():
        assert modality.report().dataset.TransactionUID == transaction
        wait_for(lambda: node.book.find("MODALITY", transaction).state == REPORTED)


def test_commitment_report_of_a_peer_that_is_no_longer_listed_is_kept(tmp_path, archive):
    """Nobody is called; the attempt counts, and the transaction stays in the book."""
    book = CommitmentBook(FileSystem(), str(tmp_path / "book"), SystemClock(), archive.lookup)
    config = make_config(peer("SOMEBODY", addresses=("192.0.2.1/32",)))
    reporter = Reporter(book, config.dicom, SystemClock(), pytest.fail)
    instances = (Reference(CT, "1.2.1"),)
    book.request(
        CommitmentRequest("1.2.3", "MODALITY", AE_TITLE, "127.0.0.1", "cloud", 60, instances)
    )
    reporter.turn()
    assert book.find("MODALITY", "1.2.3").attempts_count == 1
    assert book.due() == []
    assert len(book.open_transactions()) == 1


def test_commitment_reports_many_transactions_one_after_another(tmp_path, archive):
    modality = Modality()
    transactions = [generate_uid() for _ in range(12)]
    with service_node(tmp_path, modality_peer(free_port()), archive=archive) as node:
        with modality.associated(node) as association:
            for transaction in transactions:
                assert ask(association, "1.2.1", transaction=transaction) == 0x0000
            found = {str(modality.report().dataset.TransactionUID) for _ in transactions}
        assert found == set(transactions)


def test_commitment_of_the_rung_local_does_not_wait_for_the_cloud(tmp_path, archive):
    modality = Modality()
    with (
        service_node(
            tmp_path, modality_peer(free_port(), commitment="local"), archive=archive
        ) as node,
        modality.associated(node) as association,
    ):
        assert ask(association, "1.2.2") == 0x0000
        assert modality.report().successes() == ["1.2.2"]


def test_commitment_is_given_up_after_days(tmp_path, archive, monkeypatch):
    """It stays in the book as given up."""
    monkeypatch.setattr("appliance.archive.commitment.REPORT_MAX_S", 0.2)
    monkeypatch.setattr("appliance.archive.commitment.RETRY_MIN_S", 0.1)
    monkeypatch.setattr("appliance.archive.commitment.RETRY_MAX_S", 0.1)
    modality = Modality()
    with service_node(
        tmp_path, modality_peer(free_port(), commit_report="new"), archive=archive
    ) as node:
        transaction = generate_uid()
        with modality.associated(node) as association:
            assert ask(association, "1.2.1", transaction=transaction) == 0x0000
        wait_for(lambda: node.book.find("MODALITY", transaction).state == GIVEN_UP)
        assert node.book.open_transactions() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "commitment-report"]


def test_commitment_request_that_can_not_be_written_down_is_not_answered_success(
    tmp_path, archive, monkeypatch
):
    """Success promises that a restart forgets nothing, so a full disk is a failure."""
    modality = Modality()
    with (
        service_node(tmp_path, modality_peer(free_port()), archive=archive) as node,
        modality.associated(node) as association,
    ):

        def full(*_arguments):
            raise OutOfSpace("write", "a transaction")

        with monkeypatch.context() as patch:
            patch.setattr(FileSystem, "write_atomic", full)
            assert ask(association, "1.2.1") == 0x0213
        assert node.book.open_transactions() == []
        assert ask(association, "1.2.1") == 0x0000
        assert modality.report().event_type == 1
