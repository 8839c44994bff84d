"""C-GET with DCMTK and pynetdicom as SCU."""

import threading

from pynetdicom import AE, build_context, build_role, evt

from appliance.dicom.uid import STUDY_ROOT_GET
from appliance.dimse import suboperations
from tests.support.dimse import AE_TITLE, CT, EXPLICIT, IMPLICIT, dcmtk, encode
from tests.support.memory_archive import MemoryArchive
from tests.support.services import (
    add_series,
    add_test_file,
    counts,
    identifier,
    service_node,
    stored_files,
    study_uid,
)


def get(node, keys, storage, msg_id=1, on_store=None):
    """Run a C-GET; storage maps SOP classes to transfer syntaxes. Return answers and datasets."""
    ae = AE("GETTER")
    contexts = [build_context(STUDY_ROOT_GET, EXPLICIT), build_context("1.2.840.10008.1.1")]
    contexts += [build_context(uid, syntaxes) for uid, syntaxes in storage.items()]
    roles = [build_role(uid, scp_role=True) for uid in storage]
    received = []

    def keep(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        received.append(dataset)
        return on_store(event) if on_store else 0x0000

    association = ae.associate(
        "127.0.0.1", node.port, contexts, AE_TITLE, ext_neg=roles,
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )  # fmt: skip
    assert association.is_established
    try:
        answers = list(association.send_c_get(keys, STUDY_ROOT_GET, msg_id=msg_id))
        assert association.send_c_echo().Status == 0x0000
    finally:
        association.release()
    return answers, received


def test_get_sends_every_instance_back(tmp_path):
    archive = MemoryArchive()
    uids = add_series(archive, 5)
    with service_node(tmp_path, archive=archive) as node:
        answers, received = get(node, identifier(study_uid(archive, uids[0])), {CT: [EXPLICIT]})
    assert answers[-1][0].Status == 0x0000
    assert counts(answers[-1][0]) == (5, 0, 0)
    assert [each.SOPInstanceUID for each in received] == uids
    assert {encode(each) for each in received} == {each.dataset for each in archive.instances}


def test_get_fails_what_has_no_context_and_converts_what_has_an_uncompressed_one(tmp_path):
    archive = MemoryArchive()
    compressed = add_test_file(archive, "MR_small_jp2klossless.dcm")
    other = add_test_file(archive, "CT_small.dcm")
    mr = str(compressed.SOPClassUID)
    with service_node(tmp_path, archive=archive) as node:
        keys = identifier([compressed.StudyInstanceUID, other.StudyInstanceUID])
        answers, received = get(node, keys, {mr: [IMPLICIT]})
    final, failed = answers[-1]
    assert final.Status == 0xB000
    assert counts(final) == (1, 1, 0)
    assert failed.FailedSOPInstanceUIDList == other.SOPInstanceUID
    assert received[0].file_meta.TransferSyntaxUID == IMPLICIT
    assert (received[0].pixel_array == compressed.pixel_array).all()


def test_get_sends_pending_while_it_waits_for_a_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(suboperations, "PENDING_INTERVAL_MAX_S", 0.05)
    archive = MemoryArchive()
    uids = add_series(archive, 2)
    archive.away = set(uids)
    opened = threading.Timer(0.5, archive.recall.set)
    opened.start()
    with service_node(tmp_path, archive=archive) as node:
        answers, received = get(node, identifier(study_uid(archive, uids[0])), {CT: [EXPLICIT]})
    opened.join()
    waiting = [s for s, _ in answers if s.Status == 0xFF00 and counts(s) == (0, 0, 0)]
    assert len(waiting) >= 3
    assert answers[-1][0].Status == 0x0000
    assert len(received) == 2


def test_get_is_cancelled(tmp_path):
    """The cancel arrives in the middle of a C-STORE; the operation ends with what was done."""
    archive = MemoryArchive()
    uids = add_series(archive, 40)

    def cancel(event):
        event.assoc.send_c_cancel(3, query_model=STUDY_ROOT_GET)
        return 0x0000

    with service_node(tmp_path, archive=archive) as node:
        answers, received = get(
            node, identifier(study_uid(archive, uids[0])), {CT: [EXPLICIT]}, 3, cancel
        )
    final = answers[-1][0]
    assert final.Status == 0xFE00
    assert final.NumberOfCompletedSuboperations == len(received) < 40
    assert final.NumberOfRemainingSuboperations == 40 - len(received)


def test_get_with_dcmtk(tmp_path):
    archive = MemoryArchive()
    uids = add_series(archive, 10)
    out = tmp_path / "out"
    out.mkdir()
    with service_node(tmp_path, archive=archive) as node:
        done = dcmtk(
            "getscu", "-S", "-v", "-aec", AE_TITLE, "-k", "QueryRetrieveLevel=STUDY",
            "-k", f"StudyInstanceUID={study_uid(archive, uids[0])}",
            "-od", str(out), "+B", "127.0.0.1", str(node.port), nodelay=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(each.SOPInstanceUID for each in stored_files(out)) == sorted(uids)
