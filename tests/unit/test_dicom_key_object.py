"""Rejection notes out of real key object documents."""

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from appliance.dicom.key_object import Reference, RejectionCode, rejection_note
from appliance.dicom.scan import scan_attributes
from appliance.dicom.uid import KEY_OBJECT_SELECTION
from tests.unit.test_dicom_identifier import SYNTAXES, encode_by_pydicom


def dataset(**values: object) -> Dataset:
    """Return a dataset of these attributes."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, Sequence(value) if isinstance(value, list) else value)
    return made


def key_object(code: str, scheme: str = "DCM", count: int = 3) -> Dataset:
    """Return a key object document that names `count` instances."""
    sops = [
        dataset(
            ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=f"1.2.3.{n}"
        )
        for n in range(count)
    ]
    series = dataset(SeriesInstanceUID="1.2.2", ReferencedSOPSequence=sops)
    study = dataset(StudyInstanceUID="1.2.1", ReferencedSeriesSequence=[series])
    return dataset(
        SOPClassUID=KEY_OBJECT_SELECTION,
        SOPInstanceUID="1.2.9",
        StudyInstanceUID="1.2.1",
        SeriesInstanceUID="1.2.8",
        ConceptNameCodeSequence=[
            dataset(CodeValue=code, CodingSchemeDesignator=scheme, CodeMeaning="x")
        ],
        CurrentRequestedProcedureEvidenceSequence=[study],
    )


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("code", list(RejectionCode))
def test_a_rejection_note_names_its_instances(syntax: str, code: RejectionCode):
    """All four titles, in the three encodings."""
    header = scan_attributes(encode_by_pydicom(key_object(code), syntax), syntax)
    note = rejection_note(header.attributes)
    assert note is not None
    assert note.code is code
    assert note.referenced == tuple(
        Reference("1.2.1", "1.2.2", "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{n}") for n in range(3)
    )


def test_a_note_of_thousands_of_instances_is_whole():
    """The usual limit on sequences does not cut a rejection."""
    header = scan_attributes(
        encode_by_pydicom(key_object("113001", count=5000), SYNTAXES[1]), SYNTAXES[1]
    )
    note = rejection_note(header.attributes)
    assert note is not None
    assert len(note.referenced) == 5000


def test_what_is_no_rejection_is_none():
    """Another title, another scheme, another SOP class."""
    for made in (key_object("113000"), key_object("113001", "99ACME")):
        header = scan_attributes(encode_by_pydicom(made, SYNTAXES[1]), SYNTAXES[1])
        assert rejection_note(header.attributes) is None
    report = key_object("113001")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    header = scan_attributes(encode_by_pydicom(report, SYNTAXES[1]), SYNTAXES[1])
    assert rejection_note(header.attributes) is None
    assert 0x0040A375 not in header.attributes
