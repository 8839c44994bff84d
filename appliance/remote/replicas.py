"""Reading from replicas of the bucket what the primary can't give now.

Owns: whom a read is asked of, and in which order. Must not: write to a replica, decide what a
finding about the primary means, or be used where the *primary* has to prove something (eviction,
read-back, commitment): whoever does that is given the primary's store.

Invariants:
- Every request that changes or describes the bucket goes to the primary, and to it alone.
- A reader waits for a silent primary `PATIENCE_S`, once: from then on, and while the line to it is
  known to be down, replicas are asked at once, and one request at a time goes on trying the
  primary. The first that it answers ends that.
- Bytes of an answer that came too late never reach the caller's buffer.
- When nobody can give it, the primary's error is told.

Version ids: replication within a provider keeps them; a copy at another provider has its own. A
replica is asked for the version, then for the oldest one of the key. What comes is believed by
nobody: packs and ledger entries are authenticated by age and by sha256.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import TypeVar

from appliance.foundation.errors import CloudError, CloudUnavailable, ObjectMissing
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.remote.store import (
    Body,
    BucketFinding,
    Checkpoint,
    Lane,
    ListedObject,
    Lock,
    ObjectInfo,
    ObjectStore,
    OrphanUpload,
    PutResult,
    StoreReader,
    UploadProgress,
    VersionInfo,
)

PATIENCE_S = 4.0
VERSIONS_KNOWN_MAX = 10_000

T = TypeVar("T")


class Replica:
    """One read-only copy of the bucket. `_lock` guards the version ids that were found out."""

    def __init__(self, name: str, store: ObservedStore) -> None:
        """`name`: how people are told of it: bucket and place."""
        self.name = name
        self._store = store
        self._lock = threading.Lock()
        self._versions: OrderedDict[tuple[str, str], str | None] = OrderedDict()

    @property
    def link(self) -> Link:
        """The state of the line to it."""
        return self._store.link

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        """See ObjectStore."""
        return self._of_version(key, version_id, lambda own: self._store.head(key, own))

    def get(
        self,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        end: int | None = None,
        lane: Lane = Lane.URGENT,
    ) -> bytes:
        """See ObjectStore."""
        return self._of_version(
            key, version_id, lambda own: self._store.get(key, own, start, end, lane)
        )

    def get_into(
        self,
        buffer: bytearray | memoryview,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        lane: Lane = Lane.URGENT,
    ) -> None:
        """See ObjectStore."""
        self._of_version(
            key, version_id, lambda own: self._store.get_into(buffer, key, own, start, lane)
        )

    def versions(self, prefix: str = "", after_key: str = "") -> Iterator[VersionInfo]:
        """See ObjectStore; with the replica's own version ids."""
        return self._store.versions(prefix, after_key)

    def oldest_version(self, key: str) -> VersionInfo | None:
        """See ObjectStore; with the replica's own version id."""
        return self._store.oldest_version(key)

    def _of_version(self, key: str, version_id: str | None, ask: Callable[[str | None], T]) -> T:
        if not version_id:
            return ask(version_id)
        name = (key, version_id)
        with self._lock:
            if name in self._versions:
                self._versions.move_to_end(name)
                own, known = self._versions[name], True
            else:
                own, known = version_id, False
        try:
            return ask(own)
        except CloudUnavailable:
            raise
        except CloudError:
            # Missing, or refused as no version id of this store's.
            if known:
                raise
            own = self._oldest(key)
            found = ask(own)
        with self._lock:
            self._versions[name] = own
            if len(self._versions) > VERSIONS_KNOWN_MAX:
                self._versions.popitem(last=False)
        return found

    def _oldest(self, key: str) -> str | None:
        """Return the id of the key's oldest version; None, the latest, where none are listed."""
        try:
            oldest = self._store.oldest_version(key)
        except CloudUnavailable:
            raise
        except CloudError:
            return None
        if oldest is None:
            raise ObjectMissing("read a replica", key, f"{self.name} does not have it")
        return oldest.version_id or None


class _Copy:
    """One of the copies that are asked, the primary first, and whether it answers.

    Invariants: `_silent` is set from a wait that was given up to the next answer; `_probing` while
    a request is on its way to a copy that is out.
    """

    def __init__(self, reader: StoreReader, link: Link) -> None:
        self._reader = reader
        self._link = link
        self._lock = threading.Lock()
        self._silent = False
        self._probing = False

    @property
    def is_out(self) -> bool:
        """Whether nobody should wait for it."""
        return self._silent or self._link.state == "down"

    def patience_s(self, most_s: float) -> float:
        """Return how long to wait for its answer before another is asked."""
        return 0.0 if self.is_out else most_s

    def begin(self, ask: Callable[[StoreReader], T]) -> "Future[T]":
        """Begin a request on a thread of its own.

        CloudUnavailable when it is out, and another request tries it already.
        """
        out = self.is_out
        with self._lock:
            if out and self._probing:
                raise CloudUnavailable(
                    "reach the bucket", "", "the line is down", "Check the WAN line"
                )
            self._probing = self._probing or out
        future: Future[T] = Future()
        threading.Thread(
            target=self._run, args=(ask, future, out), name="bucket-read", daemon=True
        ).start()
        return future

    def _run(self, ask: Callable[[StoreReader], T], future: "Future[T]", probes: bool) -> None:
        try:
            found = ask(self._reader)
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            self._ended(probes, answered=not isinstance(error, CloudUnavailable))
            future.set_exception(error)
        else:
            self._ended(probes, answered=True)
            future.set_result(found)

    def _ended(self, probes: bool, *, answered: bool) -> None:
        with self._lock:
            self._probing = self._probing and not probes
            self._silent = self._silent and not answered

    def fell_silent(self) -> None:
        """Note that somebody has waited for it long enough."""
        with self._lock:
            self._silent = True


class ReplicatedStore:
    """An ObjectStore that reads from replicas what the primary does not give.

    Safe from many threads. `replicas`: in the order in which they are asked.
    """

    def __init__(
        self,
        primary: ObservedStore,
        replicas: Sequence[Replica],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.replicas = tuple(replicas)
        self._primary = primary
        self._patience_s = patience_s
        self._first = _Copy(primary, primary.link)
        self._others = [_Copy(each, each.link) for each in replicas]

    # --- reading

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        """See ObjectStore."""
        return self._read(lambda reader: reader.head(key, version_id))

    def get(
        self,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        end: int | None = None,
        lane: Lane = Lane.URGENT,
    ) -> bytes:
        """See ObjectStore."""
        return self._read(lambda reader: reader.get(key, version_id, start, end, lane))

    def get_into(
        self,
        buffer: bytearray | memoryview,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        lane: Lane = Lane.URGENT,
    ) -> None:
        """See ObjectStore. Costs a copy: an answer may come when nobody waits for it any more."""
        view = memoryview(buffer).cast("B")

        def ask(reader: StoreReader) -> bytearray:
            own = bytearray(len(view))
            reader.get_into(own, key, version_id, start, lane)
            return own

        view[:] = self._read(ask)

    def versions(self, prefix: str = "", after_key: str = "") -> Iterator[VersionInfo]:
        """See ObjectStore. From a replica only when the primary can't be reached at its begin."""

        def ask(reader: StoreReader) -> tuple[VersionInfo | None, Iterator[VersionInfo]]:
            listing = reader.versions(prefix, after_key)
            return next(listing, None), listing

        first, rest = self._read(ask, only_unreachable=True)
        if first is not None:
            yield first
            yield from rest

    def oldest_version(self, key: str) -> VersionInfo | None:
        """See ObjectStore. From a replica only when the primary can't be reached."""
        return self._read(lambda reader: reader.oldest_version(key), only_unreachable=True)

    def _read(self, ask: Callable[[StoreReader], T], *, only_unreachable: bool = False) -> T:
        """Return the first answer: the primary's unless it is out, refuses or is too slow."""
        told: CloudError | None = None
        hanging: list[Future[T]] = []
        for copy in (self._first, *sorted(self._others, key=lambda each: each.is_out)):
            patience_s = copy.patience_s(self._patience_s)
            try:
                begun = copy.begin(ask)
                try:
                    return begun.result(patience_s)
                except TimeoutError:
                    copy.fell_silent()
                    hanging.append(begun)
            except CloudError as error:
                if only_unreachable and not isinstance(error, CloudUnavailable):
                    raise
                told = told or error
        for each in hanging:
            try:
                return each.result()
            except CloudError as error:
                told = told or error
        assert told is not None  # somebody was asked, or could not be
        raise told

    # --- what concerns the primary alone

    def put(
        self,
        key: str,
        body: Body,
        *,
        sha256: bytes,
        create_only: bool = True,
        lock: Lock | None = None,
        lane: Lane = Lane.NEW,
        resume: UploadProgress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> PutResult:
        """See ObjectStore; the primary."""
        return self._primary.put(
            key,
            body,
            sha256=sha256,
            create_only=create_only,
            lock=lock,
            lane=lane,
            resume=resume,
            checkpoint=checkpoint,
        )

    def objects(self, prefix: str = "", after_key: str = "") -> Iterator[ListedObject]:
        """See ObjectStore; the primary."""
        return self._primary.objects(prefix, after_key)

    def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        """See ObjectStore; the primary."""
        self._primary.extend_lock(key, version_id, lock)

    def set_legal_hold(self, key: str, version_id: str, *, on: bool) -> None:
        """See ObjectStore; the primary."""
        self._primary.set_legal_hold(key, version_id, on=on)

    def restore(self, key: str, version_id: str, days: int) -> None:
        """See ObjectStore; the primary."""
        self._primary.restore(key, version_id, days)

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        """See ObjectStore; the primary."""
        self._primary.delete_version(key, version_id, bypass_governance=bypass_governance)

    def server_time(self) -> datetime:
        """See ObjectStore; the primary."""
        return self._primary.server_time()

    def check_bucket(self) -> list[BucketFinding]:
        """See ObjectStore; the primary."""
        return self._primary.check_bucket()

    def orphan_uploads(self, older_than_s: float) -> Iterator[OrphanUpload]:
        """See ObjectStore; the primary."""
        return self._primary.orphan_uploads(older_than_s)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See ObjectStore; the primary."""
        self._primary.abort_upload(key, upload_id)


def copies_of(store: ObjectStore) -> Sequence[StoreReader]:
    """Return whom to ask in turn when what came was not authentic: the store, then each replica."""
    return (store, *store.replicas) if isinstance(store, ReplicatedStore) else (store,)
