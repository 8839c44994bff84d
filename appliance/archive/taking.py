"""An entry of another node taken: fetched or read from its copy, opened, judged, and kept.

Owns the judgement of one entry by itself. Whether it follows from the entry before it is for
whoever goes through the ledger in order. Invariants:
- What is trusted is signed by a key of that node, names that node and that sequence, and every
  record is the one that the signed header names.
- What is trusted is durable here, as it came, before anybody applies it.
- Nothing but its head is unpacked of an entry before its signature is checked: a few bytes that
  somebody else wrote could become any number.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from appliance.archive.entry_copies import EntryCopies
from appliance.archive.findings import Kind
from appliance.archive.ledger_entry import Entry, EntryHead, entry_key, read_entry, read_head
from appliance.archive.ledger_listing import Listed
from appliance.archive.records import ENTRY_BYTES_MAX
from appliance.foundation.errors import (
    CloudRefused,
    Damaged,
    DecryptionFailed,
    ObjectMissing,
    SealedToOthers,
    UnsupportedFormat,
)
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.age import decrypt_bytes
from appliance.seal.identity import Identity
from appliance.seal.signing import verify


class Doubt(NamedTuple):
    """Why an entry is not trusted. `detail` is for the operator."""

    what: Kind
    detail: str = ""


class Taken(NamedTuple):
    """What became of one sequence: an entry that is trusted and kept, or a doubt."""

    sequence: int
    version_id: str
    entry: Entry | None
    doubt: Doubt | None


def judge(
    entry: Entry | EntryHead, node: str, sequence: int, signers: Collection[str]
) -> Doubt | None:
    """Return why an entry can't be that node's at that sequence; None when it is."""
    header = entry.header
    if entry.signature.key not in signers:
        return _foreign(entry, node)
    if not verify(entry.signature.key, entry.header_line, entry.signature.signature):
        return Doubt(Kind.FORGED, "the signature does not fit")
    if header.node != node:
        return Doubt(Kind.SWAPPED, f"it is {header.node}'s {header.sequence}")
    if header.sequence != sequence:
        return Doubt(Kind.REPLAYED, f"it is {header.sequence}")
    return None


def _foreign(entry: Entry | EntryHead, node: str) -> Doubt:
    if entry.header.node != node:
        return Doubt(Kind.SWAPPED, f"it says that it is {entry.header.node}'s")
    return Doubt(Kind.FORGED, f"signed by {entry.signature.key}")


class Taker:
    """Takes entries of one node. Any thread; each sequence by one thread at a time."""

    def __init__(
        self,
        copies: EntryCopies,
        store: ObjectStore | None,
        identities: Sequence[Identity],
        signers: Collection[str],
    ) -> None:
        """`store`: None for who reads copies only."""
        self._copies = copies
        self._store = store
        self._identities = identities
        self._signers = signers
        self.node = copies.node

    def take(self, found: Listed) -> Taken:
        """Return the entry at a sequence, from its copy or from the bucket.

        CloudUnavailable and CloudMisconfigured when the bucket can't be asked, StorageFailed,
        OutOfSpace.
        """
        copied = self.copy(found.sequence)
        if copied is not None:
            return Taken(found.sequence, found.version_id, copied, None)
        if not found.version_id:
            return _doubted(found, Kind.MISSING, "only a delete marker is left")
        if found.size_bytes > ENTRY_BYTES_MAX:
            return _doubted(found, Kind.ALTERED, "larger than any entry may be")
        assert self._store is not None
        key = entry_key(self.node, found.sequence)
        try:
            sealed = self._store.get(key, found.version_id, lane=Lane.NEW)
        except ObjectMissing:
            return _doubted(found, Kind.MISSING, "")
        except CloudRefused as error:
            return _doubted(found, Kind.UNREADABLE, error.cause)
        return self._judged(found, sealed)

    def copy(self, sequence: int) -> Entry | None:
        """Return the trusted entry that is kept here; a copy that no longer opens is put aside."""
        sealed = self._copies.read(sequence)
        if sealed is None:
            return None
        try:
            opened = self._open(sequence, sealed)
        except (SealedToOthers, UnsupportedFormat):
            return None
        except (DecryptionFailed, Damaged):
            self._copies.put_aside(sequence)
            return None
        return None if isinstance(opened, Doubt) else opened

    def _open(self, sequence: int, sealed: bytes) -> Entry | Doubt:
        packed = decrypt_bytes(sealed, self._identities)
        doubt = judge(read_head(packed), self.node, sequence, self._signers)
        return doubt if doubt is not None else read_entry(packed)

    def _judged(self, found: Listed, sealed: bytes) -> Taken:
        try:
            opened = self._open(found.sequence, sealed)
        except SealedToOthers as error:
            return _doubted(found, Kind.UNREADABLE, error.cause)
        except UnsupportedFormat as error:
            return _doubted(found, Kind.UNREADABLE, error.subject)
        except (DecryptionFailed, Damaged) as error:
            return _doubted(found, Kind.ALTERED, error.cause)
        if isinstance(opened, Doubt):
            return Taken(found.sequence, found.version_id, None, opened)
        self._copies.keep(found.sequence, sealed)
        return Taken(found.sequence, found.version_id, opened, None)


def _doubted(found: Listed, what: Kind, detail: str) -> Taken:
    return Taken(found.sequence, found.version_id, None, Doubt(what, detail))
