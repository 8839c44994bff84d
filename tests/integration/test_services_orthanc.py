"""Orthanc as SCU: it finds, moves to itself, and asks for storage commitment."""

import pytest

from tests.support.dimse import AE_TITLE, CT
from tests.support.memory_archive import MemoryArchive
from tests.support.orthanc import orthanc
from tests.support.services import (
    add_series,
    destination,
    free_port,
    reached,
    service_node,
    study_uid,
    wait_for,
)


@pytest.fixture
def pair(tmp_path):
    """A node and an Orthanc that know each other."""
    archive = MemoryArchive()
    dicom_port = free_port()
    listed = destination("ORTHANC", dicom_port, commitment="cloud", commit_deadline_s=60)
    with (
        service_node(tmp_path, listed, archive=archive) as node,
        orthanc(tmp_path, dicom_port, AE_TITLE, node.port) as other,
    ):
        yield node, other


def test_orthanc_finds_and_moves_a_study(pair):
    node, other = pair
    uids = add_series(node.archive, 5, PatientID="OP1", PatientName="Orthanc^Test")
    query = other.post("/modalities/node/query", {"Level": "Study", "Query": {"PatientID": "OP1"}})
    answers = other.get(f"/queries/{query['ID']}/answers")
    assert len(answers) == 1
    content = other.get(f"/queries/{query['ID']}/answers/0/content?simplify")
    assert content["StudyInstanceUID"] == study_uid(node.archive, uids[0])
    moved = other.post(f"/queries/{query['ID']}/answers/0/retrieve", b"ORTHANC")
    assert moved["RemoteAet"] == AE_TITLE
    wait_for(lambda: len(other.get("/instances")) == 5)


def test_orthanc_gets_its_commitment_report(pair):
    """Success for what reached the rung, a reason for what never came."""
    node, other = pair
    (uid,) = add_series(node.archive, 1)
    node.archive.reached[uid] = reached(CT, "cloud")
    asked = other.post("/modalities/node/storage-commitment", {"DicomInstances": [[CT, uid]]})
    report = wait_for(lambda: _finished(other, asked["ID"]))
    assert report["Status"] == "Success"
    assert report["Success"] == [{"SOPClassUID": CT, "SOPInstanceUID": uid}]


def test_orthanc_gets_a_report_with_failures(pair):
    node, other = pair
    good, wrong = add_series(node.archive, 2)
    node.archive.reached[good] = reached(CT, "locked")
    node.archive.reached[wrong] = reached("1.2.840.10008.5.1.4.1.1.4", "locked")
    asked = other.post(
        "/modalities/node/storage-commitment", {"DicomInstances": [[CT, good], [CT, wrong]]}
    )
    report = wait_for(lambda: _finished(other, asked["ID"]))
    assert report["Status"] == "Failure"
    assert report["Success"] == [{"SOPClassUID": CT, "SOPInstanceUID": good}]
    (failure,) = report["Failures"]
    assert failure["SOPInstanceUID"] == wrong
    assert failure["FailureReason"] == 0x0119


def _finished(other, transaction):
    report = other.get(f"/storage-commitment/{transaction}")
    return report if report["Status"] != "Pending" else None
