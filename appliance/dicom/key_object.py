"""Rejection notes: key object documents that take instances out of use (IHE IOCM, PS3.3 A.35.4).

Must not decide what a rejection does. Invariant: a note whose references could not be kept whole
has none, and is never acted on in part.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from appliance.dicom.layouts import EVIDENCE_SEQUENCE, SOP_CLASS_UID
from appliance.dicom.uid import KEY_OBJECT_SELECTION

CONCEPT_NAME = 0x0040A043
CODE_VALUE = 0x00080100
CODING_SCHEME = 0x00080102
REFERENCED_SERIES = 0x00081115
REFERENCED_SOP = 0x00081199
REFERENCED_SOP_CLASS_UID = 0x00081150
REFERENCED_SOP_INSTANCE_UID = 0x00081155
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E


class RejectionCode(StrEnum):
    """The document titles of IOCM (CID 7011), scheme DCM."""

    QUALITY = "113001"
    PATIENT_SAFETY = "113037"
    WRONG_WORKLIST_ENTRY = "113038"
    RETENTION_EXPIRED = "113039"


class Reference(msgspec.Struct, frozen=True):
    """One instance that a key object document names."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


class RejectionNote(msgspec.Struct, frozen=True):
    """A rejection and the instances it names, in the order of the document."""

    code: RejectionCode
    referenced: tuple[Reference, ...]


def rejection_note(attributes: Mapping[int, object]) -> RejectionNote | None:
    """Return the note that a scanned header holds, None where it is no rejection."""
    if attributes.get(SOP_CLASS_UID) != KEY_OBJECT_SELECTION:
        return None
    for title in _items(attributes.get(CONCEPT_NAME)):
        code = title.get(CODE_VALUE)
        if title.get(CODING_SCHEME) == "DCM" and code in list(RejectionCode):
            return RejectionNote(RejectionCode(str(code)), references(attributes))
    return None


def references(attributes: Mapping[int, object]) -> tuple[Reference, ...]:
    """Return the instances in the evidence of a key object document."""
    return tuple(
        Reference(
            _text(study, STUDY_INSTANCE_UID),
            _text(series, SERIES_INSTANCE_UID),
            _text(sop, REFERENCED_SOP_CLASS_UID),
            _text(sop, REFERENCED_SOP_INSTANCE_UID),
        )
        for study in _items(attributes.get(EVIDENCE_SEQUENCE))
        for series in _items(study.get(REFERENCED_SERIES))
        for sop in _items(series.get(REFERENCED_SOP))
    )


def _items(value: object) -> list[dict[int, object]]:
    return value if isinstance(value, list) else []


def _text(item: Mapping[int, object], tag: int) -> str:
    value = item.get(tag)
    return value if isinstance(value, str) else ""
