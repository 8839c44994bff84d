"""An encrypted file on its way to the bucket: what is noted beside it, and what must come back.

Owns no file and decides nothing; packs and checkpoints go the same way.
"""

import hashlib
import os
import zlib
from datetime import datetime, timedelta

import msgspec

from appliance.foundation.files import FileSystem
from appliance.remote.store import (
    Checksum,
    Lane,
    Lock,
    LockMode,
    ObjectInfo,
    ObjectStore,
    UploadProgress,
    VersionInfo,
)

FETCH_BYTES = 8 * 2**20
LOCK_REFRESHED_AFTER = timedelta(hours=1)
_BLOCK_BYTES = 1024 * 1024


class Spooled(msgspec.Struct, kw_only=True):
    """A spool file's checksums, the lock it is to get, and how far its upload has come."""

    sha256: bytes
    crc32: int
    size_bytes: int
    lock_mode: LockMode | None = None
    locked_until: datetime | None = None
    progress: UploadProgress | None = None

    @property
    def lock(self) -> Lock | None:
        """The lock that the object is to have."""
        if self.lock_mode is None or self.locked_until is None:
            return None
        return Lock(self.lock_mode, self.locked_until)

    def set_lock(self, lock: Lock | None) -> None:
        """Take a lock for the one that the object is to have."""
        self.lock_mode = lock.mode if lock else None
        self.locked_until = lock.until if lock else None

    def may_take(self, fresh: Lock | None) -> bool:
        """Tell whether a lock that begins now should replace ours, which waited long.

        Never once a part was sent: an upload's lock is told when it begins.
        """
        if fresh is None or self.locked_until is None or self.progress is not None:
            return False
        return fresh.until - self.locked_until >= LOCK_REFRESHED_AFTER

    def matches(self, info: ObjectInfo) -> bool:
        """Tell whether the bucket stores these bytes, by size and a checksum over all of them."""
        expected = (Checksum.of_sha256(self.sha256), Checksum.of_crc32(self.crc32))
        return info.size_bytes == self.size_bytes and info.checksum in expected


def read_back_problem(info: ObjectInfo, note: Spooled) -> str:
    """Return what the bucket's answer lacks, empty when the object is as it was sent."""
    if info.size_bytes != note.size_bytes:
        return f"{info.size_bytes} bytes instead of {note.size_bytes}"
    if not note.matches(info):
        return f"its checksum {info.checksum} is not ours"
    if note.lock is not None:
        if info.lock is None or info.lock.mode != note.lock.mode:
            return "no lock, although one was asked"
        if info.lock.until < note.lock.until:
            return "a lock that ends too early"
    return ""


def checksums(path: str) -> tuple[bytes, int, int]:
    """Return sha256, CRC-32 and size of a file as the disk has it."""
    digest, crc, size_bytes = hashlib.sha256(), 0, 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_BLOCK_BYTES):
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            size_bytes += len(piece)
    return digest.digest(), crc, size_bytes


def fetch_version(
    files: FileSystem,
    store: ObjectStore,
    version: ObjectInfo | VersionInfo,
    path: str,
    lane: Lane = Lane.URGENT,
) -> None:
    """Write a version into a file by ranged GETs; durable when this returns; CloudError."""
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for start in range(0, version.size_bytes, FETCH_BYTES):
            end = min(start + FETCH_BYTES, version.size_bytes)
            part = store.get(version.key, version.version_id, start, end, lane)
            files.pwritev(fd, [part], start)
        files.fdatasync(fd)
    finally:
        files.close(fd)
