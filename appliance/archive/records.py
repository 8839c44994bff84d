"""The records of the ledger, and the entry that carries them: format 1.

An entry is JSON lines, gzip'd, then encrypted by age: the header, the signature, then one line for
each record. The header names the sha256 of every record line; the signature is over the header
line; the chain is the sha256 of the previous header line. Lines are kept as bytes: what is hashed
and signed is what was written, never a re-encoding of it.
"""

from typing import Any

import msgspec

FORMAT = 1
Value = str | list[dict[int, Any]]
ENTRY_BYTES_MAX = 256 * 2**20
RECORD_BYTES_PER_INSTANCE = 400


class Header(msgspec.Struct, frozen=True):
    """The first line of an entry."""

    format: int
    node: str
    sequence: int
    incarnation: str
    written_at: str
    previous: str
    records: list[str]


class Signature(msgspec.Struct, frozen=True):
    """The second line: the signer's public key and its signature over the first line."""

    key: str
    signature: bytes


class Opened(msgspec.Struct, frozen=True, tag="opened", tag_field="type"):
    """The node started, under a fresh random incarnation."""

    incarnation: str
    software: str
    at: str


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """What instances that came the same way have in common."""

    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str
    character_set: str
    transfer_syntax_uid: str
    sop_class_uid: str


class Context(msgspec.Struct, frozen=True, array_like=True):
    """What instances of one series have in common: UIDs, and attributes above instance level."""

    study_instance_uid: str
    series_instance_uid: str
    attributes: dict[int, Value]


class ListedInstance(msgspec.Struct, frozen=True, array_like=True):
    """One instance; `origin` and `context` are positions in the record's lists."""

    sop_instance_uid: str
    origin: int
    context: int
    offset: int
    length: int
    sha256: bytes
    received_at_us: int
    attributes: dict[int, Value]


class PackRecord(msgspec.Struct, frozen=True, tag="pack", tag_field="type"):
    """A pack is in the bucket, read back.

    Sizes in bytes; `checksum` as kind:value, the value as the bucket writes it; `offset` of an
    instance counts in the plain tar; `age_header` includes the 16-byte payload nonce; `file_key`
    opens the object with no identity.
    """

    pack_id: str
    key: str
    version_id: str
    size_bytes: int
    plain_size_bytes: int
    checksum: str
    lock_mode: str
    locked_until_us: int
    age_header: bytes
    file_key: bytes
    headers_offset: int
    headers_length: int
    verified_at_us: int
    origins: list[Origin]
    contexts: list[Context]
    instances: list[ListedInstance]


class Rejected(msgspec.Struct, frozen=True, tag="rejected", tag_field="type"):
    """Instances are no longer served; `note_uid` is the key object that says so, if one does."""

    record_id: str
    study_instance_uid: str
    sop_instance_uids: list[str]
    code: str
    by: str
    at: str
    note_uid: str = ""


class Restored(msgspec.Struct, frozen=True, tag="restored", tag_field="type"):
    """Instances are served again. Of what is said of an instance, the latest `at` counts.

    `record_id` is this record's own; it names no `rejected` record.
    """

    record_id: str
    study_instance_uid: str
    sop_instance_uids: list[str]
    by: str
    at: str


class Retained(msgspec.Struct, frozen=True, tag="retention", tag_field="type"):
    """A pack's lock now ends later, read back: the bucket was changed before this was written."""

    pack_id: str
    lock_mode: str
    locked_until_us: int
    reason: str
    at: str


class Held(msgspec.Struct, frozen=True, tag="hold", tag_field="type"):
    """A legal hold on a study begins (`on`) or ends. Of a study the latest `at` counts."""

    record_id: str
    study_instance_uid: str
    on: bool
    by: str
    reason: str
    at: str


class Erased(msgspec.Struct, frozen=True, tag="erased", tag_field="type"):
    """A pack's version was deleted after its retention had ended: its instances are no more."""

    pack_id: str
    key: str
    version_id: str
    by: str
    reason: str
    at: str


class Configured(msgspec.Struct, frozen=True, tag="configuration", tag_field="type"):
    """What a standby needs to stand in for the node; no secret. The latest entry's counts.

    `ae_titles`, `issuer`, `extra_sop_classes`: of `[dicom]`. `peers`: each as in the node's file,
    by the names and in the units of the model.
    """

    ae_titles: list[str]
    issuer: str
    extra_sop_classes: list[str]
    peers: list[dict[str, Any]]
    at: str


class KeyRecord(msgspec.Struct, frozen=True, tag="key", tag_field="type"):
    """From here on objects are encrypted to these recipients, and signed with this key."""

    recipients: list[str]
    signing: str
    at: str


class Drilled(msgspec.Struct, frozen=True, tag="drill", tag_field="type"):
    """A restore drill was held: what was taken, what came out right, how long it took."""

    at: str
    identity: str
    studies: int
    instances: int
    matched: int
    findings: list[str]
    first_instance_s: float
    took_s: float


Record = (
    Opened
    | PackRecord
    | Rejected
    | Restored
    | Retained
    | Held
    | Erased
    | Configured
    | KeyRecord
    | Drilled
)


def record_bytes(record: Record) -> int:
    """Return about how large a record is in an entry, before compression."""
    if isinstance(record, PackRecord):
        return 1000 + RECORD_BYTES_PER_INSTANCE * len(record.instances)
    return 500
