"""C-FIND with DCMTK and pynetdicom as SCU."""

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from appliance.dicom.uid import PATIENT_ROOT_FIND as PATIENT_ROOT
from appliance.dicom.uid import STUDY_ROOT_FIND as STUDY_ROOT
from tests.support.dimse import AE_TITLE, dcmtk, peer
from tests.support.memory_archive import MemoryArchive
from tests.support.services import add_series, service_node


def keys(**values) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def find(node, identifier, model=STUDY_ROOT, *, relational=False, syntax="1.2.840.10008.1.2.1"):
    ae = AE("TEST")
    ae.add_requested_context(model, syntax)
    items = []
    if relational:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = model
        item.service_class_application_information = b"\x01"
        items.append(item)
    association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE, ext_neg=items)
    assert association.is_established
    try:
        return [
            (status.Status, answer) for status, answer in association.send_c_find(identifier, model)
        ]
    finally:
        association.release()


@pytest.fixture
def archive():
    archive = MemoryArchive()
    add_series(archive, 3, PatientName="Yamada^Tarou", PatientID="P1", StudyDate="20240102")
    add_series(archive, 2, PatientName="Sato^Hanako", PatientID="P2", StudyDate="20250203")
    return archive


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"]
)
def test_find_answers_in_the_negotiated_syntax(tmp_path, archive, syntax):
    with service_node(tmp_path, archive=archive) as node:
        answers = find(
            node,
            keys(
                QueryRetrieveLevel="STUDY",
                PatientName="yamada*",
                StudyInstanceUID="",
                NumberOfStudyRelatedInstances=None,
            ),
            syntax=syntax,
        )
    assert [status for status, _ in answers] == [0xFF00, 0x0000]
    answer = answers[0][1]
    assert answer.PatientName == "Yamada^Tarou"
    assert answer.NumberOfStudyRelatedInstances == 3
    assert answer.RetrieveAETitle == AE_TITLE
    assert answer.InstanceAvailability == "ONLINE"


def test_find_answers_in_the_character_set_of_the_study(tmp_path):
    archive = MemoryArchive()
    add_series(
        archive,
        1,
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
    )
    with service_node(tmp_path, archive=archive) as node:
        answers = find(
            node,
            keys(
                SpecificCharacterSet="ISO_IR 192",
                QueryRetrieveLevel="STUDY",
                PatientName="*=山田*",
                StudyInstanceUID="",
            ),
        )
    answer = answers[0][1]
    assert list(answer.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
    assert str(answer.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_find_says_when_a_key_is_not_supported(tmp_path, archive):
    """0xFF01 for a private key and for one below the level; the matches come all the same."""
    with service_node(tmp_path, archive=archive) as node:
        private = keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientID="P1")
        private.add_new(0x00091001, "LO", "x")
        below = keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="", Modality="")
        assert [status for status, _ in find(node, private)] == [0xFF01, 0x0000]
        assert [status for status, _ in find(node, below)] == [0xFF01, 0xFF01, 0x0000]


@pytest.mark.parametrize(
    ("identifier", "model"),
    [
        (keys(StudyInstanceUID=""), STUDY_ROOT),
        (keys(QueryRetrieveLevel="PATIENT", PatientID="P1"), STUDY_ROOT),
        (keys(QueryRetrieveLevel="SERIES", SeriesInstanceUID=""), STUDY_ROOT),
        (keys(QueryRetrieveLevel="SERIES", StudyInstanceUID="1.2*"), STUDY_ROOT),
        (keys(QueryRetrieveLevel="SERIES", StudyInstanceUID=["1.2", "1.3"]), STUDY_ROOT),
        (keys(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), PATIENT_ROOT),
        (keys(QueryRetrieveLevel="NONSENSE", StudyInstanceUID=""), PATIENT_ROOT),
    ],
)
def test_find_refuses_an_identifier_that_does_not_fit_its_class(
    tmp_path, archive, identifier, model
):
    with service_node(tmp_path, archive=archive) as node:
        assert [status for status, _ in find(node, identifier, model)] == [0xA900]


def test_find_combines_levels_when_relational_queries_are_negotiated(tmp_path, archive):
    with service_node(tmp_path, archive=archive) as node:
        identifier = keys(QueryRetrieveLevel="IMAGE", PatientID="P1", SOPInstanceUID="")
        answers = find(node, identifier, relational=True)
        assert [status for status, _ in answers] == [0xFF00] * 3 + [0x0000]
        assert [status for status, _ in find(node, identifier)] == [0xA900]


class EndlessArchive(MemoryArchive):
    """Finds the same again and again, until it is told to stop."""

    ended = False

    def find(self, query, retrieve_ae_title):
        try:
            while True:
                yield from super().find(query, retrieve_ae_title)
        finally:
            self.ended = True


def test_find_ends_when_it_is_cancelled(tmp_path):
    """After C-CANCEL the final status is 0xFE00 and the association goes on."""
    archive = EndlessArchive()
    add_series(archive, 1)
    with service_node(tmp_path, archive=archive) as node:
        ae = AE("TEST")
        ae.add_requested_context(STUDY_ROOT)
        ae.add_requested_context("1.2.840.10008.1.1")
        association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
        identifier = keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
        answers = association.send_c_find(identifier, STUDY_ROOT, msg_id=7)
        assert next(answers)[0].Status == 0xFF00
        association.send_c_cancel(7, query_model=STUDY_ROOT)
        assert [status.Status for status, _ in answers][-1] == 0xFE00
        assert archive.ended
        assert association.send_c_echo().Status == 0x0000
        association.release()


def test_find_with_dcmtk_query_file(tmp_path, archive):
    """findscu with a query made by dump2dcm; the answers are extracted to files."""
    dump = tmp_path / "query.dump"
    dump.write_text(
        "(0008,0052) CS [SERIES]\n"
        f"(0020,000d) UI [{archive.instances[3].study_instance_uid}]\n"
        "(0020,000e) UI\n(0008,0060) CS [CT]\n(0010,0010) PN\n"
    )
    query = tmp_path / "query.dcm"
    assert dcmtk("dump2dcm", str(dump), str(query)).returncode == 0
    out = tmp_path / "answers"
    out.mkdir()
    with service_node(tmp_path, archive=archive) as node:
        done = dcmtk(
            "findscu", "-S", "-X", "-od", str(out), "-aec", AE_TITLE,
            "127.0.0.1", str(node.port), str(query),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [pydicom.dcmread(path, force=True) for path in out.iterdir()]
    assert [answer.SeriesInstanceUID for answer in answers] == [
        archive.instances[3].series_instance_uid
    ]


def test_find_of_a_peer_without_permission_gets_no_context(tmp_path, archive):
    with service_node(tmp_path, peer("TEST", allow=("echo",)), archive=archive) as node:
        ae = AE("TEST")
        ae.requested_contexts = [build_context(STUDY_ROOT), build_context("1.2.840.10008.1.1")]
        association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
        assert [str(context.abstract_syntax) for context in association.accepted_contexts] == [
            "1.2.840.10008.1.1"
        ]
        association.release()


def test_find_without_a_match_is_a_success(tmp_path, archive):
    with service_node(tmp_path, archive=archive) as node:
        identifier = keys(QueryRetrieveLevel="STUDY", StudyInstanceUID=generate_uid())
        assert [status for status, _ in find(node, identifier)] == [0x0000]
