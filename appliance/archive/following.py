"""One followed ledger: what is known of it, and how checked entries come into the index.

Owns `state/follow/<node>.json`: the last entry of the chain that is applied, and the findings. Used
by one thread. Lists nothing and fetches nothing.

Invariants:
- A finding is durable before an entry behind it is applied: what is not applied is never forgotten.
- The state goes on only when the index has committed: a crash in between applies again, and that
  changes nothing.
- Without the state everything is taken again, from the copies as far as they reach.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from appliance.archive.adopted import AdoptedBook
from appliance.archive.applying import apply_record
from appliance.archive.findings import Finding, Findings, Kind
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import FIRST_PREVIOUS, Entry
from appliance.archive.records import Record
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.writing import WriteTransaction

DETAIL_MAX = 120

_log = log.get("follow")


class Placed(NamedTuple):
    """A record and its place in the ledger."""

    sequence: int
    position: int
    record: Record


class Checked(NamedTuple):
    """A range of entries that were checked: their records, and the chain's hash at the end.

    `header_sha256` is "" where it is not known: the next entry's link is not checked then.
    """

    first: int
    last: int
    header_sha256: str
    records: Sequence[Placed]

    @classmethod
    def of(cls, entry: Entry) -> "Checked":
        """Return one entry as a range."""
        sequence = entry.header.sequence
        records = [Placed(sequence, number, each) for number, each in enumerate(entry.records)]
        return cls(sequence, sequence, entry.header_sha256, records)


class FollowState(msgspec.Struct, frozen=True):
    """What is remembered of a followed ledger.

    sequence, header_sha256: of the last applied entry of the chain.
    """

    sequence: int = 0
    header_sha256: str = FIRST_PREVIOUS
    findings: list[Finding] = []
    more: bool = False


def follow_state_path(layout: Layout, node: str) -> str:
    """Return where the state of a followed ledger lies."""
    return os.path.join(layout.state, "follow", f"{node}.json")


def load_follow_state(layout: Layout, node: str) -> FollowState:
    """Return what is remembered of a ledger; nothing, of one that is new or can't be read."""
    try:
        with open(follow_state_path(layout, node), "rb") as file:
            return msgspec.json.decode(file.read(), type=FollowState)
    except (OSError, msgspec.DecodeError):
        return FollowState()


class Following:
    """The state of one followed ledger, and the way into the index."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        node: str,
        adopted: AdoptedBook | None = None,
    ) -> None:
        """`adopted`: takes the configurations that the node publishes."""
        self.node = node
        self._files = files
        self._clock = clock
        self._index = index
        self._adopted = adopted
        self._path = follow_state_path(layout, node)
        files.make_directory(os.path.dirname(self._path))
        state = load_follow_state(layout, node)
        self.sequence = state.sequence
        self.header_sha256 = state.header_sha256
        self.findings = Findings(node, state.findings, more=state.more)
        self._unsaved = False

    def find(self, what: Kind, first: int, last: int, detail: str = "") -> None:
        """Note a finding; durable at the next `save` or `apply`.

        `detail` may come from whoever wrote the entry: it is cut, and what does not print goes.
        """
        shown = "".join(each if each.isprintable() else "?" for each in detail[:DETAIL_MAX])
        if self.findings.add(what, first, last, isoformat(self._clock.now()), shown):
            self._unsaved = True
            _log.error("ledger_finding", node=self.node, what=what.value, first=first, last=last)

    def clear(self, what: Kind, first: int, last: int) -> None:
        """Let a finding go that no longer holds."""
        if len(self.findings) and self.findings.clear(what, first, last):
            self._unsaved = True
            _log.info("ledger_finding_over", node=self.node, what=what.value, first=first)

    def heal(self, sequence: int) -> None:
        """Let go what said that this entry is not applied: it is about to be."""
        self._unsaved = self.findings.heal(sequence) or self._unsaved

    def go_back(self, sequence: int) -> None:
        """Begin again behind an earlier entry; what is applied once more changes nothing."""
        self.sequence, self.header_sha256 = sequence, ""
        _log.warning("follow_again", node=self.node, sequence=sequence)

    def save(self) -> None:
        """Make the findings durable, if any came or went."""
        if self._unsaved:
            self._files.write_atomic(self._path, self._encoded())
            self._unsaved = False

    def apply(self, batch: Sequence[Checked]) -> None:
        """Apply ranges of checked entries in one transaction, and remember where they end.

        Whatever is to be found here again without the bucket is durable before: copies of entries,
        or of the checkpoint that they come from. Ranges may come in any order. Raises OutOfSpace,
        StorageFailed, IndexDamaged: nothing is remembered then.
        """
        self.save()
        if self._adopted is not None:  # before the state goes on, which never comes back here
            for checked in batch:
                for placed in checked.records:
                    self._adopted.take(self.node, placed.sequence, placed.record)
        self._index.transact(lambda txn: apply_checked(txn, self.node, batch))
        for checked in batch:
            if checked.last > self.sequence:
                self.sequence, self.header_sha256 = checked.last, checked.header_sha256
            for sequence in range(checked.first, checked.last + 1) if len(self.findings) else ():
                self.heal(sequence)
        if self._unsaved:
            self.save()
        else:
            self._files.write_volatile(self._path, self._encoded())

    def _encoded(self) -> bytes:
        return msgspec.json.encode(
            FollowState(
                self.sequence, self.header_sha256, list(self.findings),
                self.findings.more,
            )
        )  # fmt: skip


def apply_checked(txn: WriteTransaction, node: str, batch: Sequence[Checked]) -> None:
    """Apply ranges of a node's checked entries within a transaction."""
    for checked in batch:
        for placed in checked.records:
            apply_record(txn, placed.record, node, placed.sequence, placed.position)
        txn.remember(node, checked.last)
