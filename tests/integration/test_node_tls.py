"""DICOM over mutual TLS on a whole node, in both directions, with DCMTK on the other end."""

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid

from tests.support.certificates import tls_arguments
from tests.support.dimse import EXPLICIT, small_ct
from tests.support.node import run_tool
from tests.support.services import storescp
from tests.support.shared_node import SharedNode
from tests.support.wire import WireFile, with_own_meta

ALL_FAILED = "0xa702"


class Hospital:
    """What is asked of the node over TLS."""

    def __init__(self, shared: SharedNode) -> None:
        self.node = shared.node
        self.peer = shared.peer_tls
        self.stranger = shared.stranger_tls
        self.destination_port = shared.ports["TLSDEST"]
        self._tls_port = shared.tls_port

    def send(self, file: WireFile, *options: str) -> str:
        """Run storescu against the TLS port; return what it printed, whatever became of it."""
        return run_tool(
            ["/usr/bin/storescu", "-v", "-aet", "TLSCT", "-aec", "AZEKURA", *options,
             "127.0.0.1", str(self._tls_port), str(file.path)],
            check=False,
        )  # fmt: skip

    def find(self, study: str) -> str:
        """Return what findscu prints of a study; it waits for what was answered."""
        return self.node.dcmtk(
            "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}",
            "-k", "NumberOfStudyRelatedInstances",
        )  # fmt: skip

    def move(self, study: str) -> str:
        """Have the node move a study to TLSDEST; return what movescu printed."""
        return self.node.dcmtk(
            "movescu", "-d", "-S", "-aem", "TLSDEST", "-k", "QueryRetrieveLevel=STUDY",
            "-k", f"StudyInstanceUID={study}", check=False,
        )  # fmt: skip


@pytest.fixture
def hospital(shared: SharedNode) -> Hospital:
    return Hospital(shared)


@pytest.fixture
def file(tmp_path: Path) -> WireFile:
    """An instance of a study that nobody has seen."""
    dataset, raw = small_ct(StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
    return with_own_meta(tmp_path / "instance.dcm", raw, dataset, EXPLICIT)


def test_tls_stores_and_keeps_whose_certificate_it_was(hospital: Hospital, file: WireFile) -> None:
    output = hospital.send(file, *tls_arguments(hospital.peer))
    assert "Received Store Response (Success)" in output
    assert "NumberOfStudyRelatedInstances" in hospital.find(file.study)
    (row,) = hospital.node.json("study", "show", file.study)["instances"]
    assert row["from"]["calling_ae"] == "TLSCT"
    assert row["from"]["tls_subject"] == "O=Hospital\\, A,CN=ct-scanner"


def test_tls_refuses_other_authorities_and_no_certificate(
    hospital: Hospital, file: WireFile
) -> None:
    """Of another authority, with none at all, and without TLS; nothing is stored."""
    strange = hospital.send(file, *tls_arguments(hospital.stranger))
    anonymous = hospital.send(file, "+tla", "-ic")
    plain = hospital.send(file)
    for output in (strange, anonymous, plain):
        assert "Received Store Response" not in output
    assert file.study not in hospital.find(file.study)


def test_tls_peer_is_refused_on_the_plain_port(hospital: Hospital, file: WireFile) -> None:
    """Who is configured for TLS calls over TLS and in no other way."""
    output = hospital.node.dcmtk("storescu", "-aet", "TLSCT", str(file.path), check=False)
    assert "Association Rejected" in output


def test_tls_client_refuses_a_node_of_another_authority(hospital: Hospital, file: WireFile) -> None:
    """The node shows its certificate, so a peer can tell who it is."""
    files = hospital.peer.model_copy(update={"ca": hospital.stranger.certificate})
    output = hospital.send(file, *tls_arguments(files))
    assert "Received Store Response" not in output


def test_tls_move_to_a_destination(hospital: Hospital, file: WireFile, tmp_path: Path) -> None:
    """The node calls a storescp that wants TLS, and its certificate."""
    hospital.node.dcmtk("storescu", str(file.path))
    out = tmp_path / "out"
    out.mkdir()
    with storescp(out, *tls_arguments(hospital.peer), "+B", port=hospital.destination_port):
        output = hospital.move(file.study)
    assert "0x0000: Success: Sub-operations complete" in output, output
    (received,) = out.iterdir()
    assert pydicom.dcmread(received).SOPInstanceUID == file.sop_instance


def test_tls_move_to_an_impostor_fails(hospital: Hospital, file: WireFile, tmp_path: Path) -> None:
    """A destination whose certificate is of another authority gets nothing."""
    hospital.node.dcmtk("storescu", str(file.path))
    out = tmp_path / "out"
    out.mkdir()
    with storescp(out, *tls_arguments(hospital.stranger), port=hospital.destination_port):
        output = hospital.move(file.study)
    assert ALL_FAILED in output
    assert not list(out.iterdir())
