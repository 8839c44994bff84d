"""An ObjectStore in memory that keeps S3's rules, with faults on demand.

It runs the same contract suite as the real server. Faults are scripted: after
`fail("put", lost_answer())` the next put takes effect and its answer gets lost.
"""

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import (
    ChecksumRejected,
    CloudMisconfigured,
    CloudRefused,
    CloudUnavailable,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
)
from appliance.remote.store import (
    Body,
    BucketFinding,
    Checkpoint,
    Checksum,
    Lane,
    ListedObject,
    Lock,
    ObjectInfo,
    OrphanUpload,
    PutResult,
    UploadProgress,
    VersionInfo,
    read_pieces,
)


@dataclass(frozen=True)
class Fault:
    """`before`: no effect. `after`: it took place. `corrupt`: a byte of a get is flipped."""

    when: Literal["before", "after", "corrupt"]
    error: Exception | None = None


def no_answer() -> Fault:
    """Return the fault of a line that is cut before the request arrived."""
    return Fault("before", CloudUnavailable("fake", "", "no answer"))


def lost_answer() -> Fault:
    """Return the fault of a line that is cut after the request took effect."""
    return Fault("after", CloudUnavailable("fake", "", "the answer was lost"))


def corrupt() -> Fault:
    """Return the fault of a damaged copy: one byte of the next get is another."""
    return Fault("corrupt")


@dataclass
class _Version:
    version_id: str
    content: bytes
    at: datetime
    lock: Lock | None
    is_delete_marker: bool = False
    legal_hold: bool = False
    checksum: Checksum = field(default_factory=lambda: Checksum("", ""))


class FakeStore:
    """See ObjectStore. Everything is guarded by one lock; the clock is the bucket's clock."""

    def __init__(self, clock: Clock | None = None, *, may_delete: bool = True) -> None:
        self._clock = clock or SystemClock()
        self._guard = threading.RLock()
        self._keys: dict[str, list[_Version]] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._next_version = 1
        self.may_delete = may_delete
        self.offline = False
        self.enforces_lock = True
        self.carries_lock = True
        self.knows_legal_hold = True
        self.missing = False
        self.findings: list[BucketFinding] = []
        self.archived: set[str] = set()
        self.restoring: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.orphans: list[OrphanUpload] = []

    # --- staging --------------------------------------------------------------------------

    def fail(self, operation: str, *faults: Fault) -> None:
        """Let the next calls of a method meet these faults, one each."""
        self._faults[operation].extend(faults)

    def put_delete_marker(self, key: str) -> None:
        """Do what a DELETE without a version id does."""
        with self._guard:
            self._add(key, b"", None).is_delete_marker = True

    def seed(self, key: str, content: bytes) -> str:
        """Store a further version at a key, as another writer would."""
        with self._guard:
            return self._add(key, content, None).version_id

    def keys(self) -> list[str]:
        """Return every key that has a version, sorted."""
        with self._guard:
            return sorted(self._keys)

    def content(self, key: str) -> bytes:
        """Return the oldest version's bytes, as they lie there."""
        with self._guard:
            return self._keys[key][0].content

    def damage(self, key: str, at: int = 0) -> None:
        """Flip a bit of every version at a key, for good."""
        with self._guard:
            for version in self._keys[key]:
                content = bytearray(version.content)
                content[at] ^= 1
                version.content = bytes(content)

    def _begin(self, operation: str, key: str) -> Fault | None:
        self.requests.append((operation, key))
        if self.offline:
            raise CloudUnavailable(operation, key, "offline")
        if self.missing:
            raise CloudMisconfigured(operation, key, "404 NoSuchBucket")
        queue = self._faults[operation]
        fault = queue.popleft() if queue else None
        if fault is not None and fault.when == "before" and fault.error is not None:
            raise fault.error
        return fault

    @staticmethod
    def _end(fault: Fault | None) -> None:
        if fault is not None and fault.when == "after" and fault.error is not None:
            raise fault.error

    def _add(self, key: str, content: bytes, lock: Lock | None) -> _Version:
        version = _Version(f"v{self._next_version:08d}", content, self._clock.now(), lock)
        self._next_version += 1
        self._keys.setdefault(key, []).append(version)
        return version

    def _find(self, operation: str, key: str, version_id: str | None) -> _Version:
        versions = self._keys.get(key, [])
        if version_id is None:
            found = versions[-1:]
        else:
            found = [version for version in versions if version.version_id == version_id]
        if not found or found[0].is_delete_marker:
            raise ObjectMissing(operation, key, "404")
        return found[0]

    # --- ObjectStore ----------------------------------------------------------------------

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
        content = b"".join(read_pieces(body))
        with self._guard:
            fault = self._begin("put", key)
            versions = self._keys.get(key, [])
            if create_only and versions and not versions[-1].is_delete_marker:
                raise ObjectExists("put", key, "412")
            if hashlib.sha256(content).digest() != sha256:
                raise ChecksumRejected("put", key, "400 BadDigest")
            if lock is not None and lock.until <= self._clock.now():
                raise CloudMisconfigured("put", key, "400 InvalidRequest: date in the past")
            version = self._add(key, content, lock if self.carries_lock else None)
            version.checksum = Checksum.of_sha256(sha256)
            self._end(fault)
            return PutResult(version.version_id, _etag(content), version.checksum)

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        with self._guard:
            fault = self._begin("head", key)
            version = self._find("head", key, version_id)
            self._end(fault)
            return ObjectInfo(
                key=key,
                version_id=version.version_id,
                size_bytes=len(version.content),
                etag=_etag(version.content),
                checksum=version.checksum,
                lock=version.lock,
                legal_hold=version.legal_hold,
                storage_class="GLACIER" if key in self.archived else "STANDARD",
                last_modified_at=version.at,
            )

    def get(
        self,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        end: int | None = None,
        lane: Lane = Lane.URGENT,
    ) -> bytes:
        if end is not None and end <= start:
            raise ValueError(f"empty range {start}-{end}")
        with self._guard:
            fault = self._begin("get", key)
            content = self._find("get", key, version_id).content
            if key in self.archived:
                raise ObjectArchived("get", key, "403 InvalidObjectState")
            self._end(fault)
        size_bytes = len(content)
        if (end is not None and end > size_bytes) or start > size_bytes:
            raise CloudUnavailable("get", key, "fewer bytes came")
        content = content[start:end]
        if fault is not None and fault.when == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        return content

    def get_into(
        self,
        buffer: bytearray | memoryview,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        lane: Lane = Lane.URGENT,
    ) -> None:
        view = memoryview(buffer).cast("B")
        if not len(view):
            raise ValueError("empty buffer")
        view[:] = self.get(key, version_id, start, start + len(view), lane)

    def versions(self, prefix: str = "", after_key: str = "") -> Iterator[VersionInfo]:
        with self._guard:
            fault = self._begin("versions", prefix)
            found = [
                VersionInfo(
                    key=key,
                    version_id=version.version_id,
                    is_latest=version is versions[-1],
                    is_delete_marker=version.is_delete_marker,
                    last_modified_at=version.at,
                    size_bytes=len(version.content),
                )
                for key, versions in sorted(self._keys.items())
                if key.startswith(prefix) and key > after_key
                for version in reversed(versions)
            ]
            self._end(fault)
        yield from found

    def oldest_version(self, key: str) -> VersionInfo | None:
        found = [
            info for info in self.versions(key) if info.key == key and not info.is_delete_marker
        ]
        return found[-1] if found else None

    def objects(self, prefix: str = "", after_key: str = "") -> Iterator[ListedObject]:
        with self._guard:
            fault = self._begin("objects", prefix)
            latest = [(key, versions[-1]) for key, versions in sorted(self._keys.items())]
            self._end(fault)
        for key, version in latest:
            if key.startswith(prefix) and key > after_key and not version.is_delete_marker:
                content = version.content
                yield ListedObject(key, len(content), _etag(content), version.at)

    def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        with self._guard:
            fault = self._begin("extend_lock", key)
            version = self._find("extend_lock", key, version_id)
            if version.lock is not None and lock.until < version.lock.until:
                raise CloudRefused("extend_lock", key, "403 AccessDenied")
            version.lock = lock
            self._end(fault)

    def set_legal_hold(self, key: str, version_id: str, *, on: bool) -> None:
        with self._guard:
            fault = self._begin("set_legal_hold", key)
            if not self.knows_legal_hold:
                raise CloudMisconfigured("set_legal_hold", key, "501 NotImplemented")
            self._find("set_legal_hold", key, version_id).legal_hold = on
            self._end(fault)

    def restore(self, key: str, version_id: str, days: int) -> None:
        with self._guard:
            fault = self._begin("restore", key)
            self._find("restore", key, version_id)
            self.restoring.add(key)
            self._end(fault)

    def archive(self, key: str) -> None:
        """Do what a lifecycle rule does: the object is there and can't be read."""
        self.archived.add(key)

    def restored(self, key: str) -> None:
        """Finish a restore that was asked for."""
        self.restoring.remove(key)
        self.archived.remove(key)

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        with self._guard:
            fault = self._begin("delete_version", key)
            kept = self._keys.get(key, [])
            for version in list(kept):
                if version.version_id != version_id:
                    continue
                locked = version.lock is not None and version.lock.until > self._clock.now()
                if locked and version.lock.mode == "GOVERNANCE" and bypass_governance:
                    locked = False
                locked = locked or version.legal_hold
                if (locked and self.enforces_lock) or not self.may_delete:
                    raise CloudRefused("delete_version", key, "403 AccessDenied")
                kept.remove(version)
            if not kept:
                self._keys.pop(key, None)
            self._end(fault)

    def server_time(self) -> datetime:
        self._end(self._begin("server_time", ""))
        return self._clock.now()

    def check_bucket(self) -> list[BucketFinding]:
        if self.missing:
            return [BucketFinding("bucket_missing", "404 NoSuchBucket", "")]
        self._end(self._begin("check_bucket", ""))
        return list(self.findings)

    def orphan_uploads(self, older_than_s: float) -> Iterator[OrphanUpload]:
        self._end(self._begin("orphan_uploads", ""))
        before = self._clock.now() - timedelta(seconds=older_than_s)
        yield from [orphan for orphan in self.orphans if orphan.initiated_at < before]

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._end(self._begin("abort_upload", key))
        self.orphans = [orphan for orphan in self.orphans if orphan.upload_id != upload_id]


class DeletersView:
    """The same fake bucket under another credential."""

    def __init__(self, store: FakeStore, *, may_delete: bool) -> None:
        self._store = store
        self._may_delete = may_delete

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        if not self._may_delete:
            raise CloudRefused("delete_version", key, "403 AccessDenied")
        self._store.delete_version(key, version_id, bypass_governance=bypass_governance)


def _etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
