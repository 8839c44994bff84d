"""How far a writer has answered and how far the indexer has followed, in a mapped file.

Invariants:
- `answered` is raised by the owning writer only, after the instance is durable.
- `indexed` is set by the indexer only, to a value of `answered` that it read before the pass whose
  commit is now visible; so `indexed >= x` means that everything answered up to x can be queried.
- The counters are hints between live processes, never truth after a crash.
"""

import contextlib
import mmap
import os
import struct

_SIZE_BYTES = 24
_COUNTER = struct.Struct("<Q")
_ANSWERED, _INDEXED, _WANTED = 0, 8, 16


class Progress:
    """The mapped counters of one writer. An aligned 8-byte store is seen whole by others."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            if os.fstat(fd).st_size < _SIZE_BYTES:
                # A store to a hole of a full disk would be a SIGBUS.
                os.posix_fallocate(fd, 0, _SIZE_BYTES)
            self._map = mmap.mmap(fd, _SIZE_BYTES)
        finally:
            os.close(fd)

    def _get(self, at: int) -> int:
        value: int = _COUNTER.unpack_from(self._map, at)[0]
        return value

    @property
    def answered(self) -> int:
        """How many instances the writer has made durable."""
        return self._get(_ANSWERED)

    @answered.setter
    def answered(self, value: int) -> None:
        _COUNTER.pack_into(self._map, _ANSWERED, value)

    @property
    def indexed(self) -> int:
        """Up to which value of `answered` queries see everything."""
        return self._get(_INDEXED)

    @indexed.setter
    def indexed(self, value: int) -> None:
        _COUNTER.pack_into(self._map, _INDEXED, value)

    @property
    def wanted(self) -> int:
        """Up to which value somebody waits; the indexer hurries while it is above `indexed`."""
        return self._get(_WANTED)

    @wanted.setter
    def wanted(self, value: int) -> None:
        _COUNTER.pack_into(self._map, _WANTED, value)

    def close(self) -> None:
        """Unmap."""
        with contextlib.suppress(BufferError):
            self._map.close()


def progress_path(writer_directory: str) -> str:
    """Return where a writer's counters lie."""
    return os.path.join(writer_directory, "progress")
