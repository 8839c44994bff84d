"""Appending instances to a pack, durable before the sender hears of it.

Owns what an open pack holds. Must not decide when a pack closes, nor rename it: that is its
caller's.

Invariants:
- A member is whole in the file before `append` returns, and on the medium, with the pack's
  directory entry, before a `sync` that began after it returns (D1).
- After a failed write or flush nothing more is written: every later call raises (D2).
- When the disk is full the pack is as it was before the call, and the writer goes on (D3).
- A streamed member's headers are zeros until its last byte is written: unfinished, it is none.
"""

import hashlib
import threading

from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import LimitExceeded
from appliance.foundation.files import FileSystem
from appliance.packs.header import STREAMED_PAX_BYTES, encode_head
from appliance.packs.member import (
    BLOCK_BYTES,
    PACK_MEMBERS_MAX,
    Buffer,
    Member,
    Provenance,
    file_meta_uid,
)
from appliance.packs.pack_file import PackFile

# What has come in of a streamed instance is flushed so often: the last flush, for which the
# sender waits, is short, and the page cache holds a bounded amount that is dirty.
FLUSH_EVERY_BYTES = 64 << 20
_PADDING = [bytes(count) for count in range(BLOCK_BYTES)]


class PackWriter:
    """An open pack of one study. Every method may be called by any thread.

    `_lock` covers everything but the flush itself. Invariants: `durable_size` <= `size`, and the
    bytes of the file below `size` are whole members; at most one thread flushes at a time.
    """

    def __init__(
        self, files: FileSystem, path: str, study_instance_uid: str, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._flushed = threading.Condition(self._lock)
        self._flushing = False
        self._closed = False
        self._file = PackFile(files, path, announced=True)
        self.path = path
        self.pack_id = self._file.pack_id
        self.study_instance_uid = study_instance_uid
        self.size = 0
        self.durable_size = 0
        self.count = 0
        self.opened_monotonic_s = self._clock.monotonic_s()
        self.last_append_monotonic_s = self.opened_monotonic_s

    def append(
        self,
        name: str,
        provenance: Provenance,
        transfer_syntax_uid: str,
        file_meta: bytes,
        dataset: Buffer,
        sha256: bytes,
    ) -> Member:
        """Write one instance behind the others; it is durable only after the next `sync`.

        `sha256` is the dataset's, computed by the caller, who needs it to know duplicates.
        Raises LimitExceeded at 4,096 members, OutOfSpace, StorageFailed.
        """
        view = memoryview(dataset)
        length = view.nbytes
        head = encode_head(
            self.pack_id, name, provenance, transfer_syntax_uid, file_meta, length, sha256
        )
        padding = _PADDING[-(len(head) + length) % BLOCK_BYTES]
        with self._lock:
            self._file.check_usable()
            if self.count >= PACK_MEMBERS_MAX:
                raise LimitExceeded("append to pack", self.pack_id, "it is full")
            start = self.size
            end = start + len(head) + length + len(padding)
            self._file.reserve(start, end)
            self._file.write(start, [head, view, padding], start)
            self.size = end
            self.count += 1
            self.last_append_monotonic_s = self._clock.monotonic_s()
        return Member(
            name,
            start,
            start + len(head) - len(file_meta),
            start + len(head),
            length,
            sha256,
            file_meta_uid(file_meta, 2),
            file_meta_uid(file_meta, 3),
            transfer_syntax_uid,
            provenance,
        )

    def sync(self) -> None:
        """Return when everything appended before the call is on the medium.

        One thread flushes for all that wait; who appended before the flush began is served by it.
        Raises StorageFailed, to every waiting thread.
        """
        with self._lock:
            target = self.size
            while True:
                if self.durable_size >= target:
                    return
                self._file.check_usable()
                if not self._flushing:
                    break
                self._flushed.wait()
            self._flushing = True
            covered = self.size
        try:
            self._file.flush()
        except BaseException:
            with self._lock:
                self._flushing = False
                self._flushed.notify_all()
            raise
        with self._lock:
            self.durable_size = covered
            self._file.publish(covered)
            self._flushing = False
            self._flushed.notify_all()

    def close(self) -> None:
        """Cut the reserved space off, flush, and let go of the pack. Idempotent.

        Raises StorageFailed when that fails or something failed before; the file is let go of all
        the same, and recovery will look at it.
        """
        with self._lock:
            while self._flushing:
                self._flushed.wait()
            if self._closed:
                return
            self._closed = True
            try:
                self._file.check_usable()
                self._file.finish(self.size)
                self.durable_size = self.size
            finally:
                self._file.release()


class StreamedMember:
    """A pack of one instance that is still coming, too large for memory. Owned by one thread.

    Invariant: `length` bytes of the dataset are in the file, and the digest is theirs. No other
    process is told of the pack before it is closed.
    """

    def __init__(self, files: FileSystem, path: str) -> None:
        self._files = files
        self._file = PackFile(files, path, announced=False)
        self._digest = hashlib.sha256()
        self._file_meta = b""
        self._dataset_offset = 0
        self._flushed = 0
        self._finished = False
        self.path = path
        self.pack_id = self._file.pack_id
        self.length = 0

    def begin(self, file_meta: bytes) -> None:
        """Give the file meta group, whose length decides where the dataset begins."""
        self._file_meta = file_meta
        self._dataset_offset = 2 * BLOCK_BYTES + STREAMED_PAX_BYTES + len(file_meta)

    @property
    def size(self) -> int:
        """Return the bytes of the tar that are taken so far."""
        return self._dataset_offset + self.length

    def write(self, piece: Buffer) -> None:
        """Add a piece of the dataset.

        Raises OutOfSpace, StorageFailed; the instance cannot be finished then, `abort` is due.
        """
        self._file.check_usable()
        start = self.size
        view = memoryview(piece)
        self._file.reserve(start, start + view.nbytes)
        self._file.write(start, [view], start)
        self._digest.update(view)
        self.length += view.nbytes
        if self.length - self._flushed >= FLUSH_EVERY_BYTES:
            self._file.flush()
            self._flushed = self.length

    def sha256(self) -> bytes:
        """Return the sha256 of what has come in so far: of the dataset, once it is all in."""
        return self._digest.digest()

    def dataset(self) -> memoryview:
        """Return what has come in so far as a view of the mapped file."""
        return self._file.view(self._dataset_offset, self.length)

    def finish(
        self, name: str, provenance: Provenance, transfer_syntax_uid: str, sop_class_uid: str
    ) -> Member:
        """Write the headers and make the instance durable; the pack is complete and let go of.

        Raises OutOfSpace, StorageFailed; `abort` is due then.
        """
        self._file.check_usable()
        sha256 = self.sha256()
        head = encode_head(
            self.pack_id,
            name,
            provenance,
            transfer_syntax_uid,
            self._file_meta,
            self.length,
            sha256,
            STREAMED_PAX_BYTES,
        )
        padding = _PADDING[-self.size % BLOCK_BYTES]
        end = self.size + len(padding)
        self._file.reserve(self.size, end)
        self._file.write(self.size, [padding], self.size)
        self._file.write(self.size, [head], 0)
        self._file.finish(end)
        self._finished = True
        return Member(
            name,
            0,
            len(head) - len(self._file_meta),
            len(head),
            self.length,
            sha256,
            sop_class_uid,
            file_meta_uid(self._file_meta, 3),
            transfer_syntax_uid,
            provenance,
        )

    def abort(self) -> None:
        """Let go of the file and remove it: nothing of it counts. A finished instance stays."""
        self._file.release()
        if not self._finished:
            self._files.unlink(self.path)
