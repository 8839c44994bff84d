"""A pack under change within one write transaction.

Invariants:
- PENDING holds exactly the packs that are here and that no ledger names, by when they began; CACHED
  those that are named and here, by last use; ERASED those that are no more. What is neither here
  nor named is lost, and on no list.
- A pack is erased when a ledger names it *and* says that it was erased. What is pending is not: its
  only copy is here, whatever anybody wrote.
- Of an erased pack nothing is kept but what the ledger said of its copy.
"""

import copy

from appliance.index.facts import CloudFacts
from appliance.index.schema import Counters, StoredPack, Table

_STAMP_LENGTH = 8


def stamped(at_us: int, reference: bytes) -> bytes:
    """Return a key that sorts by time: 8 bytes big endian, then the pack reference."""
    return max(at_us, 0).to_bytes(_STAMP_LENGTH, "big") + reference


def reference_of(key: bytes) -> bytes:
    """Return the pack reference of a stamped key."""
    return key[_STAMP_LENGTH:]


def is_erased(pack: StoredPack) -> bool:
    """Return whether a pack is no more."""
    return pack.erased_us > 0 and pack.cloud is not None


def what_stays(pack: StoredPack) -> StoredPack:
    """Return what is kept of an erased pack."""
    return StoredPack(
        cloud=pack.cloud, retained_until_us=pack.retained_until_us, erased_us=pack.erased_us
    )


def listed_under(reference: bytes, pack: StoredPack) -> tuple[Table, bytes] | None:
    """Return table and key of the list that a pack belongs to, None for an evicted one.

    A pack of which only its name was ever said (it was used or moved) is on no list either, nor is
    a lost one.
    """
    if is_erased(pack):
        return Table.ERASED, stamped(pack.erased_us, reference)
    if pack.cloud is None:
        if pack.member_count == 0 or not pack.local:
            return None
        return Table.PENDING, stamped(pack.first_received_us, reference)
    if pack.local:
        return Table.CACHED, stamped(pack.last_used_us, reference)
    return None


def counted(counters: Counters, pack: StoredPack, sign: int) -> None:
    """Add a pack to the totals, or take it away."""
    if (pack.cloud is None and pack.member_count == 0) or is_erased(pack):
        return
    counters.packs += sign
    if pack.cloud is None and not pack.local:
        return
    if pack.cloud is None:
        counters.pending_packs += sign
        counters.pending_instances += sign * pack.member_count
        counters.pending_bytes += sign * pack.size
    elif pack.local:
        counters.cached_packs += sign
        counters.cached_bytes += sign * pack.size


def merged_cloud(old: CloudFacts | None, new: CloudFacts) -> CloudFacts:
    """Return what is known of the cloud copy from two facts, whichever came first.

    A pack enters the ledger once; should it be named twice, the earlier entry counts. Of one
    entry the later lock and the later proof hold.
    """
    if old is None or old == new:
        return new

    def entry(facts: CloudFacts) -> tuple[object, ...]:
        return (
            facts.node,
            facts.sequence,
            facts.key,
            facts.version_id,
            facts.size,
            facts.checksum,
            facts.lock_mode,
            facts.age_header,
            facts.file_key,
            facts.headers_offset,
            facts.headers_length,
        )

    first, second = (old, new) if entry(old) <= entry(new) else (new, old)
    if entry(first) != entry(second):
        return first
    return CloudFacts(
        first.key,
        first.version_id,
        first.size,
        first.checksum,
        max(first.locked_until_us, second.locked_until_us),
        first.age_header,
        first.file_key,
        first.lock_mode,
        first.node,
        first.sequence,
        max(first.verified_at_us, second.verified_at_us),
        first.headers_offset,
        first.headers_length,
    )


class PackState:
    """A pack under change, with what it was before: `was_known` is false for a new one."""

    __slots__ = ("before", "listed_before", "pack", "reference", "was_known")

    def __init__(self, reference: bytes, stored: StoredPack | None) -> None:
        self.reference = reference
        self.was_known = stored is not None
        self.before = stored or StoredPack()
        self.pack = copy.copy(stored) if stored is not None else StoredPack()
        self.pack.studies = list(self.pack.studies)
        self.listed_before = listed_under(reference, stored) if stored is not None else None

    def received(self, at_us: int, length: int) -> None:
        """Count a member that was not known before."""
        pack = self.pack
        if pack.member_count == 0:
            pack.first_received_us = pack.last_received_us = at_us
        elif at_us > pack.last_received_us:
            pack.last_received_us = at_us
        elif at_us < pack.first_received_us:
            pack.first_received_us = at_us
        pack.member_count += 1
        pack.member_bytes += length
        pack.last_used_us = max(pack.last_used_us, at_us)
