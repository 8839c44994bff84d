"""The facts that the index is made of.

Facts come from packs on this disk and from the ledgers of all nodes. The index is a pure function
of their set: which came first, in how many pieces and how often makes no difference.

Invariants:
- A pack id and an offset name one instance as it was received, everywhere and for ever.
- The order of instances is (received_at_us, node, pack_id, offset). It is the same before and
  after the pack enters the ledger, so "newest" never changes when an upload finishes.
- Wall times are microseconds since 1970 UTC.
"""

from typing import Any

import msgspec


class InstanceFacts(msgspec.Struct):
    """One instance as it lies in a pack.

    offset: of the dataset in the plain tar, in bytes. length: of the dataset, in bytes.
    sha256: of the dataset as it came, 32 bytes. attributes: decoded text by tag, values joined by
    a backslash, a sequence being a list of such dictionaries; the absent IssuerOfPatientID is
    already filled in. character_set: (0008,0005) as it came, values joined by a backslash.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    offset: int
    length: int
    sha256: bytes
    received_at_us: int
    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str
    character_set: str
    attributes: dict[int, str | list[dict[int, Any]]]


class CloudFacts(msgspec.Struct, array_like=True, frozen=True):
    """The verified copy of a pack in the bucket, as its ledger entry names it.

    size: of the object, in bytes. checksum: as the bucket stores it. locked_until_us: 0 without a
    lock. age_header, file_key: what range decryption needs. node, sequence: of the ledger entry.
    verified_at_us: when size, checksum and version were last read back. headers_offset,
    headers_length: where `headers.gz` lies in the plain tar; length 0 where it is not known.
    """

    key: str
    version_id: str
    size: int
    checksum: str
    locked_until_us: int
    age_header: bytes
    file_key: bytes
    lock_mode: str
    node: str
    sequence: int
    verified_at_us: int
    headers_offset: int = 0
    headers_length: int = 0


class PackFacts(msgspec.Struct):
    """A pack, whole or the part of it that is known so far.

    node: where it was received. local: it is on this disk (false says nothing: an eviction is
    told by `set_local`). size: of the plain tar in bytes, as far as it is known.
    """

    pack_id: str
    node: str
    instances: list[InstanceFacts]
    local: bool
    size: int
    cloud: CloudFacts | None = None


class RecordId(msgspec.Struct, array_like=True, frozen=True, order=True):
    """Which record of which ledger entry says something; they are ordered as written here."""

    at_us: int
    node: str
    sequence: int
    position: int
