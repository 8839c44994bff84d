"""The scan's rules that made and real datasets rarely meet: UN sequences, limits, disorder."""

import struct

import pytest
from pydicom.data import get_testdata_file

from appliance.dicom.gathering import SEQUENCE_BYTES_MAX
from appliance.dicom.scan import BulkRange, bulk_ranges, scan_attributes, scan_identity
from appliance.dicom.uid import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
from appliance.dicom.values import VALUE_LENGTH_MAX
from appliance.foundation.errors import DatasetNotUnderstood
from tests.support.dicom_oracle import raw_of

UNDEFINED = 0xFFFFFFFF
LONG = (b"SQ", b"UN", b"OB", b"OW", b"UT")
EXPLICIT = {"<": EXPLICIT_VR_LITTLE_ENDIAN, ">": EXPLICIT_VR_BIG_ENDIAN}


def element(mark: str, tag: int, vr: bytes, value: bytes, *, undefined: bool = False) -> bytes:
    """Return an explicit VR element."""
    head = struct.pack(mark + "HH2s", tag >> 16, tag & 0xFFFF, vr)
    length = UNDEFINED if undefined else len(value)
    if vr in LONG:
        return head + struct.pack(mark + "HI", 0, length) + value
    return head + struct.pack(mark + "H", length) + value


def implicit(mark: str, tag: int, value: bytes, length: int | None = None) -> bytes:
    """Return an implicit VR element, an item or a delimiter."""
    length = len(value) if length is None else length
    return struct.pack(mark + "HHI", tag >> 16, tag & 0xFFFF, length) + value


def uids(mark: str) -> bytes:
    """Return the four UIDs and their neighbourhood, split around (0008,1110)."""
    return element(mark, 0x0020000D, b"UI", b"1.2\0") + element(mark, 0x0020000E, b"UI", b"1.4\0")


@pytest.mark.parametrize("mark", EXPLICIT)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_sequence_under_un_is_read_as_implicit_little_endian(mark: str, undefined: bool):
    """PS3.5 6.2.2: whatever the dataset's syntax, the items of a UN are implicit little endian."""
    inner = implicit("<", 0x00081150, b"1.5\0") + implicit("<", 0x00081155, b"1.6\0")
    end = implicit("<", 0xFFFEE00D, b"")
    value = implicit("<", 0xFFFEE000, inner + end, UNDEFINED)
    if undefined:
        value += implicit("<", 0xFFFEE0DD, b"")
    data = (
        element(mark, 0x00080016, b"UI", b"1.7\0")
        + element(mark, 0x00080018, b"UI", b"1.8\0")
        + element(mark, 0x00081110, b"UN", value, undefined=undefined)
        + uids(mark)
    )
    assert scan_identity(data, EXPLICIT[mark]).series_instance_uid == "1.4"
    assert scan_attributes(data, EXPLICIT[mark]).attributes[0x00081110] == [
        {0x00081150: "1.5", 0x00081155: "1.6"}
    ]


def test_an_items_own_character_set_holds_in_it_and_inside_it():
    """PS3.5 7.5.3: the next item is in the dataset's set again."""
    meaning = 0x00080104
    inner = element("<", 0x0040A043, b"SQ", implicit("<", 0xFFFEE000, b""))
    items = implicit(
        "<",
        0xFFFEE000,
        element("<", 0x00080005, b"CS", b"ISO_IR 144")
        + element("<", meaning, b"LO", "Жук ".encode("iso8859_5"))
        + inner,
    ) + implicit("<", 0xFFFEE000, element("<", meaning, b"LO", "Äöü ".encode("latin-1")))
    data = element("<", 0x00080005, b"CS", b"ISO_IR 100") + element("<", 0x00081032, b"SQ", items)
    found = scan_attributes(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert found.character_set == "ISO_IR 100"
    assert [item[meaning] for item in found.attributes[0x00081032]] == ["Жук", "Äöü"]


def test_the_callers_character_set_holds_where_none_is_declared():
    """A peer's configured set; the raw value stays empty."""
    data = element("<", 0x00100010, b"PN", "山田".encode("shift_jis"))
    found = scan_attributes(data, EXPLICIT_VR_LITTLE_ENDIAN, "ISO_IR 13")
    assert found.attributes == {0x00100010: "山田"}
    assert found.character_set == ""


def test_a_sequence_over_its_limit_is_left_out_whole():
    """Never half a sequence."""
    item = implicit("<", 0xFFFEE000, element("<", 0x00080100, b"SH", b"C1"))
    for count, kept in (
        (SEQUENCE_BYTES_MAX // len(item), True),
        (SEQUENCE_BYTES_MAX // len(item) + 1, False),
    ):
        patient_id = element("<", 0x00100020, b"LO", b"P1")
        data = element("<", 0x00081032, b"SQ", item * count) + patient_id
        found = scan_attributes(data, EXPLICIT_VR_LITTLE_ENDIAN).attributes
        assert (0x00081032 in found) is kept
        assert found[0x00100020] == "P1"


def test_a_long_text_is_cut_to_its_limit():
    """The index holds the beginning."""
    data = element("<", 0x00104000, b"LT", b"x" * 5000)
    found = scan_attributes(data, EXPLICIT_VR_LITTLE_ENDIAN).attributes
    assert found == {0x00104000: "x" * VALUE_LENGTH_MAX}


def test_missing_uids_are_empty_and_an_empty_patient_id_too():
    """The caller decides what a missing UID means."""
    identity = scan_identity(element("<", 0x00100020, b"LO", b""), EXPLICIT_VR_LITTLE_ENDIAN)
    assert identity.series_instance_uid == identity.sop_class_uid == ""
    assert identity.patient_id == b""


def test_uids_out_of_order_are_found():
    """A Series UID in front of the Study UID does not end the scan."""
    data = b"".join(
        element("<", tag, b"UI", b"1.%d\0" % place)
        for place, tag in enumerate((0x0020000E, 0x0020000D, 0x00080018, 0x00080016), 1)
    )
    identity = scan_identity(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert identity.series_instance_uid == "1.1"
    assert identity.study_instance_uid == "1.2"
    assert identity.sop_class_uid == "1.4"


def test_the_rest_that_does_not_parse_is_one_bulk_range():
    """Sealing never fails on what was stored; a short rest is kept."""
    head = element("<", 0x00080016, b"UI", b"1.7\0")
    for size, expected in (
        (100_000, [BulkRange(0, "", len(head), len(head) + 100_000, len(head), 100_000)]),
        (1000, []),
    ):
        assert bulk_ranges(head + b"\xff" * size, EXPLICIT_VR_LITTLE_ENDIAN) == expected


def test_bulk_leaves_sequences_and_short_values():
    """Pixel data at any length, other values over 64 KiB, sequences never."""
    item = implicit("<", 0xFFFEE000, element("<", 0x00091001, b"OB", bytes(100_000)))
    parts = [
        element("<", 0x00091001, b"OB", bytes(65_536)),
        element("<", 0x00091002, b"OB", bytes(65_538)),
        element("<", 0x00091003, b"UT", b"x" * 70_000),
        element("<", 0x00091004, b"SQ", item),
        element("<", 0x7FE00010, b"OW", bytes(2)),
        element("<", 0xFFFCFFFC, b"OB", bytes(100_000)),
    ]
    ranges = bulk_ranges(b"".join(parts), EXPLICIT_VR_LITTLE_ENDIAN)
    assert [bulk.tag for bulk in ranges] == [0x00091002, 0x00091003, 0x7FE00010, 0xFFFCFFFC]
    starts = [sum(map(len, parts[:place])) for place in (1, 2, 4, 5)]
    assert [bulk.start for bulk in ranges] == starts


def test_encapsulated_pixel_data_is_one_range_to_its_delimiter():
    """Fragments and the sequence delimiter belong to the element."""
    raw = raw_of(str(get_testdata_file("MR_small_RLE.dcm")))
    assert raw is not None
    (bulk,) = bulk_ranges(raw.data, raw.transfer_syntax_uid)
    assert (bulk.tag, bulk.vr) == (0x7FE00010, "OB")
    assert raw.data[bulk.end - 8 : bulk.end] == implicit("<", 0xFFFEE0DD, b"")


def test_a_header_without_any_element_that_parses_is_refused():
    """No empty answer for what is no dataset."""
    for scan in (scan_identity, scan_attributes):
        with pytest.raises(DatasetNotUnderstood):
            scan(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", EXPLICIT_VR_LITTLE_ENDIAN)


@pytest.mark.parametrize("mark", EXPLICIT)
def test_a_sequence_under_un_inside_an_item_is_read_as_implicit_little_endian(mark: str):
    """The same holds at any depth."""
    code = implicit("<", 0xFFFEE000, implicit("<", 0x00080100, b"C1"))
    item = implicit(mark, 0xFFFEE000, element(mark, 0x00400008, b"UN", code))
    data = element(mark, 0x00400275, b"SQ", item)
    assert scan_attributes(data, EXPLICIT[mark]).attributes == {
        0x00400275: [{0x00400008: [{0x00080100: "C1"}]}]
    }
