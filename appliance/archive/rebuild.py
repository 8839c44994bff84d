"""The index made anew from the ledgers and the packs on this disk, while the node goes on.

Invariants:
- What becomes current holds every ledger entry of this node that the bucket has, what is kept of
  every other node's ledger, and every member on this disk: what came meanwhile is applied under
  the switch's gate, when no writer is at work.
- An entry on disk that the bucket may not have yet makes nothing verified.
- A transaction that is tried again, because the map had to grow, begins where the last one ended.
- The old index stays in use until then, and if the rebuild fails. One rebuild runs at a time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from appliance.archive.applying import apply_record
from appliance.archive.facts import instance_facts
from appliance.archive.layout import Layout, packs_in
from appliance.archive.ledger import load_state, state_path
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    Entry,
    entry_key,
    entry_name,
    open_entry,
)
from appliance.archive.rebuild_followed import FollowedLedgers
from appliance.foundation import log
from appliance.foundation.errors import (
    CloudError,
    Damaged,
    DatasetNotUnderstood,
    DecryptionFailed,
)
from appliance.foundation.files import FileLock
from appliance.index.facts import PackFacts
from appliance.index.index import Index
from appliance.index.writing import WriteTransaction
from appliance.packs.durable import durable_path, read_durable_length
from appliance.packs.reader import PackReader
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity

Work = Callable[[WriteTransaction], None]

_log = log.get("rebuild")


class Counts(msgspec.Struct):
    """What a rebuild read. entries: of the own ledger; followed: of the others'."""

    entries: int = 0
    followed: int = 0
    packs: int = 0
    instances: int = 0


class _Rebuild:
    """One rebuild: how far each pack and the ledger are applied already."""

    def __init__(
        self,
        layout: Layout,
        node: str,
        identities: Sequence[Identity],
        fetch: Callable[[int], bytes | None],
        advance: Callable[[float], None],
    ) -> None:
        self._fetch = fetch
        self.counts = Counts()
        self._layout = layout
        self._node = node
        self._identities = identities
        self._advance = advance
        self._sequence = 0
        self._previous = FIRST_PREVIOUS
        self._lengths: dict[str, int] = {}

    def restoring(self, work: Work, pack_id: str | None = None) -> Work:
        """Return the work such that it begins from here each time it is called.

        A transaction may fail as late as at its commit; it is then tried once more. `pack_id`: the
        only pack of which the work reads; None for any.
        """
        counts = msgspec.structs.replace(self.counts)
        sequence, previous = self._sequence, self._previous
        lengths = (
            dict(self._lengths) if pack_id is None else {pack_id: self._lengths.get(pack_id, 0)}
        )

        def run(txn: WriteTransaction) -> None:
            self.counts = msgspec.structs.replace(counts)
            self._sequence, self._previous = sequence, previous
            if pack_id is None:
                self._lengths.clear()
            self._lengths.update(lengths)
            work(txn)

        return run

    def ledger(self, txn: WriteTransaction) -> None:
        """Apply the entries of this node that are new."""
        while True:
            sequence = self._sequence + 1
            entry = self._entry(sequence)
            if entry is None:
                return
            if entry.header.previous != self._previous:
                raise Damaged(
                    "rebuild the index", f"ledger, sequence {sequence}",
                    "it does not follow from the entry before it",
                )  # fmt: skip
            for position, record in enumerate(entry.records):
                apply_record(txn, record, self._node, sequence, position)
            txn.remember(self._node, sequence)
            self._sequence, self._previous = sequence, entry.header_sha256
            self.counts.entries += 1
            self._advance(0)

    def _entry(self, sequence: int) -> Entry | None:
        """Return an entry from its local copy, else from the bucket; None behind the last.

        The last copy on disk may not be in the bucket: its successor, or the state, says that it
        is. A copy that can't be read is fetched.
        """
        confirmed = sequence <= load_state(state_path(self._layout)).confirmed_sequence
        if confirmed or os.path.exists(self._path(sequence + 1)):
            try:
                with open(self._path(sequence), "rb") as file:
                    return open_entry(file.read(), self._identities)
            except FileNotFoundError:
                pass
            except (Damaged, DecryptionFailed, OSError) as error:
                _log.error("ledger_copy_unreadable", sequence=sequence, error=type(error).__name__)
        sealed = self._fetch(sequence)
        return None if sealed is None else open_entry(sealed, self._identities)

    def _path(self, sequence: int) -> str:
        return os.path.join(self._layout.ledger, self._node, entry_name(sequence))

    def packs(self, transact: Callable[[Work], None]) -> None:
        """Apply every pack on disk, a transaction each."""
        for pack_id, path in self._on_disk():
            transact(self.restoring(partial(self.pack, pack_id=pack_id, path=path), pack_id))

    def rest(self, txn: WriteTransaction) -> None:
        """Apply what came since, and what went; no writer is at work."""
        self.ledger(txn)
        here = set()
        for pack_id, path in self._on_disk():
            here.add(pack_id)
            self.pack(txn, pack_id, path)
        for pack_id in self._lengths.keys() - here:
            txn.set_local(pack_id, False)

    def _on_disk(self) -> Iterator[tuple[str, str]]:
        """Yield (pack id, path), in the direction in which packs move, so that none is missed."""
        for writer in self._layout.writers():
            directory = self._layout.writer_directory(writer)
            for pack_id in packs_in(directory):
                yield pack_id, os.path.join(directory, f"{pack_id}.tar")
        for pack_id in packs_in(self._layout.closed):
            yield pack_id, self._layout.closed_path(pack_id)
        for pack_id in packs_in(self._layout.sealed):
            yield pack_id, self._layout.sealed_path(pack_id)

    def pack(self, txn: WriteTransaction, pack_id: str, path: str) -> None:
        """Apply the members of one pack that are new."""
        done = self._lengths.get(pack_id, 0)
        try:
            limit = self._durable(path)
            if limit <= done:
                return
            with PackReader(path) as reader:
                end = self._members(txn, pack_id, reader, done, limit)
        except FileNotFoundError:
            return  # it moved on; it is met again further on
        except (Damaged, OSError) as damage:
            _log.error("pack_unreadable", pack=pack_id, error=type(damage).__name__)
            return
        self.counts.packs += 1 if done == 0 else 0
        self._lengths[pack_id] = max(end, limit if path.startswith(self._layout.sealed) else end)

    def _durable(self, path: str) -> int:
        if os.path.dirname(path) in {self._layout.closed, self._layout.sealed}:
            return os.path.getsize(path)
        return read_durable_length(durable_path(path))

    def _members(
        self, txn: WriteTransaction, pack_id: str, reader: PackReader, done: int, limit: int
    ) -> int:
        instances = []
        end = done
        try:
            for member in reader.members(done, limit):
                try:
                    with reader.dataset(member) as dataset:
                        instances.append(instance_facts(member, dataset))
                except DatasetNotUnderstood as error:
                    _log.error("member_not_understood", pack=pack_id, cause=error.cause)
                end = member.member_end
        except (Damaged, OSError) as damage:
            # What lies in front of a damaged stretch counts.
            _log.error("pack_unreadable", pack=pack_id, error=type(damage).__name__)
        facts = PackFacts(
            pack_id=pack_id, node=txn.node_of(pack_id) or self._node, instances=instances,
            local=True, size=end,
        )  # fmt: skip
        txn.apply_pack(facts, end)
        self.counts.instances += len(instances)
        self._advance(len(instances))
        return end


def rebuild(
    layout: Layout,
    index: Index,
    node: str,
    identities: Sequence[Identity],
    store: ObjectStore | None,
    advance: Callable[[float], None],
    others: FollowedLedgers | None = None,
) -> Counts:
    """Build a new generation and switch to it; return what was read.

    Ledger entries come from their local copies, and from the bucket where the disk has none; with
    the bucket out of reach, or without a store, the log ends where the disk's copies do. `others`:
    the ledgers of the other nodes, None where nobody is followed. `advance` may end the rebuild by
    an error of its own: nothing has changed then.
    Raises Damaged when the ledger does not hold together, Busy while another rebuild runs.
    """
    index.generations.prepare()
    alone = FileLock(os.path.join(layout.index, "rebuild.lock"))
    alone.acquire()
    try:
        return _rebuild(layout, index, node, identities, _fetching(store, node), advance, others)
    finally:
        alone.release()


def _rebuild(
    layout: Layout,
    index: Index,
    node: str,
    identities: Sequence[Identity],
    fetch: Callable[[int], bytes | None],
    advance: Callable[[float], None],
    others: FollowedLedgers | None,
) -> Counts:
    filling = index.new_generation()
    work = _Rebuild(layout, node, identities, fetch, advance)
    try:
        filling.transact(work.restoring(work.ledger))
        # Ledgers before packs: whose a recalled pack is, its ledger says.
        followed = 0 if others is None else others.fill(filling.transact, advance)
        work.packs(filling.transact)
    except BaseException:
        filling.discard()
        raise
    rest = work.restoring(work.rest)

    def catch_up(txn: WriteTransaction) -> None:
        if others is not None:
            others.rest(txn)
        rest(txn)

    index.switch(filling, catch_up)
    work.counts.followed = followed
    return work.counts


def _fetching(store: ObjectStore | None, node: str) -> Callable[[int], bytes | None]:
    def fetch(sequence: int) -> bytes | None:
        if store is None:
            return None
        try:
            version = store.oldest_version(entry_key(node, sequence))
            return None if version is None else store.get(version.key, version.version_id)
        except CloudError as error:
            _log.warning("ledger_only_from_disk", error=type(error).__name__)
            return None

    return fetch
