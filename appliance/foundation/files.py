"""Durable files: the only place that renames, flushes or unlinks.

Invariants:
- A name that appears by `rename` or `write_atomic` is durable when the call returns, content and
  directory entry both (D1).
- After a failed flush the error is `StorageFailed`, which no caller retries (D2): the kernel may
  have dropped the dirty pages and a second fsync would lie.
- A full file system is `OutOfSpace`, told apart from every other failure (D3).
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import NoReturn

from appliance.foundation.errors import Busy, OutOfSpace, StorageFailed

IOV_MAX = 1024
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def raise_storage_error(operation: str, path: str, cause: OSError) -> NoReturn:
    """Translate an OSError of a write into OutOfSpace or StorageFailed."""
    if cause.errno in _FULL:
        raise OutOfSpace(
            operation, path, os.strerror(cause.errno), "Free space on the data disk"
        ) from cause
    raise StorageFailed(
        operation, path, cause.strerror or str(cause), "Check the disk and its cabling"
    ) from cause


class FileSystem:
    """The operations on durable files. A test passes one that fails, fills up or forgets."""

    def open(self, path: str, flags: int, mode: int = 0o660) -> int:
        """Return a file descriptor, close-on-exec."""
        try:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        except FileNotFoundError:
            raise
        except OSError as cause:
            if flags & (os.O_WRONLY | os.O_RDWR):
                raise_storage_error("open for writing", path, cause)
            raise

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pwritev(
        self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int
    ) -> int:
        """Write all buffers at `offset`; return the count of bytes written (all of them)."""
        total = sum(map(len, buffers))
        try:
            done = os.pwritev(fd, buffers[:IOV_MAX], offset)
            if done != total:
                done = self._write_rest(fd, buffers, offset, done)
        except OSError as cause:
            raise_storage_error("write", f"fd {fd}", cause)
        return done

    def _write_rest(
        self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int, done: int
    ) -> int:
        skipped = 0
        for buffer in buffers:
            view = memoryview(buffer)
            start = max(0, done - skipped)
            skipped += len(view)
            while start < len(view):
                count = os.pwrite(fd, view[start:], offset + done)
                start += count
                done += count
        return done

    def preallocate(self, fd: int, offset: int, length: int, *, written: bool = False) -> None:
        """Reserve disk blocks, growing the file with zeros; OutOfSpace when there are none.

        With `written` the zeros are written, not just promised by the file system. One that
        cannot reserve is left to grow the file as it is written.
        """
        try:
            os.posix_fallocate(fd, offset, length)
        except OSError as cause:
            if cause.errno in _CANNOT_RESERVE:
                return
            raise_storage_error("preallocate", f"fd {fd}", cause)
        if written:
            self.pwritev(fd, [bytes(length)], offset)

    def truncate(self, fd: int, length: int) -> None:
        """Set the file's length in bytes."""
        try:
            os.ftruncate(fd, length)
        except OSError as cause:
            raise_storage_error("truncate", f"fd {fd}", cause)

    def fdatasync(self, fd: int) -> None:
        """Flush the file's data and size to the medium."""
        try:
            os.fdatasync(fd)
        except OSError as cause:
            raise StorageFailed("flush", f"fd {fd}", str(cause), "Check the disk") from cause

    def drop_cached(self, fd: int) -> None:
        """Let the kernel forget what it has cached of the file; what follows reads the medium.

        Only what is flushed is forgotten, and nothing that another process has mapped.
        """
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as cause:
            raise_storage_error("drop from the cache", f"fd {fd}", cause)

    def fsync_directory(self, path: str) -> None:
        """Flush a directory's entries to the medium."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as cause:
            raise StorageFailed("flush directory", path, str(cause), "Check the disk") from cause

    def rename(self, source: str, target: str) -> None:
        """Rename over `target` and flush the directories that changed."""
        try:
            os.rename(source, target)
        except FileNotFoundError:
            raise
        except OSError as cause:
            raise_storage_error("rename", source, cause)
        self.fsync_directory(os.path.dirname(target))
        if os.path.dirname(source) != os.path.dirname(target):
            self.fsync_directory(os.path.dirname(source))

    def unlink(self, path: str) -> None:
        """Remove a file, if it is there, and flush its directory."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as cause:
            raise_storage_error("unlink", path, cause)
        self.fsync_directory(os.path.dirname(path))

    def remove_tree(self, path: str) -> None:
        """Remove a folder with all that is in it, if it is there; a power cut may leave some."""
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as cause:
            raise_storage_error("remove", path, cause)

    def make_directory(self, path: str) -> None:
        """Create a directory and its missing parents, durable; for the group of the one above.

        A directory inherits the set-group-ID bit. Asking for it does nothing more, and a sandbox
        that forbids the bit (RestrictSUIDSGID=) would refuse the whole call.
        """
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        try:
            os.mkdir(path, 0o770)
        except FileExistsError:
            return
        except OSError as cause:
            raise_storage_error("create directory", path, cause)
        self.fsync_directory(parent)

    def write_atomic(self, path: str, content: bytes, mode: int = 0o660) -> None:
        """Make `path` hold exactly `content`: after a crash it holds the old or the new, whole."""
        temporary = f"{path}.{os.getpid()}.tmp"
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            self.pwritev(fd, [content], 0)
            self.fdatasync(fd)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os.close(fd)
        self.rename(temporary, path)

    def write_volatile(self, path: str, content: bytes) -> None:
        """Make `path` hold exactly `content` for those who read now; a power cut may lose it."""
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError as cause:
            raise_storage_error("write", path, cause)

    def free_bytes(self, path: str) -> int:
        """Return how many bytes an ordinary user may still write on the file system of `path`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


class FileLock:
    """An flock on a lock file, held until `release` or the process ends, however it ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    @property
    def is_current(self) -> bool:
        """Whether the path still names the file that is locked: whoever held it may remove it."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def acquire(self, *, shared: bool = False, wait: bool = False) -> None:
        """Take the lock; Busy when somebody else holds it and `wait` is false."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            os.close(fd)
            raise Busy("lock", self.path, "another process holds it") from cause
        self._fd = fd

    def release(self) -> None:
        """Let the lock go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def holding(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock, waiting for it, over a block."""
        self.acquire(shared=shared, wait=True)
        try:
            yield
        finally:
            self.release()
