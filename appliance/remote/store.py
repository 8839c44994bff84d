"""The object store as the archive sees it: a narrow protocol and its records.

Owns: the names of what can be asked of a bucket. Must not: know S3, open a socket, decide.

Invariants of every implementation (held by `tests/contract`):
- Keys are relative to the configured prefix; no caller ever sees the prefix.
- A `put` that returns has stored exactly the body: the far side checked our checksum.
- A create-only `put` never makes a second version over a living object: `ObjectExists`. It may
  succeed over a delete marker, so what counts as *the* object is `oldest_version`.
- A `get` returns exactly the bytes asked for or raises; never fewer.
- Errors are those of `appliance.foundation.errors`, CloudError and below, and `Damaged` when the
  local body is not what its sha256 says.
"""

import base64
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

READ_BYTES = 1024 * 1024


class Lane(IntEnum):
    """Who goes first when the line is throttled; the lower value wins."""

    URGENT = 0  # what a waiting reader or a commitment needs
    NEW = 1  # new studies, in the order in which they came
    BACKFILL = 2  # drill, scrub, checkpoints


LockMode = Literal["COMPLIANCE", "GOVERNANCE"]
ChecksumKind = Literal["sha256", "crc32", "sha256-composite", "other", ""]


@dataclass(frozen=True, slots=True)
class Lock:
    """An Object Lock retention: nobody deletes the version before `until` (aware, UTC)."""

    mode: LockMode
    until: datetime


class Checksum(NamedTuple):
    """A checksum stored by the far side: kind, and value in base64 as S3 writes it.

    `sha256` and `crc32` are over the whole object; `sha256-composite` over the parts' digests;
    the kind is "" where the far side stores none.
    """

    kind: ChecksumKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}" if self.kind else ""

    @classmethod
    def parse(cls, text: str) -> "Checksum":
        """Return the checksum that `str` wrote."""
        kind, _, value = text.partition(":")
        return cls(kind, value)  # type: ignore[arg-type]

    @classmethod
    def of_sha256(cls, digest: bytes) -> "Checksum":
        """Return the checksum for a sha256 digest of 32 bytes."""
        return cls("sha256", base64.b64encode(digest).decode())

    @classmethod
    def of_crc32(cls, value: int) -> "Checksum":
        """Return the checksum for a CRC-32 (ISO-HDLC, as zlib computes it)."""
        return cls("crc32", base64.b64encode(value.to_bytes(4, "big")).decode())


@dataclass(frozen=True, slots=True)
class FileBody:
    """Bytes `[start, start + size_bytes)` of a file that nobody changes while it is sent."""

    path: str
    start: int
    size_bytes: int

    @classmethod
    def whole(cls, path: str) -> "FileBody":
        """Return the body that is the whole file at `path`."""
        return cls(path, 0, os.stat(path).st_size)


Body = bytes | FileBody


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """A multipart upload that was begun: enough to go on with it after a restart."""

    upload_id: str
    part_size_bytes: int


Checkpoint = Callable[[UploadProgress | None], None]
"""Called when a multipart upload was begun, and with None once it ended; may persist it."""


@dataclass(frozen=True, slots=True)
class PutResult:
    """What the far side said of the stored version. `version_id` is "" without versioning."""

    version_id: str
    etag: str
    checksum: Checksum


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version as the bucket describes it. `lock` is None where none is set.

    `legal_hold`: false as well where the store, or our right to see it, has no such thing.
    """

    key: str
    version_id: str
    size_bytes: int
    etag: str
    checksum: Checksum
    lock: Lock | None
    last_modified_at: datetime
    storage_class: str = "STANDARD"
    legal_hold: bool = False


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One entry of a version listing; `size_bytes` is 0 for a delete marker."""

    key: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool
    last_modified_at: datetime
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One living object of a listing."""

    key: str
    size_bytes: int
    etag: str
    last_modified_at: datetime


@dataclass(frozen=True, slots=True)
class OrphanUpload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_at: datetime


@dataclass(frozen=True, slots=True)
class BucketFinding:
    """Something about the bucket that stops evicting; `condition` is a constant name."""

    condition: Literal["bucket_missing", "wrong_region", "not_versioned", "no_object_lock"]
    detail: str
    hint: str


class StoreReader(Protocol):
    """The reading part of an ObjectStore. Every method may be called from any thread."""

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        """Return what the bucket stores of a version (None: the latest); ObjectMissing else."""

    def get(
        self,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        end: int | None = None,
        lane: Lane = Lane.URGENT,
    ) -> bytes:
        """Return bytes `[start, end)` of a version; `end` None means to its end.

        Raises CloudUnavailable when fewer came, ObjectMissing, and ValueError for an empty range.
        """

    def get_into(
        self,
        buffer: bytearray | memoryview,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        lane: Lane = Lane.URGENT,
    ) -> None:
        """Fill `buffer` with the bytes from `start` on, without a second copy in memory."""

    def versions(self, prefix: str = "", after_key: str = "") -> Iterator[VersionInfo]:
        """Yield every version and delete marker of keys under `prefix` and past `after_key`.

        Ordered by key, and within a key newest first.
        """

    def oldest_version(self, key: str) -> VersionInfo | None:
        """Return the first version ever stored at `key`, delete markers apart; None if none."""


class ObjectStore(StoreReader, Protocol):
    """One bucket under one prefix. Every method may be called from any thread."""

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
        """Store the body, whose sha256 (32 bytes) the caller knows; return its version.

        Large bodies go in parts. `resume` goes on with a begun upload of the same body;
        `checkpoint` hears of a begun one. Raises ObjectExists when `create_only` finds the key
        taken, ChecksumRejected when the bytes changed on the way, and CloudError.
        """

    def objects(self, prefix: str = "", after_key: str = "") -> Iterator[ListedObject]:
        """Yield the living objects under `prefix` whose key is past `after_key`, by key."""

    def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        """Set a version's retention to a later date; CloudRefused when that would shorten it."""

    def set_legal_hold(self, key: str, version_id: str, *, on: bool) -> None:
        """Let nobody delete a version while the hold is on, whatever its retention.

        CloudMisconfigured where the store knows no legal hold.
        """

    def restore(self, key: str, version_id: str, days: int) -> None:
        """Ask an archived version back for some days; again, or of one that reads, does no harm.

        It takes hours; until then `get` raises ObjectArchived. CloudRefused without the right to.
        """

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        """Delete one version for ever; CloudRefused while it is locked or held."""

    def server_time(self) -> datetime:
        """Return the bucket's own clock, aware, UTC, to about a second."""

    def check_bucket(self) -> list[BucketFinding]:
        """Return what is wrong with the bucket: nothing for one that is there and locks."""

    def orphan_uploads(self, older_than_s: float) -> Iterator[OrphanUpload]:
        """Yield uploads in parts under our prefix that were begun longer ago than that."""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop the parts of an upload; no error when it is gone already."""


def read_pieces(body: Body) -> Iterator[bytes]:
    """Yield the body in pieces of at most 1 MiB."""
    if isinstance(body, bytes):
        for start in range(0, len(body), READ_BYTES):
            yield body[start : start + READ_BYTES]
        return
    left = body.size_bytes
    with open(body.path, "rb", buffering=0) as file:
        file.seek(body.start)
        while left:
            piece = file.read(min(READ_BYTES, left))
            if not piece:
                return
            left -= len(piece)
            yield piece


def body_size_bytes(body: Body) -> int:
    """Return how many bytes a body has."""
    return len(body) if isinstance(body, bytes) else body.size_bytes


def holds_body(info: ObjectInfo, body: Body) -> bool:
    """Tell whether the stored version is this body, by size and full-object checksum.

    Settles a lost answer without a download. False also when the far side stores no checksum over
    the whole object: then only reading it back can tell.
    """
    if info.size_bytes != body_size_bytes(body):
        return False
    if info.checksum.kind == "sha256":
        digest = hashlib.sha256()
        for piece in read_pieces(body):
            digest.update(piece)
        return Checksum.of_sha256(digest.digest()) == info.checksum
    if info.checksum.kind == "crc32":
        crc = 0
        for piece in read_pieces(body):
            crc = zlib.crc32(piece, crc)
        return Checksum.of_crc32(crc) == info.checksum
    return False
