"""Following the packs: what members they have, into the index. The only one that does.

Runs in a process of its own beside the receiver, so that scanning headers costs the association
loop nothing; holds `index/indexer.lock`.

Invariants:
- Only what is durable is indexed: up to the durable length of an open pack, all of a closed one.
- `indexed` is published only after the commit that holds everything answered up to it.
"""

import contextlib
import os
import threading

from appliance.archive.facts import instance_facts
from appliance.archive.layout import Layout, packs_in
from appliance.archive.progress import Progress, progress_path
from appliance.archive.rejection import note_rejection
from appliance.archive.requests import RequestBox
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import AzekuraError, Damaged, DatasetNotUnderstood
from appliance.index.facts import InstanceFacts, PackFacts
from appliance.index.index import Index
from appliance.packs.durable import durable_path, read_durable_length
from appliance.packs.reader import PackReader

BATCH_INSTANCES_MAX = 1000
IDLE_S = 0.01
LAZY_S = 0.25
PACKS_MAX = 2**31

_log = log.get("indexer")


class _Followed:
    """A pack being followed: how far it is indexed, and where it lies."""

    __slots__ = ("length", "reader")

    def __init__(self, length: int) -> None:
        self.length = length
        self.reader: PackReader | None = None


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
        """Index every pack on disk that the index does not know, and tell it which are here."""
        here = packs_in(self._layout.sealed)
        for pack_id in here:
            self._follow_file(pack_id, self._layout.sealed_path(pack_id))
            self._followed.pop(pack_id, None)
        self._reconcile(set(here))
        self.run_once()

    def _reconcile(self, here: set[str]) -> None:
        here |= set(packs_in(self._layout.closed))
        for writer in self._layout.writers():
            here |= set(packs_in(self._layout.writer_directory(writer)))
        with self._index.read() as view:
            said = {row.pack_id for row in view.pending(PACKS_MAX) if row.local}
            said |= {row.pack_id for row in view.evictable(PACKS_MAX)}
            wrong = [(pack_id, False) for pack_id in said - here]
            wrong += [(pack_id, True) for pack_id in here - said if view.pack(pack_id)]
        if wrong:
            with self._index.write() as txn:
                for pack_id, local in wrong:
                    txn.set_local(pack_id, local)

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
        for pack_id in self._followed.keys() - present:
            count += self._finish(pack_id)
        for writer, mark in marks.items():
            self._progress[writer].indexed = mark
        return count

    def _finish(self, pack_id: str) -> int:
        """Follow a pack to its end that went on to closed or sealed since it was last seen."""
        count = 0
        for path in self._layout.candidates(pack_id):
            if os.path.exists(path):
                count = self._follow_file(pack_id, path)
                break
        followed = self._followed.pop(pack_id, None)
        if followed is not None and followed.reader is not None:
            followed.reader.close()
        return count

    def _follow_open(self, pack_id: str, path: str) -> int:
        try:
            limit = read_durable_length(durable_path(path))
        except FileNotFoundError:
            return 0
        return self._follow(pack_id, path, limit)

    def _follow_file(self, pack_id: str, path: str) -> int:
        try:
            limit = os.path.getsize(path)
        except FileNotFoundError:
            return 0
        return self._follow(pack_id, path, limit)

    def _follow(self, pack_id: str, path: str, limit: int) -> int:
        followed = self._followed.get(pack_id)
        if followed is None:
            with self._index.read() as view:
                row = view.pack(pack_id)
            followed = self._followed[pack_id] = _Followed(row.indexed_length if row else 0)
        if followed.length >= limit:
            return 0
        try:
            if followed.reader is None:
                followed.reader = PackReader(path)
            return self._read_members(pack_id, followed, limit)
        except FileNotFoundError:
            return 0
        except Damaged as damage:
            _log.error("pack_unreadable", pack=pack_id, cause=damage.cause)
            followed.length = limit
            return 0

    def _read_members(self, pack_id: str, followed: _Followed, limit: int) -> int:
        reader = followed.reader
        assert reader is not None
        batch: list[InstanceFacts] = []
        count = 0
        end = followed.length
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
        if batch or end > followed.length:
            self._commit(pack_id, batch, end)
            followed.length = end
        return count + len(batch)

    def _commit(self, pack_id: str, batch: list[InstanceFacts], end: int) -> None:
        facts = PackFacts(
            pack_id=pack_id, node=self._node, instances=batch, local=True, size=end, cloud=None
        )
        with self._index.write() as txn:
            txn.apply_pack(facts, end)
        for instance in batch:
            with contextlib.suppress(AzekuraError):
                note_rejection(self._requests, instance)
