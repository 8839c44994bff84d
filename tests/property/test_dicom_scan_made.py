"""A scan agrees with pydicom on made datasets, in every encoding and form of nesting."""

import mmap
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.layouts import EVIDENCE_SEQUENCE
from appliance.dicom.scan import bulk_ranges, scan_attributes, scan_identity
from appliance.dicom.uid import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    GE_PRIVATE_IMPLICIT,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from tests.support.dicom_oracle import (
    Raw,
    expected_attributes,
    read_by_pydicom,
    without_empty_groups,
)

SYNTAXES = (
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    GE_PRIVATE_IMPLICIT,
)
PLAIN = st.text(alphabet="Aa1 山ﾔüЖ.-", min_size=1, max_size=20).map(str.strip)
WORD = st.text(alphabet="ABC_09", max_size=16)
VALUES = {
    "PN": st.lists(PLAIN, min_size=1, max_size=3).map("^".join),
    "UI": st.lists(st.integers(0, 10**9), min_size=2, max_size=6).map(
        lambda parts: ".".join(map(str, parts))
    ),
    "DA": st.dates().map(lambda day: day.strftime("%Y%m%d").rjust(8, "0")),
    "TM": st.times().map(lambda at: at.strftime("%H%M%S.%f")),
    "DT": st.datetimes().map(lambda at: at.strftime("%Y%m%d%H%M%S").rjust(14, "0")),
    "IS": st.integers(-(2**31), 2**31 - 1).map(str),
    "DS": st.floats(-1e6, 1e6).map(lambda number: f"{number:.4f}"),
    "US": st.integers(0, 65535),
    "AS": st.integers(0, 999).map(lambda years: f"{years:03}Y"),
    "CS": WORD,
    "AE": WORD,
    "UR": WORD,
}


def value_of(draw, vr: str, depth: int):
    """Draw a value of a VR, for SQ with items of what the index keeps and of what it does not."""
    if vr != "SQ":
        return draw(VALUES.get(vr, PLAIN))
    items = []
    for _ in range(draw(st.integers(0, 2))):
        item = Dataset()
        item.is_undefined_length_sequence_item = draw(st.booleans())
        tags = draw(st.lists(st.sampled_from(sorted(ITEM_VRS)), max_size=3, unique=True))
        for tag in tags:
            if ITEM_VRS[tag] != "SQ" or depth < 3:
                add(draw, item, tag, ITEM_VRS[tag], depth + 1)
        if draw(st.booleans()):
            item.add_new(0x00091001, "OB", b"\0\1\2\3")
        items.append(item)
    return Sequence(items)


def add(draw, dataset: Dataset, tag: int, vr: str, depth: int = 0) -> None:
    """Add a drawn element."""
    dataset.add_new(tag, vr, value_of(draw, vr, depth))
    if vr == "SQ":
        dataset[tag].is_undefined_length = draw(st.booleans())


@st.composite
def datasets(draw) -> Dataset:
    """Make a dataset of index attributes, others around them, and pixel data."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    tags = draw(st.lists(st.sampled_from(sorted(SCANNED)), max_size=25, unique=True))
    for tag in tags:
        if tag not in (0x00080005, EVIDENCE_SEQUENCE):
            add(draw, dataset, tag, SCANNED[tag])
    for tag, vr in ((0x00080014, "UI"), (0x00081140, "SQ"), (0x00189346, "SQ")):
        if draw(st.booleans()):
            add(draw, dataset, tag, vr)
    if draw(st.booleans()):
        dataset.add_new(0x00091002, "UN", b"\xfe\xff\x00\xe0\0\0\0\0")
        dataset.add_new(0x00111001, "OB", bytes(draw(st.sampled_from([10, 20_000, 70_000]))))
    dataset.add_new(0x7FE00010, "OW", bytes(64))
    return dataset


def encode(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return a dataset's bytes."""
    stream = DicomBytesIO()
    stream.is_implicit_VR = transfer_syntax_uid in (IMPLICIT_VR_LITTLE_ENDIAN, GE_PRIVATE_IMPLICIT)
    stream.is_little_endian = transfer_syntax_uid != EXPLICIT_VR_BIG_ENDIAN
    write_dataset(stream, dataset)
    return stream.getvalue()


@settings(max_examples=150, deadline=None, database=None)
@given(datasets(), st.sampled_from(SYNTAXES))
def test_a_made_dataset_scans_as_pydicom_reads_it(dataset: Dataset, syntax: str):
    """Attributes, identity and bulk of any dataset are pydicom's."""
    raw = Raw("made", encode(dataset, syntax), syntax)
    view = memoryview(bytearray(raw.data))
    expected = expected_attributes(read_by_pydicom(raw))
    assert without_empty_groups(scan_attributes(view, syntax).attributes) == expected
    identity = scan_identity(view, syntax)
    assert identity.study_instance_uid == expected.get(0x0020000D, "")
    assert identity.series_instance_uid == expected.get(0x0020000E, "")
    assert identity.sop_instance_uid == expected.get(0x00080018, "")
    assert identity.sop_class_uid == expected.get(0x00080016, "")
    assert identity.patient_id.decode("utf-8") == expected.get(0x00100020, "")
    found = [(bulk.tag, bulk.value_length) for bulk in bulk_ranges(view, syntax)]
    large = dataset.get_item(0x00111001)
    wanted = [(0x00111001, 70_000)] if large is not None and len(large.value) == 70_000 else []
    assert found == [*wanted, (0x7FE00010, 64)]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_dataset_in_a_mapped_file_is_scanned(syntax: str):
    """The indexer scans packs through mmap; a header longer than the window included."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.3", "1.2.3.4"
    dataset.add_new(0x00091001, "OB", bytes(50_000))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", "1.2.5"
    dataset.PatientName = "A^B"
    with tempfile.TemporaryFile() as file:
        file.write(encode(dataset, syntax))
        file.flush()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            assert scan_identity(view, syntax).series_instance_uid == "1.2.5"
            assert scan_attributes(view, syntax).attributes[0x00100010] == "A^B"


@pytest.mark.parametrize("length", [16 * 1024 - 200 + n for n in range(0, 200, 3)])
def test_the_end_of_the_window_changes_nothing(length: int):
    """Wherever the window's end falls, in a header or in a value, the scan finds the same."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.3", "1.2.3.4"
    dataset.add_new(0x00091001, "OB", bytes(length))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", "1.2.5"
    dataset.PatientID = "P1"
    dataset.add_new(0x7FE00010, "OW", bytes(64))
    for syntax in SYNTAXES:
        data = encode(dataset, syntax)
        identity = scan_identity(data, syntax)
        assert (identity.study_instance_uid, identity.series_instance_uid) == ("1.2", "1.2.5")
        assert identity.patient_id == b"P1"
        assert set(scan_attributes(data, syntax).attributes) == {
            0x00080016, 0x00080018, 0x00100020, 0x0020000D, 0x0020000E,
        }  # fmt: skip
