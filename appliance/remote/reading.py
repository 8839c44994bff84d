"""Reading what a bucket holds: an object as a file, and of each key the version that counts.

Owns no state beyond a file's position. Must not write.
"""

import io
import os
from collections.abc import Iterator

from appliance.remote.store import Lane, ObjectStore, VersionInfo

READ_BYTES = 8 * 2**20


class ObjectReader(io.RawIOBase):
    """A version in the bucket as a seekable file, read in ranges of 8 MiB."""

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        version_id: str,
        size_bytes: int,
        lane: Lane = Lane.URGENT,
    ) -> None:
        super().__init__()
        self._lane = lane
        self._store = store
        self._key = key
        self._version_id = version_id
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be sought in."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, counted as lseek(2) does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer from the bucket; CloudError when it can't."""
        end = min(self._position + len(buffer), self._size_bytes)
        if end <= self._position:
            return 0
        part = self._store.get(self._key, self._version_id, self._position, end, self._lane)
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def oldest_versions(store: ObjectStore, prefix: str) -> Iterator[VersionInfo]:
    """Yield the oldest version of every key, delete markers apart, by key."""
    last = None
    for version in store.versions(prefix):
        if version.is_delete_marker:
            continue
        if last is not None and last.key != version.key:
            yield last
        last = version
    if last is not None:
        yield last
