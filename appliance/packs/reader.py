"""Reading a pack, while it grows, when it is closed, and after it was sealed.

Owns nothing but its own descriptor and map. Must not write.

Invariants:
- A member is given out only when its check holds.
- Headers are read by pread: a file that is cut while being read gives an error, never a SIGBUS.
  Only datasets are mapped, whose extents never change once their member is durable.
"""

import contextlib
import hashlib
import mmap
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from appliance.foundation.errors import Damaged, Unreadable
from appliance.packs.header import decode_head
from appliance.packs.member import HEADERS_NAME, DamagedExtent, Member

READ_CHUNK_BYTES = 1 << 20


class PackReader:
    """A pack opened for reading; usable by any thread.

    Invariant: `_map` begins at byte 0 and is only ever replaced by a longer one. A view that was
    given out keeps the map it came from alive.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Return the file's length in bytes now."""
        return os.fstat(self._fd).st_size

    @property
    def is_current(self) -> bool:
        """Return whether the path still names this file: not evicted, moved on or set aside."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._fd)
        return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)

    def members(self, from_offset: int = 0, limit: int | None = None) -> Iterator[Member]:
        """Give the instances whose member begins at or behind `from_offset`, a header offset.

        Ends at a zero block, at the end of the file, at `headers.gz`, and in front of a member
        that reaches beyond `limit` (the durable length of an open pack). Datasets are not read.
        Raises Damaged where no member begins, UnsupportedFormat for another version.
        """
        for found in self.walk(from_offset, limit):
            if isinstance(found, Member):
                if found.name == HEADERS_NAME:
                    return
                yield found

    def walk(
        self, from_offset: int = 0, limit: int | None = None
    ) -> Iterator[Member | DamagedExtent]:
        """Give all that the tar carries: what `members` gives, damaged stretches, `headers.gz`."""
        offset = from_offset
        while limit is None or offset < limit:
            found = decode_head(self.read_range, offset, self.path)
            if found is None or (limit is not None and found.member_end > limit):
                return
            yield found
            offset = found.member_end

    def member_at(self, header_offset: int) -> Member:
        """Return the member whose pax header begins at an offset; Damaged when none does."""
        found = decode_head(self.read_range, header_offset, self.path)
        if not isinstance(found, Member):
            raise Damaged("read pack member", f"{self.path} at byte {header_offset}", "none there")
        return found

    def read_range(self, offset: int, length: int) -> bytes:
        """Return the bytes at an offset of the tar, fewer at the end of the file."""
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def dataset(self, member: Member) -> memoryview:
        """Return a member's dataset as a view of the mapped file, read from disk when touched.

        A disk error while it is touched is a SIGBUS; `read_dataset` gives an error instead.
        Raises Damaged when the file ends in front of the dataset's end.
        """
        return self.view(member.dataset_offset, member.length)

    def view(self, offset: int, length: int) -> memoryview:
        """Return a range of the tar as a view of the mapped file; Damaged when it is not there."""
        end = offset + length
        if length == 0:
            return memoryview(b"")
        with self._lock:
            size = self.size
            if end > size:
                raise Damaged("read pack", self.path, f"it ends at byte {size}, not {end}")
            if self._map is None or len(self._map) < end:
                self._map = mmap.mmap(self._fd, size, prot=mmap.PROT_READ)
            return memoryview(self._map)[offset:end]

    def read_dataset(self, member: Member) -> bytes:
        """Return a copy of a member's dataset; Damaged when it is cut, Unreadable on EIO."""
        try:
            data = self.read_range(member.dataset_offset, member.length)
        except OSError as cause:
            raise Unreadable("read pack", self.path, str(cause), "Check the disk") from cause
        if len(data) != member.length:
            raise Damaged("read pack", self.path, "it ends inside a dataset")
        return data

    def verify(self, member: Member) -> bool:
        """Return whether the disk still gives exactly the dataset that was stored."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(member.length, READ_CHUNK_BYTES)))
        offset = member.dataset_offset
        try:
            while offset < member.dataset_end:
                part = buffer[: member.dataset_end - offset]
                count = os.preadv(self._fd, [part], offset)
                if count == 0:
                    return False
                digest.update(part[:count])
                offset += count
        except OSError:
            return False
        return digest.digest() == member.sha256

    def close(self) -> None:
        """Let go of the file; views that were given out stay valid."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None
