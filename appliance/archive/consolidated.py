"""Entries out of checkpoints, in batches as a follower or a rebuild applies them.

Applies nothing. Invariants:
- What comes out was proved as a whole, and its copy is on this disk.
- A batch holds no more than a transaction should.
- An entry with a record of a later release ends what a checkpoint gives: that entry alone then is a
  finding of whoever reads it by itself.
"""

from collections.abc import Container, Iterable, Iterator, Sequence

from appliance.archive.checkpoint import CheckpointEntry
from appliance.archive.checkpoint_read import (
    ANY,
    Finding,
    Known,
    Offered,
    kept_checkpoints,
)
from appliance.archive.following import Checked, Placed
from appliance.archive.layout import Layout
from appliance.archive.records import PackRecord
from appliance.foundation import log
from appliance.foundation.errors import Damaged, DecryptionFailed, UnsupportedFormat
from appliance.seal.identity import Identity

BATCH_ENTRIES_MAX = 500
BATCH_INSTANCES_MAX = 5000

_log = log.get("checkpoint")


def behind(
    offered: Offered, signers: Container[str], known: Known, on_finding: Finding
) -> Iterator[list[Checked]]:
    """Yield the entries behind the last known one, as far as checkpoints reach without a gap."""
    while True:
        sequence = known.sequence
        kept = offered.next(signers, sequence + 1, known, on_finding)
        if kept is None:
            return
        for batch in _batched(kept.entries(signers, sequence)):
            yield batch
            known = Known(batch[-1].last, batch[-1].header_sha256)
        if known.sequence < kept.name.range.last:
            return


def instead(
    offered: Offered,
    signers: Container[str],
    missing: Iterable[tuple[int, int]],
    known: Known,
    on_finding: Finding,
) -> Iterator[list[Checked]]:
    """Yield the entries of some ranges, first and last ascending, that checkpoints have."""
    for first, last in missing:
        sequence: int | None = first
        while sequence is not None and sequence <= last:
            kept = offered.next(signers, sequence, known, on_finding)
            if kept is None:
                sequence = offered.following(sequence)
                continue
            wanted = range(sequence, last + 1)
            entries = kept.entries(signers, sequence - 1)
            yield from _batched(each for each in entries if each.header.sequence in wanted)
            sequence = kept.name.range.last + 1


def kept(
    layout: Layout,
    node: str,
    identities: Sequence[Identity],
    signers: Container[str],
    known: Container[int],
    read: set[str],
) -> Iterator[list[Checked]]:
    """Yield what the copies on this disk hold, without the entries `known`.

    `read`: the names of copies that were read already; what is read now is added.
    """
    for copy in kept_checkpoints(layout, node, identities):
        if copy.name.file_name in read:
            continue
        read.add(copy.name.file_name)
        try:
            copy.prove(signers, ANY)
            entries = copy.entries(signers)
            yield from _batched(each for each in entries if each.header.sequence not in known)
        except (Damaged, DecryptionFailed, UnsupportedFormat, OSError) as error:
            _log.error("checkpoint_copy_unreadable", node=node, error=type(error).__name__)


def _batched(entries: Iterable[CheckpointEntry]) -> Iterator[list[Checked]]:
    batch: list[Checked] = []
    instances = 0
    for entry in entries:
        sequence = entry.header.sequence
        try:
            records = entry.records()
        except UnsupportedFormat:
            break
        placed = [Placed(sequence, position, each) for position, each in enumerate(records)]
        batch.append(Checked(sequence, sequence, entry.header_sha256, placed))
        instances += sum(len(each.instances) for each in records if isinstance(each, PackRecord))
        if len(batch) >= BATCH_ENTRIES_MAX or instances >= BATCH_INSTANCES_MAX:
            yield batch
            batch, instances = [], 0
    if batch:
        yield batch
