"""The attributes that the index keeps, that queries may match, and that answers carry.

One table, after the Query/Retrieve keys of PS3.4 C.6.1.1 (Patient Root) and C.6.2.1 (Study Root).
It must not know how anything is stored. Invariants: tags and keywords are unique; the VR is the
standard's; a computed attribute is never read from a dataset.

In Study Root the attributes of level PATIENT belong to the study (PS3.4 C.6.2.1.1).
"""

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """The values of Query/Retrieve Level (0008,0052), outermost first."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    INSTANCE = "IMAGE"


class KeyType(StrEnum):
    """What the standard asks of a key (PS3.4 C.2.2.1)."""

    UNIQUE = "U"
    REQUIRED = "R"
    OPTIONAL = "O"


class Attribute(msgspec.Struct, frozen=True):
    """One attribute of the index.

    tag: group << 16 | element. keyword, vr: as in PS3.6. level: where it lives. key: unique,
    required or optional. computed: answered from the index, never scanned.
    """

    tag: int
    keyword: str
    vr: str
    level: Level
    key: KeyType = KeyType.OPTIONAL
    computed: bool = False


_PATIENT = """
00100010 PatientName PN R
00100020 PatientID LO U
00100021 IssuerOfPatientID LO O
00100024 IssuerOfPatientIDQualifiersSequence SQ O
00081120 ReferencedPatientSequence SQ O
00100030 PatientBirthDate DA O
00100032 PatientBirthTime TM O
00100040 PatientSex CS O
00101000 OtherPatientIDs LO O
00101001 OtherPatientNames PN O
00101002 OtherPatientIDsSequence SQ O
00102160 EthnicGroup SH O
00102201 PatientSpeciesDescription LO O
00102292 PatientBreedDescription LO O
00102297 ResponsiblePerson PN O
00102299 ResponsibleOrganization LO O
00104000 PatientComments LT O
00201200 NumberOfPatientRelatedStudies IS C
00201202 NumberOfPatientRelatedSeries IS C
00201204 NumberOfPatientRelatedInstances IS C
"""

_STUDY = """
0020000D StudyInstanceUID UI U
00080020 StudyDate DA R
00080030 StudyTime TM R
00080050 AccessionNumber SH R
00200010 StudyID SH R
00080051 IssuerOfAccessionNumberSequence SQ O
00080061 ModalitiesInStudy CS C
00080062 SOPClassesInStudy UI C
00080063 AnatomicRegionsInStudyCodeSequence SQ C
00080090 ReferringPhysicianName PN O
00081030 StudyDescription LO O
00081032 ProcedureCodeSequence SQ O
00081048 PhysiciansOfRecord PN O
00081060 NameOfPhysiciansReadingStudy PN O
00081080 AdmittingDiagnosesDescription LO O
00081110 ReferencedStudySequence SQ O
00101010 PatientAge AS O
00101020 PatientSize DS O
00101030 PatientWeight DS O
001021A0 SmokingStatus CS O
00102180 Occupation SH O
001021B0 AdditionalPatientHistory LT O
001021C0 PregnancyStatus US O
00102000 MedicalAlerts LO O
00102110 Allergies LO O
00201070 OtherStudyNumbers IS O
0032000A StudyStatusID CS O
00321032 RequestingPhysician PN O
00321033 RequestingService LO O
00321060 RequestedProcedureDescription LO O
00321064 RequestedProcedureCodeSequence SQ O
00380010 AdmissionID LO O
4008010C InterpretationAuthor PN O
00201206 NumberOfStudyRelatedSeries IS C
00201208 NumberOfStudyRelatedInstances IS C
"""

_SERIES = """
0020000E SeriesInstanceUID UI U
00080060 Modality CS R
00200011 SeriesNumber IS R
00080021 SeriesDate DA O
00080031 SeriesTime TM O
00080070 Manufacturer LO O
00080080 InstitutionName LO O
00080081 InstitutionAddress ST O
00081010 StationName SH O
0008103E SeriesDescription LO O
0008103F SeriesDescriptionCodeSequence SQ O
00081040 InstitutionalDepartmentName LO O
00081050 PerformingPhysicianName PN O
00081070 OperatorsName PN O
00081090 ManufacturerModelName LO O
00081111 ReferencedPerformedProcedureStepSequence SQ O
00180015 BodyPartExamined CS O
00181000 DeviceSerialNumber LO O
00181020 SoftwareVersions LO O
00181030 ProtocolName LO O
00185100 PatientPosition CS O
00200052 FrameOfReferenceUID UI O
00200060 Laterality CS O
00400244 PerformedProcedureStepStartDate DA O
00400245 PerformedProcedureStepStartTime TM O
00400250 PerformedProcedureStepEndDate DA O
00400251 PerformedProcedureStepEndTime TM O
00400253 PerformedProcedureStepID SH O
00400254 PerformedProcedureStepDescription LO O
00400260 PerformedProtocolCodeSequence SQ O
00400275 RequestAttributesSequence SQ O
00201209 NumberOfSeriesRelatedInstances IS C
"""

_INSTANCE = """
00080018 SOPInstanceUID UI U
00200013 InstanceNumber IS R
00080016 SOPClassUID UI O
0008001A RelatedGeneralSOPClassUID UI O
00080005 SpecificCharacterSet CS O
00080008 ImageType CS O
00080012 InstanceCreationDate DA O
00080013 InstanceCreationTime TM O
00080022 AcquisitionDate DA O
00080023 ContentDate DA O
0008002A AcquisitionDateTime DT O
00080032 AcquisitionTime TM O
00080033 ContentTime TM O
00080201 TimezoneOffsetFromUTC SH O
00082111 DerivationDescription ST O
00081115 ReferencedSeriesSequence SQ O
00081140 ReferencedImageSequence SQ O
00081199 ReferencedSOPSequence SQ O
00200012 AcquisitionNumber IS O
00200062 ImageLaterality CS O
00204000 ImageComments LT O
00280002 SamplesPerPixel US O
00280004 PhotometricInterpretation CS O
00280008 NumberOfFrames IS O
00280010 Rows US O
00280011 Columns US O
00280100 BitsAllocated US O
00280101 BitsStored US O
00280301 BurnedInAnnotation CS O
00282110 LossyImageCompression CS O
00400512 ContainerIdentifier LO O
00400560 SpecimenDescriptionSequence SQ O
0040A032 ObservationDateTime DT O
0040A043 ConceptNameCodeSequence SQ O
0040A370 ReferencedRequestSequence SQ O
0040A375 CurrentRequestedProcedureEvidenceSequence SQ O
0040A491 CompletionFlag CS O
0040A493 VerificationFlag CS O
0040A504 ContentTemplateSequence SQ O
00420010 DocumentTitle ST O
00420012 MIMETypeOfEncapsulatedDocument LO O
00700080 ContentLabel CS O
00700081 ContentDescription LO O
00700082 PresentationCreationDate DA O
00700083 PresentationCreationTime TM O
00700084 ContentCreatorName PN O
00083002 AvailableTransferSyntaxUID UI C
00080054 RetrieveAETitle AE C
00080056 InstanceAvailability CS C
"""

_ITEM_ATTRIBUTES = """
00080050 SH  00080051 SQ  00080100 SH  00080102 SH  00080103 SH  00080104 LO  00080119 UC
00080120 UR  00081115 SQ  00081140 SQ  00081110 SQ  00081150 UI  00081155 UI  00081160 IS
00081199 SQ  0020000D UI  0020000E UI  00080054 AE  00100020 LO  00100021 LO  00100022 CS
00100024 SQ  00321060 LO  00321064 SQ  0040E001 ST  00400007 LO  00400008 SQ  00400009 SH
00400031 UT  00400032 UT  00400033 CS  00400035 CS  00400036 SQ  00400039 SQ  0040003A SQ
00401001 SH  00401002 LO  0040100A SQ  00402016 LO  00402017 LO  00400551 LO  00400554 UI
00400600 LO  0040A043 SQ  0040DB00 CS  00080105 CS  00080106 DT  00400562 SQ  00080023 DA
00080033 TM  00321034 SQ  00321033 LO  00321032 PN  00401008 LO  00380010 LO  00081032 SQ
"""


def _rows(text: str, level: Level) -> list[Attribute]:
    rows = []
    for line in text.split("\n"):
        if line:
            tag, keyword, vr, key = line.split()
            computed = key == "C"
            kind = KeyType.OPTIONAL if computed else KeyType(key)
            rows.append(Attribute(int(tag, 16), keyword, vr, level, kind, computed))
    return rows


ATTRIBUTES: tuple[Attribute, ...] = tuple(
    sorted(
        _rows(_PATIENT, Level.PATIENT)
        + _rows(_STUDY, Level.STUDY)
        + _rows(_SERIES, Level.SERIES)
        + _rows(_INSTANCE, Level.INSTANCE),
        key=lambda attribute: attribute.tag,
    )
)
"""Every attribute of the index, by ascending tag."""

BY_TAG: dict[int, Attribute] = {attribute.tag: attribute for attribute in ATTRIBUTES}
BY_KEYWORD: dict[str, Attribute] = {attribute.keyword: attribute for attribute in ATTRIBUTES}

_items = _ITEM_ATTRIBUTES.split()
ITEM_VRS: dict[int, str] = {
    int(tag, 16): vr for tag, vr in zip(_items[::2], _items[1::2], strict=True)
}
"""Tag → VR of what is kept inside items: codes, references, requests, issuers, specimens."""

UNIQUE_KEY: dict[Level, int] = {
    Level.PATIENT: 0x00100020,
    Level.STUDY: 0x0020000D,
    Level.SERIES: 0x0020000E,
    Level.INSTANCE: 0x00080018,
}
"""The unique key of each level (PS3.4 C.6)."""

COMPUTED: frozenset[int] = frozenset(a.tag for a in ATTRIBUTES if a.computed)
SCANNED: dict[int, str] = {a.tag: a.vr for a in ATTRIBUTES if not a.computed}
"""Tag → VR of what the header scan gathers."""


def levels_of(patient_root: bool) -> tuple[Level, ...]:
    """Return the levels of Patient Root or of Study Root, outermost first (PS3.4 C.6)."""
    levels = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)
    return levels if patient_root else levels[1:]


def level_of(tag: int, patient_root: bool) -> Level | None:
    """Return the level at which `tag` is a key of that root, None for a key not supported."""
    attribute = BY_TAG.get(tag)
    if attribute is None:
        return None
    if attribute.level is Level.PATIENT and not patient_root:
        return Level.STUDY
    return attribute.level
