"""A scan agrees with pydicom on every real dataset at hand."""

import pydicom
import pytest

from appliance.dicom.scan import bulk_ranges, scan_attributes, scan_identity
from appliance.dicom.uid import is_deflated
from appliance.foundation.errors import DatasetNotUnderstood
from tests.support.dicom_oracle import (
    Raw,
    expected_attributes,
    read_by_pydicom,
    real_datasets,
    without_empty_groups,
)

REAL = real_datasets()
INFLATED = [raw for raw in REAL if not is_deflated(raw.transfer_syntax_uid)]


def test_there_are_enough_real_datasets():
    """Guards the module against testing nothing."""
    assert len(REAL) > 80


@pytest.mark.parametrize("raw", INFLATED, ids=lambda raw: raw.name)
def test_scan_attributes_equals_pydicom(raw: Raw):
    """Every index attribute has the text that pydicom reads, in whatever buffer the bytes lie."""
    expected = expected_attributes(read_by_pydicom(raw, pixels=False))
    for data in (raw.data, bytearray(raw.data), memoryview(raw.data)):
        found = scan_attributes(data, raw.transfer_syntax_uid).attributes
        assert without_empty_groups(found) == expected


@pytest.mark.parametrize("raw", INFLATED, ids=lambda raw: raw.name)
def test_scan_identity_equals_pydicom(raw: Raw):
    """The five identity values are pydicom's; a UID that is missing is empty."""
    dataset = read_by_pydicom(raw, pixels=False)
    identity = scan_identity(memoryview(raw.data), raw.transfer_syntax_uid)
    assert (
        identity.study_instance_uid,
        identity.series_instance_uid,
        identity.sop_instance_uid,
        identity.sop_class_uid,
    ) == tuple(
        str(dataset.get(keyword, ""))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    )


@pytest.mark.parametrize("raw", INFLATED, ids=lambda raw: raw.name)
def test_a_dataset_without_its_bulk_still_parses(raw: Raw):
    """Bulk ranges are whole elements: what is left reads as before, pixel data gone."""
    ranges = bulk_ranges(memoryview(raw.data), raw.transfer_syntax_uid)
    kept, position = [], 0
    for bulk in ranges:
        assert position <= bulk.start < bulk.value_offset <= bulk.end <= len(raw.data)
        kept.append(raw.data[position : bulk.start])
        position = bulk.end
    kept.append(raw.data[position:])
    left = read_by_pydicom(raw._replace(data=b"".join(kept)))
    whole = read_by_pydicom(raw)
    assert set(whole.keys()) - set(left.keys()) == {pydicom.tag.Tag(bulk.tag) for bulk in ranges}
    for tag in sorted(left.keys()):
        if left.get_item(tag).VR != "SQ":
            assert left.get_item(tag).value == whole.get_item(tag).value


def test_a_deflated_dataset_is_refused():
    """Deflated syntaxes are never inflated."""
    raw = next(raw for raw in REAL if is_deflated(raw.transfer_syntax_uid))
    for scan in (scan_identity, scan_attributes):
        with pytest.raises(DatasetNotUnderstood):
            scan(raw.data, raw.transfer_syntax_uid)
