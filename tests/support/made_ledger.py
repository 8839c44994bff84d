"""A node's ledger made without the node: real entries, signed and sealed, put where they belong.

For tests and measurements of who follows a ledger. Instances are listed that no pack holds.
"""

import hashlib
from collections.abc import Sequence

from appliance.archive.facts import list_instances
from appliance.archive.layout import pack_key
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    Entry,
    build_entry,
    entry_key,
    seal_entry,
)
from appliance.archive.records import PackRecord, Record
from appliance.index.facts import PackFacts
from appliance.remote.store import ObjectStore
from appliance.seal.signing import SigningKey

WRITTEN_AT = "2026-11-24T09:00:00.000000Z"


def pack_record(facts: PackFacts) -> PackRecord:
    """Return the record of a pack that is in the bucket, as an upload makes it."""
    origins, contexts, instances = list_instances(list(facts.instances))
    cloud = facts.cloud
    return PackRecord(
        pack_id=facts.pack_id,
        key=pack_key(facts.pack_id),
        version_id=cloud.version_id if cloud else "v1",
        size_bytes=facts.size + 400,
        plain_size_bytes=facts.size,
        checksum=cloud.checksum if cloud else "",
        lock_mode="COMPLIANCE",
        locked_until_us=cloud.locked_until_us if cloud else 0,
        age_header=cloud.age_header if cloud else b"",
        file_key=cloud.file_key if cloud else b"",
        headers_offset=0,
        headers_length=0,
        verified_at_us=cloud.verified_at_us if cloud else 0,
        origins=origins,
        contexts=contexts,
        instances=instances,
    )


class MadeLedger:
    """The ledger of one node, written entry by entry."""

    def __init__(self, node: str, signing_key: SigningKey, recipients: Sequence[str]) -> None:
        self.node = node
        self.signing_key = signing_key
        self.recipients = list(recipients)
        self.sequence = 0
        self.previous = FIRST_PREVIOUS

    def build(self, records: Sequence[Record], *, sequence: int = 0, node: str = "") -> Entry:
        """Return an entry that would come next, or as if at another place; the chain stays."""
        return build_entry(
            node or self.node, sequence or self.sequence + 1, "incarnation", WRITTEN_AT,
            self.previous, records, self.signing_key,
        )  # fmt: skip

    def seal(self, entry: Entry) -> bytes:
        """Return the entry as an object."""
        return seal_entry(entry, self.recipients)

    def next(self, records: Sequence[Record]) -> tuple[int, bytes]:
        """Return the next entry's sequence and object; the chain goes on from it."""
        entry = self.build(records)
        self.sequence, self.previous = self.sequence + 1, entry.header_sha256
        return self.sequence, self.seal(entry)

    def put(self, store: ObjectStore, records: Sequence[Record]) -> int:
        """Write the next entry to the bucket; return its sequence."""
        sequence, sealed = self.next(records)
        put_object(store, entry_key(self.node, sequence), sealed)
        return sequence


def put_object(store: ObjectStore, key: str, content: bytes) -> str:
    """Put an object as a node does; return its version id."""
    return store.put(key, content, sha256=hashlib.sha256(content).digest()).version_id
