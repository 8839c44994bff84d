"""Studies as people look at them: a list, and everything known about one.

Reads the index only. Times are RFC 3339 in UTC.
"""

from collections.abc import Iterator
from typing import Any

from appliance.archive.layout import Layout
from appliance.archive.pins import Pins
from appliance.dicom.attributes import BY_KEYWORD, Level
from appliance.dicom.matching import Matcher, compile_key
from appliance.foundation.clock import from_microseconds, isoformat
from appliance.foundation.errors import NotFound
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.keeping import hold_of, is_held, packs_of
from appliance.index.records import Hold, PackRow, State, StoredInstance, Version
from appliance.index.view import View

PATIENT_ID = BY_KEYWORD["PatientID"].tag
PATIENT_NAME = BY_KEYWORD["PatientName"].tag
STUDY_UID = BY_KEYWORD["StudyInstanceUID"].tag
STUDY_DATE = BY_KEYWORD["StudyDate"].tag
STUDY_DESCRIPTION = BY_KEYWORD["StudyDescription"].tag
ACCESSION = BY_KEYWORD["AccessionNumber"].tag
RESOLVE_MAX = 100
MIXED = "mixed"


def study_packs(view: View, study_instance_uid: str) -> list[PackRow]:
    """Return every pack that holds an instance of a study, hidden and older versions too."""
    return packs_of(view, study_instance_uid)


def _matchers(patient: str, accession: str, date: str) -> list[dict[int, Matcher]]:
    common = {
        tag: compile_key(tag, vr, value)
        for tag, vr, value in ((ACCESSION, "SH", accession), (STUDY_DATE, "DA", date))
        if value
    }
    if not patient:
        return [common]
    return [
        {**common, PATIENT_ID: compile_key(PATIENT_ID, "LO", patient)},
        {**common, PATIENT_NAME: compile_key(PATIENT_NAME, "PN", patient)},
    ]


def list_rows(
    index: Index, patient: str, accession: str, date: str, limit: int
) -> list[dict[str, Any]]:
    """Return studies by date, as rows for a table; `patient` is a PatientID or a name."""
    rows: dict[str, dict[str, Any]] = {}
    for matchers in _matchers(patient, accession, date):
        for answer in index.query(Level.STUDY, matchers, limit=limit):
            uid = str(answer[STUDY_UID])
            if uid not in rows:
                rows[uid] = _row(index, uid, answer)
    return sorted(rows.values(), key=lambda row: (row["study_date"], row["study_instance_uid"]))


def _row(index: Index, uid: str, answer: dict[int, Any]) -> dict[str, Any]:
    with index.read() as view:
        record = view.study(uid)
        states = {row.state for row in study_packs(view, uid)}
        held = is_held(view, uid)
    return {
        "study_instance_uid": uid,
        "patient_id": answer.get(PATIENT_ID, ""),
        "patient_name": answer.get(PATIENT_NAME, ""),
        "study_date": answer.get(STUDY_DATE, ""),
        "accession_number": answer.get(ACCESSION, ""),
        "description": answer.get(STUDY_DESCRIPTION, ""),
        "modalities": ",".join(record.modalities) if record else "",
        "instances": record.instance_count if record else 0,
        "state": summed(states),
        "held": held,
    }


def summed(states: set[State]) -> str:
    """Return the one word for a study whose packs are in these states."""
    return next(iter(states)).value if len(states) == 1 else MIXED


def resolve(index: Index, study: str) -> list[str]:
    """Return the Study UIDs that a UID or an accession number names; NotFound when none."""
    with index.read() as view:
        if view.study(study) is not None:
            return [study]
    matchers = {ACCESSION: compile_key(ACCESSION, "SH", study)}
    found = [
        str(answer[STUDY_UID]) for answer in index.query(Level.STUDY, matchers, limit=RESOLVE_MAX)
    ]
    if not found:
        raise NotFound(
            "find a study", study, "neither a Study Instance UID nor an accession number here",
            "azekura study list shows what there is",
        )  # fmt: skip
    return found


def show_study(index: Index, layout: Layout, study_instance_uid: str) -> dict[str, Any]:
    """Return everything known about a study; a version of an instance is a row."""
    with index.read() as view:
        record = view.study(study_instance_uid)
        instances = list(view.instances(study_instance_uid))
        packs = {row.pack_id: row for row in study_packs(view, study_instance_uid)}
        conflicts = list(view.conflicts(study_instance_uid))
        hold = hold_of(view, study_instance_uid)
    attributes = record.attributes if record is not None else {}
    pins = Pins(FileSystem(), layout.pins)
    return {
        "study_instance_uid": study_instance_uid,
        "patient_id": attributes.get(PATIENT_ID, ""),
        "patient_name": attributes.get(PATIENT_NAME, ""),
        "study_date": attributes.get(STUDY_DATE, ""),
        "accession_number": attributes.get(ACCESSION, ""),
        "state": summed({row.state for row in packs.values()}),
        "pinned": pins.pinned(study_instance_uid),
        "hold": _hold(hold),
        "conflicts": [
            each.kind.value + (" (corrected)" if each.corrected else "") for each in conflicts
        ],
        "instances": [row for each in instances for row in _versions(each, packs)],
    }


def _versions(instance: StoredInstance, packs: dict[str, PackRow]) -> Iterator[dict[str, Any]]:
    for number, version in enumerate(instance.versions, 1):
        copies = [packs[copy.pack_id] for copy in version.copies if copy.pack_id in packs]
        best = max(copies, key=_rank)
        served = number == len(instance.versions) and not instance.hidden
        yield {
            "series_instance_uid": instance.series_instance_uid,
            "sop_instance_uid": instance.sop_instance_uid,
            "version": number,
            "served": served,
            "hidden": instance.hidden,
            **_facts(version, best),
        }


def _hold(hold: Hold | None) -> dict[str, Any] | None:
    if hold is None:
        return None
    return {"on": hold.on, "by": hold.by, "reason": hold.reason, "at": _time(hold.at_us)}


def _rank(row: PackRow) -> tuple[bool, bool]:
    return row.cloud is not None, row.local


def _facts(version: Version, row: PackRow) -> dict[str, Any]:
    first = version.copies[0]
    cloud = row.cloud
    return {
        "sop_class_uid": version.sop_class_uid,
        "transfer_syntax_uid": version.transfer_syntax_uid,
        "length": version.length,
        "sha256": version.sha256.hex(),
        "received_at": _time(first.received_at_us),
        "from": {
            "calling_ae": first.calling_ae,
            "called_ae": first.called_ae,
            "address": first.peer_address,
            "tls_subject": first.tls_subject,
        },
        "state": row.state.value,
        "pack": row.pack_id,
        "committed_at": _time(cloud.verified_at_us) if cloud else None,
        "locked_until": _time(cloud.locked_until_us) if cloud else None,
        "last_verified_at": _time(row.last_verified_us),
    }


def _time(microseconds: int) -> str | None:
    return isoformat(from_microseconds(microseconds)) if microseconds else None
