"""A body as botocore wants it: something to read, seek and tell, over a range of a file."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

from appliance.foundation.errors import Damaged
from appliance.remote.store import Body


class FileRange(io.RawIOBase):
    """Reads `[start, start + size_bytes)` of an open file; memory stays bounded by the reader."""

    def __init__(self, fd: int, start: int, size_bytes: int) -> None:
        self._fd = fd
        self._start = start
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the range."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move in the range."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; OSError when the file ends before the range does."""
        wanted = min(len(buffer), self._size_bytes - self._at)
        if wanted <= 0:
            return 0
        count = os.preadv(self._fd, [memoryview(buffer)[:wanted]], self._start + self._at)
        if count == 0:
            raise OSError("the file got shorter while it was sent")
        self._at += count
        return count


@contextlib.contextmanager
def open_body(body: Body) -> Iterator[bytes | FileRange]:
    """Open a body for one request; Damaged when the file is shorter than the body claims."""
    if isinstance(body, bytes):
        yield body
        return
    fd = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < body.start + body.size_bytes:
            raise Damaged("read what is to be uploaded", body.path, "the file is too short")
        yield FileRange(fd, body.start, body.size_bytes)
    finally:
        os.close(fd)
