"""Rejection by key object notes (IHE IOCM), and what it asks of the ledger.

A note's instances are hidden, and the note with them: a study that was rejected as a whole is in
no list any more. Nothing is ever deleted by it. The index hides after the ledger's `rejected`
record, which the uplink writes from a durable request.
"""

import hashlib

from appliance.archive.requests import Request, RequestBox
from appliance.dicom.key_object import rejection_note
from appliance.index.facts import InstanceFacts


def note_rejection(requests: RequestBox, instance: InstanceFacts) -> bool:
    """Leave a request for each study that an instance rejects, if it is a note that does."""
    note = rejection_note(instance.attributes)
    if note is None:
        return False
    by_study: dict[str, list[str]] = {}
    for reference in note.referenced:
        by_study.setdefault(reference.study_instance_uid, []).append(reference.sop_instance_uid)
    if by_study:
        by_study.setdefault(instance.study_instance_uid, []).append(instance.sop_instance_uid)
    for study_instance_uid, sop_instance_uids in sorted(by_study.items()):
        # The id follows from the note's bytes and the study: the same note again asks nothing new.
        request_id = (
            "note-" + hashlib.sha256(instance.sha256 + study_instance_uid.encode()).hexdigest()[:40]
        )
        requests.put(
            Request(
                kind="reject",
                study_instance_uid=study_instance_uid,
                sop_instance_uids=tuple(sop_instance_uids),
                by=instance.calling_ae,
                reason=note.code,
                note_uid=instance.sop_instance_uid,
            ),
            request_id,
        )
    return True
