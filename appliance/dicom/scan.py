"""The header scan: identity and index attributes from a dataset's bytes, in front of pixel data.

The public face of the scanners. It must not decode pixels, copy bulk, or change a byte. Invariants:
time is linear in the bytes looked at; sequences past 32 levels are refused; whatever the quick
scanners call odd goes to pydicom, and what pydicom cannot read raises DatasetNotUnderstood.

The quick scanners trust the ascending order of tags (PS3.5 7.1) only to stop early: they stop
behind the last tag they need.
"""

import msgspec

from appliance.dicom import explicit, fallback, implicit
from appliance.dicom.bulk import is_bulk
from appliance.dicom.elements import (
    BIG,
    LITTLE,
    QUIRKS,
    UNDEFINED,
    Bytes,
    Odd,
    Value,
    element_at,
)
from appliance.dicom.layouts import Layout
from appliance.dicom.skipping import skip_undefined
from appliance.dicom.uid import is_big_endian, is_deflated, is_implicit
from appliance.foundation.errors import DatasetNotUnderstood

WINDOW_BYTES = 16 * 1024
"""A header is first sought in a copy of this many bytes: slices of bytes are the quickest."""

_LITTLE = Layout(LITTLE)
_BIG = Layout(BIG)


class Identity(msgspec.Struct, frozen=True):
    """Where an instance belongs. A UID that is missing is ""; PatientID is raw, without padding."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    patient_id: bytes


class ScannedHeader(msgspec.Struct, frozen=True):
    """The index attributes of one dataset.

    attributes: by tag; empty ones are left out. character_set: the value of (0008,0005), several
    joined by a backslash, "" where there is none.
    """

    attributes: dict[int, Value]
    character_set: str


class BulkRange(msgspec.Struct, frozen=True):
    """A top-level element to leave out of a header copy: dataset[start:end] holds it whole.

    value_offset and value_length: its value; value_length is 0xFFFFFFFF in the dataset where the
    length is undefined, here it is the true number of bytes. Tag 0 with VR "" is a rest of the
    dataset that does not parse.
    """

    tag: int
    vr: str
    start: int
    end: int
    value_offset: int
    value_length: int


def _refuse_deflated(transfer_syntax_uid: str) -> None:
    if is_deflated(transfer_syntax_uid):
        raise DatasetNotUnderstood(
            "scan a dataset", cause="deflated transfer syntaxes are not taken"
        )


def scan_identity(dataset: Bytes, transfer_syntax_uid: str) -> Identity:
    """Return the UIDs and PatientID of a dataset, reading no further than (0020,000E).

    Raises DatasetNotUnderstood.
    """
    _refuse_deflated(transfer_syntax_uid)
    scanner = implicit if is_implicit(transfer_syntax_uid) else explicit
    layout = _BIG if is_big_endian(transfer_syntax_uid) else _LITTLE
    size = len(dataset)
    try:
        found = scanner.identity(layout, bytes(dataset[:WINDOW_BYTES]))
        if size > WINDOW_BYTES and not (found[0] and found[1] and found[2] and found[3]):
            found = scanner.identity(layout, dataset)
    except QUIRKS:
        try:
            if size <= WINDOW_BYTES:
                raise Odd
            found = scanner.identity(layout, dataset)
        except QUIRKS:
            found = fallback.identity(dataset, transfer_syntax_uid)
    study, series, instance, sop_class, patient = found
    return Identity(
        str(study, "latin-1").strip("\0 "),
        str(series, "latin-1").strip("\0 "),
        str(instance, "latin-1").strip("\0 "),
        str(sop_class, "latin-1").strip("\0 "),
        patient.strip(b"\0 "),
    )


def scan_attributes(
    dataset: Bytes, transfer_syntax_uid: str, default_character_set: str = ""
) -> ScannedHeader:
    """Return every index attribute in front of pixel data.

    default_character_set: in force where the dataset declares none. Raises DatasetNotUnderstood.
    """
    _refuse_deflated(transfer_syntax_uid)
    scanner = implicit if is_implicit(transfer_syntax_uid) else explicit
    layout = _BIG if is_big_endian(transfer_syntax_uid) else _LITTLE
    small = len(dataset) <= WINDOW_BYTES
    try:
        window = bytes(dataset[:WINDOW_BYTES])
        found = scanner.attributes(layout, window, default_character_set, complete=small)
    except QUIRKS:
        try:
            if small:
                raise Odd
            found = scanner.attributes(layout, dataset, default_character_set, complete=True)
        except QUIRKS:
            found = fallback.attributes(dataset, transfer_syntax_uid, default_character_set)
    return ScannedHeader(*found)


def bulk_ranges(dataset: Bytes, transfer_syntax_uid: str) -> list[BulkRange]:
    """Return what to leave out of a header copy: pixel data and values over 64 KiB, ascending.

    Sequences stay. Never raises: the rest that does not parse is one range of tag 0 where it is
    over 64 KiB.
    """
    scanner = implicit if is_implicit(transfer_syntax_uid) else explicit
    layout = _BIG if is_big_endian(transfer_syntax_uid) else _LITTLE
    return [BulkRange(*bulk) for bulk in scanner.bulk(layout, dataset)]


def bulk_begun(
    head: bytes, start: int, dataset_length: int, transfer_syntax_uid: str
) -> BulkRange | None:
    """Return the bulk element that begins with `head` at `start`, None when it is none.

    For a dataset that is not at hand as a whole: pixel data of undefined length is taken to reach
    to its end.
    """
    order = BIG if is_big_endian(transfer_syntax_uid) else LITTLE
    try:
        raw, _, vr, length, value = element_at(order, head, 0, is_implicit(transfer_syntax_uid))
    except QUIRKS:
        return None
    tag = order.tag(raw)
    end = dataset_length if length == UNDEFINED else start + value + length
    if end > dataset_length or not is_bulk(tag, vr == "SQ" or length == UNDEFINED, length):
        return None
    return BulkRange(tag, vr, start, end, start + value, end - start - value)


def find_element(dataset: bytes, transfer_syntax_uid: str, tag: int) -> tuple[str, int, int] | None:
    """Return VR, value offset and length of a top-level element; None when it is not there.

    A value of undefined length is none that can be given.
    """
    order = BIG if is_big_endian(transfer_syntax_uid) else LITTLE
    implicit_vr = is_implicit(transfer_syntax_uid)
    wanted, position = order.raw(tag), 0
    try:
        while position < len(dataset):
            raw, number, vr, length, start = element_at(order, dataset, position, implicit_vr)
            if length == UNDEFINED:
                position = skip_undefined(order, dataset, start, number, implicit_vr)
            elif raw == wanted:
                return vr, start, length
            else:
                position = start + length
    except (*QUIRKS, DatasetNotUnderstood):
        pass
    return None
