"""Until when studies have to be kept, and which need not be kept any longer.

Reads the index only; erases nothing. A study's term is the latest of its packs' locks. Invariants:
- A study of which anything is pending, or that is under legal hold, has not expired.
- A pack that was stored while locks were off is kept from its last receipt on for the configured
  retention: the term is the record's, the lock only its guard.
"""

from collections.abc import Callable, Iterator

import msgspec

from appliance.archive.retain import due
from appliance.dicom.attributes import BY_KEYWORD
from appliance.foundation.clock import from_microseconds, isoformat, to_microseconds
from appliance.foundation.errors import CloudError, CloudUnavailable
from appliance.index.index import Index
from appliance.index.keeping import hold_of, packs_of, studies_from
from appliance.index.records import Hold, PackRow, StudyRecord
from appliance.index.view import View
from appliance.remote.store import ObjectStore

STUDIES_PER_BLOCK = 500
_PATIENT_ID = BY_KEYWORD["PatientID"].tag
_STUDY_DATE = BY_KEYWORD["StudyDate"].tag
_ACCESSION = BY_KEYWORD["AccessionNumber"].tag


class Term(msgspec.Struct, frozen=True):
    """A study and how long it is kept.

    instances: as stored, each version counted. bytes: in the bucket. first_us: when the first
    pack's term ends; until_us: the last one's. behind: packs whose locks still have to be moved to
    the study's latest.
    """

    study_instance_uid: str
    patient_id: str
    study_date: str
    accession_number: str
    modalities: tuple[str, ...]
    packs: tuple[PackRow, ...]
    instances: int
    bytes: int
    first_us: int
    until_us: int
    hold: Hold | None
    pending: bool
    behind: int

    @property
    def held(self) -> bool:
        """Whether it is under legal hold."""
        return self.hold is not None and self.hold.on

    def expired(self, at_us: int) -> bool:
        """Return whether the study need not be kept any longer at that time."""
        return self.until_us <= at_us and not self.held and not self.pending

    def document(self) -> dict[str, object]:
        """Return the term as a report shows it."""
        return {
            "study_instance_uid": self.study_instance_uid,
            "patient_id": self.patient_id,
            "study_date": self.study_date,
            "accession_number": self.accession_number,
            "modalities": ",".join(self.modalities),
            "instances": self.instances,
            "packs": len(self.packs),
            "bytes": self.bytes,
            "first_ends_at": isoformat(from_microseconds(self.first_us)),
            "kept_until": isoformat(from_microseconds(self.until_us)),
            "held": self.held,
            "pending": self.pending,
            "behind": self.behind,
        }


def terms(index: Index, retention_s: float) -> Iterator[Term]:
    """Yield the term of every study, hidden ones too, by UID. `retention_s`: where no lock is.

    The index is read in blocks, so that a long list holds no pages.
    """
    after = ""
    while True:
        with index.read() as view:
            studies = [uid for uid, _ in studies_from(view, after, STUDIES_PER_BLOCK)]
            block = [term_of(view, uid, retention_s) for uid in studies]
        yield from block
        if len(studies) < STUDIES_PER_BLOCK:
            return
        after = studies[-1]


def term_of(view: View, study_instance_uid: str, retention_s: float) -> Term:
    """Return the term of a study; one without packs has no term: it ends in 1970."""
    rows = packs_of(view, study_instance_uid)
    ends = [_end_us(row, retention_s) for row in rows]
    record = view.study(study_instance_uid)
    attributes = record.attributes if record is not None else {}
    return Term(
        study_instance_uid=study_instance_uid,
        patient_id=str(attributes.get(_PATIENT_ID, "")) or _last_patient(record),
        study_date=str(attributes.get(_STUDY_DATE, "")),
        accession_number=str(attributes.get(_ACCESSION, "")),
        modalities=record.modalities if record is not None else (),
        packs=tuple(rows),
        instances=sum(row.instance_count for row in rows),
        bytes=sum(row.cloud.size for row in rows if row.cloud is not None),
        first_us=min(ends, default=0),
        until_us=max(ends, default=0),
        hold=hold_of(view, study_instance_uid),
        pending=any(row.cloud is None for row in rows),
        behind=len(due(rows)),
    )


def _end_us(row: PackRow, retention_s: float) -> int:
    if row.cloud is not None and row.cloud.locked_until_us:
        return row.cloud.locked_until_us
    return row.last_received_us + round(retention_s * 1e6)


def _last_patient(record: StudyRecord | None) -> str:
    """Return the patient of a study of which nothing is served, as it last came."""
    if record is None or not record.patients:
        return ""
    return max(record.patients, key=lambda part: part.last_received_us).patient_id


def shortened(
    store: ObjectStore, term: Term, advance: Callable[[float], None]
) -> list[dict[str, str]]:
    """Return the packs of a study whose lock in the bucket is shorter than the ledger says.

    CloudUnavailable when the bucket can't be asked; what else it answers is a finding.
    """
    found = []
    for row in term.packs:
        advance(1)
        cloud = row.cloud
        if cloud is None or not cloud.locked_until_us:
            continue
        try:
            lock = store.head(cloud.key, cloud.version_id).lock
        except CloudUnavailable:
            raise
        except CloudError as error:
            finding = str(error)
        else:
            if lock is not None and to_microseconds(lock.until) >= cloud.locked_until_us:
                continue
            until = isoformat(lock.until) if lock is not None else "never"
            said = isoformat(from_microseconds(cloud.locked_until_us))
            finding = f"locked until {until} instead of {said}"
        found.append({"pack": row.pack_id, "finding": finding})
    return found
