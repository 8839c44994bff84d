"""Identifiers in and answers out."""

import io

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from appliance.dicom.identifier import encode_answer, parse_identifier
from appliance.foundation.errors import DatasetNotUnderstood

SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"
ANSWER = {
    0x00080052: "STUDY",
    0x00080054: "AZEKURA",
    0x00080056: "NEARLINE",
    0x00080061: "CT\\MR",
    0x00100010: NAME,
    0x00100020: "A1",
    0x0020000D: "1.2.3",
    0x00201208: "12",
    0x00280010: "512",
    0x00101030: "",
    0x00081032: [{0x00080100: "C1", 0x00080104: "頭部"}, {}],
}


def encode_by_pydicom(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return the bytes of a dataset."""
    stream = DicomBytesIO()
    stream.is_implicit_VR = transfer_syntax_uid == SYNTAXES[0]
    stream.is_little_endian = transfer_syntax_uid != SYNTAXES[2]
    write_dataset(stream, dataset)
    return stream.getvalue()


def read(raw: bytes, transfer_syntax_uid: str) -> Dataset:
    """Return pydicom's view of an answer."""
    return read_dataset(
        io.BytesIO(raw),
        is_implicit_VR=transfer_syntax_uid == SYNTAXES[0],
        is_little_endian=transfer_syntax_uid != SYNTAXES[2],
    )


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("ISO 2022 IR 6\\ISO 2022 IR 87", "ISO 2022 IR 6\\ISO 2022 IR 87"),
        ("ISO_IR 192", "ISO_IR 192"),
        ("ISO_IR 100", "ISO_IR 192"),
        ("", "ISO_IR 192"),
    ],
)
def test_an_answer_reads_back_in_the_character_set_it_names(syntax: str, asked: str, said: str):
    """pydicom finds every value; text outside the repertoire moves the answer to UTF-8."""
    raw = encode_answer(ANSWER, syntax, asked)
    answer = read(raw, syntax)
    charset = answer.SpecificCharacterSet
    assert (charset if isinstance(charset, str) else "\\".join(charset)) == said
    assert str(answer.PatientName) == NAME
    assert answer.ProcedureCodeSequence[0].CodeMeaning == "頭部"
    assert len(answer.ProcedureCodeSequence) == 2
    assert answer.ModalitiesInStudy == ["CT", "MR"]
    assert answer.Rows == 512
    assert answer.NumberOfStudyRelatedInstances == 12
    assert answer.PatientWeight is None
    assert [int(tag) for tag in answer.keys()] == sorted([*ANSWER, 0x00080005])  # noqa: SIM118
    assert len(raw) % 2 == 0


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_answer_parses_as_an_identifier(syntax: str):
    """Our two directions agree."""
    identifier = parse_identifier(encode_answer(ANSWER, syntax, "ISO_IR 192"), syntax)
    assert identifier.level == "STUDY"
    assert identifier.character_set == "ISO_IR 192"
    assert identifier.keys == {tag: v for tag, v in ANSWER.items() if tag != 0x00080052}


def test_an_ascii_answer_without_a_character_set_names_none():
    """(0008,0005) is left out where nothing needs it."""
    assert "SpecificCharacterSet" not in read(
        encode_answer({0x00100020: "A"}, SYNTAXES[1]), SYNTAXES[1]
    )


def test_numbers_that_are_none_are_answered_empty():
    """A text that is no number never breaks an answer."""
    answer = read(
        encode_answer({0x00280010: "many", 0x00280011: "70000"}, SYNTAXES[1]), SYNTAXES[1]
    )
    assert answer.Rows is None
    assert answer.Columns is None


def test_a_long_list_is_cut_between_values():
    """A list past 64 KiB in a VR with a 16-bit length keeps whole values."""
    uids = [f"1.2.840.{n}" for n in range(10_000)]
    raw = encode_answer({0x00080062: "\\".join(uids)}, SYNTAXES[1])
    found = [str(uid) for uid in read(raw, SYNTAXES[1]).SOPClassesInStudy]
    assert found == uids[: len(found)]
    assert len(found) > 4000


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_keys_are_told_from_what_is_not_supported(syntax: str):
    """Unknown and private keys are listed; group lengths and private creators are nobody's keys."""
    query = Dataset()
    query.SpecificCharacterSet = ["ISO 2022 IR 6", "ISO 2022 IR 87"]
    query.QueryRetrieveLevel = "STUDY"
    query.PatientName = "山田*"
    query.StudyDate = "20240101-"
    query.PatientID = ""
    query.ScanningSequence = ""
    query.RequestedProcedureID = ""
    item = Dataset()
    item.RequestedProcedureID = "R1"
    item.ScheduledProcedureStepID = ""
    query.RequestAttributesSequence = Sequence([item])
    query.add_new(0x00090010, "LO", "ACME")
    query.add_new(0x00091001, "LO", "x")
    identifier = parse_identifier(encode_by_pydicom(query, syntax), syntax)
    assert identifier.level == "STUDY"
    assert identifier.character_set == "ISO 2022 IR 6\\ISO 2022 IR 87"
    assert identifier.keys == {
        0x00080020: "20240101-",
        0x00100010: "山田*",
        0x00100020: "",
        0x00400275: [{0x00401001: "R1", 0x00400009: ""}],
    }
    assert identifier.requested == [0x00080020, 0x00100010, 0x00100020, 0x00400275]
    assert sorted(identifier.unsupported) == [0x00091001, 0x00180020, 0x00401001]


def test_a_peers_character_set_holds_where_none_is_declared():
    """The default is the caller's knowledge of the peer."""
    raw = encode_answer({0x00100010: "Yamada"}, SYNTAXES[0]).replace(
        b"Yamada", "山田 ".encode("cp932") + b" "
    )
    assert parse_identifier(raw, SYNTAXES[0], "ISO_IR 13").keys == {0x00100010: "山田"}


def test_ten_thousand_uids_are_a_valid_key():
    """Keys are not cut."""
    uids = "\\".join(f"1.2.840.{n}" for n in range(10_000))
    query = Dataset()
    query.StudyInstanceUID = uids.split("\\")
    assert parse_identifier(encode_by_pydicom(query, SYNTAXES[0]), SYNTAXES[0]).keys == {
        0x0020000D: uids
    }


def test_an_identifier_in_the_wrong_vr_encoding_is_still_read():
    """pydicom sees that an explicit identifier came where an implicit one was agreed."""
    raw = encode_answer({0x00100020: "A1", 0x00080052: "STUDY"}, SYNTAXES[0])
    identifier = parse_identifier(raw, SYNTAXES[1])
    assert identifier.keys == {0x00100020: "A1"}


@pytest.mark.parametrize("raw", [b"\x10", b"\xff" * 40, b"\0" * (2 * 1024 * 1024)])
def test_an_identifier_that_does_not_parse_is_refused(raw: bytes):
    """Refused, not guessed."""
    with pytest.raises(DatasetNotUnderstood):
        parse_identifier(raw, SYNTAXES[1])
