"""Looking into a node's bucket with the recovery key alone, as whoever has lost the node does."""

from appliance.archive.ledger_entry import Entry, open_entry
from appliance.archive.records import PackRecord
from appliance.foundation.clock import SystemClock
from appliance.remote.s3 import S3Store
from appliance.seal.identity import load_identity
from tests.support.node import Node
from tests.support.s3_fixture import unlimited


def bucket_of(node: Node) -> S3Store:
    """Return the node's bucket under its prefix, asked directly."""
    settings = node.server.settings(node.bucket, prefix=node.prefix)
    return S3Store(settings, unlimited(), SystemClock())


def ledger_of(node: Node) -> list[Entry]:
    """Return every entry in the bucket, by key; the chain of sequences has no gap."""
    bucket = bucket_of(node)
    identities = load_identity(str(node.recovery_key))
    found = [
        open_entry(bucket.get(each.key, each.version_id), identities)
        for each in bucket.versions("ledger/")
    ]
    assert [entry.header.sequence for entry in found] == list(range(1, len(found) + 1))
    return found


def packs_in_ledger(node: Node) -> list[str]:
    """Return the pack ids that the ledger names, in order."""
    return [
        record.pack_id
        for entry in ledger_of(node)
        for record in entry.records
        if isinstance(record, PackRecord)
    ]


def packs_in_bucket(node: Node) -> list[str]:
    """Return the pack id of every version under packs/."""
    versions = bucket_of(node).versions("packs/")
    return sorted(each.key.rpartition("/")[2].partition(".")[0] for each in versions)
