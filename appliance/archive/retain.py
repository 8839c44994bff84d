"""Locks that follow a study's life: when it gets new instances, its older packs are kept as long.

Owns what is extended at the moment, nothing more: what is due follows from the index, so that a
crash loses nothing. It never shortens a lock, and decides nothing about erasing.

Invariants:
- A pack's lock is moved to the latest of its study when that moves it by MOVED_BY_LEAST or more.
- Bucket first: the pack's version, then the ledger entry and the checkpoints that name it, each
  read back; then the `retention` record goes into the ledger, and from there into the index.
- Any node that writes may extend any pack that it knows. Two that do so at once set the same date.
Used by one thread; `_under_way` is guarded by `_lock`, because the ledger's thread takes from it.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.checkpoint_name import CheckpointName
from appliance.archive.ledger_entry import entry_key
from appliance.archive.problem import Problem
from appliance.archive.records import Record, Retained
from appliance.foundation import log
from appliance.foundation.clock import Clock, from_microseconds, isoformat, to_microseconds
from appliance.foundation.errors import (
    AzekuraError,
    CloudMisconfigured,
    CloudUnavailable,
    StorageFailed,
)
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.index.keeping import packs_of, studies_from
from appliance.index.records import PackRow
from appliance.remote.reading import oldest_versions
from appliance.remote.store import Lock, ObjectStore

MOVED_BY_LEAST = timedelta(days=30)
AHEAD_MAX = timedelta(days=366 * 100)
"""Further ahead of the bucket's clock no lock is moved: under compliance nobody could undo it."""
STUDIES_PER_TURN_MAX = 1000
EXTENSIONS_PER_TURN_MAX = 32
FAILED_RETRY_S = 600.0
CONDITION = "retention"
REASON = "the study went on"
_DAY_US = 86_400_000_000

_log = log.get("retain")

AddRecord = Callable[[Record, Callable[[], None] | None], None]


def due(rows: Sequence[PackRow]) -> list[tuple[PackRow, int]]:
    """Return which of a study's packs are to be locked until when, in microseconds.

    A pack without a lock is not given one: it was stored while locks were off.
    """
    latest_us = max((row.cloud.locked_until_us for row in rows if row.cloud is not None), default=0)
    least_us = latest_us - MOVED_BY_LEAST.days * _DAY_US
    return [
        (row, latest_us)
        for row in rows
        if row.cloud is not None and 0 < row.cloud.locked_until_us <= least_us
    ]


class Retainer:
    """Looks at some studies each turn, round and round, and extends what is due."""

    def __init__(
        self,
        clock: Clock,
        index: Index,
        store: ObjectStore,
        add_record: AddRecord,
        bucket: BucketWatch | None = None,
    ) -> None:
        """`bucket`: what is known of it; without one it is taken for fit."""
        self._clock = clock
        self._index = index
        self._store = store
        self._add_record = add_record
        self._bucket = bucket
        self._after = ""
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._failed: dict[str, tuple[float, Problem]] = {}

    def problems(self) -> list[Problem]:
        """Return what could not be extended when last tried."""
        with self._lock:
            return [problem for _, problem in self._failed.values()][:1]

    def run_once(self) -> int:
        """Extend what is due among the next studies; return how many packs were."""
        if self._bucket is not None and not self._bucket.may_send:
            return 0
        turn = _Turn(self._store)
        count = 0
        for row, until_us in self._find_due():
            try:
                self._extend(turn, row, until_us)
            except (StorageFailed, CloudUnavailable):
                raise
            except AzekuraError as error:
                self._note_failure(row.pack_id, error)
            else:
                count += 1
                with self._lock:
                    self._failed.pop(row.pack_id, None)
        return count

    def _find_due(self) -> list[tuple[PackRow, int]]:
        """Return what is due in the next studies, and remember where to go on."""
        found: list[tuple[PackRow, int]] = []
        seen = 0
        with self._index.read() as view:
            for study, pack_count in studies_from(view, self._after, STUDIES_PER_TURN_MAX):
                seen += 1
                if pack_count > 1:
                    found += [each for each in due(packs_of(view, study)) if self._may_try(each[0])]
                if len(found) > EXTENSIONS_PER_TURN_MAX:
                    return found[:EXTENSIONS_PER_TURN_MAX]  # this study is looked at again
                self._after = study
        if seen < STUDIES_PER_TURN_MAX:
            self._after = ""
        return found

    def _may_try(self, row: PackRow) -> bool:
        with self._lock:
            if row.pack_id in self._under_way:
                return False
            failed = self._failed.get(row.pack_id)
        return failed is None or self._clock.monotonic_s() - failed[0] >= FAILED_RETRY_S

    def _note_failure(self, pack_id: str, error: AzekuraError) -> None:
        _log.warning("lock_not_extended", pack=pack_id, error=type(error).__name__)
        problem = Problem(CONDITION, str(error), error.hint)
        with self._lock:
            self._failed[pack_id] = (self._clock.monotonic_s(), problem)

    def _extend(self, turn: "_Turn", row: PackRow, until_us: int) -> None:
        cloud = row.cloud
        assert cloud is not None
        until = from_microseconds(until_us)
        if until > self._store.server_time() + AHEAD_MAX:
            raise CloudMisconfigured(
                "extend a lock", f"pack {row.pack_id}", f"{isoformat(until)} is absurdly late",
                "Look at who wrote the newest pack of its study",
            )  # fmt: skip
        lock = turn.extend(cloud, until_us)
        record = Retained(
            pack_id=row.pack_id,
            lock_mode=lock.mode,
            locked_until_us=to_microseconds(lock.until),
            reason=REASON,
            at=isoformat(self._clock.now()),
        )
        with self._lock:
            self._under_way.add(row.pack_id)
        self._add_record(record, lambda: self._written(row.pack_id))
        _log.info("lock_extended", pack=row.pack_id, until=isoformat(lock.until))

    def _written(self, pack_id: str) -> None:
        with self._lock:
            self._under_way.discard(pack_id)


class _Turn:
    """What one turn has asked of the bucket already: an entry names many packs."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._entries: dict[tuple[str, int], int] = {}
        self._checkpoints: list[tuple[CheckpointName, str]] | None = None

    def extend(self, cloud: CloudFacts, until_us: int) -> Lock:
        """Move the locks of a pack and of all that names it; return the pack's, read back."""
        lock = self._at_least(cloud.key, cloud.version_id, cloud.lock_mode, until_us)
        named_by = (cloud.node, cloud.sequence)
        if self._entries.get(named_by, 0) < until_us:
            key = entry_key(*named_by)
            entry = self._store.oldest_version(key)
            if entry is not None:  # a missing entry is a finding of whoever follows that ledger
                self._at_least(key, entry.version_id, cloud.lock_mode, until_us)
            for name, version_id in self._listed():
                span = name.range
                if name.node == cloud.node and span.first <= cloud.sequence <= span.last:
                    self._at_least(name.key, version_id, cloud.lock_mode, until_us)
            self._entries[named_by] = until_us
        return lock

    def _at_least(self, key: str, version_id: str, mode: str, until_us: int) -> Lock:
        """Return a version's lock once it ends then or later, read back."""
        lock = self._store.head(key, version_id).lock
        if lock is not None and to_microseconds(lock.until) >= until_us:
            return lock
        kept = lock.mode if lock is not None else "GOVERNANCE"
        wanted = Lock(
            "COMPLIANCE" if "COMPLIANCE" in (mode, kept) else "GOVERNANCE",
            from_microseconds(until_us),
        )
        self._store.extend_lock(key, version_id, wanted)
        lock = self._store.head(key, version_id).lock
        if lock is None or to_microseconds(lock.until) < until_us:
            raise CloudMisconfigured(
                "extend a lock", key, "the bucket took it and shows no later lock",
                "Look at the bucket's Object Lock; azekura doctor",
            )  # fmt: skip
        return lock

    def _listed(self) -> list[tuple[CheckpointName, str]]:
        """Return name and version of every node's checkpoints."""
        if self._checkpoints is None:
            self._checkpoints = [
                (name, version.version_id)
                for version in oldest_versions(self._store, "checkpoints/")
                if (name := CheckpointName.parse(version.key)) is not None
            ]
        return self._checkpoints
