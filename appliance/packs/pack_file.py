"""The file of a pack while it is written: its space, its flushes, and what readers are told.

Owns the descriptor. Must not know members.

Invariants:
- After a failed write or flush nothing more is written: every later call raises (D2).
- When the disk is full the file is as it was before the call (D3).
- The first flush that returns has flushed the directory entry as well (D1).
"""

import mmap
import os
from typing import NoReturn

from appliance.foundation.errors import OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.packs.durable import DurableLength, durable_path
from appliance.packs.header import pack_id_of
from appliance.packs.member import round_up

# Growing the file costs a journal commit in the fdatasync that follows: 525 kB written and
# flushed took 1.19 ms so, and 0.50 ms into space that was there already.
STEP_FIRST_BYTES = 1 << 20
SMALL_MEMBER_BYTES = 128 * 1024
STEP_MAX_BYTES = 16 << 20


class PackFile:
    """The file of a pack being written: space, flushes, and the durable length.

    Invariant: `_failed` is set before the error of a failed write or flush reaches anybody.
    Owned by one writer object, whose lock covers every method but `flush`.
    """

    def __init__(self, files: FileSystem, path: str, *, announced: bool) -> None:
        """Create the file; `announced` ones tell other processes their durable length."""
        self.path = path
        self.pack_id = pack_id_of(path)
        self._files = files
        self._fd = files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)
        self._reserved = 0
        self._step = STEP_FIRST_BYTES
        self._entry_durable = False
        self._failed: StorageFailed | None = None
        try:
            self._durable = DurableLength(files, durable_path(path)) if announced else None
        except BaseException:
            files.close(self._fd)
            files.unlink(path)
            raise

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
        is_small = end - size <= SMALL_MEMBER_BYTES
        step = STEP_FIRST_BYTES if is_small else self._step
        for target in (max(end, start + step), round_up(end)):
            try:
                # Blocks that hold zeros already, not just a promise of them, are flushed without
                # the file system's journal: 0.09 ms for 9 kB instead of 0.17 ms. A large member
                # would pay for it by being written twice.
                self._files.preallocate(self._fd, start, target - start, written=is_small)
            except OutOfSpace:
                # What a failed reservation took is given back before a smaller one is tried.
                self._truncate(start)
            except StorageFailed as cause:
                self.poison(cause)
            else:
                self._reserved = target
                if not is_small:
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
        if self._durable is not None:
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
            if self._durable is not None:
                self._durable.close()
            self._fd = -1

    def view(self, offset: int, length: int) -> memoryview:
        """Return a range of what was written as a view of the mapped file."""
        if length == 0:
            return memoryview(b"")
        mapped = mmap.mmap(self._fd, offset + length, prot=mmap.PROT_READ)
        return memoryview(mapped)[offset:]

    def poison(self, cause: StorageFailed) -> NoReturn:
        """Refuse everything from now on."""
        self._failed = self._failed or cause
        raise cause

    def _truncate(self, length: int) -> None:
        try:
            self._files.truncate(self._fd, length)
        except (OutOfSpace, StorageFailed) as cause:
            self.poison(StorageFailed("truncate", self.path, cause.cause, cause.hint))
