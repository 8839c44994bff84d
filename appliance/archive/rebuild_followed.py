"""What a rebuild of the index takes of the ledgers of other nodes: copies first, then the bucket.

Follows nothing and notes no finding: that is `follow`'s, which goes on meanwhile. Invariants:
- Only what is trusted by itself is applied, from a copy as from the bucket.
- Under the switch's gate every copy that is here is in the new index: who follows a ledger writes
  the copy before it applies the entry, so that nothing falls between two indexes.
- The bucket out of reach, or an entry that can't be trusted, ends nothing: the rest is applied.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from appliance.archive.consolidated import kept
from appliance.archive.entry_copies import EntryCopies
from appliance.archive.following import Checked, apply_checked
from appliance.archive.layout import Layout
from appliance.archive.ledger_listing import FETCHES_MAX, ahead, listed
from appliance.archive.taking import Taker
from appliance.foundation import log
from appliance.foundation.errors import CloudError
from appliance.foundation.files import FileSystem
from appliance.index.writing import WriteTransaction
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity

REBUILD_ENTRIES_MAX = 50
Work = Callable[[WriteTransaction], None]

_log = log.get("rebuild")


class FollowedLedgers:
    """The ledgers of all nodes but the own. One rebuild, one thread."""

    def __init__(
        self,
        files: FileSystem,
        layout: Layout,
        store: ObjectStore | None,
        identities: Sequence[Identity],
        signers: Mapping[str, Sequence[str]],
    ) -> None:
        self._store = store
        self._layout = layout
        self._identities = identities
        self._signers = signers
        self._applied: dict[str, set[int]] = {name: set() for name in signers}
        self._read: dict[str, set[str]] = {name: set() for name in signers}
        self._copies = {name: EntryCopies(files, layout, name) for name in signers}
        self._takers = {
            name: Taker(self._copies[name], store, identities, frozenset(keys))
            for name, keys in signers.items()
        }

    def fill(self, transact: Callable[[Work], object], advance: Callable[[float], None]) -> int:
        """Apply every ledger, in transactions of some entries; return how many entries."""
        count = 0
        with ThreadPoolExecutor(FETCHES_MAX, thread_name_prefix="rebuild") as pool:
            for node, taker in self._takers.items():
                for batch in self._batches(node, taker, pool):
                    transact(partial(apply_checked, node=node, batch=batch))
                    self._applied[node].update(each.last for each in batch)
                    count += len(batch)
                    advance(0)
        return count

    def rest(self, txn: WriteTransaction) -> None:
        """Apply what was kept since; no writer is at work."""
        for node, taker in self._takers.items():
            for sequence in self._copies[node].sequences():
                entry = None if sequence in self._applied[node] else taker.copy(sequence)
                if entry is not None:
                    apply_checked(txn, node, [Checked.of(entry)])
            for batch in self._from_checkpoints(node):
                apply_checked(txn, node, batch)

    def _from_checkpoints(self, node: str) -> Iterator[list[Checked]]:
        """Yield what the checkpoints kept here hold and is not applied yet."""
        return kept(
            self._layout, node, self._identities, self._signers[node], self._applied[node],
            self._read[node],
        )  # fmt: skip

    def _batches(
        self, node: str, taker: Taker, pool: ThreadPoolExecutor
    ) -> Iterator[Sequence[Checked]]:
        yield from self._from_checkpoints(node)
        applied = self._applied[node]
        copied = [each for each in self._copies[node].sequences() if each not in applied]
        entries = (entry for entry in ahead(pool, taker.copy, copied) if entry is not None)
        yield from _batched(map(Checked.of, entries))
        yield from _batched(self._from_bucket(node, taker, pool))

    def _from_bucket(self, node: str, taker: Taker, pool: ThreadPoolExecutor) -> Iterator[Checked]:
        """Yield what this disk has no copy of."""
        if self._store is None:
            return
        applied = self._applied[node]
        try:
            self._copies[node].prepare()
            away = (each for each in listed(self._store, node) if each.sequence not in applied)
            for taken in ahead(pool, taker.take, away, lambda each: each.size_bytes):
                if taken.entry is not None:
                    yield Checked.of(taken.entry)
        except CloudError as error:
            _log.warning("ledger_only_from_disk", node=node, error=type(error).__name__)


def _batched(checked: Iterable[Checked]) -> Iterator[list[Checked]]:
    source = iter(checked)
    while batch := list(itertools.islice(source, REBUILD_ENTRIES_MAX)):
        yield batch
