"""Answers of each level from rows: stored attributes, and those that are computed.

It matches nothing. Text is as stored, counts are text too, values joined by a backslash.
Availability (PS3.4 C.4.1.1.3): ONLINE when every served copy's pack is on this disk, else NEARLINE.
"""

from typing import Any, Final

from appliance.dicom.attributes import BY_TAG, Level
from appliance.index.contexts import patient_key
from appliance.index.keys import unpack_uid
from appliance.index.reading import Reader
from appliance.index.schema import Copy, SeriesRow, StudyRow
from appliance.index.sources import SERIES_UID, SOP_UID, STUDY_UID

CHARACTER_SET: Final = 0x00080005
SOP_CLASS_UID: Final = 0x00080016
AVAILABILITY: Final = 0x00080056
MODALITIES_IN_STUDY: Final = 0x00080061
SOP_CLASSES_IN_STUDY: Final = 0x00080062
AVAILABLE_SYNTAX: Final = 0x00083002
PATIENT_STUDIES: Final = 0x00201200
PATIENT_SERIES: Final = 0x00201202
PATIENT_INSTANCES: Final = 0x00201204
STUDY_SERIES: Final = 0x00201206
STUDY_INSTANCES: Final = 0x00201208
SERIES_INSTANCES: Final = 0x00201209

ONLINE: Final = "ONLINE"
NEARLINE: Final = "NEARLINE"
PATIENT_LEVEL: Final = frozenset(
    tag for tag, attribute in BY_TAG.items() if attribute.level is Level.PATIENT
)
_PATIENT_COUNTS: Final = frozenset({PATIENT_STUDIES, PATIENT_SERIES, PATIENT_INSTANCES})
_STUDY_COMPUTED: Final = frozenset(
    {STUDY_UID, MODALITIES_IN_STUDY, SOP_CLASSES_IN_STUDY, STUDY_SERIES, STUDY_INSTANCES}
)


class Answering:
    """Builds answers; `wanted`, the tags that will be looked at, saves what costs extra reads."""

    def __init__(self, wanted: frozenset[int] | None) -> None:
        self._availability = wanted is None or AVAILABILITY in wanted
        self._patient_counts = wanted is None or bool(_PATIENT_COUNTS & wanted)

    # values to match

    def study_value(self, reader: Reader, study: bytes, row: StudyRow, tag: int) -> Any:
        """Return one attribute of level PATIENT or STUDY."""
        if tag in _STUDY_COMPUTED:
            return _study_computed(study, row)[tag]
        if tag in _PATIENT_COUNTS:
            return self._counts_of_patient(reader, study, row).get(tag)
        return row.attributes.get(tag)

    def series_value(self, reader: Reader, key: bytes, at: int, row: SeriesRow, tag: int) -> Any:
        """Return one attribute of level SERIES; `at`: where the Series UID begins in the key."""
        if tag == SERIES_UID:
            return unpack_uid(key, at)[0]
        if tag == SERIES_INSTANCES:
            return str(row.instance_count)
        context = reader.shared(key[:at], row.newest.context).context
        return context.series_attributes.get(tag)

    def is_newest_of_patient(self, reader: Reader, study: bytes, row: StudyRow) -> bool:
        """Return whether the patient's attributes come from this study."""
        patient = reader.patient(patient_key(study, row.attributes))
        return patient is not None and patient.newest_study == study

    # answers

    def patient(self, reader: Reader, study: bytes, row: StudyRow) -> dict[int, Any]:
        """Return the attributes of level PATIENT, those of the patient's newest study."""
        answer = {tag: value for tag, value in row.attributes.items() if tag in PATIENT_LEVEL}
        answer[CHARACTER_SET] = row.character_set
        if self._patient_counts:
            answer.update(self._counts_of_patient(reader, study, row))
        return answer

    def study(self, reader: Reader, study: bytes, row: StudyRow) -> dict[int, Any]:
        """Return the attributes of levels PATIENT and STUDY."""
        answer = dict(row.attributes)
        answer.update(_study_computed(study, row))
        answer[CHARACTER_SET] = row.character_set
        if self._patient_counts:
            answer.update(self._counts_of_patient(reader, study, row))
        if self._availability:
            answer[AVAILABILITY] = _availability(reader, row.packs)
        return answer

    def series(self, reader: Reader, key: bytes, at: int, row: SeriesRow) -> dict[int, Any]:
        """Return the attributes of level SERIES; `at`: where the Series UID begins in the key."""
        context = reader.shared(key[:at], row.newest.context).context
        answer = dict(context.series_attributes)
        answer[SERIES_UID] = unpack_uid(key, at)[0]
        answer[SERIES_INSTANCES] = str(row.instance_count)
        answer[CHARACTER_SET] = context.character_set
        if self._availability:
            answer[AVAILABILITY] = _availability(reader, row.packs)
        return answer

    def instance(self, reader: Reader, key: bytes, at: int, copies: list[Copy]) -> dict[int, Any]:
        """Return the attributes of level IMAGE; `at`: where the SOP Instance UID begins."""
        copy = copies[-1]
        study = key[: unpack_uid(key)[1]]
        context = reader.shared(study, copy.context).context
        answer = dict(zip(context.tags, copy.values, strict=True))
        answer[SOP_UID] = unpack_uid(key, at)[0]
        answer[SOP_CLASS_UID] = context.sop_class_uid
        answer[CHARACTER_SET] = context.character_set
        answer[AVAILABLE_SYNTAX] = context.transfer_syntax_uid
        if self._availability:
            version = reader.versions(study, copies)[-1]
            here = any(reader.is_local(each.pack) for each in version)
            answer[AVAILABILITY] = ONLINE if here else NEARLINE
        return answer

    def _counts_of_patient(self, reader: Reader, study: bytes, row: StudyRow) -> dict[int, str]:
        patient = reader.patient(patient_key(study, row.attributes))
        if patient is None:
            return {}
        return {
            PATIENT_STUDIES: str(patient.study_count),
            PATIENT_SERIES: str(patient.series_count),
            PATIENT_INSTANCES: str(patient.instance_count),
        }


def _study_computed(study: bytes, row: StudyRow) -> dict[int, str]:
    return {
        STUDY_UID: unpack_uid(study)[0],
        MODALITIES_IN_STUDY: "\\".join(modality for modality in row.modalities if modality),
        SOP_CLASSES_IN_STUDY: "\\".join(row.sop_classes),
        STUDY_SERIES: str(row.series_count),
        STUDY_INSTANCES: str(row.instance_count),
    }


def _availability(reader: Reader, packs: dict[bytes, int]) -> str:
    return ONLINE if all(map(reader.is_local, packs)) else NEARLINE
