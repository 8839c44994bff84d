"""The keys under which a study is found besides its UID.

Each table admits every study that a matcher's hint can mean; the query decides on the record.
Invariant: the keys of a study are a function of its UID and attributes alone.
"""

from collections.abc import Callable
from typing import Any, Final

from appliance.dicom.folding import fold_literal, name_groups
from appliance.dicom.temporal import date_span, time_span
from appliance.index.contexts import PATIENT_ID, patient_key
from appliance.index.keys import text_key
from appliance.index.schema import Table

PATIENT_NAME: Final = 0x00100010
STUDY_DATE: Final = 0x00080020
STUDY_TIME: Final = 0x00080030
ACCESSION_NUMBER: Final = 0x00080050
VALUES_MAX: Final = 16
"""Values of one attribute that are indexed; a name has one, in three groups."""

GROUPS_MAX: Final = 3

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


def name_keys(study: bytes, attributes: dict[int, Any]) -> set[bytes]:
    """Return the keys of a study in NAME: its patient's names, each group of them."""
    return {
        text_key(group) + study
        for name in values_of(attributes, PATIENT_NAME)
        for group in name_groups(name)[:GROUPS_MAX]
        if group
    }


def date_keys(study: bytes, attributes: dict[int, Any]) -> set[bytes]:
    """Return the keys of a study in DATE: day, and time of day where it is known."""
    times = values_of(attributes, STUDY_TIME)
    span = time_span(times[0]) if times else None
    time = span.low[:6].encode() if span else b""
    return {
        day.low.encode() + time + b"\x00" + study
        for date in values_of(attributes, STUDY_DATE)
        if (day := date_span(date)) is not None
    }


def identifier_keys(study: bytes, attributes: dict[int, Any]) -> set[bytes]:
    """Return the keys of a study in IDENTIFIER.

    Accession numbers are folded. Of patient identifiers there are only those that folding changes
    or that are one of several; the others are found by the patient key.
    """
    keys = {
        ACCESSION + text_key(fold_literal(accession)) + study
        for accession in values_of(attributes, ACCESSION_NUMBER)
    }
    ids = values_of(attributes, PATIENT_ID)
    for value in ids:
        folded = fold_literal(value)
        if len(ids) > 1 or folded != value:
            keys.add(FOLDED_PATIENT_ID + text_key(folded) + study)
    return keys


def patient_keys(study: bytes, attributes: dict[int, Any]) -> set[bytes]:
    """Return the key of a study in PATIENT: patient key, then study."""
    return {patient_key(study, attributes) + study}


KEYS_OF: Final[dict[Table, Callable[[bytes, dict[int, Any]], set[bytes]]]] = {
    Table.PATIENT: patient_keys,
    Table.NAME: name_keys,
    Table.DATE: date_keys,
    Table.IDENTIFIER: identifier_keys,
}


def secondary_keys(study: bytes, attributes: dict[int, Any]) -> set[tuple[Table, bytes]]:
    """Return table and key of every entry of a study that is served."""
    return {(table, key) for table, keys in KEYS_OF.items() for key in keys(study, attributes)}
