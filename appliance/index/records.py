"""What the index answers: instances with versions and copies, series, studies, packs, totals.

Plain values, detached from any transaction. Wall times are microseconds since 1970 UTC.
"""

from enum import StrEnum
from typing import Any

import msgspec

from appliance.index.facts import CloudFacts


class State(StrEnum):
    """Where the bytes are (the design's words)."""

    PENDING = "pending"
    CACHED = "cached"
    EVICTED = "evicted"
    ERASED = "erased"
    LOST = "lost"


class StoredCopy(msgspec.Struct, frozen=True):
    """One copy of a version: where it lies and how it came."""

    pack_id: str
    offset: int
    received_at_us: int
    node: str
    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str


class Version(msgspec.Struct, frozen=True):
    """The same bytes, once or more. copies: by order, the newest last.

    attributes: of all levels, as they came with the newest copy. length: of the dataset in bytes.
    """

    sha256: bytes
    sop_class_uid: str
    transfer_syntax_uid: str
    length: int
    character_set: str
    attributes: dict[int, Any]
    copies: tuple[StoredCopy, ...]


class StoredInstance(msgspec.Struct, frozen=True):
    """An instance of a study. versions: the newest, which is the served one, last."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    hidden: bool
    versions: tuple[Version, ...]

    @property
    def served(self) -> Version:
        """The version that is served, if the instance is not hidden."""
        return self.versions[-1]


class ServedInstance(msgspec.Struct, frozen=True):
    """Where the served version of an instance lies. copies: (pack id, offset), the newest last."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    character_set: str
    length: int
    sha256: bytes
    copies: tuple[tuple[str, int], ...]


class FoundVersion(msgspec.Struct, frozen=True):
    """A version as duplicate detection needs it. pack_ids: of its copies, the newest last."""

    sha256: bytes
    transfer_syntax_uid: str
    length: int
    pack_ids: tuple[str, ...]


class FoundInstance(msgspec.Struct, frozen=True):
    """An instance with a given SOP Instance UID. versions: the newest last."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    versions: tuple[FoundVersion, ...]


class SeriesRecord(msgspec.Struct, frozen=True):
    """A series of which something is served. attributes: of levels PATIENT, STUDY and SERIES."""

    study_instance_uid: str
    series_instance_uid: str
    instance_count: int
    modality: str
    character_set: str
    attributes: dict[int, Any]
    pack_ids: tuple[str, ...]


class PatientHistory(msgspec.Struct, frozen=True):
    """One patient under whom instances of a study came; served_count: how many of them still do."""

    patient_id: str
    issuer_of_patient_id: str
    served_count: int
    first_received_us: int
    last_received_us: int


class StudyRecord(msgspec.Struct, frozen=True):
    """A study. Nothing of it is served when instance_count is 0; then there are no attributes.

    received_at_us: of the newest served instance. patients: more than one means that the study
    came under several patients.
    """

    study_instance_uid: str
    series_count: int
    instance_count: int
    modalities: tuple[str, ...]
    sop_classes: tuple[str, ...]
    character_set: str
    attributes: dict[int, Any]
    pack_ids: tuple[str, ...]
    received_at_us: int
    patients: tuple[PatientHistory, ...]


class PackRow(msgspec.Struct, frozen=True):
    """A pack. study_instance_uid: "" before a member is known. size: of the plain tar in bytes.

    cloud: with the lock as it was last extended. erased_at_us: 0 for one that is not erased; of an
    erased one nothing is known but `cloud`, what the ledger said of it.
    """

    pack_id: str
    node: str
    study_instance_uids: tuple[str, ...]
    instance_count: int
    instance_bytes: int
    size: int
    indexed_length: int
    first_received_us: int
    last_received_us: int
    last_used_us: int
    last_verified_us: int
    local: bool
    cloud: CloudFacts | None
    erased_at_us: int = 0

    @property
    def study_instance_uid(self) -> str:
        """The study of the pack, "" before a member is known."""
        return self.study_instance_uids[0] if self.study_instance_uids else ""

    @property
    def state(self) -> State:
        """Pending until the ledger names it, lost if it is not here; then cached or evicted.

        At last erased.
        """
        if self.cloud is None:
            return State.PENDING if self.local else State.LOST
        if self.erased_at_us:
            return State.ERASED
        return State.CACHED if self.local else State.EVICTED


class Totals(msgspec.Struct, frozen=True):
    """Counts for status. studies, series, instances: served. pending: not yet in the ledger.

    oldest_pending_us: 0 when nothing is pending.
    """

    studies: int
    series: int
    instances: int
    packs: int
    pending_packs: int
    pending_instances: int
    pending_bytes: int
    cached_packs: int
    cached_bytes: int
    oldest_pending_us: int


class ConflictKind(StrEnum):
    """What needs a human eye."""

    STUDY_UNDER_SEVERAL_PATIENTS = "study under several patients"
    DIFFERENT_CONTENT = "instance with different content"


class Conflict(msgspec.Struct, frozen=True):
    """A study or an instance that came in ways that disagree.

    corrected: every served instance of the study has come again under the newest patient.
    patients: of a study, in order of arrival. versions: of an instance, the newest last.
    """

    kind: ConflictKind
    study_instance_uid: str
    sop_instance_uid: str
    corrected: bool
    patients: tuple[PatientHistory, ...] = ()
    versions: tuple[FoundVersion, ...] = ()


class VisibilityRecord(msgspec.Struct, frozen=True):
    """A ledger record that hid or restored an instance."""

    at_us: int
    node: str
    sequence: int
    position: int
    hidden: bool
    by: str


class Hold(msgspec.Struct, frozen=True):
    """What was last said of a study's legal hold."""

    study_instance_uid: str
    on: bool
    by: str
    reason: str
    at_us: int
