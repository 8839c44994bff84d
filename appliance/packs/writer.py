"""Appending instances to an open pack, durable by group commit.

Owns the file descriptor of a pack while it is open. Must not decide when a pack closes, nor
rename or unlink it: that is its caller's.

Invariants:
- A member is whole in the file before `append` returns, and on the medium, with the pack's
  directory entry, before a `sync` that began after it returns (D1).
- After a failed write or flush nothing more is written: every later call raises (D2).
- When the disk is full the pack is as it was before the call, and the writer goes on (D3).
"""

import os
import threading
from typing import NoReturn

from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import LimitExceeded, OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.packs.durable import DurableLength, durable_path
from appliance.packs.header import encode_head, pack_id_of
from appliance.packs.member import (
    BLOCK_BYTES,
    PACK_MEMBERS_MAX,
    Buffer,
    Member,
    Provenance,
    file_meta_uid,
    round_up,
)

# Growing the file costs a journal commit in the fdatasync that follows: 525 kB written and
# flushed took 1.19 ms so, and 0.50 ms into space that was there already.
STEP_FIRST_BYTES = 1 << 20
STEP_MAX_BYTES = 16 << 20
_PADDING = [bytes(count) for count in range(BLOCK_BYTES)]


class PackFile:
    """The file of a pack being written: space, flushes, and the durable length.

    Invariant: `_failed` is set before the error of a failed write or flush reaches anybody.
    Owned by one writer object, whose lock covers every method but `flush`.
    """

    def __init__(self, files: FileSystem, path: str) -> None:
        self.path = path
        self.pack_id = pack_id_of(path)
        self._files = files
        self._fd = files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        self._reserved = 0
        self._step = STEP_FIRST_BYTES
        self._entry_durable = False
        self._failed: StorageFailed | None = None
        self._durable = DurableLength(files, durable_path(path))

    def check_usable(self) -> None:
        """Raise StorageFailed once a write or flush has failed, ValueError once closed."""
        if self._failed is not None:
            failed = self._failed
            raise StorageFailed(failed.operation, self.path, failed.cause, failed.hint)
        if self._fd < 0:
            raise ValueError(f"pack {self.pack_id} is closed")

    def reserve(self, size: int, end: int) -> None:
        """Have disk space up to `end`; OutOfSpace leaves the file as it was, `size` bytes of it."""
        if end <= self._reserved:
            return
        start = max(size, self._reserved)
        for target in (max(end, start + self._step), round_up(end)):
            try:
                self._files.preallocate(self._fd, start, target - start)
            except OutOfSpace:
                # What a failed reservation took is given back before a smaller one is tried.
                self._truncate(start)
            except StorageFailed as cause:
                self.poison(cause)
            else:
                self._reserved = target
                self._step = min(self._step * 4, STEP_MAX_BYTES)
                return
        # The write may fit all the same, where blocks were counted but not yet taken: it decides.

    def write(self, size: int, buffers: list[bytes | bytearray | memoryview], offset: int) -> None:
        """Write at `offset`; on OutOfSpace the file is cut back to `size` bytes."""
        try:
            self._files.pwritev(self._fd, buffers, offset)
        except OutOfSpace:
            self._truncate(size)
            self._reserved = size
            raise
        except StorageFailed as cause:
            self.poison(cause)

    def flush(self) -> None:
        """Put data, size and directory entry on the medium; StorageFailed poisons the pack."""
        try:
            self._files.fdatasync(self._fd)
            if not self._entry_durable:
                self._files.fsync_directory(os.path.dirname(self.path))
                self._entry_durable = True
        except StorageFailed as cause:
            self.poison(cause)

    def publish(self, length: int) -> None:
        """Tell readers in other processes how far the pack is durable."""
        self._durable.publish(length)

    def finish(self, size: int) -> None:
        """Cut the file to `size` bytes, flush, publish, and let go of it."""
        self._truncate(size)
        self.flush()
        self.publish(size)
        self.release()

    def release(self) -> None:
        """Let go of the file as it is: recovery will look at it."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._durable.close()
            self._fd = -1

    def poison(self, cause: StorageFailed) -> NoReturn:
        """Refuse everything from now on."""
        self._failed = self._failed or cause
        raise cause

    def _truncate(self, length: int) -> None:
        try:
            self._files.truncate(self._fd, length)
        except (OutOfSpace, StorageFailed) as cause:
            self.poison(StorageFailed("truncate", self.path, cause.cause, cause.hint))


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
        self._file = PackFile(files, path)
        self.path = path
        self.pack_id = self._file.pack_id
        self.study_instance_uid = study_instance_uid
        self.size = 0
        self.durable_size = 0
        self.count = 0
        self.opened_monotonic_s = self._clock.monotonic_s()
        self.last_append_monotonic_s = self.opened_monotonic_s

    def append(  # noqa: PLR0917 -- runs for every instance; keywords cost
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
