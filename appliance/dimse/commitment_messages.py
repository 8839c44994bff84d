"""The messages of Storage Commitment, Push Model (PS3.4 annex J): requests in, reports out.

Owns their datasets. Must not know when a report is due, nor what a request becomes.
"""

import io

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from appliance.archive.commitment import (
    CommitmentRequest,
    Failure,
    Reference,
    Transaction,
)
from appliance.dicom import uid
from appliance.dicom.uid import is_big_endian, is_implicit, is_valid_uid
from appliance.dimse.association import Association
from appliance.dimse.commands import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    COMMAND_DATA_SET_TYPE,
    COMMAND_FIELD,
    EVENT_TYPE_ID,
    MESSAGE_ID,
    N_EVENT_REPORT_RQ,
    WITH_DATASET,
    encode_command,
)
from appliance.foundation.errors import (
    DatasetMismatch,
    DatasetNotUnderstood,
)

SUCCESSFUL = 1
FAILURES_EXIST = 2


def read_request(
    association: Association, raw: bytes, transfer_syntax_uid: str
) -> CommitmentRequest:
    """Read the dataset of an N-ACTION-RQ (PS3.4 table J.3-1).

    Raises DatasetNotUnderstood when it does not parse, DatasetMismatch when a UID is missing or is
    none.
    """
    transaction_uid, instances = _parse(raw, transfer_syntax_uid)
    peer = association.peer
    if peer is None:
        raise DatasetMismatch("read a commitment request", "", "from nobody that is known")
    if not is_valid_uid(transaction_uid):
        raise DatasetMismatch("read a commitment request", "", "no valid Transaction UID")
    if not all(item.sop_class_uid and item.sop_instance_uid for item in instances):
        raise DatasetMismatch("read a commitment request", "", "a reference without its UIDs")
    return CommitmentRequest(
        transaction_uid=transaction_uid,
        calling_ae=association.calling_ae,
        called_ae=association.called_ae,
        peer_address=association.peer_address,
        rung=peer.commitment,
        deadline_s=peer.commit_deadline_s,
        instances=tuple(instances),
    )


def _parse(raw: bytes, transfer_syntax_uid: str) -> tuple[str, list[Reference]]:
    try:
        dataset = read_dataset(
            io.BytesIO(raw),
            is_implicit(transfer_syntax_uid),
            not is_big_endian(transfer_syntax_uid),
        )
        instances = [
            Reference(
                str(item.get("ReferencedSOPClassUID") or ""),
                str(item.get("ReferencedSOPInstanceUID") or ""),
            )
            for item in dataset.get("ReferencedSOPSequence") or ()
        ]
        return str(dataset.get("TransactionUID") or ""), instances
    except Exception as cause:  # pydicom raises whatever the bytes provoke
        raise DatasetNotUnderstood("read a commitment request", "", type(cause).__name__) from cause


def encode_report(item: Transaction, transfer_syntax_uid: str) -> tuple[int, bytes]:
    """Return Event Type ID and dataset of the N-EVENT-REPORT-RQ (PS3.4 table J.3-2)."""
    report = Dataset()
    report.TransactionUID = item.transaction_uid
    report.RetrieveAETitle = item.called_ae
    succeeded = item.succeeded
    if succeeded:
        report.ReferencedSOPSequence = [_reference(each) for each in succeeded]
    if item.failures:
        report.FailedSOPSequence = [_failure(each) for each in item.failures]
    out = DicomBytesIO()
    out.is_implicit_VR = is_implicit(transfer_syntax_uid)
    out.is_little_endian = not is_big_endian(transfer_syntax_uid)
    write_dataset(out, report)
    return FAILURES_EXIST if item.failures else SUCCESSFUL, out.getvalue()


def _reference(each: Reference | Failure) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = each.sop_class_uid
    item.ReferencedSOPInstanceUID = each.sop_instance_uid
    return item


def _failure(each: Failure) -> Dataset:
    item = _reference(each)
    item.FailureReason = each.reason
    return item


def send_report(association: Association, item: Transaction, timeout_s: float) -> int:
    """Send one report on an association and return the status of the response.

    Roles are not insisted on: a peer that ignores role selection is reported to all the same.
    Raises DatasetMismatch when the association has no context for it, AssociationLost.
    """
    contexts = [
        context
        for context in association.contexts.values()
        if context.abstract_syntax == uid.STORAGE_COMMITMENT_PUSH
    ]
    if not contexts:
        raise DatasetMismatch("report a commitment", association.called_ae, "no context")
    context = contexts[0]
    event_type, dataset = encode_report(item, context.transfer_syntax)
    message_id = association.next_message_id()
    command = encode_command({
        AFFECTED_SOP_CLASS_UID: uid.STORAGE_COMMITMENT_PUSH,
        COMMAND_FIELD: N_EVENT_REPORT_RQ,
        MESSAGE_ID: message_id,
        COMMAND_DATA_SET_TYPE: WITH_DATASET,
        AFFECTED_SOP_INSTANCE_UID: uid.STORAGE_COMMITMENT_INSTANCE,
        EVENT_TYPE_ID: event_type,
    })  # fmt: skip
    answer = association.exchange(context.context_id, command, message_id, dataset, timeout_s)
    return answer.status
