"""Bringing packs back from the bucket into the cache, and past it.

Owns `packs/recalled/`. A recalled pack becomes a sealed pack again only when every member's sha256
was checked.

Invariants:
- At most one process keeps a pack that comes, under the flock of its part file; others read past
  it.
- A recall that fails leaves nothing behind: no part file, no lock, no descriptor.
- Recalling never waits for room: what can't be kept is served all the same.
- What nobody waits for comes one pack at a time, and is forgotten when the bucket can't be reached.
"""

import contextlib
import copy
import os
import threading
from collections.abc import Mapping, Sequence

from appliance.archive.damage_report import DAMAGED, UNREADABLE, Report
from appliance.archive.fetch import PackFetch
from appliance.archive.layout import Layout
from appliance.archive.quarantine import set_pack_aside
from appliance.archive.space import Space
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import AzekuraError, Busy, Damaged, OutOfSpace, Unreadable
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.packs.reader import PackReader
from appliance.remote.store import ObjectStore

RECALL_POLL_S = 0.05
STOP_POLL_S = 0.5
RECALL_MAX_S = 6 * 3600.0

_log = log.get("recall")


class Recall:
    """A recall that is kept: its fetch, the lock of its part file, and how it ended."""

    def __init__(self, fetch: PackFetch, flock: FileLock) -> None:
        self.fetch = fetch
        self.flock = flock
        self.ended = threading.Event()
        self.error: AzekuraError | None = None


class Recaller:
    """The recalls of one process.

    `_lock` guards `_recalls`, one for each pack that is kept, and `_behind`, the packs that are to
    follow, which one thread, alive while there are any, brings in turn.
    """

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        store: ObjectStore,
        index: Index,
        space: Space,
        report: Report | None = None,
    ) -> None:
        """Take over; `report` is told of copies in the bucket that can't be used."""
        self._report = report
        self._files = files
        self._clock = clock
        self._layout = layout
        self._store = store
        self._index = index
        self._space = space
        self._lock = threading.Lock()
        self._recalls: dict[str, Recall] = {}
        self._behind: dict[str, CloudFacts] = {}
        self._following = False
        self._stopping = threading.Event()

    def begin(
        self, pack_id: str, cloud: CloudFacts, ranges: Sequence[tuple[int, int]]
    ) -> PackFetch:
        """Return the fetch of a pack, begun now or joined; the ranges (offset, length) come first.

        The whole pack follows where it can be kept.
        """
        try:
            return self._keep(pack_id, cloud, ranges).fetch
        except (Busy, OutOfSpace):
            fetch = self._fetch(pack_id, cloud, None)
            fetch.want(ranges)
            return fetch

    def follow(self, packs: Mapping[str, CloudFacts]) -> None:
        """Bring packs behind everything that somebody waits for; return at once."""
        with self._lock:
            self._behind.update(packs)
            begins = bool(self._behind) and not self._following
            self._following = self._following or begins
        if begins:
            threading.Thread(target=self._follow, name="recall-rest", daemon=True).start()

    def _follow(self) -> None:
        while True:
            with self._lock:
                pack_id = next(iter(self._behind), None)
                if pack_id is None:
                    self._following = False
                    return
                cloud = self._behind.pop(pack_id)
            try:
                self.recall(pack_id, cloud)
            except AzekuraError as error:
                with self._lock:
                    if error.retry:
                        self._behind.clear()
            except Exception as error:  # noqa: BLE001 - the boundary of a thread
                _log.error("recall_failed", pack=pack_id, error=log.where(error))

    def _keep(self, pack_id: str, cloud: CloudFacts, ranges: Sequence[tuple[int, int]]) -> Recall:
        """Return the recall that keeps the pack, begun now or joined.

        Busy when another process has it in work, or the one known here has just ended; OutOfSpace.
        """
        with self._lock:
            known = self._recalls.get(pack_id)
            if known is not None:
                if known.fetch.want(ranges):
                    return known
                raise Busy("recall", pack_id, "it has just ended")
            path = os.path.join(self._layout.recalled, f"{pack_id}.part")
            flock = FileLock(f"{path}.lock")
            flock.acquire()
            try:
                recall = self._begin_kept(pack_id, cloud, path, flock)
            except BaseException:
                self._clear(path, flock)
                raise
            self._recalls[pack_id] = recall
            recall.fetch.want(ranges)
            return recall

    def _begin_kept(self, pack_id: str, cloud: CloudFacts, path: str, flock: FileLock) -> Recall:
        # Who filled it before removes the lock file: a lock on that one is none.
        if not flock.is_current:
            raise Busy("recall", pack_id, "it has just ended")
        if not self._space.try_claim(cloud.size):
            raise OutOfSpace("recall", pack_id, "no room for it in the cache")
        return Recall(self._fetch(pack_id, cloud, path), flock)

    def _fetch(self, pack_id: str, cloud: CloudFacts, part_path: str | None) -> PackFetch:
        return PackFetch(
            self._store,
            self._files,
            self._clock,
            pack_id,
            cloud,
            self._layout.recalled,
            part_path,
            self._end,
            self._report,
        )

    def _clear(self, path: str, flock: FileLock) -> None:
        """Remove what our recall left, and let its lock go."""
        if flock.is_current:
            with contextlib.suppress(AzekuraError):
                self._files.unlink(path)
                self._files.unlink(flock.path)
        flock.release()

    def _end(self, fetch: PackFetch, error: AzekuraError | None) -> None:
        """Make a complete pack a sealed pack again, once every member is checked."""
        path = fetch.part_path
        if path is None:
            return
        recall = self._recalls[fetch.pack_id]
        try:
            if error is None:
                fetch.persist()
                check_rest(path, fetch.checked)
                self._make_way(fetch.pack_id)
                self._files.rename(path, self._layout.sealed_path(fetch.pack_id))
                self._index.transact(lambda txn: txn.set_local(fetch.pack_id, True))
        except AzekuraError as cause:
            error = cause.with_traceback(None)
        except OSError as cause:
            error = Damaged("recall", fetch.pack_id, cause.strerror or "", "Check the disk")
        recall.error = error
        self._clear(path, recall.flock)
        with self._lock:
            del self._recalls[fetch.pack_id]
        recall.ended.set()
        if error is None:
            _log.info("pack_recalled", pack=fetch.pack_id, size_bytes=fetch.size)
        else:
            _log.error("recall_failed", pack=fetch.pack_id, error=type(error).__name__)

    def _make_way(self, pack_id: str) -> None:
        """Set a damaged pack aside that the recalled one is to replace."""
        path = self._layout.sealed_path(pack_id)
        try:
            check_pack(path)
        except FileNotFoundError:
            return
        except (Damaged, OSError) as error:
            unreadable = isinstance(error, Unreadable | OSError)
            set_pack_aside(
                self._files, self._clock, self._layout, path,
                why=UNREADABLE if unreadable else DAMAGED, pending=False,
            )  # fmt: skip

    def stop(self) -> None:
        """End the waits of `recall`; what is under way is cleared at the next start."""
        self._stopping.set()

    def recall(self, pack_id: str, cloud: CloudFacts) -> None:
        """Bring a whole pack back and return when it is here; CloudError, Damaged, OutOfSpace.

        One that another process brings is waited for. Busy once `stop` was called.
        """
        end_s = self._clock.monotonic_s() + RECALL_MAX_S
        while not os.path.exists(self._layout.sealed_path(pack_id)):
            if self._clock.monotonic_s() > end_s:
                raise Busy("recall", pack_id, "another process takes too long over it")
            try:
                recall = self._keep(pack_id, cloud, [])
            except Busy:
                if self._clock.wait(self._stopping, RECALL_POLL_S):
                    raise
                continue
            while not recall.ended.wait(STOP_POLL_S):
                if self._stopping.is_set():
                    raise Busy("recall", pack_id, "the node stops")
            if recall.error is not None:
                raise copy.copy(recall.error)
        self._index.transact(lambda txn: txn.set_local(pack_id, True))


def check_rest(path: str, checked: set[int]) -> None:
    """Check the members of a pack whose dataset's offset is not among the checked; Damaged.

    From the end on: who reads the pack meanwhile begins at its front, and neither does the
    other's work.
    """
    with PackReader(path) as reader:
        for member in reversed(list(reader.members())):
            if member.dataset_offset in checked:
                continue
            if not reader.verify(member):
                raise Damaged("check", path, f"the member at {member.header_offset} is damaged")
            checked.add(member.dataset_offset)


def check_pack(path: str, limit: int | None = None) -> None:
    """Raise Damaged unless every member of the pack is what was received.

    `limit`: the durable length of an open pack.
    """
    with PackReader(path) as reader:
        for member in reader.members(limit=limit):
            if not reader.verify(member):
                raise Damaged("check", path, f"the member at {member.header_offset} is damaged")


def clear_abandoned(files: FileSystem, layout: Layout) -> None:
    """Remove the part files, and their locks, that no living process holds."""
    parts = {name.removesuffix(".lock") for name in os.listdir(layout.recalled)}
    for name in sorted(parts):
        path = os.path.join(layout.recalled, name)
        flock = FileLock(f"{path}.lock")
        try:
            flock.acquire()
        except Busy:
            continue
        if flock.is_current:
            files.unlink(path)
            files.unlink(flock.path)
        flock.release()
