"""DICOM over mutual TLS on a whole node, in both directions, with DCMTK on the other end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from appliance.config.model import DicomTls
from tests.support.certificates import Authority, tls_arguments
from tests.support.node import Node, free_port, run_tool
from tests.support.running_node import running_node
from tests.support.s3_fixture import s3_bucket, s3_server  # noqa: F401
from tests.support.services import storescp

SETTINGS = """
[dicom.tls]
port = {tls_port}
certificate = "{own.certificate}"
key = "{own.key}"
ca = "{own.ca}"

[[dicom.peers]]
ae_title = "TLSCT"
addresses = ["127.0.0.0/8"]
allow = ["echo", "store"]
tls = true

[[dicom.peers]]
ae_title = "TLSDEST"
host = "127.0.0.1"
port = {destination_port}
allow = ["destination"]
tls = true
"""
CT = str(get_testdata_file("CT_small.dcm", download=False))
MR = str(get_testdata_file("MR_small.dcm", download=False))
REFUSED_SUBOPERATIONS = "0xa702"


@dataclass
class Hospital:
    """The node, its TLS port, and certificates of the hospital and of a stranger."""

    node: Node
    tls_port: int
    destination_port: int
    peer: DicomTls
    stranger: DicomTls

    def send(self, file: str, *options: str) -> str:
        """Run storescu against the TLS port; return what it printed, whatever became of it."""
        return run_tool(
            ["/usr/bin/storescu", "-v", "-aet", "TLSCT", "-aec", "AZEKURA", *options,
             "127.0.0.1", str(self.tls_port), file],
            check=False,
        )  # fmt: skip

    def move(self, study: str) -> str:
        """Have the node move a study to TLSDEST; return what movescu printed."""
        return self.node.dcmtk(
            "movescu", "-d", "-S", "-aem", "TLSDEST", "-k", "QueryRetrieveLevel=STUDY",
            "-k", f"StudyInstanceUID={study}", check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def hospital(tmp_path_factory, s3_server, s3_bucket) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority(folder, "authority"), Authority(folder, "other")
    own, peer = authority.issue("node"), authority.issue("ct-scanner")
    stranger = other.issue("stranger", ca=authority.ca)
    tls_port, destination_port = free_port(), free_port()
    settings = SETTINGS.format(tls_port=tls_port, own=own, destination_port=destination_port)
    with running_node(folder / "node", s3_server, s3_bucket, "receive", peers=settings) as node:
        yield Hospital(node, tls_port, destination_port, peer, stranger)


def test_tls_stores_and_keeps_whose_certificate_it_was(hospital: Hospital) -> None:
    output = hospital.send(CT, *tls_arguments(hospital.peer))
    assert "Received Store Response (Success)" in output
    study = pydicom.dcmread(CT).StudyInstanceUID
    # a query waits for what was answered; the command line shows what is indexed
    hospital.node.dcmtk("findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
    (row,) = hospital.node.json("study", "show", study)["instances"]
    assert row["from"]["calling_ae"] == "TLSCT"
    assert row["from"]["tls_subject"] == "O=Hospital\\, A,CN=ct-scanner"


def test_tls_refuses_other_authorities_and_no_certificate(hospital: Hospital) -> None:
    """Of another authority, and with none at all; nothing is stored."""
    strange = hospital.send(MR, *tls_arguments(hospital.stranger))
    anonymous = hospital.send(MR, "+tla", "-ic")
    plain = hospital.send(MR)
    for output in (strange, anonymous, plain):
        assert "Received Store Response" not in output
    listed = hospital.node.json("study", "list")
    assert pydicom.dcmread(MR).StudyInstanceUID not in str(listed)


def test_tls_peer_is_refused_on_the_plain_port(hospital: Hospital) -> None:
    """Who is configured for TLS calls over TLS and in no other way."""
    output = hospital.node.dcmtk("storescu", "-aet", "TLSCT", MR, check=False)
    assert "Association Rejected" in output


def test_tls_client_refuses_a_node_of_another_authority(hospital: Hospital) -> None:
    """The node shows its certificate, so a peer can tell who it is."""
    files = hospital.stranger.model_copy(update={"ca": hospital.stranger.certificate})
    output = hospital.send(MR, *tls_arguments(files))
    assert "Received Store Response" not in output


def test_tls_move_to_a_destination(hospital: Hospital, tmp_path: Path) -> None:
    """The node calls a storescp that wants TLS, and its certificate."""
    dataset = pydicom.dcmread(CT)
    hospital.node.dcmtk("storescu", CT)
    options = (*tls_arguments(hospital.peer), "+B")
    with storescp(tmp_path, *options, port=hospital.destination_port):
        output = hospital.move(dataset.StudyInstanceUID)
    assert "0x0000: Success: Sub-operations complete" in output, output
    (received,) = tmp_path.iterdir()
    assert pydicom.dcmread(received).SOPInstanceUID == dataset.SOPInstanceUID


def test_tls_move_to_an_impostor_fails(hospital: Hospital, tmp_path: Path) -> None:
    """A destination whose certificate is of another authority gets nothing."""
    hospital.node.dcmtk("storescu", CT)
    with storescp(tmp_path, *tls_arguments(hospital.stranger), port=hospital.destination_port):
        output = hospital.move(pydicom.dcmread(CT).StudyInstanceUID)
    assert REFUSED_SUBOPERATIONS in output
    assert not list(tmp_path.iterdir())
