"""C-MOVE with DCMTK and pynetdicom as SCU and as destination."""

import hashlib
import socket
import threading

import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from appliance.dicom.uid import PATIENT_ROOT_MOVE, STUDY_ROOT_MOVE
from appliance.dimse import suboperations
from appliance.dimse.limits import Limits
from tests.support.dimse import AE_TITLE, CT, EXPLICIT, IMPLICIT, SHORT, dcmtk, encode, peer
from tests.support.memory_archive import MemoryArchive
from tests.support.services import (
    add_series,
    add_test_file,
    counts,
    destination,
    free_port,
    identifier,
    service_node,
    store_scp,
    stored_files,
    storescp,
    study_uid,
    wait_for,
)


class Mover:
    """A pynetdicom C-MOVE SCU with an association to the node."""

    def __init__(self, node, model=STUDY_ROOT_MOVE, syntax=EXPLICIT):
        self.model = model
        self.association = requestor("MOVER", model, syntax).associate(
            "127.0.0.1", node.port, ae_title=AE_TITLE
        )
        assert self.association.is_established

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.association.release()

    def move(self, keys, ae_title="DEST", msg_id=1):
        return self.association.send_c_move(keys, ae_title, self.model, msg_id=msg_id)


def requestor(ae_title, model, syntax=EXPLICIT) -> AE:
    ae = AE(ae_title)
    ae.add_requested_context(model, syntax)
    ae.add_requested_context("1.2.840.10008.1.1")
    ae.dimse_timeout = 30
    ae.network_timeout = 60
    return ae


def peers(port, **more):
    return peer(), destination("DEST", port, **more)


def test_move_sends_every_instance_as_it_was_stored(tmp_path):
    """The destination gets the stored bytes, and the Move Originator of the request."""
    archive = MemoryArchive()
    uids = add_series(archive, 5)
    with (
        store_scp({CT: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        answers = list(mover.move(identifier(study_uid(archive, uids[0])), msg_id=77))
    final = answers[-1][0]
    assert final.Status == 0x0000
    assert counts(final) == (5, 0, 0)
    assert "NumberOfRemainingSuboperations" not in final
    assert [received.SOPInstanceUID for received in scp.received] == uids
    assert {encode(received) for received in scp.received} == {
        instance.dataset for instance in archive.instances
    }
    assert set(scp.originators) == {("MOVER", 77)}
    assert set(scp.callers) == {AE_TITLE}


def test_move_reports_pending_with_counts_that_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(suboperations, "PENDING_INTERVAL_MIN_S", 0.0)
    archive = MemoryArchive()
    uids = add_series(archive, 4)
    with (
        store_scp({CT: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        scp.statuses = [0x0000, 0xB007, 0xA700, 0x0000]
        answers = list(mover.move(identifier(study_uid(archive, uids[0]))))
    pending = [status for status, _ in answers if status.Status == 0xFF00]
    assert [(s.NumberOfRemainingSuboperations, *counts(s)) for s in pending] == [
        (3, 1, 0, 0),
        (2, 1, 0, 1),
        (1, 1, 1, 1),
        (0, 2, 1, 1),
    ]
    final, failed = answers[-1]
    assert final.Status == 0xB000
    assert counts(final) == (2, 1, 1)
    assert failed.FailedSOPInstanceUIDList == uids[2]


def test_move_to_an_unlisted_destination_is_refused(tmp_path):
    """A peer that may not be a destination is as unknown as one that is not configured."""
    archive = MemoryArchive()
    uids = add_series(archive, 1)
    with (
        service_node(tmp_path, peer(), peer("STRANGER"), archive=archive) as node,
        Mover(node) as mover,
    ):
        keys = identifier(study_uid(archive, uids[0]))
        assert [s.Status for s, _ in mover.move(keys, "NOWHERE")] == [0xA801]
        assert [s.Status for s, _ in mover.move(keys, "STRANGER")] == [0xA801]
        assert mover.association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize(
    "keys",
    [
        identifier(""),
        identifier("1.2.3", QueryRetrieveLevel="SERIES"),
        identifier("", QueryRetrieveLevel="SERIES", SeriesInstanceUID="1.2"),
        identifier("1.2.3", QueryRetrieveLevel="PATIENT", PatientID="P"),
    ],
)
def test_move_refuses_an_identifier_without_its_unique_keys(tmp_path, keys):
    with service_node(tmp_path, *peers(free_port())) as node, Mover(node) as mover:
        assert [s.Status for s, _ in mover.move(keys)] == [0xA900]


def test_move_of_nothing_is_a_success(tmp_path):
    """The destination is not even called: there is nothing at that port."""
    with service_node(tmp_path, *peers(free_port())) as node, Mover(node) as mover:
        answers = list(mover.move(identifier(generate_uid())))
    assert [s.Status for s, _ in answers] == [0x0000]
    assert counts(answers[0][0]) == (0, 0, 0)


def test_move_in_patient_root_takes_a_list_of_studies(tmp_path):
    archive = MemoryArchive()
    first = add_series(archive, 1, PatientID="P1")
    second = add_series(archive, 1, PatientID="P1")
    add_series(archive, 1, PatientID="P1")
    studies = [study_uid(archive, first[0]), study_uid(archive, second[0])]
    with (
        store_scp({CT: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node, PATIENT_ROOT_MOVE) as mover,
    ):
        keys = identifier(studies, PatientID="P1")
        assert [s.Status for s, _ in mover.move(keys)][-1] == 0x0000
    assert sorted(each.StudyInstanceUID for each in scp.received) == sorted(studies)


def test_move_counts_what_the_archive_can_not_open(tmp_path):
    archive = MemoryArchive()
    uids = add_series(archive, 3)
    archive.broken = {uids[1]}
    with (
        store_scp({CT: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        final, failed = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    assert final.Status == 0xB000
    assert counts(final) == (2, 1, 0)
    assert failed.FailedSOPInstanceUIDList == uids[1]
    assert len(scp.received) == 2


def test_move_of_which_everything_failed_is_a_failure(tmp_path):
    archive = MemoryArchive()
    uids = add_series(archive, 2)
    archive.broken = set(uids)
    with (
        service_node(tmp_path, *peers(free_port()), archive=archive) as node,
        Mover(node) as mover,
    ):
        final, failed = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    assert final.Status == 0xA702
    assert list(failed.FailedSOPInstanceUIDList) == uids


def test_move_waits_for_a_recall_with_pending(tmp_path, monkeypatch):
    """While an evicted instance is on its way the requestor hears Pending; then it comes."""
    monkeypatch.setattr(suboperations, "PENDING_INTERVAL_MAX_S", 0.05)
    archive = MemoryArchive()
    uids = add_series(archive, 2)
    archive.away = {uids[0]}
    with (
        store_scp({CT: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        answers = mover.move(identifier(study_uid(archive, uids[0])))
        waiting = 0
        for status, _ in answers:
            if status.Status == 0xFF00 and status.NumberOfRemainingSuboperations == 1:
                waiting += 1
                if waiting == 3:
                    archive.recall.set()
        assert status.Status == 0x0000
        assert counts(status) == (2, 0, 0)
    assert [received.SOPInstanceUID for received in scp.received] == [uids[1], uids[0]]
    assert archive.closed_count == 1


def test_move_is_cancelled_while_it_waits_for_a_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(suboperations, "CANCEL_CHECK_S", 0.02)
    archive = MemoryArchive()
    uids = add_series(archive, 3)
    archive.away = set(uids[1:])
    with (
        store_scp({CT: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        answers = mover.move(identifier(study_uid(archive, uids[0])), msg_id=5)
        assert next(answers)[0].NumberOfRemainingSuboperations == 2
        mover.association.send_c_cancel(5, query_model=STUDY_ROOT_MOVE)
        final = [status for status, _ in answers][-1]
        assert final.Status == 0xFE00
        assert final.NumberOfRemainingSuboperations == 2
        assert counts(final) == (1, 0, 0)
        assert mover.association.send_c_echo().Status == 0x0000
        archive.recall.set()
        wait_for(lambda: archive.closed_count == 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "deliveries"]


def test_move_is_cancelled_between_instances(tmp_path):
    archive = MemoryArchive()
    uids = add_series(archive, 50)
    gate = threading.Event()
    with (
        store_scp({CT: [EXPLICIT]}, gate=gate) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        answers = mover.move(identifier(study_uid(archive, uids[0])), msg_id=9)
        first = threading.Thread(target=lambda: scp.arrived.get(timeout=10))
        first.start()

        def cancel_then_open():
            first.join()
            mover.association.send_c_cancel(9, query_model=STUDY_ROOT_MOVE)
            cancelled.wait(10)
            gate.set()

        cancelled = threading.Event()
        mover.association.bind(evt.EVT_DIMSE_SENT, lambda _: cancelled.set())
        canceller = threading.Thread(target=cancel_then_open)
        canceller.start()
        final = [status for status, _ in answers][-1]
        canceller.join()
        assert final.Status == 0xFE00
        assert final.NumberOfRemainingSuboperations == 50 - final.NumberOfCompletedSuboperations
        assert 1 <= final.NumberOfCompletedSuboperations < 50


def test_move_to_a_dead_destination_fails_at_once_and_fetches_nothing(tmp_path):
    archive = MemoryArchive()
    uids = add_series(archive, 20)
    with (
        service_node(tmp_path, *peers(free_port()), archive=archive) as node,
        Mover(node) as mover,
    ):
        final, failed = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    assert final.Status == 0xA702
    assert counts(final) == (0, 20, 0)
    assert list(failed.FailedSOPInstanceUIDList) == uids
    assert archive.opened == uids[:1]


def test_move_to_a_destination_that_never_answers_is_bounded(tmp_path):
    """A listener that accepts and says nothing: two attempts, each as long as the limit."""
    archive = MemoryArchive()
    uids = add_series(archive, 3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        limits = Limits(connect_s=0.5, response_s=0.3)
        with (
            service_node(
                tmp_path, *peers(mute.getsockname()[1]), archive=archive, limits=limits
            ) as node,
            Mover(node) as mover,
        ):
            final, _ = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    assert final.Status == 0xA702
    assert counts(final) == (0, 3, 0)


def test_move_to_a_destination_that_stops_answering_counts_right(tmp_path, monkeypatch):
    """It takes two instances, then hangs; the retry hangs too: two completed, the rest failed."""
    monkeypatch.setattr(suboperations, "STORE_RESPONSE_MAX_S", 0.4)
    archive = MemoryArchive()
    uids = add_series(archive, 6)
    hang = threading.Event()
    count = iter(range(100))
    ae = AE("DEST")
    ae.add_supported_context(CT, EXPLICIT)

    def on_store(event):
        if next(count) >= 2:
            hang.wait(20)
        return 0x0000

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        port = server.socket.getsockname()[1]
        with (
            service_node(tmp_path, *peers(port), archive=archive, limits=SHORT) as node,
            Mover(node) as mover,
        ):
            final, failed = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
            assert final.Status == 0xB000
            assert counts(final) == (2, 4, 0)
            assert list(failed.FailedSOPInstanceUIDList) == uids[2:]
            assert mover.association.send_c_echo().Status == 0x0000
    finally:
        hang.set()
        server.shutdown()


def test_move_reopens_a_destination_that_aborted_once(tmp_path):
    """The instance in hand is sent again on a second association; nothing is lost."""
    archive = MemoryArchive()
    uids = add_series(archive, 5)
    ae = AE("DEST")
    ae.add_supported_context(CT, EXPLICIT)
    received, aborts = [], []

    def on_store(event):
        if len(received) == 2 and not aborts:
            aborts.append(True)
            event.assoc.abort()
            return 0xA700
        received.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        port = server.socket.getsockname()[1]
        with (
            service_node(tmp_path, *peers(port), archive=archive) as node,
            Mover(node) as mover,
        ):
            final, _ = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    finally:
        server.shutdown()
    assert aborts
    assert final.Status == 0x0000
    assert received == uids


def test_move_passes_over_what_a_destination_aborts_at(tmp_path):
    """As DCMTK does at a dataset of odd length: two instances fail alone, the others arrive."""
    archive = MemoryArchive()
    uids = add_series(archive, 6)
    poison = {uids[1], uids[4]}
    ae = AE("DEST")
    ae.add_supported_context(CT, EXPLICIT)
    received = []

    def on_store(event):
        uid = event.request.AffectedSOPInstanceUID
        if uid in poison:
            event.assoc.abort()
            return 0xA700
        received.append(uid)
        return 0x0000

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        port = server.socket.getsockname()[1]
        with (
            service_node(tmp_path, *peers(port), archive=archive) as node,
            Mover(node) as mover,
        ):
            final, failed = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    finally:
        server.shutdown()
    assert final.Status == 0xB000
    assert counts(final) == (4, 2, 0)
    assert set(failed.FailedSOPInstanceUIDList) == poison
    assert received == [uid for uid in uids if uid not in poison]


def test_move_gives_a_destination_up_that_aborts_at_everything(tmp_path, monkeypatch):
    """It is not called for ever."""
    monkeypatch.setattr("appliance.dimse.move.BREAKS_MAX", 2)
    archive = MemoryArchive()
    uids = add_series(archive, 20)
    ae = AE("DEST")
    ae.add_supported_context(CT, EXPLICIT)
    calls = []

    def on_store(event):
        calls.append(event.request.AffectedSOPInstanceUID)
        event.assoc.abort()
        return 0xA700

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        port = server.socket.getsockname()[1]
        with (
            service_node(tmp_path, *peers(port), archive=archive) as node,
            Mover(node) as mover,
        ):
            final, failed = list(mover.move(identifier(study_uid(archive, uids[0]))))[-1]
    finally:
        server.shutdown()
    assert final.Status == 0xA702
    assert counts(final) == (0, 20, 0)
    assert list(failed.FailedSOPInstanceUIDList) == uids
    assert calls == [uid for uid in uids[:3] for _ in range(2)]


def test_move_stops_when_its_requestor_is_gone(tmp_path):
    """No thread and no association to the destination is left."""
    archive = MemoryArchive()
    uids = add_series(archive, 30)
    gate = threading.Event()
    with (
        store_scp({CT: [EXPLICIT]}, gate=gate) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
    ):
        mover = Mover(node)
        mover.move(identifier(study_uid(archive, uids[0])))
        scp.arrived.get(timeout=10)
        mover.association.abort()
        gate.set()
        wait_for(lambda: not node.acceptor.status())
        wait_for(lambda: not [t for t in threading.enumerate() if t.name == "pending"])
        assert archive.closed_count == 1
        assert len(scp.received) < 30


def test_move_decompresses_where_the_destination_needs_it(tmp_path):
    """As stored where the syntax is accepted, decoded to explicit or implicit where it is not."""
    archive = MemoryArchive()
    compressed = add_test_file(archive, "MR_small_jp2klossless.dcm")
    mr, j2k = str(compressed.SOPClassUID), str(compressed.file_meta.TransferSyntaxUID)
    for number, (syntaxes, expected) in enumerate(
        [([j2k], j2k), ([EXPLICIT], EXPLICIT), ([IMPLICIT], IMPLICIT), ([IMPLICIT, j2k], j2k)]
    ):
        with (
            store_scp({mr: syntaxes}) as scp,
            service_node(tmp_path / str(number), *peers(scp.port), archive=archive) as node,
            Mover(node) as mover,
        ):
            answers = list(mover.move(identifier(compressed.StudyInstanceUID)))
        assert answers[-1][0].Status == 0x0000
        (received,) = scp.received
        assert received.file_meta.TransferSyntaxUID == expected
        assert (received.pixel_array == compressed.pixel_array).all()


def test_move_counts_what_can_not_be_decoded(tmp_path):
    """Damaged JPEG 2000 fails alone; its healthy neighbours arrive decoded."""
    archive = MemoryArchive()
    healthy = add_test_file(archive, "MR_small_jp2klossless.dcm")
    stored = archive.instances[0]
    broken = bytearray(stored.dataset)
    start = broken.index(b"\xff\x4f\xff\x51")
    broken[start : start + 600] = bytes(600)
    uid = stored.sop_instance_uid[:-1] + "9"
    broken = bytes(broken).replace(stored.sop_instance_uid.encode(), uid.encode())
    archive.store(None, stored.sop_class_uid, uid, stored.transfer_syntax_uid, broken)
    with (
        store_scp({stored.sop_class_uid: [EXPLICIT]}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        final, failed = list(mover.move(identifier(healthy.StudyInstanceUID)))[-1]
    assert final.Status == 0xB000
    assert counts(final) == (1, 1, 0)
    assert failed.FailedSOPInstanceUIDList == uid
    assert [received.SOPInstanceUID for received in scp.received] == [healthy.SOPInstanceUID]


def test_move_splits_past_128_contexts(tmp_path):
    """70 SOP classes need 140 contexts and so two associations; every instance arrives."""
    archive = MemoryArchive()
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[:70]]
    for sop_class_uid in classes:
        dataset.SOPClassUID = sop_class_uid
        dataset.SOPInstanceUID = generate_uid()
        archive.store(None, sop_class_uid, dataset.SOPInstanceUID, EXPLICIT, encode(dataset))
    with (
        store_scp({uid: [EXPLICIT] for uid in classes}) as scp,
        service_node(tmp_path, *peers(scp.port), archive=archive) as node,
        Mover(node) as mover,
    ):
        final = list(mover.move(identifier(dataset.StudyInstanceUID)))[-1][0]
    assert final.Status == 0x0000
    assert counts(final) == (70, 0, 0)
    assert len({received.SOPClassUID for received in scp.received}) == 70


def test_move_with_dcmtk_to_its_own_port(tmp_path):
    """movescu opens the port of the destination itself."""
    archive = MemoryArchive()
    uids = add_series(archive, 10)
    port = free_port()
    out = tmp_path / "out"
    out.mkdir()
    with service_node(tmp_path, peer(), destination("MOVESCU", port), archive=archive) as node:
        done = dcmtk(
            "movescu", "-S", "-v", "+P", str(port), "-aec", AE_TITLE, "-aem", "MOVESCU",
            "-k", "QueryRetrieveLevel=STUDY",
            "-k", f"StudyInstanceUID={study_uid(archive, uids[0])}",
            "-od", str(out), "127.0.0.1", str(node.port), nodelay=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Received Final Move Response (Success)" in done.stderr + done.stdout
    assert sorted(each.SOPInstanceUID for each in stored_files(out)) == sorted(uids)


def test_move_with_dcmtk_to_storescp_keeps_every_byte(tmp_path):
    """storescp +B writes what it received; the digests are those of what was stored."""
    archive = MemoryArchive()
    uids = add_series(archive, 10)
    out = tmp_path / "out"
    out.mkdir()
    with (
        storescp(out, "-aet", "DEST", "+B") as port,
        service_node(tmp_path, *peers(port), archive=archive) as node,
    ):
        done = dcmtk(
            "movescu", "-S", "-aec", AE_TITLE, "-aem", "DEST",
            "-k", "QueryRetrieveLevel=STUDY",
            "-k", f"StudyInstanceUID={study_uid(archive, uids[0])}",
            "127.0.0.1", str(node.port), nodelay=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {hashlib.sha256(encode(each)).digest() for each in stored_files(out)} == {
        hashlib.sha256(instance.dataset).digest() for instance in archive.instances
    }
