"""Tables and records of the index, and how a record becomes bytes.

It knows no transactions. Invariants:
- A value is the msgpack of its record followed by the CRC-32 of key and record, little endian: a
  flipped page is found, and a record never answers for another's key.
- Records are canonical: dictionaries by ascending key, lists of copies by order. Equal sets of
  facts give equal bytes.
- `FORMAT_VERSION` covers every table. The index is disposable, so another version is never
  migrated, it is rebuilt.
"""

import zlib
from enum import IntEnum
from typing import Any, Final

import msgspec

from appliance.foundation.errors import IndexDamaged
from appliance.index.facts import CloudFacts

FORMAT_VERSION: Final = 2
CRC_LENGTH: Final = 4
DIGEST_LENGTH: Final = 16
REBUILD_HINT: Final = "Run: azekura rebuild-index"

FORMAT_KEY: Final = b"format"
COUNTERS_KEY: Final = b"counters"
PROGRESS_PREFIX: Final = b"progress:"
STUDY_CONFLICT: Final = b"P"
VERSION_CONFLICT: Final = b"V"


class Table(IntEnum):
    """The named databases; `docs/internals/index-format.md` has each one's key and value."""

    META = 0
    STUDY = 1
    SERIES = 2
    INSTANCE = 3
    SOP = 4
    SERIES_STUDY = 5
    CONTEXT = 6
    PATIENT = 7
    NAME = 8
    DATE = 9
    IDENTIFIER = 10
    PACK = 11
    PENDING = 12
    CACHED = 13
    VISIBILITY = 14
    CONFLICT = 15
    STUDY_PACK = 16
    HOLD = 17
    ERASED = 18


class Copy(msgspec.Struct, array_like=True, frozen=True):
    """An instance as it lies in one pack. An INSTANCE record is a list of them, by order.

    pack: pack reference. offset, length: of the dataset in bytes. context: which CONTEXT record of
    the study. values: of the context's `tags`, in their order.
    """

    received_at_us: int
    pack: bytes
    offset: int
    length: int
    sha256: bytes
    context: bytes
    values: list[Any]


class Context(msgspec.Struct, array_like=True, frozen=True):
    """What an instance shares with its neighbours, named by the hash of the record.

    study_attributes: of levels PATIENT and STUDY. series_attributes: of level SERIES. tags: of the
    attributes that each copy brings. series: the packed Series UID under which the copies came.
    """

    node: str
    sop_class_uid: str
    transfer_syntax_uid: str
    character_set: str
    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str
    study_attributes: dict[int, Any]
    series_attributes: dict[int, Any]
    tags: list[int]
    series: bytes


class Order(msgspec.Struct, array_like=True, frozen=True, order=True):
    """The order of instances: newest is greatest."""

    received_at_us: int
    node: str
    pack: bytes
    offset: int


class Newest(msgspec.Struct, array_like=True, frozen=True):
    """The newest served instance of a series or study, and where its attributes are."""

    order: Order
    context: bytes


class SeriesRow(msgspec.Struct, array_like=True):
    """A series of which something is served. Counts are of what is served.

    packs: pack reference → count of served copies that lie in it.
    """

    newest: Newest
    instance_count: int
    modality: str
    sop_classes: dict[str, int]
    packs: dict[bytes, int]


class PatientPart(msgspec.Struct, array_like=True):
    """One patient key under which instances of a study came."""

    patient: bytes
    served_count: int
    first_received_us: int
    last_received_us: int


class StudyRow(msgspec.Struct, array_like=True):
    """A study of which anything was ever received; `newest` is None when nothing is served.

    modalities: modality → count of series. sop_classes: → count of instances. packs: as in
    SeriesRow. patients: by ascending patient key. character_set, attributes: of the newest, of
    levels PATIENT and STUDY, so that a search reads one record a study.
    """

    newest: Newest | None
    series_count: int
    instance_count: int
    modalities: dict[str, int]
    sop_classes: dict[str, int]
    packs: dict[bytes, int]
    patients: list[PatientPart]
    character_set: str
    attributes: dict[int, Any]


class PatientRow(msgspec.Struct, array_like=True):
    """A patient of whom something is served, and which of the studies is newest."""

    study_count: int
    series_count: int
    instance_count: int
    newest: Order
    newest_study: bytes


class StoredPack(msgspec.Struct, array_like=True):
    """A pack: what is in it, where it is, and when it was used and verified.

    studies: packed Study UIDs, ascending (a pack holds one). member_bytes: of the datasets.
    size, indexed_length: of the plain tar in bytes. retained_until_us: the greatest date to which
    a ledger record ever moved its lock. erased_us: when it was first erased, 0 if it never was.
    """

    node: str = ""
    studies: list[bytes] = msgspec.field(default_factory=list)
    member_count: int = 0
    member_bytes: int = 0
    size: int = 0
    indexed_length: int = 0
    first_received_us: int = 0
    last_received_us: int = 0
    last_used_us: int = 0
    last_verified_us: int = 0
    local: bool = False
    cloud: CloudFacts | None = None
    retained_until_us: int = 0
    erased_us: int = 0


class HoldPart(msgspec.Struct, array_like=True, frozen=True, order=True):
    """One ledger record that begins or ends a study's legal hold.

    A HOLD record is a list of them, by order; the last one decides.
    """

    at_us: int
    record_id: str
    on: bool
    by: str
    reason: str


class VisibilityPart(msgspec.Struct, array_like=True, frozen=True, order=True):
    """One ledger record that hides or restores an instance.

    A VISIBILITY record is a list of them, by order; the last one decides.
    """

    at_us: int
    node: str
    sequence: int
    position: int
    hidden: bool
    by: str


class Counters(msgspec.Struct, array_like=True):
    """Totals. studies, instances: served. pending: in packs that no ledger names yet."""

    studies: int = 0
    series: int = 0
    instances: int = 0
    packs: int = 0
    pending_packs: int = 0
    pending_instances: int = 0
    pending_bytes: int = 0
    cached_packs: int = 0
    cached_bytes: int = 0


encode = msgspec.msgpack.Encoder().encode
decode_copies = msgspec.msgpack.Decoder(list[Copy]).decode
decode_context = msgspec.msgpack.Decoder(Context).decode
decode_series = msgspec.msgpack.Decoder(SeriesRow).decode
decode_study = msgspec.msgpack.Decoder(StudyRow).decode
decode_patient = msgspec.msgpack.Decoder(PatientRow).decode
decode_pack = msgspec.msgpack.Decoder(StoredPack).decode
decode_visibility = msgspec.msgpack.Decoder(list[VisibilityPart]).decode
decode_hold = msgspec.msgpack.Decoder(list[HoldPart]).decode
decode_counters = msgspec.msgpack.Decoder(Counters).decode
decode_number = msgspec.msgpack.Decoder(int).decode


def seal_value(key: bytes, body: bytes) -> bytes:
    """Return the bytes to store under `key`: the record and the CRC of both."""
    return body + zlib.crc32(body, zlib.crc32(key)).to_bytes(CRC_LENGTH, "little")


def open_value(table: Table, key: bytes, value: bytes) -> bytes:
    """Return the record's bytes; IndexDamaged when they are not what was stored under `key`."""
    body = value[:-CRC_LENGTH]
    if zlib.crc32(body, zlib.crc32(key)).to_bytes(CRC_LENGTH, "little") != value[-CRC_LENGTH:]:
        raise damaged(table.name.lower(), "a record's checksum does not hold")
    return body


def damaged(subject: str, cause: str) -> IndexDamaged:
    """Return the error for a record that cannot be what was stored."""
    return IndexDamaged("read the index", subject, cause, REBUILD_HINT)
