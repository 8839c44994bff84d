"""What is in a node's bucket, seen by somebody who has the recovery key and nothing else."""

from datetime import UTC, datetime

from appliance.archive.ledger_entry import open_entry
from appliance.archive.records import PackRecord, Record
from appliance.foundation.clock import SystemClock, from_microseconds
from appliance.remote.s3 import S3Store
from appliance.remote.store import Lane
from appliance.seal.identity import load_identity
from tests.support.node import Node
from tests.support.s3_fixture import unlimited


class Bucket:
    """Reads the ledger and the packs of one node's prefix."""

    def __init__(self, node: Node) -> None:
        settings = node.server.settings(node.bucket, prefix=node.prefix)
        self.store = S3Store(settings, unlimited(), SystemClock())
        self._identities = load_identity(str(node.recovery_key))

    def records(self) -> list[Record]:
        """Return every record of the ledger, in order."""
        records: list[Record] = []
        for info in sorted(self.store.versions("ledger/"), key=lambda each: each.key):
            sealed = self.store.get(info.key, info.version_id, 0, info.size_bytes, Lane.URGENT)
            records += open_entry(sealed, self._identities).records
        return records

    def pack_of(self, sop_instance_uid: str) -> PackRecord | None:
        """Return the record of the pack that holds an instance, if the ledger names one."""
        for record in self.records():
            if isinstance(record, PackRecord) and any(
                each.sop_instance_uid == sop_instance_uid for each in record.instances
            ):
                return record
        return None

    def is_locked(self, record: PackRecord) -> bool:
        """Tell whether the version that a record names is locked at least as long as it says."""
        info = self.store.head(record.key, record.version_id)
        said = from_microseconds(record.locked_until_us)
        return info.lock is not None and info.lock.until >= said > datetime.now(UTC)
