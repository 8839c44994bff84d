"""Following the packs: what members they have, into the index. The only one that does.

Runs in a process of its own beside the receiver, so that scanning headers costs the association
loop nothing; holds `index/indexer.lock`.

Invariants:
- Only what is durable is indexed: up to the durable length of an open pack, all of a closed one.
- `indexed` is published only after the commit that holds everything answered up to it.
- What an instance asks of others (a rejection note) is durable before the commit that makes the
  instance known: after a crash in between it is asked again.
- Damage of the index itself ends it: what it follows was said of another index than the next one.
- A file is open only while its pack grows: any number of packs may wait here for the cloud.
"""

import os
import threading

from appliance.archive.damage_report import GONE, Report, reporter
from appliance.archive.facts import instance_facts
from appliance.archive.layout import Layout, packs_in, packs_on_disk
from appliance.archive.progress import Progress, progress_path
from appliance.archive.rejection import note_rejection
from appliance.archive.requests import RequestBox
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import Damaged, DatasetNotUnderstood, IndexDamaged
from appliance.index.facts import InstanceFacts, PackFacts
from appliance.index.index import Index
from appliance.index.writing import WriteTransaction
from appliance.packs.durable import durable_path, read_durable_length
from appliance.packs.reader import PackReader

BATCH_INSTANCES_MAX = 1000
IDLE_S = 0.01
LAZY_S = 0.25
PACKS_MAX = 2**31
MTIME_TICK_NS = 100_000_000
REPORTED_MAX = 1000

_log = log.get("indexer")


class _Followed:
    """A pack being followed: how far it is indexed, and where it lies.

    `unreadable`: the path at which it was found damaged; it is looked at again where it moves to.
    `complete`: it is closed, and indexed to its end.
    """

    __slots__ = ("complete", "length", "reader", "unreadable")

    def __init__(self, length: int) -> None:
        self.length = length
        self.reader: PackReader | None = None
        self.unreadable = ""
        self.complete = False

    def close(self) -> None:
        """Let the file go; it is opened again when there is more to read."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


class Indexer:
    """Scans packs and commits in batches; one thread."""

    def __init__(
        self, clock: Clock, layout: Layout, index: Index, node: str, requests: RequestBox
    ) -> None:
        self._clock = clock
        self._layout = layout
        self._index = index
        self._node = node
        self._requests = requests
        self._progress: dict[str, Progress] = {}
        self._followed: dict[str, _Followed] = {}
        self._sealed: set[str] = set()
        self._sealed_mtime_ns = -1

    def run(self, stop: threading.Event) -> None:
        """Follow until told to stop: at once when somebody waits, lazily else."""
        self.catch_up()
        lazy_since_s = self._clock.monotonic_s()
        while not stop.is_set():
            behind, wanted = self._behind()
            waited_s = self._clock.monotonic_s() - lazy_since_s
            if wanted or (behind and waited_s >= LAZY_S) or waited_s >= 20 * LAZY_S:
                self.run_once()
                lazy_since_s = self._clock.monotonic_s()
            self._clock.wait(stop, IDLE_S)
        self.run_once()

    def catch_up(self) -> None:
        """Index every pack on disk that the index does not know, and tell it which are gone."""
        mark_gone(self._layout, self._index, reporter(self._requests, "index"))
        self.run_once()

    def _behind(self) -> tuple[bool, bool]:
        """Tell whether a writer has answered more than is indexed, and whether somebody waits."""
        behind = wanted = False
        for progress in self._counters().values():
            indexed = progress.indexed
            behind = behind or progress.answered > indexed
            wanted = wanted or progress.wanted > indexed
        return behind, wanted

    def _counters(self) -> dict[str, Progress]:
        for writer in self._layout.writers():
            if writer not in self._progress:
                path = progress_path(self._layout.writer_directory(writer))
                if os.path.exists(path):
                    self._progress[writer] = Progress(path)
        return self._progress

    def run_once(self) -> int:
        """Index everything durable; return how many instances were new."""
        marks = {writer: each.answered for writer, each in self._counters().items()}
        count = 0
        present: set[str] = set()
        for writer in self._layout.writers():
            directory = self._layout.writer_directory(writer)
            for pack_id in packs_in(directory):
                present.add(pack_id)
                path = os.path.join(directory, f"{pack_id}.tar")
                count += self._follow_open(pack_id, path)
        for pack_id in packs_in(self._layout.closed):
            present.add(pack_id)
            count += self._follow_file(pack_id, self._layout.closed_path(pack_id))
        count += self._follow_new_sealed()
        for pack_id in self._followed.keys() - present:
            count += self._finish(pack_id)
        for writer, mark in marks.items():
            self._progress[writer].indexed = mark
        return count

    def _follow_new_sealed(self) -> int:
        """Index what came to `sealed` unseen, having moved on between two looks or during one.

        Looked at after the directories that packs come from, and only when it has changed.
        """
        changed_ns = os.stat(self._layout.sealed).st_mtime_ns
        if changed_ns == self._sealed_mtime_ns:
            return 0
        here = set(packs_in(self._layout.sealed))
        count = 0
        for pack_id in sorted(here - self._sealed):
            count += self._follow_file(pack_id, self._layout.sealed_path(pack_id))
        self._sealed = here
        # A change in the same tick of the file system's clock would not show.
        settled = to_microseconds(self._clock.now()) * 1000 - changed_ns > MTIME_TICK_NS
        self._sealed_mtime_ns = changed_ns if settled else -1
        return count

    def _finish(self, pack_id: str) -> int:
        """Follow a pack to its end that went on to closed or sealed since it was last seen."""
        count = 0
        if not self._followed[pack_id].complete:
            for path in self._layout.candidates(pack_id):
                if os.path.exists(path):
                    count = self._follow_file(pack_id, path)
                    break
        self._followed.pop(pack_id).close()
        return count

    def _follow_open(self, pack_id: str, path: str) -> int:
        try:
            limit = read_durable_length(durable_path(path))
        except FileNotFoundError:
            return 0
        return self._follow(pack_id, path, limit)

    def _follow_file(self, pack_id: str, path: str) -> int:
        followed = self._followed.get(pack_id)
        if followed is not None and followed.complete:
            return 0
        try:
            limit = os.path.getsize(path)
        except FileNotFoundError:
            return 0
        count = self._follow(pack_id, path, limit)
        followed = self._followed[pack_id]
        # Moved on while it was looked at: it is met again where it lies now.
        followed.complete = not followed.unreadable and os.path.exists(path)
        followed.close()
        return count

    def _follow(self, pack_id: str, path: str, limit: int) -> int:
        followed = self._followed.get(pack_id)
        if followed is None:
            with self._index.read() as view:
                row = view.pack(pack_id)
            followed = self._followed[pack_id] = _Followed(row.indexed_length if row else 0)
        if followed.length >= limit or followed.unreadable == path:
            return 0
        try:
            if followed.reader is None:
                followed.reader = PackReader(path)
            count = self._read_members(pack_id, followed, limit)
        except FileNotFoundError:
            return 0
        except IndexDamaged:
            raise  # it is not the pack's
        except (Damaged, OSError) as damage:
            cause = damage.cause if isinstance(damage, Damaged) else damage.strerror
            _log.error("pack_unreadable", pack=pack_id, cause=cause)
            followed.unreadable = path
            followed.close()
            return 0
        followed.unreadable = ""
        return count

    def _read_members(self, pack_id: str, followed: _Followed, limit: int) -> int:
        reader = followed.reader
        assert reader is not None
        batch: list[InstanceFacts] = []
        count = 0
        end = followed.length
        try:
            for member in reader.members(followed.length, limit):
                try:
                    with reader.dataset(member) as dataset:
                        batch.append(instance_facts(member, dataset))
                except DatasetNotUnderstood as error:
                    _log.error("member_not_understood", pack=pack_id, cause=error.cause)
                end = member.member_end
                if len(batch) >= BATCH_INSTANCES_MAX:
                    self._commit(pack_id, batch, end)
                    count += len(batch)
                    batch = []
                    followed.length = end
        finally:
            # What lies in front of a damaged stretch counts too.
            if end > followed.length:
                self._commit(pack_id, batch, end)
                followed.length = end
        return count + len(batch)

    def _commit(self, pack_id: str, batch: list[InstanceFacts], end: int) -> None:
        for instance in batch:
            note_rejection(self._requests, instance)

        def apply(txn: WriteTransaction) -> None:
            # One that was recalled may be another node's: its ledger says whose.
            node = txn.node_of(pack_id) or self._node
            txn.apply_pack(PackFacts(pack_id, node, batch, local=True, size=end, cloud=None), end)

        self._index.transact(apply)


def mark_gone(layout: Layout, index: Index, report: Report | None = None) -> int:
    """Tell the index which packs are no longer on this disk; return how many there were.

    And tell `report`, for them to be repaired: of what is verified no more than REPORTED_MAX. Who
    has lost more than that has another disk, which fills as its readers ask.
    """
    here = set(packs_on_disk(layout))
    with index.read() as view:
        pending = {row.pack_id for row in view.pending(PACKS_MAX) if row.local} - here
        gone = pending | ({row.pack_id for row in view.evictable(PACKS_MAX)} - here)
    # One that was recalled, or received and indexed, since the disk was listed lies in its place.
    gone = {pack_id for pack_id in gone if not _is_there(layout, pack_id)}
    if report is not None:
        for pack_id in sorted(gone & pending) + sorted(gone - pending)[:REPORTED_MAX]:
            report(pack_id, GONE)
    if gone:
        with index.write() as txn:
            for pack_id in gone:
                txn.set_local(pack_id, False)
        _log.warning("packs_gone", count=len(gone))
    return len(gone)


def _is_there(layout: Layout, pack_id: str) -> bool:
    return any(os.path.exists(path) for path in layout.candidates(pack_id))


def mark_found(layout: Layout, index: Index) -> int:
    """Tell the index which sealed packs it takes for evicted; return how many there were.

    A crash between an eviction's commit and its unlink, or a recall's rename and its commit, leaves
    such. The caller sees to it that nothing is evicted meanwhile.
    """
    found = []
    with index.read() as view:
        for pack_id in packs_in(layout.sealed):
            row = view.pack(pack_id)
            if row is not None and not row.local and not row.erased_at_us:
                found.append(pack_id)
    if found:
        with index.write() as txn:
            for pack_id in found:
                txn.set_local(pack_id, True)
        _log.warning("packs_found", count=len(found))
    return len(found)
