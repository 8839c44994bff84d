"""What a ledger record does to the index: the same at upload, at start, at rebuild."""

from datetime import datetime

from appliance.archive.facts import pack_facts
from appliance.archive.records import (
    Erased,
    Held,
    PackRecord,
    Record,
    Rejected,
    Restored,
    Retained,
)
from appliance.foundation.clock import to_microseconds
from appliance.index.facts import RecordId
from appliance.index.writing import WriteTransaction


def apply_record(
    txn: WriteTransaction, record: Record, node: str, sequence: int, position: int
) -> None:
    """Apply the record at a position of an entry; twice or in another order changes nothing.

    A rejection that is not in the ledger yet is applied as of sequence 0.
    """
    match record:
        case PackRecord():
            txn.apply_pack(pack_facts(record, node, sequence))
        case Rejected():
            said = _record_id(record, node, sequence, position)
            for sop_instance_uid in record.sop_instance_uids:
                txn.hide(said, record.study_instance_uid, sop_instance_uid, record.by)
        case Restored():
            said = _record_id(record, node, sequence, position)
            for sop_instance_uid in record.sop_instance_uids:
                txn.restore(said, record.study_instance_uid, sop_instance_uid, record.by)
        case Retained():
            txn.retain(record.pack_id, record.locked_until_us)
        case Held():
            txn.hold(
                record.study_instance_uid, _microseconds(record.at), record.record_id,
                on=record.on, by=record.by, reason=record.reason,
            )  # fmt: skip
        case Erased():
            txn.erase(record.pack_id, _microseconds(record.at))
        case _:
            pass  # of no use to the index


def _record_id(record: Rejected | Restored, node: str, sequence: int, position: int) -> RecordId:
    return RecordId(_microseconds(record.at), node, sequence, position)


def _microseconds(at: str) -> int:
    return to_microseconds(datetime.fromisoformat(at))
