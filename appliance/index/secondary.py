"""The keys under which a study is found besides its UID.

Each table admits every study that a matcher's hint can mean; the query decides on the record.
Invariant: the keys of a study are a function of its patient key and attributes alone.
"""

from typing import Any, Final

from appliance.dicom.folding import fold_literal, name_groups
from appliance.dicom.temporal import date_span, time_span
from appliance.index.contexts import PATIENT_ID
from appliance.index.keys import text_key
from appliance.index.schema import Table

PATIENT_NAME: Final = 0x00100010
STUDY_DATE: Final = 0x00080020
STUDY_TIME: Final = 0x00080030
ACCESSION_NUMBER: Final = 0x00080050
VALUES_MAX: Final = 16
"""Values of one attribute that are indexed; a name has one, in three groups."""

ACCESSION: Final = b"A"
FOLDED_PATIENT_ID: Final = b"P"


def values_of(attributes: dict[int, Any], tag: int) -> list[str]:
    """Return the values of a text attribute without outer spaces, no empty ones."""
    text = attributes.get(tag)
    if not isinstance(text, str) or not text:
        return []
    if "\\" not in text:
        text = text.strip(" \0")
        return [text] if text else []
    return [value for part in text.split("\\") if (value := part.strip(" \0"))][:VALUES_MAX]


def secondary_keys(
    study: bytes, patient: bytes, attributes: dict[int, Any]
) -> set[tuple[Table, bytes]]:
    """Return table and key of every entry of a study that is served."""
    keys = {(Table.PATIENT, patient + study)}
    for name in values_of(attributes, PATIENT_NAME):
        for group in name_groups(name)[:3]:
            if group:
                keys.add((Table.NAME, text_key(group) + study))
    times = values_of(attributes, STUDY_TIME)
    span = time_span(times[0]) if times else None
    time = span.low[:6].encode() if span else b""
    for date in values_of(attributes, STUDY_DATE):
        if (day := date_span(date)) is not None:
            keys.add((Table.DATE, day.low.encode() + time + b"\x00" + study))
    for accession in values_of(attributes, ACCESSION_NUMBER):
        keys.add((Table.IDENTIFIER, ACCESSION + text_key(fold_literal(accession)) + study))
    ids = values_of(attributes, PATIENT_ID)
    for value in ids:
        if len(ids) > 1 or fold_literal(value) != value:
            folded = text_key(fold_literal(value))
            keys.add((Table.IDENTIFIER, FOLDED_PATIENT_ID + folded + study))
    return keys
