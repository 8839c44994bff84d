"""A wrapper over any ObjectStore that tells the link how each request went, and keeps its gate.

Owns nothing but the two it was given. Must not: retry, or change what a request means.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import TypeVar

from appliance.foundation.errors import CloudUnavailable
from appliance.remote.link import Link
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
    UploadProgress,
    VersionInfo,
)

T = TypeVar("T")


class ObservedStore:
    """An ObjectStore that tells the link how each request went, and keeps to its gate."""

    def __init__(self, store: ObjectStore, link: Link) -> None:
        self._store = store
        self.link = link

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
        """See ObjectStore."""
        with self.link.request(may_wait=lane is Lane.URGENT):
            return self._store.put(
                key,
                body,
                sha256=sha256,
                create_only=create_only,
                lock=lock,
                lane=lane,
                resume=resume,
                checkpoint=checkpoint,
            )

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        """See ObjectStore."""
        with self.link.request(may_wait=True):
            return self._store.head(key, version_id)

    def get(
        self,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        end: int | None = None,
        lane: Lane = Lane.URGENT,
    ) -> bytes:
        """See ObjectStore."""
        with self.link.request(may_wait=lane is Lane.URGENT):
            return self._store.get(key, version_id, start, end, lane)

    def get_into(
        self,
        buffer: bytearray | memoryview,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        lane: Lane = Lane.URGENT,
    ) -> None:
        """See ObjectStore."""
        with self.link.request(may_wait=lane is Lane.URGENT):
            self._store.get_into(buffer, key, version_id, start, lane)

    def versions(self, prefix: str = "", after_key: str = "") -> Iterator[VersionInfo]:
        """See ObjectStore."""
        # The caller's own time between two pages is no request: only asking is observed.
        return self._each(self._store.versions(prefix, after_key))

    def oldest_version(self, key: str) -> VersionInfo | None:
        """See ObjectStore."""
        with self.link.request(may_wait=True):
            return self._store.oldest_version(key)

    def objects(self, prefix: str = "", after_key: str = "") -> Iterator[ListedObject]:
        """See ObjectStore."""
        return self._each(self._store.objects(prefix, after_key))

    def _each(self, listing: Iterator[T]) -> Iterator[T]:
        with self.link.request(may_wait=False):
            entry = next(listing, None)
        while entry is not None:
            yield entry
            try:
                entry = next(listing, None)
            except CloudUnavailable:
                self.link.failed()
                raise

    def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        """See ObjectStore."""
        with self.link.request(may_wait=False):
            self._store.extend_lock(key, version_id, lock)

    def set_legal_hold(self, key: str, version_id: str, *, on: bool) -> None:
        """See ObjectStore."""
        with self.link.request(may_wait=False):
            self._store.set_legal_hold(key, version_id, on=on)

    def restore(self, key: str, version_id: str, days: int) -> None:
        """See ObjectStore."""
        with self.link.request(may_wait=False):
            self._store.restore(key, version_id, days)

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        """See ObjectStore."""
        with self.link.request(may_wait=False):
            self._store.delete_version(key, version_id, bypass_governance=bypass_governance)

    def server_time(self) -> datetime:
        """See ObjectStore."""
        # Known from an earlier answer as a rule: that speaks for no line of now.
        try:
            return self._store.server_time()
        except CloudUnavailable:
            self.link.failed()
            raise

    def check_bucket(self) -> list[BucketFinding]:
        """See ObjectStore."""
        with self.link.request(may_wait=False):
            return self._store.check_bucket()

    def orphan_uploads(self, older_than_s: float) -> Iterator[OrphanUpload]:
        """See ObjectStore."""
        return self._each(self._store.orphan_uploads(older_than_s))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See ObjectStore."""
        with self.link.request(may_wait=False):
            self._store.abort_upload(key, upload_id)
